"""Row types, Arrow schemas, keys and paths of an archive. Knows nothing of the database that holds the rows.

Rows are a pure function of content and settings: no wall clock, run or attempt is recorded, so that an interrupted
and resumed run leaves the same tables as an undisturbed one, row for row.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

import numpy as np
import pyarrow as pa
import xxhash

SCHEMA_VERSION = 2

DISCOVERED = "discovered"
QUEUED = "queued"
RUNNING = "running"
INDEXED = "indexed"
FAILED = "failed"
QUARANTINED = "quarantined"
EXPIRED = "expired"
DELETING = "deleting"
DELETED = "deleted"
VIDEO_STATES = (DISCOVERED, QUEUED, RUNNING, INDEXED, FAILED, QUARANTINED, EXPIRED, DELETING, DELETED)

VIDEOS = "videos"
SEGMENTS = "segments"
CHUNKS = "chunks"
EMBEDDINGS = "embeddings"
SPARSE_KV = "sparse_kv"
TABLES = (VIDEOS, SEGMENTS, CHUNKS, EMBEDDINGS, SPARSE_KV)
KEYS = {
    VIDEOS: "video_id",
    SEGMENTS: "segment_id",
    CHUNKS: "chunk_id",
    EMBEDDINGS: "group_id",
    SPARSE_KV: "row_id",
}
BLOB_COLUMN = "kv"
KV_SUFFIX = ".vxlkv"
TOKENS_SUFFIX = ".vxltok"

_TIMESTAMP = pa.timestamp("us", tz="UTC")
_VIDEO_ID = re.compile(r"[0-9a-f]{32}")


def _required(name: str, kind: pa.DataType) -> pa.Field:
    return pa.field(name, kind, nullable=False)


VIDEOS_SCHEMA = pa.schema(
    [
        _required("video_id", pa.string()),
        _required("uri", pa.string()),
        _required("etag", pa.string()),
        _required("key", pa.string()),
        _required("source", pa.string()),
        pa.field("camera", pa.string()),
        _required("title", pa.string()),
        pa.field("start_time", _TIMESTAMP),
        _required("start_time_source", pa.string()),
        pa.field("time_zone", pa.string()),
        pa.field("duration_s", pa.float64()),
        pa.field("fps", pa.float64()),
        pa.field("sample_fps", pa.float64()),
        pa.field("codec", pa.string()),
        pa.field("container", pa.string()),
        pa.field("width", pa.int32()),
        pa.field("height", pa.int32()),
        pa.field("rotation", pa.int32()),
        _required("size", pa.int64()),
        pa.field("backend", pa.string()),
        pa.field("decode_verdict", pa.string()),
        pa.field("damage", pa.string()),
        _required("bad_packets", pa.int64()),
        _required("num_segments", pa.int32()),
        _required("num_chunks", pa.int32()),
        _required("num_frames", pa.int64()),
        _required("kv_bytes", pa.int64()),
        _required("sparse_bytes", pa.int64()),
        _required("state", pa.string()),
        pa.field("error_type", pa.string()),
        pa.field("error_message", pa.string()),
        _required("failed_attempts", pa.int32()),
        pa.field("superseded_by", pa.string()),
        pa.field("fingerprint", pa.string()),
    ]
)

SEGMENTS_SCHEMA = pa.schema(
    [
        _required("segment_id", pa.string()),
        _required("video_id", pa.string()),
        _required("segment_index", pa.int32()),
        _required("start_s", pa.float64()),
        _required("end_s", pa.float64()),
        _required("num_chunks", pa.int32()),
        _required("num_groups", pa.int32()),
        _required("num_frames", pa.int64()),
        _required("num_tokens", pa.int64()),
        _required("state", pa.string()),
        pa.field("kv_path", pa.string()),
        _required("kv_bytes", pa.int64()),
        _required("sparse_bytes", pa.int64()),
        pa.field("kv_digest", pa.string()),
        _required("tier", pa.string()),
        _required("codec", pa.string()),
        _required("dtype", pa.string()),
        _required("fingerprint", pa.string()),
        pa.field("tokens_path", pa.string()),
        _required("tokens_bytes", pa.int64()),
        pa.field("tokens_digest", pa.string()),
    ]
)

CHUNKS_SCHEMA = pa.schema(
    [
        _required("chunk_id", pa.string()),
        _required("video_id", pa.string()),
        _required("segment_id", pa.string()),
        _required("segment_index", pa.int32()),
        _required("chunk_index", pa.int32()),
        pa.field("camera", pa.string()),
        _required("uri", pa.string()),
        _required("start_s", pa.float64()),
        _required("end_s", pa.float64()),
        pa.field("start_time", _TIMESTAMP),
        pa.field("end_time", _TIMESTAMP),
        _required("num_groups", pa.int32()),
        _required("num_tokens", pa.int64()),
        _required("group_time_tokens", pa.list_(pa.int32())),
        _required("motion", pa.float64()),
        pa.field("novelty", pa.float64()),
        pa.field("thumbnail", pa.binary()),
        _required("kv_offset", pa.int64()),
        _required("kv_length", pa.int64()),
    ]
)

# The blob column is plain large_binary here; the store declares it as a blob column of the database.
SPARSE_SCHEMA = pa.schema(
    [
        _required("row_id", pa.string()),
        _required("chunk_id", pa.string()),
        _required("segment_id", pa.string()),
        _required("video_id", pa.string()),
        _required("part", pa.int32()),
        _required("num_parts", pa.int32()),
        _required("first_group", pa.int32()),
        _required("num_groups", pa.int32()),
        _required("compression", pa.int32()),
        _required("dtype", pa.string()),
        _required("shape", pa.list_(pa.int32())),
        _required("digest", pa.string()),
        pa.field(BLOB_COLUMN, pa.large_binary()),
    ]
)


def embeddings_schema(embedding_dim: int) -> pa.Schema:
    """Schema of ``embeddings`` for vectors of ``embedding_dim`` float32 values, L2-normalised."""
    return pa.schema(
        [
            _required("group_id", pa.string()),
            _required("video_id", pa.string()),
            _required("segment_id", pa.string()),
            _required("chunk_id", pa.string()),
            _required("group_index", pa.int32()),
            pa.field("camera", pa.string()),
            _required("start_s", pa.float64()),
            _required("end_s", pa.float64()),
            pa.field("start_time", _TIMESTAMP),
            pa.field("end_time", _TIMESTAMP),
            _required("vector", pa.list_(pa.float32(), embedding_dim)),
            _required("motion", pa.float64()),
            pa.field("thumbnail", pa.binary()),
        ]
    )


def table_schema(table: str, embedding_dim: int) -> pa.Schema:
    """Schema of one of ``TABLES``."""
    if table == EMBEDDINGS:
        return embeddings_schema(embedding_dim)
    return {VIDEOS: VIDEOS_SCHEMA, SEGMENTS: SEGMENTS_SCHEMA, CHUNKS: CHUNKS_SCHEMA, SPARSE_KV: SPARSE_SCHEMA}[table]


def make_video_id(uri: str, etag: str) -> str:
    """Id of one object version: 32 hex digits."""
    return xxhash.xxh3_128_hexdigest(f"{uri}\0{etag}".encode())


def make_segment_id(video_id: str, segment_index: int) -> str:
    return f"{video_id}-{segment_index:05d}"


def make_chunk_id(segment_id: str, chunk_index: int) -> str:
    return f"{segment_id}-{chunk_index:04d}"


def make_group_id(segment_id: str, group_index: int) -> str:
    return f"{segment_id}-{group_index:05d}"


def make_sparse_row_id(chunk_id: str, part: int) -> str:
    return f"{chunk_id}-{part:03d}"


def check_video_id(video_id: str) -> str:
    """The id itself, or ``ValueError``: ids become folder names, so nothing else may pass."""
    if not _VIDEO_ID.fullmatch(video_id):
        raise ValueError(f"not a video id (32 hex digits): {video_id!r}")
    return video_id


def kv_folder(video_id: str) -> str:
    """Folder of a video's KV files, relative to the archive, with ``/`` between its parts."""
    return f"kv/{check_video_id(video_id)[:2]}/{video_id}"


def kv_path(video_id: str, segment_index: int, codec: str = "exact") -> str:
    """KV file of one segment, relative to the archive: what ``segments.kv_path`` holds.

    Every codec has a name of its own, so that a segment that is encoded anew is never written over its old file.
    """
    middle = "" if codec == "exact" else f".{codec}"
    return f"{kv_folder(video_id)}/{segment_index:05d}{middle}{KV_SUFFIX}"


def tokens_path(video_id: str, segment_index: int) -> str:
    """File of one segment's projected tokens, relative to the archive: what ``segments.tokens_path`` holds."""
    return f"{kv_folder(video_id)}/{segment_index:05d}{TOKENS_SUFFIX}"


@dataclass(frozen=True, slots=True, kw_only=True)
class VideoRow:
    """One row of ``videos``. What is unknown until the file has been decoded is ``None``."""

    video_id: str
    uri: str
    etag: str
    key: str
    source: str
    state: str
    size: int
    camera: str | None = None
    title: str = ""
    start_time: datetime | None = None
    start_time_source: str = "unknown"
    time_zone: str | None = None
    duration_s: float | None = None
    fps: float | None = None
    sample_fps: float | None = None
    codec: str | None = None
    container: str | None = None
    width: int | None = None
    height: int | None = None
    rotation: int | None = None
    backend: str | None = None
    decode_verdict: str | None = None
    damage: str | None = None
    bad_packets: int = 0
    num_segments: int = 0
    num_chunks: int = 0
    num_frames: int = 0
    kv_bytes: int = 0
    sparse_bytes: int = 0
    error_type: str | None = None
    error_message: str | None = None
    failed_attempts: int = 0
    superseded_by: str | None = None
    fingerprint: str | None = None

    @property
    def is_visible(self) -> bool:
        """Whether readers see this video: completely indexed and not replaced by a newer version."""
        return self.state == INDEXED and self.superseded_by is None

    @property
    def end_time(self) -> datetime | None:
        """UTC end of the footage, where its start and its length are known."""
        if self.start_time is None or self.duration_s is None:
            return None
        return self.start_time + timedelta(seconds=self.duration_s)

    @classmethod
    def from_row(cls, row: Mapping[str, Any]) -> VideoRow:
        return cls(**{**row, "start_time": in_utc(row.get("start_time"))})

    def to_row(self) -> dict[str, Any]:
        return asdict(self)


@dataclass(frozen=True, slots=True, kw_only=True)
class SegmentRow:
    """One row of ``segments``: present only when all other rows and the files of the segment are.

    ``kv_*`` is its file of dense KV, ``tokens_*`` that of its projected tokens; it may have either, both or none.
    """

    segment_id: str
    video_id: str
    segment_index: int
    start_s: float
    end_s: float
    num_chunks: int
    num_groups: int
    num_frames: int
    num_tokens: int
    state: str
    kv_path: str | None
    kv_bytes: int
    sparse_bytes: int
    kv_digest: str | None
    tier: str
    codec: str
    dtype: str
    fingerprint: str
    tokens_path: str | None = None
    tokens_bytes: int = 0
    tokens_digest: str | None = None

    @property
    def file_paths(self) -> tuple[str, ...]:
        """The files that it names, relative to the archive."""
        return tuple(path for path in (self.kv_path, self.tokens_path) if path is not None)

    @property
    def file_bytes(self) -> int:
        """Bytes of those files."""
        return self.kv_bytes + self.tokens_bytes

    def to_row(self) -> dict[str, Any]:
        return asdict(self)


@dataclass(frozen=True, slots=True)
class SegmentRows:
    """Everything one segment adds to the tables: its own row and its rows of the three append-only tables."""

    segment: dict[str, Any]
    chunks: pa.Table
    embeddings: pa.Table
    sparse: pa.Table

    @property
    def segment_id(self) -> str:
        return str(self.segment["segment_id"])

    @property
    def video_id(self) -> str:
        return str(self.segment["video_id"])

    @property
    def file_paths(self) -> tuple[str, ...]:
        """The files that its row names, relative to the archive."""
        return SegmentRow(**self.segment).file_paths

    def check(self, embedding_dim: int) -> None:
        """Raise ``ValueError`` unless schemas, ids, counts and vector norms agree with the segment's row."""
        to_table([self.segment], SEGMENTS_SCHEMA)
        check_video_id(self.video_id)
        for name, table in ((CHUNKS, self.chunks), (EMBEDDINGS, self.embeddings), (SPARSE_KV, self.sparse)):
            check_schema(table.schema, table_schema(name, embedding_dim), name)
            for column, expected in (("segment_id", self.segment_id), ("video_id", self.video_id)):
                strangers = set(table[column].to_pylist()) - {expected}
                if strangers:
                    raise ValueError(f"{name}: rows of another {column} among those of {expected}: {sorted(strangers)}")
        num_chunks = len(set(self.chunks["chunk_id"].to_pylist()))
        if num_chunks != self.segment["num_chunks"]:
            raise ValueError(f"chunks: {num_chunks} rows, segment {self.segment_id} says {self.segment['num_chunks']}")
        strangers = set(self.sparse["chunk_id"].to_pylist()) | set(self.embeddings["chunk_id"].to_pylist())
        strangers -= set(self.chunks["chunk_id"].to_pylist())
        if strangers:
            raise ValueError(f"rows of chunks that segment {self.segment_id} does not have: {sorted(strangers)}")
        if self.embeddings.num_rows:
            vectors_NE = self.embeddings["vector"].combine_chunks().flatten().to_numpy().reshape(-1, embedding_dim)
            norms_N = np.linalg.norm(vectors_NE, axis=1)
            if not np.all(np.abs(norms_N - 1) < 1e-3):
                raise ValueError(f"embeddings of segment {self.segment_id} are not L2-normalised")


@dataclass(frozen=True, slots=True, kw_only=True)
class VectorHit:
    """A frame group found by a vector search. ``score`` is the cosine similarity, -1 to 1, higher is closer."""

    group_id: str
    video_id: str
    segment_id: str
    chunk_id: str
    group_index: int
    camera: str | None
    start_s: float
    end_s: float
    start_time: datetime | None
    end_time: datetime | None
    motion: float
    score: float


def in_utc(time: datetime | None) -> datetime | None:
    """The same instant in ``datetime.UTC``; ``ValueError`` for a time without a zone."""
    if time is None:
        return None
    if time.tzinfo is None:
        raise ValueError(f"time without a time zone: {time}")
    return time.astimezone(UTC)


def to_table(rows: Sequence[Mapping[str, Any]], schema: pa.Schema) -> pa.Table:
    """Rows as an Arrow table of exactly ``schema``.

    Raises ``ValueError`` for a missing or unknown column, for ``None`` in a required one, for a naive datetime and for
    text that is not valid Unicode, naming the column.
    """
    names = schema.names
    for row in rows:
        if row.keys() != set(names):
            missing, unknown = set(names) - row.keys(), row.keys() - set(names)
            raise ValueError(f"row does not fit: missing {sorted(missing)}, unknown {sorted(unknown)}")
    columns = [_to_column([row[name] for row in rows], schema.field(name)) for name in names]
    return pa.Table.from_arrays(columns, schema=schema)


def _to_column(values: list[Any], field: pa.Field) -> pa.Array:
    if not field.nullable and any(value is None for value in values):
        raise ValueError(f"column {field.name!r} may not be null")
    if pa.types.is_timestamp(field.type):
        values = [in_utc(value) for value in values]
    try:
        return pa.array(values, type=field.type)
    except (pa.ArrowException, UnicodeError, OverflowError, TypeError) as exc:
        raise ValueError(f"column {field.name!r}: {exc}") from exc


def check_schema(found: pa.Schema, expected: pa.Schema, table: str) -> None:
    """``ValueError`` unless names, order and types agree (metadata and the blob column's type are not compared)."""
    if found.names != expected.names:
        raise ValueError(f"{table}: columns {found.names}, expected {expected.names}")
    for field in expected:
        kind = found.field(field.name).type
        if field.name != BLOB_COLUMN and kind != field.type:
            raise ValueError(f"{table}: column {field.name!r} is {kind}, expected {field.type}")


def distinct(table: pa.Table, key: str, *, keep: str) -> pa.Table:
    """``table`` with one row for each value of ``key``: the ``"first"`` or the ``"last"`` of several."""
    values = table[key].to_pylist()
    if len(set(values)) == len(values):
        return table
    positions: dict[str, int] = {}
    for position, value in enumerate(values):
        if keep == "last" or value not in positions:
            positions[value] = position
    return table.take(sorted(positions.values()))


def rows_of(table: pa.Table | Iterable[pa.RecordBatch]) -> list[dict[str, Any]]:
    """Rows as dictionaries, with ``datetime.UTC`` times."""
    batches = [table] if isinstance(table, pa.Table) else list(table)
    rows: list[dict[str, Any]] = []
    for batch in batches:
        times = [field.name for field in batch.schema if pa.types.is_timestamp(field.type)]
        for row in batch.to_pylist():
            rows.append({**row, **{name: in_utc(row[name]) for name in times}})
    return rows
