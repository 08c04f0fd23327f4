"""Relevance: which orders and labels scores follow, what attention mass is, and budgets with neighbours."""

from __future__ import annotations

import math
from collections.abc import Sequence

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from videoxl2.config import LevelSettings, PrefillSettings
from videoxl2.decode import select_levels
from videoxl2.kv import ChunkKV, KVLevel, sparsify
from videoxl2.model import VideoXL2
from videoxl2.relevance import (
    POOLINGS,
    AttentionRelevance,
    EmbeddingRelevance,
    FusedRelevance,
    Relevance,
    chunk_similarities,
    pool_attention,
    question_attention,
    relevance_of,
    standard_scores,
)

SEEDED = settings(max_examples=60, deadline=None, derandomize=True)
numbers = st.floats(-1, 1, width=16)
QUESTION = "When does the red car appear?"


def chunks_of(count: int) -> list[ChunkKV]:
    return [ChunkKV(torch.zeros(1, 2, 1, 1, 2), ((1, 0),), KVLevel.SPARSE)] * count


@pytest.fixture(scope="module")
def model() -> VideoXL2:
    return VideoXL2.from_pretrained("tiny", device="cpu")


@pytest.fixture(scope="module")
def chunks(model: VideoXL2) -> list[ChunkKV]:
    shape = (14, model.spec.tokens_per_group, model.spec.language.width)
    visual = torch.randn(shape, generator=torch.Generator().manual_seed(1))
    knobs = PrefillSettings(block_groups=2, previous_blocks=2)
    return list(model.prefill(visual, [4.0 * g for g in range(14)], knobs, chunk_groups=3).chunks)


@SEEDED
@given(pairs=st.lists(st.tuples(numbers, numbers), min_size=1, max_size=12), data=st.data())
def test_scores_follow_the_order_of_the_chunks(pairs: list[tuple[float, float]], data: st.DataObject) -> None:
    """Given and fused scores have no idea of position: permuted chunks get permuted scores."""
    order = data.draw(st.permutations(range(len(pairs))))

    def fused(values: Sequence[tuple[float, float]]) -> list[float]:
        parts = tuple(EmbeddingRelevance(tuple(part)) for part in zip(*values, strict=True))
        return FusedRelevance(parts, (1.0, 0.5)).scores(QUESTION, chunks_of(len(values)))

    before, after = fused(pairs), fused([pairs[index] for index in order])
    assert after == pytest.approx([before[index] for index in order], abs=1e-9)


@SEEDED
@given(scores=st.lists(numbers, min_size=1, max_size=12), scale=st.floats(0.5, 9), shift=st.floats(-3, 3))
def test_fusion_does_not_know_the_scale_of_its_parts(scores: list[float], scale: float, shift: float) -> None:
    changed = standard_scores([scale * score + shift for score in scores])
    if max(scores) - min(scores) > 1e-3:
        assert changed == pytest.approx(standard_scores(scores), abs=1e-5)
        assert math.fsum(changed) == pytest.approx(0, abs=1e-6)
    elif max(scores) == min(scores):
        assert changed == [0.0] * len(scores)


@SEEDED
@given(scores=st.lists(numbers, min_size=1, max_size=9))
def test_a_part_that_sees_no_difference_adds_nothing(scores: list[float]) -> None:
    parts = (EmbeddingRelevance(tuple(scores)), EmbeddingRelevance((0.3,) * len(scores)))
    fused = FusedRelevance(parts, (1.0, 1.0)).scores(QUESTION, chunks_of(len(scores)))
    assert fused == pytest.approx(standard_scores(scores))


@SEEDED
@given(
    scores=st.lists(numbers, min_size=1, max_size=20),
    few=st.integers(0, 6),
    more=st.integers(0, 6),
    room=st.integers(100, 400),
    extra=st.integers(0, 200),
    neighbours=st.integers(0, 3),
    ends=st.booleans(),
)
def test_larger_budgets_contain_smaller_ones_with_neighbours(
    scores: list[float], few: int, more: int, room: int, extra: int, neighbours: int, ends: bool
) -> None:
    dense_tokens, sparse_tokens = [20 + index % 7 for index in range(len(scores))], [5] * len(scores)

    def chosen(budget: int, limit: int | None) -> set[int]:
        knobs = LevelSettings(max_dense_chunks=budget, dense_share=None, neighbours=neighbours, dense_first_last=ends)
        levels = select_levels(scores, knobs, dense_tokens=dense_tokens, sparse_tokens=sparse_tokens, max_tokens=limit)
        return {index for index, level in enumerate(levels) if level is KVLevel.DENSE}

    assert chosen(few, None) <= chosen(few + more, None)
    assert chosen(few, room) <= chosen(few, room + extra) <= chosen(few, None)
    assert chosen(few, room) <= chosen(few + more, room)
    best = sorted(range(len(scores)), key=lambda index: (-scores[index], index))[:few]
    around = {c for b in best for c in range(b - neighbours, b + neighbours + 1) if 0 <= c < len(scores)}
    assert chosen(few, None) == around | ({0, len(scores) - 1} if ends else set())


def test_attention_mass_is_that_of_the_weights(model: VideoXL2, chunks: list[ChunkKV]) -> None:
    """One layer and head, recomputed with an explicit softmax over the assembled keys."""
    sparse = [sparsify(chunk, 4) for chunk in chunks]
    cache = model.assemble(sparse)
    length, start = cache.length, cache.length - sum(chunk.num_tokens for chunk in sparse)
    _, suffix = model.tokenizer.prompt_parts(QUESTION)
    decoder, spec = model.language, model.spec.language
    head = spec.num_heads - 1
    with torch.no_grad():
        layer = decoder.layers[0]
        normed = layer.input_layernorm(decoder.embed(suffix)[None])  # type: ignore[operator]
        q = decoder.rotary(length, length + len(suffix)).rotate(layer.self_attn.queries(normed))[0, head]  # type: ignore[operator, union-attr]
        decoder.extend(cache, decoder.embed(suffix))
        logits = q @ cache.keys(0, cache.length)[-1].T * spec.head_dim**-0.5
        hidden = torch.arange(cache.length) > length + torch.arange(len(suffix))[:, None]
        weights = logits.masked_fill(hidden, float("-inf")).softmax(dim=-1)
    per_chunk = torch.stack([w.sum(dim=1) for w in weights[:, start:length].split([c.num_tokens for c in sparse], 1)])
    density = per_chunk / torch.tensor([c.num_tokens for c in sparse])[:, None]
    expected = (density / (per_chunk.sum(dim=0) / (length - start))).mean(dim=1)
    found = AttentionRelevance(model, layers=(0,), heads=(head,), pooling="mean").scores(QUESTION, sparse)
    assert found == pytest.approx(expected.tolist(), abs=1e-4)


def test_attention_scores_average_to_one_by_length(model: VideoXL2, chunks: list[ChunkKV]) -> None:
    """Whatever the lengths and levels: a score is relative to the mean over all video tokens."""
    for pieces in (chunks, [sparsify(chunk, 4) for chunk in chunks], [sparsify(chunks[0], 4), *chunks[1:]]):
        scores = AttentionRelevance(model).scores(QUESTION, pieces)
        tokens = [piece.num_tokens for piece in pieces]
        mean = math.fsum(s * t for s, t in zip(scores, tokens, strict=True)) / sum(tokens)
        assert mean == pytest.approx(1.0, abs=1e-4) and min(scores) >= 0


def test_the_question_and_the_choice_of_heads_matter(model: VideoXL2, chunks: list[ChunkKV]) -> None:
    scores = AttentionRelevance(model).scores(QUESTION, chunks)
    assert scores == AttentionRelevance(model).scores(QUESTION, chunks)
    assert scores != AttentionRelevance(model).scores("Is there anything unusual?", chunks)
    assert scores != AttentionRelevance(model, layers=(1,)).scores(QUESTION, chunks)
    heads, layers = model.spec.language.num_heads, model.spec.language.num_layers
    single = [AttentionRelevance(model, heads=(head,)).scores(QUESTION, chunks) for head in range(heads)]
    assert [math.fsum(column) / heads for column in zip(*single, strict=True)] == pytest.approx(scores, abs=1e-5)
    both = AttentionRelevance(model, heads=(1, 0), layers=(layers - 1, 1)).scores(QUESTION, chunks)
    assert both == pytest.approx(
        AttentionRelevance(model, heads=(0, 1), layers=(1, layers - 1)).scores(QUESTION, chunks)
    )
    highest = AttentionRelevance(model, pooling="max").scores(QUESTION, chunks)
    assert all(high >= mean for high, mean in zip(highest, scores, strict=True))


@SEEDED
@given(
    layers=st.integers(1, 3),
    heads=st.integers(1, 4),
    tokens=st.integers(1, 5),
    count=st.integers(1, 6),
    seed=st.integers(0, 99),
)
def test_poolings_are_what_they_say(layers: int, heads: int, tokens: int, count: int, seed: int) -> None:
    relative = torch.rand(layers, heads, tokens, count, generator=torch.Generator().manual_seed(seed))
    found = {pooling: pool_attention(relative, pooling) for pooling in POOLINGS}
    for a in range(layers):
        for c in range(count):
            cell = relative[a, :, :, c].tolist()
            by_head = [math.fsum(row) / tokens for row in cell]
            by_token = [math.fsum(column) / heads for column in zip(*cell, strict=True)]
            expected = {
                "mean": math.fsum(by_head) / heads,
                "max": max(map(max, cell)),
                "head_max": max(by_head),
                "token_max": max(by_token),
                "last": by_token[-1],
            }
            assert {name: float(found[name][a, c]) for name in POOLINGS} == pytest.approx(expected, abs=1e-5)


def test_scores_are_the_pooled_attention(model: VideoXL2, chunks: list[ChunkKV]) -> None:
    """One pass of the question serves every choice of layers and pooling, as the benchmark uses it."""
    everything = question_attention(model, QUESTION, chunks)
    layers = model.spec.language.num_layers
    assert everything.shape[:2] == (layers, model.spec.language.num_heads) and everything.shape[3] == len(chunks)
    for pooling in POOLINGS:
        for chosen in ((0,), (layers - 1,), tuple(range(layers))):
            expected = pool_attention(everything[list(chosen)], pooling).mean(dim=0).tolist()
            scores = AttentionRelevance(model, layers=chosen, pooling=pooling).scores(QUESTION, chunks)
            assert scores == pytest.approx(expected, abs=1e-5)
    for wrong in ((), (layers,), (-1,)):
        with pytest.raises(ValueError, match="layers"):
            question_attention(model, QUESTION, chunks, wrong)


def test_the_names_of_the_settings(model: VideoXL2, chunks: list[ChunkKV]) -> None:
    similarities = (0.1, 0.2, 0.9, 0.3, 0.0)
    assert relevance_of("embedding", similarities, None) == EmbeddingRelevance(similarities)
    assert relevance_of("attention", similarities, model) == AttentionRelevance(model)
    fused = relevance_of("fused", similarities, model)
    assert isinstance(fused, FusedRelevance) and fused.parts[0] == EmbeddingRelevance(similarities)
    with pytest.raises(ValueError, match="needs a model"):
        relevance_of("attention", similarities, None)


def test_all_three_choose_levels(model: VideoXL2, chunks: list[ChunkKV]) -> None:
    given = EmbeddingRelevance((0.1, 0.2, 0.9, 0.3, 0.0))
    kinds: list[Relevance] = [
        given,
        AttentionRelevance(model),
        FusedRelevance((given, AttentionRelevance(model)), (1, 1)),
    ]
    for kind in kinds:
        scores = kind.scores(QUESTION, chunks)
        levels = select_levels(scores, LevelSettings(max_dense_chunks=1, dense_first_last=False))
        assert levels.index(KVLevel.DENSE) == max(range(5), key=lambda index: scores[index])
    assert AttentionRelevance(model).scores(QUESTION, []) == []


def test_similarity_of_a_chunk_is_that_of_its_best_vector() -> None:
    question = torch.tensor([2.0, 0.0])
    vectors = [torch.tensor([[0.0, 1.0], [3.0, 3.0]]), torch.tensor([[-1.0, 0.0]])]
    assert chunk_similarities(question, vectors) == pytest.approx((math.sqrt(0.5), -1.0))
    assert chunk_similarities(question, []) == ()


def test_what_is_refused() -> None:
    with pytest.raises(ValueError, match="2 similarities for 1"):
        EmbeddingRelevance((0.1, 0.2)).scores(QUESTION, chunks_of(1))
    with pytest.raises(ValueError, match="not finite"):
        EmbeddingRelevance((math.nan,)).scores(QUESTION, chunks_of(1))
    with pytest.raises(ValueError, match="weights for"):
        FusedRelevance((), ())
    with pytest.raises(ValueError, match="not negative"):
        FusedRelevance((EmbeddingRelevance(()),), (-1.0,))
