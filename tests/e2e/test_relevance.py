"""The kind of relevance as a setting: other scores and possibly other chunks, the same footage and budget."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.vxl import call

ASK = ("ask", "What colour is the car?", "--json", "--max-new-tokens", "2")


@pytest.fixture(scope="module")
def answers(indexed: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, Any]]:
    found: dict[str, dict[str, Any]] = {}
    for kind in ("embedding", "attention", "fused"):
        settings = tmp_path_factory.mktemp(kind) / "vxl.toml"
        settings.write_text(
            f'[query]\nrelevance = "{kind}"\nmax_citations = 50\n[ingest.levels]\nmax_dense_chunks = 2\n'
        )
        done = call(*ASK, "--archive", indexed, "--config", settings)
        assert done.code == 0, done.err
        found[kind] = done.json
    return found


def cited(answer: dict[str, Any]) -> dict[tuple[str, float], float]:
    return {(item["uri"], item["start_s"]): item["score"] for item in answer["citations"]}


def test_embedding_is_the_default(indexed: Path, answers: dict[str, dict[str, Any]]) -> None:
    plain = call(*ASK, "--archive", indexed).json
    assert plain["citations"][0]["score"] == answers["embedding"]["citations"][0]["score"]


def test_each_kind_scores_every_chunk_of_the_same_context(answers: dict[str, dict[str, Any]]) -> None:
    by_embedding, by_attention, fused = (cited(answers[kind]) for kind in ("embedding", "attention", "fused"))
    assert set(by_embedding) == set(by_attention) == set(fused) and len(fused) >= 4
    assert min(by_attention.values()) >= 0, "attention per token, 1 at the mean"
    assert min(by_attention.values()) < 1 < max(by_attention.values())
    rounding = 0.5e-6 * len(fused) + 1e-9  # scores are printed with six decimals
    assert sum(fused.values()) == pytest.approx(0, abs=rounding), "a sum of standard scores"
    assert by_embedding != by_attention != fused


def test_the_best_chunk_is_dense_whatever_the_kind(answers: dict[str, dict[str, Any]]) -> None:
    for answer in answers.values():
        scores = [item["score"] for item in answer["citations"]]
        assert scores == sorted(scores, reverse=True)
        assert answer["citations"][0]["level"] == "dense"
        assert answer["context"]["dense_chunks"] <= 2, "two by relevance"
        assert answer["answer"] is not None and answer["coverage"]["videos"] == 4
