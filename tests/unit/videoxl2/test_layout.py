"""Spans are built from the parts of a prompt."""

from __future__ import annotations

import pytest

from videoxl2.layout import GroupSpan, TokenLayout, plan_chunks


def test_spans_follow_each_other() -> None:
    layout = TokenLayout.build([1, 2], [[5], [5, 6, 7]], 4)
    assert layout.spans == (GroupSpan(2, 3, 7), GroupSpan(7, 10, 14))
    assert (layout.visual_start, layout.length, layout.num_groups) == (2, 14, 2)
    assert layout.token_span(0, 2) == (2, 14) and layout.token_span(1, 2) == (7, 14)
    assert layout.group_sizes(0, 2) == ((1, 4), (3, 4))
    assert layout.time_positions(0, 2) == [2, 7, 8, 9]


def test_a_prompt_without_video() -> None:
    layout = TokenLayout.build([1, 2, 3], [], 4)
    assert (layout.length, layout.num_groups) == (3, 0)


def test_impossible_layouts_are_refused() -> None:
    with pytest.raises(ValueError, match="timestamp"):
        TokenLayout.build([1], [[]], 4)
    with pytest.raises(ValueError, match="before the video"):
        TokenLayout.build([], [[1]], 4)
    with pytest.raises(ValueError, match="chunk_groups"):
        plan_chunks(4, 0)
