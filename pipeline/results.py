"""What queries and runs return: typed, immutable, and one-to-one with the JSON contract (``to_dict``)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.errors import EvidenceUnavailable
from pipeline.times import iso

if TYPE_CHECKING:
    import numpy as np


@dataclass(frozen=True, slots=True, kw_only=True)
class Evidence:
    """How a result reaches its pictures: bound to the archive that gave it."""

    thumbnail: Callable[[], bytes | None]
    clip: Callable[[Path, float], Path]
    frames: Callable[[float], list[np.ndarray]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Interval:
    """A stretch of one video, half-open, in media seconds and, where known, in wall-clock time (UTC)."""

    video_id: str
    uri: str
    title: str
    camera: str | None
    start_s: float
    end_s: float
    start_time: datetime | None
    end_time: datetime | None
    evidence: Evidence | None = field(default=None, repr=False, compare=False)

    def _interval_dict(self) -> dict[str, Any]:
        return {
            "video_id": self.video_id,
            "uri": self.uri,
            "title": self.title,
            "camera": self.camera,
            "start_s": round(self.start_s, 3),
            "end_s": round(self.end_s, 3),
            "start_time": iso(self.start_time),
            "end_time": iso(self.end_time),
        }

    def _evidence(self) -> Evidence:
        if self.evidence is None:
            raise EvidenceUnavailable("this result is not bound to an archive any more")
        return self.evidence

    def thumbnail(self) -> bytes | None:
        """JPEG bytes of the stored picture nearest to the middle; ``None`` where none is stored."""
        return self._evidence().thumbnail()

    def clip(self, path: str | Path, pad_s: float = 2.0) -> Path:
        """Cut this stretch, ``pad_s`` seconds wider on both sides, from the source video into an MP4 at ``path``.

        Raises ``EvidenceUnavailable`` when the source cannot be read any more.
        """
        return self._evidence().clip(Path(path), pad_s)

    def frames(self, fps: float = 1.0) -> list[np.ndarray]:
        """Upright RGB frames (height, width, 3) uint8 of this stretch from the source video, ``fps`` per second."""
        return self._evidence().frames(fps)


@dataclass(frozen=True, slots=True, kw_only=True)
class Moment(Interval):
    """A search hit. ``rank`` is stable; ``score`` must not be compared across queries."""

    rank: int
    score: float

    def to_dict(self) -> dict[str, Any]:
        return {"rank": self.rank, "score": round(self.score, 6), **self._interval_dict()}


@dataclass(frozen=True, slots=True, kw_only=True)
class Citation(Interval):
    """A chunk that an answer rests on, with the level at which its KV was used (``dense`` or ``sparse``)."""

    level: str
    score: float

    def to_dict(self) -> dict[str, Any]:
        return {**self._interval_dict(), "level": self.level, "score": round(self.score, 6)}


@dataclass(frozen=True, slots=True, kw_only=True)
class Event(Interval):
    """An anomaly with its score in robust standard deviations from its camera's normal."""

    event_id: str
    score: float
    reason: str

    def to_dict(self) -> dict[str, Any]:
        return {
            "event_id": self.event_id,
            **self._interval_dict(),
            "score": round(self.score, 6),
            "reason": self.reason,
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class Coverage:
    """What a query looked at, and what in its range was not indexed and so cannot have been found."""

    videos: int
    hours: float
    not_indexed: tuple[dict[str, Any], ...] = ()

    @property
    def is_empty(self) -> bool:
        """Nothing indexed lies in the range that was asked about."""
        return self.videos == 0

    def to_dict(self) -> dict[str, Any]:
        return {"videos": self.videos, "hours": round(self.hours, 4), "not_indexed": list(self.not_indexed)}


@dataclass(frozen=True, slots=True, kw_only=True)
class SearchResult:
    """Moments in rank order."""

    query: str
    moments: tuple[Moment, ...]
    coverage: Coverage
    notices: tuple[str, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        return {
            "query": self.query,
            "moments": [moment.to_dict() for moment in self.moments],
            "coverage": self.coverage.to_dict(),
            "notices": list(self.notices),
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class Timings:
    """Seconds of each phase. ``first_token_s`` counts from the question to the first token.

    ``recompute_s`` is what prefilling footage again took, from its video or from stored tokens.
    """

    retrieve_s: float = 0.0
    load_s: float = 0.0
    recompute_s: float = 0.0
    prefill_s: float = 0.0
    first_token_s: float = 0.0
    decode_s: float = 0.0

    def to_dict(self) -> dict[str, float]:
        return {name: round(getattr(self, name), 6) for name in self.__slots__}


@dataclass(frozen=True, slots=True, kw_only=True)
class Context:
    """What was put before the model: chunks by level, tokens, and bytes of KV read from storage."""

    dense_chunks: int = 0
    sparse_chunks: int = 0
    tokens: int = 0
    kv_bytes_read: int = 0

    def to_dict(self) -> dict[str, int]:
        return {name: getattr(self, name) for name in self.__slots__}


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """An answer with its evidence. ``abstained`` means that nothing was there to answer from."""

    question: str
    answer: str
    abstained: bool
    citations: tuple[Citation, ...]
    timings: Timings
    context: Context
    coverage: Coverage
    token_ids: tuple[int, ...] = ()
    notices: tuple[str, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        return {
            "question": self.question,
            "answer": self.answer,
            "abstained": self.abstained,
            "citations": [citation.to_dict() for citation in self.citations],
            "timings": self.timings.to_dict(),
            "context": self.context.to_dict(),
            "coverage": self.coverage.to_dict(),
            "notices": list(self.notices),
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class AnomalyResult:
    """Events in score order, the score threshold that the false-alarm budget led to, and what was looked at."""

    events: tuple[Event, ...]
    threshold: float
    coverage: Coverage
    notices: tuple[str, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        return {
            "events": [event.to_dict() for event in self.events],
            "threshold": round(self.threshold, 6),
            "coverage": self.coverage.to_dict(),
            "notices": list(self.notices),
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class VideoReport:
    """One video after a run: its state and, where it failed, why."""

    uri: str
    video_id: str
    camera: str | None
    state: str
    segments: int
    chunks: int
    duration_s: float
    start_time: datetime | None = None
    error_type: str | None = None
    error_message: str | None = None

    def to_dict(self) -> dict[str, Any]:
        error = None
        if self.error_type is not None:
            error = {"type": self.error_type, "message": self.error_message or ""}
        return {
            "uri": self.uri,
            "video_id": self.video_id,
            "camera": self.camera,
            "state": self.state,
            "segments": self.segments,
            "chunks": self.chunks,
            "duration_s": round(self.duration_s, 3),
            "start_time": iso(self.start_time),
            "error": error,
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class IngestReport:
    """What one run did. Counts and sums are of this run; ``videos`` lists everything that the sources hold."""

    videos: tuple[VideoReport, ...]
    indexed: int
    failed: int
    skipped: int
    quarantined: int
    wall_s: float
    video_s: float
    kv_bytes: int
    sparse_bytes: int
    dry_run: bool = False
    notices: tuple[str, ...] = ()

    def with_notices(self, notices: Sequence[str]) -> IngestReport:
        """The same report with more that its reader must be told."""
        return replace(self, notices=(*self.notices, *notices))

    def to_dict(self) -> dict[str, Any]:
        return {
            "videos": [video.to_dict() for video in self.videos],
            "counts": {
                "indexed": self.indexed,
                "failed": self.failed,
                "skipped": self.skipped,
                "quarantined": self.quarantined,
            },
            "wall_s": round(self.wall_s, 3),
            "video_s": round(self.video_s, 3),
            "kv_bytes": self.kv_bytes,
            "sparse_bytes": self.sparse_bytes,
            "dry_run": self.dry_run,
            "notices": list(self.notices),
        }
