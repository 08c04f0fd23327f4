"""The writer lease on S3: an object that its holder renews, changed by conditional writes only.

The first line of ``writer.lock`` describes the holder and is empty when nobody has it; the second says for how many
seconds the lease is good (``s3_cell`` has the rest). A lease that was not renewed in time may be taken over; ages are
taken from the server's own clock. The holder measures the time since its last renewal by its own and counts the lease
as lost first, before anybody else may take it.
"""

from __future__ import annotations

import errno
import logging
import os
import threading
import time

from pipeline.s3 import S3Client
from pipeline.s3_cell import CellContent, S3Cell

logger = logging.getLogger(__name__)

GRACE_S = 2.0
"""Beyond its end a lease is left to its holder for this long: servers tell times in whole seconds."""
_RENEWALS = 4
"""How often a lease is renewed before it would end."""


class S3Lock:
    """One lock object. ``indexers.locks.Lock``; a thread renews it while it is held."""

    poll_s = 1.0

    def __init__(self, client: S3Client, bucket: str, key: str, lease_s: float) -> None:
        self._cell = S3Cell(client, bucket, key)
        self._lease_s = lease_s
        self._holder = b""
        self._etag = ""
        self._renewed = 0.0
        self._lost: str | None = None
        self._process = 0
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None

    def try_take(self, holder: bytes) -> bool:
        found = self._cell.read()
        if self._is_live(found):
            return False
        self._holder, self._lost, self._process = holder, None, os.getpid()
        if not self._write(holder, None if found is None else found.etag):
            return False
        self._cell.require_conditions()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._keep, args=(self._stop,), name="vxl-lease", daemon=True)
        self._thread.start()
        return True

    def release(self) -> None:
        if self._thread is None:
            return
        thread, self._thread = self._thread, None
        if self._process != os.getpid():  # a forked child has no such thread and no such lease
            return
        self._stop.set()
        thread.join()
        if self._lost is not None:
            return
        try:
            self._write(b"", self._etag)
        except OSError as exc:
            logger.warning("the writer lease could not be given back and ends by itself: %s", exc)

    def is_taken(self) -> bool:
        return self._is_live(self._cell.read())

    def holder(self) -> bytes:
        found = self._cell.read()
        if found is None:
            raise FileNotFoundError(errno.ENOENT, "the object is not there", self._cell.address)
        return found.text

    def has_lost(self) -> str | None:
        if self._lost is not None:
            return self._lost
        if self._thread is None or self._process != os.getpid():
            return "this process does not hold it"
        since = time.monotonic() - self._renewed
        return f"it could not be renewed for {since:.0f} s" if since > self._lease_s else None

    def _keep(self, stop: threading.Event) -> None:
        """Renew the lease until it is given back or lost."""
        while not stop.wait(self._lease_s / _RENEWALS):
            try:
                if not self._write(self._holder, self._etag):
                    self._lost = "another process has taken it over"
                    return
            except OSError as exc:
                logger.warning("the writer lease could not be renewed, trying again: %s", exc)

    def _write(self, holder: bytes, etag: str | None) -> bool:
        """Write the object in place of a version; ``False`` where another process was first."""
        started = time.monotonic()
        written = self._cell.write(holder, etag, lease_s=self._lease_s)
        if written is None:
            return False
        self._etag, self._renewed = written, started
        return True

    def _is_live(self, found: CellContent | None) -> bool:
        if found is None or not found.text:
            return False
        return found.age_s <= float(found.fields.get("lease_s", self._lease_s)) + GRACE_S
