"""Intervals against values known from elsewhere, and that they shrink, contain and repeat."""

from __future__ import annotations

import itertools

import pytest

from jobs.evaluation.statistics import NOTHING, chance_of_a_hit, median_of, paired_difference, share


def test_wilson_intervals_agree_with_the_textbook() -> None:
    """Newcombe 1998, table I: 81 of 263, 15 of 148, 0 of 20, 1 of 29."""
    for right, n, low, high in (
        (81, 263, 0.2553, 0.3662),
        (15, 148, 0.0624, 0.1605),
        (0, 20, 0.0, 0.1611),
        (1, 29, 0.0061, 0.1718),
    ):
        found = share([True] * right + [False] * (n - right))
        assert found.value == right / n and found.n == n
        assert found.low == pytest.approx(low, abs=1e-4) and found.high == pytest.approx(high, abs=1e-4)


def test_an_interval_holds_its_share_and_stays_between_0_and_1() -> None:
    for n in (1, 2, 7, 300):
        for right in {0, 1, n // 2, n}:
            found = share([True] * right + [False] * (n - right))
            assert found.low is not None and found.high is not None and found.value is not None
            assert 0.0 <= found.low <= found.value <= found.high <= 1.0
            assert found.low < found.high


def test_nothing_gives_nothing() -> None:
    assert share([]) == median_of([]) == paired_difference([], []) == NOTHING
    assert NOTHING.to_dict() == {"value": None, "low": None, "high": None, "n": 0}


def test_the_median_and_its_interval() -> None:
    values = [float(value) for value in range(101)]
    found = median_of(values)
    assert found.value == 50.0 and found.low is not None and found.high is not None
    assert 30.0 < found.low < 45.0 < 55.0 < found.high < 70.0  # order statistics give 40 and 60
    assert median_of(values) == found
    assert median_of([7.0]).low == median_of([7.0]).high == 7.0
    narrow = median_of(values * 20)
    assert narrow.low is not None and narrow.high is not None
    assert narrow.high - narrow.low < (found.high - found.low) / 2


def test_differences_are_paired() -> None:
    ours, theirs = [True] * 90 + [False] * 10, [True] * 80 + [False] * 20
    found = paired_difference(ours, theirs)
    assert found.value == pytest.approx(0.1)
    assert found.low is not None and found.high is not None and 0.03 < found.low < 0.1 < found.high < 0.18
    assert paired_difference(theirs, ours).value == pytest.approx(-0.1)
    same = paired_difference(ours, ours)
    assert (same.value, same.low, same.high) == (0.0, 0.0, 0.0)
    with pytest.raises(ValueError, match="paired"):
        paired_difference([True], [])


@pytest.mark.parametrize(
    ("items", "right", "drawn"), [(6, 2, 1), (6, 2, 3), (5, 1, 5), (4, 0, 2), (3, 3, 1), (4, 1, 9)]
)
def test_the_chance_of_a_hit_is_what_counting_gives(items: int, right: int, drawn: int) -> None:
    draws = list(itertools.combinations(range(items), min(drawn, items)))
    counted = sum(any(item < right for item in draw) for draw in draws) / len(draws)
    assert chance_of_a_hit(items, right, drawn) == pytest.approx(counted)
