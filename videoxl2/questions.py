"""Several questions over one assembled cache: a batch that shares the video and never copies it.

The questions' tokens are appended to the one cache, one after another, and a mask keeps each question's tokens from
seeing another's. A token's position counts from the end of the video within its own question, so each question sees
exactly what it would see alone.

Shapes: B batch, T tokens of a pass, M tokens of all questions so far, N query heads, Dh head width.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Collection, Generator, Sequence

import torch
from torch import Tensor

from videoxl2.attention import BiasReuse, attend_parts
from videoxl2.decode import TokenStep
from videoxl2.decode_step import FixedStep
from videoxl2.kv import KVCache
from videoxl2.language import CachedAttention, LayerAttention, QwenDecoder, Stepping
from videoxl2.prefill import PrefillModel
from videoxl2.rotary import RotaryTable
from videoxl2.token_choice import TokenChoice, likeliest
from videoxl2.upload import put_numbers


@torch.no_grad()
def generate_batch(
    model: PrefillModel,
    cache: KVCache,
    suffixes: Sequence[Sequence[int]],
    max_new_tokens: int,
    eos_ids: Collection[int] = (),
    *,
    choices: Sequence[Callable[[Tensor], int]] | None = None,
    keep_logits: bool = False,
) -> Generator[tuple[int, TokenStep], None, None]:
    """Decode after each of ``suffixes`` as ``decode.generate`` does after one; yields (question, step) by steps.

    ``choices`` picks the tokens of each question (None: the likeliest). Finished questions leave the batch. While it
    runs the cache is longer by the questions' tokens (room for them is best given to ``assemble_cache``, or the cache
    grows once); afterwards, or when the iterator is closed, it is as before. Raises ``ContextOverflow`` where the next
    token of a question does not fit. ``QwenDecoder.stepping`` says how the steps after the first are made.
    """
    if not all(suffixes):
        raise ValueError("every suffix must have at least one token")
    decoder, video = model.language, cache.length
    owners: list[int] = []
    lengths = [0] * len(suffixes)
    pending = {question: tuple(ids) for question, ids in enumerate(suffixes)}
    fixed: FixedStep | None = None
    try:
        for step in range(max_new_tokens if suffixes else 0):
            if step and decoder.stepping is not Stepping.EAGER:
                if fixed is None:
                    room = max_new_tokens - 1
                    fixed = FixedStep(decoder, cache, video, owners, lengths, room, decoder.stepping)
                logits_BV = _step(decoder, fixed, cache, video, lengths, pending)
            else:
                logits_BV = decoder.logits(_extend(decoder, cache, video, owners, lengths, pending))
            tokens = _choose(logits_BV, tuple(pending), choices)
            asked, pending = tuple(pending), {}
            for question, logits_V, token in zip(asked, logits_BV, tokens, strict=True):
                if token in eos_ids:
                    continue
                pending[question] = (token,)
                yield question, TokenStep(token, logits_V if keep_logits else None)
            if not pending:
                return
    finally:
        cache.length = video


def _extend(
    decoder: QwenDecoder,
    cache: KVCache,
    video: int,
    owners: list[int],
    lengths: list[int],
    pending: dict[int, tuple[int, ...]],
) -> Tensor:
    """Append each question's tokens; hidden states [B, D] of their last ones. Updates ``owners`` and ``lengths``."""
    positions: list[int] = []
    for question, ids in pending.items():
        positions += range(video + lengths[question], video + lengths[question] + len(ids))
        owners += [question] * len(ids)
        lengths[question] += len(ids)
    end = video + len(owners)
    cache.reserve(end, longest=max(positions) + 1)
    embeds_TD = decoder.embed([token for ids in pending.values() for token in ids])
    attention: LayerAttention
    if len(lengths) == 1:
        attention = CachedAttention(decoder, cache, end)
    else:
        attention = _SharedAttention(decoder, cache, video, owners, positions)
    hidden_BTD = decoder.run(embeds_TD[None], attention)
    cache.advance(end)
    ends = itertools.accumulate(len(ids) for ids in pending.values())
    return hidden_BTD[0].index_select(0, put_numbers([end - 1 for end in ends], decoder.device))


def _step(
    decoder: QwenDecoder,
    fixed: FixedStep,
    cache: KVCache,
    video: int,
    lengths: list[int],
    pending: dict[int, tuple[int, ...]],
) -> Tensor:
    """Logits [b, V] of the pending questions after their next tokens; ended ones keep their place in the step."""
    for question in pending:
        lengths[question] += 1
    cache.reserve(cache.length, longest=video + max(lengths[question] for question in pending))
    logits_BV = fixed([pending.get(question, (0,))[0] for question in range(len(lengths))])
    if len(pending) == len(lengths):
        return logits_BV
    return logits_BV.index_select(0, put_numbers(tuple(pending), decoder.device))


def _choose(logits_BV: Tensor, asked: Sequence[int], choices: Sequence[Callable[[Tensor], int]] | None) -> list[int]:
    """The next token of each question. The likeliest are found together, so that the host waits once, not for each."""
    wanted = [likeliest if choices is None else choices[question] for question in asked]
    if all(choose is likeliest or (isinstance(choose, TokenChoice) and choose.is_greedy) for choose in wanted):
        found: list[int] = logits_BV.argmax(dim=-1).tolist()
        return found
    logits_BV = logits_BV.to("cpu")
    return [choose(logits_V) for choose, logits_V in zip(wanted, logits_BV, strict=True)]


class _SharedAttention:
    """Attention of tokens of several questions at the end of one cache: the video, and each its own question."""

    def __init__(
        self, decoder: QwenDecoder, cache: KVCache, video: int, owners: Sequence[int], positions: Sequence[int]
    ) -> None:
        self._cache, self._video, self._start, self._end = cache, video, cache.length, video + len(owners)
        device, count = cache.device, len(positions)
        positions_T = put_numbers(positions, device)
        self._rotary = RotaryTable(positions_T, decoder.spec.head_dim, decoder.spec.rope_theta, decoder.dtype)
        owners_M = put_numbers(owners, device)
        same_TM = owners_M[-count:, None] == owners_M[None, :]
        earlier_TM = torch.ones_like(same_TM).tril_(len(owners) - count)
        self._mask_TM = same_TM & earlier_TM
        self._reuse, self._backend = BiasReuse(), decoder.backend

    def keep(self, layer: int, k_BKTDh: Tensor, v_BKTDh: Tensor) -> None:
        self._cache.write(layer, self._start, self._rotary.rotate(k_BKTDh)[0], v_BKTDh[0])

    def attend(self, layer: int, q_BNTDh: Tensor) -> Tensor:
        keys, values = self._cache.keys(layer, self._end)[None], self._cache.values(layer, self._end)[None]
        video = (keys[:, :, : self._video], values[:, :, : self._video])
        own = (keys[:, :, self._video :], values[:, :, self._video :])
        q = self._rotary.rotate(q_BNTDh)
        return attend_parts(q, [video], own, self._mask_TM, reuse=self._reuse, backend=self._backend)
