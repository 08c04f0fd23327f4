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

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import torch
from torch import Tensor

from videoxl2.config import PrefillSettings
from videoxl2.kv import ChunkKV, KVCache, KVLevel
from videoxl2.language import QwenDecoder
from videoxl2.layout import TokenLayout, plan_chunks
from videoxl2.prefill_attention import PendingKeys, SegmentAttention
from videoxl2.upload import put

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
        self._begin()

    def _begin(self) -> None:
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
        """The KV of the whole, when all groups have been added. Raises ``ValueError`` where there was none.

        The working cache and the tokens are let go; what is added afterwards is another video.
        """
        if not self._visual:
            raise ValueError("a video of no frame group has no KV")
        self._go_on(is_whole=True)
        assert self._prefix is not None
        result = PrefillResult(self._prefix.kv_LSKMDh, self._chunks, tuple(self._times_s), self._settings)
        self._begin()
        return result

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
        self._pending = PendingKeys(decoder.spec.num_layers)
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
            attention.limit(self._layout, blocks, windows, self._settings, PASS_TOKENS)
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

    def _attention(self, stop: int) -> SegmentAttention:
        return SegmentAttention(self._decoder, self._cache, self._summary, stop, self._pending)

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
    attention: SegmentAttention


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
