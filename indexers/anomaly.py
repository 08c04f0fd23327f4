"""Unusual stretches of footage: scores against a camera's own normal, and a threshold from a false-alarm budget.

A chunk's score is the larger of two robust deviations from its camera's normal: motion (more of it than usual) and
appearance (its embedding lies far from everything usual). Normal is the median, spread the scaled median absolute
deviation, so a few events do not hide themselves by shifting the baseline. No storage, no model.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa

MAD_TO_SIGMA = 1.4826
"""Median absolute deviation times this estimates the standard deviation of normal data."""

MIN_CHUNKS = 4
"""With fewer chunks a camera has no normal to compare with; nothing is scored."""

MIN_SPREAD = {"motion": 0.004, "appearance": 0.01}
"""Floors on the spread: below them a difference is sensor noise, however still the camera usually is."""


@dataclass(frozen=True, slots=True, eq=False)
class ChunkFeatures:
    """What a chunk is judged by: mean motion and unit mean vector of its frame groups."""

    chunk_id: str
    video_id: str
    start_s: float
    end_s: float
    motion: float
    vector_E: np.ndarray


def chunk_features(groups: pa.Table) -> list[ChunkFeatures]:
    """Features of every chunk, from rows of ``embeddings`` in order of their id."""
    if groups.num_rows == 0:
        return []
    ids = np.array(groups["chunk_id"].to_pylist())
    starts = np.flatnonzero(np.append(True, ids[1:] != ids[:-1]))
    ends = np.append(starts[1:], len(ids))
    vectors_GE = np.stack(groups["vector"].to_numpy(zero_copy_only=False)).astype(np.float64)
    motion_G, start_G, end_G = (groups[name].to_numpy() for name in ("motion", "start_s", "end_s"))
    video_ids = groups["video_id"].to_pylist()
    features = []
    for first, last in zip(starts, ends, strict=True):
        mean_E = vectors_GE[first:last].mean(axis=0)
        features.append(
            ChunkFeatures(
                chunk_id=str(ids[first]),
                video_id=video_ids[first],
                start_s=float(start_G[first]),
                end_s=float(end_G[last - 1]),
                motion=float(motion_G[first:last].mean()),
                vector_E=mean_E / max(float(np.linalg.norm(mean_E)), 1e-12),
            )
        )
    return features


@dataclass(frozen=True, slots=True, eq=False)
class ChunkScores:
    """Per chunk: the deviation in motion and in appearance, in robust standard deviations above normal."""

    motion_C: np.ndarray
    appearance_C: np.ndarray

    @property
    def score_C(self) -> np.ndarray:
        """The larger of the two."""
        return np.maximum(self.motion_C, self.appearance_C)

    def reason(self, index: int) -> str:
        """Why the chunk scores as it does, in words."""
        motion, appearance = float(self.motion_C[index]), float(self.appearance_C[index])
        words = []
        if appearance >= motion or appearance > 3:
            words.append(f"the picture differs from this camera's usual view ({appearance:.1f} sigma)")
        if motion > appearance or motion > 3:
            words.append(f"more motion than usual ({motion:.1f} sigma)")
        return "; ".join(words)


def score_chunks(motion_C: np.ndarray, vectors_CE: np.ndarray) -> ChunkScores:
    """Deviations of one camera's chunks, in time order. ``vectors_CE`` are unit vectors."""
    if len(motion_C) < MIN_CHUNKS:
        zeros_C = np.zeros(len(motion_C))
        return ChunkScores(motion_C=zeros_C, appearance_C=zeros_C)
    usual_E = np.median(vectors_CE, axis=0)
    usual_E = usual_E / max(float(np.linalg.norm(usual_E)), 1e-12)
    distance_C = 1.0 - vectors_CE @ usual_E
    return ChunkScores(
        motion_C=robust_z(motion_C, MIN_SPREAD["motion"]),
        appearance_C=robust_z(distance_C, MIN_SPREAD["appearance"]),
    )


def robust_z(values_C: np.ndarray, min_spread: float) -> np.ndarray:
    """Deviations above the median in robust standard deviations; values below the median score 0."""
    middle = float(np.median(values_C))
    spread = max(MAD_TO_SIGMA * float(np.median(np.abs(values_C - middle))), min_spread)
    return np.maximum((values_C - middle) / spread, 0.0)


def budget_threshold(scores: Sequence[float], budget: int, floor: float) -> float:
    """The lowest threshold, at least ``floor``, that lets at most ``budget`` scores through (score >= threshold)."""
    above = sorted((score for score in scores if score >= floor), reverse=True)
    if len(above) <= budget:
        return floor
    cut = above[budget]
    return float(np.nextafter(cut, np.inf))
