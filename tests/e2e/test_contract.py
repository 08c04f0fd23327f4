"""The JSON contract and the exit codes, command by command, through the command line."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.e2e.conftest import KEY_PATTERN
from tests.vxl import call, spawn

INTERVAL = {"video_id", "uri", "camera", "start_s", "end_s", "start_time", "end_time"}
COVERAGE = {"videos", "hours", "not_indexed"}


def test_ingest_reports_every_video(indexed: Path, cameras: Path) -> None:
    done = call("ingest", cameras, "--archive", indexed, "--json", "--key-pattern", KEY_PATTERN, "--time-zone", "UTC")
    report = done.json
    assert done.code == 0
    assert report.keys() >= {"videos", "counts", "wall_s", "video_s", "kv_bytes", "sparse_bytes"}
    assert report["counts"] == {"indexed": 0, "failed": 0, "skipped": 4, "quarantined": 0}
    keys = {"uri", "video_id", "camera", "state", "segments", "chunks", "duration_s", "error"}
    for video in report["videos"]:
        assert video.keys() >= keys
        assert (video["state"], video["error"]) == ("indexed", None)
    assert sorted(video["segments"] for video in report["videos"]) == [1, 1, 4, 4]


def test_a_second_ingest_says_that_there_is_nothing_to_do(indexed: Path, cameras: Path) -> None:
    done = call("ingest", cameras, "--archive", indexed)
    assert done.code == 0
    assert "nothing to do" in done.out


def test_dry_run_writes_nothing(cameras: Path, tmp_path: Path) -> None:
    archive = tmp_path / "archive"
    report = call("ingest", cameras, "--archive", archive, "--dry-run", "--json").json
    assert {video["state"] for video in report["videos"]} == {"discovered"}
    assert not archive.exists()


def test_search(indexed: Path) -> None:
    done = spawn("search", "a red car", "--archive", indexed, "--json", "--limit", "5")
    assert done.code == 0, done.err
    result = done.json
    assert result.keys() >= {"query", "moments", "coverage"}
    assert result["query"] == "a red car"
    assert [moment["rank"] for moment in result["moments"]] == [1, 2, 3, 4, 5]
    assert [m["score"] for m in result["moments"]] == sorted((m["score"] for m in result["moments"]), reverse=True)
    for moment in result["moments"]:
        assert moment.keys() >= INTERVAL | {"rank", "score"}
        assert moment["start_s"] < moment["end_s"]
        assert moment["start_time"].endswith("+00:00")
    assert result["coverage"].keys() >= COVERAGE
    assert result["coverage"]["videos"] == 4
    assert "trained on rendered footage only" in " ".join(result["notices"])


def test_search_is_the_same_in_every_process(indexed: Path) -> None:
    first, second = (call("search", "somebody", "--archive", indexed, "--json").json for _ in range(2))
    assert first == second == spawn("search", "somebody", "--archive", indexed, "--json").json


def test_ask(indexed: Path) -> None:
    done = call("ask", "What happens?", "--archive", indexed, "--json", "--max-new-tokens", "8")
    assert done.code == 0, done.err
    answer = done.json
    assert answer.keys() >= {"question", "answer", "abstained", "citations", "timings", "context", "coverage"}
    assert answer["abstained"] is False
    assert answer["citations"]
    for citation in answer["citations"]:
        assert citation.keys() >= INTERVAL | {"level"}
        assert citation["level"] in ("dense", "sparse")
    phases = {"retrieve_s", "load_s", "recompute_s", "prefill_s", "first_token_s", "decode_s"}
    assert answer["timings"].keys() == phases
    assert answer["context"].keys() == {"dense_chunks", "sparse_chunks", "tokens", "kv_bytes_read"}
    assert answer["context"]["kv_bytes_read"] > 0
    assert answer["timings"]["recompute_s"] == 0


def test_anomalies(indexed: Path, tmp_path: Path) -> None:
    page = tmp_path / "events.html"
    done = call("anomalies", "--archive", indexed, "--json", "--html", page)
    assert done.code == 0, done.err
    result = done.json
    assert result.keys() >= {"events", "threshold", "coverage"}
    for event in result["events"]:
        assert event.keys() >= INTERVAL | {"event_id", "score", "reason"}
    assert "<html" in page.read_text()


def test_videos_and_status(indexed: Path) -> None:
    videos = call("videos", "--archive", indexed, "--json").json["videos"]
    assert [video["camera"] for video in videos] == ["gate", "gate", "yard", "yard"]
    for video in videos:
        assert video["start_time_source"] == "key"
        assert video["backend"] in ("decord", "pyav")
        assert video["decode_verdict"]
    status = call("status", "--archive", indexed, "--json").json
    assert status["states"] == {"indexed": 4}
    assert status["cameras"] == {"gate": 2, "yard": 2}
    assert status["writer"] is None


def test_wall_clock_comes_from_the_key_in_the_given_zone(indexed: Path) -> None:
    videos = call("videos", "--archive", indexed, "--json").json["videos"]
    starts = sorted(video["start_time"] for video in videos if video["camera"] == "gate")
    assert starts == ["2026-03-01T07:00:00+00:00", "2026-03-01T08:00:00+00:00"]


def test_doctor(indexed: Path) -> None:
    done = call("doctor", "--archive", indexed, "--json")
    assert done.code == 0
    checks = {check["name"]: check for check in done.json["checks"]}
    assert checks["archive"]["status"] == "ok"
    assert checks["kv files"]["status"] == "ok"
    assert checks["model"]["status"] == "warning"


def test_archive_by_environment(indexed: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VXL_ARCHIVE", str(indexed))
    assert call("status", "--json").json["archive"] == str(indexed)


@pytest.mark.parametrize(
    ("options", "cameras_found"),
    [
        (["--camera", "gate"], {"gate"}),
        (["--after", "2026-03-02T00:00:00Z"], {"yard"}),
        (["--before", "2026-03-01T07:30:00Z", "--camera", "yard"], {"yard"}),
        (["--after", "2026-03-01T08:30", "--before", "2026-03-01T09:30", "--time-zone", "Europe/Berlin"], {"gate"}),
        (["--time-range", "21:30,23:00", "--time-zone", "Europe/Berlin"], {"yard"}),
    ],
)
def test_filters(indexed: Path, options: list[str], cameras_found: set[str]) -> None:
    moments = call("search", "x", "--archive", indexed, "--json", *options).json["moments"]
    assert {moment["camera"] for moment in moments} == cameras_found


def test_ask_one_video(indexed: Path, cameras: Path) -> None:
    path = cameras / "yard/2026-03-02/220000.mp4"
    answer = call("ask", "What?", "--archive", indexed, "--json", "--video", path, "--max-new-tokens", "2").json
    assert {citation["uri"] for citation in answer["citations"]} == {f"file://{path}"}
    assert answer["coverage"]["videos"] == 1


@pytest.mark.parametrize("camera", ["gate", "yard"])
def test_the_camera_that_a_question_names_comes_first(indexed: Path, camera: str) -> None:
    ask = ("ask", f"What happens at the {camera}?", "--archive", indexed, "--json", "--max-new-tokens", "2")
    answer = call(*ask).json
    assert answer["coverage"]["videos"] == 4
    cameras = [citation["camera"] for citation in answer["citations"]]
    assert cameras[0] == camera and cameras == sorted(cameras, key=lambda name: name != camera)
    dense = {citation["camera"] for citation in answer["citations"] if citation["level"] == "dense"}
    assert dense == {camera}


def test_range_that_was_never_indexed(indexed: Path) -> None:
    for command, key in ((["search", "car"], "moments"), (["ask", "car?"], "citations"), (["anomalies"], "events")):
        done = call(*command, "--archive", indexed, "--json", "--after", "2030-01-01T00:00:00Z")
        assert done.code == 5
        result = done.json
        assert result[key] == []
        assert result["coverage"]["videos"] == 0
        assert result["coverage"]["not_indexed"]


def test_a_hole_in_the_range_is_named(indexed: Path) -> None:
    span = ["--after", "2026-03-01T07:00:00Z", "--before", "2026-03-01T08:00:03Z"]
    coverage = call("search", "car", "--archive", indexed, "--camera", "gate", *span, "--json").json["coverage"]
    gaps = [(gap["camera"], gap["start_time"], gap["end_time"]) for gap in coverage["not_indexed"]]
    assert gaps == [("gate", "2026-03-01T07:00:40+00:00", "2026-03-01T08:00:00+00:00")]


def test_empty_archive(tmp_path: Path) -> None:
    (tmp_path / "nothing").mkdir()
    archive = tmp_path / "archive"
    assert call("ingest", tmp_path / "nothing", "--archive", archive).code == 0
    for command in (["search", "car"], ["ask", "car?"], ["anomalies"]):
        done = call(*command, "--archive", archive, "--json")
        assert done.code == 5
        assert done.json["coverage"] == {"videos": 0, "hours": 0.0, "not_indexed": []}
    answer: Any = call("ask", "car?", "--archive", archive, "--json").json
    assert answer["abstained"] is True


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["search", " "], "empty"),
        (["ask", ""], "empty"),
        (["search", "x", "--after", "2026-03-02T00:00Z", "--before", "2026-03-01T00:00Z"], "not earlier"),
        (["ask", "x", "--after", "2026-03-01T08:00"], "no time zone"),
        (["search", "x", "--after", "yesterday"], "ISO 8601"),
        (["search", "x", "--camera", "roof"], "unknown camera 'roof'"),
        (["anomalies", "--camera", "roof"], "unknown camera 'roof'"),
        (["ask", "x", "--video", "s3://b/none.mp4"], "unknown video"),
        (["search", "x", "--time-zone", "Mars/Base"], "unknown time zone"),
        (["search", "x", "--time-range", "8-9", "--time-zone", "UTC"], "HH:MM"),
        (["search", "x", "--time-range", "08:00,09:00"], "--time-zone"),
        (["search", "x", "--limit", "0"], "at least 1"),
        (["ask", "x", "--reuse", "never"], "--reuse"),
        (["ask", "x", "--max-new-tokens", "0"], "at least 1"),
        (["anomalies", "--max-per-day", "0"], "at least 1"),
        (["delete", "s3://b/none.mp4"], "unknown video"),
    ],
)
def test_wrong_requests(indexed: Path, arguments: list[str], words: str) -> None:
    done = call(*arguments, "--archive", indexed)
    assert done.code == 2
    assert words in done.error_line


def test_no_archive(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_PROFILE", "AWS_ENDPOINT_URL"):
        monkeypatch.delenv(name, raising=False)
    for name in ("AWS_CONFIG_FILE", "AWS_SHARED_CREDENTIALS_FILE"):
        monkeypatch.setenv(name, str(tmp_path / "none"))
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    assert "there is no archive" in call("search", "x", "--archive", tmp_path / "none").error_line
    assert "--archive" in call("search", "x").error_line
    assert "no credentials found" in call("status", "--archive", "s3://bucket/archive").error_line
    for arguments in (["search", "x"], ["search", "x", "--archive", str(tmp_path / "none")]):
        assert call(*arguments).code == 2


def test_usage_errors_exit_with_2() -> None:
    assert call("search").code == 2
    assert call("no-such-command").code == 2
    assert call("ingest", "x", "--fps", "fast").code == 2
