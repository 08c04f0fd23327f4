"""Every path of ``attend`` against attention written out, and the choice of a kernel."""

from __future__ import annotations

import sys
import types
from typing import Any

import pytest
import torch
from torch import Tensor

from videoxl2 import attention
from videoxl2.attention import (
    AttentionBackend,
    BiasReuse,
    attend,
    attend_part,
    attend_parts,
    choose_backend,
    lower_right_mask,
)
from videoxl2.errors import ModelError


def written_out(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
    repeats = q.shape[1] // k.shape[1]
    k, v = k.repeat_interleave(repeats, 1), v.repeat_interleave(repeats, 1)
    logits = q.double() @ k.double().transpose(2, 3) * q.shape[3] ** -0.5
    if mask is not None:
        logits = logits.masked_fill(~mask, float("-inf"))
    return (logits.softmax(-1) @ v.double()).float()


def random_qkv(T: int, M: int, heads: int, kv_heads: int, batch: int = 2) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(T * 100 + M)
    return (
        torch.randn(batch, heads, T, 8, generator=generator),
        torch.randn(batch, kv_heads, M, 8, generator=generator),
        torch.randn(batch, kv_heads, M, 8, generator=generator),
    )


@pytest.mark.parametrize(("heads", "kv_heads"), [(4, 4), (4, 2), (6, 1)])
@pytest.mark.parametrize(("T", "M"), [(1, 1), (1, 9), (5, 5), (3, 11)])
@pytest.mark.parametrize("causal", [True, False])
def test_causal_and_full(T: int, M: int, heads: int, kv_heads: int, causal: bool) -> None:
    q, k, v = random_qkv(T, M, heads, kv_heads)
    expected = written_out(q, k, v, lower_right_mask(T, M) if causal else None)
    torch.testing.assert_close(attend(q, k, v, causal=causal), expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize(("heads", "kv_heads"), [(4, 4), (4, 2)])
def test_mask(heads: int, kv_heads: int) -> None:
    q, k, v = random_qkv(4, 7, heads, kv_heads)
    mask = torch.rand(4, 7, generator=torch.Generator().manual_seed(0)) > 0.5
    mask[:, 0] = True
    torch.testing.assert_close(attend(q, k, v, mask_TM=mask), written_out(q, k, v, mask), atol=1e-5, rtol=0)


def test_causal_with_a_mask_is_refused() -> None:
    q, k, v = random_qkv(2, 2, 1, 1)
    with pytest.raises(ValueError, match="either causal or a mask"):
        attend(q, k, v, causal=True, mask_TM=lower_right_mask(2, 2))


def test_lower_right_mask() -> None:
    assert lower_right_mask(2, 4).int().tolist() == [[1, 1, 1, 0], [1, 1, 1, 1]]


def test_flash_is_given_its_own_layout(monkeypatch: pytest.MonkeyPatch) -> None:
    """A stand-in with flash-attn's layout [B, tokens, heads, width] and its lower-right causality."""
    calls: list[dict[str, Any]] = []

    def flash_attn_func(q: Tensor, k: Tensor, v: Tensor, causal: bool) -> Tensor:
        calls.append({"q": tuple(q.shape), "k": tuple(k.shape), "causal": causal})
        mask = lower_right_mask(q.shape[1], k.shape[1]) if causal else None
        return written_out(*(x.transpose(1, 2) for x in (q, k, v)), mask).transpose(1, 2)

    module = types.ModuleType("flash_attn")
    module.flash_attn_func = flash_attn_func  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "flash_attn", module)
    q, k, v = random_qkv(3, 11, 4, 2)
    found = attend(q, k, v, causal=True, backend=AttentionBackend.FLASH)
    torch.testing.assert_close(found, attend(q, k, v, causal=True), atol=1e-5, rtol=0)
    assert calls == [{"q": (2, 3, 4, 8), "k": (2, 11, 2, 8), "causal": True}]
    mask = lower_right_mask(3, 11)
    attend(q, k, v, mask_TM=mask, backend=AttentionBackend.FLASH)
    assert len(calls) == 1, "masked calls stay with SDPA"


@pytest.mark.parametrize(
    ("installed", "device", "dtype", "chosen"),
    [
        (True, "cuda", torch.bfloat16, AttentionBackend.FLASH),
        (True, "cuda", torch.float32, AttentionBackend.SDPA),
        (True, "cpu", torch.bfloat16, AttentionBackend.SDPA),
        (False, "cuda", torch.float16, AttentionBackend.SDPA),
    ],
)
def test_choice(
    installed: bool, device: str, dtype: torch.dtype, chosen: AttentionBackend, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(attention, "_flash_installed", lambda: installed)
    assert choose_backend("auto", torch.device(device), dtype) is chosen
    assert choose_backend("sdpa", torch.device(device), dtype) is AttentionBackend.SDPA
    if chosen is AttentionBackend.SDPA:
        with pytest.raises(ModelError, match="flash"):
            choose_backend("flash", torch.device(device), dtype)


def test_an_unknown_kernel_is_refused() -> None:
    with pytest.raises(ValueError, match="magic"):
        choose_backend("magic", torch.device("cpu"), torch.float32)


@pytest.mark.parametrize("has_log_sum", [True, False])
@pytest.mark.parametrize(("heads", "kv_heads"), [(4, 4), (4, 2), (6, 1)])
@pytest.mark.parametrize("sizes", [(), (9,), (3, 0, 40)])
def test_parts_equal_one_call_over_all_keys(
    sizes: tuple[int, ...], heads: int, kv_heads: int, has_log_sum: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where no kernel gives the log-sum-exp, and for keys far apart in size."""
    if not has_log_sum:
        monkeypatch.setattr(attention, "_gives_log_sum", lambda q: False)
    T, own = 5, 7
    q, k, v = random_qkv(T, sum(sizes) + own, heads, kv_heads)
    k[:, :, :2] *= 20
    own_mask = lower_right_mask(T, own)
    mask = torch.cat((torch.ones(T, sum(sizes), dtype=torch.bool), own_mask), dim=1)
    *seen, last = zip(k.split([*sizes, own], 2), v.split([*sizes, own], 2), strict=True)
    found = attend_parts(q, seen, last, own_mask)
    torch.testing.assert_close(found, written_out(q, k, v, mask), atol=1e-5, rtol=0)


@pytest.mark.parametrize(("heads", "kv_heads"), [(4, 4), (6, 2)])
def test_what_many_queries_see_is_attended_once_for_all(heads: int, kv_heads: int) -> None:
    """A first part for all queries, cut by rows and joined with what only some of them see."""
    q, k, v = random_qkv(6, 20, heads, kv_heads)
    common = attend_part(q, k[:, :, :9], v[:, :, :9])
    assert common is not None
    rows = q[:, :, 2:5]
    own_mask = lower_right_mask(3, 7)
    mask = torch.cat((torch.ones(3, 13, dtype=torch.bool), own_mask), dim=1)
    seen, own = [(k[:, :, 9:13], v[:, :, 9:13])], (k[:, :, 13:], v[:, :, 13:])
    found = attend_parts(rows, seen, own, own_mask, before=common.rows(2, 5))
    torch.testing.assert_close(found, written_out(rows, k, v, mask), atol=1e-5, rtol=0)
    assert attend_part(q, k[:, :, :0], v[:, :, :0]) is None


def test_no_part_is_made_where_no_kernel_gives_the_log_sum(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(attention, "_gives_log_sum", lambda q: False)
    q, k, v = random_qkv(3, 8, 2, 2)
    assert attend_part(q, k, v) is None
    torch.testing.assert_close(
        attend(q, k, v, causal=True), written_out(q, k, v, lower_right_mask(3, 8)), atol=1e-5, rtol=0
    )


def test_gradients_pass_through_causal_attention_over_earlier_keys() -> None:
    """The kernels that give the log-sum-exp give no gradient through it, so training takes another way."""
    q, k, v = (x.requires_grad_() for x in random_qkv(3, 11, 4, 2))
    attend(q, k, v, causal=True).square().sum().backward()
    found = [x.grad for x in (q, k, v)]
    for x in (q, k, v):
        x.grad = None
    written_out(q, k, v, lower_right_mask(3, 11)).square().sum().backward()
    for ours, x in zip(found, (q, k, v), strict=True):
        torch.testing.assert_close(ours, x.grad, atol=1e-5, rtol=0)


def test_parts_share_the_mask_between_layers() -> None:
    q, k, v = random_qkv(3, 10, 4, 2)
    reuse = BiasReuse()
    first, again = (
        attend_parts(q, [(k[:, :, :6], v[:, :, :6])], (k[:, :, 6:], v[:, :, 6:]), lower_right_mask(3, 4), reuse=reuse)
        for _ in range(2)
    )
    assert torch.equal(first, again)


@pytest.mark.parametrize("causal", [False, True])
def test_training_gives_what_the_kernel_gives(causal: bool) -> None:
    """Where a gradient is wanted on a CPU, attention is written out; values and gradients are the kernel's."""
    q, k, v = random_qkv(5, 9, 4, 2)
    mask = None if causal else torch.rand(5, 9, generator=torch.Generator().manual_seed(1)) > 0.3
    if mask is not None:
        mask[:, 0] = True
    leaves = [x.clone().requires_grad_(True) for x in (q, k, v)]
    trained = attend(*leaves, causal=causal, mask_TM=mask)
    torch.testing.assert_close(trained.detach(), attend(q, k, v, causal=causal, mask_TM=mask), atol=1e-5, rtol=1e-5)
    trained.square().sum().backward()
    plain = [x.double().requires_grad_(True) for x in (q, k, v)]
    written_out(*plain, lower_right_mask(5, 9) if mask is None else mask).square().sum().backward()
    for ours, theirs in zip(leaves, plain, strict=True):
        torch.testing.assert_close(ours.grad.double(), theirs.grad, atol=1e-4, rtol=1e-4)
