"""How far two sets of chunks are apart: in their bytes, in single values, in the answers over them.

What a lossy codec states about its error is allowed to every value, and no more.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

    from videoxl2.kv import ChunkKV
    from videoxl2.kv_codec import CodecSettings
    from videoxl2.model import VideoXL2

PROBE_QUESTION = "What happens in this footage?"
PROBE_TOKENS = 16


@dataclass(frozen=True, slots=True)
class KVDifference:
    """How far two sets of chunks are apart: in bytes, in the largest value, in the worst token.

    ``token_excess`` is that of the worst token beyond what was allowed to each of its values.
    """

    is_bit_exact: bool
    max_abs: float
    token_error: float
    token_excess: float


@dataclass(frozen=True, slots=True)
class ProbeDifference:
    """How far the answers over two caches are apart."""

    max_logit_diff: float
    top1_agreement: float

    @property
    def answer_agrees(self) -> bool:
        return self.top1_agreement == 1.0


def is_same_kv(difference: KVDifference, tolerance: float) -> bool:
    """Equal bytes, or a difference that another order of summation explains; never true for values that are NaN."""
    return difference.is_bit_exact or difference.token_excess <= tolerance


def kv_difference(
    stored: Sequence[ChunkKV], made: Sequence[ChunkKV], codec: CodecSettings | None = None
) -> KVDifference:
    """``stored`` against ``made``, chunk by chunk of equal shapes.

    ``token_error`` is the largest length of a difference of one head's vector of one token, over the root mean square
    length of that layer's keys or values in the chunk: one wrong token among thousands is not averaged away. With a
    lossy ``codec``, equal bytes are those that it makes of ``made``, and its error bound is taken off every value of a
    difference before ``token_excess`` is measured.
    """
    import numpy as np

    from videoxl2.kv import kv_to_numpy

    is_bit_exact, max_abs, token_error, token_excess = True, 0.0, 0.0, 0.0
    for left, right in zip(stored, made, strict=True):
        right_LSKMDh = right.kv_LSKMDh.detach().cpu()
        found = kv_to_numpy(left.kv_LSKMDh)
        is_same = any(np.array_equal(found, kv_to_numpy(kv)) for kv in _as_stored(right_LSKMDh, codec))
        is_bit_exact = is_bit_exact and is_same
        bound_LSKMDh = _allowed(right_LSKMDh, codec)
        if is_same and bound_LSKMDh is None:
            continue
        for layer in range(right_LSKMDh.shape[0]):  # one layer at a time bounds the memory of float64
            bound_SKMDh = None if bound_LSKMDh is None else bound_LSKMDh[layer].double()
            errors = _layer_errors(left.kv_LSKMDh[layer].detach().cpu(), right_LSKMDh[layer], bound_SKMDh)
            max_abs, token_error = larger(max_abs, errors[0]), larger(token_error, errors[1])
            token_excess = larger(token_excess, errors[2])
    return KVDifference(is_bit_exact, max_abs, token_error, token_excess)


def _as_stored(kv_LSKMDh: Tensor, codec: CodecSettings | None) -> Iterator[Tensor]:
    """What the values come back as: themselves, or as the codec makes them, straight or (int4) from stored int8."""
    from videoxl2.kv_codec import KVCodec, decode_kv, encode_kv

    def coded(values: Tensor, settings: CodecSettings) -> Tensor:
        dtype = str(values.dtype).removeprefix("torch.")
        return decode_kv(encode_kv(values, settings), tuple(values.shape), dtype, settings)

    if codec is None or codec.codec is KVCodec.EXACT:
        yield kv_LSKMDh
        return
    yield coded(kv_LSKMDh, codec)
    if codec.codec is KVCodec.INT4:
        yield coded(coded(kv_LSKMDh, replace(codec, codec=KVCodec.INT8)), codec)


def _allowed(kv_LSKMDh: Tensor, codec: CodecSettings | None) -> Tensor | None:
    """The largest error of each value that the codec states; None for none. An int4 file may be made of an int8 one."""
    from videoxl2.kv_codec import KVCodec, error_bound

    if codec is None or codec.codec is KVCodec.EXACT:
        return None
    bound = error_bound(kv_LSKMDh, codec)
    if codec.codec is KVCodec.INT4:
        eight = replace(codec, codec=KVCodec.INT8)
        bound = bound * (1 + 2 / eight.levels) + error_bound(kv_LSKMDh, eight)
    return bound


def _layer_errors(left_SKMDh: Tensor, right_SKMDh: Tensor, bound_SKMDh: Tensor | None) -> tuple[float, float, float]:
    """Largest difference, worst token, and worst token beyond the bound, of one layer."""
    values_SKMDh = right_SKMDh.double()
    apart_SKMDh = (left_SKMDh.double() - values_SKMDh).abs()
    usual_S = values_SKMDh.square().sum(-1).mean(dim=(1, 2)).sqrt().clamp_min(1e-12)

    def worst(of_SKMDh: Tensor) -> float:
        return float((of_SKMDh.square().sum(-1).sqrt() / usual_S[:, None, None]).max())

    error = worst(apart_SKMDh)
    excess = error if bound_SKMDh is None else worst((apart_SKMDh - bound_SKMDh).clamp_min(0.0))
    return float(apart_SKMDh.max()), error, excess


def pooled_excess(
    stored: ChunkKV, pooled: ChunkKV, dense: ChunkKV, codec: CodecSettings | None, compression: int
) -> float:
    """The worst token of stored sparse KV against ``pooled``, beyond what ``dense`` may have lost to its codec.

    The bound is taken from values that went through the codec, whose range in a group may have shrunk by a step.
    """
    from videoxl2.kv import sparsify

    lost_LSKMDh = _allowed(dense.kv_LSKMDh, codec)
    if codec is None or lost_LSKMDh is None:
        return kv_difference([stored], [pooled]).token_excess
    lost_LSKMDh = lost_LSKMDh * (1 + 2 / codec.levels)
    lost = sparsify(replace(dense, kv_LSKMDh=lost_LSKMDh), compression).kv_LSKMDh
    excess = 0.0
    for layer in range(lost.shape[0]):
        errors = _layer_errors(stored.kv_LSKMDh[layer], pooled.kv_LSKMDh[layer], lost[layer].double())
        excess = larger(excess, errors[2])
    return excess


def probe_difference(model: VideoXL2, stored: Sequence[ChunkKV], made: Sequence[ChunkKV]) -> ProbeDifference:
    """The probe question over both caches, each assembled anew; the tokens are those that ``made`` chooses.

    A segment that is longer than the model's context is probed with the first chunks that fit.
    """
    prefix_ids, suffix_ids = model.tokenizer.prompt_parts(PROBE_QUESTION)
    room = model.spec.language.max_positions - len(prefix_ids) - len(suffix_ids) - PROBE_TOKENS
    num_chunks = 0
    for chunk in made:
        room -= chunk.num_tokens
        if room < 0:
            break
        num_chunks += 1
    reference, tokens = _answer_logits(model, made[:num_chunks], suffix_ids, None)
    logits, _ = _answer_logits(model, stored[:num_chunks], suffix_ids, tokens)
    apart = 0.0
    for left, right in zip(logits, reference, strict=True):
        apart = larger(apart, float((left.double() - right.double()).abs().max()))
    agreeing = sum(int(left.argmax()) == token for left, token in zip(logits, tokens, strict=True))
    return ProbeDifference(apart, agreeing / len(tokens))


def _answer_logits(
    model: VideoXL2, chunks: Sequence[ChunkKV], suffix_ids: Sequence[int], forced: Sequence[int] | None
) -> tuple[list[Tensor], list[int]]:
    """Logits of every step, the one that ends the answer included, and the tokens: the likeliest, or those forced."""
    from videoxl2.decode import generate
    from videoxl2.token_choice import likeliest

    logits: list[Tensor] = []
    tokens: list[int] = []

    def choose(logits_V: Tensor) -> int:
        logits.append(logits_V.detach().cpu())
        tokens.append(likeliest(logits_V) if forced is None else forced[len(tokens)])
        return tokens[-1]

    cache = model.assemble(chunks)
    for _ in generate(model, cache, suffix_ids, PROBE_TOKENS, model.tokenizer.eos_ids, choose=choose):
        pass
    return logits, tokens


def largest(values: Iterable[float | None]) -> float | None:
    """The largest, NaN when one of them is; None of none."""
    found: float | None = None
    for value in values:
        if value is not None:
            found = value if found is None else larger(found, value)
    return found


def larger(left: float, right: float) -> float:
    """The larger of two; NaN when one of them is, unlike ``max``."""
    return right if math.isnan(right) or right > left else left
