"""What training must not show is not denied either: no answer, option or label is taught against it."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch

from videoxl2.training.episodes import TROUSERS
from videoxl2.training.facts import EventFact, Facts, ObjectFact
from videoxl2.training.held_back import DEEDS, AnswersAlike, answers_alike, names_held_back
from videoxl2.training.label_sets import SET_SIZE, actor_codes, output_of, pair_of
from videoxl2.training.qa import QA
from videoxl2.training.samples import CELL_ACTIONS, CELL_COLOURS, CELL_KINDS, CELL_MOTIONS
from videoxl2.training.silence import outputs_held_back
from videoxl2.training.splits import Split, first_split, is_allowed

KIND, COLOUR, BELOW, ACTION = 0, 1, 2, 4
SHIRT_COLOURS = {"red", "orange", "yellow", "green", "blue", "purple", "pink", "white", "black"}


def scene(shirt: str, trousers: str, *deeds: str) -> Facts:
    """One person who does these."""
    somebody = ObjectFact("a", "person", {"shirt": shirt, "trousers": trousers}, ((0.0, 9.0),), (), True)
    events = [EventFact(f"event-{i}", deed, "a", None, 0.0, 9.0, False) for i, deed in enumerate(deeds)]
    return Facts("street", 0.0, 9.0, (somebody,), tuple(events))


def asked(kind: str, question: str, answer: str, *evidence: str) -> QA:
    return QA(kind, question, answer, (), (0.0, 9.0), evidence)  # type: ignore[arg-type]


def first_held_back(*words: str, of: tuple[str, ...]) -> str:
    return next(word for word in of if not is_allowed("train", *words, word))


@pytest.mark.parametrize("split", ["train", "validation", "test"])
def test_trousers_that_a_split_may_not_show_are_no_wrong_answer(split: Split) -> None:
    for shirt in ("red", "orange", "black", "white"):
        below = next(t for t in TROUSERS if t != shirt and is_allowed("train", "shirt", shirt, "trousers", t))
        item = asked("colour", f"What colour are the trousers of the person in a {shirt} shirt?", below, "a")
        expected = [t for t in TROUSERS if not is_allowed(split, "shirt", shirt, "trousers", t)]
        found = answers_alike(scene(shirt, below), item, split)
        assert list(found.held_back) == expected and {*found.shown, *found.held_back} == set(TROUSERS)
        assert below in found.shown and (split != "test" or not expected)


def test_a_shirt_is_told_by_what_its_owner_wears_and_does() -> None:
    item = asked("colour", "What colour is the shirt of the person who falls down?", "white", "event-0", "a")
    found = answers_alike(scene("white", "blue", "fall"), item).held_back
    by_deed = {c for c in CELL_COLOURS[1:] if first_split("person", c, "fall") != "train"}
    by_trousers = {c for c in CELL_COLOURS[1:] if first_split("shirt", c, "trousers", "blue") != "train"}
    assert set(found) == (by_deed | by_trousers) & SHIRT_COLOURS
    assert by_deed & set(found) and "black" in found, "black shirts over blue trousers are kept for validation"


def test_what_somebody_does_and_who_did_it() -> None:
    deed = first_held_back("person", "white", of=("run", "stop", "loiter", "fall", "drop", "pick", "meet"))
    names = {"run": "runs", "stop": "stops and waits", "loiter": "loiters", "fall": "falls down"}
    names |= {"drop": "drops a bag", "pick": "picks up a bag", "meet": "meets another person"}
    does = asked("what", "What does the person in a white shirt do?", "walks", "event-0", "a")
    found = answers_alike(scene("white", "blue", "walk"), does)
    assert names[deed] in found.held_back and "walks" in found.shown
    who = asked("what", "Who runs?", "a person in a blue shirt", "event-0", "a")
    shirts = {f"a person in {'an' if c == 'orange' else 'a'} {c} shirt" for c in SHIRT_COLOURS}
    found = answers_alike(scene("blue", "grey", "run"), who)
    assert {*found.shown, *found.held_back} == shirts and "a person in a blue shirt" in found.shown
    assert "a person in an orange shirt" in found.held_back, "orange over grey is kept for validation"


@pytest.mark.parametrize("kind", ["when", "where", "exists", "count", "order", "choice", "describe", "events"])
def test_other_answers_name_no_combination(kind: str) -> None:
    nothing = AnswersAlike()
    assert answers_alike(scene("red", "blue", "run"), asked(kind, "Anything?", "yes", "event-0", "a")) == nothing
    assert answers_alike(scene("red", "blue"), asked("colour", "What colour is the door?", "red")) == nothing


@pytest.mark.parametrize(
    ("shirt", "trousers", "deed", "question", "named"),
    [
        ("red", "brown", "walk", "What colour are the trousers of the person in a red shirt?", True),
        ("red", "brown", "walk", "What does the person in a red shirt do?", False),
        ("red", "blue", "walk", "What colour are the trousers of the person in a red shirt?", False),
        ("white", "grey", "run", "Who runs?", True),
        ("blue", "grey", "run", "Who runs?", False),
    ],
)
def test_a_question_names_what_is_kept_back_only_where_its_answer_follows_from_it(
    shirt: str, trousers: str, deed: str, question: str, named: bool
) -> None:
    item = asked("exists", question, "yes", "event-0", "a")
    facts = scene(shirt, trousers, deed)
    assert names_held_back(facts, item) is named and not names_held_back(facts, item, "test")
    assert not names_held_back(facts, asked("exists", question, "no"))


def sets_of(kind: str, colour: str, trousers: str = "none", action: str = "none") -> torch.Tensor:
    """The set [1, H] of a cell that shows one thing that stands still."""
    names = (CELL_KINDS, CELL_COLOURS, CELL_COLOURS, CELL_MOTIONS, CELL_ACTIONS)
    values = (kind, colour, trousers, "still", action)
    actors_51 = np.asarray([[known.index(value)] for known, value in zip(names, values, strict=True)], np.uint8)
    sets_H = torch.zeros(1, SET_SIZE)
    sets_H[0, actor_codes(actors_51)[0]] = 1.0
    return sets_H


def test_brown_under_red_is_not_denied_and_blue_is() -> None:
    assert first_split("shirt", "red", "trousers", "brown") == "test"
    silent_H = outputs_held_back(sets_of("person", "red", "grey", "walk"))[0]
    assert silent_H[output_of(BELOW, "brown")] and silent_H[pair_of(COLOUR, "red", BELOW, "brown")]
    assert not silent_H[output_of(BELOW, "blue")] and not silent_H[pair_of(COLOUR, "red", BELOW, "blue")]
    assert not silent_H[output_of(KIND, "car")]
    silent_H = outputs_held_back(sets_of("person", "white", "brown", "walk"))[0]
    assert silent_H[output_of(COLOUR, "red")] and silent_H[pair_of(KIND, "person", COLOUR, "red")]
    assert not outputs_held_back(sets_of("person", "red", "grey", "walk"), "test").any()


def test_nothing_that_training_shows_together_silences_itself() -> None:
    """Over every look and deed that training may show: only what it may not show is silent, and never what is there."""
    silenced = 0
    for kind, deeds in DEEDS.items():
        for colour, below, deed in itertools.product(CELL_COLOURS[1:], ("none", *TROUSERS), ("none", *deeds)):
            if (kind != "person") != (below == "none") or not is_allowed("train", kind, colour, deed):
                continue
            if below != "none" and not is_allowed("train", "shirt", colour, "trousers", below):
                continue
            silent_H = outputs_held_back(sets_of(kind, colour, below, deed))[0]
            assert not (silent_H & (sets_of(kind, colour, below, deed)[0] > 0)).any()
            for other in CELL_ACTIONS[1:]:
                if silent_H[output_of(ACTION, other)]:
                    assert not is_allowed("train", kind, colour, other)
            for other in CELL_COLOURS[1:]:
                if silent_H[output_of(COLOUR, other)]:
                    by_trousers = below != "none" and not is_allowed("train", "shirt", other, "trousers", below)
                    assert by_trousers or not is_allowed("train", kind, other, deed)
                if silent_H[output_of(BELOW, other)]:
                    assert kind == "person" and not is_allowed("train", "shirt", colour, "trousers", other)
            silenced += int(silent_H.any())
    assert silenced > 100
