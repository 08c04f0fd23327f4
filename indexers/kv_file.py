"""Dense KV of one segment in one file: format 3 (1 and 2 are read too), writer and reader. docs/storage.md has it all.

Writer and reader know chunks of bytes, each in one or more sections of equal length with a checksum of their own; what
a section holds is its header's business, so that files of other things per chunk (``token_file``) are written, checked
and read by the same code.

Keys are stored before rotation. A chunk stands for values ``[layer][K|V][kv_head][token][head_dim]``; its bytes, as the
header's ``KVEncoding`` says, are whole and contiguous and start at a multiple of 4096, so that one range read loads one
chunk. Its sections are its layers: those that are used first can be read, checked and used first. Bytes come in as any
buffer and go out into any; encoding and decoding them is the model's business.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, ClassVar, Generic, NamedTuple, Protocol, Self, TypeVar, overload

import numpy as np
import xxhash

from indexers.container import HeaderError, aligned, pack_header, read_header
from indexers.disk import unavailable
from indexers.errors import CorruptKV, MissingKV, StoreUnavailable
from indexers.folder import HERE, ByteRange, Folder, Name

if TYPE_CHECKING:
    from typing_extensions import Buffer

MAGIC = b"VXLKVF\r\n"
FORMAT_VERSION = 3
READABLE_FORMATS = (1, 2, 3)
"""Format 1 has no ``codec_parameters`` and knows ``exact`` only."""
_LAYERED_SINCE = 3
"""Before, a chunk is one section, encoded as a whole."""
LAYOUT = "[chunk][layer][K|V][kv_head][token][head_dim]"
ROTATION = "unrotated"
EXACT = "exact"
CODE_BITS = {"int8": 8, "int4": 4}
"""Bits of one code, by codec; ``exact`` has no codes."""
CODECS = (EXACT, *CODE_BITS)
AXES = ("channel", "token")
ITEM_BYTES = {"float64": 8, "float32": 4, "float16": 2, "bfloat16": 2, "int8": 1, "uint8": 1}
PIECE_BYTES = 512 * 1024
"""A chunk is read and hashed in pieces of this many bytes, so that the hash finds them in the processor's cache."""
_MAX_PARTS = 256
_PARAMETER_BYTES = 4
"""Offset and step of a group, float16 each."""
_DIGEST_DIGITS = 32


class StepGroup(NamedTuple):
    """Values that share an offset and a step: ``size`` of them along ``channel`` or ``token``."""

    axis: str
    size: int


@dataclass(frozen=True, slots=True)
class KVEncoding:
    """How a chunk's values became bytes: the codec, and for int8 and int4 the groups of keys and of values.

    ``ValueError`` for an unknown codec or axis, for a codec without its groups and for ``exact`` with some.
    """

    codec: str = EXACT
    keys: StepGroup | None = None
    values: StepGroup | None = None

    def __post_init__(self) -> None:
        if self.codec not in CODECS:
            raise ValueError(f"unknown KV codec {self.codec!r}; known: {', '.join(CODECS)}")
        groups = (self.keys, self.values)
        if (self.codec == EXACT) != (groups == (None, None)):
            raise ValueError(f"codec {self.codec!r} with groups {groups}: int8 and int4 need both, exact has none")
        for group in groups:
            if group is not None and (group.axis not in AXES or group.size < 1):
                raise ValueError(f"a group is along channel or token, of at least 1 value, not {group}")

    @property
    def parameters(self) -> dict[str, dict[str, Any]]:
        """What the header says beside the codec's name; empty for ``exact``."""
        named = {"keys": self.keys, "values": self.values}
        return {name: group._asdict() for name, group in named.items() if group is not None}

    @classmethod
    def from_fields(cls, fields: dict[str, Any]) -> KVEncoding:
        """The encoding that a header names. Raises ``ValueError`` or ``KeyError`` where it makes no sense."""
        parameters = {} if fields["format"] == 1 else fields["codec_parameters"]
        groups = {name: StepGroup(group["axis"], int(group["size"])) for name, group in parameters.items()}
        if unknown := groups.keys() - {"keys", "values"}:
            raise ValueError(f"codec_parameters has unknown members: {', '.join(sorted(unknown))}")
        return cls(fields["codec"], groups.get("keys"), groups.get("values"))

    def num_bytes(self, shape: Sequence[int], item_bytes: int) -> int:
        """Length of encoded values of ``shape`` [layers, 2, kv_heads, tokens, head_dim]: of one section."""
        layers, _, heads, tokens, width = shape
        rows = layers * heads
        if self.keys is None or self.values is None:
            return rows * 2 * tokens * width * item_bytes
        codes = -(-rows * tokens * width * CODE_BITS[self.codec] // 8)
        total = 0
        for group in (self.keys, self.values):
            is_channel = group.axis == "channel"
            across = width if is_channel else tokens
            num_groups = rows * across * -(-(tokens if is_channel else width) // group.size)
            total += codes + num_groups * _PARAMETER_BYTES
        return total


AS_COMPUTED = KVEncoding()


class ChunkHeader(Protocol):
    """What a file of chunks says about itself before any payload, and what writer and reader need of it."""

    @property
    def magic(self) -> bytes:
        """The first bytes of the file."""

    @property
    def num_chunks(self) -> int: ...

    @property
    def num_sections(self) -> int:
        """Stretches of equal length that a chunk is checked in."""

    def chunk_bytes(self, chunk: int) -> int:
        """Length of a chunk in the file, a multiple of ``num_sections``."""

    def to_fields(self) -> dict[str, Any]:
        """Members of the header besides ``chunks`` and ``file_bytes``."""

    def chunk_fields(self, chunk: int) -> dict[str, Any]:
        """What ``chunks`` says of one chunk besides its place and digest."""

    @classmethod
    def from_fields(cls, fields: dict[str, Any]) -> Self:
        """The header that a file has. Raises ``HeaderError`` for one that this reader does not know."""


@dataclass(frozen=True, slots=True, kw_only=True)
class DenseKVHeader:
    """What a KV file says about itself before any payload.

    ``chunk_groups`` gives for each chunk the ``(timestamp tokens, visual tokens)`` of each of its frame groups;
    ``dtype`` is that of the values, whatever the encoding; ``format`` is older for a file of an earlier version.
    """

    video_id: str
    segment_index: int
    fingerprint: str
    dtype: str
    layers: int
    kv_heads: int
    head_dim: int
    chunk_groups: tuple[tuple[tuple[int, int], ...], ...]
    encoding: KVEncoding = field(default=AS_COMPUTED)
    format: int = FORMAT_VERSION

    def __post_init__(self) -> None:
        if self.dtype not in ITEM_BYTES:
            raise ValueError(f"unknown KV dtype {self.dtype!r}; known: {', '.join(ITEM_BYTES)}")
        for size in (self.layers, self.kv_heads, self.head_dim):
            if not isinstance(size, int) or size < 1:
                raise ValueError(f"layers, kv_heads and head_dim are whole numbers of at least 1, not {size!r:.40}")
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

    @property
    def num_sections(self) -> int:
        """The layers of a chunk, or 1: a file of an older format has one checksum per chunk."""
        return self.layers if self.format >= _LAYERED_SINCE else 1

    def section_shape(self, chunk: int) -> tuple[int, int, int, int, int]:
        """``[layers, 2, kv_heads, tokens, head_dim]`` of what one section stands for."""
        layers, *rest = self.chunk_shape(chunk)
        return (layers // self.num_sections, *rest)  # type: ignore[return-value]

    def chunk_bytes(self, chunk: int) -> int:
        """Length of a chunk in the file."""
        return self.num_sections * self.encoding.num_bytes(self.section_shape(chunk), ITEM_BYTES[self.dtype])

    @property
    def magic(self) -> bytes:
        """The first bytes of the file."""
        return MAGIC

    def to_fields(self) -> dict[str, Any]:
        """Members of the header besides ``chunks`` and ``file_bytes``."""
        return {
            "format": self.format,
            "layout": LAYOUT,
            "rotation": ROTATION,
            "codec": self.encoding.codec,
            "codec_parameters": self.encoding.parameters,
            "dtype": self.dtype,
            "fingerprint": self.fingerprint,
            "video_id": self.video_id,
            "segment_index": self.segment_index,
            "layers": self.layers,
            "kv_heads": self.kv_heads,
            "head_dim": self.head_dim,
        }

    def chunk_fields(self, chunk: int) -> dict[str, Any]:
        """What ``chunks`` says of one chunk besides its place and digest."""
        return {"tokens": self.num_tokens(chunk), "groups": self.chunk_groups[chunk]}

    @classmethod
    def from_fields(cls, fields: dict[str, Any]) -> DenseKVHeader:
        """The header that a file has. Raises ``HeaderError`` for one that this reader does not know."""
        require_known(
            fields, {"format": READABLE_FORMATS, "layout": (LAYOUT,), "rotation": (ROTATION,), "codec": CODECS}
        )
        try:
            encoding = KVEncoding.from_fields(fields)
        except (ValueError, TypeError, KeyError) as exc:
            raise HeaderError(f"codec_parameters do not make sense: {exc}") from exc
        return cls(
            video_id=fields["video_id"],
            segment_index=fields["segment_index"],
            fingerprint=fields["fingerprint"],
            dtype=fields["dtype"],
            layers=fields["layers"],
            kv_heads=fields["kv_heads"],
            head_dim=fields["head_dim"],
            chunk_groups=tuple(tuple(tuple(group) for group in chunk["groups"]) for chunk in fields["chunks"]),
            encoding=encoding,
            format=fields["format"],
        )


def require_known(fields: dict[str, Any], known: dict[str, Sequence[Any]]) -> None:
    """Raise ``HeaderError`` naming the first member whose value is none of those that a reader knows."""
    for name, expected in known.items():
        if fields.get(name) not in expected:
            raise HeaderError(f"{name} is {fields.get(name)!r}, this reader knows {', '.join(map(repr, expected))}")


class ChunkEntry(NamedTuple):
    """Where a chunk lies in its file, in bytes, and xxh3_128 of each of its sections, 32 hex digits each."""

    offset: int
    length: int
    digest: str

    @property
    def num_sections(self) -> int:
        return len(self.digest) // _DIGEST_DIGITS

    @property
    def section_bytes(self) -> int:
        return self.length // self.num_sections

    def section_digest(self, section: int) -> str:
        return self.digest[section * _DIGEST_DIGITS : (section + 1) * _DIGEST_DIGITS]


class WrittenKV(Sequence[ChunkEntry]):
    """The chunks of a file, with its name, its size in bytes and the digest that ``segments.kv_digest`` records.

    The digest is that of the header, which holds the digests of all chunks.
    """

    def __init__(self, entries: Iterable[ChunkEntry], name: str, num_bytes: int, digest: str) -> None:
        self._entries = tuple(entries)
        self.name = name
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
    ``commit`` removes the unfinished file. Without a ``folder``, ``path`` is a local path.
    """

    def __init__(self, path: Name, header: ChunkHeader, folder: Folder = HERE) -> None:
        self.header = header
        self._entries: list[ChunkEntry] = []
        self._planned, header_bytes, self._file_bytes = _plan_file(header)
        self._durable = folder.create(path, write_once=True)
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
        size = self._planned[position].section_bytes
        sections = (view[section * size :][:size] for section in range(self.header.num_sections))
        digest = "".join(map(xxhash.xxh3_128_hexdigest, sections))
        entry = ChunkEntry(self._planned[position].offset, expected, digest)
        self._durable.file.write(view)
        self._durable.file.write(bytes(aligned(expected) - expected))
        self._entries.append(entry)
        return entry

    def commit(self) -> WrittenKV:
        """Write the header, make the file durable and give it its name. ``ValueError`` if chunks are missing."""
        if len(self._entries) != self.header.num_chunks:
            raise ValueError(f"{len(self._entries)} of {self.header.num_chunks} chunks were written")
        packed = pack_header(self.header.magic, _fields(self.header, self._entries))
        self._durable.file.seek(0)
        self._durable.file.write(packed)
        self._durable.commit()
        return WrittenKV(self._entries, self._durable.name, self._file_bytes, xxhash.xxh3_128_hexdigest(packed))


def write_dense_kv(path: Name, header: ChunkHeader, chunks: Iterable[Buffer], folder: Folder = HERE) -> WrittenKV:
    """Write one segment's chunks durably. A local file of the same name is replaced at once or not at all; on S3
    nothing is replaced, and ``WrittenKV.name`` may be another than ``path``.

    ``OSError`` becomes ``StoreUnavailable``, for a full disk ``DiskFull``, and leaves nothing behind.
    """
    try:
        with DenseKVWriter(path, header, folder) as writer:
            for payload in chunks:
                writer.write_chunk(payload)
            return writer.commit()
    except OSError as exc:
        needed = sum(aligned(header.chunk_bytes(chunk)) for chunk in range(header.num_chunks))
        raise unavailable(folder, path, exc, needed) from exc


def rewrite_dense_kv(
    source: DenseKVReader,
    path: Name,
    encoding: KVEncoding,
    convert: Callable[[int, memoryview], Buffer],
    folder: Folder = HERE,
) -> WrittenKV:
    """Write a stored file anew under another encoding, chunk by chunk; ``source`` stays as it is.

    ``convert`` is given a chunk's index and its checked bytes and returns the bytes of the same values under
    ``encoding``, in the present format. The new file is durable when this returns and nobody reads it before a row
    names it: commit the row, then remove the old file. ``ValueError`` if ``path`` is the source's own, since a reader
    that holds the old row would find a stranger there. Raises what reading and writing raise, and then leaves nothing
    behind.
    """
    if os.path.abspath(folder.address(path)) == os.path.abspath(source.path):  # noqa: PTH100
        raise ValueError(f"{str(path)!r} is the file that is read; a re-encoded file needs a path of its own")
    header = replace(source.header, encoding=encoding, format=FORMAT_VERSION)
    return write_dense_kv(path, header, (convert(i, source.read_chunk(i)) for i in range(header.num_chunks)), folder)


HeaderT = TypeVar("HeaderT", bound=ChunkHeader)


class ChunkReader(Generic[HeaderT]):
    """Reads chunks of one file, each checked against its digest on every read. Use as a context manager.

    Opening reads and checks the header only; reading chunk ``i`` touches that chunk's bytes only. Pass
    ``expected_digest`` (``segments.kv_digest``) to refuse a file that is whole but not the one committed. Threads may
    share a reader. A local file that is replaced or removed stays readable for those who have it open, old and whole;
    one on S3 is refused from then on. Without a ``folder``, ``path`` is a local path.
    Raises ``MissingKV``, ``CorruptKV``, ``StoreUnavailable``.
    """

    magic: ClassVar[bytes]
    header_type: ClassVar[type[ChunkHeader]]
    header: HeaderT

    def __init__(self, path: Name, expected_digest: str | None = None, folder: Folder = HERE) -> None:
        self.path = folder.address(path)
        try:
            self._file = folder.open(path)
        except FileNotFoundError as exc:
            raise MissingKV(self.path) from exc
        except OSError as exc:
            raise StoreUnavailable(self.path, str(exc)) from exc
        try:
            fields, packed = read_header(self._file, self.magic)
            self.header, self.entries = self._understood(fields, len(packed))
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
        self.least_read_bytes = self._file.least_read_bytes

    @classmethod
    def _understood(cls, fields: dict[str, Any], header_bytes: int) -> tuple[HeaderT, tuple[ChunkEntry, ...]]:
        """The header and the chunks' places. ``HeaderError`` for one that is signed and still makes no sense."""
        try:
            header: Any = cls.header_type.from_fields(fields)
            return header, _entries(header, fields, header_bytes)
        except (KeyError, TypeError, ValueError, AttributeError) as exc:
            raise HeaderError(f"its members do not make sense: {type(exc).__name__} {exc}") from exc

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def close(self) -> None:
        self._file.close()

    def read_chunk(self, chunk: int) -> memoryview:
        """The bytes of one chunk, writable and owned by the caller. Raises ``CorruptKV`` naming file and chunk."""
        buffer = np.empty(self._entry(chunk).length, dtype=np.uint8).data
        self.read_chunk_into(chunk, [buffer])
        return buffer

    def open_run(self, chunks: Sequence[int], sections: range | None = None) -> AbstractContextManager[ByteRange]:
        """Chunks that follow each other in the file, to be read in order by ``read_chunk_into``: on S3 in one request.

        With ``sections`` only those of the first to those of the last chunk. Nothing is read yet.
        """
        first, last = self._entry(chunks[0]), self._entry(chunks[-1])
        sections = range(last.num_sections) if sections is None else sections
        start, end = first.offset + sections.start * first.section_bytes, self._end_of(last, sections)
        return self._file.open_range(start, end - start)

    def read_chunk_into(
        self,
        chunk: int,
        parts: Sequence[memoryview],
        run: ByteRange | None = None,
        sections: range | None = None,
    ) -> None:
        """Read one chunk into ``parts``, writable views of bytes that follow each other and together have its length.

        So a chunk can land where it is used, however that lies in memory. ``run``: an open one that it belongs to.
        ``sections``: only these, whose length the parts then have; each is checked on its own. Raises ``CorruptKV``
        naming file and chunk; what the parts hold is then of no use.
        """
        entry = self._entry(chunk)
        sections = range(entry.num_sections) if sections is None else sections
        if run is None:
            with self.open_run([chunk], sections) as run:
                return self.read_chunk_into(chunk, parts, run, sections)
        size = entry.section_bytes
        if sum(len(part) for part in parts) != len(sections) * size:
            raise ValueError(f"{sections} of chunk {chunk} have {size} bytes each, not {sum(map(len, parts))} in all")
        padding = memoryview(bytearray(aligned(entry.length) - entry.length))
        hasher = xxhash.xxh3_128()
        position, end = sections.start * size, sections.stop * size
        for section, views in zip(sections, _cut(parts, size, len(sections)), strict=True):
            for batch in _batches(views):
                num_bytes = sum(len(view) for view in batch)
                is_end = position + num_bytes == end == entry.length
                self._read_fully(run, chunk, [*batch, padding] if is_end and len(padding) else batch, position)
                for view in batch:
                    hasher.update(view)
                position += num_bytes
            if hasher.hexdigest() != entry.section_digest(section):
                raise CorruptKV(self.path, chunk, "checksum differs")
            hasher.reset()
        if any(padding):
            raise CorruptKV(self.path, chunk, "padding after the chunk is not zero")

    def announce(self, chunks: Iterable[int], sections: range | None = None) -> None:
        """Tell the system that these chunks are read soon, so that it fetches them ahead; no more than advice."""
        for entry in map(self._entry, chunks):
            these = range(entry.num_sections) if sections is None else sections
            start = entry.offset + these.start * entry.section_bytes
            self._file.announce(start, self._end_of(entry, these) - start)

    @staticmethod
    def _end_of(entry: ChunkEntry, sections: range) -> int:
        """Where the sections end in the file; after the last one comes the padding."""
        is_last = sections.stop == entry.num_sections
        return entry.offset + (aligned(entry.length) if is_last else sections.stop * entry.section_bytes)

    def _entry(self, chunk: int) -> ChunkEntry:
        if not 0 <= chunk < len(self.entries):
            raise IndexError(f"chunk {chunk} of {len(self.entries)}")
        return self.entries[chunk]

    def _read_fully(self, run: ByteRange, chunk: int, views: Sequence[memoryview], position: int) -> None:
        """Fill ``views`` from ``position`` of the chunk on."""
        entry = self.entries[chunk]
        wanted = sum(len(view) for view in views)
        try:
            num_read = run.read_into(views, entry.offset + position)
        except FileNotFoundError as exc:
            raise MissingKV(self.path) from exc
        except OSError as exc:
            raise StoreUnavailable(self.path, str(exc)) from exc
        if num_read < wanted:
            found = position + num_read
            raise CorruptKV(self.path, chunk, f"the file ends after {found} of {aligned(entry.length)} bytes")

    def verify(self) -> None:
        """Read and check every chunk."""
        for chunk in range(len(self.entries)):
            self.read_chunk(chunk)


class DenseKVReader(ChunkReader[DenseKVHeader]):
    """Reads chunks of a KV file; see ``ChunkReader``."""

    magic = MAGIC
    header_type = DenseKVHeader


def _byte_view(payload: Buffer) -> memoryview:
    view = memoryview(payload)
    if not view.c_contiguous:
        raise ValueError("a chunk's bytes must be contiguous")
    return view.cast("B") if view.nbytes else memoryview(b"")


def _cut(parts: Sequence[memoryview], size: int, count: int) -> Iterator[list[memoryview]]:
    """The parts in order, cut into ``count`` runs of ``size`` bytes."""
    left = list(parts)[::-1]
    for _ in range(count):
        run: list[memoryview] = []
        room = size
        while room:
            view = left.pop()
            run.append(view[:room])
            if len(view) > room:
                left.append(view[room:])
            room -= len(run[-1])
        yield run


def _batches(parts: Sequence[memoryview]) -> Iterator[list[memoryview]]:
    """The parts in order, cut and gathered into batches of at most ``PIECE_BYTES``; the last may be empty."""
    batch: list[memoryview] = []
    room = PIECE_BYTES
    for part in parts:
        for first in range(0, len(part), PIECE_BYTES):
            view = part[first : first + PIECE_BYTES]
            if batch and (len(view) > room or len(batch) == _MAX_PARTS):
                yield batch
                batch, room = [], PIECE_BYTES
            batch.append(view)
            room -= len(view)
    yield batch


def file_bytes(header: ChunkHeader) -> int:
    """Length of the file that has this header, in bytes."""
    return _plan_file(header)[2]


def _plan_file(header: ChunkHeader) -> tuple[list[ChunkEntry], int, int]:
    """The chunks without their digests, the header's length and the file's."""
    sizes = [header.chunk_bytes(chunk) for chunk in range(header.num_chunks)]
    no_digest = "0" * _DIGEST_DIGITS * header.num_sections
    # Offsets depend on the header's length and that on the digits of the offsets: settle from below.
    header_bytes = 0
    while True:
        planned = _plan(sizes, header_bytes, no_digest)
        needed = len(pack_header(header.magic, _fields(header, planned)))
        if needed <= header_bytes:
            break
        header_bytes = needed
    return planned, header_bytes, planned[-1].offset + aligned(planned[-1].length) if planned else header_bytes


def _plan(sizes: list[int], header_bytes: int, digest: str) -> list[ChunkEntry]:
    entries = []
    offset = header_bytes
    for size in sizes:
        entries.append(ChunkEntry(offset, size, digest))
        offset += aligned(size)
    return entries


def _fields(header: ChunkHeader, entries: Sequence[ChunkEntry]) -> dict[str, Any]:
    chunks = [{**header.chunk_fields(position), **entry._asdict()} for position, entry in enumerate(entries)]
    fields = {**header.to_fields(), "chunks": chunks, "file_bytes": 0}
    if entries:
        fields["file_bytes"] = entries[-1].offset + aligned(entries[-1].length)
    else:
        fields["file_bytes"] = len(pack_header(header.magic, {**fields, "file_bytes": 9999}))
    return fields


def _entries(header: ChunkHeader, fields: dict[str, Any], header_bytes: int) -> tuple[ChunkEntry, ...]:
    """Where the chunks lie; ``HeaderError`` where a length is not the one that the header's own figures make, and
    where they do not follow each other without gaps or lack checksums."""
    entries = tuple(ChunkEntry(chunk["offset"], chunk["length"], chunk["digest"]) for chunk in fields["chunks"])
    for position, entry in enumerate(entries):
        if entry.length != header.chunk_bytes(position):
            raise HeaderError(
                f"chunk {position} has {entry.length} bytes, its tokens make {header.chunk_bytes(position)}"
            )
        if len(entry.digest) != _DIGEST_DIGITS * header.num_sections:
            raise HeaderError(f"chunk {position} has another number of checksums than {header.num_sections}")
    planned = _plan([entry.length for entry in entries], header_bytes, "")
    for position, (entry, place) in enumerate(zip(entries, planned, strict=True)):
        if entry.offset != place.offset:
            raise HeaderError(f"chunk {position} is said to begin at {entry.offset}, it begins at {place.offset}")
    return entries
