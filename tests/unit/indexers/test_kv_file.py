"""Dense KV files: layout, range reads, durability, refusal of anything that is not what was written."""

from __future__ import annotations

import itertools
import json
import os
import struct
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import xxhash

from indexers.container import ALIGNMENT
from indexers.errors import CorruptKV, MissingKV, StoreUnavailable
from indexers.kv_file import (
    DenseKVHeader,
    DenseKVReader,
    DenseKVWriter,
    KVEncoding,
    StepGroup,
    rewrite_dense_kv,
    write_dense_kv,
)

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
        layers = payload[: len(payload) // 2], payload[len(payload) // 2 :]
        assert entry.digest == "".join(map(xxhash.xxh3_128_hexdigest, layers))
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
    offset, half = written[1].offset, written[1].section_bytes
    assert reads == [(offset, half), (offset + half, -(-written[1].length // ALIGNMENT) * ALIGNMENT - half)]


def test_reading_a_layer_reads_and_checks_that_layer_only(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    written = write_dense_kv(path, HEADER, payloads())
    size = written[1].section_bytes
    damaged = bytearray(path.read_bytes())
    damaged[written[1].offset + size] ^= 1
    path.write_bytes(damaged)
    reads: list[int] = []
    original = os.preadv

    def spy(descriptor: int, buffers: list[memoryview], offset: int) -> int:
        reads.append(offset)
        return original(descriptor, buffers, offset)

    room = memoryview(bytearray(size))
    with DenseKVReader(path) as reader:
        monkeypatch.setattr(os, "preadv", spy)
        reader.read_chunk_into(1, [room], sections=range(1))
        assert room == payloads()[1][:size]
        assert reads == [written[1].offset]
        with pytest.raises(CorruptKV, match="chunk 1: checksum"):
            reader.read_chunk_into(1, [room], sections=range(1, 2))
        with pytest.raises(ValueError, match="bytes each"):
            reader.read_chunk_into(1, [room], sections=range(2))


def test_layers_that_change_places_are_found(path: Path) -> None:
    written = write_dense_kv(path, HEADER, payloads())
    offset, size = written[0].offset, written[0].section_bytes
    content = path.read_bytes()
    first, second = content[offset:][:size], content[offset + size :][:size]
    path.write_bytes(content[:offset] + second + first + content[offset + 2 * size :])
    with DenseKVReader(path) as reader, pytest.raises(CorruptKV, match="chunk 0: checksum"):
        reader.read_chunk(0)


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


INT8 = KVEncoding("int8", StepGroup("channel", 64), StepGroup("token", 16))


def raw_file(chunks: list[bytes], /, **changes: Any) -> bytes:
    """A KV file put together here from the document, not by the writer; format 1 unless ``changes`` say otherwise."""
    offsets = [4096 * (1 + sum(-(-len(c) // 4096) for c in chunks[:number])) for number in range(len(chunks))]
    groups = [[[2, 4], [3, 4]], [[2, 4]]]
    fields = {
        "format": 1,
        "layout": "[chunk][layer][K|V][kv_head][token][head_dim]",
        "rotation": "unrotated",
        "codec": "exact",
        "dtype": "bfloat16",
        "fingerprint": "f" * 32,
        "video_id": "a" * 32,
        "segment_index": 3,
        "layers": 2,
        "kv_heads": 2,
        "head_dim": 64,
        "chunks": [
            {
                "offset": offsets[number],
                "length": len(chunk),
                "digest": xxhash.xxh3_128_hexdigest(chunk),
                "tokens": sum(map(sum, groups[number])),
                "groups": groups[number],
            }
            for number, chunk in enumerate(chunks)
        ],
        "file_bytes": offsets[-1] + -(-len(chunks[-1]) // 4096) * 4096,
        **changes,
    }
    text = json.dumps({name: value for name, value in fields.items() if value is not None}).encode()
    start = struct.pack("<8sII", b"VXLKVF\r\n", 1, len(text))
    head = start + xxhash.xxh3_128_digest(start + text) + text
    assert len(head) <= 4096
    return head.ljust(4096, b"\0") + b"".join(c.ljust(-(-len(c) // 4096) * 4096, b"\0") for c in chunks)


def test_a_file_of_format_1_is_read(path: Path) -> None:
    path.parent.mkdir()
    path.write_bytes(raw_file(payloads()))
    with DenseKVReader(path) as reader:
        assert reader.header == replace(HEADER, format=1)
        assert reader.header.encoding == KVEncoding()
        assert reader.header.num_sections == 1
        assert [bytes(reader.read_chunk(chunk)) for chunk in range(2)] == payloads()


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"codec": "int8"}, "codec_parameters do not make sense"),
        ({"format": 2}, "codec_parameters do not make sense"),
        ({"format": 4}, "format is 4, this reader knows 1, 2, 3"),
        ({"format": 3, "codec_parameters": {}}, "chunk 0 has another number of checksums than 2"),
        ({"codec": "int2"}, "codec is 'int2'"),
        ({"format": 2, "codec_parameters": {"keys": {"axis": "channel", "size": 64}}}, "need both"),
        ({"format": 2, "codec_parameters": {"queries": {"axis": "channel", "size": 64}}}, "queries"),
        (
            {"format": 2, "codec": "int8", "codec_parameters": INT8.parameters},
            "chunk 0 has 13312 bytes, its tokens make 8512",
        ),
        ({"file_bytes": None}, "file_bytes"),
        ({"video_id": None}, "do not make sense: KeyError 'video_id'"),
        ({"layers": "two"}, "do not make sense: ValueError layers, kv_heads"),
        ({"dtype": "float8"}, "unknown KV dtype 'float8'"),
        ({"format": 2, "codec_parameters": []}, "do not make sense"),
        ({"chunks": [{"groups": [[2, 4]]}]}, "do not make sense: KeyError 'offset'"),
    ],
)
def test_a_header_that_cannot_be_is_refused_by_the_name_of_its_field(
    path: Path, changes: dict[str, Any], words: str
) -> None:
    path.parent.mkdir()
    path.write_bytes(raw_file(payloads(), **changes))
    with pytest.raises(CorruptKV, match=words):
        DenseKVReader(path)


@pytest.mark.parametrize("moved", [-4096, 4096, 1])
def test_chunks_that_do_not_follow_each_other_are_refused(path: Path, moved: int) -> None:
    """Signed as it is: the place of a chunk follows from the lengths, and another one is nobody's."""
    path.parent.mkdir()
    path.write_bytes(raw_file(payloads()))
    with DenseKVReader(path) as reader:
        first, second = reader.entries
        (groups, later), chunks = HEADER.chunk_groups, []
    for entry, of in ((first, groups), (second._replace(offset=second.offset + moved), later)):
        chunks.append({**entry._asdict(), "tokens": sum(map(sum, of)), "groups": of})
    path.write_bytes(raw_file(payloads(), chunks=chunks))
    with pytest.raises(CorruptKV, match=f"chunk 1 is said to begin at {second.offset + moved}"):
        DenseKVReader(path)


@pytest.mark.parametrize(
    "arguments",
    [
        ("int3",),
        ("int8",),
        ("exact", StepGroup("channel", 64), StepGroup("channel", 64)),
        ("int4", StepGroup("layer", 64), StepGroup("channel", 64)),
        ("int4", StepGroup("channel", 0), StepGroup("channel", 64)),
    ],
)
def test_an_encoding_that_cannot_be_is_refused(arguments: tuple[Any, ...]) -> None:
    with pytest.raises(ValueError, match=r"codec|group"):
        KVEncoding(*arguments)


def test_the_header_says_codec_and_parameters(path: Path) -> None:
    header = replace(HEADER, encoding=INT8)
    rng = np.random.default_rng(0)
    chunks = [rng.bytes(header.chunk_bytes(chunk)) for chunk in range(2)]
    write_dense_kv(path, header, chunks)
    raw = path.read_bytes()
    fields = json.loads(raw[32 : 32 + int.from_bytes(raw[12:16], "little")])
    assert (fields["format"], fields["codec"]) == (3, "int8")
    assert fields["codec_parameters"] == {
        "keys": {"axis": "channel", "size": 64},
        "values": {"axis": "token", "size": 16},
    }
    with DenseKVReader(path) as reader:
        assert reader.header == header
        assert [bytes(reader.read_chunk(chunk)) for chunk in range(2)] == chunks


@pytest.mark.parametrize("cut", [1, 4096, 5000, 2**20, 3 * 2**20])
def test_a_chunk_can_be_read_into_pieces_of_any_size(tmp_path: Path, cut: int) -> None:
    header = replace(HEADER, chunk_groups=(((0, 2000),), ((0, 7),)), layers=3)
    chunk = np.random.default_rng(1).bytes(header.chunk_bytes(0))
    write_dense_kv(tmp_path / "x", header, [chunk, bytes(header.chunk_bytes(1))])
    room = bytearray(len(chunk))
    borders = [*range(0, len(chunk), cut), len(chunk)] if cut > 1 else [0, 1, len(chunk)]
    parts = [memoryview(room)[a:b] for a, b in itertools.pairwise(borders)]
    with DenseKVReader(tmp_path / "x") as reader:
        reader.read_chunk_into(0, parts)
        assert room == chunk
        with pytest.raises(ValueError, match="in all"):
            reader.read_chunk_into(0, parts[1:])


def test_reads_that_give_less_than_was_asked_for_go_on(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_dense_kv(path, HEADER, payloads())
    original = os.preadv

    def short(descriptor: int, buffers: list[memoryview], offset: int) -> int:
        return original(descriptor, [buffers[0][:1000]], offset)

    with DenseKVReader(path) as reader:
        monkeypatch.setattr(os, "preadv", short)
        room = bytearray(HEADER.chunk_bytes(0))
        reader.read_chunk_into(0, [memoryview(room)[:700], memoryview(room)[700:5000], memoryview(room)[5000:]])
    assert room == payloads()[0]


def test_announcing_what_is_read_soon_is_only_advice(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_dense_kv(path, HEADER, payloads())
    with DenseKVReader(path) as reader:
        reader.announce([1, 0])
        monkeypatch.delattr(os, "posix_fadvise")
        reader.announce([0])


def tenfold(index: int, payload: memoryview) -> bytes:
    assert bytes(payload) == payloads()[index]
    return bytes(replace(HEADER, encoding=INT8).chunk_bytes(index))


def test_a_stored_file_is_written_anew_under_another_encoding(path: Path, tmp_path: Path) -> None:
    old = write_dense_kv(path, HEADER, payloads())
    new = tmp_path / "kv" / "00003.int8.vxlkv"
    with DenseKVReader(path, old.digest) as reader:
        written = rewrite_dense_kv(reader, new, INT8, tenfold)
        with pytest.raises(ValueError, match="path of its own"):
            rewrite_dense_kv(reader, path, INT8, tenfold)
    with DenseKVReader(new, written.digest) as reader:
        assert reader.header == replace(HEADER, encoding=INT8)
        reader.verify()
    with DenseKVReader(path, old.digest) as reader:
        reader.verify()


@pytest.mark.parametrize("convert", [lambda index, payload: b"short", lambda index, payload: 1 / 0])
def test_a_failed_rewrite_leaves_nothing_behind(path: Path, convert: Callable[[int, memoryview], bytes]) -> None:
    write_dense_kv(path, HEADER, payloads())
    with DenseKVReader(path) as reader, pytest.raises((ValueError, ZeroDivisionError)):
        rewrite_dense_kv(reader, path.with_name("new"), INT8, convert)
    assert list(path.parent.iterdir()) == [path]
