"""From scored frame groups to moments: peaks that grow over their neighbours. Pure functions."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from indexers.records import VectorHit

SUPPORT = 0.5
"""A neighbour joins a moment while its score is at least this far up from the video's usual score to the peak's."""

MAX_GAP_GROUPS = 1
"""Frame groups that may be missing between two hits of one moment."""


@dataclass(frozen=True, slots=True)
class Stretch:
    """Consecutive frame groups of one video, with the best score among them."""

    rows: tuple[VectorHit, ...]
    score: float

    @property
    def peak(self) -> VectorHit:
        """The best-scoring group."""
        return max(self.rows, key=lambda row: (row.score, -row.start_s))


def find_stretches(hits: Sequence[VectorHit], limit: int) -> list[Stretch]:
    """At most ``limit`` disjoint stretches, best first.

    Each stretch starts at the best
    group left and takes neighbours in time while they score nearer to the peak than to the video's median. Ties go to
    the earlier group, so the order does not depend on the order of ``hits``.
    """
    per_video: dict[str, list[VectorHit]] = defaultdict(list)
    for hit in hits:
        per_video[hit.video_id].append(hit)
    order: list[tuple[float, str, int]] = []
    usual: dict[str, float] = {}
    for video_id, rows in per_video.items():
        rows.sort(key=lambda row: row.start_s)
        usual[video_id] = float(np.median([row.score for row in rows]))
        order.extend((-row.score, video_id, index) for index, row in enumerate(rows))
    taken: set[tuple[str, int]] = set()
    found: list[Stretch] = []
    for negative, video_id, index in sorted(order):
        if len(found) == limit:
            break
        if (video_id, index) in taken:
            continue
        rows = per_video[video_id]
        floor = usual[video_id] + SUPPORT * (-negative - usual[video_id])
        members = [index]
        for step in (-1, 1):
            at = index + step
            while (
                0 <= at < len(rows)
                and (video_id, at) not in taken
                and rows[at].score >= floor
                and _is_adjacent(rows[min(at, at - step)], rows[max(at, at - step)])
            ):
                members.append(at)
                at += step
        taken.update((video_id, member) for member in members)
        found.append(Stretch(rows=tuple(rows[member] for member in sorted(members)), score=-negative))
    return found


def _is_adjacent(earlier: VectorHit, later: VectorHit) -> bool:
    length = earlier.end_s - earlier.start_s
    return later.start_s - earlier.end_s <= MAX_GAP_GROUPS * length + 1e-6
