"""What a query could have seen: indexed hours in its range, and what in that range is not indexed. Pure functions.

"Not indexed" must never read as "nothing happened": failed and waiting videos, stretches without footage, and videos
whose wall-clock start is unknown (they cannot be placed in a time range) are all listed.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

from indexers.records import DELETED, DELETING, EXPIRED, INDEXED, VideoRow
from indexers.scope import DAY_US, ClockWindow
from pipeline.results import Coverage
from pipeline.times import iso

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)

MIN_GAP_S = 1.0
"""Shorter holes between two recordings of a camera are recording jitter, not missing footage."""


def coverage_of(
    rows: Iterable[VideoRow],
    *,
    cameras: Sequence[str] = (),
    video_ids: Sequence[str] = (),
    after: datetime | None = None,
    before: datetime | None = None,
    clock: ClockWindow | None = None,
) -> Coverage:
    """Coverage of the scope by the ledger's ``videos`` rows (superseded ones are ignored).

    ``clock`` narrows the range to hours of the day: only those count as looked at.
    """
    is_bounded = after is not None or before is not None or clock is not None
    searched: list[VideoRow] = []
    missing: list[dict[str, Any]] = []
    for row in rows:
        if row.superseded_by is not None or row.state in (DELETED, DELETING, EXPIRED):
            continue
        if (cameras and row.camera not in cameras) or (video_ids and row.video_id not in video_ids):
            continue
        if is_bounded and row.start_time is not None and not _overlap_s(row, after, before, clock):
            continue
        if row.state != INDEXED:
            missing.append(_missing_video(row))
        elif is_bounded and row.start_time is None:
            missing.append(_entry(row, "its wall-clock start is unknown, so it cannot be placed in the time range"))
        else:
            searched.append(row)
            if row.damage:
                missing.append(_entry(row, f"damaged: {row.damage}"))
    if is_bounded and not (video_ids and searched):  # between named videos there is footage that was not asked about
        missing.extend(_gaps(searched, cameras, after, before, clock))
    seconds = sum(_overlap_s(row, after, before, clock) for row in searched)
    return Coverage(videos=len(searched), hours=seconds / 3600, not_indexed=tuple(missing))


def _missing_video(row: VideoRow) -> dict[str, Any]:
    reason = f"{row.error_type}: {row.error_message}" if row.error_type else "not finished"
    return _entry(row, reason)


def _entry(row: VideoRow, reason: str) -> dict[str, Any]:
    return {
        "uri": row.uri,
        "camera": row.camera,
        "state": row.state,
        "start_time": iso(row.start_time),
        "end_time": None,
        "reason": reason,
    }


def _overlap_s(row: VideoRow, after: datetime | None, before: datetime | None, clock: ClockWindow | None) -> float:
    """Seconds of the video inside the range; a video of unknown length that starts in it counts as a moment."""
    duration_s = row.duration_s or 0.0
    if row.start_time is None or (after is None and before is None and clock is None):
        return float(duration_s)
    start, end = row.start_time, row.start_time + timedelta(seconds=max(duration_s, 1e-3))
    begin = start if after is None else max(start, after)
    stop = end if before is None else min(end, before)
    if begin >= stop:
        return 0.0
    return (stop - begin).total_seconds() if clock is None else _seconds_in(clock, begin, stop)


def _seconds_in(clock: ClockWindow, begin: datetime, stop: datetime) -> float:
    """Seconds of ``[begin, stop)`` at which the clock reads a time of the window."""

    def until(local_us: int) -> int:
        days, rest_us = divmod(local_us - clock.start_us, DAY_US)
        return days * clock.width_us + min(rest_us, clock.width_us)

    begin_us, stop_us = ((time - _EPOCH) // timedelta(microseconds=1) for time in (begin, stop))
    total_us = 0
    for piece in clock.pieces(begin, stop):
        left_us = begin_us if piece.start_us is None else max(begin_us, piece.start_us)
        right_us = stop_us if piece.end_us is None else min(stop_us, piece.end_us)
        if left_us < right_us:
            total_us += until(right_us + piece.offset_us) - until(left_us + piece.offset_us)
    return total_us / 1e6


def _gaps(
    searched: Sequence[VideoRow],
    cameras: Sequence[str],
    after: datetime | None,
    before: datetime | None,
    clock: ClockWindow | None,
) -> list[dict[str, Any]]:
    """Stretches of the range, per camera, that no indexed video covers. An open end is bounded by the footage."""
    present = {row.camera for row in searched}
    gaps = []
    for camera in sorted(present | set(cameras), key=lambda name: (name is None, name or "")):
        spans = sorted(
            (row.start_time, row.start_time + timedelta(seconds=row.duration_s or 0.0))
            for row in searched
            if row.camera == camera and row.start_time is not None
        )
        at = after if after is not None else (spans[0][0] if spans else None)
        stop = before if before is not None else (max(end for _, end in spans) if spans else None)
        gaps.extend(_holes(camera, spans, at, stop, clock))
    if not present and not cameras:
        gaps.append(_gap(None, after, before))
    return gaps


def _holes(
    camera: str | None,
    spans: list[tuple[datetime, datetime]],
    at: datetime | None,
    stop: datetime | None,
    clock: ClockWindow | None,
) -> list[dict[str, Any]]:
    if at is None or stop is None:
        return [_gap(camera, at, stop)]
    holes = []
    for start, end in [*spans, (stop, stop)]:
        end_of_hole = min(start, stop)
        is_wanted = clock is None or clock.overlaps(at, end_of_hole)
        if (end_of_hole - at).total_seconds() > MIN_GAP_S and is_wanted:
            holes.append(_gap(camera, at, end_of_hole))
        at = max(at, end)
    return holes


def _gap(camera: str | None, start: datetime | None, end: datetime | None) -> dict[str, Any]:
    return {
        "uri": None,
        "camera": camera,
        "state": None,
        "start_time": iso(start),
        "end_time": iso(end),
        "reason": "no footage indexed",
    }
