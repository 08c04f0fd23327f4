"""Reading answers: every form that is the same answer, and nothing that is another."""

from __future__ import annotations

import pytest

from jobs.evaluation.answers import (
    CHECKABLE,
    is_right,
    read_count,
    read_letter,
    read_times,
    read_word,
    read_yes_no,
    time_error_s,
)
from videoxl2.training.facts import script_facts
from videoxl2.training.questions import questions_of
from videoxl2.training.random_scenes import random_scene
from videoxl2.training.scene import COLOURS
from videoxl2.training.wording import SIDES

OPTIONS = ("a red car drives", "a person in a blue shirt runs", "a van parks", "a person in a blue shirt")


@pytest.mark.parametrize(
    ("answer", "letter"),
    [
        *(
            (text, "B")
            for text in ("B", "b", "B.", "(B)", "B)", "B: whatever", "Answer: B", "Option B", " B a man runs")
        ),
        ("A", "A"),
        ("A. a red car drives", "A"),
        ("a", "A"),
        ("a red car drives", "A"),
        ("A red car drives.", "A"),
        ("It is a van parks", "C"),
        ("a person in a blue shirt runs", "B"),
        ("a person in a blue shirt", "D"),
        ("a red bus", None),
        ("A red bus", None),
        ("Because", None),
        ("E", None),
        ("", None),
        ("12", None),
    ],
)
def test_letters(answer: str, letter: str | None) -> None:
    assert read_letter(answer, OPTIONS) == letter


def test_an_answer_that_names_two_options_names_none() -> None:
    assert read_letter("a red car drives and a van parks", OPTIONS) is None


@pytest.mark.parametrize(
    ("answer", "read"),
    [
        ("yes", "yes"),
        ("Yes, it does.", "yes"),
        ("NO", "no"),
        ("No.", "no"),
        ("not sure", None),
        ("yesterday", None),
        ("", None),
    ],
)
def test_yes_and_no(answer: str, read: str | None) -> None:
    assert read_yes_no(answer) == read


@pytest.mark.parametrize(
    ("answer", "read"),
    [
        ("3", 3),
        ("There are 12 people.", 12),
        ("1 2", 12),
        ("two", 2),
        ("No one", 0),
        ("none", 0),
        ("someone", None),
        ("", None),
    ],
)
def test_counts(answer: str, read: int | None) -> None:
    assert read_count(answer) == read


def test_words() -> None:
    assert read_word("The shirt is Gray.", tuple(COLOURS)) == "grey"
    assert read_word("red red", tuple(COLOURS)) == "red"
    assert read_word("red or blue", tuple(COLOURS)) is None
    assert read_word("reddish", tuple(COLOURS)) is None
    assert read_word("in the centre", SIDES) == "middle"


@pytest.mark.parametrize(
    ("answer", "times"),
    [
        ("12 to 24 seconds", (12.0, 24.0)),
        ("1 2 to 2 4 seconds", (12.0, 24.0)),
        ("00:12 to 00:24", (12.0, 24.0)),
        ("from 1:02:03 until 1:02:05", (3723.0, 3725.0)),
        ("09:58 to 10:04", (598.0, 604.0)),
        ("0 9 : 5 8 to 1 0 : 0 4", (598.0, 604.0)),
        ("at 75.5 s", (75.5, 75.5)),
        ("30 to 10 seconds", (30.0, 30.0)),
        ("12 to 24 seconds, then 50 seconds", (12.0, 24.0)),
        ("never", None),
        ("", None),
    ],
)
def test_times(answer: str, times: tuple[float, float] | None) -> None:
    assert read_times(answer) == times


@pytest.mark.parametrize(
    ("answer", "error_s"),
    [
        ("20 to 30 seconds", 0.0),
        ("0 to 50 seconds", 0.0),  # its middle lies inside
        ("40 to 44 seconds", 12.0),
        ("0 to 10 seconds", 15.0),
        ("00:42", 12.0),
        ("9999 seconds", 60.0),  # no error is beyond the video's length
        ("I do not know", 60.0),
    ],
)
def test_errors_of_times(answer: str, error_s: float) -> None:
    assert time_error_s(answer, (20.0, 30.0), 60.0) == error_s


def test_right_and_wrong_by_kind() -> None:
    assert is_right("choice", "C", "C") and not is_right("choice", "D", "C") and not is_right("choice", "", "C")
    assert is_right("exists", "Yes", "yes") and not is_right("exists", "no", "yes")
    assert is_right("colour", "it is red", "red") and not is_right("colour", "red and blue", "red")
    assert is_right("count", "2", "2") and not is_right("count", "3", "2") and not is_right("count", "?", "0")
    assert is_right("where", "left", "left") and not is_right("where", "right", "left")
    assert is_right("where", "near", "near") and not is_right("where", "far", "near")
    phrase = "a person in a red shirt running"
    assert is_right("order", f" A{phrase[1:]}.", phrase) and not is_right("order", "a person running", phrase)
    assert is_right("order", "no", "no") and not is_right("order", "yes", "no")
    with pytest.raises(ValueError, match="describe"):
        is_right("describe", "x", "x")


def test_every_answer_that_the_labels_give_is_read_as_right() -> None:
    """The grader and the questions' own wording cannot drift apart."""
    seen = set()
    for number, kind in enumerate(("street", "parking", "corridor")):
        facts = script_facts(random_scene(kind, 50 + number, 240.0, "test", events_per_minute=3.0))  # type: ignore[arg-type]
        for item in questions_of(facts, number, "test", 6):
            if item.kind in CHECKABLE:
                seen.add(item.kind)
                assert is_right(item.kind, item.answer, item.answer, item.options), item
            if item.kind == "choice":
                assert is_right("choice", item.options["ABCD".index(item.answer)], item.answer, item.options), item
            if item.kind == "when":
                assert item.interval is not None
                assert time_error_s(item.answer, item.interval, 240.0) <= 0.5, item
    assert seen == set(CHECKABLE)
