"""Masked attention of training against torch's own, and under autocast."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional

from videoxl2.training.masked_attention import mask_bias, masked_attention, pass_dtype


def inputs(dtype: torch.dtype) -> tuple[list[torch.Tensor], torch.Tensor]:
    generator = torch.Generator().manual_seed(4)
    sizes = ((3, 5, 8), (3, 9, 8), (3, 9, 8))
    qkv = [torch.randn(size, generator=generator, dtype=torch.float64).to(dtype).requires_grad_() for size in sizes]
    allowed_ZRC = torch.rand(3, 5, 9, generator=generator) < 0.6
    allowed_ZRC[:, :, 0] = True
    return qkv, allowed_ZRC


def test_it_equals_scaled_dot_product_attention_forward_and_backward() -> None:
    qkv, allowed = inputs(torch.float64)
    out = masked_attention(*qkv, mask_bias(allowed, torch.float64))
    expected = functional.scaled_dot_product_attention(*qkv, attn_mask=allowed)
    weights = torch.linspace(-1, 1, out.numel(), dtype=torch.float64).view_as(out)
    torch.testing.assert_close(out, expected, atol=1e-12, rtol=0)
    ours, theirs = (torch.autograd.grad((x * weights).sum(), qkv) for x in (out, expected))
    for mine, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(mine, other, atol=1e-12, rtol=0)


def test_under_autocast_everything_stays_in_its_dtype() -> None:
    qkv, allowed = inputs(torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        assert pass_dtype(qkv[0]) == torch.bfloat16
        out = masked_attention(*qkv, mask_bias(allowed, torch.bfloat16))
    assert out.dtype == torch.bfloat16
    expected = functional.scaled_dot_product_attention(*qkv, attn_mask=allowed)
    torch.testing.assert_close(out.float(), expected, atol=0.05, rtol=0)
    out.float().sum().backward()
    assert all(x.grad is not None and x.grad.dtype == torch.float32 for x in qkv)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_what_may_not_be_seen_changes_nothing(dtype: torch.dtype) -> None:
    (q, k, v), allowed = inputs(dtype)
    allowed[:, :, 5:] = False
    hidden = ~allowed.any(dim=1)
    changed = v.detach().masked_fill(hidden[..., None], 100.0)
    bias = mask_bias(allowed, dtype)
    assert torch.equal(masked_attention(q, k, v, bias), masked_attention(q, k, changed, bias))
