"""Times at the surface: aware in, UTC inside, ambiguity refused with the option that was wrong."""

from __future__ import annotations

from datetime import UTC, datetime
from zoneinfo import ZoneInfo

import pytest

from pipeline.errors import UsageError
from pipeline.times import check_order, format_offset, iso, parse_time_range, parse_time_zone, to_utc

BERLIN = ZoneInfo("Europe/Berlin")


def test_zones() -> None:
    assert parse_time_zone(None) is None
    assert parse_time_zone("Europe/Berlin") == BERLIN


@pytest.mark.parametrize("name", ["Berlin", "", "Europe", "../etc/passwd", "/etc/passwd", "Europe/Berlin\0"])
def test_an_unknown_zone_is_named(name: str) -> None:
    with pytest.raises(UsageError, match="unknown time zone"):
        parse_time_zone(name)


@pytest.mark.parametrize(
    ("value", "zone", "expected"),
    [
        ("2026-03-01T22:00:00+01:00", None, "2026-03-01T21:00:00+00:00"),
        ("2026-03-01T22:00:00Z", BERLIN, "2026-03-01T22:00:00+00:00"),
        (" 2026-03-01T22:00 ", BERLIN, "2026-03-01T21:00:00+00:00"),
        ("2026-07-01", BERLIN, "2026-06-30T22:00:00+00:00"),
        (datetime(2026, 7, 1, 12), BERLIN, "2026-07-01T10:00:00+00:00"),
        (datetime(2026, 7, 1, 12, tzinfo=BERLIN), None, "2026-07-01T10:00:00+00:00"),
    ],
)
def test_times_become_utc(value: str | datetime, zone: ZoneInfo | None, expected: str) -> None:
    time = to_utc(value, zone, "--after")
    assert time is not None and time.tzinfo is UTC
    assert time.isoformat() == expected


def test_no_time_is_no_time() -> None:
    assert to_utc(None, None, "--after") is None
    assert iso(None) is None


@pytest.mark.parametrize("value", ["2026-03-01T22:00", datetime(2026, 3, 1, 22)])
def test_a_naive_time_without_a_zone_is_refused(value: str | datetime) -> None:
    with pytest.raises(UsageError, match=r"--before: 2026-03-01.*no time zone"):
        to_utc(value, None, "--before")


@pytest.mark.parametrize("value", ["yesterday", "", "22:00", "2026-13-01T00:00Z"])
def test_what_is_no_time_is_refused_with_its_option(value: str) -> None:
    with pytest.raises(UsageError, match=r"--after: .*ISO 8601"):
        to_utc(value, BERLIN, "--after")


@pytest.mark.parametrize("value", ["0001-01-01T00:00:00+14:00", "9999-12-31T23:59:59-10:00"])
def test_a_time_that_utc_cannot_hold_is_refused(value: str) -> None:
    """It was an OverflowError."""
    with pytest.raises(UsageError, match=r"--after: .*years"):
        to_utc(value, None, "--after")


def test_a_range_must_not_be_empty() -> None:
    first, second = datetime(2026, 3, 1, tzinfo=UTC), datetime(2026, 3, 2, tzinfo=UTC)
    check_order(first, second)
    check_order(None, second)
    check_order(first, None)
    for after, before in ((second, first), (first, first)):
        with pytest.raises(UsageError, match="not earlier"):
            check_order(after, before)


def test_a_time_of_day_is_two_texts() -> None:
    assert parse_time_range(None) is None
    assert parse_time_range("22:00, 06:00") == ("22:00", "06:00")
    assert parse_time_range(("22:00", "06:00")) == ("22:00", "06:00")
    for wrong in ("22:00", "22:00,23:00,24:00", "22:00-06:00"):
        with pytest.raises(UsageError, match="HH:MM,HH:MM"):
            parse_time_range(wrong)


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0, "0:00"),
        (59.999, "0:59"),
        (61, "1:01"),
        (3599.9, "59:59"),
        (3600, "1:00:00"),
        (36061, "10:01:01"),
        (-1, "0:00"),
    ],
)
def test_media_time(seconds: float, text: str) -> None:
    assert format_offset(seconds) == text


def test_rendering_keeps_the_instant_and_shows_the_offset() -> None:
    time = datetime(2026, 3, 1, 21, tzinfo=UTC)
    assert iso(time) == "2026-03-01T21:00:00+00:00"
    assert iso(time, BERLIN) == "2026-03-01T22:00:00+01:00"
