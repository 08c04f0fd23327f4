"""A lock on a name in an archive: the system's own on a local folder. What holds on S3 is with the folder there."""

from __future__ import annotations

import contextlib
import fcntl
import os
import weakref
from pathlib import Path
from typing import Protocol


class Lock(Protocol):
    """One holder at a time, between processes and between threads. Its text only describes the holder to others.

    Methods raise ``OSError`` where the place cannot be reached or offers no locks.
    """

    poll_s: float
    """How long to wait before asking again."""

    def try_take(self, holder: bytes) -> bool:
        """Take the lock if nobody has it, and leave ``holder`` for others to read; does not wait."""

    def release(self) -> None:
        """Give the lock back."""

    def is_taken(self) -> bool:
        """Whether a live process has it. Writes nothing."""

    def holder(self) -> bytes:
        """What the holder left; empty where there is none. Raises ``FileNotFoundError`` for a lock never taken."""

    def has_lost(self) -> str | None:
        """Why a taken lock may be somebody else's by now; ``None`` while it is surely held."""


class FileLock:
    """An exclusive ``flock`` on a file: the system frees it when the holder dies."""

    poll_s = 0.05

    def __init__(self, path: Path) -> None:
        self._path = path
        self._descriptor: int | None = None

    def try_take(self, holder: bytes) -> bool:
        descriptor = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        try:
            if not _try_flock(descriptor):
                os.close(descriptor)
                return False
            os.ftruncate(descriptor, 0)
            with contextlib.suppress(OSError):  # a full disk: whoever makes room needs the lock, not its description
                os.pwrite(descriptor, holder, 0)
        except BaseException:
            os.close(descriptor)
            raise
        self._descriptor = descriptor
        _held.add(self)
        return True

    def release(self) -> None:
        if self._descriptor is None:
            return
        descriptor, self._descriptor = self._descriptor, None
        _held.discard(self)
        os.ftruncate(descriptor, 0)
        os.close(descriptor)

    def is_taken(self) -> bool:
        try:
            descriptor = os.open(self._path, os.O_RDONLY | os.O_CLOEXEC)
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

    def holder(self) -> bytes:
        return self._path.read_bytes()

    def has_lost(self) -> str | None:
        return None

    def _forget_in_child(self) -> None:
        # A forked child shares the lock: without this the lock would outlive its holder.
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None


def _try_flock(descriptor: int) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError as exc:
        raise OSError(exc.errno, f"its file system offers no locks: {exc.strerror}") from exc
    return True


_held: weakref.WeakSet[FileLock] = weakref.WeakSet()


def _after_fork_in_child() -> None:
    for lock in list(_held):
        lock._forget_in_child()
    _held.clear()


os.register_at_fork(after_in_child=_after_fork_in_child)
