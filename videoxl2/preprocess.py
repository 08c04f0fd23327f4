"""Raw frames to the pixels a tower takes (``reference`` section 3.2).

Resizing and scaling only; it does not decode and does not choose frames. ``resize_u8`` works without torch, so that
decoding processes stay light; torch is imported by ``frames_to_pixels``.

Shapes: F frames, H height, W width, S side of the square image.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image

if TYPE_CHECKING:
    from torch import Tensor


def resize_u8(frame_HW3: np.ndarray, size: int) -> np.ndarray:
    """One uint8 RGB frame resized to ``size`` x ``size`` by Pillow's bicubic filter; the aspect ratio is not kept."""
    if frame_HW3.dtype != np.uint8 or frame_HW3.ndim != 3 or frame_HW3.shape[2] != 3:
        raise ValueError(f"a frame is uint8 [H, W, 3], got {frame_HW3.dtype} {list(frame_HW3.shape)}")
    if frame_HW3.shape[:2] == (size, size):
        return frame_HW3
    image = Image.fromarray(np.ascontiguousarray(frame_HW3))
    return np.asarray(image.resize((size, size), Image.Resampling.BICUBIC))


def resize_frames(frames_FHW3: Tensor | np.ndarray, image_size: int) -> Tensor:
    """Frames uint8 [F, H, W, 3] as uint8 [F, S, S, 3], by ``resize_u8`` on the CPU where they have another size.

    Raises ``ValueError`` for what is not such frames.
    """
    import torch

    if frames_FHW3.ndim != 4 or frames_FHW3.shape[3] != 3 or frames_FHW3.dtype not in (torch.uint8, np.uint8):
        raise ValueError(f"frames are uint8 [F, H, W, 3], got {frames_FHW3.dtype} {list(frames_FHW3.shape)}")
    if tuple(frames_FHW3.shape[1:3]) != (image_size, image_size):
        array = frames_FHW3.cpu().numpy() if isinstance(frames_FHW3, torch.Tensor) else frames_FHW3
        resized = np.empty((len(array), image_size, image_size, 3), dtype=np.uint8)
        for index, frame in enumerate(array):
            resized[index] = resize_u8(frame, image_size)
        frames_FHW3 = resized
    if isinstance(frames_FHW3, np.ndarray):
        if not frames_FHW3.flags.writeable:
            frames_FHW3 = frames_FHW3.copy()
        frames_FHW3 = torch.from_numpy(frames_FHW3)
    return frames_FHW3


def frames_to_pixels(
    frames_FHW3: Tensor | np.ndarray, image_size: int, bring: Callable[[Tensor], Tensor] | None = None
) -> Tensor:
    """Frames uint8 [F, H, W, 3] to float32 pixels [F, 3, S, S] in [-1, 1], on the device of the frames.

    Frames of another size are resized on the CPU, as the published preprocessing does. ``bring`` takes the resized
    bytes to another device (``upload.FrameUploads``), which then scales them: a quarter of the pixels' bytes travel.
    """
    import torch

    frames_FHW3 = resize_frames(frames_FHW3, image_size)
    if bring is not None:
        frames_FHW3 = bring(frames_FHW3)
    scaled = frames_FHW3.permute(0, 3, 1, 2).to(torch.float32, memory_format=torch.contiguous_format).mul_(1 / 255)
    return scaled.sub_(0.5).div_(0.5)
