"""Where the recorded tensors of the published code lie, and how tensors are compared here."""

from __future__ import annotations

from pathlib import Path

from torch import Tensor

GOLDEN_FOLDER = Path(__file__).parent / "golden"


def max_difference(found: Tensor, expected: Tensor) -> float:
    """Largest absolute difference; the shapes must be equal."""
    assert found.shape == expected.shape, f"{list(found.shape)} against {list(expected.shape)}"
    return float((found - expected).abs().max())
