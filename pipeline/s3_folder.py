"""An archive's files as objects below a prefix on S3: ``indexers.folder.Folder`` for buckets.

A file is written to a local temporary one and uploaded whole at its commit, in parts where it is large; until the
upload is complete there is no object. Reading is by range, each request bound to the version that was opened.
Everything that must not race is a conditional write (``If-None-Match``, ``If-Match``); a server that ignores those is
refused when the writer lease is taken.
"""

from __future__ import annotations

import contextlib
import errno
import os
import re
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager
from pathlib import Path, PurePosixPath
from typing import Any, BinaryIO

import xxhash

from indexers.folder import ByteRange, FoundFile, Name
from pipeline.errors import ConfigError
from pipeline.s3 import S3Client, S3Error, S3Settings, s3_errors
from pipeline.s3_lock import S3Lock
from pipeline.s3_room import S3Room

SCHEME = "s3://"
DIGEST = "vxl-xxh3"
"""Metadata of an object that is written once: xxh3_128 of its content."""
PARTS_IN_FLIGHT = 4
_HEAD_BYTES = 64 * 1024
"""Opening a file reads this much of it: a header, as a rule."""
_READ_BYTES = 1 << 20
_DELETE_BATCH = 1000
# What the tables' library and boto3 take for the same key. Others mean something in an address, or are stored under
# another name by one of the two.
_PLAIN_PART = re.compile(r"[\w !$&'()+,.=@:;-]+")


def parse_archive_uri(uri: str) -> tuple[str, str]:
    """Bucket and prefix of an archive's address. Raises ``ConfigError`` for a prefix that is not safe to use."""
    bucket, _, prefix = uri.removeprefix(SCHEME).partition("/")
    prefix = prefix.removesuffix("/")
    if not bucket:
        raise ConfigError(f"the archive's address {uri!r} names no bucket: write s3://bucket/prefix")
    for part in prefix.split("/") if prefix else ():
        if part in ("", ".", "..") or not _PLAIN_PART.fullmatch(part) or part != part.strip():
            raise ConfigError(
                f"the archive's address {uri!r} cannot be used: {part!r} is no name for a folder of an archive on S3; "
                "use letters, digits and - _ . = + @"
            )
    return bucket, prefix


class S3Folder:
    """One archive's prefix in one bucket. May be sent to another process, which connects anew."""

    def __init__(self, uri: str, settings: S3Settings) -> None:
        self.bucket, self.prefix = parse_archive_uri(uri)
        self._settings = settings
        self._client = S3Client(settings)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, S3Folder) and self.address() == other.address()

    def __hash__(self) -> int:
        return hash(self.address())

    def key(self, name: Name) -> str:
        """The object's key. ``ValueError`` for a name that leads out of the archive."""
        parts = [part for part in PurePosixPath(os.fspath(name)).parts if part != "."]
        if any(part in ("..", "/") for part in parts):
            raise ValueError(f"not a name in an archive: {os.fspath(name)!r}")
        return "/".join([self.prefix, *parts] if self.prefix else parts)

    def address(self, name: Name = "") -> str:
        return f"{SCHEME}{self.bucket}/{self.key(name)}".removesuffix("/")

    def make(self) -> None:
        self.entries()

    def entries(self, name: Name = "") -> Sequence[str]:
        below = self._below(name)
        found = []
        with self.errors(name):
            for page in self._pages("list_objects_v2", Prefix=below, Delimiter="/"):
                found += [entry["Prefix"] for entry in page.get("CommonPrefixes", ())]
                found += [entry["Key"] for entry in page.get("Contents", ())]
        return sorted({key[len(below) :].rstrip("/") for key in found} - {""})

    def open(self, name: Name) -> S3File:
        return S3File(self, name)

    def read_bytes(self, name: Name) -> bytes:
        with self.errors(name):
            answer = self.client.get_object(Bucket=self.bucket, Key=self.key(name))
            with contextlib.closing(answer["Body"]) as body:
                return bytes(body.read())

    @contextlib.contextmanager
    def local_copy(self, name: Name) -> Iterator[Path]:
        with tempfile.NamedTemporaryFile(prefix="vxl-") as file:
            with contextlib.closing(self.open(name)) as source, source.open_range(0, source.num_bytes) as whole:
                room = memoryview(bytearray(_READ_BYTES))
                position = 0
                while num_read := whole.read_into([room], position):
                    file.write(room[:num_read])
                    position += num_read
            file.flush()
            yield Path(file.name)

    def create(self, name: Name, *, write_once: bool = False) -> NewS3File:
        return NewS3File(self, self.key(name).removeprefix(self.prefix).lstrip("/"), write_once)

    @property
    def can_append(self) -> bool:
        return False

    def append(self, name: Name, payload: bytes) -> int | None:
        return None

    def list(self, prefix: Name) -> Iterator[FoundFile]:
        below = self._below(prefix)
        skip = len(self._below(""))
        with self.errors(prefix):
            for page in self._pages("list_objects_v2", Prefix=below):
                for entry in page.get("Contents", ()):
                    yield FoundFile(entry["Key"][skip:], entry["Size"], entry["LastModified"].timestamp())
            for page in self._pages("list_multipart_uploads", Prefix=below):
                for entry in page.get("Uploads", ()):
                    size = self._uploaded_bytes(entry["Key"], entry["UploadId"])
                    started = entry["Initiated"].timestamp()
                    yield FoundFile(entry["Key"][skip:], size, started, entry["UploadId"])

    def size(self, name: Name) -> int | None:
        try:
            with self.errors(name):
                return int(self.client.head_object(Bucket=self.bucket, Key=self.key(name))["ContentLength"])
        except FileNotFoundError:
            return None

    def set_modified(self, name: Name, modified: float) -> bool:
        return False

    def remove(self, found: FoundFile | Name) -> None:
        name, upload = (found.name, found.upload) if isinstance(found, FoundFile) else (found, None)
        with contextlib.suppress(FileNotFoundError), self.errors(name):
            if upload is None:
                self.client.delete_object(Bucket=self.bucket, Key=self.key(name))
            else:
                self.client.abort_multipart_upload(Bucket=self.bucket, Key=self.key(name), UploadId=upload)

    def remove_tree(self, name: Name) -> int:
        found = list(self.list(name))
        for file in found:
            if file.upload is not None:
                self.remove(file)
        keys = [self.key(file.name) for file in found if file.upload is None]
        for first in range(0, len(keys), _DELETE_BATCH):
            batch = [{"Key": key} for key in keys[first : first + _DELETE_BATCH]]
            with self.errors(name):
                answer = self.client.delete_objects(Bucket=self.bucket, Delete={"Objects": batch, "Quiet": True})
            for error in answer.get("Errors", ()):
                raise OSError(errno.EIO, f"it cannot be removed: the server answered {error.get('Code')}", error["Key"])
        return sum(file.num_bytes for file in found)

    def remove_empty(self, name: Name) -> None:
        """Nothing: S3 knows no folders."""

    def free_bytes(self, name: Name = "") -> int | None:
        """Not known: S3 tells no bounds."""
        return None

    def lock(self, name: Name) -> S3Lock:
        return S3Lock(self._client, self.bucket, self.key(name), self._settings.lease_s)

    def room(self, name: Name) -> S3Room:
        return S3Room(self._client, self.bucket, self.key(name))

    def tables(self, name: Name) -> tuple[str, Mapping[str, str]]:
        with self.errors(name):
            return self.address(name), self._client.connection_options()

    # For the files of this module

    @property
    def client(self) -> Any:
        """The boto3 client; what it raises goes through ``errors``."""
        return self._client.get()

    @property
    def settings(self) -> S3Settings:
        return self._settings

    def _below(self, name: Name) -> str:
        key = self.key(name)
        return key + "/" if key else ""

    def _pages(self, operation: str, **arguments: Any) -> Iterator[dict[str, Any]]:
        yield from self.client.get_paginator(operation).paginate(Bucket=self.bucket, **arguments)

    def _uploaded_bytes(self, key: str, upload: str) -> int:
        pages = self.client.get_paginator("list_parts").paginate(Bucket=self.bucket, Key=key, UploadId=upload)
        return sum(part["Size"] for page in pages for part in page.get("Parts", ()))

    @contextlib.contextmanager
    def errors(self, name: Name) -> Iterator[None]:
        """What S3 raises over a file, as ``OSError``."""
        try:
            with s3_errors(self.bucket):
                yield
        except S3Error as exc:
            raise as_os_error(exc, self.address(name)) from exc


def as_os_error(error: S3Error, address: str) -> OSError:
    """What a local file would have raised."""
    if error.is_missing:
        return FileNotFoundError(errno.ENOENT, "the object is not there", address)
    return OSError(errno.EIO, error.cause, address)


class S3File:
    """An object open for reading by range: always the version that was there when it was opened."""

    least_read_bytes = 4 * 1024 * 1024

    def __init__(self, folder: S3Folder, name: Name) -> None:
        self._folder = folder
        self._name = name
        self._key = folder.key(name)
        self._etag, self._head, self.num_bytes = "", b"", 0
        try:
            with s3_errors(folder.bucket):
                answer = self._get(0, _HEAD_BYTES, {})
                with contextlib.closing(answer["Body"]) as body:
                    self._head = bytes(body.read())
        except S3Error as exc:
            if exc.code == "InvalidRange":  # it has no bytes
                return
            raise as_os_error(exc, folder.address(name)) from exc
        self._etag = answer["ETag"]
        self.num_bytes = int(answer["ContentRange"].rpartition("/")[2])

    def read(self, offset: int, length: int) -> bytes:
        end = min(offset + length, self.num_bytes)
        if end <= len(self._head):
            return self._head[offset:end]
        room = bytearray(max(0, end - offset))
        with self.open_range(offset, len(room)) as found:
            return bytes(room[: found.read_into([memoryview(room)], offset)])

    def open_range(self, offset: int, length: int) -> AbstractContextManager[ByteRange]:
        return contextlib.closing(_S3Range(self, offset + length))

    def announce(self, offset: int, length: int) -> None:
        """Nothing: a request is made when its bytes have a place."""

    def close(self) -> None:
        """Nothing is open between reads."""

    def request(self, offset: int, end: int) -> Any:
        """The body of the bytes from ``offset`` to ``end``, of the version that was opened."""
        return self._get(offset, end, {"IfMatch": self._etag})["Body"]

    def _get(self, offset: int, end: int, condition: dict[str, str]) -> Any:
        return self._folder.client.get_object(
            Bucket=self._folder.bucket, Key=self._key, Range=f"bytes={offset}-{end - 1}", **condition
        )

    @contextlib.contextmanager
    def errors(self) -> Iterator[None]:
        """What reading raises."""
        try:
            with s3_errors(self._folder.bucket):
                yield
        except S3Error as exc:
            if exc.is_refused:
                where = self._folder.address(self._name)
                raise OSError(errno.ESTALE, "the object was replaced while it was read", where) from exc
            raise as_os_error(exc, self._folder.address(self._name)) from exc

    @property
    def attempts(self) -> int:
        return self._folder.settings.attempts


class _S3Range:
    """One request's bytes, read front to back into the caller's memory; asked for again from where it broke off."""

    def __init__(self, file: S3File, end: int) -> None:
        self._file = file
        self._end = min(end, file.num_bytes)
        self._position = -1
        self._body: Any = None

    def read_into(self, views: Sequence[memoryview], offset: int) -> int:
        num_read = 0
        for view in views:
            while view and offset + num_read < self._file.num_bytes:
                step = self._step(view, offset + num_read)
                num_read += step
                view = view[step:]
        return num_read

    def _step(self, view: memoryview, position: int) -> int:
        """At least one byte into ``view``; a body that breaks off is asked for again a few times."""
        for attempt in range(1, self._file.attempts + 1):
            try:
                with self._file.errors():
                    if self._body is None or position != self._position:
                        self.close()
                        self._body = self._file.request(position, max(self._end, position + len(view)))
                        self._position = position
                    step = int(self._body.readinto(view))
            except FileNotFoundError:
                self.close()
                raise
            except OSError as exc:
                self.close()
                if exc.errno == errno.ESTALE or attempt == self._file.attempts:
                    raise
                continue
            if step:
                self._position += step
                return step
            self.close()
        raise OSError(errno.EIO, f"no bytes arrived from position {position} on")

    def close(self) -> None:
        if self._body is not None:
            self._body.close()
            self._body = None


class NewS3File:
    """A file in the making, local and without a name until it is uploaded. ``indexers.folder.NewFile``."""

    def __init__(self, folder: S3Folder, name: str, write_once: bool) -> None:
        self.name = name
        self.file: BinaryIO = tempfile.TemporaryFile(prefix="vxl-")  # noqa: SIM115 (closed by discard)
        self._folder = folder
        self._write_once = write_once

    def __enter__(self) -> NewS3File:
        return self

    def __exit__(self, *exc: object) -> None:
        self.discard()

    def commit(self) -> None:
        """Upload it. Written once, an object of the same content counts as this one; beside one of other content the
        name gets the digest."""
        self.file.flush()
        digest = self._digest()
        if not self._write_once:
            self._upload(digest, {})
        elif not self._upload_once(digest):
            path = PurePosixPath(self.name)
            self.name = str(path.with_name(f"{path.stem}.{digest[:16]}{path.suffix}"))
            if not self._upload_once(digest):
                raise OSError(errno.EEXIST, "the object is there with other content", self._folder.address(self.name))
        self.discard()

    def discard(self) -> None:
        self.file.close()

    def _upload_once(self, digest: str) -> bool:
        """``False`` where an object of other content has the name."""
        for _ in range(self._folder.settings.attempts):
            found = self._found_digest()
            if found is not None:
                return found == digest
            try:
                self._upload(digest, {"IfNoneMatch": "*"})
            except FileExistsError:
                continue  # it appeared meanwhile, perhaps by a request of ours whose answer was lost
            return True
        raise OSError(errno.EIO, "the server refuses the object and has none", self._folder.address(self.name))

    def _found_digest(self) -> str | None:
        """Digest of the object of this name; ``None`` where there is none."""
        try:
            with self._folder.errors(self.name):
                answer = self._folder.client.head_object(Bucket=self._folder.bucket, Key=self._key)
        except FileNotFoundError:
            return None
        return str(answer.get("Metadata", {}).get(DIGEST, ""))

    @property
    def _key(self) -> str:
        return self._folder.key(self.name)

    def _digest(self) -> str:
        hasher = xxhash.xxh3_128()
        self.file.seek(0)
        while part := self.file.read(_READ_BYTES):
            hasher.update(part)
        return hasher.hexdigest()

    def _upload(self, digest: str, condition: dict[str, str]) -> None:
        """Raises ``FileExistsError`` where the condition does not hold."""
        num_bytes = self.file.seek(0, os.SEEK_END)
        self.file.seek(0)
        place: dict[str, Any] = {"Bucket": self._folder.bucket, "Key": self._key}
        try:
            with s3_errors(self._folder.bucket):
                if num_bytes <= self._folder.settings.part_bytes:
                    self._folder.client.put_object(
                        **place, Body=self.file, ContentLength=num_bytes, Metadata={DIGEST: digest}, **condition
                    )
                else:
                    self._upload_parts(place, num_bytes, digest, condition)
        except S3Error as exc:
            if exc.is_refused:
                raise FileExistsError(errno.EEXIST, "the object is there", self._folder.address(self.name)) from exc
            raise as_os_error(exc, self._folder.address(self.name)) from exc

    def _upload_parts(self, place: dict[str, Any], num_bytes: int, digest: str, condition: dict[str, str]) -> None:
        client, size = self._folder.client, self._folder.settings.part_bytes
        upload = {**place, "UploadId": client.create_multipart_upload(**place, Metadata={DIGEST: digest})["UploadId"]}

        def send(number: int) -> dict[str, Any]:
            content = os.pread(self.file.fileno(), min(size, num_bytes - number * size), number * size)
            answer = client.upload_part(**upload, PartNumber=number + 1, Body=content)
            return {"ETag": answer["ETag"], "PartNumber": number + 1}

        try:
            with ThreadPoolExecutor(PARTS_IN_FLIGHT, thread_name_prefix="vxl-upload") as pool:
                parts = list(pool.map(send, range(-(-num_bytes // size))))
            client.complete_multipart_upload(**upload, MultipartUpload={"Parts": parts}, **condition)
        except BaseException:
            with contextlib.suppress(Exception):  # the sweep finds what this cannot remove
                client.abort_multipart_upload(**upload)
            raise
