"""Where footage lies: list it and fetch it, from an S3 bucket, a local folder or a single file.

A key may be any text: it is kept as it is in URIs and never becomes part of a local path.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
import secrets
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from io import FileIO
from pathlib import Path
from typing import Any, Protocol

from indexers.disk import is_full
from pipeline.errors import (
    ArchiveError,
    ConfigError,
    MediaChanged,
    MediaFetchError,
    ScratchFull,
    SourceUnavailable,
    StageError,
)
from pipeline.s3 import S3Client, S3Error, S3Settings, s3_errors

VIDEO_SUFFIXES = (
    *(".mp4", ".m4v", ".mov", ".qt", ".3gp", ".3g2", ".mkv", ".webm", ".avi", ".ts", ".mts", ".m2ts", ".m2t", ".mpg"),
    *(
        ".mpeg",
        ".vob",
        ".flv",
        ".f4v",
        ".ogv",
        ".wmv",
        ".asf",
        ".mxf",
        ".dv",
        ".h264",
        ".264",
        ".h265",
        ".hevc",
        ".265",
    ),
)
_READ_BYTES = 1 << 20


@dataclass(frozen=True)
class MediaObject:
    """One version of one video."""

    uri: str
    """``s3://bucket/key`` or ``file:///path``, raw: nothing in it is percent-encoded."""
    key: str
    """Relative to the source, with ``/``."""
    etag: str
    size: int
    modified: datetime


@dataclass(frozen=True)
class LocalMedia:
    """A video that can be opened from ``path`` for as long as the context that gave it lasts."""

    path: str


class MediaSource(Protocol):
    """A place that holds footage."""

    uri: str
    """As :func:`normalise_uri` gives it."""

    def check(self) -> None:
        """Raise SourceUnavailable, in a few seconds at most, if nothing can be listed here."""

    def list(self) -> Iterator[MediaObject]:
        """Every video under the source, sorted by key. Raises SourceUnavailable."""

    def fetch(self, media: MediaObject, scratch_dir: str | Path) -> contextlib.AbstractContextManager[LocalMedia]:
        """The video as a local file while the context lasts. Raises MediaFetchError (retryable) or MediaChanged."""


def open_source(
    source: str, settings: S3Settings | None = None, *, suffixes: tuple[str, ...] = VIDEO_SUFFIXES
) -> MediaSource:
    """The source that an address names; nothing is read yet.

    An S3 prefix is a folder: ``s3://b/cam1`` holds ``cam1/x.mp4`` and the object ``cam1`` itself, not ``cam10/x.mp4``.
    Videos are told from other files by ``suffixes`` (lower case); a file or object named outright is taken as it is.

    Raises:
        ConfigError: the address is neither ``s3://bucket[/prefix]`` nor a local path.
    """
    uri = normalise_uri(source)
    if uri.startswith("s3://"):
        bucket, _, prefix = uri[len("s3://") :].partition("/")
        if not bucket:
            raise ConfigError(f"{source!r} names no bucket: write s3://bucket or s3://bucket/prefix")
        return S3Source(uri, bucket, prefix, settings or S3Settings(), suffixes)
    return LocalSource(uri, suffixes)


def normalise_uri(text: str) -> str:
    """The URI under which a source or a video is stored: ``s3://`` and ``file://`` as they are, a path made absolute.

    Raises:
        ConfigError: empty, or an address of another kind.
    """
    if not text:
        raise ConfigError("an empty address names no footage")
    if text.startswith("s3://"):
        return text
    if text.startswith("file://"):
        path = text[len("file://") :]
        if not path.startswith("/"):
            raise ConfigError(f"{text!r}: a file address has three slashes, file:///path")
        return "file://" + path
    scheme, separator, _ = text.partition("://")
    if separator and scheme.isalnum() and not Path(text).exists():
        raise ConfigError(f"{text!r}: footage is read from s3://bucket/prefix or from a local folder or file")
    return "file://" + _storable(os.path.abspath(os.path.expanduser(text)))  # noqa: PTH100, PTH111  keeps symlinks


def fetch_uri(
    uri: str, etag: str | None, settings: S3Settings | None, scratch_dir: str | Path
) -> contextlib.AbstractContextManager[LocalMedia]:
    """The video at a stored URI as a local file; ``etag`` None takes whatever version is there now.

    Raises:
        MediaFetchError: it cannot be read (retryable).
        MediaChanged: it is gone, or another version is there.
        ScratchFull: ``scratch_dir`` has no room for it.
    """
    if uri.startswith("s3://"):
        bucket, _, key = uri[len("s3://") :].partition("/")
        client = S3Client(settings or S3Settings())
        return _fetched_from_s3(client, uri, bucket, key, etag, scratch_dir)
    return _local_file(uri, etag)


class LocalSource:
    """A folder, searched with its subfolders, or a single file. Folders behind symbolic links are not entered; a linked
    file counts only if it lies inside the folder."""

    def __init__(self, uri: str, suffixes: tuple[str, ...]) -> None:
        self.uri = uri
        self._root = Path(uri[len("file://") :])
        self._suffixes = suffixes

    def check(self) -> None:
        try:
            if self._root.is_dir():
                with os.scandir(self._root) as entries:
                    next(entries, None)
            else:
                with self._root.open("rb"):
                    pass
        except FileNotFoundError:
            raise SourceUnavailable(self.uri, "no such folder or file") from None
        except OSError as exc:
            raise SourceUnavailable(self.uri, exc.strerror or str(exc)) from exc

    def list(self) -> Iterator[MediaObject]:
        self.check()
        if not self._root.is_dir():
            yield self._object(self._root, self._root.name)
            return
        found = sorted(self._files(self._root, ""), key=lambda item: item[0])
        for key, path in found:
            with contextlib.suppress(FileNotFoundError):
                yield self._object(path, key)

    def _files(self, folder: Path, prefix: str) -> Iterator[tuple[str, Path]]:
        try:
            with os.scandir(folder) as entries:
                for entry in entries:
                    key, path = prefix + entry.name, Path(entry.path)
                    if entry.is_dir(follow_symlinks=False):
                        yield from self._files(path, key + "/")
                    elif _is_video(entry.name, self._suffixes) and self._is_inside(entry):
                        yield _storable(key), path
        except OSError as exc:
            raise SourceUnavailable(self.uri, f"cannot read {str(folder)!r}: {exc.strerror or exc}") from exc

    def _is_inside(self, entry: os.DirEntry[str]) -> bool:
        if not entry.is_symlink():
            return entry.is_file(follow_symlinks=False)
        target = Path(entry.path).resolve()
        return target.is_file() and target.is_relative_to(self._root.resolve())

    def _object(self, path: Path, key: str) -> MediaObject:
        status = path.stat()
        return MediaObject(
            uri="file://" + _storable(str(path)),
            key=_storable(key),
            etag=_local_etag(status),
            size=status.st_size,
            modified=datetime.fromtimestamp(status.st_mtime, UTC),
        )

    def fetch(self, media: MediaObject, scratch_dir: str | Path) -> contextlib.AbstractContextManager[LocalMedia]:
        return _local_file(media.uri, media.etag)


class S3Source:
    """A bucket, or a folder or single object in it, through any server that speaks S3."""

    def __init__(self, uri: str, bucket: str, prefix: str, settings: S3Settings, suffixes: tuple[str, ...]) -> None:
        self.uri = uri
        self._bucket = bucket
        self._folder = prefix if not prefix or prefix.endswith("/") else prefix + "/"
        self._object_key = "" if prefix.endswith("/") else prefix
        self._settings = settings
        self._suffixes = suffixes
        self._client = S3Client(settings)

    def check(self) -> None:
        limit_s = self._settings.check_timeout_s
        hasty = self._settings.model_copy(
            update={"connect_timeout_s": limit_s, "read_timeout_s": limit_s, "attempts": 1}
        )
        with _listing_errors(self.uri, self._bucket):
            S3Client(hasty).get().list_objects_v2(Bucket=self._bucket, Prefix=self._folder, MaxKeys=1)

    def list(self) -> Iterator[MediaObject]:
        if self._object_key:
            yield from self._single_object()
        with _listing_errors(self.uri, self._bucket):
            pages = self._client.get().get_paginator("list_objects_v2")
            for page in pages.paginate(Bucket=self._bucket, Prefix=self._folder):
                for entry in page.get("Contents", ()):
                    if _is_video(entry["Key"], self._suffixes):
                        yield self._object(entry["Key"], entry["Key"][len(self._folder) :], entry)

    def _single_object(self) -> Iterator[MediaObject]:
        """The object whose whole key is the prefix, if there is one."""
        with _listing_errors(self.uri, self._bucket):
            answer = self._client.get().list_objects_v2(Bucket=self._bucket, Prefix=self._object_key, MaxKeys=1)
        for entry in answer.get("Contents", ()):
            if entry["Key"] == self._object_key:
                yield self._object(entry["Key"], entry["Key"].rpartition("/")[2], entry)

    def _object(self, key: str, relative_key: str, entry: dict[str, Any]) -> MediaObject:
        return MediaObject(
            uri=f"s3://{self._bucket}/{key}",
            key=relative_key,
            etag=entry["ETag"].strip('"'),
            size=entry["Size"],
            modified=entry["LastModified"].astimezone(UTC),
        )

    def fetch(self, media: MediaObject, scratch_dir: str | Path) -> contextlib.AbstractContextManager[LocalMedia]:
        bucket, _, key = media.uri[len("s3://") :].partition("/")
        return _fetched_from_s3(self._client, media.uri, bucket, key, media.etag, scratch_dir)


@contextlib.contextmanager
def _listing_errors(source: str, bucket: str) -> Iterator[None]:
    """Turn what S3 raises while listing into SourceUnavailable with a one-line cause."""
    try:
        with s3_errors(bucket):
            yield
    except S3Error as exc:
        raise SourceUnavailable(source, exc.cause) from exc


@contextlib.contextmanager
def _fetched_from_s3(
    client: S3Client, uri: str, bucket: str, key: str, etag: str | None, scratch_dir: str | Path
) -> Iterator[LocalMedia]:
    name = hashlib.blake2b(uri.encode("utf-8", "surrogatepass"), digest_size=8).hexdigest()
    path = Path(scratch_dir) / f"media-{name}-{secrets.token_hex(4)}"
    try:
        _download(client, uri, bucket, key, etag, path)
        yield LocalMedia(str(path))
    finally:
        path.unlink(missing_ok=True)


def _download(client: S3Client, uri: str, bucket: str, key: str, etag: str | None, path: Path) -> None:
    condition = {} if etag is None else {"IfMatch": f'"{etag}"'}
    try:
        with s3_errors():
            answer = client.get().get_object(Bucket=bucket, Key=key, **condition)
            size = answer["ContentLength"]
            with contextlib.closing(answer["Body"]) as body, _written_scratch(uri, path, size) as file:
                num_bytes = 0
                for part in body.iter_chunks(_READ_BYTES):
                    file.write(part)
                    num_bytes += len(part)
        if num_bytes != answer["ContentLength"]:
            raise MediaFetchError(uri, f"{num_bytes} bytes arrived instead of {answer['ContentLength']}")
    except S3Error as exc:
        if exc.is_refused:
            raise MediaChanged(uri, "the object was replaced after it was listed") from exc
        if exc.is_missing:
            raise MediaChanged(uri, "the object is not there any more") from exc
        raise MediaFetchError(uri, f"the download failed: {exc.cause}") from exc


@contextlib.contextmanager
def scratch_folder(uri: str, prefix: str) -> Iterator[Path]:
    """A temporary folder for the bytes of one video, removed afterwards. Raises ``ScratchFull``, ``StageError``."""
    with contextlib.ExitStack() as stack:
        try:
            folder = stack.enter_context(tempfile.TemporaryDirectory(prefix=prefix))
        except OSError as exc:
            raise _scratch_error(uri, Path(tempfile.gettempdir()), exc) from exc
        yield Path(folder)


@contextlib.contextmanager
def _written_scratch(uri: str, path: Path, num_bytes: int) -> Iterator[_ScratchFile]:
    """A new file for a video of so many bytes; what fails about writing it is told from what fails about reading."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        file = path.open("xb", buffering=0)
    except OSError as exc:
        raise _scratch_error(uri, path.parent, exc, num_bytes) from exc
    with file:
        yield _ScratchFile(file, uri, path.parent, num_bytes)


class _ScratchFile:
    """Writes parts of a video, unbuffered: closing has nothing left to fail at."""

    def __init__(self, file: FileIO, uri: str, folder: Path, num_bytes: int) -> None:
        self._file = file
        self._uri = uri
        self._folder = folder
        self._num_bytes = num_bytes

    def write(self, part: bytes) -> None:
        view = memoryview(part)
        while view.nbytes:
            try:
                view = view[self._file.write(view) :]
            except OSError as exc:
                raise _scratch_error(self._uri, self._folder, exc, self._num_bytes) from exc


def _scratch_error(uri: str, folder: Path, error: OSError, num_bytes: int | None = None) -> ArchiveError:
    if not is_full(error):
        return StageError("fetch", f"the scratch folder cannot be written: {error.strerror or error}")
    needed = "" if num_bytes is None else f" for its {num_bytes / 1e6:.1f} MB"
    return ScratchFull(
        uri,
        f"the temporary folder {str(folder)!r} has no room{needed}; make some, or name a larger one in TMPDIR",
    )


@contextlib.contextmanager
def _local_file(uri: str, etag: str | None) -> Iterator[LocalMedia]:
    path = _stored_path(uri[len("file://") :] if uri.startswith("file://") else uri)
    try:
        status = path.stat()
        with path.open("rb"):
            pass
    except FileNotFoundError:
        raise MediaChanged(uri, "the file is not there any more") from None
    except OSError as exc:
        raise MediaFetchError(uri, f"the file cannot be read: {exc.strerror or exc}") from exc
    if etag is not None and _local_etag(status) != etag:
        raise MediaChanged(uri, "the file was changed after it was listed")
    yield LocalMedia(str(path))


def _local_etag(status: os.stat_result) -> str:
    return f"{status.st_mtime_ns:x}-{status.st_size:x}"


def _is_video(name: str, suffixes: tuple[str, ...]) -> bool:
    return name.lower().endswith(suffixes)


def _storable(text: str) -> str:
    """File names are bytes: what is not UTF-8 is shown as ``\\xNN``, since tables and JSON hold only text."""
    return text.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")


def _stored_path(text: str) -> Path:
    """The file that ``_storable`` made ``text`` of; a file that is really called so comes first."""
    if os.path.lexists(text):
        return Path(text)
    raw = re.sub(rb"\\x([89a-f][0-9a-f])", lambda match: bytes.fromhex(match[1].decode()), text.encode())
    return Path(os.fsdecode(raw))
