"""What an archive's address names: a local folder, or a prefix in a bucket."""

from __future__ import annotations

from pathlib import Path

from indexers.folder import Folder, LocalFolder
from pipeline.errors import ConfigError, UsageError
from pipeline.s3 import S3Settings


def open_folder(uri: str | Path, s3: S3Settings) -> Folder:
    """The folder of an archive; nothing is read or made yet.

    Raises ``UsageError`` for an empty address and ``ConfigError`` for one that is not supported or names a file.
    """
    text = str(uri)
    if not text.strip():
        raise UsageError("the archive's address is empty; give --archive or set VXL_ARCHIVE")
    if text.startswith("s3://"):
        from pipeline.s3_folder import S3Folder

        return S3Folder(text, s3)
    if text.startswith("file://"):
        text = text.removeprefix("file://")
    if "://" in text:
        raise ConfigError(f"an archive at {text!r} is not supported: give a local folder or s3://bucket/prefix")
    try:
        folder = Path(text).expanduser().absolute()
    except RuntimeError as exc:
        raise ConfigError(f"the archive's address {text!r} names no folder: {exc}") from exc
    if folder.exists() and not folder.is_dir():
        raise ConfigError(f"the archive's address {text!r} is a file, not a folder")
    return LocalFolder(folder)
