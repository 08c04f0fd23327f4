"""Levels, selection lists, pooling and joining, whatever the sizes."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from videoxl2.config import LevelSettings
from videoxl2.decode import published_dense_chunks, select_levels
from videoxl2.errors import ContextOverflow
from videoxl2.kv import ChunkKV, KVLevel, join_chunks, kv_from_buffer, kv_to_numpy, sparsify

SEEDED = settings(max_examples=60, deadline=None, derandomize=True)
scores_strategy = st.lists(st.floats(-1, 1, width=16), min_size=1, max_size=30)


def dense(levels: list[KVLevel]) -> set[int]:
    return {index for index, level in enumerate(levels) if level is KVLevel.DENSE}


def chunk_of(groups: list[tuple[int, int]], seed: int = 0, dtype: torch.dtype = torch.float32) -> ChunkKV:
    tokens = sum(map(sum, groups))
    kv = torch.randn(2, 2, 2, tokens, 4, generator=torch.Generator().manual_seed(seed)).to(dtype)
    return ChunkKV(kv, tuple(groups), KVLevel.DENSE)


groups_strategy = st.lists(st.tuples(st.integers(0, 5), st.integers(0, 13)), min_size=1, max_size=6)


@SEEDED
@given(scores=scores_strategy, smaller=st.integers(0, 10), more=st.integers(0, 10), ends=st.booleans())
def test_a_larger_dense_budget_contains_the_smaller(scores: list[float], smaller: int, more: int, ends: bool) -> None:
    few, many = (
        dense(select_levels(scores, LevelSettings(max_dense_chunks=budget, dense_share=None, dense_first_last=ends)))
        for budget in (smaller, smaller + more)
    )
    assert few <= many
    assert not ends or {0, len(scores) - 1} <= few
    best = sorted(range(len(scores)), key=lambda index: (-scores[index], index))[:smaller]
    assert few == set(best) | ({0, len(scores) - 1} if ends else set())


@SEEDED
@given(
    scores=scores_strategy,
    shares=st.tuples(st.integers(1, 1000), st.integers(1, 1000)).map(sorted),
    cap=st.integers(0, 40),
    neighbours=st.integers(0, 2),
    ends=st.booleans(),
)
def test_a_larger_dense_share_contains_the_smaller(
    scores: list[float], shares: list[int], cap: int, neighbours: int, ends: bool
) -> None:
    def chosen(thousandths: int | None, limit: int = cap) -> set[int]:
        share = None if thousandths is None else thousandths / 1000
        knobs = LevelSettings(max_dense_chunks=limit, dense_share=share, neighbours=neighbours, dense_first_last=ends)
        return dense(select_levels(scores, knobs))

    smaller, larger = shares
    assert chosen(smaller) <= chosen(larger) <= chosen(None)
    assert chosen(1000) == chosen(None), "a share of one leaves the number alone"
    # The share is what a number of the same size gives: rounded up, in exact arithmetic, and at least one.
    assert chosen(smaller) == chosen(None, min(cap, max(1, -(-smaller * len(scores) // 1000))))


@pytest.mark.parametrize(
    ("num_chunks", "share", "expected"),
    [(0, 0.2, 0), (1, 0.2, 1), (5, 0.2, 1), (6, 0.2, 2), (30, 0.1, 3), (25, 0.35, 9), (25, 1.0, 25), (4, None, 4)],
)
def test_the_number_that_a_share_gives(num_chunks: int, share: float | None, expected: int) -> None:
    assert LevelSettings(max_dense_chunks=100, dense_share=share).num_best(num_chunks) == expected
    assert LevelSettings(max_dense_chunks=2, dense_share=share).num_best(num_chunks) == min(2, expected)
    assert LevelSettings(max_dense_chunks=0, dense_share=share).num_best(num_chunks) == 0


@SEEDED
@given(scores=scores_strategy, room=st.integers(0, 400), more=st.integers(0, 200))
def test_a_token_budget_is_never_exceeded_and_nests(scores: list[float], room: int, more: int) -> None:
    sizes, knobs = [(20 + index % 7, 5) for index in range(len(scores))], LevelSettings(dense_share=None)
    dense_tokens, sparse_tokens = [size for size, _ in sizes], [size for _, size in sizes]
    chosen: list[set[int]] = []
    for limit in (room, room + more):
        if limit < sum(sparse_tokens):
            with pytest.raises(ContextOverflow):
                select_levels(scores, knobs, dense_tokens=dense_tokens, sparse_tokens=sparse_tokens, max_tokens=limit)
            chosen.append(set())
            continue
        levels = select_levels(scores, knobs, dense_tokens=dense_tokens, sparse_tokens=sparse_tokens, max_tokens=limit)
        chosen.append(dense(levels))
        assert sum(sizes[index][0 if index in chosen[-1] else 1] for index in range(len(scores))) <= limit
    assert chosen[0] <= chosen[1]


@SEEDED
@given(units=st.lists(st.integers(-3, 90), max_size=8), chunk_groups=st.integers(1, 16), num_chunks=st.integers(1, 20))
def test_published_selection(units: list[int], chunk_groups: int, num_chunks: int) -> None:
    found = published_dense_chunks(units, chunk_groups, num_chunks)
    assert list(found) == sorted(set(found)) and all(0 <= chunk < num_chunks for chunk in found)
    if not units:
        assert found == tuple(range(num_chunks))
        return
    assert {0, num_chunks - 1} <= set(found)
    for unit in units:
        chunk = math.floor(unit / (chunk_groups / 2))
        assert chunk in found or not 0 <= chunk < num_chunks


def test_published_selection_of_an_odd_size() -> None:
    assert published_dense_chunks([4], 3, 9) == (0, 2, 8)


@SEEDED
@given(groups=groups_strategy, compression=st.integers(1, 5))
def test_sparse_keeps_timestamps_and_averages_visual_runs(groups: list[tuple[int, int]], compression: int) -> None:
    chunk = chunk_of(groups)
    sparse = sparsify(chunk, compression)
    assert sparse.level is KVLevel.SPARSE
    assert sparse.groups == tuple((num_time, num_visual // compression) for num_time, num_visual in groups)
    for index, (num_time, num_visual) in enumerate(groups):
        before = chunk.take_groups(index, index + 1).kv_LSKMDh
        after = sparse.take_groups(index, index + 1).kv_LSKMDh
        assert torch.equal(after[:, :, :, :num_time], before[:, :, :, :num_time])
        for run in range(num_visual // compression):
            start = num_time + run * compression
            expected = before[:, :, :, start : start + compression].mean(dim=3)
            torch.testing.assert_close(after[:, :, :, num_time + run], expected)


@SEEDED
@given(groups=groups_strategy, cut=st.integers(0, 6))
def test_parts_join_to_the_whole(groups: list[tuple[int, int]], cut: int) -> None:
    chunk = chunk_of(groups)
    joined = join_chunks([chunk.take_groups(0, cut), chunk.take_groups(min(cut, len(groups)), len(groups))])
    assert joined.groups == chunk.groups and torch.equal(joined.kv_LSKMDh, chunk.kv_LSKMDh)


@SEEDED
@given(groups=groups_strategy, dtype=st.sampled_from(["float32", "float16", "bfloat16"]), seed=st.integers(0, 3))
def test_bytes_round_trip_bit_for_bit(groups: list[tuple[int, int]], dtype: str, seed: int) -> None:
    chunk = chunk_of(groups, seed, getattr(torch, dtype))
    raw = kv_to_numpy(chunk.kv_LSKMDh)
    assert raw.nbytes == chunk.num_bytes
    for buffer in (raw, raw.tobytes(), memoryview(bytearray(raw.tobytes()))):
        back = kv_from_buffer(buffer, dtype, chunk.kv_LSKMDh.shape)
        assert back.dtype == chunk.kv_LSKMDh.dtype and torch.equal(back, chunk.kv_LSKMDh)
