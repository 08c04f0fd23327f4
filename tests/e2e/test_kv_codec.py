"""An archive of int8 KV, a segment of it encoded anew beside readers: indexed, asked, verified, counted, swept."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest

from indexers.errors import RowConflict
from indexers.store import LanceStore
from indexers.sweep import find_orphans
from pipeline.kv_encoding import reencode_segment
from tests.vxl import call, spawn


@pytest.fixture(scope="module")
def archive(tmp_path_factory: pytest.TempPathFactory, long_clip: Path) -> Path:
    """Four segments, indexed by a process of its own with a settings file."""
    root = tmp_path_factory.mktemp("codec")
    (root / "footage" / "gate").mkdir(parents=True)
    shutil.copy(long_clip, root / "footage" / "gate" / "a.mp4")
    (root / "vxl.toml").write_text('[ingest]\ncodec = "int8"\nsegment_s = 10\n')
    done = spawn(
        *("ingest", root / "footage", "--archive", root / "archive", "--config", root / "vxl.toml"),
        *("--key-pattern", "{camera}/{title}.mp4", "--json"),
    )
    assert done.code == 0, done.err
    return root / "archive"


def codecs_of(archive: Path) -> list[str]:
    with LanceStore.open(archive) as store:
        return [segment.codec for segment in store.segments_of()]


def ask(archive: Path) -> dict[str, Any]:
    done = call("ask", "What happens?", "--archive", archive, "--reuse", "reload", "--max-new-tokens", "4", "--json")
    assert done.code == 0, done.err
    document: dict[str, Any] = done.json
    return document


def test_int8_kv_answers_verifies_and_a_segment_is_encoded_anew(archive: Path) -> None:
    assert codecs_of(archive) == ["int8"] * 4
    assert sorted(path.name for path in archive.glob("kv/*/*/*.vxlkv")) == [f"{n:05d}.int8.vxlkv" for n in range(4)]
    before = ask(archive)

    with LanceStore.open(archive) as store:
        segment = store.segments_of()[1]
        row = reencode_segment(archive, segment, "int4")
        assert [orphan.path for orphan in find_orphans(archive, store)] == [row.kv_path], (
            "killed here, a sweep cleans up"
        )
        store.replace_segment(row)
        assert [orphan.path for orphan in find_orphans(archive, store)] == [segment.kv_path]
        (archive / str(segment.kv_path)).unlink()
        assert find_orphans(archive, store) == []
        assert store.segments_of()[1] == row and len(store.segments_of()) == 4
        with pytest.raises(RowConflict):
            store.replace_segment(type(row)(**{**row.to_row(), "fingerprint": "0" * 32}))
    assert codecs_of(archive) == ["int8", "int4", "int8", "int8"]

    after = ask(archive)
    assert after["context"]["tokens"] == before["context"]["tokens"]
    assert after["context"]["kv_bytes_read"] <= before["context"]["kv_bytes_read"]

    verified = spawn("kv", "verify", "--archive", archive, "--all", "--exact", "--json")
    assert verified.code == 0, verified.out
    report = verified.json
    assert [row["codec"] for row in report["segments"]] == ["int8", "int4", "int8", "int8"]
    for row in report["segments"]:
        assert (row["ok"], row["is_bit_exact"], row["error"]) == (True, True, None)
        assert row["max_kv_diff"] > 0 and row["max_token_error"] > 0
        assert row["max_token_excess"] == pytest.approx(0.0, abs=1e-6)
    figures = {row["codec"]: row for row in report["codecs"]}
    assert {codec: row["segments"] for codec, row in figures.items()} == {"int4": 1, "int8": 3}
    assert figures["int4"]["max_token_error"] > figures["int8"]["max_token_error"]

    stats = call("kv", "stats", "--archive", archive, "--json").json
    by_codec = {row["codec"]: row["bytes"] for row in stats["total"]["tiers"]}
    sizes = {path.name: path.stat().st_size for path in archive.glob("kv/*/*/*.vxlkv")}
    assert by_codec == {
        "int4": sizes["00001.int4.vxlkv"],
        "int8": sum(size for name, size in sizes.items() if "int8" in name),
    }


def test_another_codec_is_no_mismatch_and_nothing_is_done_again(archive: Path) -> None:
    settings = archive.parent / "exact.toml"
    settings.write_text('[ingest]\ncodec = "exact"\n')
    before = codecs_of(archive)
    done = call("ingest", archive.parent / "footage", "--archive", archive, "--config", settings, "--json")
    assert done.code == 0, done.err
    assert codecs_of(archive) == before
