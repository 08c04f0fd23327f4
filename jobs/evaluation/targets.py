"""What the results are held against. Owns the targets and the verdict on each; figures come from ``metrics``."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class Target:
    """A figure that is wanted: at least, or at most, ``bound``. ``path`` leads to it in the document.

    ``baseline`` leads to what guessing gives, where guessing can.
    """

    name: str
    path: tuple[str, ...]
    bound: float
    is_most: bool = False
    baseline: tuple[str, ...] = ()

    def value(self, results: Mapping[str, Any]) -> float | None:
        """The figure in a document; None where it was not measured."""
        return _at(results, self.path)

    def guess(self, results: Mapping[str, Any]) -> float | None:
        """The baseline's figure."""
        return _at(results, self.baseline) if self.baseline else None

    def interval(self, results: Mapping[str, Any]) -> tuple[float, float] | None:
        """The interval of the figure, where there is one."""
        place = ("intervals", self.path[1]) if self.path[0] == "metrics" else self.path[:-1]
        found: Any = results
        for name in place:
            found = found.get(name) if isinstance(found, Mapping) else None
        if not isinstance(found, Mapping) or found.get("low") is None:
            return None
        return float(found["low"]), float(found["high"])

    def is_met(self, results: Mapping[str, Any]) -> bool | None:
        """Whether the figure itself, not its interval, reaches the target; None where it was not measured."""
        value = self.value(results)
        if value is None:
            return None
        return value <= self.bound if self.is_most else value >= self.bound


def _at(document: Any, path: tuple[str, ...]) -> float | None:
    for name in path:
        document = document.get(name) if isinstance(document, Mapping) else None
    return float(document) if isinstance(document, int | float) else None


def _metric(name: str, bound: float, text: str, *, is_most: bool = False, baseline: tuple[str, ...] = ()) -> Target:
    return Target(text, ("metrics", name), bound, is_most, baseline)


def _difference(name: str, bound: float, text: str) -> Target:
    return Target(text, ("differences", name, "value"), bound)


TARGETS: tuple[Target, ...] = (
    _metric(
        "search_single_recall5",
        0.95,
        "search, one attribute or action, recall@5",
        baseline=("baselines", "search_single_recall5"),
    ),
    _metric(
        "search_double_recall5",
        0.85,
        "search, two attributes, recall@5",
        baseline=("baselines", "search_double_recall5"),
    ),
    _metric(
        "multiple_choice",
        0.90,
        "multiple choice, four options",
        baseline=("baselines", "multiple_choice", "majority"),
    ),
    _metric("exists", 0.92, "does X happen, balanced", baseline=("baselines", "exists", "majority")),
    _metric(
        "when_median_error_s",
        24.0,
        "when does X happen, median error in seconds",
        is_most=True,
        baseline=("baselines", "when_median_error_s"),
    ),
    _metric("needle_retrieval", 0.95, "needle: its chunk is dense", baseline=("baselines", "needle_retrieval")),
    _metric("needle_answer", 0.90, "needle: answered", baseline=("baselines", "needle_answer")),
    _difference("chunked_minus_plain", -0.01, "chunked less plain prefill"),
    Target("10-minute segments less whole video", ("segments_vs_whole", "difference", "value"), -0.01),
    _difference("bilevel_minus_dense", -0.01, "bi-level less all dense"),
    _metric("bilevel_bytes_share", 0.45, "bi-level: share of the dense KV's bytes read", is_most=True),
    _difference("int8_minus_dense", -0.005, "int8 less exact"),
    _difference("int4_minus_dense", -0.02, "int4 less exact"),
)
