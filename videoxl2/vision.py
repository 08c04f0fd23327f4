"""SigLIP image tower (``reference`` section 1.1): frames in, one feature per patch out.

The feature is the last hidden state of the layers that are run, before the tower's final norm. The layers are shared
with the dual encoder, which adds that norm and a head.

Shapes: F frames, S image side, P patches or tokens, D width, N heads, Dh head width.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from videoxl2.attention import AttentionBackend, attend
from videoxl2.config import VisionSpec


class SiglipAttention(nn.Module):
    """Bidirectional multi-head attention over all tokens of one frame (or text)."""

    def __init__(self, width: int, num_heads: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.q_proj = nn.Linear(width, width)
        self.k_proj = nn.Linear(width, width)
        self.v_proj = nn.Linear(width, width)
        self.out_proj = nn.Linear(width, width)
        self.backend = AttentionBackend.SDPA

    def forward(self, hidden_FPD: Tensor) -> Tensor:
        q, k, v = (self._heads(proj(hidden_FPD)) for proj in (self.q_proj, self.k_proj, self.v_proj))
        attended_FNPDh = attend(q, k, v, backend=self.backend)
        return self.out_proj(attended_FNPDh.transpose(1, 2).flatten(2))

    def _heads(self, x_FPD: Tensor) -> Tensor:
        return x_FPD.unflatten(2, (self.num_heads, -1)).transpose(1, 2)


class SiglipMLP(nn.Module):
    """Two linear layers with the tanh form of GELU."""

    def __init__(self, width: int, mlp_width: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(width, mlp_width)
        self.fc2 = nn.Linear(mlp_width, width)

    def forward(self, hidden: Tensor) -> Tensor:
        return self.fc2(functional.gelu(self.fc1(hidden), approximate="tanh"))


class SiglipLayer(nn.Module):
    """Pre-norm transformer layer."""

    def __init__(self, width: int, mlp_width: int, num_heads: int, norm_eps: float) -> None:
        super().__init__()
        self.layer_norm1 = nn.LayerNorm(width, norm_eps)
        self.self_attn = SiglipAttention(width, num_heads)
        self.layer_norm2 = nn.LayerNorm(width, norm_eps)
        self.mlp = SiglipMLP(width, mlp_width)

    def forward(self, hidden_FPD: Tensor) -> Tensor:
        hidden_FPD = hidden_FPD + self.self_attn(self.layer_norm1(hidden_FPD))
        return hidden_FPD + self.mlp(self.layer_norm2(hidden_FPD))


class SiglipEncoder(nn.Module):
    """Patch embedding, learned positions and ``spec.num_layers`` layers; no final norm."""

    def __init__(self, spec: VisionSpec) -> None:
        super().__init__()
        self.spec = spec
        self.patch_embedding = nn.Conv2d(spec.num_channels, spec.width, spec.patch_size, stride=spec.patch_size)
        self.position_embedding = nn.Embedding(spec.patch_grid**2, spec.width)
        self.layers = nn.ModuleList(
            SiglipLayer(spec.width, spec.mlp_width, spec.num_heads, spec.layer_norm_eps) for _ in range(spec.num_layers)
        )

    def forward(self, pixels_F3SS: Tensor) -> Tensor:
        """Pixels [F, 3, S, S] in [-1, 1] to features [F, P, D], patches in row-major order."""
        hidden_FPD = self._embed_patches(pixels_F3SS) + self.position_embedding.weight
        for layer in self.layers:
            hidden_FPD = layer(hidden_FPD)
        return hidden_FPD

    def use_backend(self, backend: AttentionBackend) -> None:
        """Choose the attention kernel of every layer."""
        for layer in self.layers:
            layer.self_attn.backend = backend  # type: ignore[union-attr]

    def _embed_patches(self, pixels_F3SS: Tensor) -> Tensor:
        """The unpadded strided convolution, as one matrix product over cut-out patches (much faster on a CPU)."""
        grid, size = self.spec.patch_grid, self.spec.patch_size
        used = pixels_F3SS[:, :, : grid * size, : grid * size]
        patches = used.unflatten(3, (grid, size)).unflatten(2, (grid, size))
        flat_FPX = patches.permute(0, 2, 4, 1, 3, 5).reshape(pixels_F3SS.shape[0], grid * grid, -1)
        return functional.linear(flat_FPX, self.patch_embedding.weight.flatten(1), self.patch_embedding.bias)


def resize_grid(features_FPD: Tensor, grid: int) -> Tensor:
    """Features [F, P, D] of a square patch grid to [F, D, grid, grid], bilinearly in float32 (section 1.2)."""
    side = round(features_FPD.shape[1] ** 0.5)
    maps_FDyx = features_FPD.transpose(1, 2).unflatten(2, (side, side))
    resized = functional.interpolate(
        maps_FDyx.to(torch.float32), size=(grid, grid), mode="bilinear", align_corners=False
    )
    return resized.to(features_FPD.dtype)
