"""Anomalies: footage that deviates from its camera's own normal, under a false-alarm budget per camera and day."""

from __future__ import annotations

from collections import defaultdict
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


def anomalies(reader: ArchiveReader, filters: Filters, max_per_day: int = DEFAULT_MAX_PER_DAY) -> AnomalyResult:
    """Events, highest score first; at most ``max_per_day`` per camera and day (of the filters' zone, else UTC).

    A camera's normal is taken from all of its footage in scope. A video without camera or wall-clock start is its own
    camera, and all of it one day. Neighbouring unusual frame groups are one event.
    """
    if max_per_day < 1:
        raise UsageError(f"--max-per-day {max_per_day} must be at least 1")
    scope, coverage = reader.resolve(filters)
    if coverage.is_empty:
        return AnomalyResult(events=(), threshold=MIN_SCORE, coverage=coverage)
    videos = {video.video_id: video for video in reader.videos()}
    per_camera: dict[str, list[dict[str, Any]]] = defaultdict(list)
    for group in rows_of(reader.store.embeddings(scope, _COLUMNS)):
        camera = videos[group["video_id"]].camera
        per_camera[group["video_id"] if camera is None else camera].append(group)
    found: list[tuple[float, list[dict[str, Any]], str]] = []
    threshold = MIN_SCORE
    for groups in per_camera.values():
        groups.sort(key=lambda g: (videos[g["video_id"]].start_time or _NEVER, g["video_id"], g["start_s"]))
        scores = score_groups(
            np.array([group["motion"] for group in groups]),
            np.array([group["vector"] for group in groups], dtype=np.float64),
        )
        per_day: dict[str, list[tuple[float, list[dict[str, Any]], str]]] = defaultdict(list)
        for members in _runs(groups, scores):
            peak = max(members, key=lambda index: scores.score_G[index])
            run = [groups[index] for index in members]
            day = _day(videos[run[0]["video_id"]], run[0]["start_s"], filters)
            per_day[day].append((float(scores.score_G[peak]), run, scores.reason(peak)))
        for candidates in per_day.values():
            cut = budget_threshold([score for score, _, _ in candidates], max_per_day, MIN_SCORE)
            threshold = max(threshold, cut)
            found.extend(candidate for candidate in candidates if candidate[0] >= cut)
    found.sort(key=lambda item: (-item[0], item[1][0]["group_id"]))
    events = []
    for score, run, reason in found:
        video, start_s, end_s = videos[run[0]["video_id"]], run[0]["start_s"], run[-1]["end_s"]
        identity = f"{run[0]['group_id']}..{run[-1]['group_id']}"
        events.append(
            Event(
                event_id=xxhash.xxh3_64_hexdigest(identity.encode()),
                score=score,
                reason=reason,
                **interval_fields(video, start_s, end_s),
                evidence=evidence_for(reader, video, run[len(run) // 2]["chunk_id"], start_s, end_s),
            )
        )
    return AnomalyResult(events=tuple(events), threshold=threshold, coverage=coverage)


_COLUMNS = ["group_id", "video_id", "chunk_id", "start_s", "end_s", "vector", "motion"]
_NEVER = datetime.min.replace(tzinfo=UTC)


def _runs(groups: list[dict[str, Any]], scores: GroupScores) -> list[list[int]]:
    """Indices of unusual frame groups, neighbours of one video together; one usual group between them does not part."""
    runs: list[list[int]] = []
    for index, group in enumerate(groups):
        if scores.score_G[index] < MIN_SCORE:
            continue
        if runs and index - runs[-1][-1] <= 2 and groups[runs[-1][-1]]["video_id"] == group["video_id"]:
            runs[-1].extend(range(runs[-1][-1] + 1, index + 1))
        else:
            runs.append([index])
    return runs


def _day(video: VideoRow, start_s: float, filters: Filters) -> str:
    if video.start_time is None:
        return ""
    start = video.start_time + timedelta(seconds=start_s)
    return start.astimezone(filters.zone or UTC).date().isoformat()
