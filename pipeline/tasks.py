"""One frozen record per stage boundary: small, picklable, free of tensors. KV and frames never pass here."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import Any


@dataclass(frozen=True, slots=True, kw_only=True)
class VideoTask:
    """One object version to index, from segment ``first_segment`` on (earlier ones are committed)."""

    video_id: str
    uri: str
    key: str
    etag: str
    size: int
    source: str
    camera: str | None
    title: str
    start_time: datetime | None
    time_zone: str | None
    first_segment: int = 0
    attempt: int = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class SegmentStaged:
    """A worker made a segment durable: its files are in place and its rows are staged for the committer.

    ``staged_path`` is relative to the archive; ``prefill_s`` is what the language model took for it.
    """

    video_id: str
    segment_index: int
    staged_path: str
    num_chunks: int
    num_frames: int
    prefill_s: float
    until_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class VideoProgress:
    """A worker is alive and has decoded up to ``decoded_s`` of ``duration_s`` seconds."""

    video_id: str
    decoded_s: float
    duration_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class VideoDone:
    """Every segment of the video is staged. ``facts`` are the columns of the ``videos`` row that decoding found."""

    video_id: str
    num_segments: int
    facts: dict[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class StageFailure:
    """One attempt at a video ended without it. ``retryable`` failures are tried again up to the attempt limit."""

    video_id: str
    uri: str
    stage: str
    error_type: str
    message: str
    retryable: bool
    quarantines: bool
    facts: dict[str, Any]

    @classmethod
    def from_error(
        cls, task: VideoTask, stage: str, error: BaseException, facts: dict[str, Any] | None = None
    ) -> StageFailure:
        """The record of ``error``; what is not one of our typed errors is never retried."""
        from pipeline.errors import DecoderCrashed, DecoderTimeout, MediaError, WorkerLost

        message = error.cause if isinstance(error, MediaError) else str(error)
        return cls(
            video_id=task.video_id,
            uri=task.uri,
            stage=stage,
            error_type=type(error).__name__,
            message=message or type(error).__name__,
            retryable=bool(getattr(type(error), "retryable", False)),
            quarantines=isinstance(error, DecoderCrashed | DecoderTimeout | WorkerLost),
            facts=facts or {},
        )


WorkerEvent = SegmentStaged | VideoProgress | VideoDone | StageFailure
