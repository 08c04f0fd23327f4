"""Windows of recorded clips as the first stage sees them."""

from __future__ import annotations

import numpy as np

from videoxl2.training.samples import CELL_MOTIONS
from videoxl2.training.stage_perception import mirrored


def test_a_mirrored_window_exchanges_left_and_right_and_nothing_else() -> None:
    rng = np.random.default_rng(0)
    frames = rng.integers(0, 255, (4, 6, 8, 3)).astype(np.uint8)
    owners = rng.integers(0, 3, (4, 3, 4)).astype(np.uint8)
    tables = rng.integers(0, 2, (4, 5, 3)).astype(np.uint8)
    tables[:, 3] = [CELL_MOTIONS.index(name) for name in ("left", "right", "away")]
    again = tables.copy()
    seen_frames, seen_owners, seen_tables = mirrored(frames, owners, tables)
    assert np.array_equal(seen_frames[2, :, 0], frames[2, :, 7])
    assert np.array_equal(seen_owners[1, :, 3], owners[1, :, 0])
    assert [CELL_MOTIONS[code] for code in seen_tables[0, 3]] == ["right", "left", "away"]
    assert np.array_equal(np.delete(seen_tables, 3, axis=1), np.delete(tables, 3, axis=1))
    assert np.array_equal(tables, again)  # the clip's own labels stay
    for once, original in zip(mirrored(seen_frames, seen_owners, seen_tables), (frames, owners, tables), strict=True):
        assert np.array_equal(once, original)
