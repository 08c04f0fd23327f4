"""A file with a checked header and aligned parts, written so that it is either whole or not there.

Shared by KV files and staged segments; knows neither. The first bytes are

    0   8 bytes   magic
    8   u32 LE    container version (1)
    12  u32 LE    length J of the JSON text
    16  16 bytes  xxh3_128 (canonical, big-endian digest) of bytes 0-15 followed by the JSON text
    32  J bytes   JSON text, UTF-8
    ..  zeros up to a multiple of 4096

The JSON object holds ``file_bytes``, the length of the whole file, so that a file cut short is found on opening.
"""

from __future__ import annotations

import json
import os
import secrets
import struct
from pathlib import Path
from typing import Any, BinaryIO, Protocol

import xxhash

ALIGNMENT = 4096
VERSION = 1
MAX_HEADER_BYTES = 64 * 1024 * 1024
TEMP_SUFFIX = ".tmp"
_PREFIX = struct.Struct("<8sII16s")


class HeaderError(Exception):
    """A header that cannot be trusted; the owner of the format turns it into its own error."""


class Readable(Protocol):
    """An open file that is read by position."""

    num_bytes: int

    def read(self, offset: int, length: int) -> bytes: ...


def aligned(size: int) -> int:
    """The least multiple of the alignment that is not below ``size``."""
    return -(-size // ALIGNMENT) * ALIGNMENT


def pack_header(magic: bytes, fields: dict[str, Any]) -> bytes:
    """Header of a file: prefix, digest, JSON and padding. Equal lengths of all values give equal lengths of headers."""
    text = json.dumps(fields, separators=(",", ":"), sort_keys=True).encode()
    if len(text) > MAX_HEADER_BYTES:
        raise ValueError(f"a header of {len(text)} bytes is too long")
    unsigned = _PREFIX.pack(magic, VERSION, len(text), bytes(16))[:16]
    header = unsigned + xxhash.xxh3_128_digest(unsigned + text) + text
    return header + bytes(aligned(len(header)) - len(header))


def read_header(source: Readable, magic: bytes) -> tuple[dict[str, Any], bytes]:
    """The fields and the exact bytes of a header. Raises ``HeaderError``; checks the length of the file as well."""
    prefix = source.read(0, _PREFIX.size)
    if len(prefix) < _PREFIX.size:
        raise HeaderError("the file is shorter than a header")
    found_magic, version, length, digest = _PREFIX.unpack(prefix)
    if found_magic != magic:
        raise HeaderError("not a file of this kind (magic bytes differ)")
    if version != VERSION:
        raise HeaderError(f"container version {version}, this reader knows {VERSION}")
    if length > MAX_HEADER_BYTES:
        raise HeaderError(f"impossible header length {length}")
    rest = source.read(_PREFIX.size, aligned(_PREFIX.size + length) - _PREFIX.size)
    text = rest[:length]
    if xxhash.xxh3_128_digest(prefix[:16] + text) != digest:
        raise HeaderError("checksum differs")
    if len(rest) != aligned(_PREFIX.size + length) - _PREFIX.size or any(rest[length:]):
        raise HeaderError("padding after the header is cut or not zero")
    try:
        fields = json.loads(text)
        file_bytes = fields["file_bytes"]
    except (ValueError, KeyError, TypeError) as exc:
        raise HeaderError(f"not a JSON object with file_bytes: {exc}") from exc
    if source.num_bytes != file_bytes:
        raise HeaderError(f"the file has {source.num_bytes} bytes, its header says {file_bytes}")
    return fields, prefix + rest


class DurableFile:
    """A new file under a temporary name in the target's folder; ``commit`` makes it durable, then visible.

    Leaving the ``with`` block without ``commit`` removes it. A process that dies leaves a ``*.tmp`` for the sweep.
    """

    def __init__(self, path: Path, name: str | None = None) -> None:
        self.path = path
        self.name = str(path) if name is None else name
        path.parent.mkdir(parents=True, exist_ok=True)
        self._temp = path.parent / f".{path.name}.{secrets.token_hex(8)}{TEMP_SUFFIX}"
        self.file: BinaryIO = self._temp.open("xb")

    def __enter__(self) -> DurableFile:
        return self

    def __exit__(self, *exc: object) -> None:
        self.discard()

    def commit(self) -> None:
        """Flush to the disk, take the final name (replacing an older file), flush the folder."""
        self.file.flush()
        os.fsync(self.file.fileno())
        self.file.close()
        self._temp.replace(self.path)
        sync_folder(self.path.parent)

    def discard(self) -> None:
        """Remove the temporary file; nothing after ``commit``."""
        try:
            self.file.close()  # writes what is buffered, which a full disk refuses again
        finally:
            self._temp.unlink(missing_ok=True)


def sync_folder(folder: Path) -> None:
    """Make additions to and removals from a folder durable."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
