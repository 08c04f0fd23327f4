"""Starting weights for training: small, so that every layer is at first close to passing its input on."""

from __future__ import annotations

import math

import torch
from torch import nn

_RESIDUAL_OUTPUTS = ("out_proj", "o_proj", "proj_out", "fc2", "down_proj")


def initialise_for_training(module: nn.Module, seed: int, num_layers: int = 4) -> None:
    """Fill every parameter from ``seed``; outputs into a residual stream shrink with the number of layers."""
    generator = torch.Generator().manual_seed(seed)
    residual = 1.0 / math.sqrt(2 * num_layers)
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            parts = name.split(".")
            if name.endswith("logit_scale"):
                parameter.fill_(math.log(10.0))
            elif name.endswith("logit_bias"):
                parameter.fill_(-5.0)
            elif parts[-1] == "weight" and "norm" in parts[-2]:
                parameter.fill_(1.0)
            elif parts[-1].endswith("bias"):
                parameter.zero_()
            elif parts[-1] in ("temporal_encoding", "embeddings_table", "probe") or (
                "embed" in name and parameter.ndim == 2
            ):
                parameter.normal_(0.0, 0.1 if "position" not in name else 0.05, generator=generator)
            else:
                gain = residual if parts[-2] in _RESIDUAL_OUTPUTS else 1.0
                parameter.normal_(0.0, gain * parameter[0].numel() ** -0.5, generator=generator)
