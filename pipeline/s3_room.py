"""Room under a byte cap on S3: an object that says which bytes are about to be written, changed by conditional writes.

A process reads it, counts what is there, and adds its own bytes only if nobody has changed the object meanwhile. Its
bytes are in the object before they are uploaded and until they can be counted, so files and reservations together
never exceed the cap, and uploads of several processes go on side by side. A reservation does not end by itself: that
of a process that died is replaced when the same file is written again, or dropped by the next writer's sweep.
"""

from __future__ import annotations

import contextlib
import errno
import json
import logging
import random
import time
from collections.abc import Callable, Iterator

from pipeline.s3 import S3Client
from pipeline.s3_cell import CellContent, S3Cell

logger = logging.getLogger(__name__)

_PAUSE_S = 0.2
"""At most this long is waited after somebody else was first."""


class S3Room:
    """One such object. ``indexers.room.Room``."""

    poll_s = 1.0

    def __init__(self, client: S3Client, bucket: str, key: str) -> None:
        self._cell = S3Cell(client, bucket, key)

    @contextlib.contextmanager
    def reserve(self, owner: str, num_bytes: int, cap: int, measure: Callable[[], int]) -> Iterator[bool]:
        if not self._add(owner, num_bytes, cap, measure):
            yield False
            return
        try:
            yield True
        finally:
            try:
                self._change(lambda reserved: {name: size for name, size in reserved.items() if name != owner})
            except OSError as exc:
                logger.warning("room that was reserved for %s cannot be given back yet: %s", owner, exc)

    def forget(self) -> None:
        self._change(lambda reserved: {})

    def _add(self, owner: str, num_bytes: int, cap: int, measure: Callable[[], int]) -> bool:
        def added(reserved: dict[str, int]) -> dict[str, int] | None:
            others = {name: size for name, size in reserved.items() if name != owner}
            if measure() + sum(others.values()) + num_bytes > cap:
                return None
            return {**others, owner: num_bytes}

        return self._change(added)

    def _change(self, change: Callable[[dict[str, int]], dict[str, int] | None]) -> bool:
        """Put what ``change`` makes of the reservations in their place, again where another process was first.

        ``False`` where it says ``None``.
        """
        while True:
            found = self._cell.read()
            try:
                before = _reservations(found)
            except (ValueError, TypeError, AttributeError) as exc:
                raise OSError(errno.EIO, "it is not what this program wrote; remove it", self._cell.address) from exc
            after = change(before)
            if after is None:
                return False
            if not before and not after:
                return True
            if self._cell.write(json.dumps(after).encode(), None if found is None else found.etag) is not None:
                return True
            time.sleep(random.uniform(0, _PAUSE_S))


def _reservations(found: CellContent | None) -> dict[str, int]:
    return {} if found is None else {str(name): int(size) for name, size in json.loads(found.text).items()}
