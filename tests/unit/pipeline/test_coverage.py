""" "Not indexed" never reads as "nothing happened": every kind of row, and every hole in the range, is named."""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import Any

import pytest

from indexers.scope import ClockWindow
from indexers.testing import make_video
from pipeline.coverage import coverage_of
from pipeline.results import Coverage
from tests.unit.pipeline.samples import START

HOUR = timedelta(hours=1)


def footage(name: str, start_h: float | None, hours: float | None = 1.0, **changes: Any) -> Any:
    start = None if start_h is None else START + start_h * HOUR
    return make_video(name, start_time=start, duration_s=None if hours is None else hours * 3600, **changes)


def at(hours: float) -> str:
    return (START + hours * HOUR).isoformat()


def gaps(coverage: Coverage) -> list[tuple[Any, Any, Any]]:
    return [(gap["camera"], gap["start_time"], gap["end_time"]) for gap in coverage.not_indexed if gap["uri"] is None]


def reasons(coverage: Coverage) -> dict[str, str]:
    return {gap["uri"].rsplit("/", 1)[-1]: gap["reason"] for gap in coverage.not_indexed if gap["uri"]}


def test_without_a_range_all_hours_count_and_no_hole_is_named() -> None:
    coverage = coverage_of([footage("a", 0), footage("b", 5, 0.5), footage("c", None, 2.0)])
    assert (coverage.videos, coverage.hours, coverage.not_indexed) == (3, 3.5, ())
    assert not coverage.is_empty


def test_nothing_indexed_is_empty() -> None:
    assert coverage_of([]).is_empty
    assert coverage_of([footage("a", 0, state="failed")]).is_empty


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"state": "failed", "error_type": "UnreadableMedia", "error_message": "empty"}, "UnreadableMedia: empty"),
        ({"state": "quarantined", "error_type": "DecoderTimeout", "error_message": "hung"}, "DecoderTimeout: hung"),
        ({"state": "queued"}, "not finished"),
        ({"state": "running"}, "not finished"),
        ({"state": "discovered"}, "not finished"),
    ],
)
def test_a_video_that_is_not_indexed_is_named_with_its_reason(changes: dict[str, Any], reason: str) -> None:
    coverage = coverage_of([footage("a", 0, **changes), footage("b", 1)])
    assert (coverage.videos, coverage.hours) == (1, 1.0)
    assert reasons(coverage) == {"a.mp4": reason}
    entry = coverage.not_indexed[0]
    assert entry.keys() == {"uri", "camera", "state", "start_time", "end_time", "reason"}
    assert (entry["state"], entry["camera"], entry["start_time"]) == (changes["state"], "gate", at(0))


def test_a_damaged_video_counts_and_is_named() -> None:
    coverage = coverage_of([footage("a", 0, damage="9 bad packets")])
    assert coverage.videos == 1
    assert reasons(coverage) == {"a.mp4": "damaged: 9 bad packets"}


@pytest.mark.parametrize(
    "changes",
    [{"state": "deleted"}, {"state": "deleting"}, {"state": "expired"}, {"superseded_by": "b" * 32}],
)
def test_what_was_removed_or_replaced_is_neither_searched_nor_missing(changes: dict[str, Any]) -> None:
    coverage = coverage_of([footage("a", 0, **changes)])
    assert coverage == Coverage(videos=0, hours=0.0)


def test_cameras_and_videos_narrow_the_scope() -> None:
    rows = [footage("a", 0), footage("b", 1, camera="yard"), footage("c", 2, camera="yard", state="failed")]
    assert coverage_of(rows, cameras=["gate"]).not_indexed == ()
    assert coverage_of(rows, cameras=["yard"]).videos == 1
    named = coverage_of(rows, video_ids=[rows[2].video_id])
    assert named.is_empty and list(reasons(named)) == ["c.mp4"]


def test_an_unknown_start_cannot_lie_in_a_range() -> None:
    coverage = coverage_of([footage("a", None)], after=START)
    assert coverage.is_empty
    assert "start is unknown" in reasons(coverage)["a.mp4"]


def test_a_failed_video_of_unknown_start_stays_failed_in_a_range() -> None:
    coverage = coverage_of([footage("a", None, state="failed", error_type="X", error_message="y")], after=START)
    assert reasons(coverage) == {"a.mp4": "X: y"}


@pytest.mark.parametrize(
    ("after_h", "before_h", "hours"),
    [(0.25, 0.5, 0.25), (-5, 0.5, 0.5), (0.5, 9, 0.5), (-5, 9, 1.0), (0.25, None, 0.75), (None, 0.25, 0.25)],
)
def test_only_the_hours_inside_the_range_count(after_h: float | None, before_h: float | None, hours: float) -> None:
    bounds: list[datetime | None] = [None if h is None else START + h * HOUR for h in (after_h, before_h)]
    coverage = coverage_of([footage("a", 0)], after=bounds[0], before=bounds[1])
    assert (coverage.videos, coverage.hours) == (1, pytest.approx(hours))


def test_the_range_is_half_open() -> None:
    assert coverage_of([footage("a", 0)], after=START + HOUR).is_empty
    assert coverage_of([footage("a", 0)], before=START).is_empty
    assert not coverage_of([footage("a", 0)], after=START + HOUR - timedelta(seconds=1)).is_empty


def test_a_failed_video_outside_the_range_is_not_named() -> None:
    rows = [footage("a", 0, state="failed"), footage("b", 5)]
    assert reasons(coverage_of(rows, after=START + 4 * HOUR)) == {}


def test_a_failed_video_of_unknown_length_that_starts_in_the_range_is_named() -> None:
    rows = [footage("a", 1, None, state="failed"), footage("b", 0, 3)]
    assert list(reasons(coverage_of(rows, after=START, before=START + 3 * HOUR))) == ["a.mp4"]


def test_holes_between_recordings_are_named_per_camera() -> None:
    rows = [footage("a", 1), footage("b", 3), footage("c", 0, 6, camera="yard")]
    coverage = coverage_of(rows, after=START, before=START + 6 * HOUR)
    assert gaps(coverage) == [("gate", at(0), at(1)), ("gate", at(2), at(3)), ("gate", at(4), at(6))]


def test_an_open_end_is_bounded_by_the_footage() -> None:
    rows = [footage("a", 1), footage("b", 3)]
    assert gaps(coverage_of(rows, after=START)) == [("gate", at(0), at(1)), ("gate", at(2), at(3))]
    assert gaps(coverage_of(rows, before=START + 6 * HOUR)) == [("gate", at(2), at(3)), ("gate", at(4), at(6))]


def test_recordings_that_overlap_or_nest_leave_no_hole() -> None:
    rows = [footage("a", 0, 4), footage("b", 1), footage("c", 3, 2)]
    assert gaps(coverage_of(rows, after=START, before=START + 5 * HOUR)) == []


def test_recording_jitter_is_no_hole() -> None:
    rows = [footage("a", 0), footage("b", 1 + 0.9 / 3600), footage("c", 2 + 3.0 / 3600)]
    holes = gaps(coverage_of(rows, after=START, before=START + 2 * HOUR))
    assert len(holes) == 0
    assert len(gaps(coverage_of(rows, after=START, before=START + 3 * HOUR))) == 1


def test_a_camera_that_was_asked_for_and_has_nothing_in_the_range_is_one_hole() -> None:
    rows = [footage("a", 0)]
    after, before = START + 5 * HOUR, START + 6 * HOUR
    assert gaps(coverage_of(rows, cameras=["gate"], after=after, before=before)) == [("gate", at(5), at(6))]
    assert gaps(coverage_of(rows, after=after, before=before)) == [(None, at(5), at(6))]
    assert gaps(coverage_of(rows, after=after)) == [(None, at(5), None)]


def test_the_footage_of_videos_without_a_camera_is_one_line_of_time() -> None:
    rows = [footage("a", 0, camera=None), footage("b", 2, camera=None)]
    assert gaps(coverage_of(rows, after=START, before=START + 3 * HOUR)) == [(None, at(1), at(2))]


def test_the_footage_between_named_videos_was_not_asked_about() -> None:
    """It was listed as "no footage indexed" although other videos cover it."""
    rows = [footage("a", 0), footage("b", 1), footage("c", 2)]
    after, before = START, START + 3 * HOUR
    coverage = coverage_of(rows, video_ids=[rows[1].video_id], after=after, before=before)
    assert (coverage.videos, coverage.hours, coverage.not_indexed) == (1, 1.0, ())
    outside = coverage_of(rows, video_ids=[rows[1].video_id], after=START + 2 * HOUR)
    assert outside.is_empty and gaps(outside) == [(None, at(2), None)]


def window(start: str, end: str) -> ClockWindow:
    """Hours of the day in Berlin, an hour ahead of ``START``'s zone: the footage starts at 09:00 there."""
    return ClockWindow.parse((start, end), "Europe/Berlin")


@pytest.mark.parametrize(
    ("start", "end", "hours", "videos"),
    [
        ("09:00", "10:00", 1.0, 1),
        ("09:30", "09:45", 0.25, 1),
        ("08:00", "09:15", 0.25, 1),
        ("22:00", "09:15", 0.25, 1),
        ("00:00", "24:00", 1.0, 1),
        ("10:00", "09:00", 0.0, 0),
        ("03:00", "04:00", 0.0, 0),
    ],
)
def test_only_the_hours_of_the_day_that_were_asked_for_count(start: str, end: str, hours: float, videos: int) -> None:
    """All of the footage counted, so an empty answer about the night read as "nothing happened"."""
    coverage = coverage_of([footage("a", 0)], clock=window(start, end))
    assert (coverage.videos, coverage.hours) == (videos, pytest.approx(hours))
    assert coverage.is_empty == (videos == 0)
    assert not coverage.is_empty or gaps(coverage) == [(None, None, None)]


def test_hours_of_the_day_add_up_over_days_and_changes_of_the_clock() -> None:
    days = footage("a", 0, 72.0)
    assert coverage_of([days], clock=window("22:00", "06:00")).hours == pytest.approx(24.0)
    spring = make_video("b", start_time=datetime.fromisoformat("2026-03-28T12:00:00Z"), duration_s=24 * 3600.0)
    assert coverage_of([spring], clock=window("00:00", "04:00")).hours == pytest.approx(3.0)
    autumn = make_video("c", start_time=datetime.fromisoformat("2026-10-24T12:00:00Z"), duration_s=24 * 3600.0)
    assert coverage_of([autumn], clock=window("00:00", "04:00")).hours == pytest.approx(5.0)


def test_hours_of_the_day_and_a_range_both_bound() -> None:
    coverage = coverage_of([footage("a", 0, 4.0)], after=START + HOUR, clock=window("09:00", "10:30"))
    assert coverage.hours == pytest.approx(0.5)


def test_only_holes_at_the_hours_asked_for_are_named() -> None:
    rows = [footage("a", 0), footage("b", 2), footage("c", 5)]
    assert gaps(coverage_of(rows, clock=window("09:00", "14:30"))) == [("gate", at(1), at(2)), ("gate", at(3), at(5))]
    assert gaps(coverage_of(rows, clock=window("09:00", "11:30"))) == [("gate", at(1), at(2))]
    daily = [footage("a", 0), footage("b", 24), footage("c", 72)]
    assert gaps(coverage_of(daily, clock=window("09:00", "10:00"))) == [("gate", at(25), at(72))]


def test_footage_of_unknown_start_cannot_lie_in_hours_of_the_day() -> None:
    coverage = coverage_of([footage("a", None)], clock=window("09:00", "10:00"))
    assert coverage.is_empty and "start is unknown" in reasons(coverage)["a.mp4"]
