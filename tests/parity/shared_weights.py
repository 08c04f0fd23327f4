"""Random weights that transformers' classes and ours share, under the published keys."""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from videoxl2.weights import KeyTable

QWEN_TABLE = KeyTable((("lm_head.", "lm_head."), ("", "model.")))


def randomise(module: nn.Module, seed: int) -> None:
    """Weights large enough that every layer matters, norms near one."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            spread = torch.empty_like(parameter).normal_(0.0, 0.2, generator=generator)
            parameter.copy_(1 + spread if "norm" in name and name.endswith("weight") else spread)


def published_folder(folder: Path, state: dict[str, Tensor]) -> Path:
    """A folder of weights under published keys. transformers 5 drops ``vision_model.`` where there is one tower."""
    folder.mkdir(exist_ok=True)
    save_file({key: value.contiguous() for key, value in state.items()}, folder / "model.safetensors")
    return folder
