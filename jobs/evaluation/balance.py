"""Which of many candidate questions are taken, so that their text alone gives little away. Pure.

Answers of a kind come up equally often, as far as there are candidates, and so do the answers to one wording. Of
multiple choices those are taken whose right options, by wording, are right about as often as one of four would be: an
option that is always right wherever it is offered tells the answer to who has never seen the video.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import TypeVar

from videoxl2.training.questions import QA
from videoxl2.training.scene import COLOURS
from videoxl2.training.wording import LETTERS

Place = TypeVar("Place")

_SLACK = 1.0
"""So many times more than one in four may a wording be right in a run; without any slack nothing could be first."""


def wording(text: str) -> str:
    """The first line without its colours and numbers."""
    words = text.split("\n")[0].lower().split()
    return " ".join("#" if word.strip("?.,:") in COLOURS or word[0].isdigit() else word for word in words)


def answer_label(item: QA) -> str:
    """What must be equally common in a kind: the answer, or for a first of two things, its place in the question."""
    if item.kind == "order" and item.answer not in ("yes", "no"):
        return "first" if item.question.find(item.answer) < len(item.question) / 2 else "second"
    return item.answer


def take_evenly(candidates: Sequence[tuple[Place, QA]], number: int) -> list[tuple[Place, QA]]:
    """Up to ``number`` candidates, earlier ones first, every answer as often as any other while it lasts.

    Among those of one answer, wordings come first for which it is behind other answers.
    """
    waiting: dict[str, list[tuple[Place, QA]]] = {}
    for pair in candidates:
        waiting.setdefault(answer_label(pair[1]), []).append(pair)
    taken: list[tuple[Place, QA]] = []
    of_answer: Counter[str] = Counter()
    of_wording: dict[str, Counter[str]] = {}
    while len(taken) < number and waiting:
        label = min(waiting, key=lambda name: of_answer[name])
        rows = waiting[label]

        def lead(index: int, label: str = label, rows: Sequence[tuple[Place, QA]] = rows) -> tuple[int, int]:
            found = of_wording.get(wording(rows[index][1].question), Counter())
            return found[label] - max((n for name, n in found.items() if name != label), default=0), index

        pair = rows.pop(min(range(len(rows)), key=lead))
        taken.append(pair)
        of_answer[label] += 1
        of_wording.setdefault(wording(pair[1].question), Counter())[label] += 1
        if not rows:
            del waiting[label]
    return taken


class OptionBalance:
    """How often each wording of an option was offered and was right among the multiple choices taken so far."""

    def __init__(self) -> None:
        self.offered: Counter[str] = Counter()
        self.right: Counter[str] = Counter()
        self.letters: Counter[str] = Counter()

    def excess(self, item: QA) -> float:
        """How much more often the right option's wording would be right than in one of four, with this item."""
        name = wording(item.options[LETTERS.index(item.answer)])
        offered = self.offered[name] + sum(wording(option) == name for option in item.options)
        return self.right[name] + 1 - offered / len(LETTERS)

    def guess(self, item: QA) -> str:
        """The letter of the option whose wording was right most often where it was offered."""
        shares = [self.right[name] / max(self.offered[name], 1) for name in map(wording, item.options)]
        return LETTERS[shares.index(max(shares))]

    def add(self, item: QA) -> None:
        self.offered.update(map(wording, item.options))
        self.right[wording(item.options[LETTERS.index(item.answer)])] += 1
        self.letters[item.answer] += 1


def take_choices(candidates: Sequence[tuple[Place, QA]], number: int) -> list[tuple[Place, QA]]:
    """Up to ``number`` multiple choices, earlier ones first: letters evenly, no wording of an option right too often.

    Too often is more than ``_SLACK`` above one in four of the times that it is offered. Fewer are taken where the
    candidates do not give more.
    """
    balance, taken, rest = OptionBalance(), list[tuple[Place, QA]](), list(candidates)
    while len(taken) < number:
        fit = [index for index, (_, item) in enumerate(rest) if balance.excess(item) <= _SLACK]
        if not fit:
            break
        index = min(fit, key=lambda index: (balance.letters[rest[index][1].answer], index))
        balance.add(rest[index][1])
        taken.append(rest.pop(index))
    return taken
