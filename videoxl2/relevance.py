"""How relevant each chunk of a video is to a question, computed when the question comes.

The published code reads chosen chunks from a file that another model made. Here a ``Relevance`` gives one score per
chunk, and ``select_levels`` turns scores into levels. Scores of one implementation are comparable within one question
only; none is a probability.

Shapes: N query heads, K KV heads, T question tokens, M keys, C chunks, Dh head width, E embedding width.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, Protocol, TypeAlias

import torch
from torch import Tensor

from videoxl2.config import RelevanceKind
from videoxl2.decode import assemble_cache
from videoxl2.kv import ChunkKV, KVCache
from videoxl2.language import CachedAttention, QwenDecoder
from videoxl2.prefill import PrefillModel
from videoxl2.upload import put_numbers


class QuestionTokenizer(Protocol):
    """The part of a tokenizer that asking needs."""

    def prefix_ids(self) -> list[int]: ...

    def timestamp_ids(self, t_s: float) -> list[int]: ...

    def prompt_parts(self, question: str) -> tuple[list[int], list[int]]: ...


class AskedModel(PrefillModel, Protocol):
    """The part of a model that attention scores need."""

    @property
    def tokenizer(self) -> QuestionTokenizer: ...


class Relevance(Protocol):
    """Scores of a video's chunks for a question; higher is more relevant."""

    def scores(self, question: str, chunks: Sequence[ChunkKV]) -> list[float]:
        """One finite score per chunk, in their order; ``chunks`` are in temporal order, sparse where that is there."""
        ...


@dataclass(frozen=True, slots=True)
class EmbeddingRelevance:
    """Similarity of question and chunk in an embedding space, computed outside (a search index has it already).

    ``similarities`` holds one score per chunk of the question and chunks that are then asked about;
    ``chunk_similarities`` makes them from vectors.
    """

    similarities: tuple[float, ...]

    def scores(self, question: str, chunks: Sequence[ChunkKV]) -> list[float]:
        """The given similarities; ``ValueError`` where they are not one per chunk."""
        if len(self.similarities) != len(chunks):
            raise ValueError(f"{len(self.similarities)} similarities for {len(chunks)} chunks")
        return _finite(self.similarities)


def chunk_similarities(question_E: Tensor, chunk_vectors_E: Sequence[Tensor]) -> tuple[float, ...]:
    """The best cosine similarity between a question and any vector [n, E] of each chunk (one per frame group)."""
    question_E = torch.nn.functional.normalize(question_E.to(torch.float32), dim=-1)
    best = [
        (torch.nn.functional.normalize(vectors.to(torch.float32), dim=-1) @ question_E).max()
        for vectors in chunk_vectors_E
    ]
    return tuple(torch.stack(best).tolist()) if best else ()


Pooling: TypeAlias = Literal["mean", "max", "head_max", "token_max", "last"]
"""How one layer's attention becomes one number per chunk (``pool_attention``)."""
POOLINGS: tuple[Pooling, ...] = ("mean", "max", "head_max", "token_max", "last")
DEFAULT_LAYERS: tuple[int, ...] | None = None
DEFAULT_POOLING: Pooling = "last"
"""Layers (None: all) and pooling of the attention score; ``tests/benchmarks/bench_relevance.py`` compares them."""


@dataclass(frozen=True)
class AttentionRelevance:
    """How much the question's tokens attend to each chunk of the (sparse) video, in the model itself.

    The chunks are assembled, the question is run over them once, and of every chosen layer and head the attention
    that falls on a chunk is divided by the chunk's number of tokens; a score is relative to the mean over all video
    tokens, so 1 is what an indifferent model would give, whatever the chunk's length or level. ``pooling`` joins
    question tokens and heads, the mean joins layers. ``layers`` and ``heads`` None take all. Scores depend on where in
    the context a chunk stands, as attention does.
    """

    model: AskedModel
    layers: tuple[int, ...] | None = DEFAULT_LAYERS
    heads: tuple[int, ...] | None = None
    pooling: Pooling = DEFAULT_POOLING
    max_tokens: int | None = None

    def scores(self, question: str, chunks: Sequence[ChunkKV]) -> list[float]:
        """Relative attention per chunk. Raises ``ContextOverflow`` where the chunks do not fit the context."""
        if not chunks:
            return []
        relative_ANTC = question_attention(self.model, question, chunks, self.layers, max_tokens=self.max_tokens)
        if self.heads is not None:
            relative_ANTC = relative_ANTC[:, list(self.heads)]
        return _finite(pool_attention(relative_ANTC, self.pooling).mean(dim=0).tolist())


@torch.no_grad()
def question_attention(
    model: AskedModel,
    question: str,
    chunks: Sequence[ChunkKV],
    layers: Sequence[int] | None = None,
    *,
    max_tokens: int | None = None,
) -> Tensor:
    """Attention [A, N, T, C] of the question's tokens per token of each chunk, relative to the mean over the video.

    ``layers`` None takes all; A counts those that were taken, in their order in the model. Raises ``ValueError`` for
    a layer that the model lacks, ``ContextOverflow`` where the chunks do not fit.
    """
    decoder = model.language
    chosen = frozenset(range(decoder.spec.num_layers) if layers is None else layers)
    if not chosen or not chosen <= set(range(decoder.spec.num_layers)):
        raise ValueError(f"layers {sorted(chosen)} are not some of the model's {decoder.spec.num_layers}")
    cache = assemble_cache(model, chunks, max_tokens=max_tokens)
    lengths = [chunk.num_tokens for chunk in chunks]
    _, suffix_ids = model.tokenizer.prompt_parts(question)
    end = cache.length + len(suffix_ids)
    cache.reserve(end)
    attention = _MassAttention(decoder, cache, end, chosen, lengths, cache.length - sum(lengths))
    decoder.run(decoder.embed(suffix_ids)[None], attention)
    mass_ANTC = torch.stack(attention.masses)
    lengths_C = put_numbers(lengths, mass_ANTC.device)
    uniform = mass_ANTC.sum(dim=-1, keepdim=True).clamp_min(1e-30) / lengths_C.sum()
    return mass_ANTC / lengths_C.clamp_min(1) / uniform


def pool_attention(relative_ANTC: Tensor, pooling: Pooling) -> Tensor:
    """One number per layer and chunk [A, C].

    ``mean`` asks what the question attends to on the whole, ``max`` whether any head of any token does, ``head_max``
    whether any head does over all tokens, ``token_max`` whether any token does over all heads, ``last`` what the last
    token, from which the answer begins, attends to.
    """
    if pooling == "mean":
        return relative_ANTC.mean(dim=(1, 2))
    if pooling == "max":
        return relative_ANTC.amax(dim=(1, 2))
    if pooling == "head_max":
        return relative_ANTC.mean(dim=2).amax(dim=1)
    if pooling == "token_max":
        return relative_ANTC.mean(dim=1).amax(dim=1)
    return relative_ANTC[:, :, -1].mean(dim=1)


@dataclass(frozen=True)
class FusedRelevance:
    """Several scores as one: the weighted sum of their standard scores over the chunks.

    Standard scores rather than ranks: a chunk that stands out by far keeps its lead, equal scores stay equal, and a
    part that cannot tell the chunks apart (all scores equal) adds nothing instead of an order made of noise.
    """

    parts: tuple[Relevance, ...]
    weights: tuple[float, ...]

    def __post_init__(self) -> None:
        if not self.parts or len(self.parts) != len(self.weights):
            raise ValueError(f"{len(self.weights)} weights for {len(self.parts)} parts")
        if not all(math.isfinite(weight) and weight >= 0 for weight in self.weights):
            raise ValueError("weights are finite and not negative")

    def scores(self, question: str, chunks: Sequence[ChunkKV]) -> list[float]:
        """The fused scores."""
        fused = [0.0] * len(chunks)
        for part, weight in zip(self.parts, self.weights, strict=True):
            for index, score in enumerate(standard_scores(part.scores(question, chunks))):
                fused[index] += weight * score
        return fused


def relevance_of(kind: RelevanceKind, similarities: Sequence[float], model: AskedModel | None) -> Relevance:
    """The relevance of a name: ``embedding`` (the similarities), ``attention``, or both fused with equal weight.

    ``embedding`` needs no model and looks at no chunk. Raises ``ValueError`` where a model is needed and not given.
    """
    embedding = EmbeddingRelevance(tuple(similarities))
    if kind == "embedding":
        return embedding
    if model is None:
        raise ValueError(f"relevance {kind!r} needs a model")
    attention = AttentionRelevance(model)
    return attention if kind == "attention" else FusedRelevance((embedding, attention), (1.0, 1.0))


def standard_scores(scores: Sequence[float]) -> list[float]:
    """Distance from the mean in standard deviations; all 0 where the scores do not differ beyond rounding."""
    if not scores:
        return []
    mean = math.fsum(scores) / len(scores)
    deviation = math.sqrt(math.fsum((score - mean) ** 2 for score in scores) / len(scores))
    if deviation <= 1e-9 * max(map(abs, scores)):
        return [0.0] * len(scores)
    return [(score - mean) / deviation for score in scores]


class _MassAttention(CachedAttention):
    """Attention of the question that also notes, in the chosen layers, how much falls on each chunk [N, T, C]."""

    def __init__(
        self,
        decoder: QwenDecoder,
        cache: KVCache,
        end: int,
        layers: frozenset[int],
        lengths: Sequence[int],
        video_start: int,
    ) -> None:
        super().__init__(decoder, cache, end)
        self._layers, self._num_chunks, self._first = layers, len(lengths), video_start
        chunk_of = [chunk for chunk, length in enumerate(lengths) for _ in range(length)]
        self._chunk_of_M = put_numbers(chunk_of, cache.device)
        self.masses: list[Tensor] = []

    def attend(self, layer: int, q_BNTDh: Tensor) -> Tensor:
        if layer in self._layers:
            keys_KMDh = self._cache.keys(layer, self._end)
            self.masses.append(self._mass(self._rotary.rotate(q_BNTDh)[0], keys_KMDh))
        return super().attend(layer, q_BNTDh)

    def _mass(self, q_NTDh: Tensor, keys_KMDh: Tensor) -> Tensor:
        """One KV head at a time, so that the weights of one head group are all that is held."""
        _, T, Dh = q_NTDh.shape
        future_TT = torch.ones(T, T, dtype=torch.bool, device=q_NTDh.device).triu_(1)
        masses: list[Tensor] = []
        for q_RTDh, keys_MDh in zip(q_NTDh.chunk(len(keys_KMDh)), keys_KMDh, strict=True):
            logits_RTM = (q_RTDh @ keys_MDh.T).to(torch.float32) * Dh**-0.5
            logits_RTM[:, :, self._start :].masked_fill_(future_TT, float("-inf"))
            video_RTM = logits_RTM.softmax(dim=-1)[:, :, self._first : self._first + len(self._chunk_of_M)]
            mass_RTC = video_RTM.new_zeros(len(q_RTDh), T, self._num_chunks)
            masses.append(mass_RTC.index_add_(2, self._chunk_of_M, video_RTM))
        return torch.cat(masses)


def _finite(scores: Sequence[float]) -> list[float]:
    if not all(map(math.isfinite, scores)):
        raise ValueError("a score is not finite")
    return list(scores)
