"""The tables of an archive in LanceDB: the only module that knows LanceDB.

Writing is for one process at a time, which holds the ``WriterLease``; every write is keyed, so doing it twice leaves
the tables as doing it once. The order of writes makes a half-written segment or a half-deleted video recognisable:

- ``insert_segment``: chunks, sparse KV, embeddings, then the segment's own row, last;
- ``publish_video``: the video's row and those it supersedes, in one commit;
- ``delete_video``: the video is hidden, its rows go in the opposite order, then its KV folder, then its own row.

Readers take no lease, see every commit as soon as it is made, and are shown whole videos only. Row ids of the database
are never stored. Writes survive the death of the process; LanceDB does not flush to the disk, so they may not survive
loss of power. A store object must not be used after ``fork``; it may be pickled, and opens again where it arrives.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from functools import reduce
from operator import and_, or_
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from indexers.config import DEFAULT_SETTINGS, StoreSettings
from indexers.disk import is_full, require_room
from indexers.errors import CommitConflict, DiskFull, RowConflict, SchemaMismatch, StoreError, StoreUnavailable
from indexers.folder import Folder, Place, as_folder, reached
from indexers.records import (
    BLOB_COLUMN,
    CHUNKS,
    DELETING,
    EMBEDDINGS,
    INDEXED,
    KEYS,
    SCHEMA_VERSION,
    SEGMENTS,
    SEGMENTS_SCHEMA,
    SPARSE_KV,
    SPARSE_SCHEMA,
    TABLES,
    VIDEOS,
    VIDEOS_SCHEMA,
    SegmentRow,
    SegmentRows,
    VectorHit,
    VideoRow,
    check_schema,
    check_video_id,
    distinct,
    kv_folder,
    rows_of,
    table_schema,
    to_table,
)
from indexers.scope import DAY_US, EVERYTHING, Scope
from indexers.sparse import SparseParts, checked_parts

if TYPE_CHECKING:
    from lancedb.db import DBConnection
    from lancedb.expr import Expr
    from lancedb.table import Table

logger = logging.getLogger(__name__)

TABLES_FOLDER = "tables"
_SCHEMA_VERSION_KEY = b"vxl:schema_version"
_PRIMARY_KEY = {b"lance-schema:unenforced-primary-key:position": b"1"}
# Up to this many videos are named to the database one by one; beyond, the hidden ones are excluded instead.
_MAX_NAMED_VIDEOS = 512
_HIT_COLUMNS = (
    *("group_id", "video_id", "segment_id", "chunk_id", "group_index", "camera"),
    *("start_s", "end_s", "start_time", "end_time", "motion"),
)


@dataclass(frozen=True, slots=True)
class Visibility:
    """Which videos a scope admits and readers may see, and the wall-clock span of those that have one."""

    shown: frozenset[str]
    hidden: frozenset[str]
    first: datetime | None
    last: datetime | None


@dataclass(frozen=True, slots=True)
class DeleteReport:
    """What a deletion removed: rows by table, and bytes of KV files."""

    video_id: str
    rows: dict[str, int]
    kv_bytes: int


@dataclass(frozen=True, slots=True)
class CompactReport:
    """Bytes of each table before and after compaction, and whether a vector index was built."""

    bytes_before: dict[str, int]
    bytes_after: dict[str, int]
    built_index: bool

    @property
    def bytes_freed(self) -> int:
        """Negative when compaction wrote new files and the old ones are still kept for readers."""
        return sum(self.bytes_before.values()) - sum(self.bytes_after.values())


class LanceStore:
    """All tables of one archive. Make one with ``create`` or ``open``; tables are opened when they are first used.

    Methods raise ``StoreError`` and its kinds for the store's failures and ``ValueError`` for a caller's mistake.
    """

    def __init__(self, folder: Place, settings: StoreSettings = DEFAULT_SETTINGS) -> None:
        self.folder = as_folder(folder)
        self.settings = settings
        self._process = os.getpid()
        self._connection: DBConnection | None = None
        self._options: Mapping[str, str] = {}
        self._tables: dict[str, Table] = {}
        self._embedding_dim: int | None = None

    @classmethod
    def create(cls, folder: Place, embedding_dim: int, settings: StoreSettings = DEFAULT_SETTINGS) -> LanceStore:
        """Make the tables of an archive, or those that an interrupted call left out; existing ones must fit."""
        store = cls(folder, settings)
        with reached(store.folder):
            store.folder.make()
        for name in TABLES:
            store._create_table(name, embedding_dim)
        if store.embedding_dim != embedding_dim:
            raise SchemaMismatch(
                EMBEDDINGS, f"vectors have {store.embedding_dim} values, {embedding_dim} were asked for"
            )
        for name in TABLES:
            store._table(name)
        return store

    @classmethod
    def open(cls, folder: Place, settings: StoreSettings = DEFAULT_SETTINGS) -> LanceStore:
        """Open an archive's tables for reading or writing. Raises ``StoreUnavailable`` if there are none."""
        store = cls(folder, settings)
        with reached(store.folder):
            found = store.folder.entries(TABLES_FOLDER)
        missing = [name for name in TABLES if f"{name}.lance" not in found]
        if missing:
            raise StoreUnavailable(store.folder.address(), f"tables are missing: {', '.join(missing)}")
        return store

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.folder, self.settings)

    def __enter__(self) -> LanceStore:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def close(self) -> None:
        """Drop all handles; the next call opens them again."""
        self._tables.clear()
        self._connection = None

    @property
    def embedding_dim(self) -> int:
        if self._embedding_dim is None:
            self._embedding_dim = self._table(EMBEDDINGS).schema.field("vector").type.list_size
        return self._embedding_dim

    # Writing

    def upsert_videos(self, rows: Sequence[VideoRow | Mapping[str, Any]]) -> None:
        """Insert or replace rows of ``videos`` in one commit; of several rows with one id the last counts."""
        if rows:
            table = to_table([row.to_row() if isinstance(row, VideoRow) else row for row in rows], VIDEOS_SCHEMA)
            self._merge(VIDEOS, distinct(table, KEYS[VIDEOS], keep="last"), update=True)

    def insert_segment(self, rows: SegmentRows) -> bool:
        """Insert one segment's rows; ``False`` if the segment was committed before, and then nothing changes.

        Rows that an interrupted insertion left behind are replaced. Raises ``RowConflict`` when the committed segment
        has another fingerprint, and ``DiskFull`` before anything is written where the rows have no room.
        """
        rows.check(self.embedding_dim)
        committed = self._scan(SEGMENTS, self._equals("segment_id", rows.segment_id), ["fingerprint"])
        if committed.num_rows:
            found = committed["fingerprint"][0].as_py()
            if found != rows.segment["fingerprint"]:
                raise RowConflict(SEGMENTS, rows.segment_id, "it was indexed with another model or other settings")
            return False
        require_room(self.folder, sum(table.nbytes for table in (rows.chunks, rows.sparse, rows.embeddings)))
        self.drop_partial_segment(rows.segment_id)
        self._merge(CHUNKS, distinct(rows.chunks, KEYS[CHUNKS], keep="first"))
        for part in self._commit_sized(distinct(rows.sparse, KEYS[SPARSE_KV], keep="first")):
            self._merge(SPARSE_KV, part)
        self._merge(EMBEDDINGS, distinct(rows.embeddings, KEYS[EMBEDDINGS], keep="first"))
        self._merge(SEGMENTS, to_table([rows.segment], SEGMENTS_SCHEMA))
        return True

    def replace_segment(self, row: SegmentRow) -> None:
        """Put a committed segment's new row in place of its old one, in one commit: after its KV was encoded anew.

        Readers see the old row with the old file or the new with the new. The new file must be durable, and the old one
        may go afterwards. Raises ``RowConflict`` where the segment is not there or has another fingerprint.
        """
        committed = self._scan(SEGMENTS, self._equals("segment_id", row.segment_id), ["fingerprint"])
        if [found.as_py() for found in committed["fingerprint"]] != [row.fingerprint]:
            raise RowConflict(SEGMENTS, row.segment_id, "it is gone, or was indexed with other settings")
        self._merge(SEGMENTS, to_table([row.to_row()], SEGMENTS_SCHEMA), update=True)

    def publish_video(self, row: VideoRow | Mapping[str, Any], supersede_ids: Collection[str] = ()) -> None:
        """Make a video's final row and mark the versions it replaces, all in one commit.

        Readers see either the old versions or the new one. Versions replaced earlier, or deleted, are left alone.
        """
        published = row if isinstance(row, VideoRow) else VideoRow.from_row(row)
        if published.video_id in supersede_ids:
            raise ValueError(f"video {published.video_id} cannot supersede itself")
        predecessors = [video for video in self._videos_by_id(supersede_ids) if video.superseded_by is None]
        self.upsert_videos([*(replace(video, superseded_by=published.video_id) for video in predecessors), published])

    def drop_partial_segment(self, segment_id: str) -> int:
        """Remove rows of a segment that was never committed; returns how many. ``ValueError`` if it was."""
        where = self._equals("segment_id", segment_id)
        if self._scan(SEGMENTS, where, ["segment_id"]).num_rows:
            raise ValueError(f"segment {segment_id} is committed")
        return sum(self._delete(name, where) for name in (EMBEDDINGS, SPARSE_KV, CHUNKS))

    def delete_rows(self, video_id: str) -> dict[str, int]:
        """Remove a video's segments with all that belongs to them; its own row stays. Returns rows by table."""
        where = self._equals("video_id", check_video_id(video_id))
        return {name: self._delete(name, where) for name in (SEGMENTS, EMBEDDINGS, SPARSE_KV, CHUNKS)}

    def delete_video(self, video_id: str) -> DeleteReport:
        """Remove a video: rows, KV folder, own row. Interrupted anywhere, doing it again or a sweep completes it.

        Older versions of the tables still hold the rows until ``compact`` has removed those versions.
        """
        videos = self._videos_by_id([check_video_id(video_id)])
        if videos and videos[0].state != DELETING:
            self.upsert_videos([replace(videos[0], state=DELETING)])
        rows = self.delete_rows(video_id)
        with reached(self.folder):
            kv_bytes = self.folder.remove_tree(kv_folder(video_id))
        rows[VIDEOS] = self._delete(VIDEOS, self._equals("video_id", video_id))
        return DeleteReport(video_id, rows, kv_bytes)

    def compact(self, *, full: bool = False) -> CompactReport:
        """Merge small files, drop old versions and leftovers of killed writers, and index vectors when they are many.

        Needs the writer lease. Versions younger than ``keep_versions_s`` stay for readers that still use them, so bytes
        of deleted rows go with the first compaction after that time. A large sparse-KV table is rewritten only when
        enough of its bytes are not live, or with ``full``. Raises ``DiskFull`` at a table that has no room to be
        written anew.
        """
        keep = timedelta(seconds=self.settings.keep_versions_s)
        before = {name: self._table_bytes(name) for name in TABLES}
        built_index = False
        for name in TABLES:
            if name == SPARSE_KV and not full and not self._sparse_is_worth_compacting(before[name]):
                continue
            if name == EMBEDDINGS:
                built_index = self._build_index()
            require_room(self.folder, self._live_bytes(name))  # half a compaction would fill the disk and free nothing
            with _translated(name, self.folder):
                self._table(name).optimize(cleanup_older_than=keep, delete_unverified=True)
        after = {name: self._table_bytes(name) for name in TABLES}
        return CompactReport(before, after, built_index)

    # Reading

    def videos(self, scope: Scope = EVERYTHING, states: Collection[str] | None = None) -> list[VideoRow]:
        """Rows of ``videos`` in a scope, in any state or those named, replaced versions included.

        Ordered by camera, start time, URI.
        """
        parts = [] if states is None else [self._is_in("state", states)]
        return self._read_videos(scope, parts)

    def video(self, video_id: str) -> VideoRow | None:
        found = self._videos_by_id([video_id])
        return found[0] if found else None

    def visible_videos(self, scope: Scope = EVERYTHING) -> list[VideoRow]:
        """The videos of a scope that readers may see: completely indexed and not replaced by a newer version."""
        return [video for video in self._read_videos(scope, [self._equals("state", INDEXED)]) if video.is_visible]

    def segments(self, video_id: str) -> list[SegmentRow]:
        """Committed segments of a video, in order."""
        return self.segments_of([video_id])

    def segments_of(self, video_ids: Collection[str] | None = None) -> list[SegmentRow]:
        """Committed segments of several videos, or of all with ``None``, ordered by id."""
        where = None if video_ids is None else self._is_in("video_id", video_ids)
        table = self._scan(SEGMENTS, where, SEGMENTS_SCHEMA.names).sort_by("segment_id")
        return [SegmentRow(**row) for row in rows_of(table)]

    def chunks(
        self,
        *,
        chunk_ids: Collection[str] | None = None,
        segment_ids: Collection[str] | None = None,
        video_ids: Collection[str] | None = None,
        columns: Sequence[str] | None = None,
    ) -> pa.Table:
        """Rows of ``chunks`` that match all that is given, ordered by id; without ``thumbnail`` unless it is named.

        Does not ask whether their video is visible: pass ids that came from a search or from ``visible_videos``.
        """
        named = {"chunk_id": chunk_ids, "segment_id": segment_ids, "video_id": video_ids}
        where = _all_of([self._is_in(column, ids) for column, ids in named.items() if ids is not None])
        names = [name for name in table_schema(CHUNKS, 0).names if name != "thumbnail"] if columns is None else columns
        extra = [] if "chunk_id" in names else ["chunk_id"]
        return self._scan(CHUNKS, where, [*names, *extra]).sort_by("chunk_id").select(list(names))

    def embeddings(self, scope: Scope = EVERYTHING, columns: Sequence[str] | None = None) -> pa.Table:
        """Rows of ``embeddings`` of visible videos in a scope, ordered by id; without ``thumbnail`` unless named."""
        visibility = self._visibility(scope)
        all_names = [name for name in table_schema(EMBEDDINGS, self.embedding_dim).names if name != "thumbnail"]
        names = list(columns) if columns is not None else all_names
        extra = [name for name in ("group_id", "video_id") if name not in names]
        table = self._scan(EMBEDDINGS, self._row_filter(scope, visibility), [*names, *extra])
        return _only_shown(table, visibility).sort_by("group_id").select(names)

    def thumbnail(self, group_id: str) -> bytes | None:
        """The JPEG of one frame group; ``None`` where there is none. Does not ask whether its video is visible."""
        found = self._scan(EMBEDDINGS, self._equals("group_id", group_id), ["thumbnail"])
        return found["thumbnail"][0].as_py() if found.num_rows else None

    def search_vectors(
        self, vector: np.ndarray, scope: Scope = EVERYTHING, limit: int = 20, *, exact: bool = False
    ) -> list[VectorHit]:
        """The frame groups nearest to a vector ``[E]`` by cosine, best first, from visible videos in the scope only.

        Returns ``limit`` hits whenever the scope holds as many. ``exact`` bypasses a vector index. Reads no blob.
        Raises ``ValueError`` for a vector of another length, of zeros, or not finite.
        """
        query_E = self._normalised(vector)
        if limit < 1:
            raise ValueError(f"limit must be at least 1, not {limit}")
        visibility = self._visibility(scope)
        if not visibility.shown:
            return []
        where = self._row_filter(scope, visibility)
        wanted = limit
        while True:
            found = self._nearest(query_E, where, wanted, exact=exact)
            kept = _only_shown(found, visibility)
            if kept.num_rows >= limit or found.num_rows < wanted:
                break
            wanted *= 2
        hits = [VectorHit(score=1.0 - row.pop("_distance"), **row) for row in rows_of(kept)]
        return sorted(hits, key=lambda hit: (-hit.score, hit.group_id))[:limit]

    def read_sparse(self, chunk_ids: Collection[str]) -> dict[str, SparseParts]:
        """Sparse KV of chunks, every part checked. Chunks without rows are left out. Raises ``CorruptKV``."""
        rows, blobs = self._sparse_with_blobs(self._is_in("chunk_id", chunk_ids))
        by_chunk: dict[str, list[dict[str, Any]]] = {}
        for row, blob in zip(rows, blobs, strict=True):
            by_chunk.setdefault(row["chunk_id"], []).append({**row, BLOB_COLUMN: blob})
        return {chunk_id: checked_parts(chunk_id, by_chunk[chunk_id]) for chunk_id in chunk_ids if chunk_id in by_chunk}

    def partial_segments(self) -> list[str]:
        """Segments with rows but without a row of their own: what an interrupted insertion or deletion leaves."""
        with_rows = set(self._scan(CHUNKS, None, ["segment_id"])["segment_id"].to_pylist())
        return sorted(with_rows - set(self._scan(SEGMENTS, None, ["segment_id"])["segment_id"].to_pylist()))

    def row_counts(self) -> dict[str, int]:
        """Rows of each table."""
        counts = {}
        for name in TABLES:
            with _translated(name, self.folder):
                counts[name] = self._table(name).count_rows()
        return counts

    def read_table(self, table: str) -> Iterator[dict[str, Any]]:
        """Every row of one table, in no particular order, blobs included; for verification, not for queries."""
        names = [name for name in table_schema(table, self.embedding_dim).names if name != BLOB_COLUMN]
        found = self._scan(table, None, names, with_row_id=table == SPARSE_KV)
        for batch in found.to_batches(max_chunksize=16 if table == SPARSE_KV else 4096):
            if table == SPARSE_KV:
                blobs = self._blobs(batch["_rowid"].to_pylist())
                for row, blob in zip(batch.drop_columns(["_rowid"]).to_pylist(), blobs, strict=True):
                    yield {**row, BLOB_COLUMN: blob.to_pybytes()}
            else:
                yield from rows_of([batch])

    # LanceDB

    def _connect(self) -> DBConnection:
        if self._process != os.getpid():
            raise StoreError("this store was opened before a fork; open it anew in the child process")
        with reached(self.folder):
            address, options = self.folder.tables(TABLES_FOLDER)
        if self._connection is None or options != self._options:  # credentials are renewed from time to time
            import lancedb

            self.close()
            # Zero: every read looks for newer commits first, so that readers see a running ingest.
            self._connection = lancedb.connect(
                address, read_consistency_interval=timedelta(0), storage_options=dict(options) or None
            )
            self._options = options
        return self._connection

    def _create_table(self, name: str, embedding_dim: int) -> None:
        connection = self._connect()
        if name in connection.list_tables().tables:
            folder = _table_folder(name)
            with reached(self.folder):
                if any(file.name.endswith(".manifest") for file in self.folder.list(f"{folder}/_versions")):
                    return
                self.folder.remove_tree(folder)  # a killed creation got no further than the folder
        with _translated(name, self.folder):
            connection.create_table(
                name,
                schema=_stored_schema(name, embedding_dim),
                storage_options={"new_table_enable_stable_row_ids": "true"},
            )

    def _table(self, name: str) -> Table:
        connection = self._connect()
        if name not in self._tables:
            with _translated(name, self.folder):
                table = connection.open_table(name)
                schema = table.schema
            version = (schema.metadata or {}).get(_SCHEMA_VERSION_KEY, b"?").decode()
            if version != str(SCHEMA_VERSION):
                raise SchemaMismatch(name, f"schema version {version}, this program uses {SCHEMA_VERSION}")
            dim = schema.field("vector").type.list_size if name == EMBEDDINGS else 0
            try:
                check_schema(schema, table_schema(name, dim), name)
            except ValueError as exc:
                raise SchemaMismatch(name, str(exc)) from exc
            self._tables[name] = table
        return self._tables[name]

    def _merge(self, name: str, rows: pa.Table, *, update: bool = False) -> None:
        """One keyed commit: rows with new keys are inserted; rows with known keys replaced or, by default, left."""
        if rows.num_rows == 0:
            return
        with _translated(name, self.folder, rows.nbytes):
            merge = self._table(name).merge_insert(KEYS[name])
            if update:
                merge = merge.when_matched_update_all()
            merge.when_not_matched_insert_all().execute(rows)

    def _delete(self, name: str, where: Expr) -> int:
        num_rows = self._scan(name, where, [KEYS[name]]).num_rows
        if num_rows:
            with _translated(name, self.folder):
                self._table(name).delete(where)
        return num_rows

    def _scan(self, name: str, where: Expr | None, columns: Sequence[str], *, with_row_id: bool = False) -> pa.Table:
        with _translated(name, self.folder):
            query = self._table(name).search().select(list(columns))
            if where is not None:
                query = query.where(where)
            if with_row_id:
                query = query.with_row_id(True)
            return query.to_arrow()

    def _nearest(self, query_E: np.ndarray, where: Expr | None, limit: int, *, exact: bool) -> pa.Table:
        with _translated(EMBEDDINGS, self.folder):
            search: Any = self._table(EMBEDDINGS).search(query_E, vector_column_name="vector", query_type="vector")
            query = search.distance_type("cosine").select([*_HIT_COLUMNS, "_distance"]).limit(limit)
            if where is not None:
                query = query.where(where, prefilter=True)
            if exact:
                query = query.bypass_vector_index()
            else:
                probes = self.settings.nprobes if where is None else self.settings.filtered_nprobes
                # No upper bound: further partitions are searched until the limit is filled.
                query = query.minimum_nprobes(probes).maximum_nprobes(0)
            return query.to_arrow()

    def _blobs(self, row_ids: list[int]) -> list[pa.Buffer]:
        if not row_ids:
            return []
        with _translated(SPARSE_KV, self.folder):
            blobs = self._table(SPARSE_KV).fetch_blobs(BLOB_COLUMN, row_ids)
        if isinstance(blobs, pa.ChunkedArray):
            blobs = blobs.combine_chunks()
        return [blob.as_buffer() if blob.is_valid else pa.py_buffer(b"") for blob in blobs]

    def _sparse_with_blobs(self, where: Expr) -> tuple[list[dict[str, Any]], list[pa.Buffer]]:
        columns = [name for name in SPARSE_SCHEMA.names if name != BLOB_COLUMN]
        found = self._scan(SPARSE_KV, where, columns, with_row_id=True)
        while True:
            try:
                blobs = self._blobs(found["_rowid"].to_pylist())
            except StoreError:
                # Rows that a writer deleted after they were found: look again, and give up when they are still there.
                again = self._scan(SPARSE_KV, where, columns, with_row_id=True)
                if again["_rowid"].to_pylist() == found["_rowid"].to_pylist():
                    raise
                found = again
            else:
                return found.drop_columns(["_rowid"]).to_pylist(), blobs

    def _build_index(self) -> bool:
        table = self._table(EMBEDDINGS)
        with _translated(EMBEDDINGS, self.folder):
            if table.count_rows() < self.settings.ann_threshold_rows:
                return False
            if any(index.columns == ["vector"] for index in table.list_indices()):
                return False
            from lancedb.index import IvfFlat

            table.create_index("vector", config=IvfFlat(distance_type="cosine"), replace=True)
            return True

    def _sparse_is_worth_compacting(self, table_bytes: int) -> bool:
        # LanceDB rewrites every blob of a table that has grown since, so a large one is left until much is to be won.
        if table_bytes <= self.settings.sparse_compact_bytes:
            return True
        return 1 - self._live_bytes(SPARSE_KV) / table_bytes > self.settings.sparse_compact_waste

    def _live_bytes(self, name: str) -> int:
        """Bytes of the files that the newest version of a table consists of, blobs counted by their values."""
        with _translated(name, self.folder):
            stats: Any = self._table(name).stats()
        live_bytes = int(stats["total_bytes"])
        if name == SPARSE_KV:
            descriptors = self._scan(SPARSE_KV, None, [BLOB_COLUMN])[BLOB_COLUMN].combine_chunks()
            live_bytes += pc.sum(descriptors.field("size")).as_py() or 0
        return live_bytes

    def _table_bytes(self, name: str) -> int:
        with reached(self.folder):
            return sum(file.num_bytes for file in self.folder.list(_table_folder(name)))

    def _commit_sized(self, table: pa.Table) -> Iterator[pa.Table]:
        """Slices of a table of at most ``commit_bytes`` of blobs each, at least one row."""
        first, total = 0, 0
        for position, blob in enumerate(table[BLOB_COLUMN]):
            size = blob.as_buffer().size if blob.is_valid else 0
            if position > first and total + size > self.settings.commit_bytes:
                yield table.slice(first, position - first)
                first, total = position, 0
            total += size
        yield table.slice(first)

    # Visibility and filters

    def _videos_by_id(self, video_ids: Collection[str]) -> list[VideoRow]:
        if not video_ids:
            return []
        table = self._scan(VIDEOS, self._is_in("video_id", video_ids), VIDEOS_SCHEMA.names).sort_by("video_id")
        return [VideoRow.from_row(row) for row in rows_of(table)]

    def _read_videos(self, scope: Scope, parts: list[Expr]) -> list[VideoRow]:
        if scope.cameras is not None:
            parts = [*parts, self._is_in("camera", scope.cameras)]
        if scope.video_ids is not None:
            parts = [*parts, self._is_in("video_id", scope.video_ids)]
        rows = rows_of(self._scan(VIDEOS, _all_of(parts), VIDEOS_SCHEMA.names))
        videos = [VideoRow.from_row(row) for row in rows]
        admitted = [
            video for video in videos if scope.admits(video.video_id, video.camera, video.start_time, video.end_time)
        ]
        earliest = datetime.min.replace(tzinfo=UTC)
        return sorted(admitted, key=lambda video: (video.camera or "", video.start_time or earliest, video.uri))

    def _visibility(self, scope: Scope) -> Visibility:
        columns = ["video_id", "camera", "state", "superseded_by", "start_time", "duration_s"]
        shown, hidden = set(), set()
        first: datetime | None = None
        last: datetime | None = None
        for row in rows_of(self._scan(VIDEOS, None, columns)):
            start, length = row["start_time"], row["duration_s"]
            end = None if start is None or length is None else start + timedelta(seconds=length)
            is_visible = row["state"] == INDEXED and row["superseded_by"] is None
            if not (is_visible and scope.admits(row["video_id"], row["camera"], start, end)):
                hidden.add(row["video_id"])
                continue
            shown.add(row["video_id"])
            if start is not None and end is not None:
                first = start if first is None else min(first, start)
                last = end if last is None else max(last, end)
        return Visibility(frozenset(shown), frozenset(hidden), first, last)

    def _row_filter(self, scope: Scope, visibility: Visibility) -> Expr | None:
        """The scope over rows that carry ``video_id``, ``start_time`` and ``end_time``."""
        from lancedb.expr import col, lit

        parts = []
        if len(visibility.shown) <= min(_MAX_NAMED_VIDEOS, len(visibility.hidden)):
            parts.append(self._is_in("video_id", visibility.shown))
        elif visibility.hidden:
            parts.append(~self._is_in("video_id", visibility.hidden))
        if scope.after is not None:
            parts.append(col("end_time") > lit(scope.after))
        if scope.before is not None:
            parts.append(col("start_time") < lit(scope.before))
        if scope.clock is not None:
            parts.append(self._clock_filter(scope, visibility))
        return _all_of(parts)

    def _clock_filter(self, scope: Scope, visibility: Visibility) -> Expr:
        """Rows whose local clock reads a time of the window: whole-number arithmetic on microseconds."""
        from lancedb.expr import col, lit

        window = scope.clock
        if window is None or visibility.first is None or visibility.last is None:
            return lit(False)
        start_us = col("start_time").cast(pa.int64())
        length_us = col("end_time").cast(pa.int64()) - start_us
        pieces = []
        for piece in window.pieces(visibility.first, visibility.last):
            # A whole number of days keeps the dividend positive for every date since 1900.
            into_us = start_us + lit(piece.offset_us - window.start_us + 30_000 * DAY_US)
            into_us = into_us - (into_us / lit(DAY_US)) * lit(DAY_US)
            inside = (into_us < lit(window.width_us)) | (into_us + length_us > lit(DAY_US))
            if piece.start_us is not None:
                inside = inside & (start_us >= lit(piece.start_us))
            if piece.end_us is not None:
                inside = inside & (start_us < lit(piece.end_us))
            pieces.append(inside)
        return reduce(or_, pieces)

    def _equals(self, column: str, value: str) -> Expr:
        from lancedb.expr import col, lit

        return col(column) == lit(value)

    def _is_in(self, column: str, values: Collection[str]) -> Expr:
        from lancedb.expr import col

        return col(column).isin(sorted(values))

    def _normalised(self, vector: np.ndarray) -> np.ndarray:
        query_E = np.asarray(vector, dtype=np.float32).reshape(-1)
        if query_E.shape[0] != self.embedding_dim:
            raise ValueError(f"the vector has {query_E.shape[0]} values, the archive's have {self.embedding_dim}")
        norm = float(np.linalg.norm(query_E))
        if not np.isfinite(norm) or norm == 0.0:
            raise ValueError("a vector of zeros or of numbers that are not finite has no direction")
        return query_E / norm


def _stored_schema(name: str, embedding_dim: int) -> pa.Schema:
    """The schema as LanceDB creates it: blob column, primary key and schema version declared."""
    import lancedb

    fields = []
    for field in table_schema(name, embedding_dim):
        if field.name == KEYS[name]:
            field = field.with_metadata(_PRIMARY_KEY)
        fields.append(lancedb.blob(BLOB_COLUMN) if field.name == BLOB_COLUMN else field)
    return pa.schema(fields, metadata={_SCHEMA_VERSION_KEY: str(SCHEMA_VERSION).encode()})


def _all_of(parts: Sequence[Expr]) -> Expr | None:
    return reduce(and_, parts) if parts else None


def _only_shown(table: pa.Table, visibility: Visibility) -> pa.Table:
    """Rows of shown videos: holds also for rows whose video has no row at all."""
    mask = [video_id in visibility.shown for video_id in table["video_id"].to_pylist()]
    return table if all(mask) else table.filter(pa.array(mask, type=pa.bool_()))


def _table_folder(name: str) -> str:
    return f"{TABLES_FOLDER}/{name}.lance"


@contextmanager
def _translated(table: str, folder: Folder, needed: int | None = None) -> Iterator[None]:
    """LanceDB raises plain ``ValueError``, ``RuntimeError`` and ``OSError``; its message is all there is to go by.

    ``needed`` is given for writes, in bytes: one that fails where there is no room for so much failed for that reason,
    whatever the message says.
    """
    try:
        yield
    except (OSError, ValueError, RuntimeError) as exc:
        free = folder.free_bytes()
        if is_full(exc) or (needed is not None and free is not None and free < needed):
            raise DiskFull(folder.address(), needed, free) from exc
        text = str(exc)
        if isinstance(exc, OSError):
            raise StoreUnavailable(folder.address(), f"{table}: {text}") from exc
        lowered = text.lower()
        if "conflict" in lowered or "concurrent" in lowered:
            raise CommitConflict(table, text) from exc
        if "was not found" in lowered or "not found:" in lowered or "io error" in lowered:
            raise StoreUnavailable(folder.address(), f"{table}: {text}") from exc
        raise StoreError(f"table {table!r}: {text}") from exc
