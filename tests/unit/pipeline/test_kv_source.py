"""Stored KV is used only where it is this archive's, this segment's and whole; what is missing is made again."""

from __future__ import annotations

import threading
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from indexers.errors import CorruptKV
from indexers.kv_file import DenseKVHeader, write_dense_kv
from indexers.records import SegmentRow, kv_path, make_chunk_id, make_segment_id
from pipeline import kv_source
from pipeline.archive import translate
from pipeline.config import Settings
from pipeline.errors import ArchiveError, ModelMismatch, StorageError
from pipeline.kv_encoding import codec_settings, encoding_of, reencode_segment
from pipeline.kv_source import KVSource
from tests.unit.pipeline.samples import tiny_recipe
from videoxl2.kv import ChunkKV, KVLevel, kv_to_numpy, sparsify
from videoxl2.kv_codec import decode_kv, encode_kv

RECIPE = tiny_recipe()
VIDEO, OTHER = "a" * 32, "b" * 32
GROUPS = ((3, 8), (4, 8))
TOKENS = sum(map(sum, GROUPS))
SEGMENT_ID = make_segment_id(VIDEO, 0)


def dense_chunk(number: int) -> ChunkKV:
    kv = torch.randn(2, 2, 1, TOKENS, 4, generator=torch.Generator().manual_seed(number))
    return ChunkKV(kv, GROUPS, KVLevel.DENSE)


CHUNKS = (dense_chunk(0), dense_chunk(1))


class SparseParts:
    def __init__(self, chunk: ChunkKV) -> None:
        self._bytes = kv_to_numpy(chunk.kv_LSKMDh)
        self.num_bytes = self._bytes.nbytes
        self.dtype, self.shape = "float32", tuple(chunk.kv_LSKMDh.shape)

    def join(self) -> Any:
        return self._bytes


class FakeStore:
    def __init__(self, segment: SegmentRow) -> None:
        self.segment = segment
        self.sparse = {make_chunk_id(SEGMENT_ID, n): SparseParts(sparsify(c, 4)) for n, c in enumerate(CHUNKS)}

    def segments(self, video_id: str) -> list[SegmentRow]:
        return [self.segment] if self.segment.video_id == video_id else []

    def read_sparse(self, chunk_ids: list[str]) -> dict[str, SparseParts]:
        return {key: parts for key, parts in self.sparse.items() if key in chunk_ids}


def chunk_row(number: int) -> dict[str, Any]:
    return {
        "chunk_id": make_chunk_id(SEGMENT_ID, number),
        "segment_id": SEGMENT_ID,
        "video_id": VIDEO,
        "segment_index": 0,
        "chunk_index": number,
        "num_groups": len(GROUPS),
        "num_tokens": TOKENS,
        "group_time_tokens": [time_tokens for time_tokens, _ in GROUPS],
    }


WANTED = [(chunk_row(0), KVLevel.DENSE), (chunk_row(1), KVLevel.SPARSE)]


class Archive:
    """One segment on disk; ``header`` changes what its KV file says about itself."""

    def __init__(self, folder: Path, **header: Any) -> None:
        facts: dict[str, Any] = {"video_id": VIDEO, "segment_index": 0, "fingerprint": RECIPE.fingerprint, **header}
        made = DenseKVHeader(
            **facts, dtype="float32", layers=2, kv_heads=1, head_dim=4, chunk_groups=(GROUPS,) * len(CHUNKS)
        )
        relative = kv_path(VIDEO, 0)
        self.path = folder / relative
        written = write_dense_kv(self.path, made, [kv_to_numpy(chunk.kv_LSKMDh) for chunk in CHUNKS])
        segment = SegmentRow(
            segment_id=SEGMENT_ID,
            video_id=VIDEO,
            segment_index=0,
            start_s=0.0,
            end_s=16.0,
            num_chunks=2,
            num_groups=4,
            num_frames=16,
            num_tokens=2 * TOKENS,
            state="indexed",
            kv_path=relative,
            kv_bytes=written.num_bytes,
            sparse_bytes=0,
            kv_digest=written.digest,
            tier="dense",
            codec="exact",
            dtype="float32",
            fingerprint=RECIPE.fingerprint,
        )
        self.store = FakeStore(segment)
        self.reader: Any = SimpleNamespace(
            folder=folder,
            store=self.store,
            manifest=SimpleNamespace(recipe=RECIPE, model="tiny"),
            settings=Settings(),
        )


@pytest.fixture
def recomputed(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, int]]:
    """Segments that were prefilled again, without a video or a model."""
    calls: list[tuple[str, int]] = []

    def prefill_segment(reader: Any, video_id: str, segment_index: int) -> tuple[ChunkKV, ...]:
        calls.append((video_id, segment_index))
        return CHUNKS

    monkeypatch.setattr(kv_source, "prefill_segment", prefill_segment)
    return calls


def same(left: ChunkKV, right: ChunkKV) -> bool:
    return left.level is right.level and left.groups == right.groups and torch.equal(left.kv_LSKMDh, right.kv_LSKMDh)


@pytest.mark.parametrize("reuse", ["reload", "auto", "recompute"])
def test_every_mode_gives_the_same_chunks_at_the_wanted_level(
    tmp_path: Path, reuse: str, recomputed: list[tuple[str, int]]
) -> None:
    loaded = KVSource(Archive(tmp_path).reader, reuse).load(WANTED)
    assert same(loaded.chunks[WANTED[0][0]["chunk_id"]], CHUNKS[0])
    assert same(loaded.chunks[WANTED[1][0]["chunk_id"]], sparsify(CHUNKS[1], RECIPE.compression))
    assert recomputed == ([(VIDEO, 0)] if reuse == "recompute" else [])
    expected = 0 if reuse == "recompute" else CHUNKS[0].num_bytes + sparsify(CHUNKS[1], 4).num_bytes
    assert loaded.bytes_read == expected
    assert (loaded.load_s > 0, loaded.recompute_s > 0) == (reuse != "recompute", reuse == "recompute")


def test_a_file_of_another_fingerprint_is_refused(tmp_path: Path, recomputed: list[tuple[str, int]]) -> None:
    reader = Archive(tmp_path, fingerprint="0" * 32).reader
    for reuse in ("reload", "auto"):
        with pytest.raises(ModelMismatch, match=f"{'0' * 12}.*{RECIPE.fingerprint[:12]}"):
            KVSource(reader, reuse).load(WANTED)
    assert not recomputed


@pytest.mark.parametrize("header", [{"video_id": OTHER}, {"segment_index": 3}])
def test_a_file_of_another_segment_is_refused(
    tmp_path: Path, header: dict[str, Any], recomputed: list[tuple[str, int]]
) -> None:
    reader = Archive(tmp_path, **header).reader
    for reuse in ("reload", "auto"):
        with pytest.raises(StorageError, match="another segment"):
            KVSource(reader, reuse).load(WANTED)
    assert not recomputed


def test_a_file_that_is_not_the_committed_one_is_refused(tmp_path: Path) -> None:
    archive = Archive(tmp_path)
    archive.store.segment = replace(archive.store.segment, kv_digest="0" * 32)
    with pytest.raises(CorruptKV, match="digest") as caught:
        KVSource(archive.reader, "reload").load(WANTED)
    assert isinstance(translate(caught.value), StorageError)


def test_a_damaged_chunk_is_refused_in_every_mode_that_reads_it(
    tmp_path: Path, recomputed: list[tuple[str, int]]
) -> None:
    archive = Archive(tmp_path)
    content = bytearray(archive.path.read_bytes())
    content[4096 + 5] ^= 1
    archive.path.write_bytes(content)
    for reuse in ("reload", "auto"):
        with pytest.raises(CorruptKV, match="checksum"):
            KVSource(archive.reader, reuse).load(WANTED)
    assert not recomputed


def lose_file(archive: Archive) -> None:
    archive.path.unlink()


def lose_sparse(archive: Archive) -> None:
    archive.store.sparse.clear()


def evict_dense(archive: Archive) -> None:
    archive.store.segment = replace(archive.store.segment, kv_path=None, kv_digest=None)


@pytest.mark.parametrize("lose", [lose_file, lose_sparse, evict_dense])
def test_missing_kv_is_an_error_on_reload_and_made_again_on_auto(
    tmp_path: Path, lose: Any, recomputed: list[tuple[str, int]], caplog: pytest.LogCaptureFixture
) -> None:
    archive = Archive(tmp_path)
    lose(archive)
    with pytest.raises(StorageError, match="--reuse auto"):
        KVSource(archive.reader, "reload").load(WANTED)
    loaded = KVSource(archive.reader, "auto").load(WANTED)
    assert recomputed == [(VIDEO, 0)]
    assert same(loaded.chunks[WANTED[0][0]["chunk_id"]], CHUNKS[0])
    assert same(loaded.chunks[WANTED[1][0]["chunk_id"]], sparsify(CHUNKS[1], RECIPE.compression))
    assert "recomputing" in caplog.text


def test_sparse_chunks_alone_never_open_the_dense_file(tmp_path: Path) -> None:
    archive = Archive(tmp_path)
    archive.path.unlink()
    loaded = KVSource(archive.reader, "reload").load([WANTED[1]])
    assert list(loaded.chunks) == [WANTED[1][0]["chunk_id"]]


def test_a_segment_that_is_gone_is_said_to_be_gone(tmp_path: Path) -> None:
    archive = Archive(tmp_path)
    archive.store.segment = replace(archive.store.segment, segment_id="other")
    with pytest.raises(ArchiveError, match="not in the archive any more"):
        KVSource(archive.reader, "reload").load(WANTED)


def test_the_groups_derived_from_a_chunks_row_are_those_that_sparsify_made(tmp_path: Path) -> None:
    loaded = KVSource(Archive(tmp_path).reader, "reload").load([(chunk_row(0), KVLevel.SPARSE)])
    assert loaded.chunks[make_chunk_id(SEGMENT_ID, 0)].groups == sparsify(CHUNKS[0], RECIPE.compression).groups


def coded(chunk: ChunkKV, *codecs: str) -> ChunkKV:
    """A chunk as it comes back after one codec, or several in turn."""
    kv = chunk.kv_LSKMDh
    for codec in codecs:
        settings = codec_settings(encoding_of(codec))
        kv = decode_kv(encode_kv(kv, settings), tuple(kv.shape), "float32", settings)
    return replace(chunk, kv_LSKMDh=kv)


def switch(archive: Archive, codec: str) -> Path:
    """Encode the segment anew and let its row name the new file; the old one is returned."""
    old = archive.path.parents[3] / str(archive.store.segment.kv_path)
    archive.store.segment = reencode_segment(archive.reader.folder, archive.store.segment, codec)
    return old


def dense_of(archive: Archive, number: int) -> ChunkKV:
    loaded = KVSource(archive.reader, "reload").load([(chunk_row(number), KVLevel.DENSE)])
    chunk = loaded.chunks[make_chunk_id(SEGMENT_ID, number)]
    assert isinstance(chunk, ChunkKV)
    return chunk


def test_a_segment_encoded_anew_is_read_by_its_new_row_and_takes_fewer_bytes(tmp_path: Path) -> None:
    archive = Archive(tmp_path)
    exact = archive.store.segment
    switch(archive, "int8").unlink()
    eight = archive.store.segment
    assert same(dense_of(archive, 1), coded(CHUNKS[1], "int8"))
    switch(archive, "int4").unlink()
    four = archive.store.segment
    assert same(dense_of(archive, 1), coded(CHUNKS[1], "int8", "int4"))
    assert [exact.codec, eight.codec, four.codec] == ["exact", "int8", "int4"]
    assert len({exact.kv_path, eight.kv_path, four.kv_path}) == len({exact.kv_digest, eight.kv_digest}) + 1 == 3
    assert four.kv_bytes == (tmp_path / str(four.kv_path)).stat().st_size
    assert four.fingerprint == exact.fingerprint == RECIPE.fingerprint
    assert [path.name for path in (tmp_path / str(four.kv_path)).parent.iterdir()] == ["00000.int4.vxlkv"]


@pytest.mark.parametrize(
    ("stored", "wanted"), [("exact", "exact"), ("exact", "int2"), ("int8", "int8"), ("int4", "int8"), ("int8", "exact")]
)
def test_bytes_that_are_gone_are_not_brought_back(tmp_path: Path, stored: str, wanted: str) -> None:
    archive = Archive(tmp_path)
    if stored != "exact":
        switch(archive, stored)
    with pytest.raises(ValueError, match="only become fewer"):
        reencode_segment(tmp_path, archive.store.segment, wanted)


def test_a_segment_without_dense_kv_cannot_be_encoded_anew(tmp_path: Path) -> None:
    archive = Archive(tmp_path)
    evict_dense(archive)
    with pytest.raises(ValueError, match="keeps no dense KV"):
        reencode_segment(tmp_path, archive.store.segment, "int8")


def test_values_that_a_codec_cannot_hold_leave_the_stored_file_alone(tmp_path: Path) -> None:
    archive = Archive(tmp_path)
    huge = [chunk.kv_LSKMDh * 1e6 for chunk in CHUNKS]
    header = DenseKVHeader(
        video_id=VIDEO,
        segment_index=0,
        fingerprint=RECIPE.fingerprint,
        dtype="float32",
        layers=2,
        kv_heads=1,
        head_dim=4,
        chunk_groups=(GROUPS,) * len(CHUNKS),
    )
    written = write_dense_kv(archive.path, header, [kv_to_numpy(kv) for kv in huge])
    with pytest.raises(StorageError, match="cannot be stored as int8"):
        reencode_segment(tmp_path, replace(archive.store.segment, kv_digest=written.digest), "int8")
    assert list(archive.path.parent.iterdir()) == [archive.path]


def test_damage_is_not_encoded_anew(tmp_path: Path) -> None:
    archive = Archive(tmp_path)
    content = bytearray(archive.path.read_bytes())
    content[4096 + 5] ^= 1
    archive.path.write_bytes(content)
    with pytest.raises(CorruptKV, match="checksum"):
        reencode_segment(tmp_path, archive.store.segment, "int8")
    assert list(archive.path.parent.iterdir()) == [archive.path]


@pytest.mark.parametrize(("field", "value"), [("codec", "int4"), ("dtype", "bfloat16"), ("num_chunks", 3)])
def test_a_row_that_does_not_fit_its_file_is_refused_by_the_name_of_the_field(
    tmp_path: Path, field: str, value: Any, recomputed: list[tuple[str, int]]
) -> None:
    archive = Archive(tmp_path)
    archive.store.segment = replace(archive.store.segment, **{field: value})
    for reuse in ("reload", "auto"):
        with pytest.raises(StorageError, match=field.replace("num_", "number of ")):
            KVSource(archive.reader, reuse).load(WANTED)
    assert not recomputed


@pytest.mark.parametrize("codec", ["exact", "int8", "int4"])
def test_opened_kv_is_read_when_it_is_placed_and_counts_the_bytes_of_its_file(tmp_path: Path, codec: str) -> None:
    archive = Archive(tmp_path)
    if codec != "exact":
        switch(archive, codec)
    with KVSource(archive.reader, "reload").open(WANTED) as opened:
        pending = opened.chunks[WANTED[0][0]["chunk_id"]]
        assert not isinstance(pending, ChunkKV)
        slot = torch.empty(pending.shape)
        pending.bind(slot)
        pending.start()
        assert pending.wait(0) == 2
    expected = CHUNKS[0] if codec == "exact" else coded(CHUNKS[0], codec)
    assert torch.equal(slot, expected.kv_LSKMDh)
    size = len(encode_kv(CHUNKS[0].kv_LSKMDh, codec_settings(encoding_of(codec))))
    assert opened.bytes_read == size + sparsify(CHUNKS[1], 4).num_bytes
    assert opened.wait_s > 0 and opened.load_s > 0


class SwitchingStore(FakeStore):
    """Its first answer is the row before a writer encoded the segment anew."""

    def __init__(self, archive: Archive, old: SegmentRow) -> None:
        super().__init__(archive.store.segment)
        self.answers = [old]

    def segments(self, video_id: str) -> list[SegmentRow]:
        return [self.answers.pop()] if self.answers else super().segments(video_id)


@pytest.mark.parametrize("is_removed", [True, False])
def test_a_reader_with_the_old_row_gets_the_old_file_or_reads_the_row_again(
    tmp_path: Path, is_removed: bool, recomputed: list[tuple[str, int]]
) -> None:
    archive = Archive(tmp_path)
    old = archive.store.segment
    path = switch(archive, "int8")
    if is_removed:
        path.unlink()
    archive.reader.store = SwitchingStore(archive, old)
    loaded = KVSource(archive.reader, "auto").load(WANTED).chunks[WANTED[0][0]["chunk_id"]]
    assert isinstance(loaded, ChunkKV)
    assert same(loaded, coded(CHUNKS[0], "int8") if is_removed else CHUNKS[0])
    assert not recomputed


def test_readers_beside_a_writer_see_whole_chunks_old_or_new(tmp_path: Path) -> None:
    """The writer goes exact, int8, int4 and starts over; old files are removed at once."""
    archive = Archive(tmp_path)
    exact_row, exact_bytes = archive.store.segment, archive.path.read_bytes()
    versions = [CHUNKS, [coded(c, "int8") for c in CHUNKS], [coded(c, "int8", "int4") for c in CHUNKS]]
    seen: set[int] = set()
    failures: list[BaseException] = []
    done = threading.Event()

    def read() -> None:
        try:
            while not done.is_set():
                with KVSource(archive.reader, "reload").open([(chunk_row(n), KVLevel.DENSE) for n in (0, 1)]) as opened:
                    pending = [opened.chunks[make_chunk_id(SEGMENT_ID, n)] for n in (0, 1)]
                    slots = [torch.full(piece.shape, torch.nan) for piece in pending]  # type: ignore[union-attr]
                    for piece, slot in zip(pending, slots, strict=True):
                        piece.bind(slot)  # type: ignore[union-attr]
                    for piece in pending:
                        piece.start()  # type: ignore[union-attr]
                        piece.wait(0)  # type: ignore[union-attr]
                found = [
                    [version for version, chunks in enumerate(versions) if torch.equal(chunks[n].kv_LSKMDh, slots[n])]
                    for n in (0, 1)
                ]
                assert found[0] == found[1] and len(found[0]) == 1, "a chunk is a mixture, or two files were mixed"
                seen.add(found[0][0])
        except BaseException as exc:
            failures.append(exc)

    readers = [threading.Thread(target=read) for _ in range(2)]
    for reader in readers:
        reader.start()
    for _ in range(40):
        switch(archive, "int8").unlink()
        switch(archive, "int4").unlink()
        last = tmp_path / str(archive.store.segment.kv_path)
        archive.path.write_bytes(exact_bytes)
        archive.store.segment = exact_row
        last.unlink()
        if failures:
            break
    done.set()
    for reader in readers:
        reader.join(60)
    assert not failures, failures[0]
    assert len(seen) > 1
