"""The published sampling rule and prompt rewriting against the recorded outputs."""

from __future__ import annotations

import json
from typing import Any

import pytest

from tests.parity.conftest import GOLDEN_FOLDER
from videoxl2.sampling import published_frame_indices, rewrite_clock_times

RECORDED = json.loads((GOLDEN_FOLDER / "sampling.json").read_text())


def abbreviated(values: list[Any], recorded: list[Any]) -> list[Any]:
    """Long lists were recorded as their first and last 24 entries."""
    return [*values[:24], "...", *values[-24:]] if "..." in recorded else values


@pytest.mark.parametrize("variant", ["pure", "w_chunk"])
@pytest.mark.parametrize("case", RECORDED["cases"], ids=lambda c: f"{c['total_frames']}@{c['video_fps']}")
def test_published_rule(case: dict[str, Any], variant: str) -> None:
    indices, times = published_frame_indices(
        case["total_frames"],
        case["video_fps"],
        case["max_frames_num"],
        case["fps"],
        case["max_fps"],
        drop_remainder=variant == "pure",
    )
    recorded = case[variant]
    assert len(indices) == len(times) == recorded["n"]
    assert abbreviated(indices, recorded["frame_idx"]) == recorded["frame_idx"]
    assert abbreviated(times, recorded["timestamps"]) == recorded["timestamps"]


@pytest.mark.parametrize(("prompt", "rewritten"), RECORDED["prompt_time_rewrite"])
def test_clock_times(prompt: str, rewritten: str) -> None:
    assert rewrite_clock_times(prompt) == rewritten


@pytest.mark.parametrize("arguments", [(0, 25.0, 8), (10, 0.0, 8)])
def test_impossible_videos_are_refused(arguments: tuple[int, float, int]) -> None:
    with pytest.raises(ValueError, match="must be positive"):
        published_frame_indices(*arguments)
