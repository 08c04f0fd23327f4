"""Workers end with the process that started them, even where that is killed and can tell nobody."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from videoxl2.processes import process_pool

ROOT = Path(__file__).parents[3]
PARENT = """
import os, time
from pathlib import Path
from videoxl2.processes import process_pool
from tests.unit.videoxl2.test_processes import note_and_sleep

if __name__ == "__main__":
    with process_pool(2) as pool:
        list(pool.map(note_and_sleep, [{folder!r}] * 6))
"""


def note_and_sleep(folder: str) -> None:
    Path(folder, str(os.getpid())).touch()
    time.sleep(60.0)


def is_alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rsplit(")", 1)[1].split()[0] != "Z"
    except OSError:
        return False


def test_work_is_shared() -> None:
    with process_pool(2) as pool:
        assert list(pool.map(abs, [-1, 2, -3])) == [1, 2, 3]


@pytest.mark.skipif(sys.platform != "linux", reason="the kernel's part of it is Linux's")
def test_workers_of_a_killed_process_end(tmp_path: Path) -> None:
    script = tmp_path / "parent.py"
    script.write_text(PARENT.format(folder=str(tmp_path)), encoding="utf-8")
    parent = subprocess.Popen([sys.executable, str(script)], env={**os.environ, "PYTHONPATH": str(ROOT)})
    try:
        deadline = time.monotonic() + 60
        while len(workers := [int(path.name) for path in tmp_path.iterdir() if path.name.isdigit()]) < 2:
            assert time.monotonic() < deadline and parent.poll() is None
            time.sleep(0.05)
        assert all(map(is_alive, workers))
    finally:
        parent.send_signal(signal.SIGKILL)
        parent.wait()
    deadline = time.monotonic() + 20
    while any(map(is_alive, workers)):
        assert time.monotonic() < deadline, "a worker outlives its parent"
        time.sleep(0.05)
