"""kill -9 of any process in the middle, then the same command again: the same tables, row for row, and no leftovers."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from indexers.fingerprint import table_fingerprint
from indexers.store import LanceStore
from indexers.sweep import find_orphans, missing_kv
from tests.clips import RECIPES, Recipe, make
from tests.vxl import call, spawn, start

OPTIONS = ("--segment-s", "10", "--json")


@pytest.fixture(scope="module")
def footage(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three videos of several segments, and a file that is no video."""
    folder = tmp_path_factory.mktemp("footage")
    recipe = Recipe("a.mp4", num_frames=300, fps=5, options={"preset": "veryfast", "crf": "28", "g": "10"})
    first = make(recipe, folder).path
    shutil.copy(first, folder / "b.mp4")
    shutil.copy(first, folder / "d.mp4")
    (folder / "c.mp4").write_text("no video")
    os.utime(folder / "c.mp4", (0, 0))
    return folder


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory, footage: Path) -> Path:
    """The archive of a run that nothing disturbed."""
    archive = tmp_path_factory.mktemp("archives") / "undisturbed"
    assert call("ingest", footage, "--archive", archive, *OPTIONS).code == 3
    return archive


def tables(archive: Path) -> dict[str, str]:
    return table_fingerprint(LanceStore.open(archive))


def check_same(archive: Path, undisturbed: Path) -> None:
    store = LanceStore.open(archive)
    assert find_orphans(archive, store) == []
    assert missing_kv(store) == []
    assert tables(archive) == tables(undisturbed)
    ours, theirs = (
        sorted(path.relative_to(folder).as_posix() for path in folder.glob("kv/**/*") if path.is_file())
        for folder in (archive, undisturbed)
    )
    assert ours == theirs
    assert not list((archive / "staging").glob("*"))


def kill_all(process: subprocess.Popen[str]) -> None:
    """SIGKILL the whole process group: nothing gets to clean up."""
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate()


def wait_for(condition: Callable[[], bool], process: subprocess.Popen[str], timeout_s: float = 60.0) -> bool:
    """Poll until the condition holds; false when the process ended first."""
    deadline = time.monotonic() + timeout_s
    while time.monotonic() < deadline:
        if condition():
            return True
        if process.poll() is not None:
            return False
        time.sleep(0.005)
    raise AssertionError("the condition never came true")


def children(pid: int, words: str) -> list[int]:
    """Direct children of a process whose command line holds ``words``."""
    found = []
    for task in Path(f"/proc/{pid}/task").glob("*/children"):
        for child in task.read_text().split():
            try:
                command = Path(f"/proc/{child}/cmdline").read_bytes().replace(b"\0", b" ").decode()
            except OSError:
                continue
            if words in command:
                found.append(int(child))
    return found


@pytest.mark.slow
@pytest.mark.parametrize(
    "moment",
    ["*.json", "kv/**/*.vxlkv", "staging/*", "tables/segments.lance/data/*", "tables/videos.lance/_versions/*"],
)
def test_killed_run_is_completed_by_the_same_command(
    tmp_path: Path, footage: Path, undisturbed: Path, moment: str
) -> None:
    """Killed as soon as a first trace of each stage of committing appears."""
    archive = tmp_path / "archive"
    process = start("ingest", footage, "--archive", archive, *OPTIONS)
    assert wait_for(lambda: any(archive.glob(moment)), process)
    kill_all(process)
    again = call("ingest", footage, "--archive", archive, *OPTIONS)
    assert again.code == 3, again.err
    check_same(archive, undisturbed)


@pytest.mark.slow
def test_killed_many_times(tmp_path: Path, footage: Path, undisturbed: Path) -> None:
    """The same archive, killed at ever later moments: progress is kept, nothing is done twice."""
    archive = tmp_path / "archive"
    for delay_s in (1.9, 2.2, 2.5, 2.8, 3.1):
        process = start("ingest", footage, "--archive", archive, *OPTIONS)
        time.sleep(delay_s)
        kill_all(process)
    assert spawn("ingest", footage, "--archive", archive, *OPTIONS).code == 3
    check_same(archive, undisturbed)


def test_killed_decoder_costs_one_attempt(tmp_path: Path, footage: Path, undisturbed: Path) -> None:
    archive = tmp_path / "archive"
    process = start("ingest", footage, "--archive", archive, *OPTIONS)
    assert wait_for(lambda: bool(children(process.pid, "decode_child")), process)
    assert wait_for(lambda: any(archive.glob("staging/*")), process)
    for pid in children(process.pid, "decode_child"):
        os.kill(pid, signal.SIGKILL)
    process.communicate(timeout=120)
    assert process.returncode == 3
    check_same(archive, undisturbed)


def test_the_decoder_dies_with_its_parent(tmp_path: Path, footage: Path) -> None:
    process = start("ingest", footage, "--archive", tmp_path / "archive", *OPTIONS)
    assert wait_for(lambda: bool(children(process.pid, "decode_child")), process)
    (child,) = children(process.pid, "decode_child")
    process.kill()
    process.communicate()
    deadline = time.monotonic() + 10
    while Path(f"/proc/{child}").exists() and time.monotonic() < deadline:
        time.sleep(0.02)
    assert not Path(f"/proc/{child}").exists()


def test_second_writer_is_refused_and_readers_go_on(tmp_path: Path, footage: Path) -> None:
    archive = tmp_path / "archive"
    first = RECIPES["h264.mp4"]
    assert call("ingest", make(first, tmp_path).path, "--archive", archive, "--segment-s", "10").code == 0
    process = start("ingest", footage, "--archive", archive, *OPTIONS)
    assert wait_for(lambda: "running" in call("status", "--archive", archive, "--json").json["states"], process)
    os.kill(process.pid, signal.SIGSTOP)
    try:
        refused = call("ingest", footage, "--archive", archive)
        assert refused.code == 2
        assert str(process.pid) in refused.error_line
        found = call("search", "x", "--archive", archive, "--json")
        assert found.code == 0
        assert found.json["coverage"]["videos"] == 1  # whole videos only: the running ones are not there yet
        waiting = {gap["uri"].rsplit("/", 1)[-1] for gap in found.json["coverage"]["not_indexed"]}
        assert waiting == {"a.mp4", "b.mp4", "c.mp4", "d.mp4"}
    finally:
        os.kill(process.pid, signal.SIGCONT)
    waited = call("ingest", footage, "--archive", archive, "--wait", "60", "--json")
    process.communicate(timeout=60)
    assert waited.code == 0
    assert waited.json["counts"]["skipped"] == 4


def test_a_dead_holder_loses_the_lease(tmp_path: Path, footage: Path, undisturbed: Path) -> None:
    archive = tmp_path / "archive"
    process = start("ingest", footage, "--archive", archive, *OPTIONS)
    assert wait_for(lambda: any(archive.glob("staging/*")), process)
    kill_all(process)
    assert call("status", "--archive", archive, "--json").json["writer"] is None


def test_queries_see_whole_videos_only(tmp_path: Path, footage: Path) -> None:
    """While a run goes on, every video that a search can see is complete."""
    archive = tmp_path / "archive"
    process = start("ingest", footage, "--archive", archive, *OPTIONS)
    seen = set()
    while process.poll() is None:
        if not (archive / "tables" / "sparse_kv.lance").is_dir():
            continue
        store = LanceStore.open(archive)
        for video in store.visible_videos():
            assert len(store.segments(video.video_id)) == video.num_segments == 6
            seen.add(video.video_id)
        time.sleep(0.05)
    process.communicate()
    assert len(LanceStore.open(archive).visible_videos()) == 3
