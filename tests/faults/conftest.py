"""A small disk that a test can fill: a tmpfs in a mount namespace of its own, seen by the processes started there."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.vxl import Done, environment

_MOUNT = 'mount -t tmpfs -o size="$2" tmpfs "$1" && echo ready && exec cat'


@dataclass(frozen=True)
class SmallDisk:
    """``folder`` is the disk for whatever ``run`` starts, and an empty folder for everybody else."""

    folder: Path
    holder: int

    def run(self, *command: str | Path, env: Mapping[str, str] | None = None) -> Done:
        """Run a command that sees the disk, to its end."""
        inside = ["nsenter", "-t", str(self.holder), "-U", "-m", "--preserve-credentials"]
        done = subprocess.run(
            [*inside, *map(str, command)], env=environment(env), capture_output=True, text=True, timeout=900
        )
        return Done(done.returncode, done.stdout, done.stderr)

    def vxl(self, *arguments: str | Path, env: Mapping[str, str] | None = None) -> Done:
        """Run ``vxl`` there."""
        return self.run(sys.executable, "-m", "jobs.cli", *arguments, env=env)

    def python(self, code: str, *arguments: str | Path) -> Done:
        """Run a program there."""
        return self.run(sys.executable, "-c", code, *arguments)

    def fill(self, free: int) -> None:
        """Leave so many bytes free, in whole pages; a former ballast goes first."""
        done = self.python(
            "import os, shutil, sys\n"
            "from pathlib import Path\n"
            "folder, free = Path(sys.argv[1]), int(sys.argv[2])\n"
            "(folder / 'ballast').unlink(missing_ok=True)\n"
            "with (folder / 'ballast').open('wb') as file:\n"
            "    os.posix_fallocate(file.fileno(), 0, shutil.disk_usage(folder).free - free)\n",
            *(self.folder, str(free)),
        )
        assert done.code == 0, done.err

    def make_room(self) -> None:
        """Remove the ballast."""
        assert self.run("rm", self.folder / "ballast").code == 0


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[SmallDisk]:
    """A disk of 64 MB; skipped where this user may not mount one in a namespace."""
    folder = tmp_path / "disk"
    folder.mkdir()
    try:
        holder = subprocess.Popen(
            ["unshare", "-U", "-r", "-m", "sh", "-c", _MOUNT, "sh", str(folder), "64m"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
    except FileNotFoundError:
        pytest.skip("there is no unshare on this machine")
    assert holder.stdout is not None
    if holder.stdout.readline() != "ready\n":
        _, error = holder.communicate()
        pytest.skip(f"no small disk can be mounted here: {error.strip()}")
    try:
        yield SmallDisk(folder, holder.pid)
    finally:
        holder.communicate()
