"""Frames become pixels of the right size, range and layout."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from videoxl2.preprocess import frames_to_pixels, resize_u8


def test_values_are_scaled_to_minus_one_and_one() -> None:
    frames = np.zeros((2, 4, 4, 3), dtype=np.uint8)
    frames[1] = 255
    pixels = frames_to_pixels(frames, 4)
    assert pixels.shape == (2, 3, 4, 4) and pixels.dtype == torch.float32
    assert (pixels[0] == -1).all() and (pixels[1] == 1).all()


def test_channels_move_to_the_front_and_the_input_stays_as_it_is() -> None:
    frames = torch.randint(0, 256, (2, 5, 5, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    before = frames.clone()
    pixels = frames_to_pixels(frames, 5)
    assert torch.equal(frames, before)
    assert torch.allclose(pixels[1, 2, 3, 4], frames[1, 3, 4, 2] / 127.5 - 1, atol=1e-6)


def test_arrays_and_tensors_agree_also_when_resized() -> None:
    frames = np.random.default_rng(0).integers(0, 256, (2, 7, 9, 3), dtype=np.uint8)
    frames.setflags(write=False)
    expected = np.stack([resize_u8(frame, 6) for frame in frames])
    assert torch.equal(frames_to_pixels(frames, 6), frames_to_pixels(torch.from_numpy(frames.copy()), 6))
    assert torch.equal(frames_to_pixels(frames, 6), frames_to_pixels(expected, 6))


def test_a_frame_of_the_right_size_is_not_copied() -> None:
    frame = np.zeros((8, 8, 3), dtype=np.uint8)
    assert resize_u8(frame, 8) is frame


@pytest.mark.parametrize(
    "frame", [np.zeros((4, 4), np.uint8), np.zeros((4, 4, 4), np.uint8), np.zeros((4, 4, 3), np.float32)]
)
def test_other_arrays_are_refused(frame: np.ndarray) -> None:
    with pytest.raises(ValueError, match="uint8"):
        resize_u8(frame, 2)
    with pytest.raises(ValueError, match="uint8"):
        frames_to_pixels(frame[None], 4)
