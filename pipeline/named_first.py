"""What a question names comes first: chunks of cameras and at times that it names, before any that are only similar.

Pictures show neither which camera took them nor what time it is, so that no similarity finds "at gate 3" or "at 02:21".
Times are those of a video.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pipeline.named_cameras import cameras_named
from videoxl2.named_times import spans_named


@dataclass(frozen=True)
class Named:
    """The cameras and the spans of time [start, end], in seconds of a video, that a question names."""

    cameras: frozenset[str] = frozenset()
    spans: tuple[tuple[float, float], ...] = ()

    @classmethod
    def in_question(cls, question: str, cameras: Collection[str]) -> Named:
        """What the question names, of the cameras in its scope. Naming all of them is naming none."""
        named = cameras_named(question, cameras)
        return cls(named if len(named) < len(set(cameras)) else frozenset(), tuple(spans_named(question)))

    def rank(self, row: Mapping[str, Any]) -> int:
        """3 for a row with a named camera and a named time, 2 for the camera alone, 1 for the time, else 0.

        Rows have ``camera``, ``start_s`` and ``end_s``, and are half open.
        """
        return 2 * (row["camera"] in self.cameras) + self.is_at_time(row["start_s"], row["end_s"])

    def is_at_time(self, start_s: float, end_s: float) -> bool:
        """Whether a named time lies in [start, end)."""
        return any(start_s <= last_s and first_s < end_s for first_s, last_s in self.spans)

    def lifted(self, rows: Sequence[Mapping[str, Any]], scores: Sequence[float]) -> list[float]:
        """The scores of rows, with each rank lifted above all lower ones."""
        lift = max(scores, default=0.0) - min(scores, default=0.0) + 1.0
        return [score + lift * self.rank(row) for row, score in zip(rows, scores, strict=True)]
