"""What the text of a question gives away about its answer, to whoever has read many and seen nothing. Pure.

Evaluation takes questions whose text gives away little, and training asks rather those whose answer the text makes
unlikely: a decoder that is right by the wording has no need to look.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable

from videoxl2.training.qa import QA
from videoxl2.training.scene import COLOURS
from videoxl2.training.wording import LETTERS

_WEIGHTS = (0.2, 4.0)
"""Between these lies how much rather a question is asked than one whose text says nothing."""
_TOLD_BY_WORDING = frozenset({"count", "where", "order", "exists", "what"})


def wording(text: str) -> str:
    """The first line without its colours and numbers."""
    words = text.split("\n")[0].lower().split()
    return " ".join("#" if word.strip("?.,:") in COLOURS or word[0].isdigit() else word for word in words)


def answer_label(item: QA) -> str:
    """What must be equally common in a kind: the answer, or for a first of two things, its place in the question."""
    if item.kind == "order" and item.answer not in ("yes", "no"):
        return "first" if item.question.find(item.answer) < len(item.question) / 2 else "second"
    return item.answer


class OptionBalance:
    """How often each wording of an option was offered and was right among multiple choices."""

    def __init__(self) -> None:
        self.offered: Counter[str] = Counter()
        self.right: Counter[str] = Counter()
        self.letters: Counter[str] = Counter()

    def excess(self, item: QA) -> float:
        """How much more often the right option's wording would be right than in one of four, with this item."""
        name = _right_wording(item)
        offered = self.offered[name] + sum(wording(option) == name for option in item.options)
        return self.right[name] + 1 - offered / len(LETTERS)

    def guess(self, item: QA) -> str:
        """The letter of the option whose wording was right most often where it was offered."""
        shares = [self.right[name] / max(self.offered[name], 1) for name in map(wording, item.options)]
        return LETTERS[shares.index(max(shares))]

    def add(self, item: QA) -> None:
        self.offered.update(map(wording, item.options))
        self.right[_right_wording(item)] += 1
        self.letters[item.answer] += 1


class AnswerPriors:
    """How likely an answer is by the wording alone, counted from many questions."""

    def __init__(self, items: Iterable[QA]) -> None:
        self._options = OptionBalance()
        self._answers: dict[tuple[str, str], Counter[str]] = {}
        for item in items:
            if item.options:
                self._options.add(item)
            elif item.kind in _TOLD_BY_WORDING:
                self._answers.setdefault((item.kind, wording(item.question)), Counter())[answer_label(item)] += 1

    def weight(self, item: QA) -> float:
        """How much rather the question is asked: the chance of its answer if all were alike, by that which it has.

        1 where the wording is not known, or tells nothing of kinds like this.
        """
        if item.options:
            name, even = _right_wording(item), 1 / len(item.options)
            seen, offered = self._options.right[name], self._options.offered[name]
        else:
            answers = self._answers.get((item.kind, wording(item.question)), Counter())
            seen, offered = answers[answer_label(item)], answers.total()
            even = 1 / max(1, len(answers))
        # As if the wording had been met once more for every answer, and each had been right once.
        likely = (seen + 1) / (offered + 1 / even)
        return min(max(even / likely, _WEIGHTS[0]), _WEIGHTS[1])


def _right_wording(item: QA) -> str:
    return wording(item.options[LETTERS.index(item.answer)])
