"""Times at the surface: parsing, zones and local rendering. Inside, every wall-clock time is an aware UTC datetime."""

from __future__ import annotations

from datetime import UTC, datetime
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from pipeline.errors import UsageError


def parse_time_zone(name: str | None) -> ZoneInfo | None:
    """The zone of an IANA name such as ``Europe/Berlin``. Raises ``UsageError`` for an unknown one."""
    if name is None:
        return None
    try:
        return ZoneInfo(name)
    except (ZoneInfoNotFoundError, ValueError, OSError) as exc:
        raise UsageError(f"unknown time zone {name!r}; use an IANA name such as Europe/Berlin or UTC") from exc


def to_utc(value: str | datetime | None, zone: ZoneInfo | None, option: str) -> datetime | None:
    """An ISO 8601 text or datetime as aware UTC. A naive one needs ``zone``; else ``UsageError`` naming ``option``."""
    if value is None:
        return None
    if isinstance(value, str):
        try:
            parsed = datetime.fromisoformat(value.strip())
        except ValueError as exc:
            raise UsageError(f"{option}: {value!r} is not an ISO 8601 time such as 2026-03-01T22:00:00+01:00") from exc
    else:
        parsed = value
    if parsed.tzinfo is None:
        if zone is None:
            raise UsageError(f"{option}: {value!s} has no time zone; add an offset such as +01:00 or give --time-zone")
        parsed = parsed.replace(tzinfo=zone)
    try:
        return parsed.astimezone(UTC)
    except OverflowError as exc:
        raise UsageError(f"{option}: {value!s} is outside the years 1 to 9999 in UTC") from exc


def check_order(after: datetime | None, before: datetime | None) -> None:
    """Raise ``UsageError`` when the range is empty."""
    if after is not None and before is not None and after >= before:
        raise UsageError(f"--after {after.isoformat()} is not earlier than --before {before.isoformat()}")


def parse_time_range(value: str | tuple[str, str] | None) -> tuple[str, str] | None:
    """``HH:MM,HH:MM`` as its two texts; what they mean is the scope's business."""
    if value is None:
        return None
    parts = value.split(",") if isinstance(value, str) else list(value)
    if len(parts) != 2:
        raise UsageError(f"--time-range: {value!r} is not HH:MM,HH:MM")
    return parts[0].strip(), parts[1].strip()


def format_offset(seconds: float) -> str:
    """Media time as ``H:MM:SS`` or ``M:SS``, rounded down to the second."""
    whole = int(max(seconds, 0))
    hours, rest = divmod(whole, 3600)
    minutes, secs = divmod(rest, 60)
    return f"{hours}:{minutes:02d}:{secs:02d}" if hours else f"{minutes}:{secs:02d}"


def iso(value: datetime | None, zone: ZoneInfo | None = None) -> str | None:
    """ISO 8601 text with offset, in ``zone`` (UTC without one)."""
    return None if value is None else value.astimezone(zone or UTC).isoformat()
