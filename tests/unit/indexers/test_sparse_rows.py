"""Sparse KV split into rows and joined again."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from indexers.errors import CorruptKV
from indexers.sparse import SparseParts, checked_parts, plan_parts, sparse_rows

GROUP_TOKENS = [3, 5, 4]
SHAPE = (2, 2, 3, 12, 4)


def make_rows(max_bytes: int) -> tuple[np.ndarray, list[dict[str, Any]]]:
    kv = np.random.default_rng(0).integers(0, 255, size=(*SHAPE[:4], SHAPE[4] * 2), dtype=np.uint8)
    rows = sparse_rows(
        kv,
        chunk_id="c",
        segment_id="s",
        video_id="v",
        dtype="bfloat16",
        shape=SHAPE,
        group_tokens=GROUP_TOKENS,
        compression=4,
        max_bytes=max_bytes,
    )
    return kv, rows


def test_rows_hold_as_many_groups_as_fit_and_at_least_one() -> None:
    assert plan_parts([10, 10, 10, 10], 25) == [(0, 2), (2, 2)]
    assert plan_parts([10, 30, 10], 20) == [(0, 1), (1, 1), (2, 1)]
    assert plan_parts([5], 1) == [(0, 1)]
    assert plan_parts([], 10) == []


@pytest.mark.parametrize(("max_bytes", "num_rows"), [(1, 3), (800, 2), (10_000, 1)])
def test_splitting_and_joining_gives_the_same_bytes(max_bytes: int, num_rows: int) -> None:
    kv, rows = make_rows(max_bytes)
    assert len(rows) == num_rows
    parts = checked_parts("c", list(reversed(rows)))
    assert parts.shape == SHAPE
    assert parts.num_groups == 3
    assert parts.num_bytes == kv.nbytes
    assert (parts.dtype, parts.compression) == ("bfloat16", 4)
    np.testing.assert_array_equal(parts.join().reshape(kv.shape), kv)


def test_damage_is_found() -> None:
    _, rows = make_rows(1)
    with pytest.raises(CorruptKV, match=r"chunk c: parts \[0, 2\] are stored, 3 belong"):
        checked_parts("c", [rows[0], rows[2]])
    flipped = bytearray(rows[1]["kv"])
    flipped[7] ^= 1
    with pytest.raises(CorruptKV, match="checksum of part 1"):
        checked_parts("c", [rows[0], {**rows[1], "kv": bytes(flipped)}, rows[2]])
    with pytest.raises(CorruptKV, match="its shape is"):
        checked_parts("c", [{**rows[0], "shape": [1, 1, 1, 1, 1]}, *rows[1:]])


def test_group_tokens_must_cover_the_array() -> None:
    with pytest.raises(ValueError, match="groups have 1 tokens, the array has 12"):
        sparse_rows(
            np.zeros(8, np.uint8),
            chunk_id="c",
            segment_id="s",
            video_id="v",
            dtype="float16",
            shape=SHAPE,
            group_tokens=[1],
            compression=4,
            max_bytes=1,
        )


def test_one_part_is_not_copied() -> None:
    _, rows = make_rows(10_000)
    parts = checked_parts("c", rows)
    assert isinstance(parts, SparseParts)
    assert np.shares_memory(parts.join(), parts.parts[0].kv_u8)
