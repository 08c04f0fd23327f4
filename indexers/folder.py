"""Where an archive's files lie: the one seam between what an archive does and a local folder or a prefix on S3.

Names are relative to the archive, with ``/``. A file appears under its name whole or not at all, and is durable then.
A folder's methods raise ``OSError`` (``FileNotFoundError`` for what is not there), wherever the files lie; callers make
their own errors of it, ``reached`` where it says all there is to say. The folder on S3 is ``pipeline.s3_folder``.
"""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, Protocol, TypeAlias

from indexers.container import TEMP_SUFFIX, DurableFile, sync_folder
from indexers.errors import StoreUnavailable
from indexers.locks import FileLock, Lock
from indexers.room import LocalRoom, Room

Name: TypeAlias = str | os.PathLike[str]
Place: TypeAlias = "str | os.PathLike[str] | Folder"


@dataclass(frozen=True, slots=True)
class FoundFile:
    """A file in a listing: its name, bytes, and when it was written (seconds since 1970).

    ``upload`` is what S3 calls an upload that was never completed.
    """

    name: str
    num_bytes: int
    modified: float
    upload: str | None = None

    @property
    def is_unfinished(self) -> bool:
        """Whether this never became a file: what a killed writer leaves."""
        return self.upload is not None or self.name.endswith(TEMP_SUFFIX)


class ByteRange(Protocol):
    """A part of an open file that is about to be read, best from front to back."""

    def read_into(self, views: Sequence[memoryview], offset: int) -> int:
        """Fill ``views`` from ``offset`` of the file on; fewer bytes than asked for only where the file ends."""


class StoredFile(Protocol):
    """A file open for reading by range; threads may share it.

    Reading less than ``least_read_bytes`` at once takes about as long as reading that much.
    """

    num_bytes: int
    least_read_bytes: int

    def read(self, offset: int, length: int) -> bytes:
        """At most ``length`` bytes: fewer where the file ends."""

    def open_range(self, offset: int, length: int) -> AbstractContextManager[ByteRange]:
        """A part to be read: on S3 one request, unless that breaks off."""

    def announce(self, offset: int, length: int) -> None:
        """Say that a part is read soon; advice only."""

    def close(self) -> None:
        """No more reading."""


class NewFile(Protocol):
    """A file in the making. Leaving the ``with`` block without ``commit`` leaves nothing behind."""

    file: BinaryIO
    name: str
    """Its name in the folder; after ``commit`` the one that it has."""

    def __enter__(self) -> NewFile: ...

    def __exit__(self, *exc: object) -> None: ...

    def commit(self) -> None:
        """Make it durable and give it its name."""

    def discard(self) -> None:
        """Give it up; nothing after ``commit``."""


class Folder(Protocol):
    """Where the files of one archive lie."""

    def address(self, name: Name = "") -> str:
        """The folder's, or a file's, path or URI, for people."""

    def make(self) -> None:
        """Be ready to take files. Where nothing can be written, or not safely, this says so."""

    def entries(self, name: Name = "") -> Sequence[str]:
        """Names of the files and folders in a folder of the archive, or at its top; empty where there is none."""

    def open(self, name: Name) -> StoredFile:
        """Open a file for reading by range."""

    def read_bytes(self, name: Name) -> bytes:
        """A small file at once."""

    def local_copy(self, name: Name) -> AbstractContextManager[Path]:
        """A file as a local one, for as long as the context lasts (a mapping of it may live longer)."""

    def create(self, name: Name, *, write_once: bool = False) -> NewFile:
        """A new file; one of that name is replaced at its commit.

        With ``write_once`` a file on S3 is never replaced by other bytes: the new one's name then gets a digest of its
        content. A local one is replaced all the same, and whoever has the old one open keeps it.
        """

    @property
    def can_append(self) -> bool:
        """Whether files here can be added to at all."""

    def append(self, name: Name, payload: bytes) -> int | None:
        """Add to a file and return its bytes then; ``None`` where that cannot be done."""

    def list(self, prefix: Name) -> Iterator[FoundFile]:
        """Every file below a folder of the archive, unfinished ones included; links are not followed."""

    def size(self, name: Name) -> int | None:
        """Bytes of a file; ``None`` where there is none."""

    def set_modified(self, name: Name, modified: float) -> bool:
        """Say that a file is as old as another; ``False`` where a file keeps the time of its writing."""

    def remove(self, found: FoundFile | Name) -> None:
        """Remove a file; nothing if it is gone."""

    def remove_tree(self, name: Name) -> int:
        """Remove a folder with all its files; their bytes."""

    def remove_empty(self, name: Name) -> None:
        """Remove folders below ``name`` that hold nothing."""

    def free_bytes(self, name: Name = "") -> int | None:
        """Bytes that may still be written where a file or folder is or will be; ``None`` where that is not known."""

    def lock(self, name: Name) -> Lock:
        """The lock of that name."""

    def room(self, name: Name) -> Room:
        """Room under a byte cap, kept under that name."""

    def tables(self, name: Name) -> tuple[str, Mapping[str, str]]:
        """Address of the tables' folder as the database takes it, with its options; these may change with time."""


class _LocalRange:
    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor

    def read_into(self, views: Sequence[memoryview], offset: int) -> int:
        wanted, num_read = sum(len(view) for view in views), 0
        while num_read < wanted:
            step = os.preadv(self._descriptor, views, offset + num_read)
            if step == 0:
                break
            num_read += step
            views = _after(views, step)
        return num_read


class LocalFile:
    """A local file open for reading by range. Replaced or removed, it stays whole for who has it open."""

    least_read_bytes = 256 * 1024

    def __init__(self, path: Path) -> None:
        self._file: BinaryIO = path.open("rb", buffering=0)
        self._range = _LocalRange(self._file.fileno())
        self.num_bytes = os.fstat(self._file.fileno()).st_size

    def read(self, offset: int, length: int) -> bytes:
        return os.pread(self._file.fileno(), length, offset)

    def open_range(self, offset: int, length: int) -> AbstractContextManager[ByteRange]:
        return contextlib.nullcontext(self._range)

    def announce(self, offset: int, length: int) -> None:
        with contextlib.suppress(OSError, AttributeError):
            os.posix_fadvise(self._file.fileno(), offset, length, os.POSIX_FADV_WILLNEED)

    def close(self) -> None:
        self._file.close()


@dataclass(frozen=True, slots=True)
class LocalFolder:
    """A folder of this machine or of a network file system."""

    path: Path

    def address(self, name: Name = "") -> str:
        return str(self.path / name)

    def make(self) -> None:
        self.path.mkdir(parents=True, exist_ok=True)

    def entries(self, name: Name = "") -> Sequence[str]:
        folder = self.path / name
        return sorted(entry.name for entry in folder.iterdir()) if folder.is_dir() else []

    def open(self, name: Name) -> LocalFile:
        return LocalFile(self.path / name)

    def read_bytes(self, name: Name) -> bytes:
        return (self.path / name).read_bytes()

    def local_copy(self, name: Name) -> AbstractContextManager[Path]:
        return contextlib.nullcontext(self.path / name)

    def create(self, name: Name, *, write_once: bool = False) -> DurableFile:
        return DurableFile(self.path / name, os.fspath(name))

    @property
    def can_append(self) -> bool:
        return True

    def append(self, name: Name, payload: bytes) -> int | None:
        try:
            descriptor = os.open(self.path / name, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o644)
            try:
                os.write(descriptor, payload)
                return os.fstat(descriptor).st_size
            finally:
                os.close(descriptor)
        except OSError:
            return None

    def list(self, prefix: Name) -> Iterator[FoundFile]:
        for parent, _, names in os.walk(self.path / prefix, followlinks=False):
            for name in sorted(names):
                path = Path(parent) / name
                try:
                    stat = path.lstat()
                except FileNotFoundError:  # removed meanwhile
                    continue
                if path.is_file() and not path.is_symlink():
                    yield FoundFile(path.relative_to(self.path).as_posix(), stat.st_size, stat.st_mtime)

    def size(self, name: Name) -> int | None:
        path = self.path / name
        return path.stat().st_size if path.is_file() else None

    def set_modified(self, name: Name, modified: float) -> bool:
        os.utime(self.path / name, (modified, modified))
        return True

    def remove(self, found: FoundFile | Name) -> None:
        path = self.path / (found.name if isinstance(found, FoundFile) else found)
        path.unlink(missing_ok=True)
        with contextlib.suppress(FileNotFoundError):
            sync_folder(path.parent)

    def remove_tree(self, name: Name) -> int:
        path = self.path / name
        if path.is_symlink() or not path.is_dir():
            return 0
        num_bytes = sum(found.num_bytes for found in self.list(name))
        shutil.rmtree(path)
        return num_bytes

    def remove_empty(self, name: Name) -> None:
        top = self.path / name
        for parent, _, _ in os.walk(top, topdown=False, followlinks=False):
            path = Path(parent)
            if path != top and not any(path.iterdir()):
                path.rmdir()

    def free_bytes(self, name: Name = "") -> int | None:
        path = self.path / name
        while not path.exists() and path != path.parent:
            path = path.parent
        return shutil.disk_usage(path).free

    def lock(self, name: Name) -> FileLock:
        return FileLock(self.path / name)

    def room(self, name: Name) -> LocalRoom:
        return LocalRoom(self.path / name)

    def tables(self, name: Name) -> tuple[str, Mapping[str, str]]:
        return str(self.path / name), {}


@contextlib.contextmanager
def reached(folder: Folder) -> Iterator[None]:
    """What the archive's files raise as ``StoreUnavailable``."""
    try:
        yield
    except OSError as exc:
        raise StoreUnavailable(folder.address(), str(exc)) from exc


HERE = LocalFolder(Path())
"""Names that are paths."""


def as_folder(place: Place) -> Folder:
    """A path as a local folder; a folder as it is."""
    return LocalFolder(Path(place)) if isinstance(place, str | os.PathLike) else place


def _after(views: Sequence[memoryview], num_bytes: int) -> list[memoryview]:
    """What is left of ``views`` after their first ``num_bytes``."""
    left = []
    for view in views:
        if num_bytes < len(view):
            left.append(view[num_bytes:])
        num_bytes = max(0, num_bytes - len(view))
    return left
