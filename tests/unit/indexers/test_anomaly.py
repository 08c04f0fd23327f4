"""Deviations from a camera's own normal, and the threshold that keeps a false-alarm budget."""

from __future__ import annotations

import numpy as np
import pytest

from indexers.anomaly import MAD_TO_SIGMA, MIN_GROUPS, GroupScores, budget_threshold, robust_z, score_groups


def test_deviations_are_robust_standard_deviations_above_the_median() -> None:
    values = np.array([0.0, 1.0, 2.0, 3.0, 4.0])  # median 2, median absolute deviation 1
    assert robust_z(values, 0.0) == pytest.approx([0, 0, 0, 1 / MAD_TO_SIGMA, 2 / MAD_TO_SIGMA])


def test_a_few_events_do_not_hide_themselves() -> None:
    calm = np.tile([1.0, 1.1, 0.9], 30)
    alone = robust_z(np.append(calm, 3.0), 1e-3)[-1]
    assert robust_z(np.append(calm, [3.0] * 10), 1e-3)[-1] == pytest.approx(alone, rel=0.5)
    assert alone > 10


def test_the_floor_keeps_sensor_noise_usual() -> None:
    still = np.append(np.zeros(50), 0.001)
    assert robust_z(still, 0.002)[-1] == pytest.approx(0.5)
    assert robust_z(still, 1e-6)[-1] == pytest.approx(1000)


@pytest.mark.parametrize(
    ("budget", "passing"),
    [(0, []), (1, [9.0]), (2, [9.0]), (3, [9.0, 5.0, 5.0]), (4, [9.0, 5.0, 5.0, 3.0]), (99, [9.0, 5.0, 5.0, 3.0])],
)
def test_at_most_the_budget_passes_and_ties_pass_together(budget: int, passing: list[float]) -> None:
    scores = [1.0, 5.0, 9.0, 3.0, 5.0, 2.9]
    threshold = budget_threshold(scores, budget, 3.0)
    assert [score for score in sorted(scores, reverse=True) if score >= threshold] == passing


def test_the_threshold_is_never_below_its_floor() -> None:
    assert budget_threshold([], 5, 3.0) == 3.0
    assert budget_threshold([1.0, 2.0], 5, 3.0) == 3.0


def vectors(count: int) -> np.ndarray:
    rng = np.random.default_rng(0)
    usual = np.tile([1.0, 0.0, 0.0, 0.0], (count, 1)) + rng.normal(0, 0.02, (count, 4))
    return usual / np.linalg.norm(usual, axis=1, keepdims=True)


def test_too_little_footage_has_no_normal() -> None:
    motion = np.append(np.zeros(MIN_GROUPS - 2), 1.0)
    assert score_groups(motion, vectors(MIN_GROUPS - 1)).score_G.tolist() == [0.0] * (MIN_GROUPS - 1)
    assert score_groups(np.append(motion, 0.0), vectors(MIN_GROUPS)).score_G.max() > 3
    assert len(score_groups(np.zeros(0), np.zeros((0, 4))).score_G) == 0


def test_motion_and_appearance_are_each_enough_and_each_is_named() -> None:
    motion, appearance = np.full(40, 0.01), vectors(40)
    motion[5] = 0.5
    appearance[9] = [0.0, 1.0, 0.0, 0.0]
    scores = score_groups(motion, appearance)
    assert sorted(np.argsort(scores.score_G)[-2:].tolist()) == [5, 9]
    assert scores.reason(5).startswith("more motion than usual")
    assert "picture differs" not in scores.reason(5)
    assert scores.reason(9).startswith("the picture differs")
    assert "motion" not in scores.reason(9)


def test_a_reason_gives_the_number_and_names_both_where_both_are_large() -> None:
    scores = GroupScores(motion_G=np.array([4.04, 0.0]), appearance_G=np.array([5.0, 0.0]))
    assert scores.reason(0) == (
        "the picture differs from this camera's usual view (5.0 sigma); more motion than usual (4.0 sigma)"
    )
    assert scores.reason(1)


def test_less_motion_than_usual_is_not_unusual() -> None:
    motion = np.append(np.full(40, 0.5), 0.0)
    assert score_groups(motion, vectors(41)).motion_G[-1] == 0.0


def test_vectors_without_a_direction_in_common_do_not_divide_by_zero() -> None:
    opposite = np.array([[1.0, 0.0], [-1.0, 0.0]] * 5)
    assert np.isfinite(score_groups(np.zeros(10), opposite).score_G).all()
