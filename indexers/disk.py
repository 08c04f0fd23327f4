"""Room on the disk of an archive: told from other failures, and asked for before tables are written to.

LanceDB has no error of its own for a full disk, and hides some behind other words, so the room that is left decides.
"""

from __future__ import annotations

import errno
import os

from indexers.errors import DiskFull, StoreUnavailable
from indexers.folder import Folder, Name

COMMIT_BYTES = 1 << 20
"""Room that a commit takes beside its rows, and that deletions need on a disk that is otherwise full."""

_FULL = {errno.ENOSPC, errno.EDQUOT}
_FULL_TEXTS = tuple(os.strerror(code).lower() for code in sorted(_FULL))


def require_room(folder: Folder, needed: int) -> None:
    """Raise ``DiskFull`` where it is known that ``needed`` bytes and a commit do not fit into ``folder``."""
    free = folder.free_bytes()
    if free is not None and free < needed + COMMIT_BYTES:
        raise DiskFull(folder.address(), needed + COMMIT_BYTES, free)


def is_full(error: BaseException) -> bool:
    """Whether an error says that a disk or a quota is full, by its number or, where a library has none, in words."""
    if isinstance(error, OSError) and error.errno in _FULL:
        return True
    text = str(error).lower()
    return any(words in text for words in _FULL_TEXTS)


def unavailable(folder: Folder, name: Name, error: OSError, needed: int | None = None) -> StoreUnavailable:
    """The store's error for a write of ``needed`` bytes to a file of ``folder`` that failed."""
    if is_full(error):
        return DiskFull(folder.address(name), needed, folder.free_bytes(name))
    return StoreUnavailable(folder.address(name), str(error))
