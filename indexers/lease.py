"""The writer lease of an archive: at most one process writes, and the system frees the lease when that process dies.

An exclusive ``flock`` on ``<archive>/writer.lock``; the file's text only describes the holder for error messages. Works
between processes and between threads of one process. The archive must lie on a file system of which every writing
machine sees the same locks. Readers take no lease.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import socket
import sys
import time
import weakref
from datetime import UTC, datetime
from pathlib import Path

from indexers.errors import ArchiveLocked, StoreUnavailable

LOCK_NAME = "writer.lock"
_POLL_S = 0.05
_PROBE_S = 0.2
"""A moment's patience: whoever asks ``is_lease_held`` holds a shared lock for that long at most."""


class WriterLease:
    """The right to write to one archive. Use as a context manager, or ``acquire`` and ``release``.

    Raises ``ArchiveLocked`` naming the holder when another one has it after ``wait_s`` seconds.
    """

    def __init__(self, folder: str | Path, wait_s: float = 0.0) -> None:
        self.folder = Path(folder)
        self._wait_s = wait_s
        self._descriptor: int | None = None

    @property
    def is_held(self) -> bool:
        return self._descriptor is not None

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
        try:
            descriptor = os.open(self.folder / LOCK_NAME, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        except OSError as exc:
            raise StoreUnavailable(str(self.folder), str(exc)) from exc
        try:
            self._lock(descriptor, wait_s)
            os.ftruncate(descriptor, 0)
            with contextlib.suppress(OSError):  # a full disk: whoever makes room needs the lease, not its description
                os.pwrite(descriptor, json.dumps(_describe_self()).encode(), 0)
        except BaseException:
            os.close(descriptor)
            raise
        self._descriptor = descriptor
        _held.add(self)
        return self

    def release(self) -> None:
        """Give the lease back; nothing if it is not held."""
        if self._descriptor is None:
            return
        descriptor, self._descriptor = self._descriptor, None
        _held.discard(self)
        os.ftruncate(descriptor, 0)
        os.close(descriptor)

    def _lock(self, descriptor: int, wait_s: float) -> None:
        deadline = time.monotonic() + max(wait_s, _PROBE_S)
        while True:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                return
            except BlockingIOError:
                if time.monotonic() >= deadline:
                    raise ArchiveLocked(str(self.folder), lease_holder(self.folder) or "another process") from None
            except OSError as exc:
                raise StoreUnavailable(str(self.folder), f"its file system offers no locks: {exc}") from exc
            time.sleep(min(_POLL_S, max(0.0, deadline - time.monotonic())))

    def _forget_in_child(self) -> None:
        # A forked child shares the lock: without this the lease would outlive its holder.
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None


def is_lease_held(folder: str | Path) -> bool:
    """Whether a live process holds the lease. Writes nothing, so it works on a read-only archive."""
    try:
        descriptor = os.open(Path(folder) / LOCK_NAME, os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return False
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:
        return False
    finally:
        os.close(descriptor)
    return False


def lease_holder(folder: str | Path) -> str | None:
    """Who wrote itself into the lock file last, as one phrase; ``None`` when it is empty or absent."""
    try:
        text = (Path(folder) / LOCK_NAME).read_bytes().decode("utf-8", "replace")
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


_held: weakref.WeakSet[WriterLease] = weakref.WeakSet()


def _after_fork_in_child() -> None:
    for lease in list(_held):
        lease._forget_in_child()
    _held.clear()


os.register_at_fork(after_in_child=_after_fork_in_child)
