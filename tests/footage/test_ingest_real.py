"""The real clips through the command line: every one is indexed, with the times that the manifest says."""

from __future__ import annotations

import io
import json
from pathlib import Path

import pytest
from PIL import Image

from pipeline import Archive
from tests.vxl import call, spawn

pytestmark = pytest.mark.footage


@pytest.fixture(scope="module")
def archive(tmp_path_factory: pytest.TempPathFactory, footage_folder: Path) -> Path:
    archive = tmp_path_factory.mktemp("archives") / "real"
    done = spawn("ingest", footage_folder, "--archive", archive, "--json")
    assert done.code == 0, done.err
    assert done.json["counts"]["indexed"] == len(manifest(footage_folder))
    return archive


def manifest(folder: Path) -> dict[str, dict[str, object]]:
    lines = (folder / "manifest.jsonl").read_text().splitlines()
    return {entry["file"]: entry for entry in map(json.loads, lines)}


def test_durations_agree_with_the_manifest(archive: Path, footage_folder: Path) -> None:
    known = manifest(footage_folder)
    for row in call("videos", "--archive", archive, "--json").json["videos"]:
        clip = known[Path(row["uri"]).name]
        frame_s = 1 / float(clip["fps"])  # type: ignore[arg-type]
        assert abs(row["duration_s"] - float(clip["picture_span_s"])) <= max(frame_s, 0.1), row["uri"]  # type: ignore[arg-type]
        assert row["damage"] is None
        assert row["start_time_source"] in ("container", "unknown")


def test_moments_and_thumbnails_of_every_clip(archive: Path, footage_folder: Path) -> None:
    known = manifest(footage_folder)
    opened = Archive(archive)
    for name, clip in known.items():
        (moment, *_) = opened.search("anything").where(video=str(footage_folder / name)).limit(1)
        thumbnail = moment.thumbnail()
        assert thumbnail is not None
        width, height = Image.open(io.BytesIO(thumbnail)).size
        aspect = float(clip["display_width"]) / float(clip["display_height"])  # type: ignore[arg-type]
        assert abs(width / height - aspect) < 0.05 * aspect, name


def test_clip_and_frames_of_a_moment(archive: Path, footage_folder: Path, tmp_path: Path) -> None:
    opened = Archive(archive)
    path = footage_folder / "juggle_portrait_rot90.mov"
    (moment, *_) = opened.search("a man with a ball").where(video=str(path)).limit(1)
    frames = moment.frames(fps=2)
    assert all(frame.shape == (720, 404, 3) for frame in frames)
    assert abs(len(frames) - 2 * (moment.end_s - moment.start_s)) <= 1
    written = moment.clip(tmp_path / "clip.mp4", pad_s=1.0)
    done = call("ingest", written, "--archive", tmp_path / "archive", "--json")
    (video,) = done.json["videos"]
    expected_s = min(moment.end_s + 1, 10.292) - max(moment.start_s - 1, 0)
    assert abs(video["duration_s"] - expected_s) < 0.2
