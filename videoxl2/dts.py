"""Dynamic Token Synthesis: four frames' feature maps merged into one (``reference`` sections 1.3 and 1.4).

The released weights depend on details that look like mistakes and are reproduced on purpose: the memory
reinterpretation of frames and channels, the transposed key bias, and replicate padding in front of time only.

Shapes: G frame groups, C channels, T time slots (4, 2, 1), y and x grid position, Y = X = grid side, S = Y*X.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from videoxl2.attention import attend
from videoxl2.config import DTSSpec


def reinterpret_groups(maps_FCYX: Tensor, frames_per_group: int) -> Tensor:
    """Frame maps [G*T, C, Y, X] read as [G, C, T, Y, X] without moving memory.

    Output channel c and slot t come from frame (T*c + t) // C, channel (T*c + t) % C of the group: a slot is no frame.
    """
    F, C, Y, X = maps_FCYX.shape
    if F % frames_per_group:
        raise ValueError(f"{F} frames are not a multiple of {frames_per_group}")
    return maps_FCYX.contiguous().view(F // frames_per_group, C, frames_per_group, Y, X)


class SpatialAttention(nn.Module):
    """Single-head attention over the grid of each slot; the norm mixes the slots of a group."""

    def __init__(self, spec: DTSSpec) -> None:
        super().__init__()
        C = spec.channels
        self.norm = nn.GroupNorm(spec.norm_groups, C, eps=spec.norm_eps)
        self.q = nn.Conv3d(C, C, 1)
        self.k = nn.Conv3d(C, C, 1)
        self.v = nn.Conv3d(C, C, 1)
        self.proj_out = nn.Conv3d(C, C, 1)

    def forward(self, x_GCTYX: Tensor) -> Tensor:
        G, C, T, Y, X = x_GCTYX.shape
        tokens_GTSC = self.norm(x_GCTYX).flatten(3).permute(0, 2, 3, 1)
        q, k, v = (_pointwise(tokens_GTSC, conv).flatten(0, 1)[:, None] for conv in (self.q, self.k, self.v))
        attended_GTSC = attend(q, k, v).reshape(G, T, Y * X, C)
        out_GTSC = _pointwise(attended_GTSC, self.proj_out)
        return x_GCTYX + out_GTSC.permute(0, 3, 1, 2).unflatten(3, (Y, X))


class TemporalAttention(nn.Module):
    """Single-head attention over the slots at each grid position, with relative tables for keys and values."""

    def __init__(self, spec: DTSSpec) -> None:
        super().__init__()
        C = spec.channels
        self.max_relative_position = spec.max_relative_position
        self.norm = nn.GroupNorm(spec.norm_groups, C, eps=spec.norm_eps)
        self.qkv = nn.Conv1d(C, 3 * C, 1)
        self.relative_position_k = RelativeTable(spec)
        self.relative_position_v = RelativeTable(spec)
        self.proj_out = nn.Conv1d(C, C, 1)

    def forward(self, x_GCTYX: Tensor) -> Tensor:
        G, C, T, Y, X = x_GCTYX.shape
        positions_RCT = x_GCTYX.permute(0, 3, 4, 1, 2).reshape(G * Y * X, C, T)
        tokens_RTC = self.norm(positions_RCT).transpose(1, 2)
        q, k, v = _pointwise(tokens_RTC, self.qkv).chunk(3, dim=-1)
        scaled_q, scaled_k = q * C**-0.25, k * C**-0.25
        logits_Rij = scaled_q @ scaled_k.transpose(1, 2)
        # The key bias is the transpose of the textbook one: row i, column j takes query j and offset i - j.
        logits_Rij = logits_Rij + torch.einsum("rjc,ijc->rij", scaled_q, self.relative_position_k(T).transpose(0, 1))
        weights_Rij = logits_Rij.to(torch.float32).softmax(dim=-1).to(v.dtype)
        out_RTC = weights_Rij @ v + torch.einsum("rij,ijc->ric", weights_Rij, self.relative_position_v(T))
        out_RTC = _pointwise(out_RTC, self.proj_out)
        return x_GCTYX + out_RTC.view(G, Y, X, T, C).permute(0, 4, 3, 1, 2)


class RelativeTable(nn.Module):
    """A learned row per clipped offset."""

    def __init__(self, spec: DTSSpec) -> None:
        super().__init__()
        self.max_relative_position = spec.max_relative_position
        self.embeddings_table = nn.Parameter(torch.empty(2 * spec.max_relative_position + 1, spec.channels))

    def forward(self, T: int) -> Tensor:
        """[T, T, C]: entry (i, j) is the row of offset j - i."""
        steps = torch.arange(T, device=self.embeddings_table.device)
        offsets = (steps[None, :] - steps[:, None]).clamp(-self.max_relative_position, self.max_relative_position)
        return self.embeddings_table[offsets + self.max_relative_position]


class TemporalDownsample(nn.Module):
    """Stride-2 convolution over time; halves the slots."""

    def __init__(self, spec: DTSSpec) -> None:
        super().__init__()
        self.conv = nn.Conv3d(spec.channels, spec.channels, 3, stride=(2, 1, 1))

    def forward(self, x_GCTYX: Tensor) -> Tensor:
        padded = functional.pad(x_GCTYX.to(torch.float32), (1, 1, 1, 1, 1, 0), mode="replicate")
        return self.conv(padded.to(x_GCTYX.dtype))


class DynamicTokenSynthesis(nn.Module):
    """Slot embedding, then twice (spatial attention, temporal attention, temporal down-sampling)."""

    def __init__(self, spec: DTSSpec) -> None:
        super().__init__()
        self.spec = spec
        self.temporal_encoding = nn.Parameter(torch.empty(spec.frames_per_group, spec.channels))
        stages = (SpatialAttention, TemporalAttention, TemporalDownsample)
        self.encoder = nn.ModuleList(stage(spec) for stage in stages * 2)

    def forward(self, x_GCTYX: Tensor) -> Tensor:
        """Reinterpreted groups [G, C, 4, Y, X] to [G, Y*X, C], positions in row-major order."""
        x_GCTYX = x_GCTYX + self.temporal_encoding.T[None, :, :, None, None]
        for layer in self.encoder:
            x_GCTYX = layer(x_GCTYX)
        return x_GCTYX.squeeze(2).flatten(2).transpose(1, 2)


def _pointwise(tokens: Tensor, conv: nn.Conv3d | nn.Conv1d) -> Tensor:
    """A kernel-1 convolution applied to channels-last tokens."""
    return functional.linear(tokens, conv.weight.flatten(1), conv.bias)
