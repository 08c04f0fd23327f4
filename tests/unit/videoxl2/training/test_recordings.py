"""Recorded clips: a file gives back what was recorded, and a seed always records the same."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from videoxl2.training.errors import TrainingError
from videoxl2.training.recordings import CLIP_S, Recording, finished_files, record, record_many, recording_path
from videoxl2.training.samples import actor_labels

IMAGE_SIZE, GRID = 96, 6


def assert_same(a: Recording, b: Recording) -> None:
    assert (a.seed, a.split, a.image_size, a.jpegs) == (b.seed, b.split, b.image_size, b.jpegs)
    np.testing.assert_array_equal(a.owners_FYX, b.owners_FYX)
    np.testing.assert_array_equal(a.actors_F5A, b.actors_F5A)
    np.testing.assert_array_equal(a.watch.times_F, b.watch.times_F)
    for name in ("area_FA", "x_FA", "bottom_FA"):
        np.testing.assert_allclose(getattr(a.watch, name), getattr(b.watch, name), rtol=1e-6)


def test_a_file_gives_back_what_was_recorded_and_a_seed_records_the_same(clips: Path, tmp_path: Path) -> None:
    made = record(1, "train", IMAGE_SIZE, GRID)
    made.save(tmp_path / "again.npz")
    assert_same(Recording.load(tmp_path / "again.npz"), made)
    assert_same(Recording.load(recording_path(clips, "train", 1)), made)  # recorded by another call
    assert [path.name for path in tmp_path.iterdir()] == ["again.npz"]
    other = Recording.load(recording_path(clips, "train", 2))
    assert other.jpegs != made.jpegs


def test_what_a_recording_holds_fits_together(clips: Path) -> None:
    recordings = [Recording.load(path) for path in finished_files(clips / "train", ".npz")]
    assert [item.seed for item in recordings] == [0, 1, 2]
    for item in recordings:
        scene = item.scene()
        F, A = item.num_frames, len(scene.actors)
        assert F == CLIP_S - 1
        assert item.frames(3, 7).shape == (4, IMAGE_SIZE, IMAGE_SIZE, 3)
        assert item.owners_FYX.shape == (F, GRID, GRID) and item.owners_FYX.max() <= A
        assert item.actors_F5A.shape == (F, 5, A + 1) and not item.actors_F5A[:, :, 0].any()
        np.testing.assert_array_equal(item.actors_F5A[9], actor_labels(scene, float(item.watch.times_F[9])))
        # Who owns a cell has pixels in that frame.
        frames, rows, columns = np.nonzero(item.owners_FYX)
        assert (item.watch.area_FA[frames, item.owners_FYX[frames, rows, columns] - 1] > 0).all()
    assert any(item.owners_FYX.any() for item in recordings)


def test_a_clip_of_another_version_is_refused(clips: Path) -> None:
    """Its scene is not the one that its pictures show."""
    path = sorted((clips / "train").glob("*.npz"))[0]
    clip = Recording.load(path)
    other = clip.actors_F5A.copy()
    other[:, 1, -1] = 1 + other[:, 1, -1] % 11
    with pytest.raises(TrainingError, match=f"clip {clip.seed} .*another version.*record them again"):
        replace(clip, actors_F5A=other).scene()


def test_facts_of_a_stretch_are_in_its_clock(clips: Path) -> None:
    item = Recording.load(recording_path(clips, "train", 0))
    scene = item.scene()
    whole = item.facts(scene, 0, item.num_frames)
    part = item.facts(scene, 20, 40, offset_s=100.0)
    assert (whole.start_s, whole.end_s) == (0.0, float(item.num_frames))
    assert (part.start_s, part.end_s) == (100.0, 120.0)
    for seen in part.objects:
        assert all(100.0 <= start < end <= 120.0 for start, end in seen.visible)
        before = whole.object(seen.object_id).visible
        assert any(start < end - 80.0 for start, _ in seen.visible for _, end in before if end > 20.0) or before


def test_only_missing_clips_are_recorded(clips: Path, tmp_path: Path) -> None:
    path = recording_path(clips, "train", 1)
    (path.parent / "00000009.partial.npz").write_bytes(b"cut short")
    written = path.stat().st_mtime_ns
    seen: list[int] = []
    sizes = {"image_size": IMAGE_SIZE, "grid": GRID}
    assert record_many(clips, "train", range(3), **sizes, on_progress=seen.append) == 0
    assert path.stat().st_mtime_ns == written and seen == []
    assert len(finished_files(clips / "train", ".npz")) == 3
    (path.parent / "00000009.partial.npz").unlink()


def test_a_clip_of_another_length_knows_its_scene(tmp_path: Path) -> None:
    """Pictures are small, since only their number matters."""
    assert record_many(tmp_path, "train", range(1), image_size=48, grid=GRID, seconds=90) == 1
    made = Recording.load(recording_path(tmp_path, "train", 0))
    scene = made.scene()
    assert made.num_frames == 89 and scene.duration_s == 90.0
    assert made.actors_F5A.shape[2] == len(scene.actors) + 1
    np.testing.assert_array_equal(made.actors_F5A[70], actor_labels(scene, float(made.watch.times_F[70])))


def test_more_happens_in_a_clip_where_more_is_asked_for(tmp_path: Path) -> None:
    calm, lively = tmp_path / "calm", tmp_path / "lively"
    for folder, rate in ((calm, 1.0), (lively, 30.0)):
        made = record_many(folder, "train", range(2), image_size=48, grid=GRID, seconds=40, events_per_minute=rate)
        assert made == 2

    def actions(folder: Path) -> int:
        clips = [Recording.load(path) for path in finished_files(folder / "train", ".npz")]
        for clip in clips:
            assert clip.actors_F5A.shape[2] == len(clip.scene().actors) + 1, "the scene is the one that was recorded"
        return sum(len(clip.scene().actions) for clip in clips)

    assert actions(lively) > 3 * max(1, actions(calm))
    assert Recording.load(recording_path(lively, "train", 0)).events_per_minute == 30.0
    assert record(0, "train", 48, GRID, 40).events_per_minute is None
