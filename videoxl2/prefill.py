"""Chunked prefill of a video: block by block, linear in its length (``reference`` section 4).

Chunked prefill is the paper's: visual tokens of a block see the prefix, all earlier timestamps, a window of earlier
blocks and their own block; timestamp tokens see everything before them. Block after block this is exactly the published
single pass under a mask, which ``prefill_masked`` keeps as the reference. Blocks (the unit of sparse attention) and
chunks (the unit in which KV is handed out) are independent of each other.

Keys leave this module before rotation. Activations are those of one block.

Shapes: G frame groups, P visual tokens per group, D text width, L layers, S = 2 (key, value), K KV heads, M all tokens,
T tokens of a block, N query heads, Dh head width.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from videoxl2.attention import BiasReuse, attend, lower_right_mask
from videoxl2.config import PrefillSettings
from videoxl2.kv import ChunkKV, KVCache, KVLevel
from videoxl2.language import QwenDecoder
from videoxl2.layout import TokenLayout, plan_chunks
from videoxl2.rotary import RotaryTable


class PromptTokenizer(Protocol):
    """The part of a tokenizer that prefill needs."""

    def prefix_ids(self) -> list[int]: ...

    def timestamp_ids(self, t_s: float) -> list[int]: ...


class PrefillModel(Protocol):
    """The part of a model that prefill needs."""

    @property
    def language(self) -> QwenDecoder: ...

    @property
    def tokenizer(self) -> PromptTokenizer: ...


@dataclass(frozen=True, eq=False)
class PrefillResult:
    """KV of a prefilled video, keys before rotation.

    ``prefix_kv`` [L, 2, K, prefix tokens, Dh] is the prompt prefix, ``chunks`` the video in order, ``times`` the
    time of each frame group in seconds.
    """

    prefix_kv: Tensor
    chunks: list[ChunkKV]
    times: tuple[float, ...]


def prefill(
    model: PrefillModel,
    visual_GPD: Tensor,
    group_times_s: Sequence[float],
    settings: PrefillSettings | None = None,
    chunk_groups: int = 6,
) -> PrefillResult:
    """Prefill a video's visual tokens [G, P, D]; ``group_times_s`` is the time of each group's first frame.

    Raises ``ContextOverflow`` when prefix and video do not fit into the context, before any work.
    """
    layout = video_layout(model.tokenizer, group_times_s, visual_GPD)
    settings = settings or PrefillSettings()
    return prefill_layout(model.language, layout, visual_GPD, group_times_s, settings, chunk_groups)


def video_layout(tokenizer: PromptTokenizer, group_times_s: Sequence[float], visual_GPD: Tensor) -> TokenLayout:
    """The layout of a prompt with these groups behind the default prefix."""
    if len(group_times_s) != visual_GPD.shape[0]:
        raise ValueError(f"{len(group_times_s)} times for {visual_GPD.shape[0]} frame groups")
    time_ids = [tokenizer.timestamp_ids(t_s) for t_s in group_times_s]
    return TokenLayout.build(tokenizer.prefix_ids(), time_ids, visual_GPD.shape[1])


@torch.no_grad()
def prefill_layout(
    decoder: QwenDecoder,
    layout: TokenLayout,
    visual_GPD: Tensor,
    group_times_s: Sequence[float],
    settings: PrefillSettings,
    chunk_groups: int,
) -> PrefillResult:
    """``prefill`` for a layout that is already made, as parity runs do."""
    pieces = prefill_pieces(decoder, layout, visual_GPD, settings, chunk_groups)
    prefix = next(pieces)
    return PrefillResult(prefix.kv_LSKMDh, list(pieces), tuple(group_times_s))


@torch.no_grad()
def prefill_pieces(
    decoder: QwenDecoder, layout: TokenLayout, visual_GPD: Tensor, settings: PrefillSettings, chunk_groups: int
) -> Iterator[ChunkKV]:
    """The prefix (as a chunk of one group without visual tokens), then each chunk as soon as its tokens are done.

    A caller that moves each chunk away as it comes holds one working cache and one chunk, not the KV twice.
    """
    limit = settings.max_tokens
    cache = KVCache(decoder.spec, layout.length, limit=limit, device=decoder.device, dtype=decoder.dtype)
    pending = _PendingKeys(decoder.spec.num_layers)
    decoder.run_keys_values(
        decoder.embed(layout.prefix_ids)[None], _BlockAttention(decoder, cache, layout.visual_start, pending)
    )
    cache.advance(layout.visual_start)
    yield ChunkKV(pending.take(cache, 0, layout.visual_start), ((layout.visual_start, 0),), KVLevel.DENSE)

    blocks = plan_chunks(layout.num_groups, settings.block_groups)
    chunks = plan_chunks(layout.num_groups, chunk_groups)
    chunk_index = 0
    for block_index, (first, end) in enumerate(blocks):
        window_first = blocks[max(0, block_index - settings.previous_blocks)][0]
        stop = layout.spans[end - 1].end
        attention = _BlockAttention(decoder, cache, stop, pending)
        if settings.mode == "chunked" and window_first > 0:
            attention.limit_visual_tokens(layout, window_first, first, end)
        decoder.run_keys_values(embed_groups(decoder, layout, visual_GPD, first, end)[None], attention)
        cache.advance(stop)
        while chunk_index < len(chunks) and chunks[chunk_index][1] <= end:
            chunk = chunks[chunk_index]
            kv_LSKMDh = pending.take(cache, *layout.token_span(*chunk))
            yield ChunkKV(kv_LSKMDh, layout.group_sizes(*chunk), KVLevel.DENSE)
            chunk_index += 1


def embed_groups(decoder: QwenDecoder, layout: TokenLayout, visual_GPD: Tensor, first: int, end: int) -> Tensor:
    """Input embeddings [T, D] of the groups [first, end): each group's timestamp text, then its visual tokens."""
    pieces: list[Tensor] = []
    for group in range(first, end):
        pieces.append(decoder.embed(layout.time_ids[group]))
        pieces.append(visual_GPD[group].to(device=decoder.device, dtype=decoder.dtype))
    return torch.cat(pieces)


class _PendingKeys:
    """Keys before rotation of tokens that have been computed and not yet handed out in a chunk."""

    def __init__(self, num_layers: int) -> None:
        self._start = 0
        self._layers: list[list[Tensor]] = [[] for _ in range(num_layers)]

    def add(self, layer: int, k_KTDh: Tensor) -> None:
        self._layers[layer].append(k_KTDh)

    def take(self, cache: KVCache, start: int, stop: int) -> Tensor:
        """KV [L, 2, K, stop - start, Dh] of the oldest pending tokens, which begin at ``start``; forgets their keys."""
        assert start == self._start
        num_layers, count = len(self._layers), stop - start
        layers_KMDh = [torch.cat(blocks, dim=1) for blocks in self._layers]
        K, _, Dh = layers_KMDh[0].shape
        kv_LSKMDh = layers_KMDh[0].new_empty((num_layers, 2, K, count, Dh))
        for layer, keys_KMDh in enumerate(layers_KMDh):
            kv_LSKMDh[layer, 0] = keys_KMDh[:, :count]
            kv_LSKMDh[layer, 1] = cache.values(layer, stop)[:, start:]
            self._layers[layer] = [keys_KMDh[:, count:]]
        self._start = stop
        return kv_LSKMDh


class _BlockAttention:
    """Attention of one block: full causal, or after ``limit_visual_tokens`` the block's chunked form.

    The chunked form is two calls per layer. The first runs all rows of the block over the keys that its visual rows may
    see; these end with the block itself, so causality is the only mask. The second runs the few timestamp rows over
    everything and replaces their result.
    """

    def __init__(self, decoder: QwenDecoder, cache: KVCache, stop: int, pending: _PendingKeys) -> None:
        self._cache, self._start, self._stop, self._pending = cache, cache.length, stop, pending
        self._rotary = decoder.rotary(self._start, stop)
        self._backend, self._reuse, self._time_reuse = decoder.backend, BiasReuse(), BiasReuse()
        self._visible_M: Tensor | None = None

    def limit_visual_tokens(self, layout: TokenLayout, window_first: int, first: int, end: int) -> None:
        """Let visual tokens of the groups [first, end) see no group before ``window_first`` but its timestamp."""
        device = self._cache.device
        window_start = layout.spans[window_first].start
        earlier = [*range(layout.visual_start), *layout.time_positions(0, window_first)]
        self._visible_M = torch.tensor([*earlier, *range(window_start, self._stop)], device=device)
        self._time_T = torch.tensor(layout.time_positions(first, end), device=device)
        self._time_mask_TM = torch.arange(self._stop, device=device) <= self._time_T[:, None]
        self._time_T = self._time_T - self._start

    def keep(self, layer: int, k_BKTDh: Tensor, v_BKTDh: Tensor) -> None:
        self._pending.add(layer, k_BKTDh[0])
        self._cache.write(layer, self._start, self._rotary.rotate(k_BKTDh)[0], v_BKTDh[0])

    def attend(self, layer: int, q_BNTDh: Tensor) -> Tensor:
        q = self._rotary.rotate(q_BNTDh)
        keys, values = self._cache.keys(layer, self._stop)[None], self._cache.values(layer, self._stop)[None]
        if self._visible_M is None:
            return attend(q, keys, values, causal=True, reuse=self._reuse, backend=self._backend)
        visible_keys, visible_values = (x.index_select(2, self._visible_M) for x in (keys, values))
        out_BNTDh = attend(q, visible_keys, visible_values, causal=True, reuse=self._reuse, backend=self._backend)
        time_q = q.index_select(2, self._time_T)
        time_rows = attend(time_q, keys, values, mask_TM=self._time_mask_TM, reuse=self._time_reuse)
        return out_BNTDh.index_copy(2, self._time_T, time_rows)


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
    visual_GPD: Tensor,
    group_times_s: Sequence[float],
    settings: PrefillSettings,
    chunk_groups: int,
    suffix_ids: Sequence[int] = (),
) -> MaskedPrefill:
    """The published form: one pass over everything under an M x M mask. Quadratic memory; for tests only."""
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
    result = PrefillResult(prefix_kv, chunks, tuple(group_times_s))
    return MaskedPrefill(result, hidden_BMD[0], kv_LSKMDh[:, :, :, layout.length :])


def visibility_mask(layout: TokenLayout, num_suffix: int, settings: PrefillSettings) -> Tensor:
    """Boolean [M, M] of the published rules (section 4.1), True where row i may see column j. Reference only."""
    M = layout.length + num_suffix
    causal_MM = lower_right_mask(M, M)
    if settings.mode == "plain":
        return causal_MM
    block_M = torch.full((M,), -1)
    is_time_M = torch.zeros(M, dtype=torch.bool)
    for group, span in enumerate(layout.spans):
        block_M[span.start : span.end] = group // settings.block_groups
        is_time_M[span.start : span.time_end] = True
    is_video_M = block_M >= 0
    is_prefix_M = torch.arange(M) < layout.visual_start
    distance_MM = block_M[:, None] - block_M[None, :]
    in_window_MM = is_video_M[:, None] & is_video_M[None, :] & (distance_MM <= settings.previous_blocks)
    return causal_MM & (is_prefix_M | is_time_M | ~is_video_M[:, None] | is_time_M[:, None] | in_window_MM)


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
