"""DTS features to visual tokens of the language model (``reference`` section 1.5): MLP first, then pooling.

The order matters: the MLP is not linear, so pooling first gives other tokens.

Shapes: G frame groups, S grid positions, C channels, P visual tokens per group, D text width.
"""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional

from videoxl2.config import ModelSpec


class VisualProjector(nn.Module):
    """Linear, exact GELU, linear on every grid position; then square pooling."""

    def __init__(self, spec: ModelSpec) -> None:
        super().__init__()
        self.grid, self.pool_stride, self.pool_mode = spec.dts.grid, spec.pool_stride, spec.pool_mode
        width = spec.language.width
        self.mlp = nn.Sequential(nn.Linear(spec.dts.channels, width), nn.GELU(), nn.Linear(width, width))

    def forward(self, features_GSC: Tensor) -> Tensor:
        """[G, S, C] to visual tokens [G, P, D], row-major."""
        maps_GDyx = self.mlp(features_GSC).transpose(1, 2).unflatten(2, (self.grid, self.grid))
        pool = functional.avg_pool2d if self.pool_mode == "average" else functional.max_pool2d
        return pool(maps_GDyx, self.pool_stride).flatten(2).transpose(1, 2)
