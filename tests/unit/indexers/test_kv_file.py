"""Dense KV files: layout, range reads, durability, refusal of anything that is not what was written."""

from __future__ import annotations

import json
import os
from pathlib import Path

import numpy as np
import pytest
import xxhash

from indexers.container import ALIGNMENT
from indexers.errors import CorruptKV, MissingKV, StoreUnavailable
from indexers.kv_file import DenseKVHeader, DenseKVReader, DenseKVWriter, write_dense_kv

HEADER = DenseKVHeader(
    video_id="a" * 32,
    segment_index=3,
    fingerprint="f" * 32,
    dtype="bfloat16",
    layers=2,
    kv_heads=2,
    head_dim=64,
    chunk_groups=(((2, 4), (3, 4)), ((2, 4),)),
)


def payloads(seed: int = 0) -> list[bytes]:
    rng = np.random.default_rng(seed)
    return [rng.bytes(HEADER.chunk_bytes(chunk)) for chunk in range(HEADER.num_chunks)]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "kv" / "00003.vxlkv"


def test_what_is_written_is_read(path: Path) -> None:
    written = write_dense_kv(path, HEADER, payloads())
    with DenseKVReader(path, expected_digest=written.digest) as reader:
        assert reader.header == HEADER
        assert list(reader.entries) == list(written)
        assert [bytes(reader.read_chunk(i)) for i in (1, 0)] == payloads()[::-1]
        assert reader.num_bytes == written.num_bytes == path.stat().st_size
        assert not reader.read_chunk(0).readonly
        reader.verify()
        with pytest.raises(IndexError):
            reader.read_chunk(2)
    for entry, payload in zip(written, payloads(), strict=True):
        assert entry.offset % ALIGNMENT == 0
        assert entry.digest == xxhash.xxh3_128_hexdigest(payload)
    assert HEADER.chunk_shape(0) == (2, 2, 2, 13, 64)


def test_the_header_is_readable_without_this_package(path: Path) -> None:
    write_dense_kv(path, HEADER, payloads())
    raw = path.read_bytes()
    length = int.from_bytes(raw[12:16], "little")
    fields = json.loads(raw[32 : 32 + length])
    assert fields["layout"] == "[chunk][layer][K|V][kv_head][token][head_dim]"
    assert (fields["rotation"], fields["codec"], fields["dtype"]) == ("unrotated", "exact", "bfloat16")
    assert fields["chunks"][0]["groups"] == [[2, 4], [3, 4]]
    assert fields["chunks"][0]["tokens"] == 13
    chunk = fields["chunks"][1]
    assert raw[chunk["offset"] : chunk["offset"] + chunk["length"]] == payloads()[1]


def test_the_same_content_gives_the_same_file(path: Path, tmp_path: Path) -> None:
    write_dense_kv(path, HEADER, payloads())
    write_dense_kv(tmp_path / "other", HEADER, payloads())
    assert path.read_bytes() == (tmp_path / "other").read_bytes()


def test_reading_a_chunk_reads_that_chunk_only(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    written = write_dense_kv(path, HEADER, payloads())
    reads: list[tuple[int, int]] = []
    original = os.preadv

    def spy(descriptor: int, buffers: list[memoryview], offset: int) -> int:
        reads.append((offset, sum(len(buffer) for buffer in buffers)))
        return original(descriptor, buffers, offset)

    with DenseKVReader(path) as reader:
        monkeypatch.setattr(os, "preadv", spy)
        reader.read_chunk(1)
    assert reads == [(written[1].offset, -(-written[1].length // ALIGNMENT) * ALIGNMENT)]


def test_a_new_version_replaces_the_old_at_once(path: Path) -> None:
    write_dense_kv(path, HEADER, payloads(0))
    reader = DenseKVReader(path)
    newer = write_dense_kv(path, HEADER, payloads(1))
    assert bytes(reader.read_chunk(0)) == payloads(0)[0], "an open reader keeps its file"
    reader.close()
    with DenseKVReader(path, newer.digest) as again:
        assert bytes(again.read_chunk(0)) == payloads(1)[0]
    assert list(path.parent.iterdir()) == [path]


def test_a_whole_file_that_is_not_the_committed_one_is_refused(path: Path) -> None:
    first = write_dense_kv(path, HEADER, payloads(0))
    write_dense_kv(path, HEADER, payloads(1))
    with pytest.raises(CorruptKV, match="not the file that was committed"):
        DenseKVReader(path, first.digest)


def test_an_abandoned_or_failed_write_leaves_nothing(path: Path) -> None:
    with pytest.raises(RuntimeError), DenseKVWriter(path, HEADER) as writer:
        writer.write_chunk(payloads()[0])
        raise RuntimeError
    with pytest.raises(ValueError, match="1 of 2 chunks"):
        write_dense_kv(path, HEADER, payloads()[:1])
    with pytest.raises(ValueError, match="has 1 bytes, its header says"):
        write_dense_kv(path, HEADER, [b"x"])
    with pytest.raises(ValueError, match="one more"):
        write_dense_kv(path, HEADER, [*payloads(), b""])
    assert list(path.parent.iterdir()) == []


def test_the_file_is_durable_before_it_has_its_name(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    events: list[str] = []
    sync, rename = os.fsync, Path.replace
    monkeypatch.setattr(os, "fsync", lambda fd: (events.append("fsync"), sync(fd))[1])
    monkeypatch.setattr(Path, "replace", lambda self, target: (events.append("rename"), rename(self, target))[1])
    write_dense_kv(path, HEADER, payloads())
    assert events == ["fsync", "rename", "fsync"]


def test_a_disk_that_refuses_is_unavailable(tmp_path: Path) -> None:
    (tmp_path / "kv").write_text("a file where the folder should be")
    with pytest.raises(StoreUnavailable):
        write_dense_kv(tmp_path / "kv" / "x.vxlkv", HEADER, payloads())


def test_missing_foreign_empty_and_cut_files_are_told_apart(path: Path) -> None:
    with pytest.raises(MissingKV, match="not there"):
        DenseKVReader(path)
    path.parent.mkdir()
    for content, message in ((b"", "shorter"), (b"x" * 8192, "not a file of this kind")):
        path.write_bytes(content)
        with pytest.raises(CorruptKV, match=message):
            DenseKVReader(path)
    write_dense_kv(path, HEADER, payloads())
    os.truncate(path, path.stat().st_size - 1)
    with pytest.raises(CorruptKV, match="its header says"):
        DenseKVReader(path)


def test_a_file_cut_while_it_is_read_is_found(path: Path) -> None:
    written = write_dense_kv(path, HEADER, payloads())
    with DenseKVReader(path) as reader:
        os.truncate(path, written[1].offset + 10)
        with pytest.raises(CorruptKV, match=r"chunk 1: the file ends after 10"):
            reader.read_chunk(1)
        reader.read_chunk(0)


def test_a_later_format_is_refused_by_name(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("indexers.kv_file.ROTATION", "rotated")
    write_dense_kv(path, HEADER, payloads())
    monkeypatch.undo()
    with pytest.raises(CorruptKV, match="rotation is 'rotated'"):
        DenseKVReader(path)


def test_an_unknown_dtype_is_refused() -> None:
    with pytest.raises(ValueError, match="float8"):
        DenseKVHeader(
            video_id="a",
            segment_index=0,
            fingerprint="f",
            dtype="float8",
            layers=1,
            kv_heads=1,
            head_dim=1,
            chunk_groups=(),
        )
