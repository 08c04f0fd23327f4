"""Clips are encoded once per test session, when first asked for."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from tests import clips


@pytest.fixture(scope="session")
def clip_factory(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], clips.Clip]:
    """``clip_factory("h264.mp4")`` is the clip of that name in ``clips.RECIPES``, or "cut.mp4"."""
    folder: Path = tmp_path_factory.mktemp("clips")
    made: dict[str, clips.Clip] = {}

    def get(name: str) -> clips.Clip:
        if name not in made:
            if name == "cut.mp4":
                made[name] = clips.make_cut(get("h264.mp4"), folder / name, first_shown=40)
            else:
                made[name] = clips.make(clips.RECIPES[name], folder)
        return made[name]

    return get
