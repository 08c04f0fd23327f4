"""Sources: S3 and folders, new versions of an object, equal base names, and names that strangers chose."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import boto3
import pytest

from tests.clips import RECIPES, make
from tests.vxl import call

HOSTILE_KEYS = [
    "plain/with space.mp4",
    'quotes/it\'s "quoted" OR 1=1 --.mp4',
    "unicode/Überwachung 日本 🎥.mp4",
    "dots/../../../../etc/escape.mp4",
    "percent/100%25 %2e%2e%2f.mp4",
    "same/name.mp4",
    "other/name.mp4",
]


@pytest.fixture
def bucket(s3_endpoint: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """An empty bucket, and the environment that reaches it."""
    for name, value in {
        "AWS_ACCESS_KEY_ID": "test",
        "AWS_SECRET_ACCESS_KEY": "test",
        "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_ENDPOINT_URL": s3_endpoint,
    }.items():
        monkeypatch.setenv(name, value)
    resource = boto3.resource("s3")
    made = resource.create_bucket(Bucket="footage-under-test")
    yield made
    made.objects.all().delete()
    made.delete()


def inside(folder: Path) -> set[Path]:
    return {path for path in folder.rglob("*") if path.is_file()}


@pytest.mark.s3
def test_keys_from_strangers(bucket: Any, clip: Path, tmp_path: Path) -> None:
    for key in HOSTILE_KEYS:
        bucket.upload_file(str(clip), f"in/{key}")
    archive = tmp_path / "deep" / "archive"
    outside = inside(tmp_path)

    done = call("ingest", "s3://footage-under-test/in", "--archive", archive, "--json", "--key-pattern", "{camera}/{*}")

    assert done.code == 0, done.err
    uris = {video["uri"] for video in done.json["videos"]}
    assert uris == {f"s3://footage-under-test/in/{key}" for key in HOSTILE_KEYS}
    assert len({video["video_id"] for video in done.json["videos"]}) == len(HOSTILE_KEYS)
    assert {path for path in inside(tmp_path) if archive not in path.parents} == outside
    for uri in uris:
        answer = call("ask", "x", "--archive", archive, "--json", "--video", uri, "--max-new-tokens", "1").json
        assert {citation["uri"] for citation in answer["citations"]} == {uri}
    assert call("ingest", "s3://footage-under-test/in", "--archive", archive).out.startswith("nothing to do")


@pytest.mark.s3
def test_cameras_from_strangers(bucket: Any, clip: Path, tmp_path: Path) -> None:
    cameras = ["it's", 'say "hi"', "ein Ümlaut", "100%", "a,b", "x' OR '1'='1"]
    for camera in cameras:
        bucket.upload_file(str(clip), f"{camera}/1.mp4")
    archive = tmp_path / "archive"
    assert call("ingest", "s3://footage-under-test", "--archive", archive, "--key-pattern", "{camera}/*.mp4").code == 0
    for camera in cameras:
        moments = call("search", "x", "--archive", archive, "--json", "--camera", camera).json["moments"]
        assert {moment["camera"] for moment in moments} == {camera}


def test_file_names_from_strangers(tmp_path: Path, clip: Path) -> None:
    """Names that no S3 test server routes, a line break among them, on a local disk."""
    names = ["first\nsecond.mp4", 'it\'s "it".mp4', "100%25.mp4", "..hidden...mp4", "日本 🎥.mp4", "$(reboot);`x`.mp4"]
    (tmp_path / "in").mkdir()
    for name in names:
        shutil.copy(clip, tmp_path / "in" / name)
    archive = tmp_path / "archive"
    assert call("ingest", tmp_path / "in", "--archive", archive, "--json").json["counts"]["indexed"] == len(names)
    for name in names:
        path = tmp_path / "in" / name
        answer = call("ask", "x", "--archive", archive, "--json", "--video", path, "--max-new-tokens", "1").json
        assert {citation["uri"] for citation in answer["citations"]} == {f"file://{path}"}
    assert "\n".join(names[:1]) not in call("videos", "--archive", archive).out


@pytest.mark.s3
def test_a_new_version_supersedes_the_old_one(bucket: Any, clip: Path, tmp_path: Path) -> None:
    other = make(RECIPES["faststart.mp4"], tmp_path).path
    archive = tmp_path / "archive"
    source = ("ingest", "s3://footage-under-test", "--archive", archive, "--json")
    bucket.upload_file(str(clip), "a.mp4")
    (first,) = call(*source).json["videos"]
    bucket.upload_file(str(other), "a.mp4")
    (second,) = call(*source).json["videos"]

    assert first["uri"] == second["uri"]
    assert first["video_id"] != second["video_id"]
    rows = call("videos", "--archive", archive, "--json").json["videos"]
    assert [(row["video_id"], row["superseded_by"]) for row in rows] == [
        (second["video_id"], None),
        (first["video_id"], second["video_id"]),
    ]
    for command, key in ((["search", "x"], "moments"), (["ask", "x", "--max-new-tokens", "1"], "citations")):
        found = call(*command, "--archive", archive, "--json").json[key]
        assert {item["video_id"] for item in found} == {second["video_id"]}

    bucket.upload_file(str(clip), "a.mp4")  # the first version comes back: it is here already
    report = call(*source).json
    assert report["counts"] == {"indexed": 1, "failed": 0, "skipped": 0, "quarantined": 0}
    found = call("search", "x", "--archive", archive, "--json").json["moments"]
    assert {item["video_id"] for item in found} == {first["video_id"]}


@pytest.mark.s3
def test_s3_and_folder_give_the_same_rows(bucket: Any, cameras: Path, indexed: Path, tmp_path: Path) -> None:
    for path in sorted(cameras.rglob("*.mp4")):
        bucket.upload_file(str(path), path.relative_to(cameras).as_posix())
    archive = tmp_path / "archive"
    options = ("--segment-s", "10", "--key-pattern", "{camera}/%Y-%m-%d/%H%M%S.mp4", "--time-zone", "Europe/Berlin")
    assert call("ingest", "s3://footage-under-test", "--archive", archive, *options).code == 0
    ours, theirs = (
        [
            {name: row[name] for name in ("key", "camera", "start_time", "duration_s", "chunks", "kv_bytes", "backend")}
            for row in call("videos", "--archive", folder, "--json").json["videos"]
        ]
        for folder in (archive, indexed)
    )
    assert ours == theirs


@pytest.mark.s3
def test_buckets_that_cannot_be_read(bucket: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(source: str) -> str:
        done = call("ingest", source, "--archive", tmp_path / "archive")
        assert done.code == 2
        assert not (tmp_path / "archive").exists()
        return done.error_line

    assert "no-such-bucket" in refused("s3://no-such-bucket/x")
    with monkeypatch.context() as patch:
        patch.delenv("AWS_ACCESS_KEY_ID")
        patch.delenv("AWS_SECRET_ACCESS_KEY")
        assert "credentials" in refused("s3://footage-under-test").lower()
    with monkeypatch.context() as patch:
        patch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
        assert "127.0.0.1:9" in refused("s3://footage-under-test")


def test_two_files_with_one_base_name_are_two_videos(tmp_path: Path, clip: Path) -> None:
    for folder in ("a", "b"):
        (tmp_path / "in" / folder).mkdir(parents=True)
        shutil.copy(clip, tmp_path / "in" / folder / "same.mp4")
    report = call("ingest", tmp_path / "in", "--archive", tmp_path / "archive", "--json").json
    assert report["counts"]["indexed"] == 2
    assert len({video["video_id"] for video in report["videos"]}) == 2


def test_unknown_start_is_said_and_not_invented(tmp_path: Path, clip: Path) -> None:
    archive = tmp_path / "archive"
    assert call("ingest", clip, "--archive", archive).code == 0
    (row,) = call("videos", "--archive", archive, "--json").json["videos"]
    assert (row["start_time"], row["start_time_source"]) == (None, "unknown")
    assert "start unknown" in call("search", "x", "--archive", archive).out
    done = call("search", "x", "--archive", archive, "--json", "--after", "2020-01-01T00:00Z")
    assert done.code == 5
    assert "start is unknown" in done.json["coverage"]["not_indexed"][0]["reason"]


def test_a_key_pattern_that_fits_nothing_is_refused(tmp_path: Path, cameras: Path) -> None:
    archive = tmp_path / "archive"
    done = call("ingest", cameras, "--archive", archive, "--key-pattern", "{camera}_%Y%m%d%H.mp4", "--time-zone", "UTC")
    assert done.code == 2
    assert "fits none of 4 keys" in done.error_line
    assert not archive.exists()


def test_keys_that_do_not_fit_are_said(tmp_path: Path, cameras: Path, clip: Path) -> None:
    footage = tmp_path / "footage"
    shutil.copytree(cameras, footage)
    shutil.copy(clip, footage / "stray.mp4")
    pattern = ("--key-pattern", "{camera}/%Y-%m-%d/%H%M%S.mp4", "--time-zone", "UTC")
    done = call("ingest", footage, "--archive", tmp_path / "archive", *pattern, "--dry-run")
    assert "camera gate, start 2026-03-01T08:00:00+00:00" in done.out
    assert "1 of 5 keys do not fit the key pattern, for example 'stray.mp4'" in done.out


def test_a_file_name_that_is_no_text_is_indexed(tmp_path: Path, clip: Path) -> None:
    (tmp_path / "in").mkdir()
    name = os.fsencode(tmp_path / "in") + b"/\xff\xfe old camera.mp4"
    Path(os.fsdecode(name)).write_bytes(clip.read_bytes())
    report = call("ingest", tmp_path / "in", "--archive", tmp_path / "archive", "--json").json
    (video,) = report["videos"]
    assert video["state"] == "indexed"
    assert video["uri"].endswith("/\\xff\\xfe old camera.mp4")
    done = call(
        "ask", "x", "--archive", tmp_path / "archive", "--json", "--reuse", "recompute", "--max-new-tokens", "1"
    )
    assert done.json["timings"]["recompute_s"] > 0


def test_segments_that_the_model_cannot_hold_are_refused_before_work(tmp_path: Path, clip: Path) -> None:
    done = call("ingest", clip, "--archive", tmp_path / "archive", "--fps", "50")
    assert done.code == 2
    assert "--segment-s" in done.error_line
    assert not (tmp_path / "archive").exists()
