"""The meaning of a scope: intervals, cameras, hours of the day, days with a clock change."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest

from indexers.scope import DAY_US, SECOND_US, ClockWindow, Scope

HOUR = timedelta(hours=1)
NOON = datetime(2026, 3, 1, 12, tzinfo=UTC)


def window(start: str, end: str, zone: str = "Europe/Berlin") -> ClockWindow:
    return ClockWindow.parse((start, end), zone)


def test_names_may_be_given_in_any_collection() -> None:
    assert Scope(cameras=["a", "b"]) == Scope(cameras=("b", "a"))
    with pytest.raises(ValueError, match="not one text"):
        Scope(cameras="gate")


@pytest.mark.parametrize(
    ("scope", "admitted"),
    [
        (Scope(), True),
        (Scope(cameras=["gate"]), True),
        (Scope(cameras=["yard"]), False),
        (Scope(cameras=[]), False),
        (Scope(video_ids=["v"]), True),
        (Scope(video_ids=[]), False),
        (Scope(exclude_video_ids=["v"]), False),
        (Scope(after=NOON + HOUR), False),
        (Scope(after=NOON + HOUR - timedelta(microseconds=1)), True),
        (Scope(before=NOON), False),
        (Scope(before=NOON + timedelta(microseconds=1)), True),
        (Scope(time_range=("12:30", "12:31"), time_zone="UTC"), True),
        (Scope(time_range=("13:00", "14:00"), time_zone="UTC"), False),
        (Scope(time_range=("13:00", "14:00"), time_zone="Europe/Berlin"), True),
        (Scope(time_range=("12:30", "12:31"), time_zone="UTC", before=NOON + HOUR / 2), False),
    ],
)
def test_a_video_of_one_hour_from_noon(scope: Scope, admitted: bool) -> None:
    assert scope.admits("v", "gate", NOON, NOON + HOUR) is admitted


def test_footage_of_unknown_time_is_outside_every_scope_that_names_times() -> None:
    assert Scope(cameras=["gate"]).admits("v", "gate", None, None)
    assert not Scope(after=NOON).admits("v", "gate", None, None)
    assert not Scope(time_range=("00:00", "24:00"), time_zone="UTC").admits("v", "gate", None, None)


def test_a_scope_that_cannot_be_meant_is_refused() -> None:
    with pytest.raises(ValueError, match="without a time zone"):
        Scope(after=datetime(2026, 3, 1))
    with pytest.raises(ValueError, match="not earlier"):
        Scope(after=NOON, before=NOON)
    with pytest.raises(ValueError, match="needs a time_zone"):
        Scope(time_range=("22:00", "06:00"))
    with pytest.raises(ValueError, match="unknown time zone"):
        Scope(time_range=("22:00", "06:00"), time_zone="Mars/Olympus")
    with pytest.raises(ValueError, match="unknown time zone"):
        Scope(time_range=("22:00", "06:00"), time_zone="../../etc/passwd")


@pytest.mark.parametrize(
    "text", ["", "7", "25:00", "24:01", "12:60", "12:00:60", "a:b", "12:00:00:00", "-1:00", "١٢:00"]
)
def test_a_time_of_day_that_does_not_exist_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="not a time of day"):
        window(text, "06:00")


def test_the_whole_day_is_written_00_to_24() -> None:
    assert window("00:00", "24:00").width_us == DAY_US
    assert window("22:00", "06:00").width_us == 8 * 3600 * SECOND_US
    with pytest.raises(ValueError, match="empty"):
        window("06:00", "06:00")
    with pytest.raises(ValueError, match="last start"):
        window("24:00", "06:00")


def test_a_range_past_midnight_holds_both_sides_of_it() -> None:
    night = window("22:00", "06:00", "UTC")
    day = datetime(2026, 3, 1, tzinfo=UTC)
    second = timedelta(seconds=1)
    inside = [hour for hour in range(24) if night.overlaps(day + hour * HOUR, day + hour * HOUR + second)]
    assert inside == [0, 1, 2, 3, 4, 5, 22, 23]
    assert not night.overlaps(day + 21 * HOUR, day + 22 * HOUR)
    assert night.overlaps(day + 21 * HOUR, day + 22 * HOUR + second)


def test_an_hour_that_the_clock_leaves_out_does_not_happen() -> None:
    """On 2026-03-29 at 02:00 Berlin's clock goes to 03:00: nothing reads 02:30 that day."""
    half_past_two = window("02:30", "02:45")
    midnight = datetime(2026, 3, 28, 23, tzinfo=UTC)
    assert not half_past_two.overlaps(midnight, midnight + 22 * HOUR)
    assert half_past_two.overlaps(midnight - 24 * HOUR, midnight)
    at_three = datetime(2026, 3, 29, 1, tzinfo=UTC)
    assert window("03:00", "03:01").overlaps(at_three, at_three + timedelta(seconds=1))


def test_an_hour_that_happens_twice_counts_twice() -> None:
    """On 2026-10-25 at 03:00 Berlin's clock goes back to 02:00: 02:30 is read at 00:30 and at 01:30 UTC."""
    half_past_two = window("02:30", "02:45")
    day = datetime(2026, 10, 25, tzinfo=UTC)
    minute = timedelta(minutes=1)
    inside = [m for m in range(180) if half_past_two.overlaps(day + m * minute, day + (m + 1) * minute)]
    assert inside == [*range(30, 45), *range(90, 105)]


def test_pieces_cut_time_exactly_where_the_offset_changes() -> None:
    pieces = window("02:30", "02:45").pieces(datetime(2026, 1, 1, tzinfo=UTC), datetime(2026, 12, 31, tzinfo=UTC))
    spring = int(datetime(2026, 3, 29, 1, tzinfo=UTC).timestamp()) * SECOND_US
    autumn = int(datetime(2026, 10, 25, 1, tzinfo=UTC).timestamp()) * SECOND_US
    hour_us = 3600 * SECOND_US
    assert [(p.start_us, p.end_us, p.offset_us) for p in pieces] == [
        (None, spring, hour_us),
        (spring, autumn, 2 * hour_us),
        (autumn, None, hour_us),
    ]


def test_zones_with_offsets_of_part_of_an_hour() -> None:
    at = datetime(2026, 6, 1, 0, 15, tzinfo=UTC)
    assert window("06:00", "06:01", "Asia/Kathmandu").overlaps(at, at + timedelta(seconds=1))
