"""Times in the text of a question."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from videoxl2.named_times import names_time, spans_named, time_form, times_named


@pytest.mark.parametrize(
    ("question", "spans"),
    [
        ("How many people are there at 17 seconds?", [(17, 17)]),
        ("What happens at 02:21?", [(141, 141)]),
        ("What happens at 1:02:03?", [(3723, 3723)]),
        ("Who runs from 02:21 to 02:27?", [(141, 147)]),
        ("Who runs between 10 and 20 seconds?", [(10, 20)]),
        ("Who runs between 10 s and 20 s?", [(10, 20)]),
        ("What is seen after 2 minutes?", [(120, 120)]),
        ("What is seen at 1.5 min?", [(90, 90)]),
        ("When?\nA. 13 to 21 seconds\nB. 0 to 4 seconds", [(13, 21), (0, 4)]),
        ("When?\nA. 00:13 to 00:21\nB. 59:59 to 60:02", [(13, 21), (3599, 3602)]),
        ("First 20 seconds and 10 seconds", [(20, 20), (10, 10)]),
        ("At 10 seconds and at 20 seconds", [(10, 10), (20, 20)]),
        ("Is there a dog in 3 places of camera 5?", []),
        ("Is there 1 person with 2 bags, or 3: which?", []),
        ("", []),
    ],
)
def test_spans_named(question: str, spans: list[tuple[float, float]]) -> None:
    assert spans_named(question) == spans
    assert names_time(question) == bool(spans)


def test_every_time_tells_where_it_ends() -> None:
    question = "A. 141 to 147 seconds\nB. 02:21"
    ends = [question.index(text) + len(text) for text in ("141", "147", "02:21")]
    assert times_named(question) == list(zip((141, 147, 141), ends, strict=True))


@given(start=st.integers(0, 9000), length=st.integers(0, 500))
def test_both_ways_to_say_a_span_are_read_alike(start: int, length: int) -> None:
    end = start + length
    clock = " to ".join(f"{at // 60:02d}:{at % 60:02d}" for at in (start, end))
    assert spans_named(f"{start} to {end} seconds") == spans_named(f"Is it {clock}?") == [(start, end)]


@pytest.mark.parametrize(
    ("text", "form"),
    [
        ("17 seconds", "seconds"),
        ("141 to 147 seconds", "seconds"),
        ("02:21", "clock"),
        ("02:21 to 02:27", "clock"),
        ("at 02:21", None),
        ("17", None),
        ("02:21 to 17 seconds", None),
        ("", None),
    ],
)
def test_what_is_a_time_and_nothing_else(text: str, form: str | None) -> None:
    assert time_form(text) == form
