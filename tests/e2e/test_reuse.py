"""Questions are answered from stored KV, in another process, with or without the source; recomputing agrees."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest

from tests.vxl import call, spawn

QUESTION = ("ask", "What colour is the car?", "--json", "--max-new-tokens", "12")


def told(answer: dict[str, Any]) -> dict[str, Any]:
    """An answer without its timings."""
    return {name: value for name, value in answer.items() if name != "timings"}


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory, cameras: Path) -> tuple[Path, Path]:
    """An archive, and where its footage was when it was indexed."""
    root = tmp_path_factory.mktemp("made")
    shutil.copytree(cameras, root / "footage")
    assert call("ingest", root / "footage", "--archive", root / "archive", "--segment-s", "10").code == 0
    return root / "archive", root / "footage"


@pytest.fixture
def movable(tmp_path: Path, cameras: Path, made: tuple[Path, Path]) -> tuple[Path, Path]:
    """A copy of the archive and the footage that it names, which may be deleted."""
    archive, footage = made
    shutil.rmtree(footage, ignore_errors=True)
    shutil.copytree(cameras, footage)
    return shutil.copytree(archive, tmp_path / "archive"), footage


def test_the_source_is_not_touched_when_kv_is_there(movable: tuple[Path, Path]) -> None:
    archive, footage = movable
    before = call(*QUESTION, "--archive", archive).json
    shutil.rmtree(footage)
    after = spawn(*QUESTION, "--archive", archive).json
    assert told(after) == told(before)
    assert after["timings"]["recompute_s"] == 0
    assert call("search", "x", "--archive", archive).code == 0


def test_an_unreadable_source_changes_nothing(movable: tuple[Path, Path]) -> None:
    archive, footage = movable
    before = call(*QUESTION, "--archive", archive).json
    for path in footage.rglob("*.mp4"):
        path.write_bytes(b"overwritten")
    assert told(call(*QUESTION, "--archive", archive).json) == told(before)


def test_reload_and_recompute_agree(movable: tuple[Path, Path]) -> None:
    archive, footage = movable
    reloaded = call(*QUESTION, "--archive", archive, "--reuse", "reload").json
    recomputed = call(*QUESTION, "--archive", archive, "--reuse", "recompute").json
    assert recomputed["answer"] == reloaded["answer"]
    assert recomputed["citations"] == reloaded["citations"]
    assert recomputed["timings"]["recompute_s"] > 0
    assert recomputed["context"]["kv_bytes_read"] == 0
    assert reloaded["context"]["kv_bytes_read"] > 0

    shutil.rmtree(footage)
    done = call(*QUESTION, "--archive", archive, "--reuse", "recompute")
    assert done.code == 1
    assert "cannot be recomputed" in done.error_line


def test_auto_recomputes_what_is_missing(movable: tuple[Path, Path]) -> None:
    archive, _ = movable
    before = call(*QUESTION, "--archive", archive).json
    for path in archive.glob("kv/*/*/*.vxlkv"):
        path.unlink()
    after = call("--log-level", "ERROR", *QUESTION, "--archive", archive)
    assert after.json["answer"] == before["answer"]
    assert after.json["timings"]["recompute_s"] > 0


def test_context_mixes_levels_within_its_budget(movable: tuple[Path, Path], tmp_path: Path) -> None:
    archive, _ = movable
    settings = tmp_path / "vxl.toml"
    settings.write_text("[query]\nmax_segments = 8\n[ingest.levels]\nmax_dense_chunks = 2\n")
    wide = call(*QUESTION, "--archive", archive, "--config", settings).json["context"]
    assert wide["dense_chunks"] <= 2  # by relevance
    assert wide["sparse_chunks"] > 0
    settings.write_text("[query]\nmax_context_tokens = 700\n")
    narrow = call(*QUESTION, "--archive", archive, "--config", settings).json["context"]
    assert narrow["tokens"] <= 700
    assert narrow["kv_bytes_read"] < wide["kv_bytes_read"]


def test_deleted_videos_are_gone_and_stay_gone(movable: tuple[Path, Path]) -> None:
    archive, footage = movable
    path = footage / "gate/2026-03-01/080000.mp4"
    (video,) = (
        v for v in call("videos", "--archive", archive, "--json").json["videos"] if v["uri"] == f"file://{path}"
    )
    files = len(list(archive.glob("kv/*/*/*.vxlkv")))
    assert call("delete", path, "--archive", archive, "--json").json["count"] == 1
    assert len(list(archive.glob("kv/*/*/*.vxlkv"))) == files - video["segments"]
    moments = call("search", "x", "--archive", archive, "--json").json["moments"]
    assert video["video_id"] not in {moment["video_id"] for moment in moments}
    report = call("ingest", footage, "--archive", archive, "--json").json
    assert report["counts"]["skipped"] == 4
    states = {row["uri"]: row["state"] for row in call("videos", "--archive", archive, "--json").json["videos"]}
    assert states[f"file://{path}"] == "deleted"
