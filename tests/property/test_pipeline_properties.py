"""Moments, coverage, anomaly budgets and context plans, whatever the numbers."""

from __future__ import annotations

from datetime import timedelta
from types import SimpleNamespace
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from indexers.anomaly import budget_threshold, robust_z
from indexers.records import CHUNKS_SCHEMA, VectorHit
from indexers.scope import EVERYTHING
from indexers.testing import make_video
from pipeline.ask import _HEADER_ROOM, plan_context, sparse_tokens
from pipeline.config import Settings
from pipeline.coverage import MIN_GAP_S, coverage_of
from pipeline.moments import find_stretches
from pipeline.reader import Resolved
from pipeline.results import Coverage
from tests.unit.pipeline.samples import START, hit, tiny_recipe

SEEDED = settings(max_examples=60, deadline=None, derandomize=True)
SCORES = st.sampled_from([-0.5, 0.0, 0.1, 0.2, 0.3, 0.5, 0.5, 0.9])

hits_strategy = st.dictionaries(st.tuples(st.sampled_from("abc"), st.integers(0, 30)), SCORES, max_size=40).map(
    lambda scores: [hit(video, index, score) for (video, index), score in scores.items()]
)


@SEEDED
@given(hits=hits_strategy, limit=st.integers(0, 12), seed=st.randoms(use_true_random=False))
def test_moments_are_disjoint_limited_ordered_and_free_of_the_order_of_hits(
    hits: list[VectorHit], limit: int, seed: Any
) -> None:
    found = find_stretches(hits, limit)
    shuffled = list(hits)
    seed.shuffle(shuffled)
    assert find_stretches(shuffled, limit) == found
    taken = [row.group_id for stretch in found for row in stretch.rows]
    assert len(taken) == len(set(taken))
    assert len(found) <= limit
    assert [s.score for s in found] == sorted((s.score for s in found), reverse=True)
    for stretch in found:
        assert stretch.score == stretch.peak.score == max(row.score for row in stretch.rows)
        assert [row.start_s for row in stretch.rows] == sorted(row.start_s for row in stretch.rows)
    if len(found) < limit:
        assert len(taken) == len(hits)


@SEEDED
@given(hits=hits_strategy, limit=st.integers(0, 6))
def test_a_larger_limit_only_adds_moments(hits: list[VectorHit], limit: int) -> None:
    assert find_stretches(hits, limit + 3)[:limit] == find_stretches(hits, limit)


@SEEDED
@given(
    pieces=st.lists(st.tuples(st.integers(0, 400), st.integers(1, 400)), max_size=8),
    after_s=st.integers(-200, 1500),
    width_s=st.integers(2, 3000),
)
def test_hours_searched_and_holes_tile_the_range(pieces: list[tuple[int, int]], after_s: int, width_s: int) -> None:
    """For one camera whose recordings do not overlap. Holes that are only jitter are not named."""
    rows, at = [], 0
    for number, (pause_s, length_s) in enumerate(pieces):
        at += pause_s
        rows.append(make_video(str(number), start_time=START + timedelta(seconds=at), duration_s=float(length_s)))
        at += length_s
    after = START + timedelta(seconds=after_s)
    before = after + timedelta(seconds=width_s)
    coverage = coverage_of(rows, cameras=["gate"], after=after, before=before)
    holes = [(gap["start_time"], gap["end_time"]) for gap in coverage.not_indexed]
    assert holes == sorted(holes)
    from datetime import datetime

    spans = [(datetime.fromisoformat(start), datetime.fromisoformat(end)) for start, end in holes]
    assert all(after <= start < end <= before for start, end in spans)
    total_s = coverage.hours * 3600 + sum((end - start).total_seconds() for start, end in spans)
    jitter_s = MIN_GAP_S * (len(pieces) + 1)
    assert width_s - jitter_s <= total_s <= width_s + 1e-3
    for start, end in spans:
        inside = coverage_of(rows, cameras=["gate"], after=start, before=end)
        assert inside.videos == 0


@SEEDED
@given(
    scores=st.lists(st.sampled_from([0.0, 2.9, 3.0, 3.5, 4.0, 4.0, 7.0, 9.5]), max_size=30),
    budget=st.integers(0, 10),
    more=st.integers(0, 10),
)
def test_a_larger_anomaly_budget_only_grows_the_flagged_set(scores: list[float], budget: int, more: int) -> None:
    few, many = budget_threshold(scores, budget, 3.0), budget_threshold(scores, budget + more, 3.0)
    assert few >= many >= 3.0
    assert sum(score >= few for score in scores) <= budget
    assert sum(score >= many for score in scores) <= budget + more
    above = [score for score in scores if score >= 3.0]
    if len(above) <= budget:
        assert few == 3.0


@SEEDED
@given(values=st.lists(st.floats(-100, 100), min_size=1, max_size=40), scale=st.sampled_from([0.5, 2.0, 8.0]))
def test_robust_deviations_are_finite_never_negative_and_keep_the_order(values: list[float], scale: float) -> None:
    array = np.array(values)
    z = robust_z(array, 1e-6)
    assert np.isfinite(z).all() and (z >= 0).all()
    order = np.argsort(array, kind="stable")
    assert (np.diff(z[order]) >= 0).all()
    assert robust_z(array * scale, 1e-6 * scale) == pytest.approx(z, rel=1e-6, abs=1e-6)


class FakeStore:
    """Segments of two chunks each, and every group's similarity to the question."""

    def __init__(self, segments: list[tuple[str, list[tuple[int, float]]]]) -> None:
        self.rows: dict[str, list[dict[str, Any]]] = {}
        self.hits: list[VectorHit] = []
        for number, (video, chunks) in enumerate(segments):
            segment_id = f"{video}-{number}"
            self.rows[segment_id] = [
                {
                    "chunk_id": f"{segment_id}-{index}",
                    "segment_id": segment_id,
                    "video_id": video,
                    "segment_index": number,
                    "chunk_index": index,
                    "camera": None,
                    "uri": f"file:///{video}.mp4",
                    "start_s": number * 100.0 + index * 10,
                    "end_s": number * 100.0 + index * 10 + 10,
                    "start_time": None,
                    "end_time": None,
                    "num_groups": groups,
                    "num_tokens": groups * (3 + 36),
                    "group_time_tokens": [3] * groups,
                    "motion": 0.0,
                    "novelty": None,
                    "kv_offset": 0,
                    "kv_length": 0,
                }
                for index, (groups, _) in enumerate(chunks)
            ]
            for index, (_, score) in enumerate(chunks):
                chunk_id = f"{segment_id}-{index}"
                facts = {"chunk_id": chunk_id, "group_id": chunk_id, "segment_id": segment_id, "video_id": video}
                self.hits.append(VectorHit(**{**hit_fields(score), **facts}))

    def search_vectors(self, vector: Any, scope: Any, limit: int) -> list[VectorHit]:
        return sorted(self.hits, key=lambda found: -found.score)[:limit]

    def chunks(self, *, segment_ids: list[str]) -> pa.Table:
        return pa.Table.from_pylist([row for key in segment_ids for row in self.rows[key]], schema=CHUNKS_SCHEMA)


def hit_fields(score: float) -> dict[str, Any]:
    found = hit("x", 0, score)
    return {name: getattr(found, name) for name in found.__slots__}


RECIPE = tiny_recipe()
segments_strategy = st.lists(
    st.tuples(st.sampled_from("abc"), st.lists(st.tuples(st.integers(1, 6), SCORES), min_size=1, max_size=3)),
    min_size=1,
    max_size=8,
)


@SEEDED
@given(segments=segments_strategy, budget=st.integers(400, 4000))
def test_a_plan_fits_its_budget_takes_the_best_of_each_segment_and_keeps_a_video_together(
    segments: list[tuple[str, list[tuple[int, float]]]], budget: int
) -> None:
    store = FakeStore(segments)
    reader: Any = SimpleNamespace(
        store=store,
        settings=Settings(),
        manifest=SimpleNamespace(recipe=RECIPE),
        text_encoder=SimpleNamespace(embed=lambda texts: np.zeros((1, 2))),
    )
    plan = plan_context(reader, "what?", Resolved(scope=EVERYTHING, coverage=Coverage(videos=1, hours=1.0)), budget)
    taken = {chunk.row["segment_id"] for chunk in plan}
    best = max(store.hits, key=lambda found: found.score)
    assert any(store.rows[key][0]["video_id"] for key in taken)
    assert max(chunk.score for chunk in plan) == best.score
    assert len(taken) <= reader.settings.query.max_segments
    scores = {found.chunk_id: found.score for found in store.hits}
    planned = [chunk.row["chunk_id"] for chunk in plan]
    assert len(planned) == len(set(planned))
    for key in taken:
        ours = [scores[row["chunk_id"]] for row in store.rows[key] if row["chunk_id"] in planned]
        left_out = [scores[row["chunk_id"]] for row in store.rows[key] if row["chunk_id"] not in planned]
        assert min(ours) >= max(left_out, default=-1.0)
    used = sum(
        chunk.row["num_tokens"] if chunk.level.value == "dense" else sparse_tokens(chunk.row, RECIPE.compression)
        for chunk in plan
    )
    assert used + _HEADER_ROOM * len(taken) <= budget
    videos = [chunk.row["video_id"] for chunk in plan]
    assert len([1 for a, b in zip([None, *videos], videos, strict=False) if a != b]) == len(set(videos))
    for video in set(videos):
        starts = [chunk.row["start_s"] for chunk in plan if chunk.row["video_id"] == video]
        assert starts == sorted(starts)
