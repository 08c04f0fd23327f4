"""Room on the disk of an archive: told from other failures, and asked for before tables are written to.

LanceDB has no error of its own for a full disk, and hides some behind other words, so the room that is left decides.
"""

from __future__ import annotations

import errno
import os
import shutil
from pathlib import Path

from indexers.errors import DiskFull, StoreUnavailable

COMMIT_BYTES = 1 << 20
"""Room that a commit takes beside its rows, and that deletions need on a disk that is otherwise full."""

_FULL = {errno.ENOSPC, errno.EDQUOT}
_FULL_TEXTS = tuple(os.strerror(code).lower() for code in sorted(_FULL))


def free_bytes(path: str | Path) -> int:
    """Bytes that may still be written where ``path`` is or will be."""
    path = Path(path)
    while not path.exists() and path != path.parent:
        path = path.parent
    return shutil.disk_usage(path).free


def require_room(folder: Path, needed: int) -> None:
    """Raise ``DiskFull`` unless ``needed`` bytes and a commit fit into ``folder``."""
    free = free_bytes(folder)
    if free < needed + COMMIT_BYTES:
        raise DiskFull(str(folder), needed + COMMIT_BYTES, free)


def is_full(error: BaseException) -> bool:
    """Whether an error says that a disk or a quota is full, by its number or, where a library has none, in words."""
    if isinstance(error, OSError) and error.errno in _FULL:
        return True
    text = str(error).lower()
    return any(words in text for words in _FULL_TEXTS)


def unavailable(path: str | Path, error: OSError, needed: int | None = None) -> StoreUnavailable:
    """The store's error for a write of ``needed`` bytes to ``path`` that failed."""
    if is_full(error):
        return DiskFull(str(path), needed, free_bytes(path))
    return StoreUnavailable(str(path), str(error))
