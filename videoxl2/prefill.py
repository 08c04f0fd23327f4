"""Chunked prefill of a video: block by block, linear in its length (``reference`` section 4).

Chunked prefill is the paper's: visual tokens of a block see the prefix, all earlier timestamps, a window of earlier
blocks and their own block; timestamp tokens see everything before them. Block after block this is exactly the published
single pass under a mask, which ``masked_prefill`` keeps as the reference. Blocks (the unit of sparse attention) and
chunks (the unit in which KV is handed out) are independent of each other.

The mode ``bounded`` is ours: timestamp tokens see no more than visual tokens do, so that what a token sees (and with
``timestamp_groups`` the number of keys) does not grow with the video. It is another model of the same video.

Keys leave this module before rotation. Activations are those of a few blocks, whatever the length.

Shapes: G frame groups, P visual tokens per group, D text width, L layers, S = 2 (key, value), K KV heads, M all tokens,
T tokens of a block, N query heads, Dh head width.
"""

from __future__ import annotations

import bisect
import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import torch
from torch import Tensor

from videoxl2.attention import AttentionBackend, BiasReuse, PartialAttention, attend, attend_part, attend_parts
from videoxl2.config import PrefillSettings
from videoxl2.kv import ChunkKV, KVCache, KVLevel
from videoxl2.language import QwenDecoder
from videoxl2.layout import TokenLayout, plan_chunks
from videoxl2.upload import put, put_numbers

PASS_TOKENS = 2048
"""As many whole blocks go through the layers together as reach so many tokens (four of the published model's).

It changes no result. With fewer, the timestamp rows of a model with small blocks are too few for fast matrix products.
"""
LONGEST_PASS_TOKENS = 4096
"""A pass may take a quarter of what lies before it, up to so many tokens, which bound the activations of any length.

The timestamp rows of a pass read all keys before it, so in a long video it pays to have many of them read together.
"""


class PromptTokenizer(Protocol):
    """The part of a tokenizer that prefill needs."""

    def prefix_ids(self) -> list[int]: ...

    def timestamp_ids(self, t_s: float) -> list[int]: ...


class VisualTokens(Protocol):
    """Visual tokens [P, D] of each frame group: a tensor [G, P, D], or what reads a group when it is asked for."""

    def __getitem__(self, group: int, /) -> Tensor: ...


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
    time of each frame group in seconds, ``settings`` what it was prefilled with.
    """

    prefix_kv: Tensor
    chunks: list[ChunkKV]
    times: tuple[float, ...]
    settings: PrefillSettings = field(default_factory=PrefillSettings)


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
    visual_GPD: VisualTokens,
    group_times_s: Sequence[float],
    settings: PrefillSettings,
    chunk_groups: int,
) -> PrefillResult:
    """``prefill`` for a layout that is already made, and for visual tokens that arrive while it runs."""
    pieces = prefill_pieces(decoder, layout, visual_GPD, settings, chunk_groups)
    prefix = next(pieces)
    return PrefillResult(prefix.kv_LSKMDh, list(pieces), tuple(group_times_s), settings)


@torch.no_grad()
def prefill_batch(
    model: PrefillModel,
    segments: Sequence[tuple[Tensor, Sequence[float]]],
    settings: PrefillSettings | None = None,
    chunk_groups: int = 6,
) -> list[PrefillResult]:
    """Several segments (visual tokens [G, P, D], group times) at once, each with the result that it has alone.

    The segments advance together, pass by pass: their tokens run through the layers as one sequence and part only for
    attention. Nothing is padded, so segments of any lengths go together; every segment keeps its own cache until the
    last is done. Raises ``ContextOverflow`` for a segment that does not fit, before any work.
    """
    if not segments:
        return []
    settings = settings or PrefillSettings()
    decoder = model.language
    runs = [
        _SegmentRun(decoder, video_layout(model.tokenizer, times_s, visual_GPD), visual_GPD, settings, chunk_groups)
        for visual_GPD, times_s in segments
    ]
    _run_together(decoder, [run.prefix_pass() for run in runs])
    prefixes = [run.take_prefix() for run in runs]
    chunks: list[list[ChunkKV]] = [[] for _ in runs]
    for passes in itertools.zip_longest(*(run.video_passes() for run in runs)):
        _run_together(decoder, [step for step in passes if step is not None])
        for run, found in zip(runs, chunks, strict=True):
            found.extend(run.take_chunks())
    return [
        PrefillResult(prefix.kv_LSKMDh, found, tuple(times_s), settings)
        for prefix, found, (_, times_s) in zip(prefixes, chunks, segments, strict=True)
    ]


@torch.no_grad()
def prefill_pieces(
    decoder: QwenDecoder, layout: TokenLayout, visual_GPD: VisualTokens, settings: PrefillSettings, chunk_groups: int
) -> Iterator[ChunkKV]:
    """The prefix (as a chunk of one group without visual tokens), then each chunk as soon as its tokens are done.

    A caller that moves each chunk away as it comes holds one working cache and one chunk, not the KV twice. One that
    stops after a chunk has spent nothing on later passes, and ``visual_GPD`` was asked for no group of theirs; what it
    got is bit for bit what it would have got of the whole.
    """
    run = _SegmentRun(decoder, layout, visual_GPD, settings, chunk_groups)
    _run_together(decoder, [run.prefix_pass()])
    yield run.take_prefix()
    for step in run.video_passes():
        _run_together(decoder, [step])
        yield from run.take_chunks()


class ArrivingPrefill:
    """Prefill of a video that is still being encoded: what has come runs through the layers while the rest is made.

    Passes are those that ``prefill`` would make of the whole, so the KV is the same bit for bit. On a GPU they are
    queued and not waited for, so that vision of later frames runs beside them when it has a stream of its own
    (``overlap.VisionBeside``).
    """

    def __init__(
        self,
        model: PrefillModel,
        settings: PrefillSettings | None = None,
        chunk_groups: int = 6,
        *,
        expected_groups: int = 0,
    ) -> None:
        """``expected_groups``, where known, spares a growing cache its copies."""
        self._model, self._settings = model, settings or PrefillSettings()
        self._chunk_groups, self._expected_groups = chunk_groups, expected_groups
        self._run: _SegmentRun | None = None
        self._prefix: ChunkKV | None = None
        self._visual: list[Tensor] = []
        self._times_s: list[float] = []
        self._time_ids: list[list[int]] = []
        self._chunks: list[ChunkKV] = []

    @property
    def num_chunks(self) -> int:
        """Chunks that are complete so far."""
        return len(self._chunks)

    @torch.no_grad()
    def add(self, visual_GPD: Tensor, group_times_s: Sequence[float]) -> None:
        """Go on with frame groups [G, P, D] behind those before, and the time of each one's first frame.

        Raises ``ContextOverflow`` where prefix and video do not fit into the context any more.
        """
        if len(group_times_s) != visual_GPD.shape[0]:
            raise ValueError(f"{len(group_times_s)} times for {visual_GPD.shape[0]} frame groups")
        if not group_times_s:
            return
        self._visual.extend(visual_GPD)
        self._times_s.extend(group_times_s)
        self._time_ids += [self._model.tokenizer.timestamp_ids(t_s) for t_s in group_times_s]
        self._go_on(is_whole=False)

    @torch.no_grad()
    def finish(self) -> PrefillResult:
        """The KV of the whole, when all groups have been added. Raises ``ValueError`` where there was none."""
        if not self._visual:
            raise ValueError("a video of no frame group has no KV")
        self._go_on(is_whole=True)
        assert self._prefix is not None
        return PrefillResult(self._prefix.kv_LSKMDh, self._chunks, tuple(self._times_s), self._settings)

    def _go_on(self, *, is_whole: bool) -> None:
        decoder = self._model.language
        layout = self._layout(self._time_ids)
        if self._run is None:
            missing = self._expected_groups - len(self._time_ids)
            likely = self._layout([*self._time_ids, *[self._time_ids[-1]] * missing])
            fits = likely.length <= (self._settings.max_tokens or decoder.spec.max_positions)
            self._run = _SegmentRun(
                decoder, likely if fits else layout, self._visual, self._settings, self._chunk_groups
            )
            _run_together(decoder, [self._run.prefix_pass()])
            self._prefix = self._run.take_prefix()
        self._run.extend(layout, is_whole=is_whole)
        for step in self._run.video_passes():
            _run_together(decoder, [step])
            self._chunks.extend(self._run.take_chunks())
        self._chunks.extend(self._run.take_chunks())  # the last, where its tokens ran before it was known to be

    def _layout(self, time_ids: Sequence[Sequence[int]]) -> TokenLayout:
        return TokenLayout.build(self._model.tokenizer.prefix_ids(), time_ids, self._visual[0].shape[0])


def embed_groups(decoder: QwenDecoder, layout: TokenLayout, visual_GPD: VisualTokens, first: int, end: int) -> Tensor:
    """Input embeddings [T, D] of the groups [first, end): each group's timestamp text, then its visual tokens."""
    time_ids = layout.time_ids[first:end]
    times_TD = decoder.embed(list(itertools.chain(*time_ids)))  # all of them at once: one upload
    pieces: list[Tensor] = []
    for group, time_TD in enumerate(times_TD.split([len(ids) for ids in time_ids]), start=first):
        pieces.append(time_TD)
        pieces.append(put(visual_GPD[group], decoder.device).to(decoder.dtype))
    return torch.cat(pieces)


class _SegmentRun:
    """One segment on its way through prefill: its cache, what is done and what has been handed out.

    A pass takes a few blocks through the layers together, so that their timestamp rows, which see everything, are
    attended in one call and the matrix products are larger; what a row sees does not depend on it.
    """

    def __init__(
        self,
        decoder: QwenDecoder,
        layout: TokenLayout,
        visual_GPD: VisualTokens,
        settings: PrefillSettings,
        chunk_groups: int,
    ) -> None:
        limit = settings.max_tokens
        self._decoder, self._settings, self._chunk_groups = decoder, settings, chunk_groups
        self._visual_GPD = visual_GPD
        num_kept = layout.visual_start + layout.num_time_tokens(layout.num_groups)
        self._cache = KVCache(decoder.spec, layout.length, limit=limit, device=decoder.device, dtype=decoder.dtype)
        self._summary = KVCache(decoder.spec, num_kept, limit=limit, device=decoder.device, dtype=decoder.dtype)
        self._pending = _PendingKeys(decoder.spec.num_layers)
        self._num_blocks_done = self._num_taken = 0
        self.extend(layout, is_whole=True)

    def extend(self, layout: TokenLayout, *, is_whole: bool) -> None:
        """The video goes on as far as ``layout``, which begins as the one before; ``is_whole``: and ends there.

        Of a video that goes on only whole blocks run, in the passes that they would have in the whole, and only whole
        chunks are handed out. Raises ``ContextOverflow`` where it does not fit any more.
        """
        self._cache.reserve(layout.length)
        self._summary.reserve(layout.visual_start + layout.num_time_tokens(layout.num_groups))
        self._layout, self._is_whole = layout, is_whole
        self._blocks = self._runs_of(self._settings.block_groups)
        self._chunks = self._runs_of(self._chunk_groups)

    def _runs_of(self, size: int) -> list[tuple[int, int]]:
        runs = plan_chunks(self._layout.num_groups, size)
        return runs if self._is_whole else [(first, end) for first, end in runs if end - first == size]

    def prefix_pass(self) -> _Pass:
        """The text before the video."""
        embeds_TD = self._decoder.embed(self._layout.prefix_ids)
        return _Pass(embeds_TD, self._attention(self._layout.visual_start))

    def video_passes(self) -> Iterator[_Pass]:
        """What can run of the video, a few blocks at a time; each must have run before the next is asked for."""
        for first_block, end_block in self._plan_passes():
            blocks = self._blocks[first_block:end_block]
            first, end = blocks[0][0], blocks[-1][1]
            stop = self._layout.spans[end - 1].end
            attention = self._attention(stop)
            back = end_block if self._settings.mode == "plain" else self._settings.previous_blocks
            windows = [self._blocks[max(0, index - back)][0] for index in range(first_block, end_block)]
            attention.limit(self._layout, blocks, windows, self._settings)
            yield _Pass(embed_groups(self._decoder, self._layout, self._visual_GPD, first, end), attention)
            self._num_blocks_done = end_block

    def _plan_passes(self) -> list[tuple[int, int]]:
        """Blocks [first, end) of each pass that has not run."""
        passes: list[tuple[int, int]] = []
        first, tokens = self._num_blocks_done, 0
        for index, block in enumerate(self._blocks[first:], start=first):
            start, stop = self._layout.token_span(*block)
            tokens += stop - start
            enough = max(PASS_TOKENS, min((stop - tokens) // 4, LONGEST_PASS_TOKENS))
            if tokens >= enough or (self._is_whole and index + 1 == len(self._blocks)):
                passes.append((first, index + 1))
                first, tokens = index + 1, 0
        return passes

    def _attention(self, stop: int) -> _SegmentAttention:
        return _SegmentAttention(self._decoder, self._cache, self._summary, stop, self._pending)

    def take_prefix(self) -> ChunkKV:
        """The KV of the prefix, after its pass."""
        start = self._layout.visual_start
        return ChunkKV(self._pending.take(self._cache, 0, start), ((start, 0),), KVLevel.DENSE)

    def take_chunks(self) -> Iterator[ChunkKV]:
        """The chunks that have become complete and have not been handed out."""
        while self._num_taken < len(self._chunks):
            chunk = self._chunks[self._num_taken]
            start, stop = self._layout.token_span(*chunk)
            if stop > self._cache.length:
                return
            self._num_taken += 1
            kv_LSKMDh = self._pending.take(self._cache, start, stop)
            yield ChunkKV(kv_LSKMDh, self._layout.group_sizes(*chunk), KVLevel.DENSE)


@dataclass(frozen=True, eq=False)
class _Pass:
    """Tokens of one segment that go through the layers together, and how they attend."""

    embeds_TD: Tensor
    attention: _SegmentAttention


def _run_together(decoder: QwenDecoder, passes: Sequence[_Pass]) -> None:
    """One run of the layers over the passes of several segments."""
    attention = passes[0].attention if len(passes) == 1 else _PackedAttention(passes)
    embeds_TD = passes[0].embeds_TD if len(passes) == 1 else torch.cat([step.embeds_TD for step in passes])
    decoder.run_keys_values(embeds_TD[None], attention)
    for step in passes:
        step.attention.finish()


class _PackedAttention:
    """Passes of several segments as one sequence: each attends to its own cache."""

    def __init__(self, passes: Sequence[_Pass]) -> None:
        self._parts = [step.attention for step in passes]
        self._sizes = [len(step.embeds_TD) for step in passes]

    def keep(self, layer: int, k_BKTDh: Tensor, v_BKTDh: Tensor) -> None:
        keys, values = k_BKTDh.split(self._sizes, dim=2), v_BKTDh.split(self._sizes, dim=2)
        for part, k, v in zip(self._parts, keys, values, strict=True):
            part.keep(layer, k, v)

    def attend(self, layer: int, q_BNTDh: Tensor) -> Tensor:
        queries = q_BNTDh.split(self._sizes, dim=2)
        return torch.cat([part.attend(layer, q) for part, q in zip(self._parts, queries, strict=True)], dim=2)


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
        kv_LSKMDh: Tensor | None = None
        for layer, blocks in enumerate(self._layers):
            keys_KMDh = torch.cat(blocks, dim=1) if len(blocks) > 1 else blocks[0]
            if kv_LSKMDh is None:
                kv_LSKMDh = keys_KMDh.new_empty((num_layers, 2, len(keys_KMDh), count, keys_KMDh.shape[2]))
            kv_LSKMDh[layer, 0] = keys_KMDh[:, :count]
            kv_LSKMDh[layer, 1] = cache.values(layer, stop)[:, start:]
            self._layers[layer] = [keys_KMDh[:, count:]]
        assert kv_LSKMDh is not None
        self._start = stop
        return kv_LSKMDh


class _SegmentAttention:
    """Attention of one pass: causal over everything, or after ``limit`` in the form of the chunked modes.

    Then the leading blocks, whose window begins with the video, stay causal. Every other row attends either to prefix
    and earlier timestamps, which ``summary`` keeps next to each other, and to the window, which ends with its block
    itself; or, as the timestamp rows of the exact mode do, to everything before it. No row is computed twice.
    """

    def __init__(
        self, decoder: QwenDecoder, cache: KVCache, summary: KVCache, stop: int, pending: _PendingKeys
    ) -> None:
        self._cache, self._summary, self._pending = cache, summary, pending
        self._start, self._stop = cache.length, stop
        self._rotary = decoder.rotary(self._start, stop)
        self._backend, self._reuse = decoder.backend, BiasReuse()
        self._summary_T = torch.arange(stop - self._start, device=cache.device)
        self._num_causal = stop - self._start
        self._blocks: list[_BlockRows] = []
        self._common = 0
        self._full_view_T: Tensor | None = None
        self._full_view: list[_FullViewRows] = []

    def limit(
        self,
        layout: TokenLayout,
        blocks: Sequence[tuple[int, int]],
        windows: Sequence[int],
        settings: PrefillSettings,
    ) -> None:
        """Let tokens of ``blocks`` see no group before their window's first but by its timestamp."""
        device, start, prefix = self._cache.device, self._start, layout.visual_start
        windowed = [(block, first) for block, first in zip(blocks, windows, strict=True) if first > 0]
        num_causal = len(blocks) - len(windowed)
        self._num_causal = layout.spans[blocks[num_causal - 1][1] - 1].end - start if num_causal else 0
        limited: list[list[int]] = []
        full_view: list[int] = []
        for (first, end), _ in windowed:
            times = layout.time_positions(first, end) if settings.mode == "chunked" else []
            limited.append(sorted(set(range(*layout.token_span(first, end))).difference(times)))
            full_view += times
        kept = layout.time_positions(blocks[0][0], blocks[-1][1])
        sizes = [*map(len, limited), len(full_view), len(kept)]
        *limited_T, full_view_T, kept_T = put_numbers([*itertools.chain(*limited), *full_view, *kept], device).split(
            sizes
        )
        num_rows = 0
        for ((_, end), window_first), rows_T in zip(windowed, limited_T, strict=True):
            time_first = 0
            if settings.mode == "bounded" and settings.timestamp_groups is not None:
                time_first = max(0, window_first - settings.timestamp_groups)
            window = (layout.spans[window_first].start, layout.spans[end - 1].end)
            time_span = (prefix + layout.num_time_tokens(time_first), prefix + layout.num_time_tokens(window_first))
            if not self._blocks:
                self._common = time_span[1]
            if time_first > 0:  # what the first block sees of the summary is not seen by all
                self._common = 0
            self._blocks.append(
                _BlockRows(
                    rows=(num_rows, num_rows + len(rows_T)),
                    seen=[(0, time_span[1])] if time_first == 0 else [(0, prefix), time_span],
                    window=window,
                    mask_TM=torch.arange(*window, device=device) <= rows_T[:, None],
                )
            )
            num_rows += len(rows_T)
        self._summary_T = kept_T - start
        if windowed:
            self._limited_T = torch.cat(limited_T) - start
        if full_view:
            self._full_view_T = full_view_T - start
            self._full_view = _plan_full_view(full_view, start, device)

    def keep(self, layer: int, k_BKTDh: Tensor, v_BKTDh: Tensor) -> None:
        keys, values = self._rotary.rotate(k_BKTDh)[0], v_BKTDh[0]
        self._pending.add(layer, k_BKTDh[0])
        self._cache.write(layer, self._start, keys, values)
        T = self._summary_T
        self._summary.write(layer, self._summary.length, keys.index_select(1, T), values.index_select(1, T))

    def attend(self, layer: int, q_BNTDh: Tensor) -> Tensor:
        q = self._rotary.rotate(q_BNTDh)
        every = (self._cache.keys(layer, self._stop)[None], self._cache.values(layer, self._stop)[None])
        if not self._blocks:
            return attend(q, *every, causal=True, reuse=self._reuse, backend=self._backend)
        out_BNTDh = torch.empty_like(q)
        if self._num_causal:
            free = _between(every, 0, self._start + self._num_causal)
            out_BNTDh[:, :, : self._num_causal] = attend(
                q[:, :, : self._num_causal], *free, causal=True, reuse=self._reuse, backend=self._backend
            )
        end = self._summary.length + len(self._summary_T)
        summary = (self._summary.keys(layer, end)[None], self._summary.values(layer, end)[None])
        out_BNTDh.index_copy_(2, self._limited_T, self._attend_windows(q, every, summary))
        if self._full_view_T is not None:
            queries = q.index_select(2, self._full_view_T)
            earlier = attend_part(queries, *_between(every, 0, self._start), backend=self._backend)
            found = [rows.attend(queries, every, earlier, self._backend) for rows in self._full_view]
            out_BNTDh.index_copy_(2, self._full_view_T, torch.cat(found, dim=2))
        return out_BNTDh

    def _attend_windows(self, q: Tensor, every: tuple[Tensor, Tensor], summary: tuple[Tensor, Tensor]) -> Tensor:
        """The limited rows, in order. What all of them see of the summary is attended in one call."""
        limited = q.index_select(2, self._limited_T)
        common = attend_part(limited, *_between(summary, 0, self._common), backend=self._backend)
        found = [block.attend(limited, every, summary, common, self._common, self._backend) for block in self._blocks]
        return torch.cat(found, dim=2)

    def finish(self) -> None:
        """Count the pass's tokens as held."""
        self._cache.advance(self._stop)
        self._summary.advance(self._summary.length + len(self._summary_T))


class _BlockRows:
    """The limited rows of one block, ``rows`` among those of its pass.

    They see the spans ``seen`` of the summary, and of the window's keys those that ``mask_TM`` lets them.
    """

    def __init__(
        self, rows: tuple[int, int], seen: list[tuple[int, int]], window: tuple[int, int], mask_TM: Tensor
    ) -> None:
        self._rows, self._seen, self._window = rows, seen, window
        self._mask_TM, self._reuse = mask_TM, BiasReuse()

    def attend(
        self,
        q: Tensor,
        every: tuple[Tensor, Tensor],
        summary: tuple[Tensor, Tensor],
        common: PartialAttention | None,
        num_common: int,
        backend: AttentionBackend,
    ) -> Tensor:
        """``common``, where it is given, is what the pass's rows attend to in the summary's first ``num_common``."""
        start, stop = self._rows
        seen = self._seen if common is None else [(max(first, num_common), end) for first, end in self._seen]
        return attend_parts(
            q[:, :, start:stop],
            [_between(summary, first, end) for first, end in seen if first < end],
            _between(every, *self._window),
            self._mask_TM,
            before=None if common is None else common.rows(start, stop),
            reuse=self._reuse,
            backend=backend,
        )


class _FullViewRows:
    """Timestamp rows that follow each other, ``rows`` among those of a pass, in which they see keys up to their own."""

    def __init__(self, rows: tuple[int, int], own: tuple[int, int], mask_TM: Tensor) -> None:
        self._rows, self._own, self._mask_TM, self._reuse = rows, own, mask_TM, BiasReuse()

    def attend(
        self,
        q: Tensor,
        every: tuple[Tensor, Tensor],
        earlier: PartialAttention | None,
        backend: AttentionBackend,
    ) -> Tensor:
        """``earlier`` is what all of them attend to before the pass."""
        start, stop = self._rows
        return attend_parts(
            q[:, :, start:stop],
            [],
            _between(every, *self._own),
            self._mask_TM,
            before=None if earlier is None else earlier.rows(start, stop),
            reuse=self._reuse,
            backend=backend,
        )


def _plan_full_view(positions: Sequence[int], pass_start: int, device: torch.device) -> list[_FullViewRows]:
    """The timestamp rows of a pass, which stand at ``positions``, in runs over at least ``PASS_TOKENS`` each.

    A run's masked keys end with its last row, so that a long pass does not compute what its early rows may not see.
    """
    length = positions[-1] + 1 - pass_start
    num_runs = max(1, length // PASS_TOKENS)
    found: list[_FullViewRows] = []
    first = 0
    for run in range(1, num_runs + 1):
        end = bisect.bisect_left(positions, pass_start + length * run // num_runs)
        if end > first:
            own = (pass_start, positions[end - 1] + 1)
            mask_TM = torch.arange(*own, device=device) <= put_numbers(positions[first:end], device)[:, None]
            found.append(_FullViewRows((first, end), own, mask_TM))
        first = end
    return found


def _between(kv: tuple[Tensor, Tensor], start: int, stop: int) -> tuple[Tensor, Tensor]:
    return kv[0][:, :, start:stop], kv[1][:, :, start:stop]
