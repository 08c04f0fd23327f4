"""Which of many candidate questions are taken, so that their text alone gives little away. Pure.

Answers of a kind come up equally often, as far as there are candidates, and so do the answers to one wording. Of
multiple choices those are taken whose right options, by wording, are right about as often as one of four would be: an
option that is always right wherever it is offered tells the answer to who has never seen the video.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import TypeVar

from videoxl2.training.priors import OptionBalance, answer_label, wording
from videoxl2.training.qa import QA

Place = TypeVar("Place")

_SLACK = 1.0
"""So many times more than one in four may a wording be right in a run; without any slack nothing could be first."""


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
