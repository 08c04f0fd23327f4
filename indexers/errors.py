"""Errors of the store, each with the facts it was raised for.

    StoreError
    ├── StoreUnavailable*   the tables or files cannot be reached or opened
    │   └── DiskFull        there is no room for what was to be written; nothing of it was committed
    ├── CommitConflict*     another writer committed first; the same write may be tried again
    ├── SchemaMismatch      the tables on disk are not the ones this version reads and writes
    ├── RowConflict         a key is already taken by a row made under other settings
    ├── CorruptKV           stored KV bytes are not the bytes that were written
    │   └── MissingKV       the KV file that a row names is not there
    ├── CorruptStaging      a staged segment is not what a worker wrote
    ├── ArchiveLocked       another process holds the writer lease
    └── LeaseLost           this process held the writer lease and may do so no longer

``*`` may succeed when tried again (``retryable``). Every class survives pickling between processes.
"""

from __future__ import annotations

from typing import Any, ClassVar


class StoreError(Exception):
    """Base of everything that ``indexers`` raises on purpose; ``facts`` are the constructor's arguments."""

    retryable: ClassVar[bool] = False

    def __init__(self, message: str, *facts: Any) -> None:
        super().__init__(message)
        self.message = message
        self.facts: tuple[Any, ...] = facts or (message,)

    def __str__(self) -> str:
        return self.message

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), self.facts


class StoreUnavailable(StoreError):
    """The store at ``where`` cannot be reached or opened."""

    retryable = True

    def __init__(self, where: str, cause: str) -> None:
        super().__init__(f"store {where!r} is not available: {cause}", where, cause)
        self.where = where
        self.cause = cause


class DiskFull(StoreUnavailable):
    """No room for ``needed`` bytes (``None``: not known) at ``where``; ``free`` are left. Nothing was committed.

    ``free`` is ``None`` for an archive on S3: what has no room then is the temporary folder that uploads come from.
    """

    retryable = False

    def __init__(self, where: str, needed: int | None, free: int | None) -> None:
        disk = "the disk" if free is not None else "the temporary folder (TMPDIR)"
        figures = [] if needed is None else [f"{needed / 1e6:.2f} MB are needed"]
        figures += [] if free is None else [f"{free / 1e6:.2f} MB are free"]
        super().__init__(where, f"{disk} is full" + (": " + " and ".join(figures) if figures else ""))
        self.facts = (where, needed, free)
        self.needed = needed
        self.free = free


class CommitConflict(StoreError):
    """Another writer committed to ``table`` at the same time; nothing of this write was applied."""

    retryable = True

    def __init__(self, table: str, cause: str) -> None:
        super().__init__(f"table {table!r}: concurrent commit: {cause}", table, cause)
        self.table = table
        self.cause = cause


class SchemaMismatch(StoreError):
    """``table`` on disk has other columns than this version uses, or rows do not fit it."""

    def __init__(self, table: str, cause: str) -> None:
        super().__init__(f"table {table!r}: {cause}", table, cause)
        self.table = table
        self.cause = cause


class RowConflict(StoreError):
    """``key`` exists in ``table`` and was made under other settings; delete the video before indexing it anew."""

    def __init__(self, table: str, key: str, cause: str) -> None:
        super().__init__(f"table {table!r}, row {key!r}: {cause}", table, key, cause)
        self.table = table
        self.key = key
        self.cause = cause


class CorruptKV(StoreError):
    """KV bytes at ``path`` fail their check. ``chunk`` is the chunk's index or id; ``None`` means the header."""

    def __init__(self, path: str, chunk: int | str | None, cause: str) -> None:
        part = "header" if chunk is None else f"chunk {chunk}"
        super().__init__(f"{path!r}, {part}: {cause}", path, chunk, cause)
        self.path = path
        self.chunk = chunk
        self.cause = cause


class MissingKV(CorruptKV):
    """The KV file at ``path`` is not there."""

    def __init__(self, path: str) -> None:
        super().__init__(path, None, "the file is not there")
        self.facts = (path,)


class CorruptStaging(StoreError):
    """The staged segment at ``path`` cannot be read back; the segment has to be made again."""

    def __init__(self, path: str, cause: str) -> None:
        super().__init__(f"staged segment {path!r}: {cause}", path, cause)
        self.path = path
        self.cause = cause


class ArchiveLocked(StoreError):
    """Another process writes to the archive in ``folder``; ``holder`` describes it."""

    def __init__(self, folder: str, holder: str) -> None:
        super().__init__(f"archive {folder!r} is being written by {holder}", folder, holder)
        self.folder = folder
        self.holder = holder


class LeaseLost(StoreError):
    """This process may not write to the archive in ``folder`` any more: another one may do so by now."""

    def __init__(self, folder: str, cause: str) -> None:
        super().__init__(
            f"the writer lease of archive {folder!r} was lost: {cause}; nothing more is written, run the command again",
            folder,
            cause,
        )
        self.folder = folder
        self.cause = cause
