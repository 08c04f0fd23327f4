"""From stored KV to an answer: choose a level per chunk, assemble one cache, generate (``reference`` section 5).

Assembly numbers positions contiguously from 0 and rotates every key once. Retrieval and the reading of files happen
elsewhere; this module is given scores and tensors.

Shapes: L layers, S = 2 (key, value), K KV heads, M tokens, Dh head width, V vocabulary.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from videoxl2.config import LanguageSpec, LevelSettings
from videoxl2.errors import ContextOverflow, KVLayoutError
from videoxl2.kv import ChunkKV, KVCache, KVLevel, PendingKV
from videoxl2.language import GapAttention
from videoxl2.prefill import PrefillModel
from videoxl2.rotary import RotaryTable
from videoxl2.token_choice import likeliest

_UNIT_GROUPS = 2
"""Frame groups in one unit of the published selection lists (8 frames)."""


@dataclass(frozen=True, slots=True)
class HeaderIds:
    """Text between reloaded pieces (camera, wall-clock start), prefilled at its place and seeing everything before."""

    ids: tuple[int, ...]


Piece = ChunkKV | PendingKV | HeaderIds
"""What a cache is assembled from."""


@dataclass(frozen=True, slots=True, eq=False)
class TokenStep:
    """One generated token, and the logits [V] it was chosen from where they were asked for."""

    token_id: int
    logits_V: Tensor | None


def select_levels(
    scores: Sequence[float],
    settings: LevelSettings,
    *,
    dense_tokens: Sequence[int] | None = None,
    sparse_tokens: Sequence[int] | None = None,
    max_tokens: int | None = None,
) -> list[KVLevel]:
    """The level of each chunk by its relevance score: the best (``LevelSettings.num_best``), first and last, are dense.

    With ``max_tokens`` (and each chunk's size at both levels) chunks become dense in the order first, last, then by
    falling score, each followed by its ``neighbours`` from the nearest on, and the first that does not fit ends it, so
    a larger budget always contains a smaller one. The budget may be in bytes when the sizes are. Neighbours do not
    count as one of the best. Equal scores go to the earlier chunk. Raises ``ContextOverflow`` when not
    even all-sparse fits.
    """
    if any(math.isnan(score) for score in scores):
        raise ValueError("a score is NaN")
    ranked = sorted(range(len(scores)), key=lambda chunk: (-scores[chunk], chunk))
    ranked = ranked[: settings.num_best(len(scores))]
    always = [0, len(scores) - 1] if settings.dense_first_last and scores else []
    levels = [KVLevel.SPARSE] * len(scores)
    room = math.inf
    if max_tokens is not None:
        if dense_tokens is None or sparse_tokens is None or not len(dense_tokens) == len(sparse_tokens) == len(scores):
            raise ValueError("max_tokens needs dense_tokens and sparse_tokens of every chunk")
        room = max_tokens - sum(sparse_tokens)
        if room < 0:
            raise ContextOverflow(sum(sparse_tokens), max_tokens)
    offsets = [0, *(side * step for step in range(1, settings.neighbours + 1) for side in (-1, 1))]
    wanted = (chunk + offset for chunk in ranked for offset in offsets)
    for chunk in dict.fromkeys([*always, *(chunk for chunk in wanted if 0 <= chunk < len(scores))]):
        if dense_tokens is not None and sparse_tokens is not None:
            room -= dense_tokens[chunk] - sparse_tokens[chunk]
        if room < 0:
            break
        levels[chunk] = KVLevel.DENSE
    return levels


def published_dense_chunks(
    selected_unit_indices: Collection[int], chunk_groups: int, num_chunks: int
) -> tuple[int, ...]:
    """Dense chunks (from 0, sorted) of a published selection list, whose units are 8 frames.

    First and last are always dense; a unit maps to floor(unit / (chunk_groups / 2)) in floating point, so that odd
    chunk sizes work; units beyond the video are ignored; an empty list makes everything dense.
    """
    if not selected_unit_indices:
        return tuple(range(num_chunks))
    chosen = {math.floor(unit / (chunk_groups / _UNIT_GROUPS)) for unit in selected_unit_indices}
    return tuple(sorted({0, num_chunks - 1} | {chunk for chunk in chosen if 0 <= chunk < num_chunks}))


class Assembly:
    """A cache on its way: every place is known, stored pieces arrive layer by layer, texts go through the layers last.

    ``finish`` completes the cache. ``extend`` does too, with more tokens (a question) on the same way: what is computed
    of a layer needs that layer of the stored pieces only, so the first layers are used while later ones are read. No
    hidden state comes out before every layer of every piece has arrived.
    """

    @torch.no_grad()
    def __init__(
        self,
        model: PrefillModel,
        pieces: Sequence[Piece],
        *,
        prefix_ids: Sequence[int] | None = None,
        max_tokens: int | None = None,
        room: int = 512,
    ) -> None:
        """Begin to read, and place what is there already. See ``assemble_cache``."""
        self._decoder = decoder = model.language
        prefix = tuple(model.tokenizer.prefix_ids() if prefix_ids is None else prefix_ids)
        for piece in pieces:
            _check_shape(piece, decoder.spec)
        ends = itertools.accumulate((_num_tokens(piece) for piece in pieces), initial=len(prefix))
        places = list(itertools.pairwise((0, *ends)))
        self.length = places[-1][1]
        """Tokens of prefix and pieces."""
        limit = decoder.spec.max_positions if max_tokens is None else max_tokens
        if self.length > limit:
            raise ContextOverflow(self.length, limit)
        self._cache = KVCache(
            decoder.spec, min(self.length + room, limit), limit=limit, device=decoder.device, dtype=decoder.dtype
        )
        self._texts = [(place, HeaderIds(prefix)) for place in places[:1] if prefix]
        self._pending: list[_Placed] = []
        there: list[tuple[tuple[int, int], ChunkKV]] = []
        for place, piece in zip(places[1:], pieces, strict=True):
            if isinstance(piece, ChunkKV):
                there.append((place, piece))
            elif not isinstance(piece, HeaderIds):
                self._pending.append(_Placed(piece, *place))
            elif piece.ids:
                self._texts.append((place, piece))
        for placed in self._pending:
            placed.piece.bind(self._cache.slot(placed.start, placed.end))
        for placed in self._pending:
            placed.piece.start()
        for place, chunk in there:
            _place(chunk, self._cache, place[0], decoder.rotary(*place))
        self._is_complete = False

    @torch.no_grad()
    def finish(self) -> KVCache:
        """The whole cache. Raises whatever a pending piece raises."""
        if not self._is_complete:
            if self._texts:
                ids, attention = self._text_pass(self._texts)
                self._decoder.run_keys_values(self._decoder.embed(ids)[None], attention)
            self._arrive(self._decoder.spec.num_layers - 1)
            self._complete(self.length)
        return self._cache

    @torch.no_grad()
    def extend(self, ids: Sequence[int]) -> Tensor:
        """Append tokens that see everything before them; hidden states [T, D] of these.

        Raises ``ContextOverflow``, and whatever a pending piece raises.
        """
        end = self.length + len(ids)
        if self._is_complete or end > self._cache.capacity:  # a cache that grows moves, and pieces arrive in this one
            return self._decoder.extend(self.finish(), self._decoder.embed(tuple(ids)))
        all_ids, attention = self._text_pass([*self._texts, ((self.length, end), HeaderIds(tuple(ids)))])
        hidden_BTD = self._decoder.run(self._decoder.embed(all_ids)[None], attention)
        self._complete(end)
        return hidden_BTD[0, -len(ids) :]

    def _text_pass(self, texts: Sequence[tuple[tuple[int, int], HeaderIds]]) -> tuple[list[int], GapAttention]:
        """All of them together, since what is stored does not depend on the text around it."""
        ids = [token for _, text in texts for token in text.ids]
        return ids, GapAttention(self._decoder, self._cache, [place for place, _ in texts], self._arrive)

    def _arrive(self, layer: int) -> None:
        """Have all pending pieces in place up to a layer, their keys rotated."""
        for placed in self._pending:
            while placed.layers <= layer:
                end = placed.piece.wait(placed.layers)
                if placed.rotary is None:
                    placed.rotary = self._decoder.rotary(placed.start, placed.end)
                for layer_SKMDh in self._cache.slot(placed.start, placed.end)[placed.layers : end]:
                    layer_SKMDh[0].copy_(placed.rotary.rotate(layer_SKMDh[0]))
                placed.layers = end

    def _complete(self, length: int) -> None:
        self._cache.advance(length)
        self._is_complete = True
        self._pending.clear()


@dataclass(slots=True, eq=False)
class _Placed:
    """A pending piece at its positions [start, end), of which the first ``layers`` layers are ready."""

    piece: PendingKV
    start: int
    end: int
    layers: int = 0
    rotary: RotaryTable | None = None


@torch.no_grad()
def assemble_cache(
    model: PrefillModel,
    pieces: Sequence[Piece],
    *,
    prefix_ids: Sequence[int] | None = None,
    max_tokens: int | None = None,
    room: int = 512,
) -> KVCache:
    """One cache of the prompt prefix and ``pieces`` in the given order, at positions 0..m-1.

    The prefix (``prefix_ids``, by default the tokenizer's) is prefilled here, since its KV depends on nothing else.
    ``max_tokens`` is the longest sequence (None: the model's position limit); ``room`` is allocated ahead for question
    and answer. Pieces that are still being read arrive in the cache itself, while those before them are rotated; prefix
    and headers are prefilled last, in one pass. Raises ``ContextOverflow`` before any work, ``KVLayoutError`` for KV of
    another model's shape, and whatever a pending piece raises.
    """
    return Assembly(model, pieces, prefix_ids=prefix_ids, max_tokens=max_tokens, room=room).finish()


@torch.no_grad()
def generate(
    model: PrefillModel,
    context: KVCache | Assembly,
    suffix_ids: Sequence[int],
    max_new_tokens: int,
    eos_ids: Collection[int] = (),
    *,
    choose: Callable[[Tensor], int] = likeliest,
    keep_logits: bool = False,
) -> Iterator[TokenStep]:
    """Decoding after ``suffix_ids``; ends before an id in ``eos_ids`` or after ``max_new_tokens``.

    ``choose`` picks a token from logits [V] (``token_choice.TokenChoice`` samples). Appends to a cache; set its
    ``length`` back to ask something else. An assembly is completed on the way. Logits are computed for the last
    position only. Raises ``ContextOverflow`` where the next token does not fit.
    """
    if not suffix_ids:
        raise ValueError("the suffix must have at least one token")
    decoder = model.language
    next_ids = tuple(suffix_ids)
    for _ in range(max_new_tokens):
        if isinstance(context, Assembly):
            hidden_TD = context.extend(next_ids)
        else:
            hidden_TD = decoder.extend(context, decoder.embed(next_ids))
        logits_V = decoder.logits(hidden_TD[-1])
        token = choose(logits_V)
        if token in eos_ids:
            return
        yield TokenStep(token, logits_V if keep_logits else None)
        next_ids = (token,)


def _place(chunk: ChunkKV, cache: KVCache, start: int, rotary: RotaryTable) -> None:
    kv_LSKMDh = chunk.kv_LSKMDh.to(device=cache.device, dtype=cache.dtype)
    cache.write_all(start, rotary.rotate(kv_LSKMDh[:, 0]), kv_LSKMDh[:, 1])


def _num_tokens(piece: Piece) -> int:
    if isinstance(piece, HeaderIds):
        return len(piece.ids)
    return piece.num_tokens if isinstance(piece, ChunkKV) else piece.shape[3]


def _check_shape(piece: Piece, spec: LanguageSpec) -> None:
    if isinstance(piece, HeaderIds):
        return
    L, _, K, _, Dh = piece.kv_LSKMDh.shape if isinstance(piece, ChunkKV) else piece.shape
    expected = (spec.num_layers, spec.num_kv_heads, spec.head_dim)
    if (L, K, Dh) != expected:
        raise KVLayoutError(f"stored KV has (layers, KV heads, head width) {(L, K, Dh)}, the model needs {expected}")
