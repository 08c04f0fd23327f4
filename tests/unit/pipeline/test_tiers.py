"""Dense KV under a cap: the coldest go first and step by step, pins stay, rows and files agree, nothing exceeds."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from indexers.access_log import note_uses
from indexers.errors import DiskFull
from indexers.folder import Folder, Place, as_folder
from indexers.kv_file import DenseKVHeader, DenseKVReader, file_bytes, write_dense_kv
from indexers.lease import WriterLease
from indexers.records import SegmentRow, VideoRow
from indexers.store import LanceStore
from indexers.sweep import find_orphans, missing_kv, sweep
from indexers.testing import CrashingStore, SegmentShape, SimulatedCrash, add_video, make_video
from indexers.token_file import TokensReader
from pipeline import Archive, tiers
from pipeline.config import RetentionRule, StorageSettings, load_settings
from pipeline.errors import UsageError
from pipeline.kv_encoding import codec_settings, decode_chunk, reencode_segment
from pipeline.recipe import Manifest, write_manifest
from pipeline.tiers import (
    Demotion,
    KeptKV,
    Tier,
    TierKeeper,
    bytes_left,
    is_pinned,
    kept_dense,
    kv_file_bytes,
    largest_segment_bytes,
    refresh_videos,
    room_wanted,
    tier_of,
    token_bytes,
)
from tests.unit.pipeline.samples import tiny_recipe
from tests.vxl import call
from videoxl2.kv import kv_to_numpy
from videoxl2.kv_codec import error_bound

PlaceT = TypeVar("PlaceT", Path, Folder)
SHAPE = SegmentShape(num_chunks=2, groups_per_chunk=6, visual_tokens=36, layers=4, kv_heads=2, head_dim=32)
VIDEOS = [make_video("a"), make_video("b", camera="yard"), make_video("c")]


def make_tiered(
    folder: PlaceT, videos: list[VideoRow] = VIDEOS, num_segments: int = 2, shape: SegmentShape = SHAPE
) -> PlaceT:
    """An archive whose KV files are large enough for codecs to matter."""
    recipe = tiny_recipe()
    write_manifest(folder, Manifest(model="tiny", recipe=recipe))
    with LanceStore.create(folder, recipe.embedding_dim) as store:
        for video in videos:
            add_video(store, video, num_segments, embedding_dim=recipe.embedding_dim, archive=folder, shape=shape)
    return folder


@pytest.fixture
def archive(tmp_path: Path) -> Path:
    return make_tiered(tmp_path / "archive")


@pytest.fixture
def store(archive: Path) -> Iterator[LanceStore]:
    with LanceStore.open(archive) as opened, WriterLease(archive):
        yield opened


def tiers_of(store: LanceStore) -> dict[str, Tier]:
    return {segment.segment_id: tier_of(segment) for segment in store.segments_of()}


def shrink(archive: Path, keeper: TierKeeper, num_bytes: int) -> list[Demotion]:
    """Demote until so many bytes are left, under a cap that leaves room to encode in."""
    cap = 2 * kv_file_bytes(archive)
    return keeper.make_room(cap, cap - num_bytes)


def check_files(folder: Place, store: LanceStore) -> None:
    """Every row's file is there, whole and the one it names; no other file is there."""
    for segment in store.segments_of():
        if segment.tokens_path is not None:
            with TokensReader(segment.tokens_path, segment.tokens_digest, as_folder(folder)) as tokens:
                assert tokens.num_bytes == segment.tokens_bytes
                tokens.verify()
        else:
            assert (segment.tokens_bytes, segment.tokens_digest) == (0, None)
        if segment.kv_path is None:
            tier = "none" if segment.tokens_path is None else "tokens"
            assert (segment.tier, segment.codec, segment.kv_bytes, segment.kv_digest) == (tier, "none", 0, None)
            continue
        assert segment.tier == "dense"
        with DenseKVReader(segment.kv_path, segment.kv_digest, as_folder(folder)) as file:
            assert file.num_bytes == segment.kv_bytes
            file.verify()
    assert find_orphans(folder, store) == []
    sizes: dict[str, int] = {}
    for segment in store.segments_of():
        sizes[segment.video_id] = sizes.get(segment.video_id, 0) + segment.file_bytes
    assert kv_file_bytes(folder) == sum(sizes.values())


def test_the_coldest_are_demoted_first_and_only_as_far_as_needed(archive: Path, store: LanceStore) -> None:
    ids = sorted(tiers_of(store))
    future = 4_000_000_000
    note_uses(archive, ids[1:], now=future)
    note_uses(archive, ids[2:], now=future + 10)
    full = kv_file_bytes(archive)
    steps = shrink(archive, TierKeeper(archive, store, ()), full - 1000)
    assert [(step.segment_id, step.before, step.after) for step in steps] == [(ids[0], Tier.EXACT, Tier.INT8)]
    assert kv_file_bytes(archive) == full - steps[0].freed
    check_files(archive, store)
    row = store.video(ids[0].rpartition("-")[0])
    assert row is not None
    assert row.kv_bytes == sum(segment.kv_bytes for segment in store.segments(row.video_id))


def test_all_become_int8_before_any_becomes_int4_and_none_comes_last(archive: Path, store: LanceStore) -> None:
    full = kv_file_bytes(archive)
    keeper = TierKeeper(archive, store, ())
    shrink(archive, keeper, full * 6 // 10)
    assert set(tiers_of(store).values()) == {Tier.INT8}
    shrink(archive, keeper, full * 38 // 100)
    assert set(tiers_of(store).values()) <= {Tier.INT8, Tier.INT4}
    shrink(archive, keeper, full * 2 // 10)
    assert set(tiers_of(store).values()) == {Tier.INT4, Tier.NONE}
    check_files(archive, store)
    shrink(archive, keeper, 0)
    assert set(tiers_of(store).values()) == {Tier.NONE}
    check_files(archive, store)
    assert shrink(archive, keeper, 0) == []


def test_the_age_of_a_segment_survives_encoding(archive: Path, store: LanceStore) -> None:
    before = {item.segment.segment_id: item.last_use for item in TierKeeper(archive, store, ()).candidates()}
    full = kv_file_bytes(archive)
    shrink(archive, TierKeeper(archive, store, ()), full * 6 // 10)
    after = {item.segment.segment_id: item.last_use for item in TierKeeper(archive, store, ()).candidates()}
    assert after == pytest.approx(before)


@pytest.mark.parametrize("cap_share", [0.9, 0.5, 0.2, 0.05])
def test_the_cap_holds_at_every_moment_of_making_room(
    archive: Path, store: LanceStore, cap_share: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also while a file is encoded anew beside the old one: seen whenever the temporary file is finished."""
    from indexers.container import DurableFile

    full = kv_file_bytes(archive)
    cap = full  # the files fill it: encoding anew has no room at first
    seen: list[int] = []
    commit = DurableFile.commit

    def watched(self: DurableFile) -> None:
        self.file.flush()
        seen.append(kv_file_bytes(archive))
        commit(self)

    monkeypatch.setattr(DurableFile, "commit", watched)
    TierKeeper(archive, store, ()).make_room(cap, round(full * (1 - cap_share)))
    assert kv_file_bytes(archive) <= round(full * cap_share) + 1
    assert max(seen, default=0) <= cap
    check_files(archive, store)


@pytest.mark.parametrize("pin", ["yard", "file:///footage/b.mp4", "/footage/b.mp4"])
def test_pinned_footage_is_never_demoted(archive: Path, store: LanceStore, pin: str) -> None:
    full = kv_file_bytes(archive)
    steps = TierKeeper(archive, store, (pin,)).make_room(full, full)
    assert {step.uri.rsplit("/", 1)[-1] for step in steps} == {"a.mp4", "c.mp4"}
    kept = [segment for segment in store.segments_of() if segment.kv_path is not None]
    assert {segment.video_id for segment in kept} == {VIDEOS[1].video_id}
    assert {tier_of(segment) for segment in kept} == {Tier.EXACT}


def test_pins() -> None:
    assert is_pinned(VIDEOS[0], ["gate"]) and not is_pinned(VIDEOS[0], ["yard"])
    assert not is_pinned(make_video("x", camera=None), ["None", ""]) and not is_pinned(None, ["gate"])


def test_replaced_versions_go_before_everything_else(tmp_path: Path) -> None:
    old = make_video("a", etag="0", superseded_by=VIDEOS[0].video_id)
    folder = make_tiered(tmp_path / "archive", [VIDEOS[0], old], 1)
    with LanceStore.open(folder) as store:
        note_uses(folder, [segment.segment_id for segment in store.segments(old.video_id)], now=4_000_000_000)
        first = TierKeeper(folder, store, ()).candidates()[0]
    assert first.segment.video_id == old.video_id


def test_a_damaged_file_is_not_encoded_and_does_not_stop_the_rest(archive: Path, store: LanceStore) -> None:
    ids = sorted(tiers_of(store))
    path = archive / str(next(s.kv_path for s in store.segments_of() if s.segment_id == ids[0]))
    content = bytearray(path.read_bytes())
    content[-9000] ^= 1
    path.write_bytes(content)
    note_uses(archive, ids[1:], now=4_000_000_000)
    steps = shrink(archive, TierKeeper(archive, store, ()), kv_file_bytes(archive) - 1000)
    assert [step.segment_id for step in steps] == [ids[1]]
    assert tiers_of(store)[ids[0]] is Tier.EXACT


def test_a_disk_without_room_to_encode_in_loses_the_coldest_instead(
    archive: Path, store: LanceStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(folder: Path, segment: SegmentRow, codec: str) -> Any:
        raise DiskFull(str(folder), 1, 0)

    monkeypatch.setattr(tiers, "reencode_segment", refuse)
    keeper = TierKeeper(archive, store, ())
    coldest = keeper.candidates()[0]
    steps = shrink(archive, keeper, kv_file_bytes(archive) - 1000)
    assert [(step.segment_id, step.after) for step in steps] == [(coldest.segment.segment_id, Tier.NONE)]
    check_files(archive, store)
    assert keeper.demote(keeper.candidates()[0], Tier.INT8, None) is None


def test_sizes_that_a_killed_demotion_left_behind_are_put_right_by_the_next_writer(archive: Path) -> None:
    with WriterLease(archive), LanceStore.open(archive) as store:
        refresh_videos(store)
        keeper = TierKeeper(archive, store, ())
        step = keeper.demote(keeper.candidates()[0], Tier.INT8, None)
        assert step is not None
        video_id = step.segment_id.rpartition("-")[0]
        before = store.video(video_id)
        assert before is not None and before.kv_bytes > sum(row.kv_bytes for row in store.segments(video_id))
    Archive(archive, settings=load_settings(environ={})).kv.evict(max_bytes=1 << 40)
    with LanceStore.open(archive) as store:
        after = store.video(video_id)
        assert after is not None and after.kv_bytes == sum(row.kv_bytes for row in store.segments(video_id))


@pytest.mark.parametrize("after", [False, True], ids=["before", "after"])
@pytest.mark.parametrize("tier", [Tier.INT8, Tier.NONE])
def test_a_demotion_that_is_killed_leaves_a_row_with_its_file(archive: Path, tier: Tier, after: bool) -> None:
    with WriterLease(archive) as lease:
        dying = CrashingStore(archive)
        dying.crash_at, dying.crash_after = 0, after
        item = TierKeeper(archive, dying, ()).candidates()[0]
        with pytest.raises(SimulatedCrash):
            TierKeeper(archive, dying, ()).demote(item, tier, None)
        with LanceStore.open(archive) as store:
            named = [archive / segment.kv_path for segment in store.segments_of() if segment.kv_path is not None]
            assert all(path.is_file() for path in named)
            sweep(archive, store, lease)
            check_files(archive, store)
            assert tiers_of(store)[item.segment.segment_id] is (tier if after else Tier.EXACT)


def test_room_is_bounded_by_the_cap() -> None:
    recipe = tiny_recipe()
    largest = largest_segment_bytes(recipe)
    assert largest is not None
    groups = 150 + 1
    assert largest > groups * 36 * token_bytes(recipe)
    store: Any = None
    assert room_wanted(recipe, store, 100 * largest, 1) == 2 * largest
    assert room_wanted(recipe, store, 100 * largest, 4) == 5 * largest
    assert room_wanted(recipe, store, 3 * largest, 4) == 3 * largest // 2
    assert room_wanted(recipe, store, largest, 4) == largest
    assert largest_segment_bytes(tiny_recipe(segment_s=None)) is None


def test_static_chunks_are_those_up_to_the_threshold() -> None:
    assert kept_dense([0.0, 0.1, 0.2], None) == [True, True, True]
    assert kept_dense([0.0, 0.1, 0.2], 0.1) == [False, False, True]
    assert kept_dense([float("nan")], 0.1) == [True]


def test_what_was_given_up_is_said() -> None:
    kept = KeptKV(tiny_recipe(), StorageSettings(static_motion=0.5))
    assert kept.notices() == ()
    kept.static_chunks, kept.chunks, kept.static_bytes, kept.demoted, kept.without_room = 2, 5, 3_000_000, 4, 1
    first, second, third = kept.notices()
    assert "2 of 5 chunks" in first and "3.0 MB" in first
    assert "4 times" in second and "1 segments" in third


def evict(archive: Path, *more: str | Path) -> Any:
    return call("kv", "evict", "--archive", archive, "--json", *more)


def test_evict_from_the_command_line(archive: Path, tmp_path: Path) -> None:
    full = kv_file_bytes(archive)
    assert call("kv", "evict", "--archive", archive).code == 2
    assert evict(archive, "--max-bytes", "-1").code == 2
    planned = evict(archive, "--max-bytes", str(full // 2), "--dry-run").json
    assert planned["dry_run"] and planned["demoted"] and kv_file_bytes(archive) == full
    done = evict(archive, "--max-bytes", str(full // 2))
    assert done.code == 0, done.err
    assert done.json["bytes_before"] == full and done.json["fits"]
    assert done.json["bytes_after"] == kv_file_bytes(archive) <= full // 2
    config = tmp_path / "vxl.toml"
    config.write_text('[storage]\nmax_kv_bytes = 0\npins = ["gate"]\n')
    refused = evict(archive, "--config", config)
    assert refused.code == 1 and not refused.json["fits"]
    shown = call("kv", "evict", "--archive", archive, "--max-bytes", "0")
    assert shown.code == 0 and "none" in shown.out
    assert kv_file_bytes(archive) == 0
    assert call("kv", "evict", "--archive", archive, "--max-bytes", "0", "--json").json["demoted"] == []


def test_evict_is_refused_while_another_process_writes(archive: Path) -> None:
    opened = Archive(archive, settings=load_settings(environ={}))
    with WriterLease(archive), pytest.raises(Exception, match="being written"):
        opened.kv.evict(max_bytes=0)
    with pytest.raises(UsageError, match="no cap"):
        opened.kv.evict()


def test_a_step_reads_as_what_it_is() -> None:
    step = Demotion(segment_id="s", uri="u", camera=None, before=Tier.EXACT, after=Tier.INT8, freed=5)
    assert step.to_dict() == {
        **{"segment_id": "s", "uri": "u", "camera": None},
        **{"before": "exact", "after": "int8", "freed": 5},
    }


@given(
    layers=st.integers(1, 80),
    chunks=st.lists(st.lists(st.tuples(st.integers(1, 16), st.integers(1, 200)), max_size=6), min_size=1, max_size=30),
)
def test_no_file_is_larger_than_its_bound(layers: int, chunks: list[list[tuple[int, int]]]) -> None:
    """A checksum for each layer makes the header of a deep model's file larger than its chunks alone would."""
    header = DenseKVHeader(
        **{"video_id": "a" * 32, "segment_index": 99_999, "fingerprint": "f" * 32, "dtype": "bfloat16"},
        **{"layers": layers, "kv_heads": 1, "head_dim": 1},
        chunk_groups=tuple(map(tuple, chunks)),
    )
    payload = sum(map(header.chunk_bytes, range(len(chunks))))
    assert file_bytes(header) <= tiers._file_bound(payload, len(chunks), sum(map(len, chunks)), layers)


@pytest.mark.parametrize("version", [2, 3])
@pytest.mark.parametrize("codec", ["int8", "int4"])
def test_the_size_of_an_encoded_file_is_known_before_it_is_written(
    archive: Path, store: LanceStore, version: int, codec: str
) -> None:
    """A file of an older format becomes one of the present, whose header is longer."""
    chunks = [torch.randn(40, 2, 1, 9, 4, generator=torch.Generator().manual_seed(n)) for n in range(5)]
    header = DenseKVHeader(
        **{"video_id": "a" * 32, "segment_index": 0, "fingerprint": "f" * 32, "dtype": "float32"},
        **{"layers": 40, "kv_heads": 1, "head_dim": 4},
        chunk_groups=(((1, 8),),) * len(chunks),
        format=version,
    )
    made = write_dense_kv(archive / "x.vxlkv", header, map(kv_to_numpy, chunks))
    row = replace(store.segments_of()[0], kv_path="x.vxlkv", kv_bytes=made.num_bytes, kv_digest=made.digest)
    planned = tiers.encoded_file_bytes(archive, row, Tier(codec))
    written = reencode_segment(archive, row, codec)
    assert planned == written.kv_bytes == (archive / str(written.kv_path)).stat().st_size
    with DenseKVReader(archive / str(written.kv_path)) as file:
        assert file.header.format == 3
        file.verify()
        first = decode_chunk(file.read_chunk(0), file.header, 0)
    assert bool(((first - chunks[0]).abs() <= error_bound(chunks[0], codec_settings(file.header.encoding))).all())


def test_sizes_of_absent_files_are_none(archive: Path, store: LanceStore) -> None:
    segment = store.segments_of()[0]
    planned = tiers.encoded_file_bytes(archive, segment, Tier.INT8)
    assert planned is not None and planned < segment.kv_bytes
    (archive / str(segment.kv_path)).unlink()
    assert tiers.encoded_file_bytes(archive, segment, Tier.INT8) is None
    assert segment.segment_id not in {item.segment.segment_id for item in TierKeeper(archive, store, ()).candidates()}
    assert np.isfinite(kv_file_bytes(archive))


WITH_TOKENS = replace(SHAPE, width=64)


@pytest.fixture
def kept(tmp_path: Path) -> Path:
    """An archive whose segments keep their tokens, but for those of video c."""
    folder = make_tiered(tmp_path / "kept", VIDEOS[:2], shape=WITH_TOKENS)
    with LanceStore.open(folder) as store:
        add_video(store, VIDEOS[2], 1, embedding_dim=tiny_recipe().embedding_dim, archive=folder, shape=SHAPE)
    return folder


@pytest.fixture
def kept_store(kept: Path) -> Iterator[LanceStore]:
    with LanceStore.open(kept) as opened, WriterLease(kept):
        yield opened


def test_tokens_come_after_int4_and_before_nothing(kept: Path, kept_store: LanceStore) -> None:
    keeper = TierKeeper(kept, kept_store, ())
    tokens = sum(segment.tokens_bytes for segment in kept_store.segments_of())
    without = next(s for s in kept_store.segments(VIDEOS[2].video_id))
    shrink(kept, keeper, kv_file_bytes(kept) * 4 // 10)
    assert set(tiers_of(kept_store).values()) == {Tier.INT4}
    steps = shrink(kept, keeper, tokens + kept_store.segments(without.video_id)[0].kv_bytes)
    assert {(step.before, step.after) for step in steps} == {(Tier.INT4, Tier.TOKENS)}
    assert {key for key, tier in tiers_of(kept_store).items() if tier is not Tier.TOKENS} == {without.segment_id}
    check_files(kept, kept_store)
    shrink(kept, keeper, tokens - 1)
    assert Tier.NONE in set(tiers_of(kept_store).values()) and Tier.TOKENS in set(tiers_of(kept_store).values())
    shrink(kept, keeper, 0)
    assert set(tiers_of(kept_store).values()) == {Tier.NONE} and kv_file_bytes(kept) == 0
    check_files(kept, kept_store)


def test_without_room_to_encode_the_coldest_falls_back_to_its_tokens(kept: Path, kept_store: LanceStore) -> None:
    full = kv_file_bytes(kept)
    note_uses(kept, [segment.segment_id for segment in kept_store.segments(VIDEOS[2].video_id)], now=4_000_000_000)
    steps = TierKeeper(kept, kept_store, ()).make_room(full, 1)
    assert [(step.before, step.after) for step in steps] == [(Tier.EXACT, Tier.TOKENS)]
    check_files(kept, kept_store)


def test_pinned_tokens_stay(kept: Path, kept_store: LanceStore) -> None:
    shrink(kept, TierKeeper(kept, kept_store, ("gate", "yard")), 0)
    assert set(tiers_of(kept_store).values()) == {Tier.EXACT}


@pytest.mark.parametrize("after", [False, True], ids=["before", "after"])
@pytest.mark.parametrize(("first", "tier"), [(None, Tier.TOKENS), (Tier.TOKENS, Tier.NONE), (None, Tier.NONE)])
def test_a_demotion_of_tokens_that_is_killed_leaves_what_its_row_names(
    kept: Path, first: Tier | None, tier: Tier, after: bool
) -> None:
    with WriterLease(kept) as lease:
        with LanceStore.open(kept) as store:
            keeper = TierKeeper(kept, store, ())
            if first is not None:
                keeper.demote(keeper.candidates()[0], first, None)
        dying = CrashingStore(kept)
        dying.crash_at, dying.crash_after = 0, after
        item = TierKeeper(kept, dying, ()).candidates()[0]
        with pytest.raises(SimulatedCrash):
            TierKeeper(kept, dying, ()).demote(item, tier, None)
        with LanceStore.open(kept) as store:
            assert missing_kv(store) == []
            sweep(kept, store, lease)
            check_files(kept, store)
            assert tiers_of(store)[item.segment.segment_id] is (tier if after else first or Tier.EXACT)


def test_tokens_that_were_not_kept_cannot_be_fallen_back_to(kept: Path, kept_store: LanceStore) -> None:
    keeper = TierKeeper(kept, kept_store, ())
    item = next(item for item in keeper.candidates() if item.segment.tokens_path is None)
    assert bytes_left(kept, item.segment, Tier.TOKENS) is None
    with pytest.raises(ValueError, match="kept no tokens"):
        keeper.demote(item, Tier.TOKENS, None)
    assert tiers_of(kept_store)[item.segment.segment_id] is Tier.EXACT


def test_a_dry_run_of_an_eviction_takes_the_steps_of_one(kept: Path) -> None:
    for share in (0.9, 0.45, 0.25, 0.1):
        size = str(round(kv_file_bytes(kept) * share))
        planned = evict(kept, "--max-bytes", size, "--dry-run").json
        assert planned["fits"] and planned["bytes_after"] <= int(size)
    done = evict(kept, "--max-bytes", size).json
    assert done["fits"] and done["bytes_after"] == kv_file_bytes(kept)


def test_a_segment_s_bound_counts_its_tokens_where_they_are_kept() -> None:
    recipe = tiny_recipe()
    language = recipe.architecture["language"]
    more = largest_segment_bytes(recipe, tokens=True)
    plain = largest_segment_bytes(recipe)
    assert more is not None and plain is not None
    assert more - plain > 151 * 36 * language["width"] * 4
    only = largest_segment_bytes(recipe, dense=False, tokens=True)
    assert only == more - plain
    store: Any = None
    assert room_wanted(recipe, store, more, 1, tokens=True) == more
    assert room_wanted(recipe, store, more - 1, 1, tokens=True) == 2 * only < more // 2
    rules = (
        RetentionRule(after_days=1, keep="tokens", camera="gate"),
        RetentionRule(after_days=9, keep="none"),
    )
    storage = StorageSettings(retention=rules)
    assert storage.may_keep_tokens and storage.keeps_tokens("gate")
    assert not storage.keeps_tokens("yard") and not storage.keeps_tokens(None)
    assert StorageSettings(keep_tokens=True).keeps_tokens("yard") and not StorageSettings().may_keep_tokens
