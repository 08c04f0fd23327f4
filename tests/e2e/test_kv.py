"""``vxl kv``: stored KV is proved against the video in another process, and what it takes is said."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from importlib import metadata
from pathlib import Path
from typing import Any

import lancedb
import numpy as np
import pytest
import torch
import xxhash

from indexers.kv_file import DenseKVReader, write_dense_kv
from indexers.records import SPARSE_SCHEMA, to_table
from indexers.store import LanceStore
from indexers.sweep import find_orphans
from pipeline.kv_verify import certificate_digest
from tests.vxl import call, spawn
from videoxl2.kv import kv_from_buffer, kv_to_numpy
from videoxl2.model import VideoXL2

SEGMENT_KEYS = {
    *("segment_id", "uri", "ok", "codec", "max_kv_diff", "max_logit_diff", "top1_agreement"),
    *("answer_agreement", "error"),
}
Change = Callable[[list[torch.Tensor]], None]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory, long_clip: Path) -> Path:
    """An archive, beside its footage, of one video with four segments, indexed by a process of its own."""
    root = tmp_path_factory.mktemp("made")
    (root / "footage" / "gate").mkdir(parents=True)
    shutil.copy(long_clip, root / "footage" / "gate" / "a.mp4")
    done = spawn(
        *("ingest", root / "footage", "--archive", root / "archive", "--segment-s", "10"),
        *("--key-pattern", "{camera}/{title}.mp4", "--json"),
    )
    assert done.code == 0, done.err
    return root / "archive"


@pytest.fixture
def archive(made: Path, tmp_path: Path) -> Path:
    """A copy whose KV may be damaged; the footage is where it was."""
    shutil.copytree(made, tmp_path / "archive")
    return tmp_path / "archive"


def verify(archive: Path, *more: str) -> Any:
    return call("kv", "verify", "--archive", archive, "--all", "--json", *more)


def tables(archive: Path) -> dict[str, bytes]:
    return {str(p): p.read_bytes() for p in sorted((archive / "tables").rglob("*")) if p.is_file()}


def resign(archive: Path, change: Change) -> str:
    """Change chunks of the second segment's file; checksums and the segment's row are made to fit. The segment."""
    with LanceStore.open(archive) as store:
        segment = store.segments_of()[1]
    assert segment.kv_path is not None
    path = archive / segment.kv_path
    with DenseKVReader(path) as file:
        header = file.header
        chunks = [
            kv_from_buffer(file.read_chunk(i), header.dtype, header.chunk_shape(i)) for i in range(header.num_chunks)
        ]
    change(chunks)
    written = write_dense_kv(path, header, [kv_to_numpy(chunk) for chunk in chunks])
    table = lancedb.connect(str(archive / "tables")).open_table("segments")
    table.update(where=f"segment_id = '{segment.segment_id}'", values={"kv_digest": written.digest})
    return segment.segment_id


def rotate(chunks: list[torch.Tensor]) -> None:
    """Keys as if they had been stored after rotation."""
    rotary = VideoXL2.from_pretrained("tiny", device="cpu").language.rotary(0, chunks[0].shape[3])
    chunks[0][:, 0] = rotary.rotate(chunks[0][:, 0].clone())


def swap_tokens(chunks: list[torch.Tensor]) -> None:
    """Two neighbours change places: the least that can be swapped."""
    chunks[0][:, :, :, [20, 21]] = chunks[0][:, :, :, [21, 20]].clone()


def swap_keys_and_values(chunks: list[torch.Tensor]) -> None:
    chunks[0][:] = chunks[0].flip(1).clone()


def only_failure(done: Any, segment_id: str) -> dict[str, Any]:
    """The one failed segment of a run; the others must have been verified."""
    assert done.code == 1, done.out
    failed = [row for row in done.json["segments"] if not row["ok"]]
    assert [row["segment_id"] for row in failed] == [segment_id]
    assert not done.json["ok"]
    assert (done.json["counts"]["failed"], done.json["counts"]["verified"]) == (1, 3)
    return failed[0]


def test_another_process_finds_the_same_kv_bit_for_bit(archive: Path) -> None:
    before = tables(archive)
    done = spawn("kv", "verify", "--archive", archive, "--all", "--json")
    assert done.code == 0, done.err
    report = done.json
    assert report["ok"] and len(report["segments"]) == 4
    for row in report["segments"]:
        assert row.keys() >= SEGMENT_KEYS
        assert (row["ok"], row["codec"], row["error"]) == (True, "exact", None)
        assert (row["max_kv_diff"], row["max_logit_diff"], row["is_bit_exact"]) == (0.0, 0.0, True)
        assert (row["top1_agreement"], row["answer_agreement"]) == (1.0, True)
    assert tables(archive) == before

    path = archive / report["certificate"]
    certificate = json.loads(path.read_text())
    assert path.stem == certificate_digest(certificate)
    assert certificate["segments"] == report["segments"] and certificate["ok"]
    assert certificate["program"] == f"vxl-archive {metadata.version('vxl-archive')}"
    with LanceStore.open(archive) as store:
        assert find_orphans(archive, store) == []
    assert call("compact", "--archive", archive).code == 0
    assert path.is_file()
    assert spawn("kv", "verify", "--archive", archive, "--all", "--json").json["certificate"] == report["certificate"]


@pytest.mark.parametrize("change", [rotate, swap_tokens, swap_keys_and_values])
def test_wrong_content_under_right_checksums_fails(archive: Path, change: Change) -> None:
    segment_id = resign(archive, change)
    done = verify(archive)
    row = only_failure(done, segment_id)
    assert "not what the video gives" in row["error"]
    assert row["max_token_error"] > 0.1 and row["max_kv_diff"] > 0 and row["max_logit_diff"] > 0
    assert json.loads((archive / done.json["certificate"]).read_text())["ok"] is False


def scale_a_little(chunks: list[torch.Tensor]) -> None:
    chunks[0].mul_(1.0001)


def test_a_small_change_is_told_from_another_order_of_summation_by_demanding_equal_bytes(archive: Path) -> None:
    segment_id = resign(archive, scale_a_little)
    done = spawn("kv", "verify", "--archive", archive, "--all", "--json", "--exact")
    assert only_failure(done, segment_id)["is_bit_exact"] is False
    assert json.loads((archive / done.json["certificate"]).read_text())["tolerance"] == 0
    loose = verify(archive).json
    assert loose["ok"]
    assert next(row for row in loose["segments"] if row["segment_id"] == segment_id)["max_kv_diff"] > 0


def flip_byte(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[-5000] ^= 1
    path.write_bytes(content)


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1])


@pytest.mark.parametrize("damage", [flip_byte, cut, Path.unlink])
def test_damage_fails_and_names_the_segment(archive: Path, damage: Callable[[Path], None]) -> None:
    path = sorted(archive.glob("kv/*/*/*.vxlkv"))[2]
    damage(path)
    segment_id = f"{path.parent.name}-{path.stem}"
    assert only_failure(verify(archive), segment_id)["error"]
    shown = call("kv", "verify", "--archive", archive, "--all")
    assert shown.code == 1
    assert f"{segment_id}: failed: " in shown.out


def test_sparse_kv_of_another_chunk_fails(archive: Path) -> None:
    """Its own checksum holds and the dense file is right: only pooling again can tell."""
    with LanceStore.open(archive) as store:
        segment_id = store.segments_of()[3].segment_id
        rows = [row for row in store.read_table("sparse_kv") if row["segment_id"] == segment_id]
        wrong = np.frombuffer(rows[0]["kv"], dtype=np.float32) * 1.01
        changed = wrong.astype(np.float32).tobytes()
        table = store._table("sparse_kv")
        table.delete(f"row_id = '{rows[0]['row_id']}'")
        row = {**rows[0], "kv": changed, "digest": xxhash.xxh3_128_hexdigest(changed)}
        store._merge("sparse_kv", to_table([row], SPARSE_SCHEMA))
    row = only_failure(verify(archive), segment_id)
    assert "sparse KV is not its dense KV pooled" in row["error"]
    assert row["max_token_error"] < 1e-3


def test_files_of_two_segments_that_changed_places_fail(archive: Path) -> None:
    first, second = sorted(archive.glob("kv/*/*/*.vxlkv"))[:2]
    content = first.read_bytes()
    first.write_bytes(second.read_bytes())
    second.write_bytes(content)
    done = verify(archive)
    assert (done.code, done.json["counts"]["failed"]) == (1, 2)


def test_a_video_that_is_gone_does_not_count_as_verified(archive: Path, made: Path, long_clip: Path) -> None:
    video = made.parent / "footage" / "gate" / "a.mp4"
    video.rename(video.with_suffix(".away"))
    try:
        done = verify(archive)
        assert done.code == 3
        assert not done.json["ok"]
        assert done.json["counts"] == {
            **{"verified": 0, "failed": 0, "not verifiable": 4},
            **{"sampled": 4, "in_archive": 4},
        }
        assert {row["status"] for row in done.json["segments"]} == {"not verifiable"}
        assert not any(row["ok"] for row in done.json["segments"])
        flip_byte(min(archive.glob("kv/*/*/*.vxlkv")))
        assert verify(archive).json["counts"]["failed"] == 1
    finally:
        video.with_suffix(".away").rename(video)


def test_the_sample_is_drawn_by_its_seed(archive: Path) -> None:
    def drawn(*more: str) -> list[str]:
        done = call("kv", "verify", "--archive", archive, "--json", "--segments", "2", *more)
        assert done.code == 0, done.err
        return [row["segment_id"] for row in done.json["segments"]]

    assert drawn() == drawn()
    assert len({tuple(drawn("--seed", str(seed))) for seed in range(4)}) > 1
    refused = call("kv", "verify", "--archive", archive, "--segments", "0")
    assert (refused.code, "--segments" in refused.error_line) == (2, True)


def test_stats_add_up_to_the_files(archive: Path, made: Path) -> None:
    done = call("kv", "stats", "--archive", archive, "--json", "--price-per-gb-month", "0.02")
    assert done.code == 0, done.err
    stats = done.json
    (camera,) = stats["cameras"]
    on_disk = sum(path.stat().st_size for path in archive.rglob("*") if path.is_file())
    dense = sum(path.stat().st_size for path in archive.glob("kv/*/*/*.vxlkv"))
    status = call("status", "--archive", archive, "--json").json
    assert stats["on_disk_bytes"] == on_disk
    assert camera["camera"] == "gate"
    assert camera["dense_bytes"] == stats["total"]["dense_bytes"] == dense == status["kv_bytes"]
    assert camera["sparse_bytes"] == status["sparse_bytes"]
    assert camera["source_bytes"] == (made.parent / "footage/gate/a.mp4").stat().st_size
    assert camera["per_hour"]["dense_bytes"] == pytest.approx(dense / status["hours"])
    assert [(tier["tier"], tier["codec"], tier["bytes"]) for tier in camera["tiers"]] == [("dense", "exact", dense)]
    assert stats["total"]["stored_bytes"] + stats["other_bytes"] == on_disk
    assert stats["cost_per_month"] == pytest.approx(on_disk / 1e9 * 0.02)
    shown = call("kv", "stats", "--archive", archive)
    assert shown.code == 0 and "gate" in shown.out and "give --price-per-gb-month" in shown.out
    assert call("kv", "stats", "--archive", archive, "--price-per-gb-month", "-1").code == 2


def test_an_archive_without_footage_has_nothing_to_verify(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    assert call("ingest", tmp_path / "empty", "--archive", tmp_path / "archive").code == 0
    done = verify(tmp_path / "archive")
    assert (done.code, done.json["ok"], done.json["certificate"]) == (5, False, None)
    assert call("kv", "verify", "--archive", tmp_path / "archive").code == 5
    assert call("kv", "stats", "--archive", tmp_path / "archive").code == 0
