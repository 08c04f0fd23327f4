"""Looking after an archive: deletion leaves a tombstone and nothing else, whatever interrupts it; retry opens again."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from indexers.folder import Place, as_folder
from indexers.lease import WriterLease
from indexers.records import DELETED, DELETING, TABLES, VIDEOS
from indexers.store import LanceStore
from indexers.testing import CrashingStore, SimulatedCrash, make_video
from pipeline import Archive
from pipeline.admin import erase, finish_deletions
from pipeline.config import Settings
from pipeline.errors import ArchiveBusy, UsageError
from pipeline.ingest_run import run_ingest
from pipeline.ledger import Verdict, verdict
from tests.unit.pipeline.samples import make_archive

A, OLD, B = make_video("a", etag="2"), make_video("a", superseded_by="x"), make_video("b", camera="yard")
BAD = make_video("bad", state="failed", error_type="UnreadableMedia", error_message="empty", failed_attempts=1)
HUNG = make_video("hung", state="quarantined", error_type="DecoderTimeout", error_message="hung", failed_attempts=2)


@pytest.fixture
def archive(tmp_path: Path) -> Archive:
    return Archive(make_archive(tmp_path / "archive", [A, OLD, B, BAD, HUNG]))


def rows_of_video(folder: Place, video_id: str) -> dict[str, int]:
    store = LanceStore.open(folder)
    return {name: sum(row["video_id"] == video_id for row in store.read_table(name)) for name in TABLES}


def kv_files(folder: Place) -> set[str]:
    return {file.name.split("/")[2] for file in as_folder(folder).list("kv")}


def test_videos_are_listed_by_address_the_current_version_first(archive: Archive) -> None:
    listed = [(row["uri"].rsplit("/", 1)[-1], row["superseded_by"]) for row in archive.videos()]
    assert listed == [("a.mp4", None), ("a.mp4", "x"), ("b.mp4", None), ("bad.mp4", None), ("hung.mp4", None)]
    row = archive.videos()[0]
    assert (row["start_time"], row["end_time"]) == ("2026-03-01T08:00:00+00:00", "2026-03-01T08:00:24+00:00")
    assert row["error"] is None
    assert archive.videos()[3]["error"] == {"type": "UnreadableMedia", "message": "empty"}


def test_status_counts_what_can_be_asked(archive: Archive) -> None:
    status = archive.status()
    assert status["states"] == {"indexed": 3, "failed": 1, "quarantined": 1}
    assert (status["videos"], status["superseded"]) == (2, 1)
    assert status["cameras"] == {"gate": 1, "yard": 1}
    assert status["hours"] == pytest.approx(2 * 24 / 3600)
    assert status["writer"] is None


def test_status_names_the_writer_and_writing_is_refused_meanwhile(archive: Archive) -> None:
    with WriterLease(archive.folder):
        assert "process" in archive.status()["writer"]
        for call in (archive.retry, lambda: archive.delete(A.uri), archive.compact):
            with pytest.raises(ArchiveBusy, match="being written by process"):
                call()


def test_deleting_removes_every_version_and_leaves_tombstones(archive: Archive) -> None:
    assert archive.delete("/footage/a.mp4") == [A.uri]
    for gone in (A, OLD):
        assert rows_of_video(archive.folder, gone.video_id) == {name: int(name == VIDEOS) for name in TABLES}
    assert kv_files(archive.folder) == {B.video_id}
    tombstone = next(row for row in LanceStore.open(archive.folder).videos() if row.video_id == A.video_id)
    assert tombstone.state == DELETED
    kept = {name: value for name, value in tombstone.to_row().items() if value not in (None, 0, "", "unknown")}
    assert kept.keys() == {"video_id", "uri", "etag", "key", "source", "camera", "size", "state"}
    assert verdict(tombstone) is Verdict.SKIP
    assert {moment.uri for moment in archive.search("car")} == {B.uri}


def test_deleting_twice_is_deleting_once(archive: Archive) -> None:
    archive.delete(A.uri)
    before = archive.videos()
    assert archive.delete(A.uri) == [A.uri]
    assert archive.videos() == before


@pytest.mark.parametrize("uris", [(), ("/footage/nothing.mp4",), (A.uri, "/footage/nothing.mp4")])
def test_deleting_what_is_not_there_deletes_nothing(archive: Archive, uris: tuple[str, ...]) -> None:
    with pytest.raises(UsageError):
        archive.delete(*uris)
    assert archive.status()["videos"] == 2


def ingest_nothing(folder: Path, source: Path) -> None:
    source.mkdir()
    facts: dict[str, Any] = {"key_pattern": None, "time_zone": None, "dry_run": False, "wait_s": 0.0, "observe": None}
    run_ingest(folder, [str(source)], Settings(), **facts)


@pytest.mark.parametrize("after", [False, True], ids=["before", "after"])
def test_a_deletion_killed_anywhere_is_finished_by_the_next_run_and_stays_a_deletion(
    tmp_path: Path, after: bool
) -> None:
    """The row of a half deleted video vanished with the sweep, and the next ingest indexed the video again."""
    commits = 6
    for crash_at in range(commits):
        folder = make_archive(tmp_path / f"archive-{crash_at}", [A, B])
        store = CrashingStore(folder)
        store.crash_at, store.crash_after = crash_at, after
        with pytest.raises(SimulatedCrash):
            erase(store, [A])
        assert A.video_id not in {row.video_id for row in LanceStore.open(folder).visible_videos()} or crash_at == 0
        if crash_at == 0 and not after:
            continue  # nothing was done yet
        ingest_nothing(folder, tmp_path / f"source-{crash_at}")
        states = {row.video_id: row.state for row in LanceStore.open(folder).videos()}
        assert states == {A.video_id: DELETED, B.video_id: "indexed"}
        assert rows_of_video(folder, A.video_id) == {name: int(name == VIDEOS) for name in TABLES}
        assert kv_files(folder) == {B.video_id}
    store = CrashingStore(make_archive(tmp_path / "whole", [A]))
    erase(store, [A])
    assert store.num_commits == commits


def test_compaction_finishes_deletions_too(archive: Archive) -> None:
    store = LanceStore.open(archive.folder)
    store.upsert_videos([make_video("b", camera="yard", state=DELETING)])
    report = archive.compact()
    assert {row.video_id: row.state for row in store.videos()}[B.video_id] == DELETED
    assert B.video_id not in kv_files(archive.folder)
    assert report["files_removed"] == 1
    assert set(report["tables"]) == set(TABLES)


def test_finishing_nothing_commits_nothing(archive: Archive) -> None:
    store = CrashingStore(archive.folder)
    finish_deletions(store)
    assert store.num_commits == 0


def test_retry_opens_failed_and_quarantined_videos_and_forgets_their_errors(archive: Archive) -> None:
    assert sorted(archive.retry()) == [BAD.uri, HUNG.uri]
    for row in LanceStore.open(archive.folder).videos():
        if row.uri in (BAD.uri, HUNG.uri):
            assert (row.state, row.error_type, row.error_message, row.failed_attempts) == ("queued", None, None, 0)
            assert verdict(row) is Verdict.INDEX
        else:
            assert row.state == "indexed"
    assert archive.retry() == []


def test_retry_by_name_touches_that_video_only_and_opens_deleted_ones(archive: Archive) -> None:
    assert archive.retry("/footage/bad.mp4") == [BAD.uri]
    archive.delete(B.uri)
    assert archive.retry() == [HUNG.uri]
    assert archive.retry(B.uri) == [B.uri]
    with pytest.raises(UsageError, match="unknown video"):
        archive.retry("/footage/nothing.mp4")


def test_retry_of_an_indexed_video_does_nothing(archive: Archive) -> None:
    assert archive.retry(A.uri) == []
    assert archive.status()["videos"] == 2
