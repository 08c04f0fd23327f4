"""Tiny data sets in the published forms, with videos of three seconds that are rendered once."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.clips import RECIPES, make


@pytest.fixture(scope="session")
def three_seconds(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Ninety numbered frames at 30 per second."""
    return make(RECIPES["h264.mp4"], tmp_path_factory.mktemp("benchmark-clip")).path


@pytest.fixture
def put(tmp_path: Path, three_seconds: Path) -> Callable[..., Path]:
    """Write a file below the data folder: text as it is, other content as JSON, nothing as the video."""

    def write(name: str, content: Any = None) -> Path:
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if content is None:
            shutil.copy(three_seconds, path)
        else:
            path.write_text(content if isinstance(content, str) else json.dumps(content), encoding="utf-8")
        return path

    return write
