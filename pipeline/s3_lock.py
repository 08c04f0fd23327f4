"""The writer lease on S3: an object that its holder renews, changed by conditional writes only.

The first line of ``writer.lock`` describes the holder and is empty when nobody has it; the second holds a token that no
two writes share, and for how many seconds the lease is good. Every change names the version it replaces (``If-Match``)
or demands that there is none (``If-None-Match``), so of two processes one is refused. A lease that was not renewed in
time may be taken over; ages are taken from the server's own clock. The holder measures the time since its last renewal
by its own and counts the lease as lost first, before anybody else may take it.
"""

from __future__ import annotations

import errno
import json
import logging
import os
import secrets
import threading
import time
from dataclasses import dataclass
from datetime import datetime
from email.utils import parsedate_to_datetime
from typing import Any

from pipeline.s3 import S3Client, S3Error, s3_errors

logger = logging.getLogger(__name__)

GRACE_S = 2.0
"""Beyond its end a lease is left to its holder for this long: servers tell times in whole seconds."""
_RENEWALS = 4
"""How often a lease is renewed before it would end."""


@dataclass(frozen=True, slots=True)
class _Found:
    """The lock object as it was read: what it says, its version, and the seconds since it was written."""

    holder: bytes
    token: str
    lease_s: float
    etag: str
    age_s: float

    @property
    def is_live(self) -> bool:
        return bool(self.holder) and self.age_s <= self.lease_s + GRACE_S


class S3Lock:
    """One lock object. ``indexers.locks.Lock``; a thread renews it while it is held."""

    poll_s = 1.0

    def __init__(self, client: S3Client, bucket: str, key: str, lease_s: float) -> None:
        self._client = client
        self._bucket = bucket
        self._key = key
        self._lease_s = lease_s
        self._owner = secrets.token_hex(8)
        self._holder = b""
        self._etag = ""
        self._renewed = 0.0
        self._lost: str | None = None
        self._process = 0
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None

    def try_take(self, holder: bytes) -> bool:
        found = self._read()
        if found is not None and found.is_live:
            return False
        self._holder, self._lost, self._process = holder, None, os.getpid()
        condition = {"IfNoneMatch": "*"} if found is None else {"IfMatch": found.etag}
        if not self._write(holder, condition):
            return False
        self._require_conditions()
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
            self._write(b"", {"IfMatch": self._etag})
        except OSError as exc:
            logger.warning("the writer lease could not be given back and ends by itself: %s", exc)

    def is_taken(self) -> bool:
        found = self._read()
        return found is not None and found.is_live

    def holder(self) -> bytes:
        found = self._read()
        if found is None:
            raise FileNotFoundError(errno.ENOENT, "the object is not there", self._address)
        return found.holder

    def has_lost(self) -> str | None:
        if self._lost is not None:
            return self._lost
        if self._thread is None or self._process != os.getpid():
            return "this process does not hold it"
        since = time.monotonic() - self._renewed
        return f"it could not be renewed for {since:.0f} s" if since > self._lease_s else None

    @property
    def _address(self) -> str:
        return f"s3://{self._bucket}/{self._key}"

    def _keep(self, stop: threading.Event) -> None:
        """Renew the lease until it is given back or lost."""
        while not stop.wait(self._lease_s / _RENEWALS):
            try:
                if not self._write(self._holder, {"IfMatch": self._etag}):
                    self._lost = "another process has taken it over"
                    return
            except OSError as exc:
                logger.warning("the writer lease could not be renewed, trying again: %s", exc)

    def _write(self, holder: bytes, condition: dict[str, str]) -> bool:
        """Write the object under a condition; ``False`` where another process was first."""
        token = f"{self._owner}-{secrets.token_hex(8)}"
        body = b"%s\n%s" % (holder, json.dumps({"token": token, "lease_s": self._lease_s}).encode())
        started = time.monotonic()
        try:
            etag = self._put(body, condition)
        except S3Error as exc:
            if not exc.is_refused:
                raise OSError(errno.EIO, exc.cause, self._address) from exc
            found = self._read()  # perhaps an earlier try of this very write, whose answer was lost
            if found is None or found.token != token:
                return False
            etag = found.etag
        self._etag, self._renewed = etag, started
        return True

    def _require_conditions(self) -> None:
        """Raise ``OSError`` where the server lets a second creation of the same object pass."""
        try:
            self._put(b"", {"IfNoneMatch": "*"})
        except S3Error as exc:
            if exc.is_refused:
                return
            raise OSError(errno.EIO, exc.cause, self._address) from exc
        raise OSError(
            errno.ENOTSUP, "the server ignores conditional writes (If-None-Match), so no archive is safe on it"
        )

    def _put(self, body: bytes, condition: dict[str, str]) -> str:
        with s3_errors(self._bucket):
            answer = self._client.get().put_object(Bucket=self._bucket, Key=self._key, Body=body, **condition)
        return str(answer["ETag"])

    def _read(self) -> _Found | None:
        try:
            with s3_errors(self._bucket):
                answer = self._client.get().get_object(Bucket=self._bucket, Key=self._key)
                body = bytes(answer["Body"].read())
        except S3Error as exc:
            if exc.is_missing:
                return None
            raise OSError(errno.EIO, exc.cause, self._address) from exc
        holder, _, rest = body.partition(b"\n")
        fields = _fields(rest)
        return _Found(
            holder=holder,
            token=str(fields.get("token", "")),
            lease_s=float(fields.get("lease_s", self._lease_s)),
            etag=str(answer["ETag"]),
            age_s=(_server_time(answer) - answer["LastModified"]).total_seconds(),
        )


def _fields(text: bytes) -> dict[str, Any]:
    try:
        found = json.loads(text)
    except ValueError:
        return {}
    return found if isinstance(found, dict) else {}


def _server_time(answer: dict[str, Any]) -> datetime:
    """What the server's clock read when it answered."""
    date = answer["ResponseMetadata"]["HTTPHeaders"].get("date")
    if date is None:
        raise OSError(errno.ENOTSUP, "the server does not date its answers, so no lease can end on it")
    return parsedate_to_datetime(date)
