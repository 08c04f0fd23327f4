"""A small object on S3 that is changed by conditional writes only: of two that change it at once, one is refused.

Its first line is what it says; the second is JSON with a token that no two writes share, so that a version is never
mistaken for an earlier one that said the same, and with whatever else its owner wants to keep.
"""

from __future__ import annotations

import errno
import json
import secrets
from dataclasses import dataclass
from datetime import datetime
from email.utils import parsedate_to_datetime
from typing import Any

from pipeline.s3 import S3Client, S3Error, s3_errors


@dataclass(frozen=True, slots=True)
class CellContent:
    """The object as it was read: what it says, its version, and the seconds since it was written."""

    text: bytes
    fields: dict[str, Any]
    etag: str
    age_s: float


class S3Cell:
    """One such object. Methods raise ``OSError``."""

    def __init__(self, client: S3Client, bucket: str, key: str) -> None:
        self._client = client
        self._bucket = bucket
        self._key = key

    @property
    def address(self) -> str:
        return f"s3://{self._bucket}/{self._key}"

    def read(self) -> CellContent | None:
        """``None`` where there is no object."""
        try:
            with s3_errors(self._bucket):
                answer = self._client.get().get_object(Bucket=self._bucket, Key=self._key)
                body = bytes(answer["Body"].read())
        except S3Error as exc:
            if exc.is_missing:
                return None
            raise OSError(errno.EIO, exc.cause, self.address) from exc
        text, _, rest = body.partition(b"\n")
        age_s = (_server_time(answer) - answer["LastModified"]).total_seconds()
        return CellContent(text, _fields(rest), str(answer["ETag"]), age_s)

    def write(self, text: bytes, etag: str | None, **fields: Any) -> str | None:
        """Replace the version ``etag``, or with ``None`` create the object; its new version, or ``None`` where another
        process was first."""
        token = secrets.token_hex(16)
        body = b"%s\n%s" % (text, json.dumps({"token": token, **fields}).encode())
        try:
            return self._put(body, {"IfNoneMatch": "*"} if etag is None else {"IfMatch": etag})
        except S3Error as exc:
            if not (exc.is_refused or exc.is_missing):
                raise OSError(errno.EIO, exc.cause, self.address) from exc
        found = self.read()  # perhaps an earlier try of this very write, whose answer was lost
        return found.etag if found is not None and found.fields.get("token") == token else None

    def require_conditions(self) -> None:
        """Raise ``OSError`` where the server lets a second creation of the same object pass."""
        try:
            self._put(b"", {"IfNoneMatch": "*"})
        except S3Error as exc:
            if exc.is_refused:
                return
            raise OSError(errno.EIO, exc.cause, self.address) from exc
        raise OSError(
            errno.ENOTSUP, "the server ignores conditional writes (If-None-Match), so no archive is safe on it"
        )

    def _put(self, body: bytes, condition: dict[str, str]) -> str:
        with s3_errors(self._bucket):
            answer = self._client.get().put_object(Bucket=self._bucket, Key=self._key, Body=body, **condition)
        return str(answer["ETag"])


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
