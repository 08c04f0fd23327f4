"""Masked attention with a way back, in as few passes over the weights as torch has.

On a CPU a training sample's time goes into reading and writing attention weights, not into multiplying: torch's own
kernel is slow backward, and autocast turns the softmax to float32. Here mask and scale are part of the first product
and everything between the products stays in the dtype of the pass.

Shapes: Z attentions at once, R rows, C columns, Dh head width.
"""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor


def pass_dtype(x: Tensor) -> torch.dtype:
    """The dtype that products have here: autocast's where it is on, else that of ``x``."""
    device = x.device.type
    is_on = torch.amp.is_autocast_available(device) and torch.is_autocast_enabled(device)
    return torch.get_autocast_dtype(device) if is_on else x.dtype


def without_autocast(device: torch.device) -> AbstractContextManager[object]:
    """Products keep the dtype of what is given; the meta device knows no autocast."""
    if torch.amp.is_autocast_available(device.type):
        return torch.autocast(device.type, enabled=False)
    return nullcontext()


def mask_bias(allowed_ZRC: Tensor, dtype: torch.dtype) -> Tensor:
    """0 where a row may see a column, minus infinity elsewhere; to be added to logits."""
    return torch.zeros(allowed_ZRC.shape, dtype=dtype, device=allowed_ZRC.device).masked_fill_(
        ~allowed_ZRC, float("-inf")
    )


def masked_attention(q_ZRDh: Tensor, k_ZCDh: Tensor, v_ZCDh: Tensor, bias_ZRC: Tensor) -> Tensor:
    """Softmax attention [Z, R, Dh] with scale Dh^-0.5 and an additive mask of ``pass_dtype``; no row may see nothing.

    In bfloat16 a logit keeps three decimal digits: enough to learn by, and half of the bytes.
    """
    dtype, scale = pass_dtype(q_ZRDh), q_ZRDh.shape[-1] ** -0.5
    with without_autocast(q_ZRDh.device):
        q, k, v = (x.to(dtype) for x in (q_ZRDh, k_ZCDh, v_ZCDh))
        weights_ZRC = torch.baddbmm(bias_ZRC, q, k.transpose(1, 2), alpha=scale).softmax(dim=-1)
        return weights_ZRC @ v
