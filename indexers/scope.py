"""What part of the archive a question is about: cameras, videos, an interval of time, hours of the day.

Owns the meaning of a scope and decides it for whole videos in plain Python; the store compiles the same meaning to
filters over rows.

Decisions:
- Intervals are half-open. A video or row belongs to ``[after, before)`` when it overlaps it.
- Footage without a known start time is outside every scope that names times.
- ``time_range`` is about the wall clock of ``time_zone``: an instant is inside when the clock there reads at least the
  first and less than the second time. The range may pass midnight. On the day a clock is put back the hour that
  happens twice counts twice; a range that falls into the hour left out does not happen that day.
- For a row (seconds long), the zone's offset at its start counts for all of it; for a video, every offset change
  inside it is honoured.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from indexers.records import in_utc

SECOND_US = 1_000_000
DAY_US = 86_400 * SECOND_US
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


@dataclass(frozen=True, slots=True)
class OffsetPiece:
    """A stretch of time, in microseconds since 1970 UTC, with one offset from UTC; ``None`` is without a bound."""

    start_us: int | None
    end_us: int | None
    offset_us: int


@dataclass(frozen=True, slots=True)
class ClockWindow:
    """Hours of the day in a time zone: ``start_us`` after local midnight, ``width_us`` long (less than a day)."""

    start_us: int
    width_us: int
    zone: ZoneInfo

    @classmethod
    def parse(cls, time_range: tuple[str, str], time_zone: str | None) -> ClockWindow:
        """``("22:00", "06:00")`` in an IANA zone. ``ValueError`` for an empty range or an unknown zone."""
        if time_zone is None:
            raise ValueError("time_range needs a time_zone")
        try:
            zone = ZoneInfo(time_zone)
        except (ZoneInfoNotFoundError, ValueError, OSError) as exc:
            raise ValueError(f"unknown time zone {time_zone!r}") from exc
        start_us, end_us = (_clock_us(text) for text in time_range)
        if start_us >= DAY_US:
            raise ValueError(f"time range starts at {time_range[0]!r}; the last start is 23:59:59")
        if start_us == end_us:
            raise ValueError(f"time range {time_range[0]}-{time_range[1]} is empty; use 00:00-24:00 for a whole day")
        width_us = (end_us - start_us) % DAY_US or DAY_US
        return cls(start_us, width_us, zone)

    def pieces(self, first: datetime, last: datetime) -> list[OffsetPiece]:
        """All of time cut where the zone's offset changes between ``first`` and ``last``."""
        cuts = []
        day = timedelta(days=1)
        left = first
        while left < last:
            right = left + day
            if self._offset_us(left) != self._offset_us(right):
                cuts.append(self._change_between(left, right))
            left = right
        starts = [None, *[_to_us(cut) for cut in cuts]]
        ends = [*starts[1:], None]
        offsets = [self._offset_us(first), *[self._offset_us(cut) for cut in cuts]]
        return [OffsetPiece(*piece) for piece in zip(starts, ends, offsets, strict=True)]

    def overlaps(self, start: datetime, end: datetime) -> bool:
        """Whether the clock reads a time of the window at any instant of ``[start, end)``."""
        first_us, last_us = _to_us(start), _to_us(end)
        for piece in self.pieces(start, end):
            left = first_us if piece.start_us is None else max(first_us, piece.start_us)
            right = last_us if piece.end_us is None else min(last_us, piece.end_us)
            if left < right:
                into_us = (left + piece.offset_us - self.start_us) % DAY_US
                if into_us < self.width_us or into_us + (right - left) > DAY_US:
                    return True
        return False

    def _offset_us(self, time: datetime) -> int:
        offset = time.astimezone(self.zone).utcoffset()
        assert offset is not None
        return offset // timedelta(microseconds=1)

    def _change_between(self, left: datetime, right: datetime) -> datetime:
        before = self._offset_us(left)
        left_s, right_s = _to_us(left) // SECOND_US, -(-_to_us(right) // SECOND_US)
        while right_s - left_s > 1:
            middle_s = (left_s + right_s) // 2
            if self._offset_us(_EPOCH + timedelta(seconds=middle_s)) == before:
                left_s = middle_s
            else:
                right_s = middle_s
        return _EPOCH + timedelta(seconds=right_s)


@dataclass(frozen=True, slots=True)
class Scope:
    """A restriction of what is searched. ``None`` is no restriction, an empty collection admits nothing.

    Collections of names may be given in any form and are kept as frozen sets.

    Times must carry a zone. ``after`` and ``before`` bound the overlap of footage with ``[after, before)``;
    ``time_range`` is a pair of ``HH:MM[:SS]`` in ``time_zone`` (an IANA name).
    """

    cameras: Collection[str] | None = None
    video_ids: Collection[str] | None = None
    after: datetime | None = None
    before: datetime | None = None
    exclude_video_ids: Collection[str] = ()
    time_range: tuple[str, str] | None = None
    time_zone: str | None = None

    def __post_init__(self) -> None:
        for name in ("cameras", "video_ids", "exclude_video_ids"):
            values: Collection[str] | None = getattr(self, name)
            if isinstance(values, str):
                raise ValueError(f"{name} takes several values, not one text: {values!r}")
            if values is not None:
                object.__setattr__(self, name, frozenset(values))
        for name in ("after", "before"):
            object.__setattr__(self, name, in_utc(getattr(self, name)))
        if self.after is not None and self.before is not None and self.after >= self.before:
            raise ValueError(f"after ({self.after.isoformat()}) is not earlier than before ({self.before.isoformat()})")
        if self.time_range is not None:
            ClockWindow.parse(self.time_range, self.time_zone)

    @property
    def clock(self) -> ClockWindow | None:
        return None if self.time_range is None else ClockWindow.parse(self.time_range, self.time_zone)

    @property
    def names_times(self) -> bool:
        return self.after is not None or self.before is not None or self.time_range is not None

    def admits(self, video_id: str, camera: str | None, start: datetime | None, end: datetime | None) -> bool:
        """Whether a video is wholly or partly inside; ``start`` and ``end`` are its wall-clock interval, if known."""
        if self.cameras is not None and camera not in self.cameras:
            return False
        if self.video_ids is not None and video_id not in self.video_ids:
            return False
        if video_id in self.exclude_video_ids:
            return False
        if not self.names_times:
            return True
        if start is None or end is None:
            return False
        left = start if self.after is None else max(start, self.after)
        right = end if self.before is None else min(end, self.before)
        return left < right and (self.clock is None or self.clock.overlaps(left, right))


EVERYTHING = Scope()


def _clock_us(text: str) -> int:
    parts = text.strip().split(":")
    if len(parts) not in (2, 3) or not all(part.isascii() and part.isdigit() and len(part) <= 2 for part in parts):
        raise ValueError(f"not a time of day (HH:MM): {text!r}")
    hour, minute, second = (*map(int, parts), 0)[:3]
    if minute > 59 or second > 59 or hour > 24 or (hour == 24 and (minute or second)):
        raise ValueError(f"not a time of day (HH:MM): {text!r}")
    return ((hour * 60 + minute) * 60 + second) * SECOND_US


def _to_us(time: datetime) -> int:
    return (time - _EPOCH) // timedelta(microseconds=1)
