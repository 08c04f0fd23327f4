"""The published frame-sampling rule and prompt rewriting (``reference`` sections 3.1 and 3.3), for parity runs.

The archive samples by presentation time instead (that belongs to the pipeline); these functions exist so that a
published evaluation can be repeated frame for frame.
"""

from __future__ import annotations

import re

import numpy as np

_CLOCK = re.compile(r"(\d{2}):(\d{2})")


def published_frame_indices(
    total_frames: int,
    container_fps: float,
    max_frames: int,
    fps: float = 1,
    max_fps: int | None = 4,
    *,
    drop_remainder: bool = False,
    frames_per_group: int = 4,
) -> tuple[list[int], list[float]]:
    """Indices of the sampled frames and their times in seconds, rounded to one decimal.

    ``max_frames`` 0 means no limit; ``max_fps`` is the highest rate that a short video is raised to. With
    ``drop_remainder`` the frames after the last whole group are left out (the ``pure`` evaluation).
    """
    if total_frames < 1 or container_fps <= 0 or fps <= 0:
        raise ValueError("total_frames, container_fps and fps must be positive")
    step = max(1, round(container_fps / fps))
    indices = list(range(0, total_frames, step))
    if max_fps is not None:
        raised_fps = min(max_frames // len(indices), max_fps)
        if raised_fps > fps:
            indices = list(range(0, total_frames, max(1, round(container_fps / raised_fps))))
    if 0 < max_frames < len(indices):
        indices = np.linspace(0, total_frames - 1, max_frames, dtype=int).tolist()
    if drop_remainder:
        indices = indices[: len(indices) - len(indices) % frames_per_group]
    return indices, [round(index / container_fps, 1) for index in indices]


def rewrite_clock_times(prompt: str) -> str:
    """Every ``mm:ss`` as a number of seconds, as the published evaluation rewrites its prompts.

    An ``hh:mm:ss`` is damaged by this rule ("01:02:03" becomes "62 seconds:03"); that is what was published.
    """
    return _CLOCK.sub(lambda found: f"{60 * int(found[1]) + int(found[2])} seconds", prompt)
