"""Rendered archives: real files with wall-clock names, still stretches that cost little, labels that fit the files."""

from __future__ import annotations

import json
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest

from videoxl2.training.archive_footage import plan_archive, render_archive, render_file
from videoxl2.training.facts import from_dict
from videoxl2.training.footage import RenderedVideo
from videoxl2.training.queries import SearchQuery


def read(path: Path) -> list[dict[str, object]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


@pytest.fixture(scope="module")
def archive(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("archive")
    done: list[tuple[str, int, int]] = []
    result = render_archive(
        root,
        seed=5,
        hours=0.02,
        cameras=("corridor", "street"),
        file_minutes=0.3,
        events_per_minute=6.0,
        on_progress=lambda *call: done.append(call),
    )
    assert result.hours == pytest.approx(0.02, rel=0.02)
    assert [call[1:] for call in done] == [(1, 4), (2, 4), (3, 4), (4, 4)]
    assert all(isinstance(video, RenderedVideo) for video in result.videos)
    assert result.num_questions > 20 and result.num_queries > 5
    return root


def test_files_follow_each_other_by_the_clock(archive: Path) -> None:
    import av

    videos = read(archive / "labels" / "labels.jsonl")
    keys = [str(video["key"]) for video in videos]
    assert sorted(str(path.relative_to(archive)) for path in archive.rglob("*.mp4")) == sorted(keys)
    assert len({key.split("/")[0] for key in keys}) == 2
    for video in videos:
        with av.open(str(archive / str(video["key"]))) as container:
            stream = container.streams.video[0]
            assert stream.codec.name == "h264"
            assert (stream.width, stream.height) == (video["width"], video["height"])
            assert stream.frames == video["num_frames"]
            assert float(stream.average_rate or Fraction(0)) == pytest.approx(float(str(video["fps"])))
    corridor = [key for key in keys if key.startswith("corridor")]
    assert int(corridor[1].split("/")[2][:6]) - int(corridor[0].split("/")[2][:6]) in (18, 58, 4058, 7658, -235942)


def test_labels_questions_and_queries_fit_the_files(archive: Path) -> None:
    folder = archive / "labels"
    facts = {str(row.pop("video")): from_dict(row) for row in read(folder / "facts.jsonl")}
    lengths = {str(video["key"]): float(str(video["duration_s"])) for video in read(folder / "labels.jsonl")}
    assert set(facts) == set(lengths)
    questions = read(folder / "questions.jsonl")
    for row in questions:
        assert row["video"] in facts
        interval = row["interval"]
        if isinstance(interval, list):
            assert 0 <= interval[0] < interval[1] <= lengths[str(row["video"])]
    for row in read(folder / "queries.jsonl"):
        query = SearchQuery(**row)  # type: ignore[arg-type]
        assert query.intervals
        for key, low, high in query.intervals:
            assert 0 <= low < high <= lengths[key]
    for row in read(folder / "anomalies.jsonl"):
        assert any(e.kind == row["kind"] and e.start_s == row["start_s"] for e in facts[str(row["video"])].anomalies)


def test_pixel_facts_agree_with_frame_labels(archive: Path) -> None:
    """Facts (two looks a second) and labels (every frame) say the same of when an object is seen."""
    facts = {str(row.pop("video")): from_dict(row) for row in read(archive / "labels" / "facts.jsonl")}
    compared = 0
    for video in read(archive / "labels" / "labels.jsonl"):
        objects = video["objects"]
        assert isinstance(objects, list)
        spans = {item["object_id"]: item["visible"] for item in objects}
        for item in facts[str(video["key"])].objects:
            assert abs(item.visible[0][0] - spans[item.object_id][0][0]) <= 0.75
            assert abs(item.visible[-1][1] - spans[item.object_id][-1][1]) <= 0.75
            compared += 1
    assert compared > 5


def test_nothing_changes_but_the_clock_while_nothing_moves(tmp_path: Path) -> None:
    """The cheap still frames show what full rendering would, inside and at the edges of stillness."""
    import av

    from videoxl2.training.render import Renderer

    scene = plan_archive(8, 0.006, ["parking"], file_minutes=1.0, events_per_minute=4.0)[0]
    video, _ = render_file(tmp_path, scene)
    renderer = Renderer(scene)
    with av.open(str(tmp_path / video.key)) as container:
        frames = [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]
    assert len(frames) == scene.num_frames
    for index in range(0, scene.num_frames, 17):
        expected = renderer.frame(index).rgb_HW3.astype(int)
        difference = np.abs(frames[index].astype(int) - expected)
        assert difference.mean() < 9, index
        assert np.percentile(difference, 99.5) < 90, index


def test_the_plan_is_seeded_and_checked() -> None:
    first, again, other = (plan_archive(seed, 0.5) for seed in (1, 1, 2))
    assert (
        [(s.start, s.seed) for s in first] == [(s.start, s.seed) for s in again] != [(s.start, s.seed) for s in other]
    )
    assert sum(scene.duration_s for scene in first) == pytest.approx(1800)
    assert all(scene.place is not None and "-test-" in scene.place.layout_id for scene in first)
    with pytest.raises(ValueError, match="positive number of hours"):
        plan_archive(1, 0.0)
