"""Questions that are asked for what their text does not give away."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import pytest

from videoxl2.training import dialogues
from videoxl2.training.dialogues import Stretch, questions_about
from videoxl2.training.facts import script_facts
from videoxl2.training.priors import AnswerPriors, OptionBalance
from videoxl2.training.qa import QA, asks_for_trousers, offers_times
from videoxl2.training.questions import questions_of
from videoxl2.training.random_scenes import CAMERA_KINDS, random_scene


def choice(right: str, *wrong: str) -> QA:
    return QA("choice", "What does she do?", "A", (right, *wrong), None, ())


def test_an_option_that_is_always_right_is_asked_less_and_one_that_never_is_more() -> None:
    priors = AnswerPriors([choice("walks", "runs", "falls down", "loiters") for _ in range(40)])
    weights = {name: priors.weight(choice(name, "x", "y", "z")) for name in ("walks", "runs", "never met")}
    assert weights["walks"] == pytest.approx(0.25 / (41 / 44))
    assert weights["runs"] == 4.0, "rarer than one in four, up to the limit"
    assert weights["never met"] == 1.0


def test_the_commoner_answer_to_a_wording_is_asked_less() -> None:
    def seen(answer: str, colour: str = "red") -> QA:
        return QA("exists", f"Does a person in a {colour} shirt run?", answer, (), None, ())

    priors = AnswerPriors([seen("no", "blue")] * 9 + [seen("yes")] * 3)
    assert priors.weight(seen("no", "green")) == pytest.approx(0.5 / (10 / 14))
    assert priors.weight(seen("yes")) == pytest.approx(0.5 / (4 / 14))
    assert priors.weight(QA("exists", "Does a dog pass?", "yes", (), None, ())) == 1.0, "not met before"
    assert priors.weight(QA("colour", "What colour is the van?", "red", (), None, ())) == 1.0, "told by no wording"


def stretches(numbers: Iterable[int]) -> list[Stretch]:
    """A minute of made-up scenes each, without tokens."""
    found = []
    for number in numbers:
        scene = random_scene(CAMERA_KINDS[number % len(CAMERA_KINDS)], number, 60.0, events_per_minute=5.0)
        found.append(
            Stretch(np.zeros((15, 1, 1), np.float16), tuple(4.0 * g for g in range(15)), script_facts(scene, 0.0))
        )
    return found


def test_wording_tells_less_of_the_questions_that_are_asked_with_priors() -> None:
    known = [item for seen in stretches(range(60)) for item in questions_of(seen.facts, 1, "train", 8)]
    priors, balance = AnswerPriors(known), OptionBalance()
    for item in known:
        if item.options:
            balance.add(item)
    guessed: dict[bool, list[bool]] = {False: [], True: []}
    for number, stretch in enumerate(stretches(range(100, 300))):
        for told in guessed:
            asked = questions_about(stretch, number, 10, 22, priors=priors if told else None)
            # Of options that are times the wording tells nothing anyway, and they are asked more.
            told_by_words = [item for item in asked if item.options and not offers_times(item)]
            guessed[told] += [balance.guess(item) == item.answer for item in told_by_words]
    before, after = np.mean(guessed[False]), np.mean(guessed[True])
    assert len(guessed[True]) > 500
    assert before > 0.36 and after < before - 0.06, (before, after)


def test_trousers_are_asked_about_rather_than_by_chance(monkeypatch: pytest.MonkeyPatch) -> None:
    def share() -> float:
        asked = [item for seen in stretches(range(20)) for item in questions_about(seen, 3, 10, 12)]
        return sum(map(asks_for_trousers, asked)) / len(asked)

    rather = share()
    monkeypatch.setattr(dialogues, "_TROUSERS_ASKED", 1.0)
    assert rather > 1.5 * share() > 0
    assert not asks_for_trousers(
        QA("choice", "What does the person in a red shirt and blue trousers do?", "A", ("walks", "runs"), None, ())
    )
