"""Questions as text: the times that they name, and places that are added."""

from __future__ import annotations

import pytest

from videoxl2.training.qa import at_place, names_time, times_named


@pytest.mark.parametrize(
    ("question", "placed"),
    [
        ("Does somebody run?", "Does somebody run at the gate?"),
        ("Count the dogs.", "Count the dogs at the gate."),
        ("Where is the car: left, middle or right?", "Where is the car at the gate: left, middle or right?"),
        ("Who runs?\nA. a dog\nB. a: b", "Who runs at the gate?\nA. a dog\nB. a: b"),
    ],
)
def test_a_place_is_named_before_the_choices(question: str, placed: str) -> None:
    assert at_place(question, "at the gate") == placed


def test_times_are_found_in_both_forms_and_numbers_of_other_things_are_not() -> None:
    question = "How many on camera 5?\nA. 141 to 147 seconds\nB. 02:21"
    ends = [question.index(text) + len(text) for text in ("141", "147", "02:21")]
    assert times_named(question) == list(zip((141, 147, 141), ends, strict=True))
    assert names_time(question) and not names_time("How many on camera 5 on day 12:?")
