"""Every path of ``attend`` against attention written out, through every backend present, and the choice of a kernel.

On a CPU torch's own kernel, FlexAttention and the written out form are present; flash-attn has a stand-in with its
layout, signature and log-sum-exp. What only a GPU can run is run on tensors without data, which checks every call's
arguments and shapes, and with the kernels' stand-ins on a CPU, which checks what is made of their results.
"""

from __future__ import annotations

import sys
import types
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.library import Library
from torch.utils._python_dispatch import TorchDispatchMode

from videoxl2 import attention, attention_kernels
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


@pytest.fixture
def flash_calls(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """A stand-in for flash-attn: layout [B, tokens, heads, width], lower-right causality, KV heads shared, no mask."""
    calls: list[dict[str, Any]] = []

    def flash_attn_func(
        q: Tensor, k: Tensor, v: Tensor, causal: bool = False, return_attn_probs: bool = False
    ) -> tuple[Tensor, Tensor, None]:
        assert return_attn_probs
        calls.append({"q": tuple(q.shape), "k": tuple(k.shape), "causal": causal})
        mask = lower_right_mask(q.shape[1], k.shape[1]) if causal else None
        part = attention_kernels.written_out(
            *(x.transpose(1, 2) for x in (q, k, v)), attention_kernels.Visible(mask_TM=mask)
        )
        return part.out_BNTDh.transpose(1, 2), part.log_sum_BNT, None

    module = types.ModuleType("flash_attn")
    module.flash_attn_func = flash_attn_func  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "flash_attn", module)
    return calls


@pytest.fixture(params=list(AttentionBackend))
def backend(request: pytest.FixtureRequest, flash_calls: list[dict[str, Any]]) -> AttentionBackend:
    """Every backend in turn."""
    chosen: AttentionBackend = request.param
    return chosen


@pytest.mark.parametrize(("heads", "kv_heads"), [(4, 4), (4, 2), (6, 1)])
@pytest.mark.parametrize(("T", "M"), [(1, 1), (1, 9), (5, 5), (3, 11)])
@pytest.mark.parametrize("causal", [True, False])
def test_causal_and_full(T: int, M: int, heads: int, kv_heads: int, causal: bool, backend: AttentionBackend) -> None:
    q, k, v = random_qkv(T, M, heads, kv_heads)
    expected = written_out(q, k, v, lower_right_mask(T, M) if causal else None)
    torch.testing.assert_close(attend(q, k, v, causal=causal, backend=backend), expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize(("heads", "kv_heads"), [(4, 4), (4, 2)])
def test_mask(heads: int, kv_heads: int, backend: AttentionBackend) -> None:
    q, k, v = random_qkv(4, 7, heads, kv_heads)
    mask = torch.rand(4, 7, generator=torch.Generator().manual_seed(0)) > 0.5
    mask[:, 0] = True
    found = attend(q, k, v, mask_TM=mask, backend=backend)
    torch.testing.assert_close(found, written_out(q, k, v, mask), atol=1e-5, rtol=0)


@pytest.mark.parametrize("kernel", [attention_kernels.cpu_flash, attention_kernels.flex, attention_kernels.written_out])
@pytest.mark.parametrize("visible", ["every", "causal", "mask"])
@pytest.mark.parametrize(("heads", "kv_heads"), [(4, 4), (6, 2)])
def test_kernels_give_the_same_log_sum(
    kernel: attention_kernels.Kernel, visible: str, heads: int, kv_heads: int
) -> None:
    """The natural logarithm of the sum over the scaled logits that a query sees, in float32."""
    q, k, v = random_qkv(9, 9, heads, kv_heads)
    mask = {"every": torch.ones(9, 9, dtype=torch.bool), "causal": lower_right_mask(9, 9)}.get(visible)
    if mask is None:
        mask = torch.rand(9, 9, generator=torch.Generator().manual_seed(2)) > 0.5
        mask[:, 3] = True
    wanted = {"every": attention_kernels.EVERY_KEY, "causal": attention_kernels.Visible(causal=True)}.get(
        visible, attention_kernels.Visible(mask_TM=mask)
    )
    part = kernel(q, k, v, wanted)
    logits = q.double() @ k.double().repeat_interleave(heads // kv_heads, 1).transpose(2, 3) * 8**-0.5
    expected = logits.masked_fill(~mask, float("-inf")).logsumexp(-1).float()
    assert part.log_sum_BNT.dtype == torch.float32
    torch.testing.assert_close(part.log_sum_BNT, expected, atol=1e-5, rtol=0)
    torch.testing.assert_close(part.out_BNTDh, written_out(q, k, v, mask), atol=1e-5, rtol=0)


def test_causal_with_a_mask_is_refused() -> None:
    q, k, v = random_qkv(2, 2, 1, 1)
    with pytest.raises(ValueError, match="either causal or a mask"):
        attend(q, k, v, causal=True, mask_TM=lower_right_mask(2, 2))


def test_lower_right_mask() -> None:
    assert lower_right_mask(2, 4).int().tolist() == [[1, 1, 1, 0], [1, 1, 1, 1]]


def test_flash_is_given_its_own_layout(flash_calls: list[dict[str, Any]]) -> None:
    q, k, v = random_qkv(3, 11, 4, 2)
    found = attend(q, k, v, causal=True, backend=AttentionBackend.FLASH)
    torch.testing.assert_close(found, attend(q, k, v, causal=True), atol=1e-5, rtol=0)
    assert flash_calls == [{"q": (2, 3, 4, 8), "k": (2, 11, 2, 8), "causal": True}]
    attend(q, k, v, mask_TM=lower_right_mask(3, 11), backend=AttentionBackend.FLASH)
    assert len(flash_calls) == 1, "masked calls stay with torch's kernels"
    attend_parts(q, [(k, v)], (k, v), lower_right_mask(3, 11), backend=AttentionBackend.FLASH)
    assert len(flash_calls) == 2, "of parts, the one without a mask goes to flash-attn"


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


@pytest.mark.parametrize(("heads", "kv_heads"), [(4, 4), (4, 2), (6, 1)])
@pytest.mark.parametrize("sizes", [(), (9,), (3, 0, 40)])
def test_parts_equal_one_call_over_all_keys(
    sizes: tuple[int, ...], heads: int, kv_heads: int, backend: AttentionBackend
) -> None:
    """For keys far apart in size too."""
    T, own = 5, 7
    q, k, v = random_qkv(T, sum(sizes) + own, heads, kv_heads)
    k[:, :, :2] *= 20
    own_mask = lower_right_mask(T, own)
    mask = torch.cat((torch.ones(T, sum(sizes), dtype=torch.bool), own_mask), dim=1)
    *seen, last = zip(k.split([*sizes, own], 2), v.split([*sizes, own], 2), strict=True)
    found = attend_parts(q, seen, last, own_mask, backend=backend)
    torch.testing.assert_close(found, written_out(q, k, v, mask), atol=1e-5, rtol=0)


@pytest.mark.parametrize(("heads", "kv_heads"), [(4, 4), (6, 2)])
def test_what_many_queries_see_is_attended_once_for_all(heads: int, kv_heads: int, backend: AttentionBackend) -> None:
    """A first part for all queries, cut by rows and joined with what only some of them see."""
    q, k, v = random_qkv(6, 20, heads, kv_heads)
    common = attend_part(q, k[:, :, :9], v[:, :, :9], backend=backend)
    assert common is not None
    rows = q[:, :, 2:5]
    own_mask = lower_right_mask(3, 7)
    mask = torch.cat((torch.ones(3, 13, dtype=torch.bool), own_mask), dim=1)
    seen, own = [(k[:, :, 9:13], v[:, :, 9:13])], (k[:, :, 13:], v[:, :, 13:])
    found = attend_parts(rows, seen, own, own_mask, before=common.rows(2, 5), backend=backend)
    torch.testing.assert_close(found, written_out(rows, k, v, mask), atol=1e-5, rtol=0)


class Calls(TorchDispatchMode):
    """Notes every operation and the number of entries of the largest tensor that one of them makes anew."""

    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []
        self.largest_new = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.names.append(func.__name__.removesuffix(".default"))
        made = func(*args, **(kwargs or {}))
        given = {x.untyped_storage()._cdata for x in args if isinstance(x, Tensor)}
        for tensor in made if isinstance(made, tuple) else (made,):
            if isinstance(tensor, Tensor) and tensor.untyped_storage()._cdata not in given:
                self.largest_new = max(self.largest_new, tensor.numel())
        return made


EFFICIENT, FLASH = "_scaled_dot_product_efficient_attention", "_scaled_dot_product_flash_attention"
CUDA = torch.device("cuda")


@pytest.fixture
def as_on_cuda(monkeypatch: pytest.MonkeyPatch) -> None:
    """Kernels are chosen as for tensors on a GPU, wherever these lie."""
    choose = attention.kernel_for

    def chosen(backend: AttentionBackend, q: Tensor, *, is_masked: bool) -> attention_kernels.Kernel:
        on_cuda: Any = types.SimpleNamespace(device=CUDA, dtype=q.dtype, shape=q.shape)
        return choose(backend, on_cuda, is_masked=is_masked)

    monkeypatch.setattr(attention, "kernel_for", chosen)
    monkeypatch.setattr(attention, "_is_ampere", lambda device: True)


def fused(calls: Calls) -> list[str]:
    return [name for name in calls.names if name.startswith("_scaled")]


@pytest.mark.usefixtures("as_on_cuda")
@pytest.mark.parametrize(
    ("dtype", "head_dim", "expected"),
    [
        (torch.bfloat16, 128, [FLASH, EFFICIENT]),
        (torch.float16, 64, [FLASH, EFFICIENT]),
        (torch.float32, 64, [EFFICIENT, EFFICIENT]),
        (torch.bfloat16, 320, [EFFICIENT, EFFICIENT]),
    ],
)
def test_on_cuda_parts_are_fused_and_no_logits_lie_in_memory(
    dtype: torch.dtype, head_dim: int, expected: list[str]
) -> None:
    """The calls of a pass of the published model, on tensors without data: arguments, shapes and memory."""
    T, seen, own = 576, 40_000, 612
    with Calls() as calls:
        q = torch.empty(1, 28, T, head_dim, device="meta", dtype=dtype)
        k, v = (torch.empty(1, 4, seen + own, head_dim, device="meta", dtype=dtype) for _ in range(2))
        mask = torch.ones(T, own, dtype=torch.bool, device="meta")
        calls.names.clear()
        calls.largest_new = 0
        out = attend_parts(q, [(k[:, :, :seen], v[:, :, :seen])], (k[:, :, seen:], v[:, :, seen:]), mask)
    assert out.shape == q.shape and out.dtype == dtype
    assert fused(calls) == expected
    assert calls.largest_new <= max(7 * T * (own + 16), 2 * q.numel()), "far below the logits over the earlier keys"


@pytest.mark.usefixtures("as_on_cuda")
def test_on_cuda_a_question_over_a_cache_is_fused(monkeypatch: pytest.MonkeyPatch) -> None:
    q = torch.empty(1, 28, 60, 128, device="meta", dtype=torch.bfloat16)
    k, v = (torch.empty(1, 4, 5000, 128, device="meta", dtype=torch.bfloat16) for _ in range(2))
    with Calls() as calls:
        assert attend(q, k, v, causal=True).shape == q.shape
    assert fused(calls) == [FLASH, FLASH]
    monkeypatch.setattr(attention, "_is_ampere", lambda device: False)
    with Calls() as calls:
        attend(q, k, v, causal=True)
    assert fused(calls) == [EFFICIENT, EFFICIENT], "before Ampere there is no FlashAttention-2"


def test_what_no_fused_kernel_takes_is_written_out() -> None:
    odd: Any = types.SimpleNamespace(device=CUDA, dtype=torch.bfloat16, shape=(1, 2, 3, 20))
    other: Any = types.SimpleNamespace(device=torch.device("mps"), dtype=torch.float16, shape=(1, 2, 3, 64))
    for q in (odd, other):
        for is_masked in (True, False):
            kernel = attention.kernel_for(AttentionBackend.SDPA, q, is_masked=is_masked)
            assert kernel is attention_kernels.written_out


@pytest.fixture
def cuda_kernels_on_cpu() -> Iterator[list[str]]:
    """CPU stand-ins for the two kernels of CUDA that hold callers to what the real ones ask for."""
    library, called = Library("aten", "IMPL"), list[str]()

    def efficient(
        q: Tensor,
        k: Tensor,
        v: Tensor,
        bias: Tensor | None,
        compute_log_sumexp: bool,
        dropout_p: float = 0.0,
        is_causal: bool = False,
        *,
        scale: float | None = None,
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        assert compute_log_sumexp and q.shape[1] == k.shape[1] and not (is_causal and bias is not None)
        mask = lower_right_mask(q.shape[2], k.shape[2]) if is_causal else None
        if bias is not None:
            assert bias.shape == (*q.shape[:3], k.shape[2]) and bias.dtype == q.dtype
            assert bias.stride(3) == 1 and all(bias.stride(d) % 8 == 0 for d in range(3)), "rows begin aligned"
            mask = bias[0, 0] == 0
        part = attention_kernels.written_out(q, k, v, attention_kernels.Visible(mask_TM=mask))
        filled = part.log_sum_BNT.new_full((*q.shape[:2], -(-q.shape[2] // 32) * 32), float("inf"))
        filled[:, :, : q.shape[2]] = part.log_sum_BNT
        called.append(EFFICIENT)
        return part.out_BNTDh, filled, torch.empty(0), torch.empty(0)

    def flash(
        q: Tensor, k: Tensor, v: Tensor, dropout_p: float = 0.0, is_causal: bool = False, *_: Any, **__: Any
    ) -> tuple[Any, ...]:
        assert q.shape[1] == k.shape[1] and not (is_causal and q.shape[2] != k.shape[2])
        part = attention_kernels.written_out(q, k, v, attention_kernels.Visible(causal=is_causal))
        called.append(FLASH)
        empty = torch.empty(0)
        return part.out_BNTDh, part.log_sum_BNT, empty, empty, q.shape[2], k.shape[2], empty, empty, empty

    library.impl(EFFICIENT, efficient, "CPU")
    library.impl(FLASH, flash, "CPU")
    yield called
    library._destroy()


@pytest.mark.parametrize(("heads", "kv_heads"), [(4, 4), (6, 2)])
def test_what_is_made_of_the_results_of_cuda_kernels(
    heads: int, kv_heads: int, cuda_kernels_on_cpu: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Log-sum-exps with filled rows, aligned masks and folded heads, joined: equal to attention written out."""

    def cuda_kernel(backend: AttentionBackend, q: Tensor, *, is_masked: bool) -> attention_kernels.Kernel:
        return attention_kernels.cuda_efficient if is_masked else attention_kernels.cuda_flash

    monkeypatch.setattr(attention, "kernel_for", cuda_kernel)
    q, k, v = random_qkv(5, 30, heads, kv_heads)
    own_mask = lower_right_mask(5, 11)
    mask = torch.cat((torch.ones(5, 19, dtype=torch.bool), own_mask), dim=1)
    found = attend_parts(q, [(k[:, :, :19], v[:, :, :19])], (k[:, :, 19:], v[:, :, 19:]), own_mask)
    torch.testing.assert_close(found, written_out(q, k, v, mask), atol=1e-5, rtol=0)
    found = attend(q, k, v, causal=True)
    torch.testing.assert_close(found, written_out(q, k, v, lower_right_mask(5, 30)), atol=1e-5, rtol=0)
    assert cuda_kernels_on_cpu == [FLASH, EFFICIENT, FLASH, FLASH]


def test_without_keys_there_is_no_part() -> None:
    q, k, v = random_qkv(3, 8, 2, 2)
    assert attend_part(q, k[:, :, :0], v[:, :, :0]) is None


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
