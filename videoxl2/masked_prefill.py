"""Prefill as it is published: one pass over the whole video under an M x M mask (``reference`` section 4).

The reference that chunked prefill is held to. Quadratic memory: for tests, parity and small benchmarks only.

Shapes: G frame groups, P visual tokens per group, D text width, M all tokens, T rows and C columns of the mask, B = 1,
N query heads, K KV heads, Dh head width, L layers, S = 2 (key, value).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from videoxl2.attention import BiasReuse, attend
from videoxl2.config import PrefillSettings
from videoxl2.kv import ChunkKV, KVLevel
from videoxl2.language import QwenDecoder
from videoxl2.layout import TokenLayout, plan_chunks
from videoxl2.prefill import PrefillResult, VisualTokens, embed_groups
from videoxl2.rotary import RotaryTable


@dataclass(frozen=True, eq=False)
class MaskedPrefill:
    """Result of the reference pass: the video's KV, the suffix's, and hidden states [M, D] of every token of both."""

    result: PrefillResult
    hidden_MD: Tensor
    suffix_kv_LSKMDh: Tensor


@torch.no_grad()
def prefill_masked(
    decoder: QwenDecoder,
    layout: TokenLayout,
    visual_GPD: VisualTokens,
    group_times_s: Sequence[float],
    settings: PrefillSettings,
    chunk_groups: int,
    suffix_ids: Sequence[int] = (),
) -> MaskedPrefill:
    """The published form: one pass over everything under an M x M mask."""
    video_TD = embed_groups(decoder, layout, visual_GPD, 0, layout.num_groups)
    embeds_MD = torch.cat((decoder.embed(layout.prefix_ids), video_TD, decoder.embed(tuple(suffix_ids))))
    mask_MM = visibility_mask(layout, len(suffix_ids), settings).to(decoder.device)
    attention = _MaskedAttention(decoder.rotary(0, len(embeds_MD)), mask_MM)
    hidden_BMD = decoder.run(embeds_MD[None], attention)
    kv_LSKMDh = torch.stack(attention.layers)
    chunks: list[ChunkKV] = []
    for first, end in plan_chunks(layout.num_groups, chunk_groups):
        start, stop = layout.token_span(first, end)
        chunk_kv = kv_LSKMDh[:, :, :, start:stop].contiguous()
        chunks.append(ChunkKV(chunk_kv, layout.group_sizes(first, end), KVLevel.DENSE))
    prefix_kv = kv_LSKMDh[:, :, :, : layout.visual_start].contiguous()
    result = PrefillResult(prefix_kv, chunks, tuple(group_times_s), settings)
    return MaskedPrefill(result, hidden_BMD[0], kv_LSKMDh[:, :, :, layout.length :])


def visibility_mask(layout: TokenLayout, num_suffix: int, settings: PrefillSettings) -> Tensor:
    """Boolean [M, M], True where row i may see column j, of a video and ``num_suffix`` tokens behind it."""
    tokens_M = torch.arange(layout.length + num_suffix)
    return Visibility(layout, num_suffix, settings).mask(tokens_M, tokens_M)


class Visibility:
    """Who sees whom in a video and ``num_suffix`` tokens behind it: the published rules (section 4.1) or our bounded
    ones."""

    def __init__(self, layout: TokenLayout, num_suffix: int, settings: PrefillSettings) -> None:
        self._settings = settings
        self._block_M, self._group_M = torch.full((2, layout.length + num_suffix), -1)
        self._is_time_M = torch.zeros(layout.length + num_suffix, dtype=torch.bool)
        for group, span in enumerate(layout.spans):
            self._block_M[span.start : span.end] = group // settings.block_groups
            self._group_M[span.start : span.end] = group
            self._is_time_M[span.start : span.time_end] = True
        self._num_prefix = layout.visual_start

    def mask(self, rows_T: Tensor, columns_C: Tensor) -> Tensor:
        """Boolean [T, C], True where token ``rows_T[t]`` may see token ``columns_C[c]``."""
        settings = self._settings
        causal_TC = columns_C <= rows_T[:, None]
        if settings.mode == "plain":
            return causal_TC
        block_T, block_C, is_time_C = self._block_M[rows_T], self._block_M[columns_C], self._is_time_M[columns_C]
        is_video_T = block_T >= 0
        in_window_TC = is_video_T[:, None] & (block_C >= block_T[:, None] - settings.previous_blocks) & (block_C >= 0)
        sees_all_T = ~is_video_T if settings.mode == "bounded" else ~is_video_T | self._is_time_M[rows_T]
        sees_time_TC = is_time_C.expand(causal_TC.shape)
        if settings.mode == "bounded" and settings.timestamp_groups is not None:
            window_first_T = (block_T - settings.previous_blocks).clamp(min=0) * settings.block_groups
            sees_time_TC = is_time_C & (self._group_M[columns_C] >= window_first_T[:, None] - settings.timestamp_groups)
        is_prefix_C = columns_C < self._num_prefix
        return causal_TC & (is_prefix_C | sees_time_TC | sees_all_T[:, None] | in_window_TC)


class _MaskedAttention:
    """One pass under an explicit mask; keeps keys before rotation and values of every layer."""

    def __init__(self, rotary: RotaryTable, mask_MM: Tensor) -> None:
        self._rotary, self._mask_MM, self._reuse = rotary, mask_MM, BiasReuse()
        self.layers: list[Tensor] = []

    def keep(self, layer: int, k_BKTDh: Tensor, v_BKTDh: Tensor) -> None:
        self.layers.append(torch.stack((k_BKTDh[0], v_BKTDh[0])))
        self._keys, self._values = self._rotary.rotate(k_BKTDh), v_BKTDh

    def attend(self, layer: int, q_BNTDh: Tensor) -> Tensor:
        q = self._rotary.rotate(q_BNTDh)
        return attend(q, self._keys, self._values, mask_TM=self._mask_MM, reuse=self._reuse)
