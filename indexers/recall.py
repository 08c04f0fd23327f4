"""Exact nearest neighbours and recall@k, for judging a vector index on our own vectors. N rows, Q queries, E values."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from indexers.store import LanceStore


def exact_search(vectors_NE: np.ndarray, queries_QE: np.ndarray, limit: int) -> tuple[np.ndarray, np.ndarray]:
    """Rows of highest cosine similarity for each query: ``(indices [Q, k], scores [Q, k])``, best first, k <= N.

    Rows and queries need not be normalised; equal scores are in order of their index.
    """
    rows_NE = _normalised(vectors_NE)
    scores_QN = _normalised(np.atleast_2d(queries_QE)) @ rows_NE.T
    order_QK = np.argsort(-scores_QN, axis=1, kind="stable")[:, :limit]
    return order_QK, np.take_along_axis(scores_QN, order_QK, axis=1)


def recall_at_k(found: Sequence[Sequence[str]], true: Sequence[Sequence[str]], k: int) -> float:
    """Mean share of the ``k`` true nearest that are among the first ``k`` found, over all queries."""
    if len(found) != len(true) or not true:
        raise ValueError(f"{len(found)} results for {len(true)} queries")
    shares = [len(set(a[:k]) & set(b[:k])) / max(1, len(b[:k])) for a, b in zip(found, true, strict=True)]
    return float(np.mean(shares))


def store_recall(store: LanceStore, queries_QE: np.ndarray, k: int = 10) -> float:
    """Recall@k of the store's search, as it is indexed now, against exact search on the same rows."""
    found = [[hit.group_id for hit in store.search_vectors(query, limit=k)] for query in queries_QE]
    true = [[hit.group_id for hit in store.search_vectors(query, limit=k, exact=True)] for query in queries_QE]
    return recall_at_k(found, true, k)


def _normalised(vectors_NE: np.ndarray) -> np.ndarray:
    vectors_NE = np.asarray(vectors_NE, dtype=np.float32)
    return vectors_NE / np.maximum(np.linalg.norm(vectors_NE, axis=-1, keepdims=True), 1e-12)
