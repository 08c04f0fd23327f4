"""Everything that is wrong with a data set is known before the first question: missing videos, ids, times."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from jobs.evaluation.benchmarks.charades import CHARADES_STA
from jobs.evaluation.benchmarks.loading import InvalidItems, MissingVideos, load
from jobs.evaluation.benchmarks.longvideobench import LONG_VIDEO_BENCH
from jobs.evaluation.benchmarks.lvbench import LVBENCH
from jobs.evaluation.benchmarks.mlvu import MLVU
from jobs.evaluation.benchmarks.places import find_video
from jobs.evaluation.benchmarks.rows import AnnotationError
from jobs.evaluation.benchmarks.videomme import VIDEO_MME
from tests.unit.jobs.evaluation.benchmarks.samples import longvideobench_row, lvbench_qa, mlvu_row, videomme_row

Put = Callable[..., Path]


def test_missing_videos_are_listed_or_left_out(put: Put, tmp_path: Path) -> None:
    rows = [mlvu_row(), mlvu_row(video="gone.mp4"), mlvu_row(video="gone.mp4"), mlvu_row(video="lost.mp4")]
    put("json/2_needle.json", rows)
    put("video/2_needle/needle_1.mp4")
    with pytest.raises(MissingVideos, match="2 videos of 3 questions") as caught:
        load(MLVU, tmp_path)
    assert caught.value.missing == ("video/2_needle/gone.mp4", "video/2_needle/lost.mp4")
    assert caught.value.exit_code == 2
    loaded = load(MLVU, tmp_path, skip_missing=True)
    assert [item.item_id for item in loaded.items] == ["needle-1"]
    assert (loaded.missing, loaded.num_missing_items) == (caught.value.missing, 3)


@pytest.mark.parametrize(
    ("line", "is_beyond"),
    [("clip 0.5 2.9##x", False), ("clip 0.5 3.4##x", False), ("clip 0.5 3.6##x", True), ("clip 4.0 5.0##x", True)],
)
def test_times_beyond_the_end_are_refused(put: Put, tmp_path: Path, line: str, is_beyond: bool) -> None:
    """The video lasts three seconds; half a second is forgiven."""
    put("charades_sta_test.txt", line)
    put("videos/clip.mp4")
    if not is_beyond:
        assert len(load(CHARADES_STA, tmp_path).items) == 1
        return
    with pytest.raises(InvalidItems, match=r"line 1: .* is beyond the end of 'clip.mp4', which lasts 3\.00 s"):
        load(CHARADES_STA, tmp_path)
    with pytest.raises(AnnotationError, match="nothing of Charades-STA is left"):
        load(CHARADES_STA, tmp_path, skip_invalid=True)


def test_a_time_reference_beyond_the_end_is_refused(put: Put, tmp_path: Path) -> None:
    line = {"key": "clip", "qa": [lvbench_qa(), lvbench_qa(uid="8", time_reference="00:01-00:09")]}
    put("video_info.meta.jsonl", json.dumps(line))
    put("videos/clip.mp4")
    with pytest.raises(InvalidItems, match=r"1 rows cannot be used: .*line 1, qa 2: 1 to 9 s is beyond the end"):
        load(LVBENCH, tmp_path)
    loaded = load(LVBENCH, tmp_path, skip_invalid=True)
    assert [item.item_id for item in loaded.items] == ["7"] and len(loaded.invalid) == 1


def test_a_video_shorter_than_annotated_is_refused(put: Put, tmp_path: Path) -> None:
    put("lvb_val.json", [longvideobench_row(duration=3.4)])
    put("videos/v1.mp4")
    assert load(LONG_VIDEO_BENCH, tmp_path).items
    put("lvb_val.json", [longvideobench_row(duration=12.0, duration_group=15)])
    with pytest.raises(InvalidItems, match=r"'v1.mp4' should last 12 s and lasts 3\.00 s"):
        load(LONG_VIDEO_BENCH, tmp_path)


@pytest.mark.parametrize("name", ["data/clip.mp4", "data/clip.MP4", "videos/clip.mkv", "clip.webm"])
@pytest.mark.parametrize("asked", ["clip", "clip.mp4"])
def test_a_video_is_found_in_every_published_place(tmp_path: Path, name: str, asked: str) -> None:
    (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
    (tmp_path / name).touch()
    assert find_video(tmp_path, asked, ("data", "videos", ".")) == tmp_path / name
    assert find_video(tmp_path, "clip.2", ("data", "videos")) == tmp_path / "data" / "clip.2.mp4"


def test_ids_that_come_twice_are_refused(put: Put, tmp_path: Path) -> None:
    put("videomme.json", [videomme_row(), videomme_row(question="Another?")])
    put("data/abcDEF12_-x.mp4")
    with pytest.raises(InvalidItems, match=r"item 2: the id '001-1' was used before, in videomme.json, item 1"):
        load(VIDEO_MME, tmp_path)


def test_a_video_that_cannot_be_read_is_refused(put: Put, tmp_path: Path) -> None:
    put("videomme.json", [videomme_row()])
    put("data/abcDEF12_-x.mp4", "no video")
    with pytest.raises(InvalidItems, match="not a video file"):
        load(VIDEO_MME, tmp_path)


def test_the_limit_counts_items_that_can_be_asked_and_looks_no_further(put: Put, tmp_path: Path) -> None:
    rows = [mlvu_row(video="gone.mp4"), mlvu_row(), mlvu_row(), mlvu_row(video="lost.mp4")]
    put("2_needle.json", rows)
    put("video/needle_1.mp4")
    loaded = load(MLVU, tmp_path, limit=2, skip_missing=True)
    assert [item.item_id for item in loaded.items] == ["needle-2", "needle-3"]
    assert len(loaded.missing) == 1
    put("2_needle.json", [*rows, mlvu_row(answer="nothing")])
    with pytest.raises(InvalidItems, match="item 5"):
        load(MLVU, tmp_path, limit=2, skip_missing=True)
