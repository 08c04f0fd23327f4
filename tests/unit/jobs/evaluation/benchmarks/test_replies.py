"""From replies to letters and stretches of time: the published rules, with their oddities."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from jobs.evaluation.benchmarks.answers import (
    first_letter,
    first_letter_or_guess,
    interval_in,
    interval_iou,
    letter_before_bracket,
    lone_letter,
)

REPLIES = st.text() | st.text(st.sampled_from("ABCDE ().,-:_\n0123456789startendo"))


@pytest.mark.parametrize(
    ("reply", "letter"),
    [("C) A cup", "C"), (" (B) A phone", "B"), ("D", "D"), ("the cup ", "the cup"), (")", ""), ("", "")],
)
def test_mlvu(reply: str, letter: str) -> None:
    assert letter_before_bracket(reply) == letter


@pytest.mark.parametrize(
    ("reply", "letter"),
    [
        ("B", "B"),
        ("The best answer is C.", "C"),
        ("The answer is D", "D"),
        ("The correct option is A", "A"),
        ("Best answer: B", "B"),
        ("Best Buy", "B"),
        ("it is option c", ""),
        ("", ""),
    ],
)
def test_videomme(reply: str, letter: str) -> None:
    """The phrase "Best answer:" is not taken off, for want of a comma in the published list: its B is found."""
    assert first_letter(reply) == letter


@pytest.mark.parametrize(
    ("reply", "letter"),
    [
        ("B. (B) A woman", "B"),
        ("b.woman", "B"),
        ("(C)", "C"),
        ("The answer is (D) nobody", "D"),
        ("Answer:B", "B"),
        ("it is a woman", "A"),
        ("B-C", "B"),
        ("nobody", "nobody"),
        ("", ""),
    ],
)
def test_lvbench(reply: str, letter: str) -> None:
    assert lone_letter(reply) == letter


def test_longvideobench_guesses_where_it_finds_nothing() -> None:
    assert first_letter_or_guess("Best option: E", "ABCDE", "x") == "E"
    guesses = {first_letter_or_guess("no idea", "AB", f"item {number}") for number in range(40)}
    assert guesses == {"A", "B"}
    assert first_letter_or_guess("no idea", "AB", "item 1") == first_letter_or_guess("", "AB", "item 1")


@pytest.mark.parametrize(
    ("reply", "interval"),
    [
        ("The event happens in the 24.3 - 30.4 seconds.", (24.3, 30.4)),
        ("From 5 to 12.5 seconds", (5.0, 12.5)),
        ("30 - 20", (20.0, 30.0)),
        ("A specific example is : 20.8 - 30.0 seconds. 1 - 2", (1.0, 2.0)),
        ("Starting time: 0.8 seconds\nEnding time: 1.1 seconds", (0.8, 1.1)),
        ("It starts at 7 seconds.\nIt lasts.", None),
        ("The start is 00:00:18!\nThe end is 00:01:23!", (0.0, 0.0)),
        ("1 - 2 and then 5 - 6", (1.0, 2.0)),
        ("1..2 - 3..4", None),
        ("at the door", None),
        ("", None),
    ],
)
def test_charades(reply: str, interval: tuple[float, float] | None) -> None:
    """Clock times lose to the rule before theirs, which takes the first number of a sentence: so it was published."""
    assert interval_in(reply) == interval


@pytest.mark.parametrize(
    ("one", "other", "iou"),
    [((0, 10), (5, 15), 1 / 3), ((0, 10), (0, 10), 1.0), ((0, 1), (2, 3), 0.0), ((1, 1), (1, 1), 0.0)],
)
def test_iou(one: tuple[float, float], other: tuple[float, float], iou: float) -> None:
    assert interval_iou(one, other) == pytest.approx(iou)


SPANS = st.tuples(st.floats(0, 1e4), st.floats(0, 1e4)).map(lambda pair: (min(pair), max(pair)))


@given(SPANS, SPANS)
def test_iou_is_a_share_and_symmetric(one: tuple[float, float], other: tuple[float, float]) -> None:
    assert 0.0 <= interval_iou(one, other) == interval_iou(other, one) <= 1.0


@given(st.floats(0, 1e4).map(lambda s: round(s, 1)), st.floats(0, 1e4).map(lambda s: round(s, 1)))
def test_the_asked_form_is_always_understood(start_s: float, end_s: float) -> None:
    found = interval_in(f"The event 'person sits' happens in the {start_s:.1f} - {end_s:.1f} seconds.")
    assert found == (min(start_s, end_s), max(start_s, end_s))


@given(REPLIES)
def test_every_reply_is_read(reply: str) -> None:
    assert len(letter_before_bracket(reply)) <= max(1, len(reply))
    assert first_letter(reply) in ("", "A", "B", "C", "D")
    assert first_letter_or_guess(reply, "ABC", "x") in tuple("ABCDE")
    assert isinstance(lone_letter(reply), str)
    found = interval_in(reply)
    assert found is None or found[0] <= found[1]
