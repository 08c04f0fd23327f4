"""Room under a byte cap, shared by all processes that write to one archive: what is given to one is nobody else's.

On a local folder a lock is held while files are measured and written. What holds on S3 is with the folder there.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Protocol

ROOM_NAME = "kv/room.lock"
"""Whatever the room needs to keep lies under this name; it does not count as KV."""


class Room(Protocol):
    """Bytes under a cap. Methods raise ``OSError``."""

    poll_s: float
    """How long to wait before asking again."""

    def reserve(self, owner: str, num_bytes: int, cap: int, measure: Callable[[], int]) -> AbstractContextManager[bool]:
        """Whether ``num_bytes`` more fit under ``cap``; if so they may be written for as long as the block lasts.

        ``measure`` counts what is there. ``owner`` is what is written: reserving again for the same takes the place
        of what a process that died reserved for it.
        """

    def forget(self) -> None:
        """Drop what processes that died have reserved. The caller holds the writer lease, and no worker runs."""


class LocalRoom:
    """A lock on a file, which the system frees when its holder dies."""

    poll_s = 0.1

    def __init__(self, path: Path) -> None:
        self._path = path

    @contextlib.contextmanager
    def reserve(self, owner: str, num_bytes: int, cap: int, measure: Callable[[], int]) -> Iterator[bool]:
        self._path.parent.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            yield measure() + num_bytes <= cap
        finally:
            os.close(descriptor)

    def forget(self) -> None:
        """Nothing: a lock dies with its holder."""
