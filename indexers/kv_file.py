"""Dense KV of one segment in one file: format v1, writer and reader. docs/storage.md describes every byte.

Keys are stored before rotation. A chunk's bytes are ``[layer][K|V][kv_head][token][head_dim]``, little-endian, whole
and contiguous, starting at a multiple of 4096, so that one range read loads one chunk. Bytes come in as any buffer and
go out as a ``memoryview``; what they mean is the model's business.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, NamedTuple, overload

import numpy as np
import xxhash

from indexers.container import DurableFile, HeaderError, aligned, pack_header, read_header
from indexers.errors import CorruptKV, MissingKV, StoreUnavailable

if TYPE_CHECKING:
    from typing_extensions import Buffer

MAGIC = b"VXLKVF\r\n"
FORMAT_VERSION = 1
LAYOUT = "[chunk][layer][K|V][kv_head][token][head_dim]"
ROTATION = "unrotated"
CODEC = "exact"
ITEM_BYTES = {"float64": 8, "float32": 4, "float16": 2, "bfloat16": 2, "int8": 1, "uint8": 1}
_NO_DIGEST = "0" * 32


@dataclass(frozen=True, slots=True, kw_only=True)
class DenseKVHeader:
    """What a KV file says about itself before any payload.

    ``chunk_groups`` gives for each chunk the ``(timestamp tokens, visual tokens)`` of each of its frame groups.
    """

    video_id: str
    segment_index: int
    fingerprint: str
    dtype: str
    layers: int
    kv_heads: int
    head_dim: int
    chunk_groups: tuple[tuple[tuple[int, int], ...], ...]

    def __post_init__(self) -> None:
        if self.dtype not in ITEM_BYTES:
            raise ValueError(f"unknown KV dtype {self.dtype!r}; known: {', '.join(ITEM_BYTES)}")
        groups = tuple(tuple((int(time), int(visual)) for time, visual in chunk) for chunk in self.chunk_groups)
        object.__setattr__(self, "chunk_groups", groups)

    @property
    def num_chunks(self) -> int:
        return len(self.chunk_groups)

    def num_tokens(self, chunk: int) -> int:
        return sum(time + visual for time, visual in self.chunk_groups[chunk])

    def chunk_shape(self, chunk: int) -> tuple[int, int, int, int, int]:
        """``[layers, 2 (K, V), kv_heads, tokens, head_dim]``."""
        return (self.layers, 2, self.kv_heads, self.num_tokens(chunk), self.head_dim)

    def chunk_bytes(self, chunk: int) -> int:
        return self.layers * 2 * self.kv_heads * self.num_tokens(chunk) * self.head_dim * ITEM_BYTES[self.dtype]


class ChunkEntry(NamedTuple):
    """Where a chunk lies in its file, in bytes, and its xxh3_128 as 32 hex digits."""

    offset: int
    length: int
    digest: str


class WrittenKV(Sequence[ChunkEntry]):
    """The chunks of a file, with the file's size in bytes and the digest that ``segments.kv_digest`` records.

    The digest is that of the header, which holds the digests of all chunks.
    """

    def __init__(self, entries: Iterable[ChunkEntry], num_bytes: int, digest: str) -> None:
        self._entries = tuple(entries)
        self.num_bytes = num_bytes
        self.digest = digest

    def __len__(self) -> int:
        return len(self._entries)

    @overload
    def __getitem__(self, index: int) -> ChunkEntry: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[ChunkEntry]: ...
    def __getitem__(self, index: int | slice) -> ChunkEntry | Sequence[ChunkEntry]:
        return self._entries[index]


class DenseKVWriter:
    """Writes a file chunk by chunk, so that a segment need not fit in memory. Use as a context manager.

    All sizes follow from the header, so only the digests are filled in at the end. Leaving the block before
    ``commit`` removes the unfinished file.
    """

    def __init__(self, path: str | Path, header: DenseKVHeader) -> None:
        self.header = header
        self._entries: list[ChunkEntry] = []
        sizes = [header.chunk_bytes(chunk) for chunk in range(header.num_chunks)]
        # Offsets depend on the header's length and that on the digits of the offsets: settle from below.
        header_bytes = 0
        while True:
            planned = _plan(sizes, header_bytes)
            needed = len(pack_header(MAGIC, _fields(header, planned)))
            if needed <= header_bytes:
                break
            header_bytes = needed
        self._planned = planned
        self._file_bytes = planned[-1].offset + aligned(planned[-1].length) if planned else header_bytes
        self._durable = DurableFile(Path(path))
        self._durable.file.seek(header_bytes)

    def __enter__(self) -> DenseKVWriter:
        return self

    def __exit__(self, *exc: object) -> None:
        self._durable.discard()

    def write_chunk(self, payload: Buffer) -> ChunkEntry:
        """Append the next chunk. ``ValueError`` if its length is not the one its tokens make."""
        position = len(self._entries)
        if position == self.header.num_chunks:
            raise ValueError(f"the header announces {self.header.num_chunks} chunks, this is one more")
        view = _byte_view(payload)
        expected = self._planned[position].length
        if len(view) != expected:
            raise ValueError(f"chunk {position} has {len(view)} bytes, its header says {expected}")
        entry = ChunkEntry(self._planned[position].offset, expected, xxhash.xxh3_128_hexdigest(view))
        self._durable.file.write(view)
        self._durable.file.write(bytes(aligned(expected) - expected))
        self._entries.append(entry)
        return entry

    def commit(self) -> WrittenKV:
        """Write the header, make the file durable and give it its name. ``ValueError`` if chunks are missing."""
        if len(self._entries) != self.header.num_chunks:
            raise ValueError(f"{len(self._entries)} of {self.header.num_chunks} chunks were written")
        packed = pack_header(MAGIC, _fields(self.header, self._entries))
        self._durable.file.seek(0)
        self._durable.file.write(packed)
        self._durable.commit()
        return WrittenKV(self._entries, self._file_bytes, xxhash.xxh3_128_hexdigest(packed))


def write_dense_kv(path: str | Path, header: DenseKVHeader, chunks: Iterable[Buffer]) -> WrittenKV:
    """Write one segment's KV durably; an older file of the same name is replaced at once or not at all.

    ``OSError`` (disk full, no permission) becomes ``StoreUnavailable`` and leaves nothing behind.
    """
    try:
        with DenseKVWriter(path, header) as writer:
            for payload in chunks:
                writer.write_chunk(payload)
            return writer.commit()
    except OSError as exc:
        raise StoreUnavailable(str(path), str(exc)) from exc


class DenseKVReader:
    """Reads chunks of one file, each checked against its digest on every read. Use as a context manager.

    Opening reads and checks the header only; reading chunk ``i`` touches that chunk's bytes only. Pass
    ``expected_digest`` (``segments.kv_digest``) to refuse a file that is whole but not the one committed.
    Raises ``MissingKV``, ``CorruptKV``, ``StoreUnavailable``.
    """

    def __init__(self, path: str | Path, expected_digest: str | None = None) -> None:
        self.path = str(path)
        try:
            self._file: BinaryIO = Path(path).open("rb", buffering=0)  # noqa: SIM115 (closed by close)
        except FileNotFoundError as exc:
            raise MissingKV(self.path) from exc
        except OSError as exc:
            raise StoreUnavailable(self.path, str(exc)) from exc
        try:
            fields, packed = read_header(self._file, MAGIC)
            self.header, self.entries = _parse(fields)
            self.digest = xxhash.xxh3_128_hexdigest(packed)
            if expected_digest is not None and self.digest != expected_digest:
                raise HeaderError("not the file that was committed (digest differs from the segment's row)")
        except HeaderError as exc:
            self._file.close()
            raise CorruptKV(self.path, None, str(exc)) from exc
        except OSError as exc:
            self._file.close()
            raise StoreUnavailable(self.path, str(exc)) from exc
        self.num_bytes = int(fields["file_bytes"])

    def __enter__(self) -> DenseKVReader:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def close(self) -> None:
        self._file.close()

    def read_chunk(self, chunk: int) -> memoryview:
        """The bytes of one chunk, writable and owned by the caller. Raises ``CorruptKV`` naming file and chunk."""
        if not 0 <= chunk < len(self.entries):
            raise IndexError(f"chunk {chunk} of {len(self.entries)}")
        entry = self.entries[chunk]
        buffer = np.empty(aligned(entry.length), dtype=np.uint8).data
        num_read = 0
        try:
            while num_read < len(buffer):
                step = os.preadv(self._file.fileno(), [buffer[num_read:]], entry.offset + num_read)
                if step == 0:
                    raise CorruptKV(self.path, chunk, f"the file ends after {num_read} of {len(buffer)} bytes")
                num_read += step
        except OSError as exc:
            raise StoreUnavailable(self.path, str(exc)) from exc
        payload = buffer[: entry.length]
        if xxhash.xxh3_128_hexdigest(payload) != entry.digest:
            raise CorruptKV(self.path, chunk, "checksum differs")
        if any(buffer[entry.length :]):
            raise CorruptKV(self.path, chunk, "padding after the chunk is not zero")
        return payload

    def verify(self) -> None:
        """Read and check every chunk."""
        for chunk in range(len(self.entries)):
            self.read_chunk(chunk)


def _byte_view(payload: Buffer) -> memoryview:
    view = memoryview(payload)
    if not view.c_contiguous:
        raise ValueError("a chunk's bytes must be contiguous")
    return view.cast("B") if view.nbytes else memoryview(b"")


def _plan(sizes: list[int], header_bytes: int) -> list[ChunkEntry]:
    entries = []
    offset = header_bytes
    for size in sizes:
        entries.append(ChunkEntry(offset, size, _NO_DIGEST))
        offset += aligned(size)
    return entries


def _fields(header: DenseKVHeader, entries: Sequence[ChunkEntry]) -> dict[str, Any]:
    chunks = [
        {"tokens": header.num_tokens(position), "groups": header.chunk_groups[position], **entry._asdict()}
        for position, entry in enumerate(entries)
    ]
    fields = {
        "format": FORMAT_VERSION,
        "layout": LAYOUT,
        "rotation": ROTATION,
        "codec": CODEC,
        "dtype": header.dtype,
        "fingerprint": header.fingerprint,
        "video_id": header.video_id,
        "segment_index": header.segment_index,
        "layers": header.layers,
        "kv_heads": header.kv_heads,
        "head_dim": header.head_dim,
        "chunks": chunks,
        "file_bytes": 0,
    }
    if entries:
        fields["file_bytes"] = entries[-1].offset + aligned(entries[-1].length)
    else:
        fields["file_bytes"] = len(pack_header(MAGIC, {**fields, "file_bytes": 9999}))
    return fields


def _parse(fields: dict[str, Any]) -> tuple[DenseKVHeader, tuple[ChunkEntry, ...]]:
    known = {"format": FORMAT_VERSION, "layout": LAYOUT, "rotation": ROTATION, "codec": CODEC}
    for name, expected in known.items():
        if fields.get(name) != expected:
            raise HeaderError(f"{name} is {fields.get(name)!r}, this reader knows {expected!r}")
    header = DenseKVHeader(
        video_id=fields["video_id"],
        segment_index=fields["segment_index"],
        fingerprint=fields["fingerprint"],
        dtype=fields["dtype"],
        layers=fields["layers"],
        kv_heads=fields["kv_heads"],
        head_dim=fields["head_dim"],
        chunk_groups=tuple(tuple(tuple(group) for group in chunk["groups"]) for chunk in fields["chunks"]),
    )
    entries = tuple(ChunkEntry(chunk["offset"], chunk["length"], chunk["digest"]) for chunk in fields["chunks"])
    for position, entry in enumerate(entries):
        if entry.length != header.chunk_bytes(position):
            raise HeaderError(
                f"chunk {position} has {entry.length} bytes, its tokens make {header.chunk_bytes(position)}"
            )
    return header, entries
