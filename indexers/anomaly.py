"""Unusual stretches of footage: scores against a camera's own normal, and a threshold from a false-alarm budget.

A frame group's score is the larger of two robust deviations from its camera's normal: motion (more of it than usual)
and appearance (its embedding lies far from everything usual). Normal is the median, spread the scaled median absolute
deviation, so a few events do not hide themselves by shifting the baseline. No storage, no model.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

MAD_TO_SIGMA = 1.4826
"""Median absolute deviation times this estimates the standard deviation of normal data."""

MIN_GROUPS = 8
"""With fewer frame groups a camera has no normal to compare with; nothing is scored."""

MIN_SPREAD = {"motion": 0.002, "appearance": 0.01}
"""Floors on the spread: below them a difference is sensor noise, however still the camera usually is."""


@dataclass(frozen=True, slots=True, eq=False)
class GroupScores:
    """Per frame group: the deviation in motion and in appearance, in robust standard deviations above normal."""

    motion_G: np.ndarray
    appearance_G: np.ndarray

    @property
    def score_G(self) -> np.ndarray:
        """The larger of the two."""
        return np.maximum(self.motion_G, self.appearance_G)

    def reason(self, index: int) -> str:
        """Why the group scores as it does, in words."""
        motion, appearance = float(self.motion_G[index]), float(self.appearance_G[index])
        words = []
        if appearance >= motion or appearance > 3:
            words.append(f"the picture differs from this camera's usual view ({appearance:.1f} sigma)")
        if motion > appearance or motion > 3:
            words.append(f"more motion than usual ({motion:.1f} sigma)")
        return "; ".join(words)


def score_groups(motion_G: np.ndarray, vectors_GE: np.ndarray) -> GroupScores:
    """Deviations of one camera's frame groups. ``vectors_GE`` are unit vectors."""
    if len(motion_G) < MIN_GROUPS:
        zeros_G = np.zeros(len(motion_G))
        return GroupScores(motion_G=zeros_G, appearance_G=zeros_G)
    usual_E = np.median(vectors_GE, axis=0)
    usual_E = usual_E / max(float(np.linalg.norm(usual_E)), 1e-12)
    distance_G = 1.0 - vectors_GE @ usual_E
    return GroupScores(
        motion_G=robust_z(motion_G, MIN_SPREAD["motion"]),
        appearance_G=robust_z(distance_G, MIN_SPREAD["appearance"]),
    )


def robust_z(values_G: np.ndarray, min_spread: float) -> np.ndarray:
    """Deviations above the median in robust standard deviations; values below the median score 0."""
    middle = float(np.median(values_G))
    spread = max(MAD_TO_SIGMA * float(np.median(np.abs(values_G - middle))), min_spread)
    return np.maximum((values_G - middle) / spread, 0.0)


def budget_threshold(scores: Sequence[float], budget: int, floor: float) -> float:
    """The lowest threshold, at least ``floor``, that lets at most ``budget`` scores through (score >= threshold)."""
    above = sorted((score for score in scores if score >= floor), reverse=True)
    if len(above) <= budget:
        return floor
    cut = above[budget]
    return float(np.nextafter(cut, np.inf))
