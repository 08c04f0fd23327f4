"""Peaks that grow over their neighbours: disjoint, at most as many as wanted, whatever the order of the hits."""

from __future__ import annotations

from pipeline.moments import Stretch, find_stretches
from tests.unit.pipeline.samples import hit


def spans(found: list[Stretch]) -> list[tuple[str, int, int]]:
    return [(s.rows[0].video_id, s.rows[0].group_index, s.rows[-1].group_index) for s in found]


def test_no_hits_and_no_limit() -> None:
    assert find_stretches([], 5) == []
    assert find_stretches([hit("a", 0, 0.5)], 0) == []


def test_a_peak_takes_the_neighbours_that_score_nearer_to_it_than_to_the_usual() -> None:
    scores = [0.0, 0.0, 0.6, 1.0, 0.5, 0.4, 0.0, 0.0, 0.0]
    found = find_stretches([hit("a", i, score) for i, score in enumerate(scores)], 1)
    assert spans(found) == [("a", 2, 4)]
    assert found[0].score == 1.0
    assert found[0].peak.group_index == 3


def test_a_second_peak_does_not_take_what_the_first_took() -> None:
    scores = [0.0, 0.9, 0.8, 1.0, 0.0, 0.0, 0.0, 0.7, 0.0]
    found = find_stretches([hit("a", i, score) for i, score in enumerate(scores)], 2)
    assert spans(found) == [("a", 1, 3), ("a", 7, 7)]


def test_best_first_and_no_more_than_the_limit() -> None:
    hits = [hit("a", 0, 0.1), hit("b", 0, 0.9), hit("c", 0, 0.5)]
    assert [s.score for s in find_stretches(hits, 10)] == [0.9, 0.5, 0.1]
    assert spans(find_stretches(hits, 2)) == [("b", 0, 0), ("c", 0, 0)]


def test_ties_go_to_the_earlier_group_and_to_the_first_video() -> None:
    hits = [hit("b", 0, 0.5), hit("a", 9, 0.5), hit("a", 4, 0.5)]
    assert spans(find_stretches(hits, 3)) == [("a", 4, 4), ("a", 9, 9), ("b", 0, 0)]


def test_the_peak_of_equal_scores_is_the_earliest() -> None:
    found = find_stretches([hit("a", i, 0.5) for i in (2, 1, 0)], 1)
    assert spans(found) == [("a", 0, 2)]
    assert found[0].peak.group_index == 0


def test_one_group_may_be_missing_inside_a_moment_and_not_two() -> None:
    def peaks(*indices: int) -> list[tuple[str, int, int]]:
        quiet = [hit("a", i, 0.0) for i in range(20, 30)]
        return spans(find_stretches([hit("a", i, 1.0) for i in indices] + quiet, 2))

    assert peaks(3, 5)[0] == ("a", 3, 5)
    assert peaks(3, 6)[:2] == [("a", 3, 3), ("a", 6, 6)]


def test_moments_of_different_videos_are_never_joined() -> None:
    hits = [hit("a", 0, 0.9), hit("b", 1, 0.9), hit("b", 0, 0.1), hit("a", 1, 0.1)]
    assert all(len({row.video_id for row in stretch.rows}) == 1 for stretch in find_stretches(hits, 9))
