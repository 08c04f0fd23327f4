"""The kinds of relevance that a question can be asked with, over the sparse KV of its context."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch

from pipeline import chunk_scores
from pipeline.chunk_scores import SparseContext, score_chunks
from pipeline.config import load_settings
from pipeline.errors import ConfigError
from pipeline.kv_source import LoadedKV
from videoxl2.kv import ChunkKV, KVLevel, sparsify
from videoxl2.model import VideoXL2
from videoxl2.relevance import AttentionRelevance, EmbeddingRelevance, FusedRelevance

QUESTION = "Does a red car stop?"
SIMILARITIES = (0.1, 0.3, -0.2)
ROWS = [{"chunk_id": name} for name in ("c", "a", "b")]


class Source:
    """Stored sparse KV of ``ROWS``, and every request for it."""

    def __init__(self, chunks: list[ChunkKV]) -> None:
        self.chunks, self.requests = chunks, list[list[str]]()

    def load(self, wanted: list[tuple[dict[str, Any], KVLevel]]) -> LoadedKV:
        assert {level for _, level in wanted} == {KVLevel.SPARSE}
        self.requests.append([row["chunk_id"] for row, _ in wanted])
        names = [row["chunk_id"] for row in ROWS]
        return LoadedKV(chunks={name: self.chunks[names.index(name)] for name in sorted(names)})


@pytest.fixture(scope="module")
def model() -> VideoXL2:
    return VideoXL2.from_pretrained("tiny", device="cpu")


@pytest.fixture
def source(model: VideoXL2, monkeypatch: pytest.MonkeyPatch) -> Source:
    shape = (6, model.spec.tokens_per_group, model.spec.language.width)
    visual = torch.randn(shape, generator=torch.Generator().manual_seed(1))
    chunks = model.prefill(visual, [4.0 * group for group in range(6)], chunk_groups=2).chunks
    stored = Source([sparsify(chunk, 4) for chunk in chunks])
    monkeypatch.setattr(chunk_scores, "KVSource", lambda reader, reuse: stored)
    return stored


def test_similarity_needs_neither_model_nor_kv(source: Source) -> None:
    found = score_chunks(SimpleNamespace(), QUESTION, ROWS, SIMILARITIES, kind="embedding", reuse="auto")  # type: ignore[arg-type]
    assert found == list(SIMILARITIES) and source.requests == []


def test_attention_reads_the_stored_sparse_kv_once(source: Source, model: VideoXL2) -> None:
    reader: Any = SimpleNamespace(model=model)
    attention = score_chunks(reader, QUESTION, ROWS, SIMILARITIES, kind="attention", reuse="auto")
    assert attention == AttentionRelevance(model).scores(QUESTION, source.chunks)
    assert source.requests == [["c", "a", "b"]]
    fused = score_chunks(reader, QUESTION, ROWS, SIMILARITIES, kind="fused", reuse="auto")
    both = FusedRelevance((EmbeddingRelevance(SIMILARITIES), AttentionRelevance(model)), (1.0, 1.0))
    assert fused == pytest.approx(both.scores(QUESTION, source.chunks))


def test_a_context_without_chunks(model: VideoXL2, source: Source) -> None:
    for kind in ("embedding", "attention", "fused"):
        assert score_chunks(SimpleNamespace(model=model), QUESTION, [], [], kind=kind, reuse="auto") == []  # type: ignore[arg-type]
    assert source.requests == []


def test_sparse_kv_is_read_when_it_is_looked_at(source: Source) -> None:
    context = SparseContext(source, ROWS)  # type: ignore[arg-type]
    assert len(context) == 3 and source.requests == []
    assert context[1] is source.chunks[1] and list(context[1:]) == source.chunks[1:]
    assert list(context) == source.chunks and len(source.requests) == 1


def test_the_setting_names_one_of_three() -> None:
    assert load_settings(environ={}).query.relevance == "embedding"
    assert load_settings(overrides={"query.relevance": "fused"}, environ={}).query.relevance == "fused"
    with pytest.raises(ConfigError, match=r"query\.relevance"):
        load_settings(overrides={"query.relevance": "oracle"}, environ={})
