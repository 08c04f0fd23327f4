"""The sweep removes what nothing refers to, and nothing else."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from indexers.fingerprint import table_fingerprint
from indexers.lease import WriterLease
from indexers.records import DELETING, QUEUED, kv_folder
from indexers.staging import write_staged
from indexers.store import LanceStore
from indexers.sweep import find_orphans, missing_kv, sweep
from indexers.testing import EMBEDDING_DIM, CrashingStore, SimulatedCrash, add_video, make_segment, make_video

ALIVE = make_video("alive")
QUEUED_VIDEO = make_video("queued", state=QUEUED)


@pytest.fixture
def store(tmp_path: Path) -> LanceStore:
    store = LanceStore.create(tmp_path, EMBEDDING_DIM)
    add_video(store, ALIVE, num_segments=2, archive=tmp_path)
    store.upsert_videos([QUEUED_VIDEO])
    return store


def files(folder: Path) -> set[str]:
    return {
        path.relative_to(folder).as_posix()
        for top in ("kv", "staging")
        for path in (folder / top).rglob("*")
        if path.is_file()
    }


def test_only_what_nothing_refers_to_is_removed(store: LanceStore, tmp_path: Path) -> None:
    make_segment(make_video("unknown"), archive=tmp_path)
    waiting = make_segment(QUEUED_VIDEO, 0, archive=tmp_path)
    write_staged(tmp_path / "staging", waiting)
    make_segment(QUEUED_VIDEO, 1, archive=tmp_path)
    cut = write_staged(tmp_path / "staging", make_segment(QUEUED_VIDEO, 2, archive=tmp_path))
    cut.write_bytes(cut.read_bytes()[:5000])
    write_staged(tmp_path / "staging", make_segment(ALIVE, 0))
    write_staged(tmp_path / "staging", make_segment(make_video("unknown"), 0))
    write_staged(tmp_path / "staging", make_segment(QUEUED_VIDEO, 3))
    unfinished = [tmp_path / kv_folder(ALIVE.video_id) / ".00000.vxlkv.ab.tmp", tmp_path / "staging" / ".x.rows.cd.tmp"]
    beside = tmp_path / ".access.log.ef.tmp"
    for path in (*unfinished, beside):
        path.write_bytes(b"12345")
    (tmp_path / "kv" / "README").write_text("not ours")
    kept = {
        "kv/README",
        *(segment.kv_path or "" for segment in store.segments(ALIVE.video_id)),
        waiting.segment["kv_path"],
        f"staging/{waiting.segment_id}.rows",
    }
    before = files(tmp_path)
    sizes = {name: (tmp_path / name).stat().st_size for name in before}
    tables = table_fingerprint(store)

    orphans = find_orphans(tmp_path, store)
    assert files(tmp_path) == before, "finding changes nothing"
    with WriterLease(tmp_path) as lease:
        report = sweep(tmp_path, store, lease)
        assert sweep(tmp_path, store, lease).removed == ()
    assert files(tmp_path) == kept
    assert {orphan.path for orphan in report.removed} == (before - kept) | {beside.name} and not beside.exists()
    assert report.removed == tuple(orphans)
    assert report.num_bytes == sum(sizes[name] for name in before - kept) + 5
    assert {orphan.reason for orphan in orphans} == {
        "unfinished file",
        "its segment is committed",
        "its video is not known",
        "it cannot be read",
        "one of its files is not there",
        "no segment refers to it",
    }
    assert table_fingerprint(store) == tables
    assert store.insert_segment(waiting)


def test_a_sweep_needs_the_lease(store: LanceStore, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="writer lease"):
        sweep(tmp_path, store, WriterLease(tmp_path))


def test_a_link_is_neither_followed_nor_removed(store: LanceStore, tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "precious.vxlkv").write_bytes(b"x")
    (tmp_path / "kv" / "link").symlink_to(outside)
    (tmp_path / "kv" / "file.vxlkv").symlink_to(outside / "precious.vxlkv")
    assert find_orphans(tmp_path, store) == []


@pytest.mark.parametrize("crash_at", range(4))
def test_rows_of_a_segment_that_was_never_committed_are_dropped(
    store: LanceStore, tmp_path: Path, crash_at: int
) -> None:
    before = table_fingerprint(store)
    crashing = CrashingStore(tmp_path)
    crashing.crash_at = 3 + crash_at
    segment = make_segment(QUEUED_VIDEO)
    with pytest.raises(SimulatedCrash):
        crashing.insert_segment(segment)
    with WriterLease(tmp_path) as lease:
        report = sweep(tmp_path, store, lease)
    assert report.partial_segments == (() if crash_at == 0 else (segment.segment_id,))
    assert table_fingerprint(store) == before


@pytest.mark.parametrize("crash_after", [False, True])
@pytest.mark.parametrize("crash_at", range(6))
def test_an_interrupted_deletion_is_hidden_at_once_and_finished_by_the_sweep(
    store: LanceStore, tmp_path: Path, crash_at: int, crash_after: bool
) -> None:
    other = make_video("other")
    add_video(store, other, archive=tmp_path)
    crashing = CrashingStore(tmp_path)
    crashing.crash_at, crashing.crash_after = crash_at, crash_after
    with pytest.raises(SimulatedCrash):
        crashing.delete_video(ALIVE.video_id)
    started = crash_at > 0 or crash_after
    assert [video.video_id for video in store.visible_videos()] == sorted(
        [other.video_id] if started else [ALIVE.video_id, other.video_id], key=lambda v: v != ALIVE.video_id
    )
    found = {hit.video_id for hit in store.search_vectors(np.ones(EMBEDDING_DIM), limit=100)}
    assert found == ({other.video_id} if started else {ALIVE.video_id, other.video_id})
    with WriterLease(tmp_path) as lease:
        sweep(tmp_path, store, lease)
    if started:
        assert store.video(ALIVE.video_id) is None
        assert store.segments(ALIVE.video_id) == []
        assert not (tmp_path / kv_folder(ALIVE.video_id)).exists()
        assert store.partial_segments() == []
    assert missing_kv(store) == []


def test_a_video_being_deleted_does_not_keep_its_staged_rows(store: LanceStore, tmp_path: Path) -> None:
    write_staged(tmp_path / "staging", make_segment(QUEUED_VIDEO))
    store.upsert_videos([replace(QUEUED_VIDEO, state=DELETING)])
    with WriterLease(tmp_path) as lease:
        report = sweep(tmp_path, store, lease)
    assert report.finished_deletions == (QUEUED_VIDEO.video_id,)
    assert [orphan.reason for orphan in report.removed] == ["its video is not known"]


def test_missing_kv_names_committed_segments_without_their_file(store: LanceStore, tmp_path: Path) -> None:
    assert missing_kv(store) == []
    first, second = store.segments(ALIVE.video_id)
    (tmp_path / (second.kv_path or "")).unlink()
    assert missing_kv(store) == [second]
    assert first.segment_index == 0
