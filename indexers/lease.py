"""The writer lease of an archive: at most one process writes, and the lease is free again when that process dies.

On a local folder it is the system's lock on ``<archive>/writer.lock``, which is freed at once; the archive must lie on
a file system of which every writing machine sees the same locks. On S3 it is an object that its holder renews; one that
is not renewed may be taken over after a while (``docs/storage.md``). Works between processes and between threads of one
process. Readers take no lease.
"""

from __future__ import annotations

import json
import os
import socket
import sys
import time
from datetime import UTC, datetime
from pathlib import Path

from indexers.errors import ArchiveLocked, LeaseLost, StoreUnavailable
from indexers.folder import Place, as_folder
from indexers.locks import Lock

LOCK_NAME = "writer.lock"
_PROBE_S = 0.2
"""A moment's patience: whoever asks ``is_lease_held`` holds a shared lock for that long at most."""


class WriterLease:
    """The right to write to one archive. Use as a context manager, or ``acquire`` and ``release``.

    Raises ``ArchiveLocked`` naming the holder when another one has it after ``wait_s`` seconds.
    """

    def __init__(self, folder: Place, wait_s: float = 0.0) -> None:
        self.folder = as_folder(folder)
        self._wait_s = wait_s
        self._lock: Lock | None = None

    @property
    def is_held(self) -> bool:
        return self._lock is not None

    def __enter__(self) -> WriterLease:
        if not self.is_held:
            self.acquire(self._wait_s)
        return self

    def __exit__(self, *exc: object) -> None:
        self.release()

    def acquire(self, wait_s: float = 0.0) -> WriterLease:
        """Take the lease, waiting up to ``wait_s`` seconds for a holder to end; returns itself."""
        if self.is_held:
            raise ValueError("this lease is held already")
        lock = self.folder.lock(LOCK_NAME)
        deadline = time.monotonic() + max(wait_s, _PROBE_S)
        try:
            while not lock.try_take(json.dumps(_describe_self()).encode()):
                if time.monotonic() >= deadline:
                    raise ArchiveLocked(self.folder.address(), lease_holder(self.folder) or "another process")
                time.sleep(min(lock.poll_s, max(0.0, deadline - time.monotonic())))
        except OSError as exc:
            raise StoreUnavailable(self.folder.address(), str(exc)) from exc
        self._lock = lock
        return self

    def release(self) -> None:
        """Give the lease back; nothing if it is not held."""
        if self._lock is None:
            return
        lock, self._lock = self._lock, None
        lock.release()

    def require(self) -> None:
        """Raise ``LeaseLost`` when another process may have taken the lease over, ``ValueError`` when it is not held.

        Goes before every write: whoever was asleep for too long must not go on.
        """
        if self._lock is None:
            raise ValueError("the writer lease is not held")
        if (why := self._lock.has_lost()) is not None:
            raise LeaseLost(self.folder.address(), why)


def is_lease_held(folder: Place) -> bool:
    """Whether a live process holds the lease. Writes nothing, so it works on a read-only archive."""
    try:
        return as_folder(folder).lock(LOCK_NAME).is_taken()
    except OSError:
        return False


def lease_holder(folder: Place) -> str | None:
    """Who wrote itself into the lock file last, as one phrase; ``None`` when it is empty or absent."""
    try:
        text = as_folder(folder).lock(LOCK_NAME).holder().decode("utf-8", "replace")
        holder = json.loads(text) if text else None
    except (OSError, ValueError):
        return None
    if not isinstance(holder, dict):
        return None
    return f"process {holder.get('pid')} on {holder.get('host')} since {holder.get('since')} ({holder.get('command')})"


def _describe_self() -> dict[str, str | int]:
    return {
        "pid": os.getpid(),
        "host": socket.gethostname(),
        "command": " ".join([Path(sys.argv[0]).name, *sys.argv[1:2]]).strip() or "python",
        "since": datetime.now(UTC).isoformat(timespec="seconds"),
    }
