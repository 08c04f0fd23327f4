"""kill -9 of the ingesting writer at fifty moments: what is referenced is there and right, what is left can be swept,
and the same command ends with the archive of a run that nothing disturbed."""

from __future__ import annotations

import multiprocessing
import os
import random
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing.context import ForkServerProcess
from pathlib import Path

import pytest

from indexers.store import LanceStore
from tests.faults import made_up
from tests.faults.checks import check, check_same, check_swept, files

KILLS = int(os.environ.get("KILLS", "50"))
MOST = 0.3
"""No kill is later in a run than this share of an undisturbed one: what is done stays done, the next gets further."""


@contextmanager
def writer(folder: Path, die_at: int | None = None, report: Path | None = None) -> Iterator[ForkServerProcess]:
    """A writer at work in a process and process group of its own, ended when the block is left."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["tests.faults.made_up"])
    process = context.Process(target=made_up.run, args=(folder, die_at, report))
    process.start()
    try:
        yield process
    finally:
        kill(process)


def kill(process: ForkServerProcess) -> None:
    """SIGKILL the whole process group, as soon as it is one."""
    while process.is_alive():
        try:
            os.killpg(process.pid or 0, signal.SIGKILL)
        except ProcessLookupError:
            time.sleep(0.001)
            continue
        break
    process.join()


def kill_at_file(folder: Path, number: int, process: ForkServerProcess) -> None:
    """Kill when so many files have been seen to appear in the archive, those of the tables among them."""
    seen = before = files(folder)
    while process.is_alive() and len(seen) - len(before) < number:
        seen = seen | files(folder)
    kill(process)


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_killed_at_fifty_moments(tmp_path: Path) -> None:
    """Moments by the clock, before a file operation of the writer, and after a file is seen, all drawn at random.

    An archive is continued after each kill until a run gets to its end; then it is compared and a new one begun.
    """
    seed = int(os.environ.get("SEED") or random.SystemRandom().randrange(2**32))
    print(f"seed {seed}")  # shown when the test fails; SEED repeats it, KILLS asks for more
    moments = random.Random(seed)
    undisturbed = tmp_path / "undisturbed"
    with writer(tmp_path / "warm"):
        pass  # the fork server has started: what follows takes the time of the writer alone
    started = time.monotonic()
    with writer(undisturbed, report=tmp_path / "operations") as process:
        process.join()
        assert process.exitcode == 0
    run_s = time.monotonic() - started
    num_operations = int((tmp_path / "operations").read_text())
    num_files = len(files(undisturbed))
    check(undisturbed)
    store = LanceStore.open(undisturbed)
    assert len(store.visible_videos()) == 3
    assert {segment.tier for segment in store.segments_of()} == {"dense", "tokens"}
    folder, made, killed = tmp_path / "0", 0, 0
    while killed < KILLS:
        kind = ("clock", "operation", "file")[killed % 3]
        share = moments.uniform(0.0, MOST)
        die_at = 1 + int(share * num_operations) if kind == "operation" else None
        with writer(folder, die_at) as process:
            if kind == "operation":
                process.join()
            elif kind == "file":
                kill_at_file(folder, 1 + int(share * num_files), process)
            else:
                process.join(timeout=share * run_s)
                kill(process)
        if process.exitcode == 0:
            check_same(folder, undisturbed)
            made += 1
            folder = tmp_path / str(made)
            continue
        assert process.exitcode == -signal.SIGKILL
        killed += 1
        found = check(folder)
        print(f"kill {killed} by {kind} at {share:.2f}: {made} archives done, {len(files(folder))} files in this one")
        if found is not None and killed % 4 == 0:
            check_swept(folder)
    with writer(folder) as process:
        process.join()
        assert process.exitcode == 0
    check_same(folder, undisturbed)
