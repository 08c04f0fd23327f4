"""Fills a small disk up to many different points while made-up footage is ingested: run inside the disk's namespace.

python -m tests.faults.full_disk DISK UNDISTURBED [FREE_BYTES ...]
"""

from __future__ import annotations

import os
import shutil
import sys
from pathlib import Path

from indexers.store import LanceStore
from pipeline import ArchiveError
from pipeline.archive import translated
from pipeline.errors import StorageFull
from tests.faults import made_up
from tests.faults.checks import check, check_same, check_swept, files


def fill(ballast: Path, free: int) -> None:
    """Leave so many bytes free."""
    with ballast.open("wb") as file:
        os.posix_fallocate(file.fileno(), 0, max(4096, shutil.disk_usage(ballast.parent).free - free))


def run(disk: Path, undisturbed: Path, free: int) -> str:
    """One archive: a run that finds the disk full, what it leaves, and the run after room was made."""
    archive, ballast = disk / "archive", disk / "ballast"
    shutil.rmtree(archive, ignore_errors=True)
    listed = made_up.listing(made_up.FIRST_DAY)
    made_up.ingest(archive, listed[:1], made_up.settings(cap=None))
    committed = {path for path in files(archive) if path.endswith(".vxlkv")}
    fill(ballast, free)
    try:
        translated(made_up.ingest)(archive, listed, made_up.settings(cap=None))
        told = "it fitted"
    except StorageFull as exc:
        assert "the disk is full" in exc.message and "Make room" in exc.message
        told = exc.message
    except ArchiveError as exc:
        raise AssertionError(f"{free} bytes free: {type(exc).__name__}: {exc}") from exc
    check(archive)
    assert listed[0].video_id in {row.video_id for row in LanceStore.open(archive).visible_videos()}
    assert committed <= files(archive)
    ballast.unlink()
    check_swept(archive)
    made_up.ingest(archive, listed, made_up.settings(cap=None))
    check(archive)
    check_same(archive, undisturbed)
    return told


if __name__ == "__main__":
    disk, undisturbed = map(Path, sys.argv[1:3])
    made_up.ingest(undisturbed, made_up.listing(made_up.FIRST_DAY), made_up.settings(cap=None))
    for free in map(int, sys.argv[3:]):
        print(free, run(disk, undisturbed, free), flush=True)
