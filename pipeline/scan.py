"""Anomalies: footage that deviates from its camera's own normal, under a false-alarm budget per camera and day."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

import numpy as np
import xxhash

from indexers.anomaly import GroupScores, budget_threshold, score_groups
from indexers.records import VideoRow, rows_of
from pipeline.errors import UsageError
from pipeline.evidence import evidence_for
from pipeline.query import interval_fields
from pipeline.reader import ArchiveReader, Filters
from pipeline.results import AnomalyResult, Event

MIN_SCORE = 3.0
"""Robust standard deviations below which nothing is called unusual, whatever the budget."""

DEFAULT_MAX_PER_DAY = 10


@dataclass(frozen=True, slots=True, kw_only=True)
class Candidate:
    """Neighbouring unusual frame groups (rows of ``embeddings``), and the most unusual of them."""

    score: float
    reason: str
    first: dict[str, Any]
    last: dict[str, Any]
    peak: dict[str, Any]


def anomalies(reader: ArchiveReader, filters: Filters, max_per_day: int = DEFAULT_MAX_PER_DAY) -> AnomalyResult:
    """Events, highest score first; at most ``max_per_day`` per camera and day (of the filters' zone, else UTC).

    A camera's normal is taken from all of its footage in scope. A video without camera or wall-clock start is its own
    camera, and all of it one day. Neighbouring unusual frame groups are one event.
    """
    if max_per_day < 1:
        raise UsageError(f"--max-per-day {max_per_day} must be at least 1")
    resolved = reader.resolve(filters)
    if resolved.coverage.is_empty:
        return AnomalyResult(events=(), threshold=MIN_SCORE, coverage=resolved.coverage, notices=reader.notices)
    videos = {video.video_id: video for video in reader.videos()}
    per_camera: dict[str, list[dict[str, Any]]] = defaultdict(list)
    for group in rows_of(reader.store.embeddings(resolved.scope, _COLUMNS)):
        camera = videos[group["video_id"]].camera
        per_camera[group["video_id"] if camera is None else camera].append(group)
    found: list[Candidate] = []
    threshold = MIN_SCORE
    for groups in per_camera.values():
        groups.sort(key=lambda g: (videos[g["video_id"]].start_time or _NEVER, g["video_id"], g["start_s"]))
        scores = score_groups(
            np.array([group["motion"] for group in groups]),
            np.array([group["vector"] for group in groups], dtype=np.float64),
        )
        per_day: dict[str, list[Candidate]] = defaultdict(list)
        for members in _runs(groups, scores):
            peak = max(members, key=lambda index: scores.score_G[index])
            candidate = Candidate(
                score=float(scores.score_G[peak]),
                reason=scores.reason(peak),
                first=groups[members[0]],
                last=groups[members[-1]],
                peak=groups[peak],
            )
            per_day[_day(videos[candidate.first["video_id"]], candidate.first["start_s"], filters)].append(candidate)
        for candidates in per_day.values():
            cut = budget_threshold([candidate.score for candidate in candidates], max_per_day, MIN_SCORE)
            threshold = max(threshold, cut)
            found.extend(candidate for candidate in candidates if candidate.score >= cut)
    found.sort(key=lambda candidate: (-candidate.score, candidate.first["group_id"]))
    events = tuple(_event(reader, videos[candidate.first["video_id"]], candidate) for candidate in found)
    return AnomalyResult(events=events, threshold=threshold, coverage=resolved.coverage, notices=reader.notices)


def _event(reader: ArchiveReader, video: VideoRow, candidate: Candidate) -> Event:
    start_s, end_s = candidate.first["start_s"], candidate.last["end_s"]
    identity = f"{candidate.first['group_id']}..{candidate.last['group_id']}"
    return Event(
        event_id=xxhash.xxh3_64_hexdigest(identity.encode()),
        score=candidate.score,
        reason=candidate.reason,
        **interval_fields(video, start_s, end_s),
        evidence=evidence_for(reader, video, candidate.peak["group_id"], start_s, end_s),
    )


_COLUMNS = ["group_id", "video_id", "chunk_id", "start_s", "end_s", "vector", "motion"]
_NEVER = datetime.min.replace(tzinfo=UTC)


def _runs(groups: list[dict[str, Any]], scores: GroupScores) -> list[list[int]]:
    """Indices of unusual frame groups, neighbours of one video together; one usual group between them does not part."""
    runs: list[list[int]] = []
    for index, group in enumerate(groups):
        if scores.score_G[index] < MIN_SCORE:
            continue
        if runs and index - runs[-1][-1] <= 2 and _is_near(groups[runs[-1][-1]], group):
            runs[-1].extend(range(runs[-1][-1] + 1, index + 1))
        else:
            runs.append([index])
    return runs


def _is_near(earlier: dict[str, Any], later: dict[str, Any]) -> bool:
    """Of one video, with no more than a frame group's time between them (a filter may have left some out)."""
    length_s = max(earlier["end_s"] - earlier["start_s"], later["end_s"] - later["start_s"])
    is_close = later["start_s"] - earlier["end_s"] <= length_s + 1e-6
    return bool(earlier["video_id"] == later["video_id"] and is_close)


def _day(video: VideoRow, start_s: float, filters: Filters) -> str:
    if video.start_time is None:
        return ""
    start = video.start_time + timedelta(seconds=start_s)
    return start.astimezone(filters.zone or UTC).date().isoformat()
