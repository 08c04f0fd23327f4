"""A segment's rows on disk between the worker that made them and the process that commits them.

One file for a segment, ``staging/<segment_id>.rows``: the checked header of ``indexers.container`` followed by four
Arrow IPC streams (segment, chunks, embeddings, sparse). Written durably after the segment's KV file is, read back with
every digest verified. Commits nothing and removes nothing by itself, except ``remove_staged``.
"""

from __future__ import annotations

import contextlib
import io
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

import pyarrow as pa
import xxhash

from indexers.container import HeaderError, aligned, pack_header, read_header
from indexers.disk import unavailable
from indexers.errors import CorruptStaging, StoreUnavailable
from indexers.folder import HERE, Folder, LocalFile, Name
from indexers.records import SEGMENTS_SCHEMA, SegmentRows, rows_of, to_table

if TYPE_CHECKING:
    from typing_extensions import Buffer

MAGIC = b"VXLROW\r\n"
FORMAT_VERSION = 1
STAGED_SUFFIX = ".rows"
_PARTS = ("segment", "chunks", "embeddings", "sparse")
_HEADER_BYTES = 4096


class _DigestingSink(io.RawIOBase):
    """Counts and hashes what Arrow writes on its way to the file."""

    def __init__(self, target: BinaryIO) -> None:
        super().__init__()
        self._target = target
        self._hash = xxhash.xxh3_128()
        self.num_bytes = 0

    def writable(self) -> bool:
        return True

    def write(self, payload: Buffer) -> int:
        view = memoryview(payload).cast("B")
        self._hash.update(view)
        self._target.write(view)
        self.num_bytes += len(view)
        return len(view)

    @property
    def digest(self) -> str:
        return self._hash.hexdigest()


def staged_path(staging: Name, segment_id: str) -> Path:
    """Where a segment's staged rows lie in the staging folder."""
    if "/" in segment_id or segment_id.startswith("."):
        raise ValueError(f"not a segment id: {segment_id!r}")
    return Path(staging) / f"{segment_id}{STAGED_SUFFIX}"


def write_staged(staging: Name, rows: SegmentRows, folder: Folder = HERE) -> Path:
    """Write one segment's rows durably into the staging folder, replacing an earlier attempt; returns the path.

    Here and below, paths are relative to ``folder``; without one they are local. Raises ``StoreUnavailable``, for a
    full disk ``DiskFull``; nothing is left behind then.
    """
    path = staged_path(staging, rows.segment_id)
    tables = (to_table([rows.segment], SEGMENTS_SCHEMA), rows.chunks, rows.embeddings, rows.sparse)
    try:
        with folder.create(path) as durable:
            offset = _HEADER_BYTES
            parts = []
            for name, table in zip(_PARTS, tables, strict=True):
                durable.file.seek(offset)
                sink = _DigestingSink(durable.file)
                with pa.ipc.new_stream(pa.PythonFile(sink, mode="w"), table.schema) as stream:
                    stream.write_table(table)
                durable.file.write(bytes(aligned(sink.num_bytes) - sink.num_bytes))
                parts.append({"name": name, "offset": offset, "length": sink.num_bytes, "digest": sink.digest})
                offset += aligned(sink.num_bytes)
            fields = {"format": FORMAT_VERSION, "segment_id": rows.segment_id, "parts": parts, "file_bytes": offset}
            durable.file.seek(0)
            durable.file.write(pack_header(MAGIC, fields))
            durable.commit()
    except OSError as exc:
        raise unavailable(folder, path, exc, sum(table.nbytes for table in tables)) from exc
    return path


def read_staged(path: Name, folder: Folder = HERE) -> SegmentRows:
    """Rows of a staged segment, mapped from the file rather than copied.

    Raises ``CorruptStaging``, ``StoreUnavailable``.
    """
    where = folder.address(path)
    try:
        with folder.local_copy(path) as local:
            with contextlib.closing(LocalFile(local)) as file:
                fields, _ = read_header(file, MAGIC)
            mapped = pa.memory_map(str(local)).read_buffer()
    except (HeaderError, FileNotFoundError) as exc:
        raise CorruptStaging(where, str(exc)) from exc
    except OSError as exc:
        raise unavailable(folder, path, exc) from exc
    if fields["format"] != FORMAT_VERSION or [part["name"] for part in fields["parts"]] != list(_PARTS):
        raise CorruptStaging(where, f"format {fields['format']} is not known")
    tables = []
    for part in fields["parts"]:
        stream = mapped.slice(part["offset"], part["length"])
        if xxhash.xxh3_128_hexdigest(stream) != part["digest"]:
            raise CorruptStaging(where, f"checksum of {part['name']} differs")
        if any(mapped.slice(part["offset"] + part["length"], aligned(part["length"]) - part["length"]).to_pybytes()):
            raise CorruptStaging(where, f"padding after {part['name']} is not zero")
        tables.append(pa.ipc.open_stream(stream).read_all())
    segment, chunks, embeddings, sparse = tables
    return SegmentRows(rows_of(segment)[0], chunks, embeddings, sparse)


def remove_staged(path: Name, folder: Folder = HERE) -> None:
    """Remove a staged segment once its rows are committed; nothing if it is gone already."""
    try:
        folder.remove(path)
    except OSError as exc:
        raise StoreUnavailable(folder.address(path), str(exc)) from exc
