"""Both runners: the same stages, the same tables, and workers that die cost an attempt, not the run."""

from __future__ import annotations

import os
import shutil
import signal
import time
from pathlib import Path

import pytest

from indexers.fingerprint import table_fingerprint
from indexers.store import LanceStore
from pipeline.config import RunnerSettings
from pipeline.errors import ConfigError
from pipeline.runner import actor_resources
from tests.clips import Recipe, make
from tests.vxl import spawn, start

OPTIONS = ("--segment-s", "10", "--json")


@pytest.fixture(scope="module")
def footage(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("footage")
    recipe = Recipe("a.mp4", num_frames=200, fps=5, options={"preset": "veryfast", "crf": "28", "g": "10"})
    first = make(recipe, folder).path
    for name in ("b.mp4", "c.mp4"):
        shutil.copy(first, folder / name)
    (folder / "bad.mp4").write_text("no video")
    return folder


@pytest.fixture(scope="module")
def one_thread(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Settings that make results independent of the number of cores."""
    path = tmp_path_factory.mktemp("settings") / "vxl.toml"
    path.write_text("[runner]\ntorch_threads = 1\nnum_cpus = 0.5\n")
    return path


@pytest.fixture(scope="module")
def local(tmp_path_factory: pytest.TempPathFactory, footage: Path, one_thread: Path) -> Path:
    archive = tmp_path_factory.mktemp("archives") / "local"
    assert spawn("ingest", footage, "--archive", archive, *OPTIONS, "--config", one_thread).code == 3
    return archive


@pytest.mark.ray
@pytest.mark.slow
@pytest.mark.xdist_group("ray")
def test_ray_gives_the_same_tables(tmp_path: Path, footage: Path, local: Path, one_thread: Path) -> None:
    archive = tmp_path / "ray"
    ray = ("--runner", "ray", "--workers", "2", "--config", one_thread)
    done = spawn("ingest", footage, "--archive", archive, *OPTIONS, *ray)
    assert done.code == 3, done.err
    assert done.json["counts"] == {"indexed": 3, "failed": 1, "skipped": 0, "quarantined": 0}
    assert table_fingerprint(LanceStore.open(archive)) == table_fingerprint(LanceStore.open(local))
    again = spawn("ingest", footage, "--archive", archive, *OPTIONS, *ray)
    assert again.json["counts"]["skipped"] == 4
    assert again.json["wall_s"] < 3  # no actor was started for nothing


@pytest.mark.ray
@pytest.mark.slow
@pytest.mark.xdist_group("ray")
def test_a_killed_actor_costs_one_attempt(tmp_path: Path, footage: Path, local: Path, one_thread: Path) -> None:
    archive = tmp_path / "ray"
    process = start(
        *("ingest", footage, "--archive", archive, *OPTIONS, "--runner", "ray", "--workers", "1"),
        *("--config", one_thread),
    )
    deadline = time.monotonic() + 90
    while not any(archive.glob("kv/*/*/*.vxlkv")):
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.01)
    killed = kill_actors(process.pid)
    out, err = process.communicate(timeout=120)
    assert killed
    assert process.returncode == 3, err
    assert table_fingerprint(LanceStore.open(archive)) == table_fingerprint(LanceStore.open(local)), out


def kill_actors(driver: int) -> list[int]:
    """SIGKILL every Ray worker of this driver's cluster that runs our stages; their process ids."""
    processes = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                name = (entry / "cmdline").read_bytes()
                parent = int((entry / "stat").read_text().rpartition(")")[2].split()[1])
            except OSError:
                continue
            processes[int(entry.name)] = (parent, name)

    def descends(pid: int) -> bool:
        while pid in processes and pid != driver:
            pid = processes[pid][0]
        return pid == driver

    killed = [pid for pid, (_, name) in processes.items() if name.startswith(b"ray::_RayWorker") and descends(pid)]
    for pid in killed:
        os.kill(pid, signal.SIGKILL)
    return killed


class TestResources:
    """Requests are checked before they are made: an impossible one would wait for ever."""

    def test_cpu_actors_without_gpu(self) -> None:
        options = actor_resources(RunnerSettings(kind="ray", workers=2), {"CPU": 2.0})
        assert (options["num_cpus"], options["num_gpus"]) == (1.0, 0.0)
        assert (options["max_restarts"], options["max_task_retries"]) == (-1, 0)

    def test_one_gpu_per_actor_where_there_are_any(self) -> None:
        cluster = {"CPU": 16.0, "GPU": 2.0, "accelerator_type:A100": 1.0}
        options = actor_resources(RunnerSettings(kind="ray", workers=2, accelerator_type="A100"), cluster)
        assert (options["num_gpus"], options["accelerator_type"]) == (1.0, "A100")

    @pytest.mark.parametrize(
        ("settings", "words"),
        [
            ({"workers": 3}, "3 CPU"),
            ({"workers": 3, "num_cpus": 0.1, "num_gpus": 1.0}, "3 GPU"),
            ({"workers": 1, "accelerator_type": "H100"}, "no 'H100'"),
            ({"workers": 1, "accelerator_type": "A100", "num_gpus": 0.0}, "num_gpus"),
        ],
    )
    def test_impossible_requests_name_what_is_missing(self, settings: dict[str, object], words: str) -> None:
        cluster = {"CPU": 2.0, "GPU": 2.0, "accelerator_type:A100": 1.0}
        with pytest.raises(ConfigError, match=words):
            actor_resources(RunnerSettings(kind="ray", **settings), cluster)  # type: ignore[arg-type]


@pytest.mark.ray
@pytest.mark.slow
@pytest.mark.xdist_group("ray")
def test_an_impossible_request_is_refused_before_any_work(tmp_path: Path, footage: Path) -> None:
    done = spawn("ingest", footage, "--archive", tmp_path / "a", "--runner", "ray", "--workers", "64")
    assert done.code == 2
    assert "64 CPU" in done.err
    assert len(done.err.strip().splitlines()) == 1
