"""What crashes leave behind, found and removed: only things that no row and no staged segment refers to.

Run it under the writer lease and before workers start, since a worker's unfinished file looks like a dead one's.
"""

from __future__ import annotations

import logging
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import PurePosixPath

from indexers.container import TEMP_SUFFIX
from indexers.errors import CorruptStaging
from indexers.folder import Folder, FoundFile, Place, as_folder, reached
from indexers.lease import WriterLease
from indexers.records import DELETING, KV_SUFFIX, TOKENS_SUFFIX, SegmentRow
from indexers.room import ROOM_NAME
from indexers.staging import STAGED_SUFFIX, read_staged
from indexers.store import LanceStore

logger = logging.getLogger(__name__)

KV_FOLDER = "kv"
STAGING_FOLDER = "staging"


@dataclass(frozen=True, slots=True)
class Orphan:
    """A file that nothing refers to: path relative to the archive, bytes, and why it is not needed.

    ``upload`` is what S3 calls an upload that was never completed.
    """

    path: str
    num_bytes: int
    reason: str
    upload: str | None = None


@dataclass(frozen=True, slots=True)
class SweepReport:
    """What a sweep did."""

    removed: tuple[Orphan, ...]
    partial_segments: tuple[str, ...]
    finished_deletions: tuple[str, ...]

    @property
    def num_bytes(self) -> int:
        return sum(orphan.num_bytes for orphan in self.removed)


def find_orphans(folder: Place, store: LanceStore) -> list[Orphan]:
    """Files under ``kv/`` and ``staging/`` that nothing refers to, and unfinished files beside them; changes nothing.

    A file of KV or of tokens is needed by the committed segment that names it and by a readable staged segment of a
    known video. Files of other kinds are not ours and are left alone.
    """
    archive = as_folder(folder)
    committed = {segment.segment_id: segment.file_paths for segment in store.segments_of()}
    known_videos = {video.video_id for video in store.videos() if video.state != DELETING}
    needed = {path for paths in committed.values() for path in paths}
    with reached(archive):
        found = _unneeded_staged(archive, committed.keys(), known_videos, needed)
        found += [(file, "unfinished file") for file in _unfinished_at_top(archive)]
        for file in archive.list(KV_FOLDER):
            if file.is_unfinished:
                found.append((file, "unfinished file"))
            elif file.name.endswith((KV_SUFFIX, TOKENS_SUFFIX)) and file.name not in needed:
                found.append((file, "no segment refers to it"))
    return [Orphan(file.name, file.num_bytes, reason, file.upload) for file, reason in found]


def sweep(folder: Place, store: LanceStore, lease: WriterLease) -> SweepReport:
    """Complete interrupted deletions, drop rows of segments never committed, remove orphaned files and reservations.

    ``ValueError`` unless ``lease`` is held.
    """
    if not lease.is_held:
        raise ValueError("a sweep needs the writer lease")
    lease.require()
    archive = as_folder(folder)
    deletions = [video.video_id for video in store.videos(states=[DELETING])]
    for video_id in deletions:
        store.delete_video(video_id)
    partial = store.partial_segments()
    for segment_id in partial:
        store.drop_partial_segment(segment_id)
    orphans = find_orphans(archive, store)
    for orphan in orphans:
        logger.info("sweep: removing %s (%d bytes): %s", orphan.path, orphan.num_bytes, orphan.reason)
        lease.require()
        with reached(archive):
            archive.remove(FoundFile(orphan.path, orphan.num_bytes, 0.0, orphan.upload))
    with reached(archive):
        archive.room(ROOM_NAME).forget()
        archive.remove_empty(KV_FOLDER)
    return SweepReport(tuple(orphans), tuple(partial), tuple(deletions))


def missing_kv(store: LanceStore) -> list[SegmentRow]:
    """Committed segments of whose files one is not there: what it held can only be made from what else there is."""
    with reached(store.folder):
        return [
            segment
            for segment in store.segments_of()
            if any(store.folder.size(path) is None for path in segment.file_paths)
        ]


def _unneeded_staged(
    archive: Folder, committed: Collection[str], known_videos: Collection[str], needed: set[str]
) -> list[tuple[FoundFile, str]]:
    """Staged segments of no use, and why; the files of the others are added to ``needed``."""
    found = []
    for file in archive.list(STAGING_FOLDER):
        reason = None
        if file.is_unfinished:
            reason = "unfinished file"
        elif file.name.endswith(STAGED_SUFFIX):
            segment_id = PurePosixPath(file.name).name.removesuffix(STAGED_SUFFIX)
            if segment_id in committed:
                reason = "its segment is committed"
            elif segment_id.rpartition("-")[0] not in known_videos:
                reason = "its video is not known"
            else:
                reason = _note_needed_by(archive, file.name, needed)
        if reason is not None:
            found.append((file, reason))
    return found


def _unfinished_at_top(archive: Folder) -> list[FoundFile]:
    """What killed writers of the files beside the folders left."""
    found = []
    for name in archive.entries():
        if name.startswith(".") and name.endswith(TEMP_SUFFIX) and (size := archive.size(name)) is not None:
            found.append(FoundFile(name, size, 0.0))
    return found


def _note_needed_by(archive: Folder, name: str, needed: set[str]) -> str | None:
    """Why a staged segment is of no use; ``None``, and its files noted as needed, when it is."""
    try:
        paths = read_staged(name, archive).file_paths
    except CorruptStaging:
        return "it cannot be read"
    if any(archive.size(path) is None for path in paths):
        return "one of its files is not there"
    needed.update(paths)
    return None
