"""The packaged small model, loaded once."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from videoxl2.config import PrefillSettings
from videoxl2.model import VideoXL2
from videoxl2.prefill import PrefillResult


@pytest.fixture(scope="session")
def tiny_model() -> VideoXL2:
    return VideoXL2.from_pretrained("tiny", device="cpu")


@pytest.fixture(scope="session")
def tiny_pixels(tiny_model: VideoXL2) -> Tensor:
    """Ten frames that differ from each other: two whole groups and a half."""
    side = tiny_model.spec.vision.image_size
    return torch.rand(10, 3, side, side, generator=torch.Generator().manual_seed(0)) * 2 - 1


@pytest.fixture(scope="session")
def tiny_prefill(tiny_model: VideoXL2) -> PrefillResult:
    """Fourteen groups in chunks of three."""
    shape = (14, tiny_model.spec.tokens_per_group, tiny_model.spec.language.width)
    visual = torch.randn(shape, generator=torch.Generator().manual_seed(1))
    settings = PrefillSettings(block_groups=2, previous_blocks=2)
    return tiny_model.prefill(visual, [4.0 * group for group in range(14)], settings, chunk_groups=3)
