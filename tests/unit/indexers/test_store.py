"""The tables: keyed writes, atomic publication, visibility, filters, sparse KV, deletion, compaction."""

from __future__ import annotations

import os
import pickle
import shutil
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from indexers.config import StoreSettings
from indexers.errors import (
    CommitConflict,
    CorruptKV,
    DiskFull,
    RowConflict,
    SchemaMismatch,
    StoreError,
    StoreUnavailable,
)
from indexers.fingerprint import table_fingerprint
from indexers.records import DELETING, FAILED, RUNNING, SCHEMA_VERSION, SPARSE_KV, TABLES, SegmentRows, VideoRow
from indexers.scope import Scope
from indexers.store import TABLES_FOLDER, LanceStore
from indexers.testing import (
    EMBEDDING_DIM,
    START,
    CrashingStore,
    SegmentShape,
    SimulatedCrash,
    add_video,
    make_segment,
    make_video,
)

QUERY = np.ones(EMBEDDING_DIM)
HOUR = timedelta(hours=1)
TINY = SegmentShape(num_chunks=1, groups_per_chunk=2, visual_tokens=1, layers=1, head_dim=1)
NAMES = ["o'brien", 'say "hi"', "Zürich 北 🎥", "new\nline", "100%_", "'); DROP TABLE videos; --", "back\\slash", ""]


@pytest.fixture
def store(tmp_path: Path) -> LanceStore:
    return LanceStore.create(tmp_path, EMBEDDING_DIM)


def found(store: LanceStore, scope: Scope, limit: int = 1000) -> set[str]:
    return {hit.video_id for hit in store.search_vectors(QUERY, scope, limit)}


# Opening


def test_creating_twice_is_creating_once(store: LanceStore, tmp_path: Path) -> None:
    add_video(store, make_video())
    before = table_fingerprint(store)
    again = LanceStore.create(tmp_path, EMBEDDING_DIM)
    assert table_fingerprint(again) == before
    assert again.embedding_dim == EMBEDDING_DIM


def test_an_interrupted_creation_is_completed(store: LanceStore, tmp_path: Path) -> None:
    shutil.rmtree(tmp_path / TABLES_FOLDER / "chunks.lance")
    with pytest.raises(StoreUnavailable, match="tables are missing: chunks"):
        LanceStore.open(tmp_path)
    add_video(LanceStore.create(tmp_path, EMBEDDING_DIM), make_video())
    assert len(LanceStore.open(tmp_path).visible_videos()) == 1


def test_other_vectors_columns_or_versions_are_refused(
    store: LanceStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(SchemaMismatch, match="vectors have 8 values, 16 were asked for"):
        LanceStore.create(tmp_path, 16)
    monkeypatch.setattr("indexers.store.SCHEMA_VERSION", SCHEMA_VERSION + 1)
    with pytest.raises(
        SchemaMismatch, match=f"schema version {SCHEMA_VERSION}, this program uses {SCHEMA_VERSION + 1}"
    ):
        LanceStore.open(tmp_path).visible_videos()
    monkeypatch.undo()
    monkeypatch.setattr("indexers.records.VIDEOS_SCHEMA", pa.schema([pa.field("video_id", pa.string())]))
    with pytest.raises(SchemaMismatch, match="columns"):
        LanceStore.open(tmp_path).visible_videos()


def test_a_folder_without_tables_or_with_broken_ones_is_unavailable(store: LanceStore, tmp_path: Path) -> None:
    with pytest.raises(StoreUnavailable):
        LanceStore.open(tmp_path / "nowhere")
    shutil.rmtree(tmp_path / TABLES_FOLDER / "videos.lance" / "_versions")
    with pytest.raises(StoreUnavailable):
        LanceStore.open(tmp_path).visible_videos()


def test_a_store_travels_between_processes_and_refuses_a_fork(
    store: LanceStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    add_video(store, make_video())
    assert len(pickle.loads(pickle.dumps(store)).visible_videos()) == 1
    monkeypatch.setattr(os, "getpid", lambda: -1)
    with pytest.raises(StoreError, match="before a fork"):
        store.visible_videos()


def test_a_closed_store_opens_again(store: LanceStore) -> None:
    with store:
        add_video(store, make_video())
    assert len(store.visible_videos()) == 1


def test_only_the_tables_in_use_are_opened(store: LanceStore, tmp_path: Path) -> None:
    add_video(store, make_video())
    for name in ("sparse_kv", "chunks", "segments"):
        shutil.rmtree(tmp_path / TABLES_FOLDER / f"{name}.lance")
        (tmp_path / TABLES_FOLDER / f"{name}.lance").mkdir()
    assert LanceStore.open(tmp_path).search_vectors(QUERY)


# Writing


def test_inserting_twice_is_inserting_once(store: LanceStore) -> None:
    rows = make_segment(make_video())
    assert store.insert_segment(rows)
    before = table_fingerprint(store)
    assert not store.insert_segment(rows)
    assert table_fingerprint(store) == before


def test_duplicate_keys_in_one_batch_become_one_row(store: LanceStore, tmp_path: Path) -> None:
    rows = make_segment(make_video())
    doubled = SegmentRows(
        rows.segment, *(pa.concat_tables([t, t.slice(1)]) for t in (rows.chunks, rows.embeddings, rows.sparse))
    )
    store.insert_segment(doubled)
    other = LanceStore.create(tmp_path / "other", EMBEDDING_DIM)
    other.insert_segment(rows)
    assert table_fingerprint(store) == table_fingerprint(other)
    store.upsert_videos([make_video(state=RUNNING), make_video(title="last")])
    assert [video.title for video in store.videos()] == ["last"]


def test_a_segment_of_other_settings_is_not_mixed_in(store: LanceStore) -> None:
    store.insert_segment(make_segment(make_video()))
    with pytest.raises(RowConflict, match="other settings"):
        store.insert_segment(make_segment(make_video(fingerprint="0" * 32)))


def test_leftovers_of_an_insertion_under_other_settings_are_replaced(tmp_path: Path) -> None:
    """Rows of a half-inserted segment were kept by key, so a later insertion mixed two settings in one segment."""
    LanceStore.create(tmp_path, EMBEDDING_DIM)
    crashing = CrashingStore(tmp_path)
    crashing.crash_at, crashing.crash_after = 5, True
    video = make_video()
    with pytest.raises(SimulatedCrash):
        crashing.insert_segment(make_segment(video, shape=SegmentShape(num_chunks=3)))
    clean = LanceStore.create(tmp_path / "clean", EMBEDDING_DIM)
    for store in (LanceStore.open(tmp_path), clean):
        store.insert_segment(make_segment(video, shape=TINY))
    assert table_fingerprint(LanceStore.open(tmp_path)) == table_fingerprint(clean)


@pytest.mark.parametrize("crash_after", [False, True])
def test_a_crash_between_any_two_commits_and_a_redo_give_the_same_tables(tmp_path: Path, crash_after: bool) -> None:
    old, new = make_video(etag="1"), make_video(etag="2")
    settings = StoreSettings(commit_bytes=600)

    def ingest(store: LanceStore) -> None:
        store.upsert_videos([replace(new, state=RUNNING)])
        store.insert_segment(make_segment(new, 0))
        store.insert_segment(make_segment(new, 1))
        store.publish_video(new, [old.video_id])

    def prepared(folder: Path) -> CrashingStore:
        LanceStore.create(folder, EMBEDDING_DIM)
        store = CrashingStore(folder, settings)
        add_video(store, old, shape=TINY)
        store.num_commits = 0
        return store

    reference = prepared(tmp_path / "reference")
    ingest(reference)
    expected = table_fingerprint(reference)
    assert reference.num_commits > 12
    pristine = tmp_path / "pristine"
    prepared(pristine)
    for crash_at in range(reference.num_commits):
        folder = tmp_path / f"crash{crash_at}"
        shutil.copytree(pristine, folder)
        crashing = CrashingStore(folder, settings)
        crashing.crash_at, crashing.crash_after = crash_at, crash_after
        with pytest.raises(SimulatedCrash):
            ingest(crashing)
        redo = LanceStore.open(folder, settings)
        published = crash_after and crash_at == reference.num_commits - 1
        assert found(redo, Scope()) == {(new if published else old).video_id}, "readers see one whole version"
        ingest(redo)
        assert table_fingerprint(redo) == expected
        shutil.rmtree(folder)


def test_publication_replaces_the_old_version_in_one_commit(store: LanceStore, tmp_path: Path) -> None:
    old, older, new = make_video(etag="1"), make_video(etag="0", superseded_by="1"), make_video(etag="2")
    add_video(store, old)
    store.upsert_videos([older])
    store.insert_segment(make_segment(new))
    counting = CrashingStore(tmp_path)
    counting.publish_video(new, [old.video_id, older.video_id, "0" * 32])
    assert counting.num_commits == 1
    assert [video.video_id for video in store.visible_videos()] == [new.video_id]
    assert {video.etag: video.superseded_by for video in store.videos()} == {"0": "1", "1": new.video_id, "2": None}
    with pytest.raises(ValueError, match="supersede itself"):
        store.publish_video(new, [new.video_id])


def test_rows_may_be_given_as_dictionaries(store: LanceStore) -> None:
    store.upsert_videos([make_video("a", state=RUNNING).to_row()])
    store.publish_video(make_video("a").to_row())
    assert store.visible_videos() == [make_video("a")]


def test_rows_that_do_not_fit_change_nothing(store: LanceStore) -> None:
    before = table_fingerprint(store)
    rows = make_segment(make_video())
    with pytest.raises(ValueError):
        store.insert_segment(SegmentRows(rows.segment, rows.chunks.slice(1), rows.embeddings, rows.sparse))
    with pytest.raises(ValueError):
        store.upsert_videos([{"video_id": "x"}])
    store.upsert_videos([])
    assert table_fingerprint(store) == before
    with pytest.raises(ValueError, match="is committed"):
        store.insert_segment(rows)
        store.drop_partial_segment(rows.segment_id)


@pytest.mark.parametrize(
    ("raised", "expected"),
    [
        (RuntimeError("lance error: Commit conflict for version 3: ..."), CommitConflict),
        (RuntimeError("lance error: Too many concurrent writers."), CommitConflict),
        (RuntimeError("lance error: LanceError(IO): IO error: No space left on device"), DiskFull),
        (PermissionError(13, "Permission denied"), StoreUnavailable),
        (RuntimeError("something else"), StoreError),
        (KeyError("a bug of ours"), KeyError),
    ],
)
def test_errors_of_the_database_are_translated_once(
    store: LanceStore, monkeypatch: pytest.MonkeyPatch, raised: Exception, expected: type[Exception]
) -> None:
    def fail(key: str) -> None:
        raise raised

    monkeypatch.setattr(store._table("videos"), "merge_insert", fail)
    with pytest.raises(expected) as caught:
        store.upsert_videos([make_video()])
    assert type(caught.value) is expected


# Visibility


@pytest.mark.parametrize("change", [{"state": RUNNING}, {"state": FAILED}, {"state": DELETING}, {"superseded_by": "x"}])
def test_only_whole_current_videos_are_seen(store: LanceStore, change: dict[str, Any]) -> None:
    shown, hidden = make_video("shown"), make_video("hidden", **change)
    add_video(store, shown)
    add_video(store, hidden)
    assert store.visible_videos() == [shown]
    assert found(store, Scope()) == {shown.video_id}
    assert set(store.embeddings(columns=["video_id"])["video_id"].to_pylist()) == {shown.video_id}
    assert len(store.videos()) == 2
    assert [video.video_id for video in store.videos(states=[hidden.state])].count(hidden.video_id) == 1
    assert store.video(hidden.video_id) == hidden
    assert store.video("0" * 32) is None


def test_rows_without_a_video_row_are_not_seen_and_do_not_use_up_the_limit(store: LanceStore) -> None:
    stray, shown = make_video("stray"), make_video("shown")
    near = [QUERY + 0.01 * n for n in range(6)]
    far = [[1, 0, 0, 0, 0, 0, 0, n] for n in range(6)]
    for index in range(4):
        store.insert_segment(make_segment(stray, index, vectors=near))
    assert store.search_vectors(QUERY) == []
    store.insert_segment(make_segment(shown, vectors=far))
    store.publish_video(shown)
    hits = store.search_vectors(QUERY, limit=5)
    assert [hit.video_id for hit in hits] == [shown.video_id] * 5
    assert hits == sorted(hits, key=lambda hit: -hit.score)


@pytest.mark.parametrize(("num_shown", "num_hidden"), [(3, 40), (40, 3), (20, 20)])
def test_visibility_holds_with_many_videos_on_either_side(
    store: LanceStore, monkeypatch: pytest.MonkeyPatch, num_shown: int, num_hidden: int
) -> None:
    monkeypatch.setattr("indexers.store._MAX_NAMED_VIDEOS", 10)
    shown = [make_video(f"s{n}") for n in range(num_shown)]
    hidden = [make_video(f"h{n}", state=RUNNING) for n in range(num_hidden)]
    segments = [make_segment(video, shape=TINY) for video in shown + hidden]
    embeddings = pa.concat_tables([segment.embeddings for segment in segments])
    store._merge("embeddings", embeddings)
    store.upsert_videos(shown + hidden)
    assert found(store, Scope()) == {video.video_id for video in shown}
    assert len(store.search_vectors(QUERY, limit=num_shown)) == num_shown


# Filters


def test_names_with_any_characters_are_filtered_exactly(store: LanceStore) -> None:
    videos = {name: make_video(f"v{n}", camera=name) for n, name in enumerate(NAMES)}
    videos["no camera"] = make_video("none", camera=None)
    for video in videos.values():
        add_video(store, video, shape=TINY)
    for name in NAMES:
        scope = Scope(cameras=[name])
        assert found(store, scope) == {videos[name].video_id}, name
        assert store.visible_videos(scope) == [videos[name]]
    assert found(store, Scope(cameras=NAMES)) == {videos[name].video_id for name in NAMES}
    assert found(store, Scope(cameras=[])) == set()
    assert found(store, Scope(cameras=["%"])) == set()
    assert found(store, Scope(exclude_video_ids=[videos["o'brien"].video_id])) == {
        video.video_id for name, video in videos.items() if name != "o'brien"
    }
    assert store.chunks(segment_ids=NAMES).num_rows == 0
    assert store.video("' OR 1=1") is None


def test_times_bound_rows_not_only_videos(store: LanceStore) -> None:
    add_video(store, make_video("timed"))
    add_video(store, make_video("unknown", start_time=None))
    assert len(store.search_vectors(QUERY, limit=100)) == 12

    def starts(scope: Scope) -> list[float]:
        return sorted(hit.start_s for hit in store.search_vectors(QUERY, scope, 100))

    second = timedelta(seconds=1)
    assert starts(Scope(after=START + 8 * second)) == [8, 12, 16, 20]
    assert starts(Scope(after=START + 7 * second, before=START + 9 * second)) == [4, 8]
    assert starts(Scope(before=START)) == []
    assert starts(Scope(before=START + timedelta(microseconds=1))) == [0]
    berlin = datetime.fromisoformat("2026-03-01T09:00:08+01:00")
    assert starts(Scope(after=berlin)) == [8, 12, 16, 20]


def test_hours_of_the_day_bound_rows_over_many_days(store: LanceStore) -> None:
    """A video starts each hour for three days around Berlin's change to summer time."""
    first = datetime(2026, 3, 28, 0, tzinfo=UTC)
    videos = [make_video(f"v{n}", start_time=first + n * HOUR, duration_s=8.0) for n in range(72)]
    store._merge("embeddings", pa.concat_tables([make_segment(v, shape=TINY).embeddings for v in videos]))
    store.upsert_videos(videos)
    scope = Scope(time_range=("23:00", "03:00"), time_zone="Europe/Berlin")
    expected = {
        video.video_id
        for video in videos
        if video.start_time is not None and video.start_time.astimezone(scope.clock.zone).hour in (23, 0, 1, 2)  # type: ignore[union-attr]
    }
    assert len(expected) == 2 + 3 + 4 + 3, "in the second night one hour does not happen"
    assert found(store, scope) == expected
    assert len(store.search_vectors(QUERY, scope, limit=24)) == 24
    assert {video.video_id for video in store.visible_videos(scope)} == expected
    narrow = Scope(time_range=("08:00:04", "08:00:05"), time_zone="UTC")
    hits = store.search_vectors(QUERY, narrow, 100)
    assert [hit.start_s for hit in hits] == [4.0] * 3
    assert found(store, Scope(time_range=("00:00", "24:00"), time_zone="UTC")) == {v.video_id for v in videos}


def test_a_row_that_reaches_into_the_hours_counts(store: LanceStore) -> None:
    add_video(store, make_video(start_time=START - timedelta(seconds=2)))
    hits = store.search_vectors(QUERY, Scope(time_range=("08:00", "08:00:01"), time_zone="UTC"), 100)
    assert [hit.start_s for hit in hits] == [0.0]


@pytest.mark.parametrize("vector", [np.zeros(EMBEDDING_DIM), np.full(EMBEDDING_DIM, np.nan), np.ones(3)])
def test_a_vector_without_direction_is_refused(store: LanceStore, vector: np.ndarray) -> None:
    with pytest.raises(ValueError, match="vector"):
        store.search_vectors(vector)


def test_the_limit_must_be_positive(store: LanceStore) -> None:
    with pytest.raises(ValueError, match="limit"):
        store.search_vectors(QUERY, limit=0)


# Reading


def test_chunks_and_segments_are_in_order(store: LanceStore) -> None:
    video = make_video()
    for index in (1, 0):
        store.insert_segment(make_segment(video, index))
    assert [segment.segment_index for segment in store.segments(video.video_id)] == [0, 1]
    table = store.chunks(video_ids=[video.video_id])
    assert table["chunk_id"].to_pylist() == sorted(table["chunk_id"].to_pylist())
    assert "thumbnail" not in table.column_names
    some = table["chunk_id"].to_pylist()[1:3]
    pictures = store.chunks(chunk_ids=some, columns=["thumbnail"])
    assert [len(picture) for picture in pictures["thumbnail"].to_pylist()] == [20, 20]
    assert store.chunks(chunk_ids=[]).num_rows == 0
    assert store.chunks().num_rows == 4


def test_sparse_kv_is_read_in_parts_and_checked(store: LanceStore, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = make_segment(make_video())
    store.insert_segment(rows)
    chunk_ids = rows.chunks["chunk_id"].to_pylist()
    read = store.read_sparse([*chunk_ids, "absent"])
    assert list(read) == chunk_ids
    written = b"".join(row["kv"] for row in rows.sparse.to_pylist() if row["chunk_id"] == chunk_ids[0])
    assert b"".join(part.kv_u8.tobytes() for part in read[chunk_ids[0]].parts) == written
    assert len(read[chunk_ids[0]].parts) > 1
    assert store.read_sparse([]) == {}

    damaged = rows.sparse.slice(0, 1).to_pylist()[0]
    damaged["kv"] = damaged["kv"][:-1] + b"\x00"
    store._delete(SPARSE_KV, store._equals("row_id", damaged["row_id"]))
    with pytest.raises(CorruptKV, match=f"chunk {chunk_ids[0]}: parts"):
        store.read_sparse(chunk_ids)
    store._merge(SPARSE_KV, pa.Table.from_pylist([damaged], schema=rows.sparse.schema))
    with pytest.raises(CorruptKV, match=f"chunk {chunk_ids[0]}: checksum"):
        store.read_sparse(chunk_ids)
    store.read_sparse(chunk_ids[1:])


def test_sparse_rows_deleted_while_they_are_read_are_left_out(
    store: LanceStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A reader failed with "could not resolve row ids" when a video was deleted between its two reads."""
    kept, gone = make_video("kept"), make_video("gone")
    for video in (kept, gone):
        add_video(store, video)
    chunk_ids = store.chunks()["chunk_id"].to_pylist()
    original = LanceStore._blobs
    calls = []

    def delete_first(self: LanceStore, row_ids: list[int]) -> list[pa.Buffer]:
        calls.append(len(row_ids))
        if len(calls) == 1:
            LanceStore.open(tmp_path).delete_video(gone.video_id)
        return original(self, row_ids)

    monkeypatch.setattr(LanceStore, "_blobs", delete_first)
    assert set(store.read_sparse(chunk_ids)) == set(store.chunks(video_ids=[kept.video_id])["chunk_id"].to_pylist())
    assert calls == [8, 4]


def test_a_search_reads_no_blob(store: LanceStore, tmp_path: Path) -> None:
    add_video(store, make_video())
    shutil.rmtree(tmp_path / TABLES_FOLDER / "sparse_kv.lance" / "data")
    assert store.search_vectors(QUERY)


def test_a_reader_sees_commits_of_a_writer_at_once(store: LanceStore, tmp_path: Path) -> None:
    reader = LanceStore.open(tmp_path)
    assert reader.visible_videos() == []
    for name in ("a", "b"):
        add_video(store, make_video(name))
        assert len(reader.visible_videos()) == (1 if name == "a" else 2)
        assert len(reader.search_vectors(QUERY, limit=100)) == (6 if name == "a" else 12)


# Removing and compacting


def test_deletion_leaves_nothing_of_the_video_and_all_of_the_others(store: LanceStore, tmp_path: Path) -> None:
    gone, kept = make_video("gone"), make_video("kept")
    add_video(store, kept, archive=tmp_path)
    before = table_fingerprint(store)
    add_video(store, gone, num_segments=2, archive=tmp_path)
    report = store.delete_video(gone.video_id)
    assert report.rows == {"segments": 2, "embeddings": 12, "sparse_kv": 8, "chunks": 4, "videos": 1}
    assert report.kv_bytes > 0
    assert table_fingerprint(store) == before
    assert store.delete_video(gone.video_id).rows == dict.fromkeys(TABLES, 0)
    assert store.row_counts() == {"videos": 1, "segments": 1, "chunks": 2, "embeddings": 6, "sparse_kv": 4}
    assert [path.name for path in (tmp_path / "kv").rglob("*.vxlkv")] == ["00000.vxlkv"]
    with pytest.raises(ValueError, match="video id"):
        store.delete_video("../..")


def test_compaction_keeps_rows_and_frees_deleted_bytes_once_versions_are_old(tmp_path: Path) -> None:
    store = LanceStore.create(tmp_path, EMBEDDING_DIM)
    shape = SegmentShape(visual_tokens=64, layers=4, head_dim=64, sparse_row_bytes=1 << 20)
    gone, kept = make_video("gone"), make_video("kept")
    for video in (gone, kept):
        add_video(store, video, num_segments=2, shape=shape)
    blobs = store.read_sparse(store.chunks()["chunk_id"].to_pylist())
    store.delete_video(gone.video_id)
    before = table_fingerprint(store)
    held_back = store.compact()
    assert held_back.bytes_after["sparse_kv"] >= held_back.bytes_before["sparse_kv"], "readers may still use them"
    assert table_fingerprint(store) == before
    at_once = LanceStore.open(tmp_path, StoreSettings(keep_versions_s=0.001))
    report = at_once.compact()
    assert report.bytes_freed > 0
    assert report.bytes_after["sparse_kv"] < 0.7 * report.bytes_before["sparse_kv"]
    assert table_fingerprint(store) == before
    for chunk_id, parts in store.read_sparse(store.chunks()["chunk_id"].to_pylist()).items():
        np.testing.assert_array_equal(parts.join(), blobs[chunk_id].join())


def test_a_large_sparse_table_is_rewritten_only_when_much_of_it_is_not_live(tmp_path: Path) -> None:
    settings = StoreSettings(keep_versions_s=0.001, sparse_compact_bytes=0)
    store = LanceStore.create(tmp_path, EMBEDDING_DIM, settings)
    shape = SegmentShape(visual_tokens=64, layers=4, head_dim=64, sparse_row_bytes=1 << 20)
    videos = [make_video("a"), make_video("b")]
    for video in videos:
        add_video(store, video, shape=shape)
    unchanged = store.compact()
    assert unchanged.bytes_after["sparse_kv"] == unchanged.bytes_before["sparse_kv"]
    store.delete_video(videos[0].video_id)
    freed = store.compact()
    assert freed.bytes_after["sparse_kv"] < 0.7 * freed.bytes_before["sparse_kv"]
    add_video(store, videos[0], shape=shape)
    assert int(store._table(SPARSE_KV).stats()["fragment_stats"]["num_fragments"]) == 2
    store.compact(full=True)
    assert int(store._table(SPARSE_KV).stats()["fragment_stats"]["num_fragments"]) == 1


def test_a_large_segment_is_committed_in_slices(tmp_path: Path) -> None:
    LanceStore.create(tmp_path, EMBEDDING_DIM)
    rows = make_segment(make_video())
    counts = []
    for commit_bytes in (1, 10**9):
        store = CrashingStore(tmp_path, StoreSettings(commit_bytes=commit_bytes))
        sizes = [part.num_rows for part in store._commit_sized(rows.sparse)]
        assert sum(sizes) == rows.sparse.num_rows
        counts.append(len(sizes))
    assert counts == [rows.sparse.num_rows, 1]


def test_videos_are_ordered_by_camera_time_and_uri(store: LanceStore) -> None:
    rows: list[VideoRow] = [
        make_video("4", camera="b"),
        make_video("3", camera="a", start_time=START + HOUR),
        make_video("2", camera="a"),
        make_video("1", camera="a", start_time=None),
    ]
    store.upsert_videos(rows)
    assert [video.key for video in store.videos()] == ["1.mp4", "2.mp4", "3.mp4", "4.mp4"]


def test_a_creation_that_was_killed_half_way_is_completed(tmp_path: Path) -> None:
    """Killed after the folder of a table was made and before its first version was."""
    (tmp_path / "tables" / "segments.lance").mkdir(parents=True)
    store = LanceStore.create(tmp_path, 8)
    assert store.segments_of() == []
