"""What background pictures are made of: noise looked up in strips is the noise looked up point by point."""

from __future__ import annotations

import numpy as np
import pytest

from videoxl2.training.painter import Painter, Texture
from videoxl2.training.storyboard import DEMO_CAMERAS


def plain_texture(grid: np.ndarray, a: np.ndarray, b: np.ndarray, cell: float) -> np.ndarray:
    """Bilinear interpolation in a grid that repeats, all points at once."""
    size = len(grid)
    fa, fb = np.nan_to_num(a / cell), np.nan_to_num(b / cell)
    ia, ib = np.floor(fa), np.floor(fb)
    ta, tb = fa - ia, fb - ib
    ia, ib = ia.astype(np.int64) % size, ib.astype(np.int64) % size
    ja, jb = (ia + 1) % size, (ib + 1) % size
    low = grid[ia, ib] * (1 - tb) + grid[ia, jb] * tb
    high = grid[ja, ib] * (1 - tb) + grid[ja, jb] * tb
    return np.asarray(low * (1 - ta) + high * ta, np.float32)


@pytest.mark.parametrize("rows", [1, 15, 16, 17, 100])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_noise_is_looked_up_in_strips_as_at_once(rows: int, dtype: type) -> None:
    grid = np.random.default_rng(5).normal(0.0, 0.6, (256, 256)).astype(np.float32)
    texture, rng = Texture(np.random.default_rng(5)), np.random.default_rng(rows)
    a, b = rng.normal(0, 400, (2, rows, 33)).astype(dtype)
    a[0, :3] = 1e6, -1e6, np.nan
    np.testing.assert_array_equal(texture(a, b, 0.7), plain_texture(grid, a, b, 0.7))
    np.testing.assert_array_equal(texture(a[:, :1], b, 3.0), plain_texture(grid, a[:, :1], b, 3.0))


def test_only_what_is_to_be_painted_is_painted() -> None:
    painter = Painter.of(DEMO_CAMERAS["corridor"])
    before = np.random.default_rng(0).random(painter.rgb.shape).astype(np.float32)
    painter.rgb[:] = before
    where = np.random.default_rng(1).random(painter.depth.shape) < 0.3
    tone = np.random.default_rng(2).random(painter.depth.shape).astype(np.float32)
    painter.paint(where, (10, 200, 30), tone)
    expected = np.where(where[..., None], np.asarray((10, 200, 30), np.float32) * tone[..., None], before)
    np.testing.assert_array_equal(painter.rgb, expected)
    painter.paint(~where, (1, 2, 3))
    assert (painter.rgb[~where] == (1, 2, 3)).all()
