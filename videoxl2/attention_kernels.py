"""The kernels behind ``attention``: each gives attention over some keys together with its log-sum-exp.

All have one signature, ``Kernel``, so that parts computed by any of them can be joined. Which runs is decided in
``attention``; nothing is imported or asked of a GPU before a kernel is called.

Shapes: B batch, N query heads, K KV heads (N is a multiple of K), R = N/K, T queries, M keys, Dh head width.
"""

from __future__ import annotations

import functools
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

_BIAS_ALIGNMENT = 16
"""The memory-efficient kernel of CUDA loads whole vectors of a mask: its rows begin at multiples of so many numbers."""


@dataclass(frozen=True, eq=False, slots=True)
class PartialAttention:
    """Attention over a part of the keys: its result, and the log-sum-exp of each query's scaled logits over them."""

    out_BNTDh: Tensor
    log_sum_BNT: Tensor

    def rows(self, start: int, stop: int) -> PartialAttention:
        """That of the queries [start, stop)."""
        return PartialAttention(self.out_BNTDh[:, :, start:stop], self.log_sum_BNT[:, :, start:stop])


class BiasReuse:
    """The mask of one kind of call in the form that a kernel wants: made by the first layer of a pass and used by all.

    Give one instance to calls that differ in nothing but their layer.
    """

    def __init__(self) -> None:
        self._made: Any = None

    def get(self, make: Callable[[], Any]) -> Any:
        if self._made is None:
            self._made = make()
        return self._made


@dataclass(frozen=True, eq=False, slots=True)
class Visible:
    """Which keys a query sees: all, or up to its own (``causal``, as many queries as keys), or what a mask lets it.

    ``mask_TM`` is boolean, True where a query may see a key, which must be so for some key of each; it excludes
    ``causal``.
    """

    causal: bool = False
    mask_TM: Tensor | None = None
    reuse: BiasReuse | None = None

    def made_once(self, make: Callable[[Tensor], Any]) -> Any:
        """What a kernel makes of the mask, or None without one."""
        mask_TM = self.mask_TM
        if mask_TM is None:
            return None
        return (self.reuse or BiasReuse()).get(lambda: make(mask_TM))


EVERY_KEY = Visible()


class Kernel(Protocol):
    """Softmax attention with scale Dh^-0.5 over [B, K, M, Dh] keys and values, each serving R query heads."""

    def __call__(
        self, q_BNTDh: Tensor, k_BKMDh: Tensor, v_BKMDh: Tensor, visible: Visible = EVERY_KEY
    ) -> PartialAttention: ...


def cpu_flash(q_BNTDh: Tensor, k_BKMDh: Tensor, v_BKMDh: Tensor, visible: Visible = EVERY_KEY) -> PartialAttention:
    """torch's blocked kernel for CPUs, of every dtype and head width."""
    q, k, v = _rows(q_BNTDh, k_BKMDh, v_BKMDh, visible)
    bias = visible.made_once(lambda mask_TM: folded_bias(mask_TM, q_BNTDh, k_BKMDh))
    found = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(
        q, k, v, is_causal=visible.causal, attn_mask=bias
    )
    return _of_rows(found[0], found[1], q_BNTDh)


def cuda_flash(q_BNTDh: Tensor, k_BKMDh: Tensor, v_BKMDh: Tensor, visible: Visible = EVERY_KEY) -> PartialAttention:
    """torch's own FlashAttention-2: half precision, no mask, heads of a multiple of 8 up to 256, Ampere or later."""
    assert visible.mask_TM is None
    q, k, v = _rows(q_BNTDh, k_BKMDh, v_BKMDh, visible)
    found = torch.ops.aten._scaled_dot_product_flash_attention(q, k, v, is_causal=visible.causal)
    return _of_rows(found[0], found[1], q_BNTDh)


def cuda_efficient(q_BNTDh: Tensor, k_BKMDh: Tensor, v_BKMDh: Tensor, visible: Visible = EVERY_KEY) -> PartialAttention:
    """torch's memory-efficient kernel: any mask without the logits ever lying in memory, float32 too.

    The mask is additive, in the dtype of the queries, with rows that begin at aligned addresses (``folded_bias``); the
    log-sum-exp comes with its rows filled up to a multiple of 32.
    """
    q, k, v = _rows(q_BNTDh, k_BKMDh, v_BKMDh, visible)
    bias = visible.made_once(lambda mask_TM: folded_bias(mask_TM, q_BNTDh, k_BKMDh))
    if bias is not None:
        bias = bias.expand(*q.shape[:3], k.shape[2])
    found = torch.ops.aten._scaled_dot_product_efficient_attention(q, k, v, bias, True, is_causal=visible.causal)
    return _of_rows(found[0], found[1][:, :, : q.shape[2]], q_BNTDh)


def flash_attn(q_BNTDh: Tensor, k_BKMDh: Tensor, v_BKMDh: Tensor, visible: Visible = EVERY_KEY) -> PartialAttention:
    """The flash-attn package: half precision, no mask, heads up to 256; it shares KV heads by itself.

    Its causal form ends with the last key, so that there may be more keys than queries.
    """
    import flash_attn

    assert visible.mask_TM is None
    kernel: Any = flash_attn.flash_attn_func
    q, k, v = (x.transpose(1, 2) for x in (q_BNTDh, k_BKMDh, v_BKMDh))
    out_BTNDh, log_sum_BNT, _ = kernel(q, k, v, causal=visible.causal, return_attn_probs=True)
    return PartialAttention(out_BTNDh.transpose(1, 2), log_sum_BNT)


def flex(q_BNTDh: Tensor, k_BKMDh: Tensor, v_BKMDh: Tensor, visible: Visible = EVERY_KEY) -> PartialAttention:
    """FlexAttention: a kernel that is compiled for the mask and skips its empty tiles.

    On CUDA it is compiled at its first call. torch's compiled form for CPUs gives no log-sum-exp, so there its written
    out form runs, which is for tests.
    """
    from torch.nn.attention.flex_attention import AuxRequest, create_block_mask

    T, M = q_BNTDh.shape[2], k_BKMDh.shape[2]

    def block_mask_of(mask_TM: Tensor) -> Any:
        return create_block_mask(lambda _b, _n, t, m: mask_TM[t, m], None, None, T, M, device=mask_TM.device)

    if visible.causal:
        visible = Visible(mask_TM=torch.ones(T, M, dtype=torch.bool, device=q_BNTDh.device).tril_(M - T))
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="flex_attention called without torch.compile")
        out_BNTDh, beside = _flex_attention(q_BNTDh.device.type == "cuda")(
            q_BNTDh,
            k_BKMDh,
            v_BKMDh,
            block_mask=visible.made_once(block_mask_of),
            enable_gqa=q_BNTDh.shape[1] != k_BKMDh.shape[1],
            return_aux=AuxRequest(lse=True),
        )
    return PartialAttention(out_BNTDh, beside.lse)


def written_out(q_BNTDh: Tensor, k_BKMDh: Tensor, v_BKMDh: Tensor, visible: Visible = EVERY_KEY) -> PartialAttention:
    """The formula, with its logits in memory in float32: for what no fused kernel takes, and to compare with."""
    q_BKRTDh = q_BNTDh.unflatten(1, (k_BKMDh.shape[1], -1))
    logits_BKRTM = (q_BKRTDh @ k_BKMDh.transpose(2, 3)[:, :, None]).to(torch.float32) * q_BNTDh.shape[3] ** -0.5
    mask_TM = visible.mask_TM
    if visible.causal:
        mask_TM = torch.ones(logits_BKRTM.shape[-2:], dtype=torch.bool, device=q_BNTDh.device).tril_()
    if mask_TM is not None:
        logits_BKRTM = logits_BKRTM.masked_fill(~mask_TM, float("-inf"))
    log_sum_BKRT = logits_BKRTM.logsumexp(dim=-1)
    weights_BKRTM = (logits_BKRTM - log_sum_BKRT[..., None]).exp().to(v_BKMDh.dtype)
    return PartialAttention((weights_BKRTM @ v_BKMDh[:, :, None]).flatten(1, 2), log_sum_BKRT.flatten(1, 2))


def join(parts: list[PartialAttention]) -> Tensor:
    """The attention [B, N, T, Dh] over all keys from that over parts of them."""
    weights = torch.stack([part.log_sum_BNT for part in parts]).softmax(dim=0).to(parts[0].out_BNTDh.dtype)
    joined = parts[0].out_BNTDh * weights[0, ..., None]
    for part, weight in zip(parts[1:], weights[1:], strict=True):
        joined = torch.addcmul(joined, part.out_BNTDh, weight[..., None])
    return joined


def folded_bias(mask_TM: Tensor, q_BNTDh: Tensor, k_BKMDh: Tensor) -> Tensor:
    """The mask as numbers to add, [R * T, M], for query heads that are rows of their KV head; its rows are aligned."""
    T, M = mask_TM.shape
    repeats = q_BNTDh.shape[1] // k_BKMDh.shape[1]
    bias_TM = q_BNTDh.new_zeros(T, M + -M % _BIAS_ALIGNMENT)
    bias_TM[:, :M].masked_fill_(~mask_TM, float("-inf"))
    return bias_TM.repeat(repeats, 1)[:, :M]


def _rows(q_BNTDh: Tensor, k_BKMDh: Tensor, v_BKMDh: Tensor, visible: Visible) -> tuple[Tensor, Tensor, Tensor]:
    """Query heads that share a KV head as more rows of it; causal rows need heads of their own, with KV repeated."""
    B, N, T, Dh = q_BNTDh.shape
    K = k_BKMDh.shape[1]
    if N == K:
        return q_BNTDh, k_BKMDh, v_BKMDh
    if visible.causal:
        return q_BNTDh, k_BKMDh.repeat_interleave(N // K, dim=1), v_BKMDh.repeat_interleave(N // K, dim=1)
    return q_BNTDh.reshape(B, K, N // K * T, Dh), k_BKMDh, v_BKMDh


def _of_rows(out: Tensor, log_sum: Tensor, q_BNTDh: Tensor) -> PartialAttention:
    """The rows as heads again."""
    return PartialAttention(out.reshape(q_BNTDh.shape), log_sum.reshape(q_BNTDh.shape[:3]))


@functools.cache
def _flex_attention(compiled: bool) -> Callable[..., Any]:
    from torch.nn.attention.flex_attention import flex_attention

    return torch.compile(flex_attention) if compiled else flex_attention  # type: ignore[return-value]
