"""Rows of a segment: their times tile it, their counts and bytes agree, their units are what the store expects."""

from __future__ import annotations

import itertools
from datetime import datetime, timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from indexers.container import DurableFile
from indexers.kv_file import DenseKVReader
from indexers.lease import WriterLease
from indexers.records import QUEUED, SegmentRows, make_video_id, rows_of
from indexers.staging import write_staged
from indexers.store import LanceStore
from indexers.sweep import find_orphans, missing_kv, sweep
from indexers.testing import SimulatedCrash, make_video
from indexers.token_file import TokensReader
from pipeline.ask import sparse_tokens
from pipeline.decode_worker import FrameBatch
from pipeline.kept_tokens import StoredTokens, prefill_settings
from pipeline.kv_encoding import codec_settings
from pipeline.kv_source import read_dense_chunk
from pipeline.segment import SegmentBuilder, SegmentEncoder
from pipeline.tasks import VideoTask
from tests.unit.pipeline.samples import START, tiny_recipe
from tests.unit.videoxl2.fake_streams import FakeStreams
from videoxl2 import overlap, prefill
from videoxl2.kv import ChunkKV, KVLevel, kv_to_numpy, sparsify
from videoxl2.kv_codec import error_bound
from videoxl2.model import VideoXL2
from videoxl2.preprocess import frames_to_pixels

SIZE, EMBEDDING_DIM, VISUAL = 8, 4, 8
RECIPE = tiny_recipe(segment_s=40.0, chunk_groups=3, embedding_dim=EMBEDDING_DIM)
URI = "file:///footage/a.mp4"


class FakeModel:
    """Counts tokens as the model does; its KV says which group and token it belongs to."""

    spec = SimpleNamespace(frames_per_group=4, vision=SimpleNamespace(image_size=SIZE))

    vision = "the tower"
    device = torch.device("cpu")

    def encode_frames(self, pixels_F3SS: Tensor, on_features: Any = None) -> Tensor:
        groups = -(-pixels_F3SS.shape[0] // 4)
        if on_features is not None:
            on_features(pixels_F3SS.mean(dim=(2, 3)))
        first = pixels_F3SS[:, 0, 0, 0][::4, None, None]
        return first.expand(groups, VISUAL, 2).clone()

    def begin_prefill(self, settings: Any, chunk_groups: int, *, expected_groups: int) -> Any:
        return FakePrefill(chunk_groups, expected_groups)


class FakePrefill:
    def __init__(self, chunk_groups: int, expected_groups: int) -> None:
        assert expected_groups >= 0
        self._chunk_groups = chunk_groups
        self._times_s: list[float] = []

    def add(self, visual_GPD: Tensor, times_s: list[float]) -> None:
        assert visual_GPD.shape[0] == len(times_s)
        self._times_s += times_s

    def finish(self) -> Any:
        sizes = [(len(f"{time_s:.1f}"), VISUAL) for time_s in self._times_s]
        chunks = []
        for first in range(0, len(sizes), self._chunk_groups):
            groups = tuple(sizes[first : first + self._chunk_groups])
            tokens = sum(map(sum, groups))
            kv = torch.arange(2 * 2 * 1 * tokens * 2, dtype=torch.float32).view(2, 2, 1, tokens, 2) + first
            chunks.append(ChunkKV(kv, groups, KVLevel.DENSE))
        return SimpleNamespace(chunks=chunks)


class FakeImageEncoder:
    image_size = SIZE

    def __init__(self, *, has_tower: bool = False, token_width: int | None = None) -> None:
        self._has_tower = has_tower
        self.token_width = token_width

    def has_tower(self, tower: Any) -> bool:
        assert tower == FakeModel.vision
        return self._has_tower

    def embed_groups(self, tokens_GPD: Tensor) -> Tensor:
        return torch.nn.functional.normalize(tokens_GPD.flatten(1)[:, :4] + 1, dim=-1)

    def embed(self, pixels_F3SS: Tensor) -> Tensor:
        assert self.token_width is None, "vectors come from the tokens"
        assert not self._has_tower, "one pass is enough"
        return self.embed_features(pixels_F3SS.mean(dim=(2, 3)))

    def embed_features(self, mean_F3: Tensor) -> Tensor:
        return torch.cat([mean_F3, torch.ones(len(mean_F3), 1)], dim=1)


def build(
    num_frames: int,
    *,
    segment_index: int = 1,
    duration_s: float = 500.0,
    origin: datetime | None = START,
    batch: int = 8,
    segment_s: float | None = 40.0,
    has_tower: bool = False,
    token_width: int | None = None,
) -> Any:
    task = VideoTask(
        video_id=make_video_id(URI, "1"),
        uri=URI,
        key="a.mp4",
        etag="1",
        size=1,
        source="file:///footage",
        camera="gate",
        title="a",
        start_time=origin,
        time_zone=None,
    )
    recipe = RECIPE.model_copy(update={"segment_s": segment_s})
    builder = SegmentBuilder(
        model=FakeModel(),  # type: ignore[arg-type]
        image_encoder=FakeImageEncoder(has_tower=has_tower, token_width=token_width),  # type: ignore[arg-type]
        recipe=recipe,
        task=task,
        facts={"duration_s": duration_s, "start_time": origin},
        segment_index=segment_index,
    )
    rng = np.random.default_rng(0)
    first_s = segment_index * (segment_s or 0.0)
    for first in range(0, num_frames, batch):
        count = min(batch, num_frames - first)
        builder.add(
            FrameBatch(
                segment_index=segment_index,
                first_frame_index_in_segment=first,
                pixels_u8_FHWC=rng.integers(0, 256, (count, SIZE, SIZE, 3), dtype=np.uint8),
                embed_u8_FHWC=None,
                times_s=[first_s + first + i for i in range(count)],
                motion=[(first + i) / 100 for i in range(count)],
                thumbnails=[f"{(first + i) // 4}".encode() for i in range(0, count, 4)],
                is_segment_end=first + count == num_frames,
            )
        )
    return builder.finish()


def rows_at(tmp_path: Path, num_frames: int = 40, **options: Any) -> SegmentRows:
    rows: SegmentRows = build(num_frames, **options).write_kv(tmp_path)
    rows.check(EMBEDDING_DIM)
    return rows


@pytest.mark.parametrize(
    ("num_frames", "end_s"),
    [(40, 80.0), (38, 80.0), (25, 80.0), (1, 80.0)],
    ids=["full", "last group of 2", "last chunk of 1 group", "one frame"],
)
def test_groups_and_chunks_tile_the_segment_half_open(tmp_path: Path, num_frames: int, end_s: float) -> None:
    rows = rows_at(tmp_path, num_frames)
    assert (rows.segment["start_s"], rows.segment["end_s"]) == (40.0, end_s)
    for table in (rows.chunks, rows.embeddings):
        spans = [(row["start_s"], row["end_s"]) for row in rows_of(table)]
        assert spans[0][0] == 40.0 and spans[-1][1] == end_s
        assert all(start < end for start, end in spans)
        assert all(left[1] == right[0] for left, right in itertools.pairwise(spans))
    groups, chunks = rows_of(rows.embeddings), {row["chunk_id"]: row for row in rows_of(rows.chunks)}
    for group in groups:
        chunk = chunks[group["chunk_id"]]
        assert chunk["start_s"] <= group["start_s"] < group["end_s"] <= chunk["end_s"]


def test_counts_agree(tmp_path: Path) -> None:
    rows = rows_at(tmp_path, 38)
    chunks = rows_of(rows.chunks)
    assert [row["num_groups"] for row in chunks] == [3, 3, 3, 1]
    assert [row["chunk_index"] for row in chunks] == [0, 1, 2, 3]
    assert [row["group_index"] for row in rows_of(rows.embeddings)] == list(range(10))
    segment = rows.segment
    assert (segment["num_chunks"], segment["num_groups"], segment["num_frames"]) == (4, 10, 38)
    assert segment["num_tokens"] == sum(row["num_tokens"] for row in chunks) == 10 * (4 + VISUAL)
    assert segment["sparse_bytes"] == sum(len(row["kv"]) for row in rows.sparse.to_pylist())


def test_the_wall_clock_is_the_origin_plus_media_time(tmp_path: Path) -> None:
    rows = rows_at(tmp_path)
    for table in (rows.chunks, rows.embeddings):
        for row in rows_of(table):
            assert row["start_time"] == START + timedelta(seconds=row["start_s"])
            assert row["end_time"] == START + timedelta(seconds=row["end_s"])


def test_footage_of_unknown_start_has_media_time_only(tmp_path: Path) -> None:
    rows = rows_at(tmp_path, origin=None)
    for table in (rows.chunks, rows.embeddings):
        assert {(row["start_time"], row["end_time"]) for row in rows_of(table)} == {(None, None)}
        assert rows_of(table)[0]["start_s"] == 40.0


@pytest.mark.parametrize(
    ("options", "end_s"),
    [
        ({"duration_s": 75.5}, 75.5),
        ({"duration_s": 80.0}, 80.0),
        ({"duration_s": 10.0}, 79.001),
        ({"segment_s": None, "segment_index": 0, "duration_s": 44.4}, 44.4),
        ({"segment_s": None, "segment_index": 0, "duration_s": 0.0}, 39.001),
    ],
    ids=["video ends inside", "video ends at the boundary", "duration too short", "whole video", "no duration"],
)
def test_a_segment_ends_at_its_boundary_or_with_the_video_and_never_before_its_last_frame(
    tmp_path: Path, options: dict[str, Any], end_s: float
) -> None:
    frames = 36 if options["duration_s"] == 75.5 else 40
    rows = rows_at(tmp_path, frames, **options)
    assert rows.segment["end_s"] == pytest.approx(end_s)
    assert rows_of(rows.chunks)[-1]["end_s"] == rows_of(rows.embeddings)[-1]["end_s"] == rows.segment["end_s"]


def test_the_kv_file_holds_the_chunks_under_the_recipe_s_fingerprint(tmp_path: Path) -> None:
    segment = build(38)
    rows = segment.write_kv(tmp_path)
    with DenseKVReader(tmp_path / rows.segment["kv_path"], rows.segment["kv_digest"]) as file:
        assert file.header.fingerprint == RECIPE.fingerprint == rows.segment["fingerprint"]
        assert (file.header.video_id, file.header.segment_index) == (segment.task.video_id, 1)
        assert file.num_bytes == rows.segment["kv_bytes"]
        for number, (chunk, row) in enumerate(zip(segment.chunks, rows_of(rows.chunks), strict=True)):
            assert file.entries[number][:2] == (row["kv_offset"], row["kv_length"])
            assert bytes(file.read_chunk(number)) == kv_to_numpy(chunk.kv_LSKMDh).tobytes()
            assert file.header.chunk_groups[number] == chunk.groups


@pytest.mark.parametrize("codec", ["exact", "int8", "int4"])
def test_a_codec_changes_the_dense_file_and_says_so_and_changes_nothing_else(tmp_path: Path, codec: str) -> None:
    segment = build(38)
    exact, rows = segment.write_kv(tmp_path / "exact"), segment.write_kv(tmp_path, codec)
    assert (rows.segment["codec"], rows.segment["tier"]) == (codec, "dense")
    assert rows.segment["fingerprint"] == exact.segment["fingerprint"]
    assert rows.sparse == exact.sparse and rows.embeddings == exact.embeddings
    with DenseKVReader(tmp_path / rows.segment["kv_path"], rows.segment["kv_digest"]) as file:
        settings = codec_settings(file.header.encoding)
        assert (file.header.encoding.codec, file.header.dtype) == (codec, "float32")
        for number, (chunk, row) in enumerate(zip(segment.chunks, rows_of(rows.chunks), strict=True)):
            assert file.entries[number][:2] == (row["kv_offset"], row["kv_length"])
            back = read_dense_chunk(file, number)
            apart = (back.kv_LSKMDh - chunk.kv_LSKMDh).abs()
            assert bool((apart <= error_bound(chunk.kv_LSKMDh, settings)).all())


def test_values_that_a_codec_cannot_hold_are_stored_exactly(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    segment = build(38)
    segment.chunks[1].kv_LSKMDh[0, 0, 0, 0, 0] = torch.inf
    rows = segment.write_kv(tmp_path, "int8")
    assert rows.segment["codec"] == "exact" and "is stored exactly" in caplog.text
    assert [path.name for path in tmp_path.rglob("*.*")] == [Path(rows.segment["kv_path"]).name]
    with DenseKVReader(tmp_path / rows.segment["kv_path"]) as file:
        assert torch.equal(read_dense_chunk(file, 1).kv_LSKMDh, segment.chunks[1].kv_LSKMDh)


def test_sparse_rows_hold_the_sparsified_chunks(tmp_path: Path) -> None:
    segment = build(38)
    rows = segment.write_kv(tmp_path)
    stored: dict[str, bytes] = {}
    for row in rows.sparse.sort_by([("chunk_id", "ascending"), ("part", "ascending")]).to_pylist():
        stored[row["chunk_id"]] = stored.get(row["chunk_id"], b"") + row["kv"]
    for chunk, row in zip(segment.chunks, rows_of(rows.chunks), strict=True):
        pooled = sparsify(chunk, RECIPE.compression)
        assert len(stored[row["chunk_id"]]) == pooled.num_bytes
        assert sparse_tokens(row, RECIPE.compression) == pooled.num_tokens


def test_vectors_and_motion_are_means_of_their_group(tmp_path: Path) -> None:
    segment = build(38)
    groups = rows_of(segment.write_kv(tmp_path).embeddings)
    assert groups[0]["motion"] == pytest.approx(np.mean([0.00, 0.01, 0.02, 0.03]))
    assert groups[9]["motion"] == pytest.approx(np.mean([0.36, 0.37]))
    assert np.linalg.norm([group["vector"] for group in groups], axis=1) == pytest.approx(1.0)


def test_a_chunk_shows_its_middle_group(tmp_path: Path) -> None:
    shown = [row["thumbnail"] for row in rows_of(rows_at(tmp_path, 38).chunks)]
    assert shown == [b"1", b"4", b"7", b"9"]


def test_the_size_of_batches_changes_nothing(tmp_path: Path) -> None:
    """A batch holds whole frame groups, so that groups never straddle two of them."""
    once, twice = rows_at(tmp_path / "a", 40, batch=40), rows_at(tmp_path / "b", 40, batch=4)
    assert once.segment == twice.segment
    assert once.chunks == twice.chunks and once.sparse == twice.sparse
    assert [row["group_id"] for row in rows_of(once.embeddings)] == [
        row["group_id"] for row in rows_of(twice.embeddings)
    ]


def test_vectors_are_of_the_visual_tokens_where_the_encoder_reads_them() -> None:
    """However a segment falls into batches; frames are not looked at a second time."""
    segments = [build(22, batch=batch, token_width=2) for batch in (4, 8, 24)]
    for segment in segments:
        assert segment.vectors_GE.shape == (6, EMBEDDING_DIM) and segment.vectors_GE.dtype == np.float32
        np.testing.assert_allclose(np.linalg.norm(segment.vectors_GE, axis=1), 1, atol=1e-6)
        expected = FakeImageEncoder().embed_groups(segment.visual_GPD).numpy()
        np.testing.assert_array_equal(segment.vectors_GE, expected)
        np.testing.assert_array_equal(segment.vectors_GE, segments[0].vectors_GE)


def test_a_shared_tower_gives_the_same_vectors() -> None:
    alone, shared = build(22), build(22, has_tower=True)
    np.testing.assert_array_equal(alone.vectors_GE, shared.vectors_GE)


def test_tokens_are_kept_beside_dense_kv_or_in_its_place(tmp_path: Path) -> None:
    segment = build(40)
    plain, both = segment.write_kv(tmp_path / "plain"), segment.write_kv(tmp_path, tokens=True)
    tokens_only = segment.write_kv(tmp_path / "only", keep=[True, False, True, True], dense=False, tokens=True)
    nothing = segment.write_kv(tmp_path / "nothing", keep=[False] * 4, tokens=True)
    for rows in (plain, both, tokens_only, nothing):
        rows.check(EMBEDDING_DIM)
    assert plain.segment["tokens_path"] is None and nothing.file_paths == ()
    assert both.file_paths == (plain.segment["kv_path"], both.segment["tokens_path"])
    assert {**both.segment, "tokens_path": None, "tokens_bytes": 0, "tokens_digest": None} == plain.segment
    assert [(rows.segment["tier"], rows.segment["codec"]) for rows in (plain, both, tokens_only, nothing)] == [
        *(("dense", "exact"), ("dense", "exact"), ("tokens", "none"), ("none", "none"))
    ]
    with TokensReader(tmp_path / both.segment["tokens_path"], both.segment["tokens_digest"]) as file:
        assert file.header.fingerprint == segment.recipe.fingerprint and file.header.dtype == "float32"
        assert file.header.group_times_s == segment.group_times_s
        assert [len(times_s) for times_s in file.header.chunk_times_s] == [3, 3, 3, 1]
        read = torch.cat([StoredTokens(file).chunk(chunk) for chunk in range(4)])
        assert torch.equal(read, segment.visual_GPD) and file.num_bytes == both.segment["tokens_bytes"]
    # A chunk can be used dense where its KV, or the tokens in its place, were kept for that.
    lengths = [row["kv_length"] > 0 for row in rows_of(tokens_only.chunks)]
    assert lengths == [True, False, True, True]


@pytest.mark.parametrize("crash_at", [0, 1, 2])
def test_killed_between_its_files_a_segment_leaves_orphans_and_is_written_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, crash_at: int
) -> None:
    """The files become durable one by one: tokens, dense KV, staged rows."""
    commit, made = DurableFile.commit, 0

    def dying(self: DurableFile) -> None:
        nonlocal made
        if made == crash_at:
            raise SimulatedCrash
        made += 1
        commit(self)

    segment = build(40)
    store = LanceStore.create(tmp_path, EMBEDDING_DIM)
    store.upsert_videos([make_video("a", uri=URI, etag="1", state=QUEUED)])
    with monkeypatch.context() as patched, pytest.raises(SimulatedCrash):
        patched.setattr(DurableFile, "commit", dying)
        write_staged(tmp_path / "staging", segment.write_kv(tmp_path, tokens=True))
    with WriterLease(tmp_path) as lease:
        assert len(sweep(tmp_path, store, lease).removed) == crash_at
        assert find_orphans(tmp_path, store) == []
        rows = segment.write_kv(tmp_path, tokens=True)
        write_staged(tmp_path / "staging", rows)
        assert find_orphans(tmp_path, store) == [], "staged rows need both files"
        assert store.insert_segment(rows) and missing_kv(store) == []
        (tmp_path / rows.segment["tokens_path"]).unlink()
        assert [row.segment_id for row in missing_kv(store)] == [segment.segment_id]


def batches_of(num_frames: int, size: int, batch: int) -> list[FrameBatch]:
    rng = np.random.default_rng(2)
    return [
        FrameBatch(
            segment_index=0,
            first_frame_index_in_segment=first,
            pixels_u8_FHWC=rng.integers(0, 256, (min(batch, num_frames - first), size, size, 3), dtype=np.uint8),
            embed_u8_FHWC=None,
            times_s=[float(second) for second in range(first, min(first + batch, num_frames))],
            motion=[0.0] * min(batch, num_frames - first),
            thumbnails=[],
            is_segment_end=first + batch >= num_frames,
        )
        for first in range(0, num_frames, batch)
    ]


def test_vision_of_later_frames_is_queued_while_the_language_model_works(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """With a GPU's streams stood in for: the host never waits, no tokens are used before they are there, same KV."""
    monkeypatch.setattr(prefill, "PASS_TOKENS", 300)  # of the small model this is two blocks
    tiny_model = VideoXL2.from_pretrained("tiny")
    recipe, size = tiny_recipe(chunk_groups=3), tiny_model.spec.vision.image_size
    batches = batches_of(54, size, 8)
    visual = torch.cat([tiny_model.encode_frames(frames_to_pixels(batch.pixels_u8_FHWC, size)) for batch in batches])
    times = [time_s for batch in batches for time_s in batch.times_s][::4]
    expected = tiny_model.prefill(visual, times, prefill_settings(recipe), 3).chunks

    streams, numbers, real = FakeStreams(), iter(range(100)), tiny_model.encode_frames
    monkeypatch.setattr(overlap, "streams_of", lambda device: streams)
    monkeypatch.setattr(
        tiny_model, "encode_frames", lambda *pixels, **options: streams.deferred(next(numbers), real(*pixels))
    )
    passes = prefill._run_together
    monkeypatch.setattr(
        prefill, "_run_together", lambda *given: (passes(*given), streams.log.append(("language", len(streams.log))))
    )
    encoder = SegmentEncoder(tiny_model, recipe, expected_s=54.0)
    for batch in batches:
        encoder.add(batch)
    found = encoder.prefill()
    assert len(found) == len(expected) == 5
    assert all(torch.equal(ours.kv_LSKMDh, its.kv_LSKMDh) for ours, its in zip(found, expected, strict=True))
    assert torch.equal(encoder.visual_GPD, visual)
    order = [what for what, _ in streams.log if what in ("vision", "language", "host waits")]
    assert "host waits" not in order
    assert order.count("vision") == 7 and order.count("language") == 3  # the prefix, what is whole, the rest
    assert order.index("language") < len(order) - 1 - order[::-1].index("vision"), "before the last batch has come"
    assert encoder.language_s() > 0


@pytest.mark.parametrize(
    ("duration_s", "segment_s", "expected"), [(500.0, 40.0, 10), (70.0, 40.0, 8), (30.0, 40.0, 0), (90.0, None, 23)]
)
def test_room_is_made_for_what_the_probe_promises(
    monkeypatch: pytest.MonkeyPatch, duration_s: float, segment_s: float | None, expected: int
) -> None:
    seen: list[int] = []

    def begin(self: FakeModel, settings: Any, chunk_groups: int, *, expected_groups: int) -> FakePrefill:
        seen.append(expected_groups)
        return FakePrefill(chunk_groups, expected_groups)

    monkeypatch.setattr(FakeModel, "begin_prefill", begin)
    build(8, duration_s=duration_s, segment_s=segment_s)
    assert seen == [expected]
