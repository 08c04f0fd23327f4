"""Search: text to moments. The question's vector against every visible frame group in scope, filters first."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

from indexers.records import VideoRow
from pipeline.errors import UsageError
from pipeline.evidence import evidence_for
from pipeline.moments import find_stretches
from pipeline.reader import ArchiveReader, Filters
from pipeline.results import Moment, SearchResult

CANDIDATES_PER_MOMENT = 32
"""Frame groups fetched per wanted moment, so that moments can grow over neighbours and still fill the limit."""


def search(reader: ArchiveReader, text: str, filters: Filters, limit: int) -> SearchResult:
    """Moments for ``text``, best first. Raises ``UsageError`` for an empty text or an unknown camera or video."""
    if not text.strip():
        raise UsageError("the search text is empty")
    if limit < 1:
        raise UsageError(f"--limit {limit} must be at least 1")
    resolved = reader.resolve(filters)
    if resolved.coverage.is_empty:
        return SearchResult(query=text, moments=(), coverage=resolved.coverage, notices=reader.notices)
    vector_E = reader.text_encoder.embed([text])[0]
    hits = reader.store.search_vectors(vector_E, resolved.scope, limit=max(limit * CANDIDATES_PER_MOMENT, 256))
    videos = {video.video_id: video for video in reader.videos()}
    moments = []
    for rank, stretch in enumerate(find_stretches(hits, limit), start=1):
        first, last, video = stretch.rows[0], stretch.rows[-1], videos[stretch.rows[0].video_id]
        moments.append(
            Moment(
                rank=rank,
                score=stretch.score,
                **interval_fields(video, first.start_s, last.end_s),
                evidence=evidence_for(reader, video, stretch.peak.group_id, first.start_s, last.end_s),
            )
        )
    return SearchResult(query=text, moments=tuple(moments), coverage=resolved.coverage, notices=reader.notices)


def interval_fields(video: VideoRow, start_s: float, end_s: float) -> dict[str, Any]:
    """The fields of an ``Interval`` of ``video`` over ``[start_s, end_s)``."""
    origin = video.start_time
    return {
        "video_id": video.video_id,
        "uri": video.uri,
        "title": video.title,
        "camera": video.camera,
        "start_s": start_s,
        "end_s": end_s,
        "start_time": None if origin is None else origin + timedelta(seconds=start_s),
        "end_time": None if origin is None else origin + timedelta(seconds=end_s),
    }
