"""Rotary position embedding, half-split form (``reference`` section 1.7). Keys are stored before it and rotated once.

Shapes: T tokens, Dh head width.
"""

from __future__ import annotations

import torch
from torch import Tensor


class RotaryTable:
    """Cosines and sines of a run of positions, computed in float32 and kept in the model's dtype."""

    def __init__(self, positions_T: Tensor, head_dim: int, theta: float, dtype: torch.dtype) -> None:
        exponents = torch.arange(0, head_dim, 2, device=positions_T.device, dtype=torch.float32) / head_dim
        angles_TH = positions_T.to(torch.float32)[:, None] * (1.0 / theta**exponents)
        angles_TDh = torch.cat((angles_TH, angles_TH), dim=-1)
        self._cos_TDh, self._sin_TDh = angles_TDh.cos().to(dtype), angles_TDh.sin().to(dtype)

    def rotate(self, x_TDh: Tensor) -> Tensor:
        """Rotate [..., T, Dh] to the table's positions."""
        first, second = x_TDh.chunk(2, dim=-1)
        return x_TDh * self._cos_TDh + torch.cat((-second, first), dim=-1) * self._sin_TDh
