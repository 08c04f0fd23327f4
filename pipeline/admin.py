"""Looking after an archive: list, status, retry, delete, compact. Whatever writes takes the writer lease."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import replace
from typing import Any

from indexers.lease import WriterLease, is_lease_held, lease_holder
from indexers.records import DELETED, DELETING, EXPIRED, FAILED, QUARANTINED, QUEUED, TABLES, VideoRow
from indexers.store import LanceStore
from indexers.sweep import sweep
from pipeline.errors import UsageError
from pipeline.media import normalise_uri
from pipeline.reader import ArchiveReader
from pipeline.times import iso


def list_videos(reader: ArchiveReader) -> list[dict[str, Any]]:
    """Every object version the ledger knows, by URI, the current version first."""
    rows = sorted(reader.videos(), key=lambda row: (row.uri, row.superseded_by is not None, row.video_id))
    return [_public(row) for row in rows]


def _public(row: VideoRow) -> dict[str, Any]:
    public = row.to_row()
    public["start_time"] = iso(row.start_time)
    public["end_time"] = iso(row.end_time)
    public["segments"], public["chunks"] = row.num_segments, row.num_chunks
    error = None if row.error_type is None else {"type": row.error_type, "message": row.error_message or ""}
    return public | {"error": error}


def status(reader: ArchiveReader) -> dict[str, Any]:
    """Counts by state, hours and bytes of what can be asked, the archive's recipe, and who is writing."""
    rows = reader.videos()
    visible = [row for row in rows if row.is_visible]
    recipe = reader.manifest.recipe
    cameras = Counter(row.camera for row in visible)
    return {
        "archive": reader.folder.address(),
        "model": reader.manifest.model,
        "fingerprint": recipe.fingerprint,
        "recipe": {
            "fps": recipe.fps,
            "segment_s": recipe.segment_s,
            "chunk_groups": recipe.chunk_groups,
            "compression": recipe.compression,
            "dtype": recipe.dtype,
        },
        "states": dict(Counter(row.state for row in rows)),
        "superseded": sum(row.superseded_by is not None for row in rows),
        "videos": len(visible),
        "cameras": {str(name): count for name, count in sorted(cameras.items(), key=str) if name is not None},
        "hours": sum(row.duration_s or 0.0 for row in visible) / 3600,
        "kv_bytes": sum(row.kv_bytes for row in visible),
        "sparse_bytes": sum(row.sparse_bytes for row in visible),
        "source_bytes": sum(row.size for row in visible),
        "writer": _writer(reader),
        "notices": list(reader.notices),
    }


def _writer(reader: ArchiveReader) -> str | None:
    """Who holds the writer lease; a dead holder has lost it and is not named."""
    return (lease_holder(reader.folder) or "another process") if is_lease_held(reader.folder) else None


def retry(reader: ArchiveReader, uris: Iterable[str], wait_s: float) -> list[str]:
    """Put failed and quarantined videos back in line; named ones of any ended state."""
    named = {normalise_uri(uri) for uri in uris}
    with WriterLease(reader.folder, wait_s):
        rows = reader.videos()
        _require_known(named, rows)
        again = [
            row
            for row in rows
            if (row.uri in named and row.state in (FAILED, QUARANTINED, DELETED, EXPIRED))
            or (not named and row.state in (FAILED, QUARANTINED))
        ]
        reader.store.upsert_videos(
            [replace(row, state=QUEUED, error_type=None, error_message=None, failed_attempts=0) for row in again]
        )
    return [row.uri for row in again]


def delete(reader: ArchiveReader, uris: Iterable[str], wait_s: float) -> list[str]:
    """Delete every version of the named videos: rows, KV, embeddings, thumbnails. A bare ledger row stays, so that
    the next ingest does not index them again; it holds no footage."""
    named = {normalise_uri(uri) for uri in uris}
    if not named:
        raise UsageError("name the videos to delete")
    with WriterLease(reader.folder, wait_s) as lease:
        rows = reader.videos()
        _require_known(named, rows)
        gone = [row for row in rows if row.uri in named]
        erase(reader.store, gone)
        finish_deletions(reader.store)
        sweep(reader.folder, reader.store, lease)
    return sorted({row.uri for row in gone})


def erase(store: LanceStore, rows: Iterable[VideoRow], final: str = DELETED) -> None:
    """Remove videos from every table but for a bare ledger row; their KV files go with the sweep that has to follow.

    The row says ``deleting`` until the bare one, in state ``final``, takes its place in one commit, so
    ``finish_deletions`` completes a call that was killed anywhere, and the video is not indexed again.
    """
    for row in rows:
        store.upsert_videos([replace(row, state=DELETING)])
        store.delete_rows(row.video_id)
        store.upsert_videos([_tombstone(row, final)])


def finish_deletions(store: LanceStore) -> None:
    """Complete deletions that a killed process began. Goes before a sweep, which would leave no row of them."""
    erase(store, store.videos(states=[DELETING]))


def _tombstone(row: VideoRow, state: str) -> VideoRow:
    return VideoRow(
        video_id=row.video_id,
        uri=row.uri,
        etag=row.etag,
        key=row.key,
        source=row.source,
        camera=row.camera,
        title=row.title,
        size=row.size,
        state=state,
    )


def _require_known(named: set[str], rows: list[VideoRow]) -> None:
    unknown = named - {row.uri for row in rows}
    if unknown:
        raise UsageError(f"unknown video {min(unknown)!r}; list what is there with: vxl videos")


def compact(reader: ArchiveReader, wait_s: float) -> dict[str, Any]:
    """Compact the tables, sweep files that nothing refers to; bytes freed by each."""
    with WriterLease(reader.folder, wait_s) as lease:
        finish_deletions(reader.store)
        swept = sweep(reader.folder, reader.store, lease)
        report = reader.store.compact(full=True)
    return {
        "tables": {name: {"before": report.bytes_before[name], "after": report.bytes_after[name]} for name in TABLES},
        "table_bytes_freed": report.bytes_freed,
        "files_removed": len(swept.removed),
        "file_bytes_freed": swept.num_bytes,
    }
