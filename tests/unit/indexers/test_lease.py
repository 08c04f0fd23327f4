"""The writer lease between threads, processes, and dead processes."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from indexers.errors import ArchiveLocked, StoreUnavailable
from indexers.lease import LOCK_NAME, WriterLease, is_lease_held, lease_holder

HOLDER = """
import sys, time
from indexers.lease import WriterLease
lease = WriterLease(sys.argv[1]).acquire()
print("held", flush=True)
sys.stdin.readline()
"""


@contextmanager
def holding_process(folder: Path) -> Iterator[subprocess.Popen[str]]:
    command = [sys.executable, "-c", HOLDER, str(folder)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "held\n"
        try:
            yield process
        finally:
            process.kill()


def test_a_second_process_is_told_who_holds_the_lease(tmp_path: Path) -> None:
    with holding_process(tmp_path) as process:
        with pytest.raises(ArchiveLocked, match=f"process {process.pid} on ") as caught:
            WriterLease(tmp_path).acquire()
        assert caught.value.holder == lease_holder(tmp_path)
        assert str(tmp_path) in str(caught.value)


def test_a_killed_holder_frees_the_lease(tmp_path: Path) -> None:
    with holding_process(tmp_path) as process:
        process.send_signal(signal.SIGKILL)
        process.wait()
        with WriterLease(tmp_path) as lease:
            assert lease.is_held
            assert f"process {os.getpid()} " in (lease_holder(tmp_path) or "")


def test_waiting_lasts_until_the_holder_ends(tmp_path: Path) -> None:
    with holding_process(tmp_path) as process:
        timer = threading.Timer(0.3, process.kill)
        timer.start()
        WriterLease(tmp_path).acquire(wait_s=20).release()
        timer.join()


def test_waiting_ends_in_time(tmp_path: Path) -> None:
    with WriterLease(tmp_path):
        started = time.monotonic()
        with pytest.raises(ArchiveLocked):
            WriterLease(tmp_path).acquire(wait_s=0.2)
        assert 0.2 <= time.monotonic() - started < 5


def test_threads_of_one_process_exclude_each_other(tmp_path: Path) -> None:
    inside: list[int] = []
    most: list[int] = []

    def work(number: int) -> None:
        with WriterLease(tmp_path, wait_s=30):
            inside.append(number)
            most.append(len(inside))
            time.sleep(0.01)
            inside.remove(number)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert most == [1] * 6


def test_a_forked_child_does_not_keep_the_lease(tmp_path: Path) -> None:
    """A child that outlives the holder shared the lock, and no one could write until it ended."""
    script = """
import os, sys, time
from indexers.lease import WriterLease
lease = WriterLease(sys.argv[1]).acquire()
child = os.fork()
if child == 0:
    os.close(1)
    os.close(2)
    time.sleep(60)
    os._exit(0)
print(child, flush=True)
os._exit(0)
"""
    done = subprocess.run([sys.executable, "-c", script, str(tmp_path)], capture_output=True, text=True, check=True)
    child = int(done.stdout)
    try:
        os.kill(child, 0)
        WriterLease(tmp_path).acquire(wait_s=5).release()
    finally:
        os.kill(child, signal.SIGKILL)


def test_release_is_repeatable_and_empties_the_description(tmp_path: Path) -> None:
    lease = WriterLease(tmp_path).acquire()
    with pytest.raises(ValueError, match="held already"):
        lease.acquire()
    lease.release()
    lease.release()
    assert not lease.is_held
    assert lease_holder(tmp_path) is None
    with lease, pytest.raises(ArchiveLocked):
        WriterLease(tmp_path).acquire()


@pytest.mark.parametrize("text", ["", "not json", "[1]", "\xff"])
def test_an_unreadable_description_does_not_matter(tmp_path: Path, text: str) -> None:
    (tmp_path / LOCK_NAME).write_text(text, encoding="latin-1")
    assert lease_holder(tmp_path) is None
    with WriterLease(tmp_path):
        pass


def test_a_folder_that_is_not_there_is_unavailable(tmp_path: Path) -> None:
    with pytest.raises(StoreUnavailable):
        WriterLease(tmp_path / "absent").acquire()


def test_asking_does_not_take_the_lease(tmp_path: Path) -> None:
    assert not is_lease_held(tmp_path)
    with WriterLease(tmp_path):
        assert is_lease_held(tmp_path)
    assert not is_lease_held(tmp_path)
    before = (tmp_path / "writer.lock").stat().st_mtime_ns
    assert not is_lease_held(tmp_path)
    assert (tmp_path / "writer.lock").stat().st_mtime_ns == before
