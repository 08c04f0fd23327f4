"""Questions with answers from facts.

Owns which questions are asked. Everything asked follows from ``Facts`` without doubt; wrong options and absent things
are drawn so that the text alone gives little away: a colour is swapped for another of the same palette, an action or
kind is asked for as often where it is as where it is not.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from videoxl2.training.asker import Asker
from videoxl2.training.choices import ask_choice
from videoxl2.training.existence import ask_exists
from videoxl2.training.facts import Facts
from videoxl2.training.open_questions import (
    ask_colour,
    ask_count,
    ask_describe,
    ask_events,
    ask_order,
    ask_what,
    ask_when,
    ask_where,
)
from videoxl2.training.qa import KINDS, QA, QuestionKind
from videoxl2.training.splits import Split

_MAKERS: dict[QuestionKind, Callable[[Asker], QA | None]] = {
    "colour": ask_colour,
    "count": ask_count,
    "when": ask_when,
    "where": ask_where,
    "order": ask_order,
    "exists": ask_exists,
    "describe": ask_describe,
    "events": ask_events,
    "choice": ask_choice,
    "what": ask_what,
}


def questions_of(facts: Facts, seed: int, split: Split = "train", per_kind: int = 2) -> list[QA]:
    """Up to ``per_kind`` different questions of each kind that the facts answer."""
    asker = Asker(facts, np.random.default_rng([seed, 41]), split)
    result: list[QA] = []
    for kind in KINDS:
        asked: set[str] = set()
        lead = 0  # how many more questions have been answered with yes than with no
        for _ in range(per_kind * 3):
            made = _MAKERS[kind](asker)
            if made is None or made.question in asked:
                continue
            step = {"yes": 1, "no": -1}.get(made.answer, 0)
            if lead * step <= 0:
                lead += step
                asked.add(made.question)
                result.append(made)
            if len(asked) == per_kind:
                break
    return result
