"""A disk that is really full: the segment at hand stops with an error that says so, the rest can be asked."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.clips import Recipe, make
from tests.faults.conftest import SmallDisk


@pytest.fixture(scope="module")
def footage(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two videos, the second four times as long."""
    folder = tmp_path_factory.mktemp("footage")
    for name, num_frames in (("a.mp4", 50), ("b.mp4", 200)):
        options = {"preset": "veryfast", "crf": "28", "g": "10"}
        make(Recipe(name, num_frames=num_frames, fps=5, options=options), folder)
    return folder


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_wherever_the_disk_fills_up(small_disk: SmallDisk, tmp_path: Path) -> None:
    """From no room at all, through KV file, staged rows and each table, to room for all but the last of it."""
    points = [str(kilobytes * 1000) for kilobytes in (0, 20, 200, 450, 800, 1200, 1500, 1900, 60000)]
    module = ("-m", "tests.faults.full_disk")
    done = small_disk.run(sys.executable, *module, small_disk.folder, tmp_path / "undisturbed", *points)
    assert done.code == 0, done.err
    told = dict(line.split(" ", 1) for line in done.out.splitlines())
    assert list(told) == points
    assert told["60000000"] == "it fitted"
    assert sum("the disk is full" in text for text in told.values()) == len(points) - 1, done.out


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_what_an_operator_sees(small_disk: SmallDisk, footage: Path) -> None:
    archive = small_disk.folder / "archive"
    ingest = ("ingest", footage, "--archive", archive, "--segment-s", "10", "--json")
    first = small_disk.vxl("ingest", footage / "a.mp4", "--archive", archive, "--segment-s", "10", "--json")
    assert first.code == 0, first.err
    small_disk.fill(1_300_000)
    full = small_disk.vxl(*ingest)
    assert full.code == 1
    assert "the disk is full" in full.error_line and "MB are needed" in full.error_line
    assert str(archive) in full.error_line and "vxl kv evict" in full.error_line
    answer = small_disk.vxl("ask", "What happens?", "--archive", archive, "--json", "--reuse", "reload")
    assert answer.code == 0, answer.err
    assert {Path(cited["uri"]).name for cited in answer.json["citations"]} == {"a.mp4"}
    waiting = {Path(gap["uri"]).name for gap in answer.json["coverage"]["not_indexed"]}
    assert waiting == {"b.mp4"}
    found = small_disk.vxl("search", "a person", "--archive", archive, "--json")
    assert found.code == 0 and {Path(moment["uri"]).name for moment in found.json["moments"]} == {"a.mp4"}
    # Room can be made on the full disk itself: one segment waits to be committed, that of a.mp4 has to go.
    cap = str(first.json["kv_bytes"] + 50_000)
    evicted = small_disk.vxl("kv", "evict", "--archive", archive, "--max-bytes", cap, "--json")
    assert evicted.code == 0, evicted.err
    assert [Path(step["uri"]).name for step in evicted.json["demoted"]] == ["a.mp4"]
    small_disk.make_room()
    again = small_disk.vxl(*ingest)
    assert again.code == 0, again.err
    assert again.json["counts"]["indexed"] == 1
    doctor = small_disk.vxl("doctor", "--archive", archive, "--json")
    assert any("nothing is left over" in check["detail"] for check in doctor.json["checks"]), doctor.out


@pytest.mark.s3
@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_temporary_folder_without_room_costs_the_video_that_does_not_fit(
    small_disk: SmallDisk, footage: Path, tmp_path: Path, s3_endpoint: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in {
        "AWS_ACCESS_KEY_ID": "x",
        "AWS_SECRET_ACCESS_KEY": "x",
        "AWS_ENDPOINT_URL": s3_endpoint,
    }.items():
        monkeypatch.setenv(name, value)
    import boto3

    client: Any = boto3.client("s3", region_name="us-east-1")
    client.create_bucket(Bucket="full-disk")
    for path in footage.glob("*.mp4"):
        client.upload_file(str(path), "full-disk", path.name)
    sizes = {path.name: path.stat().st_size for path in footage.glob("*.mp4")}
    free = (sizes["a.mp4"] // 4096 + 3) * 4096  # whole pages: a.mp4, and what the decoder has to say
    assert sizes["b.mp4"] > free
    archive = tmp_path / "archive"
    ingest = ("ingest", "s3://full-disk", "--archive", archive, "--segment-s", "10", "--json")
    scratch = {"TMPDIR": str(small_disk.folder)}
    small_disk.fill(free)
    done = small_disk.vxl(*ingest, env=scratch)
    assert done.code == 3, done.err
    videos = {Path(video["uri"]).name: video for video in done.json["videos"]}
    assert videos["a.mp4"]["state"] == "indexed"
    error = videos["b.mp4"]["error"]
    assert error["type"] == "ScratchFull"
    assert str(small_disk.folder) in error["message"] and "TMPDIR" in error["message"]
    assert "vxl-fetch-" not in small_disk.run("ls", small_disk.folder).out
    small_disk.make_room()
    again = small_disk.vxl(*ingest, env=scratch)
    assert again.code == 0, again.err
    assert again.json["counts"]["indexed"] == 1
    shutil.rmtree(archive)
