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
def tiny_pixels() -> Tensor:
    """Ten frames that differ from each other: two whole groups and a half."""
    return torch.rand(10, 3, 208, 208, generator=torch.Generator().manual_seed(0)) * 2 - 1


@pytest.fixture(scope="session")
def tiny_prefill(tiny_model: VideoXL2) -> PrefillResult:
    """Fourteen groups in chunks of three."""
    visual = torch.randn(14, 36, 128, generator=torch.Generator().manual_seed(1))
    settings = PrefillSettings(block_groups=2, previous_blocks=2)
    return tiny_model.prefill(visual, [4.0 * group for group in range(14)], settings, chunk_groups=3)
