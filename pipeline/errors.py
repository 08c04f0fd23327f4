"""Errors of the pipeline, each with the facts it was raised for and the exit code the command line gives it.

    ArchiveError
    ├── UsageError            a caller's mistake: empty question, naive time, unknown camera      exit 2
    ├── ConfigError           settings or archive address that cannot work                        exit 2
    ├── SourceUnavailable     bucket, endpoint, credentials or folder, found before any work      exit 2
    ├── ArchiveBusy           another process holds the writer lease                              exit 2
    ├── ModelMismatch         archive made by another model, setting or schema                    exit 7
    ├── MediaError            one video, named by its URI
    │   ├── UnreadableMedia   the bytes are not a video that can be decoded
    │   ├── MediaFetchError*  the bytes could not be fetched
    │   ├── ScratchFull       the temporary folder has no room for the file
    │   ├── MediaChanged      the object was replaced between listing and reading
    │   ├── DecoderCrashed*   the decoding process died
    │   └── DecoderTimeout*   the decoding process made no progress and was ended
    ├── StageError            a stage of ingestion failed for a reason that is not the video's
    ├── WorkerLost*           the process that was indexing a video died
    ├── StorageError          stored rows or KV that cannot be read, or a write that failed
    │   └── StorageFull       the archive's disk has no room for what was to be written
    └── EvidenceUnavailable   a clip, frame or thumbnail that is not there any more

``*`` may succeed when tried again (``retryable``). Every class survives pickling between processes.
"""

from __future__ import annotations

from typing import Any, ClassVar


class ArchiveError(Exception):
    """Base of everything that the SDK raises on purpose."""

    retryable: ClassVar[bool] = False
    exit_code: ClassVar[int] = 1

    def __init__(self, message: str) -> None:
        super().__init__(message)
        self.message = message

    def __str__(self) -> str:
        return self.message


class UsageError(ArchiveError):
    """The request itself is wrong; the message says what to change."""

    exit_code = 2


class ConfigError(ArchiveError):
    """A setting or the archive's address cannot work as given."""

    exit_code = 2


class SourceUnavailable(ArchiveError):
    """A source of footage cannot be listed: found before any work starts."""

    exit_code = 2

    def __init__(self, source: str, cause: str) -> None:
        super().__init__(f"cannot read source {source!r}: {cause}")
        self.source = source
        self.cause = cause

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.source, self.cause)


class ArchiveBusy(ArchiveError):
    """Another process is writing to the archive."""

    exit_code = 2


class ModelMismatch(ArchiveError):
    """The archive was made with another model, setting or schema; nothing stored may be reused."""

    exit_code = 7


class MediaError(ArchiveError):
    """One video failed. ``uri`` names it, ``cause`` says why in one sentence."""

    def __init__(self, uri: str, cause: str) -> None:
        super().__init__(f"{uri!r}: {cause}")
        self.uri = uri
        self.cause = cause

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.uri, self.cause)


class UnreadableMedia(MediaError):
    """Not a video that can be decoded: empty, cut before its index, no video stream, another kind of file."""


class MediaFetchError(MediaError):
    """The bytes could not be fetched from where they lie."""

    retryable = True


class ScratchFull(MediaError):
    """The temporary folder (``TMPDIR``) has no room for this file; the run goes on, the next one tries it again."""


class MediaChanged(MediaError):
    """The object was replaced or removed after it was listed; the next run sees the new version."""


class DecoderCrashed(MediaError):
    """The decoding process died while it read this file."""

    retryable = True


class DecoderTimeout(MediaError):
    """The decoding process stopped making progress on this file, or passed its time budget, and was ended."""

    retryable = True


class StageError(ArchiveError):
    """A stage failed for a reason that does not lie in the video (model, storage, settings)."""

    def __init__(self, stage: str, cause: str) -> None:
        super().__init__(f"stage {stage}: {cause}")
        self.stage = stage
        self.cause = cause

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.stage, self.cause)


class WorkerLost(ArchiveError):
    """The worker process that was indexing a video died or stopped answering."""

    retryable = True


class EvidenceUnavailable(ArchiveError):
    """A clip or frame was asked for whose source video cannot be read any more."""


class StorageError(ArchiveError):
    """Stored rows or KV cannot be read, or a write failed; the message names the place."""


class StorageFull(StorageError):
    """The archive's disk is full. What was committed stays and can be asked; the segment at hand is not committed."""

    def __init__(self, where: str, cause: str) -> None:
        super().__init__(
            f"cannot write to the archive at {where!r}: {cause}; what is committed stays as it is. Make room "
            "(in an archive's folder: vxl kv evict, vxl delete) and run the same command again"
        )
        self.where = where
        self.cause = cause

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.where, self.cause)
