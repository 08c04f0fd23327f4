"""Small pictures made from a decoded frame: the model's square input, a thumbnail, the luma used to measure motion.

Input is always uint8 RGB, height x width x 3, upright. Plain Pillow: this runs in the decoding process, which never
imports torch, and Pillow's bicubic resize is the published preprocessing of the model (reference 3.2).
"""

from __future__ import annotations

import io
from dataclasses import dataclass

import numpy as np
from PIL import Image

MOTION_SIZE = (64, 36)
_THUMBNAIL_QUALITY = 80


@dataclass(frozen=True, eq=False)
class FramePictures:
    """What is kept of one sampled frame."""

    image_HWC: np.ndarray
    """uint8 RGB, square, as the vision tower takes it before scaling to [-1, 1]."""
    embed_HWC: np.ndarray | None
    """The same for the dual encoder where its size differs."""
    luma_HW: np.ndarray
    """int16, 36 x 64."""
    small: Image.Image | None
    """The frame at thumbnail size, aspect kept, where one was asked for."""


def resize_square(frame: Image.Image, size: int) -> np.ndarray:
    """``frame`` as ``size`` x ``size`` uint8 RGB by Pillow's bicubic filter; the aspect is not kept, as published."""
    return np.asarray(frame.resize((size, size), Image.Resampling.BICUBIC))


def make_pictures(
    rgb_HWC: np.ndarray,
    *,
    image_size: int,
    embed_size: int | None,
    thumbnail_size: tuple[int, int] | None,
) -> FramePictures:
    """Everything that is kept of a frame. ``embed_size`` None: not wanted, or the same as ``image_size``."""
    frame = Image.fromarray(rgb_HWC)
    image_HWC = resize_square(frame, image_size)
    luma = Image.fromarray(image_HWC).convert("L").resize(MOTION_SIZE, Image.Resampling.BOX)
    return FramePictures(
        image_HWC=image_HWC,
        embed_HWC=None if embed_size is None else resize_square(frame, embed_size),
        luma_HW=np.asarray(luma, dtype=np.int16),
        small=None
        if thumbnail_size is None
        else frame.resize(thumbnail_size, Image.Resampling.BICUBIC, reducing_gap=3.0),
    )


def thumbnail_size(display_size: tuple[int, int], longest_px: int) -> tuple[int, int]:
    """Width and height of a thumbnail whose longer side is ``longest_px``; small videos are not enlarged."""
    width, height = display_size
    scale = min(1.0, longest_px / max(width, height))
    return max(1, round(width * scale)), max(1, round(height * scale))


def jpeg(picture: Image.Image) -> bytes:
    """The picture as JPEG; the same picture gives the same bytes."""
    buffer = io.BytesIO()
    picture.save(buffer, "JPEG", quality=_THUMBNAIL_QUALITY)
    return buffer.getvalue()


def motion(luma_HW: np.ndarray, previous_HW: np.ndarray | None) -> float:
    """Mean absolute difference of two lumas, 0..1; 0.0 where there is no previous frame."""
    if previous_HW is None:
        return 0.0
    return float(np.abs(luma_HW - previous_HW).mean() / 255.0)
