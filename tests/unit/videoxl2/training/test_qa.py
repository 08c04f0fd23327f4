"""Questions as text: places that are added."""

from __future__ import annotations

import pytest

from videoxl2.training.qa import at_place


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
