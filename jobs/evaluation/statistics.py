"""Intervals for what a sample shows: Wilson for shares, bootstrap for medians and for paired differences. Pure.

All intervals are at 95 % unless ``z`` says otherwise. Bootstraps are seeded: the same sample gives the same interval.
"""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any

_RESAMPLES = 2000
_LOW, _HIGH = 0.025, 0.975


@dataclass(frozen=True, slots=True)
class Estimate:
    """A figure with the interval it may lie in; ``n`` is the size of the sample. ``value`` is None where n is 0."""

    value: float | None
    low: float | None
    high: float | None
    n: int

    def to_dict(self) -> dict[str, Any]:
        return {"value": self.value, "low": self.low, "high": self.high, "n": self.n}


NOTHING = Estimate(None, None, None, 0)


def share(outcomes: Sequence[bool], z: float = 1.96) -> Estimate:
    """The share of True with its Wilson interval."""
    n = len(outcomes)
    if not n:
        return NOTHING
    p = sum(outcomes) / n
    middle = (p + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
    # Rounding must not leave a share outside its own interval.
    return Estimate(p, min(p, max(0.0, middle - half)), max(p, min(1.0, middle + half)), n)


def median_of(values: Sequence[float], seed: int = 0) -> Estimate:
    """The median with a percentile bootstrap interval."""
    if not values:
        return NOTHING
    rng = random.Random(seed)
    drawn = sorted(median(rng.choices(values, k=len(values))) for _ in range(_RESAMPLES))
    return Estimate(float(median(values)), *_percentiles(drawn), len(values))


def paired_difference(ours: Sequence[bool], theirs: Sequence[bool], seed: int = 0) -> Estimate:
    """Share of ``ours`` less share of ``theirs`` over the same items, with a bootstrap interval over the items.

    Raises ``ValueError`` for sequences of different lengths.
    """
    if len(ours) != len(theirs):
        raise ValueError(f"{len(ours)} outcomes cannot be paired with {len(theirs)}")
    if not ours:
        return NOTHING
    steps = [int(a) - int(b) for a, b in zip(ours, theirs, strict=True)]
    rng = random.Random(seed)
    n = len(steps)
    drawn = sorted(sum(rng.choices(steps, k=n)) / n for _ in range(_RESAMPLES))
    return Estimate(sum(steps) / n, *_percentiles(drawn), n)


def chance_of_a_hit(num_items: int, num_right: int, num_drawn: int) -> float:
    """Probability that ``num_drawn`` of ``num_items``, drawn blindly without return, hold one of ``num_right``."""
    if num_right <= 0 or num_drawn <= 0:
        return 0.0
    wrong = num_items - num_right
    if num_drawn > wrong:
        return 1.0
    return 1.0 - math.comb(wrong, num_drawn) / math.comb(num_items, num_drawn)


def _percentiles(drawn: Sequence[float]) -> tuple[float, float]:
    last = len(drawn) - 1
    return float(drawn[round(_LOW * last)]), float(drawn[round(_HIGH * last)])
