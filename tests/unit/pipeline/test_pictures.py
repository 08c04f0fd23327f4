"""Small pictures: the resize is Pillow's, thumbnails keep the aspect, motion is a plain difference."""

from __future__ import annotations

import io

import numpy as np
import pytest
from PIL import Image

from pipeline import pictures


def test_the_square_input_is_pillows_bicubic_resize() -> None:
    rgb = np.random.default_rng(0).integers(0, 256, (90, 160, 3), dtype=np.uint8)
    made = pictures.make_pictures(rgb, image_size=48, embed_size=32, thumbnail_size=(64, 36))
    expected = np.asarray(Image.fromarray(rgb).resize((48, 48), Image.Resampling.BICUBIC))
    np.testing.assert_array_equal(made.image_HWC, expected)
    assert made.embed_HWC is not None
    assert made.embed_HWC.shape == (32, 32, 3)
    assert made.small is not None
    assert made.small.size == (64, 36)
    assert Image.open(io.BytesIO(pictures.jpeg(made.small))).size == (64, 36)


@pytest.mark.parametrize(
    ("display", "expected"),
    [((1280, 720), (320, 180)), ((404, 720), (180, 320)), ((160, 96), (160, 96)), ((9000, 2), (320, 1))],
)
def test_thumbnail_size(display: tuple[int, int], expected: tuple[int, int]) -> None:
    assert pictures.thumbnail_size(display, 320) == expected


def test_motion_runs_from_nothing_to_everything() -> None:
    black, white = np.zeros((36, 64), np.int16), np.full((36, 64), 255, np.int16)
    assert pictures.motion(white, None) == 0.0
    assert pictures.motion(white, white) == 0.0
    assert pictures.motion(black, white) == pictures.motion(white, black) == 1.0
