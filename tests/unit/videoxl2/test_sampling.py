"""The published frame choice and prompt rewriting: each rule of the specification by itself, oddities included."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from videoxl2.sampling import published_frame_indices, rewrite_clock_times


def test_one_frame_per_second_where_the_budget_allows_no_more() -> None:
    indices, times = published_frame_indices(1000, 25.0, max_frames=50)
    assert indices == list(range(0, 1000, 25)) and times == [float(second) for second in range(40)]


def test_short_videos_are_sampled_at_a_higher_rate() -> None:
    """The raised rate is a whole number, at most 4, and its step is rounded: 25 / 4 gives every sixth frame."""
    assert published_frame_indices(250, 25.0, max_frames=400)[0] == list(range(0, 250, 6))
    assert published_frame_indices(250, 25.0, max_frames=29)[0] == list(range(0, 250, 12))
    assert published_frame_indices(250, 25.0, max_frames=19)[0] == list(range(0, 250, 25))
    assert published_frame_indices(250, 25.0, max_frames=400, max_fps=None)[0] == list(range(0, 250, 25))


def test_long_videos_are_spread_over_the_budget() -> None:
    indices, times = published_frame_indices(1001, 10.0, max_frames=5)
    assert indices == [0, 250, 500, 750, 1000] and times == [0.0, 25.0, 50.0, 75.0, 100.0]
    assert published_frame_indices(1002, 10.0, max_frames=4)[0] == [0, 333, 667, 1001], "cut off, not rounded"


def test_rounding_is_to_even_and_times_have_one_decimal() -> None:
    assert published_frame_indices(10, 2.5, max_frames=0)[0] == [0, 2, 4, 6, 8]
    assert published_frame_indices(60, 29.97, max_frames=0)[1] == [0.0, 1.0]


def test_the_rest_of_a_group_is_kept_unless_asked() -> None:
    assert len(published_frame_indices(70, 10.0, max_frames=0)[0]) == 7
    assert len(published_frame_indices(70, 10.0, max_frames=0, drop_remainder=True)[0]) == 4


@given(
    total=st.integers(1, 5000),
    container_fps=st.floats(1, 120),
    max_frames=st.integers(0, 300),
    fps=st.sampled_from([0.5, 1, 2]),
    max_fps=st.none() | st.integers(1, 4),
)
def test_indices_are_frames_of_the_video_within_the_budget(
    total: int, container_fps: float, max_frames: int, fps: float, max_fps: int | None
) -> None:
    indices, times = published_frame_indices(total, container_fps, max_frames, fps, max_fps)
    assert indices[0] == 0 and indices == sorted(set(indices)) and indices[-1] < total
    assert max_frames == 0 or len(indices) <= max_frames
    assert times == [round(index / container_fps, 1) for index in indices]


@pytest.mark.parametrize(("total", "container_fps", "fps"), [(0, 25.0, 1), (10, 0.0, 1), (10, 25.0, 0)])
def test_what_the_published_code_swallows_is_refused(total: int, container_fps: float, fps: float) -> None:
    with pytest.raises(ValueError, match="positive"):
        published_frame_indices(total, container_fps, 10, fps)


@pytest.mark.parametrize(
    ("prompt", "rewritten"),
    [
        ("What happens at 01:30?", "What happens at 90 seconds?"),
        ("(A) 00:05 (B) 10:00", "(A) 5 seconds (B) 600 seconds"),
        ("at 01:02:03", "at 62 seconds:03"),
        ("at 1:30 or 5:5", "at 1:30 or 5:5"),
    ],
)
def test_clock_times_in_prompts(prompt: str, rewritten: str) -> None:
    assert rewrite_clock_times(prompt) == rewritten
