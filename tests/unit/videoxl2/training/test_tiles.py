"""Tiled attention of training samples against attention under the whole mask."""

from __future__ import annotations

import itertools

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from videoxl2.attention import attend
from videoxl2.config import PrefillSettings
from videoxl2.layout import TokenLayout
from videoxl2.masked_prefill import visibility_mask
from videoxl2.training.tiles import tile_video


@settings(max_examples=60, deadline=None)
@given(
    time_lengths=st.lists(st.integers(1, 4), min_size=1, max_size=14),
    tokens=st.integers(1, 3),
    block=st.integers(1, 4),
    previous=st.integers(1, 3),
    mode=st.sampled_from(["chunked", "bounded", "plain"]),
)
def test_tiles_equal_the_whole_mask_forward_and_backward(
    time_lengths: list[int], tokens: int, block: int, previous: int, mode: str
) -> None:
    layout = TokenLayout.build((1, 2, 3), [tuple(range(length)) for length in time_lengths], tokens)
    prefill = PrefillSettings.model_validate({"block_groups": block, "previous_blocks": previous, "mode": mode})
    torch.manual_seed(len(time_lengths))
    q, k, v = (torch.randn(1, heads, layout.length, 4, dtype=torch.float64) for heads in (4, 2, 2))
    weights = torch.randn(q.shape, dtype=torch.float64)
    tiles, mask_MM = tile_video(layout, prefill), visibility_mask(layout, 0, prefill)
    found = []
    for run in (tiles.attend, lambda *qkv: attend(*qkv, mask_TM=mask_MM)):
        inputs = [x.clone().requires_grad_() for x in (q, k, v)]
        out = run(*inputs)
        (out * weights).sum().backward()
        found.append([out.detach(), *(x.grad for x in inputs)])
    for ours, expected in zip(*found, strict=True):
        torch.testing.assert_close(ours, expected, atol=1e-10, rtol=0)


@settings(max_examples=40, deadline=None)
@given(
    lengths=st.lists(st.integers(1, 5), min_size=2, max_size=4),
    block=st.integers(1, 4),
    mode=st.sampled_from(["chunked", "bounded", "plain"]),
)
def test_segments_see_the_prefix_and_themselves(lengths: list[int], block: int, mode: str) -> None:
    ends = list(itertools.accumulate(lengths, initial=0))
    layout = TokenLayout.build((1, 2, 3), [(7, 8)] * ends[-1], 2)
    prefill = PrefillSettings.model_validate({"block_groups": block, "mode": mode})
    torch.manual_seed(sum(lengths))
    q, k, v = (torch.randn(1, heads, layout.length, 4, dtype=torch.float64) for heads in (4, 2, 2))
    spans = list(itertools.pairwise(ends))
    found = tile_video(layout, prefill, spans).attend(q, k, v)
    for first, end in spans:
        token_M = torch.cat((torch.arange(3), torch.arange(*layout.token_span(first, end))))
        part = TokenLayout(layout.prefix_ids, layout.time_ids[first:end], 2)
        alone = attend(*(x[:, :, token_M] for x in (q, k, v)), mask_TM=visibility_mask(part, 0, prefill))
        torch.testing.assert_close(found[:, :, token_M], alone, atol=1e-10, rtol=0)


def test_tiles_of_a_long_video_are_a_fifth_of_all_pairs() -> None:
    layout = TokenLayout.build((1, 2, 3), [(7, 8)] * 160, 36)
    pairs = sum(tiles.allowed_ZRC.numel() for tiles in tile_video(layout, PrefillSettings()).sets)
    assert pairs < layout.length**2 / 5
