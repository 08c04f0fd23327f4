"""What crashes leave behind, found and removed: only things that no row and no staged segment refers to.

Run it under the writer lease and before workers start, since a worker's unfinished file looks like a dead one's.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from indexers.container import TEMP_SUFFIX
from indexers.errors import CorruptStaging
from indexers.lease import WriterLease
from indexers.records import DELETING, KV_SUFFIX, TOKENS_SUFFIX, SegmentRow
from indexers.staging import STAGED_SUFFIX, read_staged
from indexers.store import LanceStore

logger = logging.getLogger(__name__)

KV_FOLDER = "kv"
STAGING_FOLDER = "staging"


@dataclass(frozen=True, slots=True)
class Orphan:
    """A file that nothing refers to: path relative to the archive, bytes, and why it is not needed."""

    path: str
    num_bytes: int
    reason: str


@dataclass(frozen=True, slots=True)
class SweepReport:
    """What a sweep did."""

    removed: tuple[Orphan, ...]
    partial_segments: tuple[str, ...]
    finished_deletions: tuple[str, ...]

    @property
    def num_bytes(self) -> int:
        return sum(orphan.num_bytes for orphan in self.removed)


def find_orphans(folder: str | Path, store: LanceStore) -> list[Orphan]:
    """Files under ``kv/`` and ``staging/`` that nothing refers to, and unfinished files beside them; changes nothing.

    A file of KV or of tokens is needed by the committed segment that names it and by a readable staged segment of a
    known video. Files of other kinds are not ours and are left alone.
    """
    folder = Path(folder)
    committed = {segment.segment_id: segment.file_paths for segment in store.segments_of()}
    known_videos = {video.video_id for video in store.videos() if video.state != DELETING}
    needed = {path for paths in committed.values() for path in paths}
    orphans = []
    for path in _files(folder / STAGING_FOLDER):
        reason = None
        if path.name.endswith(TEMP_SUFFIX):
            reason = "unfinished file"
        elif path.name.endswith(STAGED_SUFFIX):
            segment_id = path.name.removesuffix(STAGED_SUFFIX)
            if segment_id in committed:
                reason = "its segment is committed"
            elif segment_id.rpartition("-")[0] not in known_videos:
                reason = "its video is not known"
            else:
                reason = _note_needed_by(path, folder, needed)
        if reason is not None:
            orphans.append(_orphan(folder, path, reason))
    for path in sorted(folder.glob(f".*{TEMP_SUFFIX}")):
        if path.is_file() and not path.is_symlink():
            orphans.append(_orphan(folder, path, "unfinished file"))
    for path in _files(folder / KV_FOLDER):
        if path.name.endswith(TEMP_SUFFIX):
            orphans.append(_orphan(folder, path, "unfinished file"))
        elif path.name.endswith((KV_SUFFIX, TOKENS_SUFFIX)) and path.relative_to(folder).as_posix() not in needed:
            orphans.append(_orphan(folder, path, "no segment refers to it"))
    return orphans


def sweep(folder: str | Path, store: LanceStore, lease: WriterLease) -> SweepReport:
    """Complete interrupted deletions, drop rows of segments never committed, remove orphaned files.

    ``ValueError`` unless ``lease`` is held.
    """
    if not lease.is_held:
        raise ValueError("a sweep needs the writer lease")
    folder = Path(folder)
    deletions = [video.video_id for video in store.videos(states=[DELETING])]
    for video_id in deletions:
        store.delete_video(video_id)
    partial = store.partial_segments()
    for segment_id in partial:
        store.drop_partial_segment(segment_id)
    orphans = find_orphans(folder, store)
    for orphan in orphans:
        logger.info("sweep: removing %s (%d bytes): %s", orphan.path, orphan.num_bytes, orphan.reason)
        (folder / orphan.path).unlink(missing_ok=True)
    _remove_empty_folders(folder / KV_FOLDER)
    return SweepReport(tuple(orphans), tuple(partial), tuple(deletions))


def missing_kv(store: LanceStore) -> list[SegmentRow]:
    """Committed segments of whose files one is not there: what it held can only be made from what else there is."""
    return [
        segment
        for segment in store.segments_of()
        if not all((store.folder / path).is_file() for path in segment.file_paths)
    ]


def _note_needed_by(path: Path, folder: Path, needed: set[str]) -> str | None:
    """Why a staged segment is of no use; ``None``, and its files noted as needed, when it is."""
    try:
        paths = read_staged(path).file_paths
    except CorruptStaging:
        return "it cannot be read"
    if not all((folder / named).is_file() for named in paths):
        return "its KV file is not there"
    needed.update(paths)
    return None


def _files(folder: Path) -> Iterator[Path]:
    for parent, _, names in os.walk(folder, followlinks=False):
        for name in sorted(names):
            path = Path(parent) / name
            if path.is_file() and not path.is_symlink():
                yield path


def _orphan(folder: Path, path: Path, reason: str) -> Orphan:
    return Orphan(path.relative_to(folder).as_posix(), path.stat().st_size, reason)


def _remove_empty_folders(folder: Path) -> None:
    for parent, _, _ in os.walk(folder, topdown=False, followlinks=False):
        path = Path(parent)
        if path != folder and not any(path.iterdir()):
            path.rmdir()
