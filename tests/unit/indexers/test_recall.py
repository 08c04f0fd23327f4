"""Exact search and recall@k."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from indexers.config import StoreSettings
from indexers.recall import exact_search, recall_at_k, store_recall
from indexers.store import LanceStore
from indexers.testing import EMBEDDING_DIM, SegmentShape, add_video, make_video


def test_exact_search_is_by_cosine_and_stable() -> None:
    vectors = np.array([[1, 0], [0, 2], [5, 0], [1, 1]], dtype=np.float32)
    indices, scores = exact_search(vectors, np.array([2.0, 0.0]), 3)
    assert indices.tolist() == [[0, 2, 3]]
    np.testing.assert_allclose(scores, [[1, 1, np.sqrt(0.5)]], rtol=1e-6)
    assert exact_search(vectors, np.ones((2, 2)), 10)[0].shape == (2, 4)


def test_recall_counts_the_share_of_the_true_nearest() -> None:
    assert recall_at_k([["a", "b"]], [["b", "a"]], 2) == 1.0
    assert recall_at_k([["a", "x"], ["y", "z"]], [["b", "a"], ["a", "b"]], 2) == 0.25
    assert recall_at_k([["a"]], [["a"]], 10) == 1.0
    with pytest.raises(ValueError, match="1 results for 0 queries"):
        recall_at_k([["a"]], [], 2)


def test_an_index_is_built_above_the_threshold_and_finds_what_exact_search_finds(tmp_path: Path) -> None:
    store = LanceStore.create(tmp_path, EMBEDDING_DIM, StoreSettings(ann_threshold_rows=300))
    shape = SegmentShape(num_chunks=10, groups_per_chunk=6, visual_tokens=1, layers=1, head_dim=1)
    for number in range(4):
        add_video(store, make_video(f"v{number}"), shape=shape)
    assert not store.compact().built_index
    add_video(store, make_video("v4"), shape=shape)
    assert store.compact().built_index
    assert not store.compact().built_index
    add_video(store, make_video("later"), shape=shape)
    queries = np.random.default_rng(0).standard_normal((5, EMBEDDING_DIM))
    assert store_recall(store, queries, 10) > 0.95
    rows = store.embeddings(columns=["group_id", "vector"])
    vectors = np.array(rows["vector"].to_pylist(), dtype=np.float32)
    for query in queries:
        (indices,), (scores,) = exact_search(vectors, query, 5)
        hits = store.search_vectors(query, limit=5, exact=True)
        assert [hit.group_id for hit in hits] == rows["group_id"].take(indices).to_pylist()
        np.testing.assert_allclose([hit.score for hit in hits], scores, atol=1e-5)
