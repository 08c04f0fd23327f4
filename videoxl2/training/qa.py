"""A question with its answer, the kinds there are, and how far one gets without looking."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

from videoxl2.options import time_hint
from videoxl2.training.facts import Interval
from videoxl2.training.scene import COLOURS

QuestionKind = Literal["colour", "count", "when", "where", "order", "exists", "describe", "events", "choice", "what"]
KINDS: tuple[QuestionKind, ...] = (
    "colour",
    "count",
    "when",
    "where",
    "order",
    "exists",
    "describe",
    "events",
    "choice",
    "what",
)


@dataclass(frozen=True)
class QA:
    """A question and its answer. ``options`` are the four texts of a multiple choice, whose answer is a letter.

    ``interval`` is the stretch in which the answer can be seen (None: the whole); ``evidence_ids`` name the objects and
    events that it follows from.
    """

    kind: QuestionKind
    question: str
    answer: str
    options: tuple[str, ...]
    interval: Interval | None
    evidence_ids: tuple[str, ...]

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


def at_place(question: str, place: str) -> str:
    """The question with a place ("at the gate") added to what it asks, before the choices that it names."""
    first, newline, options = question.partition("\n")
    colon = first.find(":")
    at = len(first) - 1 if colon < 0 else colon
    return f"{first[:at]} {place}{first[at:]}{newline}{options}"


def offers_times(item: QA) -> bool:
    """Whether the options are times."""
    return time_hint(item.options) is not None


def asks_for_trousers(item: QA) -> bool:
    """Whether it asks for the colour of somebody's trousers, openly or with options."""
    return "colour are the trousers" in item.question


def blind_baseline(questions: Sequence[QA]) -> dict[str, float]:
    """Share answered rightly, by kind, by who never looks but knows the commonest answer of each kind."""
    answers: dict[str, Counter[str]] = {}
    for item in questions:
        answers.setdefault(item.kind, Counter())[item.answer] += 1
    return {kind: max(count.values()) / count.total() for kind, count in sorted(answers.items())}


def text_baseline(questions: Sequence[QA], known: Sequence[QA]) -> dict[str, float]:
    """The same for who knows, from other questions, the commonest answer to each wording without its colours."""
    memory: dict[tuple[str, str], Counter[str]] = {}
    by_kind: dict[str, Counter[str]] = {}
    for item in known:
        memory.setdefault((item.kind, _stem(item)), Counter())[item.answer] += 1
        by_kind.setdefault(item.kind, Counter())[item.answer] += 1
    right: Counter[str] = Counter()
    total: Counter[str] = Counter()
    for item in questions:
        best = memory.get((item.kind, _stem(item)), by_kind.get(item.kind, Counter())).most_common(1)
        right[item.kind] += bool(best) and best[0][0] == item.answer
        total[item.kind] += 1
    return {kind: right[kind] / total[kind] for kind in sorted(total)}


def _stem(item: QA) -> str:
    text = item.question.split("\n")[0]
    return " ".join("#" if word.strip("?.,") in COLOURS or word[0].isdigit() else word for word in text.split())
