"""The store against a model in memory, and its filters against plain Python."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime, time, timedelta
from pathlib import Path
from zoneinfo import ZoneInfo

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from indexers.config import StoreSettings
from indexers.records import FAILED, RUNNING, VideoRow
from indexers.scope import ClockWindow, Scope
from indexers.store import LanceStore
from indexers.testing import EMBEDDING_DIM, SegmentShape, make_segment, make_video

QUERY = np.ones(EMBEDDING_DIM)
TINY = SegmentShape(num_chunks=1, groups_per_chunk=2, visual_tokens=1, layers=1, head_dim=1)
VIDEOS = [make_video(f"v{n}", etag=str(n % 2), camera=("gate", "o'yard", None)[n % 3]) for n in range(5)]
ZONES = ["UTC", "Europe/Berlin", "America/St_Johns", "Asia/Kathmandu", "Australia/Lord_Howe", "America/Santiago"]


class StoreAgainstModel(RuleBasedStateMachine):
    """Any order of writes, repeated, with reopening and compaction between, leaves what a dictionary would hold."""

    def __init__(self) -> None:
        super().__init__()
        self.folder = tempfile.TemporaryDirectory()
        self.settings = StoreSettings(commit_bytes=100, keep_versions_s=0.001)
        self.store = LanceStore.create(self.folder.name, EMBEDDING_DIM, self.settings)
        self.videos: dict[str, VideoRow] = {}
        self.segments: dict[str, set[int]] = {}

    @rule(video=st.sampled_from(VIDEOS), state=st.sampled_from([RUNNING, FAILED]))
    def upsert(self, video: VideoRow, state: str) -> None:
        row = replace(video, state=state)
        self.store.upsert_videos([row])
        self.videos[video.video_id] = row

    @rule(video=st.sampled_from(VIDEOS), index=st.integers(0, 1))
    def insert(self, video: VideoRow, index: int) -> None:
        known = self.segments.setdefault(video.video_id, set())
        assert self.store.insert_segment(make_segment(video, index, shape=TINY)) == (index not in known)
        known.add(index)

    @rule(video=st.sampled_from(VIDEOS), old=st.sets(st.sampled_from(VIDEOS), max_size=2))
    def publish(self, video: VideoRow, old: set[VideoRow]) -> None:
        ids = {other.video_id for other in old} - {video.video_id}
        self.store.publish_video(video, ids)
        for other in ids & self.videos.keys():
            if self.videos[other].superseded_by is None:
                self.videos[other] = replace(self.videos[other], superseded_by=video.video_id)
        self.videos[video.video_id] = video

    @rule(video=st.sampled_from(VIDEOS))
    def delete(self, video: VideoRow) -> None:
        report = self.store.delete_video(video.video_id)
        assert report.rows["segments"] == len(self.segments.pop(video.video_id, set()))
        assert report.rows["videos"] == (self.videos.pop(video.video_id, None) is not None)

    @rule()
    def reopen(self) -> None:
        self.store = LanceStore.open(self.folder.name, self.settings)

    @precondition(lambda self: self.segments)
    @rule()
    def compact(self) -> None:
        self.store.compact()

    @invariant()
    def holds_what_the_model_holds(self) -> None:
        assert {video.video_id: video for video in self.store.videos()} == self.videos
        visible = {video_id for video_id, video in self.videos.items() if video.is_visible}
        for scope in (Scope(), Scope(cameras=["o'yard"]), Scope(exclude_video_ids=[VIDEOS[0].video_id])):
            inside = {
                video_id
                for video_id in visible
                if (scope.cameras is None or self.videos[video_id].camera in scope.cameras)
                and video_id not in scope.exclude_video_ids
            }
            expected = [video_id for video_id in inside for _ in self.segments.get(video_id, ()) for _ in range(2)]
            hits = self.store.search_vectors(QUERY, scope, 100)
            assert sorted(hit.video_id for hit in hits) == sorted(expected)
        committed = {segment.segment_id for segment in self.store.segments_of()}
        assert len(committed) == sum(map(len, self.segments.values()))
        assert self.store.partial_segments() == []
        chunk_ids = self.store.chunks()["chunk_id"].to_pylist()
        assert len(chunk_ids) == len(committed)
        assert self.store.read_sparse(chunk_ids).keys() == set(chunk_ids)

    def teardown(self) -> None:
        self.folder.cleanup()


StoreAgainstModel.TestCase.settings = settings(max_examples=10, stateful_step_count=12, deadline=None)
TestStoreAgainstModel = StoreAgainstModel.TestCase


def clock_times() -> st.SearchStrategy[str]:
    return st.builds("{:02d}:{:02d}".format, st.integers(0, 23), st.integers(0, 59))


def reads_inside(at: datetime, first: str, last: str, zone: str) -> bool:
    clock = at.astimezone(ZoneInfo(zone)).time()
    start, end = time.fromisoformat(first), time.fromisoformat(last)
    return start <= clock < end if start < end else clock >= start or clock < end


@settings(max_examples=300, deadline=None)
@given(
    at=st.datetimes(datetime(2000, 1, 1), datetime(2035, 1, 1)),
    first=clock_times(),
    last=clock_times(),
    zone=st.sampled_from(ZONES),
)
def test_an_instant_is_inside_when_the_clock_on_the_wall_says_so(
    at: datetime, first: str, last: str, zone: str
) -> None:
    if first == last:
        return
    at = at.replace(tzinfo=UTC)
    window = ClockWindow.parse((first, last), zone)
    assert window.overlaps(at, at + timedelta(microseconds=1)) == reads_inside(at, first, last, zone)


@pytest.fixture(scope="module")
def year(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[LanceStore, dict[str, VideoRow]]]:
    """A store with one-second clips at whole minutes of two years, denser around the days clocks change."""
    rng = np.random.default_rng(0)
    start = datetime(2025, 1, 1, tzinfo=UTC)
    minutes = list(rng.integers(0, 2 * 365 * 1440, size=300))
    for change in (datetime(2026, 3, 29, 1, tzinfo=UTC), datetime(2026, 10, 25, 1, tzinfo=UTC)):
        minutes += list((change - start) // timedelta(minutes=1) + rng.integers(-240, 240, size=100))
    videos = [
        make_video(f"y{n}", start_time=start + timedelta(minutes=int(minute)), duration_s=8.0)
        for n, minute in enumerate(minutes)
    ]
    folder: Path = tmp_path_factory.mktemp("year")
    store = LanceStore.create(folder, EMBEDDING_DIM)
    store._merge("embeddings", pa.concat_tables([make_segment(video, shape=TINY).embeddings for video in videos]))
    store.upsert_videos(videos)
    yield store, {video.video_id: video for video in videos}


@settings(max_examples=25, deadline=None)
@given(
    first=clock_times(),
    last=clock_times(),
    zone=st.sampled_from(ZONES),
    bounds=st.lists(st.datetimes(datetime(2024, 12, 1), datetime(2027, 2, 1)), max_size=2, unique=True),
)
def test_rows_are_filtered_as_the_clock_on_the_wall_says(
    year: tuple[LanceStore, dict[str, VideoRow]], first: str, last: str, zone: str, bounds: list[datetime]
) -> None:
    store, videos = year
    if first == last:
        return
    after, before = [*sorted(bound.replace(tzinfo=UTC) for bound in bounds), None, None][:2]
    scope = Scope(after=after, before=before, time_range=(first, last), time_zone=zone)
    hits = store.search_vectors(QUERY, scope, 2000)
    expected = set()
    for video in videos.values():
        assert video.start_time is not None
        for offset_s in (0, 4):
            row = [video.start_time + timedelta(seconds=offset_s + tick) for tick in range(4)]
            bounded = (after is None or row[-1] + timedelta(seconds=1) > after) and (before is None or row[0] < before)
            if bounded and any(reads_inside(instant, first, last, zone) for instant in row):
                expected.add((video.video_id, float(offset_s)))
    assert {(hit.video_id, hit.start_s) for hit in hits} == expected
