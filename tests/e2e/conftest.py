"""Small footage and archives made of it, shared by the end-to-end tests that only read them."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from tests.clips import RECIPES, Recipe, make
from tests.vxl import call

KEY_PATTERN = "{camera}/%Y-%m-%d/%H%M%S.mp4"


@pytest.fixture(scope="session")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three seconds of H.264."""
    return make(RECIPES["h264.mp4"], tmp_path_factory.mktemp("clip")).path


@pytest.fixture(scope="session")
def long_clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Forty seconds of H.264 at 5 frames/s: several segments of ten seconds."""
    recipe = Recipe("long.mp4", num_frames=200, fps=5, options={"preset": "veryfast", "crf": "28", "g": "10"})
    return make(recipe, tmp_path_factory.mktemp("long")).path


@pytest.fixture(scope="session")
def cameras(tmp_path_factory: pytest.TempPathFactory, clip: Path, long_clip: Path) -> Path:
    """A folder of two cameras with wall-clock names, two of the four files with the same base name."""
    root = tmp_path_factory.mktemp("cameras")
    for key, source in {
        "gate/2026-03-01/080000.mp4": long_clip,
        "gate/2026-03-01/090000.mp4": clip,
        "yard/2026-03-01/080000.mp4": clip,
        "yard/2026-03-02/220000.mp4": long_clip,
    }.items():
        (root / key).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(source, root / key)
    return root


@pytest.fixture(scope="session")
def indexed(tmp_path_factory: pytest.TempPathFactory, cameras: Path) -> Path:
    """An archive of ``cameras`` with segments of ten seconds. Read only."""
    archive = tmp_path_factory.mktemp("archives") / "indexed"
    done = call(
        *("ingest", cameras, "--archive", archive, "--json", "--segment-s", "10"),
        *("--key-pattern", KEY_PATTERN, "--time-zone", "Europe/Berlin"),
    )
    assert done.code == 0, done.err
    assert done.json["counts"] == {"indexed": 4, "failed": 0, "skipped": 0, "quarantined": 0}
    return archive
