"""Events: neighbours together, a budget per camera and local day, each camera against its own normal."""

from __future__ import annotations

from datetime import datetime, timedelta
from types import SimpleNamespace
from typing import Any
from zoneinfo import ZoneInfo

import numpy as np
import pyarrow as pa
import pytest

from indexers.anomaly import GroupScores
from indexers.records import VideoRow, make_group_id, make_segment_id
from indexers.scope import EVERYTHING
from indexers.testing import make_video
from pipeline.errors import UsageError
from pipeline.reader import Filters, Resolved
from pipeline.results import AnomalyResult, Coverage
from pipeline.scan import MIN_SCORE, _day, _runs, anomalies
from tests.unit.pipeline.samples import START

BERLIN = ZoneInfo("Europe/Berlin")


def runs(scores: list[float], videos: str | None = None) -> list[list[int]]:
    groups = [
        {"video_id": video, "start_s": 4.0 * at, "end_s": 4.0 * at + 4.0}
        for at, video in enumerate(videos or "a" * len(scores))
    ]
    return _runs(groups, GroupScores(motion_G=np.array(scores), appearance_G=np.zeros(len(scores))))


def test_neighbours_are_one_run_and_one_usual_group_does_not_part_them() -> None:
    assert runs([0, 5, 5, 0, 5, 0, 0, 5]) == [[1, 2, 3, 4], [7]]
    assert runs([0, 0]) == []


def test_a_stretch_that_a_filter_left_out_parts_a_run() -> None:
    groups = [{"video_id": "a", "start_s": start_s, "end_s": start_s + 4.0} for start_s in (0.0, 4.0, 3600.0)]
    scores = GroupScores(motion_G=np.array([5.0, 5.0, 5.0]), appearance_G=np.zeros(3))
    assert _runs(groups, scores) == [[0, 1], [2]]


def test_the_floor_is_part_of_the_unusual() -> None:
    assert runs([MIN_SCORE, MIN_SCORE - 0.01]) == [[0]]


def test_a_run_never_crosses_videos() -> None:
    assert runs([5, 5, 5, 5], "aabb") == [[0, 1], [2, 3]]
    assert runs([5, 0, 5], "aab") == [[0], [2]]


@pytest.mark.parametrize(
    ("start_s", "zone", "day"),
    [
        (0.0, None, "2026-03-01"),
        (15 * 3600.0, BERLIN, "2026-03-02"),
        (15 * 3600.0, None, "2026-03-01"),
        (16 * 3600.0, None, "2026-03-02"),
    ],
)
def test_the_day_is_that_of_the_filters_zone(start_s: float, zone: ZoneInfo | None, day: str) -> None:
    assert _day(make_video(start_time=START), start_s, Filters(zone=zone)) == day


def test_footage_of_unknown_start_is_one_day() -> None:
    assert _day(make_video(start_time=None), 1e6, Filters()) == ""


class Reader:
    """Frame groups with the motion that is given per video; all pictures alike."""

    def __init__(self, footage: dict[str, tuple[VideoRow, list[float]]]) -> None:
        self._videos = [video for video, _ in footage.values()]
        rows: list[dict[str, Any]] = []
        for video, motions in footage.values():
            segment = make_segment_id(video.video_id, 0)
            rows += [
                {
                    "group_id": make_group_id(segment, index),
                    "video_id": video.video_id,
                    "chunk_id": f"{segment}-{index // 6:04d}",
                    "start_s": 4.0 * index,
                    "end_s": 4.0 * index + 4,
                    "vector": [1.0, 0.0],
                    "motion": motion,
                }
                for index, motion in enumerate(motions)
            ]
        rows.sort(key=lambda row: row["group_id"])
        self.store = SimpleNamespace(embeddings=lambda scope, columns: pa.Table.from_pylist(rows).select(columns))
        self.notices: tuple[str, ...] = ()

    def videos(self) -> list[VideoRow]:
        return self._videos

    def resolve(self, filters: Filters) -> Resolved:
        return Resolved(scope=EVERYTHING, coverage=Coverage(videos=len(self._videos), hours=1.0))


def quiet(*events: tuple[int, float], length: int = 60) -> list[float]:
    motion = [0.01] * length
    for index, value in events:
        motion[index] = value
    return motion


def scan(*footage: tuple[VideoRow, list[float]], max_per_day: int = 10, zone: ZoneInfo | None = None) -> AnomalyResult:
    reader: Any = Reader({video.video_id: (video, motion) for video, motion in footage})
    return anomalies(reader, Filters(zone=zone), max_per_day)


def starts(result: AnomalyResult) -> list[tuple[str | None, float, float]]:
    return [(event.camera, event.start_s, event.end_s) for event in result.events]


def test_events_come_by_score_with_times_and_reason() -> None:
    result = scan((make_video(), quiet((10, 0.1), (11, 0.3), (30, 0.9))))
    assert starts(result) == [("gate", 120.0, 124.0), ("gate", 40.0, 48.0)]
    first = result.events[0]
    assert first.start_time == START + timedelta(seconds=120)
    assert first.score > result.events[1].score >= result.threshold == MIN_SCORE
    assert "motion" in first.reason
    assert len({event.event_id for event in result.events}) == 2


def test_ids_do_not_depend_on_the_run() -> None:
    footage = (make_video(), quiet((10, 0.3)))
    assert scan(footage).events == scan(footage).events


def test_the_budget_holds_per_camera_and_day() -> None:
    noisy = quiet(*((index, 0.1 + index / 1000) for index in range(3, 60, 6)))
    day_two = datetime.fromisoformat("2026-03-02T08:00:00+00:00")
    footage = [
        (make_video("a"), noisy),
        (make_video("b", camera="yard"), noisy),
        (make_video("c", start_time=day_two), noisy),
    ]
    for budget in (1, 2, 5):
        result = scan(*footage, max_per_day=budget)
        counts: dict[tuple[Any, Any], int] = {}
        for event in result.events:
            assert event.start_time is not None
            key = (event.camera, event.start_time.date())
            counts[key] = counts.get(key, 0) + 1
            assert event.score >= MIN_SCORE
        assert counts == dict.fromkeys(counts, budget) and len(counts) == 3
        assert result.threshold > MIN_SCORE


def test_a_larger_budget_keeps_every_event() -> None:
    footage = (make_video(), quiet(*((index, 0.1 + index / 1000) for index in range(3, 60, 6))))
    ids = [{event.event_id for event in scan(footage, max_per_day=budget).events} for budget in (1, 3, 9, 50)]
    assert ids[0] < ids[1] < ids[2] < ids[3]


def test_each_camera_is_held_against_its_own_normal() -> None:
    """What is usual in the yard is unusual at the gate."""
    result = scan((make_video("a"), quiet((10, 0.5))), (make_video("b", camera="yard"), [0.5] * 60))
    assert starts(result) == [("gate", 40.0, 44.0)]


def test_videos_without_a_camera_are_cameras_of_their_own() -> None:
    footage = [
        (make_video("a", camera=None, start_time=None), quiet((10, 0.5))),
        (make_video("b", camera=None, start_time=None), [0.5] * 60),
    ]
    result = scan(*footage)
    assert [event.video_id for event in result.events] == [footage[0][0].video_id]
    assert result.events[0].start_time is None


def test_a_budget_below_one_is_refused() -> None:
    with pytest.raises(UsageError, match="--max-per-day 0"):
        scan((make_video(), quiet()), max_per_day=0)


def test_nothing_indexed_gives_no_events_and_says_so() -> None:
    result = scan()
    assert result.coverage.is_empty and result.events == ()
