"""Anomalies: chunks that deviate from their camera's own normal, under a false-alarm budget per camera and day."""

from __future__ import annotations

from collections import defaultdict
from datetime import UTC, datetime, timedelta

import numpy as np
import xxhash

from indexers.anomaly import ChunkFeatures, ChunkScores, budget_threshold, chunk_features, score_chunks
from indexers.records import VideoRow
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
    camera, and all of it one day. Neighbouring unusual chunks are one event.
    """
    if max_per_day < 1:
        raise UsageError(f"--max-per-day {max_per_day} must be at least 1")
    scope, coverage = reader.resolve(filters)
    if coverage.is_empty:
        return AnomalyResult(events=(), threshold=MIN_SCORE, coverage=coverage)
    videos = {video.video_id: video for video in reader.videos()}
    per_camera: dict[str, list[ChunkFeatures]] = defaultdict(list)
    for chunk in chunk_features(reader.store.embeddings(scope, _COLUMNS)):
        camera = videos[chunk.video_id].camera
        per_camera[chunk.video_id if camera is None else camera].append(chunk)
    found: list[tuple[float, list[ChunkFeatures], str]] = []
    threshold = MIN_SCORE
    for chunks in per_camera.values():
        chunks.sort(key=lambda chunk: (videos[chunk.video_id].start_time or _NEVER, chunk.video_id, chunk.start_s))
        scores = score_chunks(
            np.array([chunk.motion for chunk in chunks]), np.stack([chunk.vector_E for chunk in chunks])
        )
        per_day: dict[str, list[tuple[float, list[ChunkFeatures], str]]] = defaultdict(list)
        for members in _runs(chunks, scores):
            peak = max(members, key=lambda index: scores.score_C[index])
            group = [chunks[index] for index in members]
            day = _day(videos[group[0].video_id], group[0].start_s, filters)
            per_day[day].append((float(scores.score_C[peak]), group, scores.reason(peak)))
        for candidates in per_day.values():
            cut = budget_threshold([score for score, _, _ in candidates], max_per_day, MIN_SCORE)
            threshold = max(threshold, cut)
            found.extend(candidate for candidate in candidates if candidate[0] >= cut)
    found.sort(key=lambda item: (-item[0], item[1][0].chunk_id))
    events = []
    for score, group, reason in found:
        video, start_s, end_s = videos[group[0].video_id], group[0].start_s, group[-1].end_s
        identity = f"{group[0].chunk_id}..{group[-1].chunk_id}"
        events.append(
            Event(
                event_id=xxhash.xxh3_64_hexdigest(identity.encode()),
                score=score,
                reason=reason,
                **interval_fields(video, start_s, end_s),
                evidence=evidence_for(reader, video, group[len(group) // 2].chunk_id, start_s, end_s),
            )
        )
    return AnomalyResult(events=tuple(events), threshold=threshold, coverage=coverage)


_COLUMNS = ["video_id", "chunk_id", "start_s", "end_s", "vector", "motion"]
_NEVER = datetime.min.replace(tzinfo=UTC)


def _runs(chunks: list[ChunkFeatures], scores: ChunkScores) -> list[list[int]]:
    """Indices of neighbouring unusual chunks of one video, as runs."""
    runs: list[list[int]] = []
    for index, chunk in enumerate(chunks):
        if scores.score_C[index] < MIN_SCORE:
            continue
        if runs and runs[-1][-1] == index - 1 and chunks[index - 1].video_id == chunk.video_id:
            runs[-1].append(index)
        else:
            runs.append([index])
    return runs


def _day(video: VideoRow, start_s: float, filters: Filters) -> str:
    if video.start_time is None:
        return ""
    start = video.start_time + timedelta(seconds=start_s)
    return start.astimezone(filters.zone or UTC).date().isoformat()
