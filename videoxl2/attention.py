"""The one seam to attention kernels: flash-attn or torch's SDPA behind ``attend``. Only this file asks what is there.

Shapes: B batch, N query heads, K KV heads (N is a multiple of K), T queries, M keys, Dh head width. Heads come before
tokens everywhere in the package; the kernel's own layout is a matter of this file.
"""

from __future__ import annotations

import enum
import functools
import importlib.util
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from videoxl2.errors import ModelError

_FLASH_MAX_HEAD_DIM = 256


class AttentionBackend(enum.StrEnum):
    """Which kernel runs. ``flash`` still gives masked calls and calls it cannot take to SDPA."""

    SDPA = "sdpa"
    FLASH = "flash"


def choose_backend(name: str, device: torch.device, dtype: torch.dtype) -> AttentionBackend:
    """``auto`` takes flash-attn where it is installed and fits, else SDPA; a named kernel that cannot run raises."""
    fits = device.type == "cuda" and dtype in (torch.float16, torch.bfloat16)
    if name == "auto":
        return AttentionBackend.FLASH if fits and _flash_installed() else AttentionBackend.SDPA
    backend = AttentionBackend(name)
    if backend is AttentionBackend.FLASH and not (fits and _flash_installed()):
        raise ModelError("attention 'flash' needs flash-attn (extra 'gpu'), a CUDA device and fp16 or bf16")
    return backend


class BiasReuse:
    """The additive mask of one kind of call, made by the first layer of a pass and used by all.

    Give one instance to calls that differ in nothing but their layer.
    """

    def __init__(self) -> None:
        self._bias: Tensor | None = None

    def get(self, make: Callable[[], Tensor]) -> Tensor:
        if self._bias is None:
            self._bias = make()
        return self._bias


def attend(
    q_BNTDh: Tensor,
    k_BKMDh: Tensor,
    v_BKMDh: Tensor,
    *,
    causal: bool = False,
    mask_TM: Tensor | None = None,
    reuse: BiasReuse | None = None,
    backend: AttentionBackend = AttentionBackend.SDPA,
) -> Tensor:
    """Softmax attention with scale Dh^-0.5, each KV head serving N/K query heads; returns [B, N, T, Dh].

    ``causal`` aligns the last query with the last key (query t sees keys up to M-T+t). ``mask_TM`` is boolean, True
    where a query may see a key; it excludes ``causal``. ``reuse`` saves later layers the making of the same mask.
    """
    if causal and mask_TM is not None:
        raise ValueError("give either causal or a mask")
    T, M = q_BNTDh.shape[2], k_BKMDh.shape[2]
    repeats = q_BNTDh.shape[1] // k_BKMDh.shape[1]
    if backend is AttentionBackend.FLASH and mask_TM is None and q_BNTDh.shape[3] <= _FLASH_MAX_HEAD_DIM:
        return _flash(q_BNTDh, k_BKMDh, v_BKMDh, causal)
    if causal and T == M and T > 1:
        k, v = (x.repeat_interleave(repeats, dim=1) if repeats > 1 else x for x in (k_BKMDh, v_BKMDh))
        return functional.scaled_dot_product_attention(q_BNTDh, k, v, is_causal=True)

    def make_bias() -> Tensor:
        allowed_TM = lower_right_mask(T, M, q_BNTDh.device) if mask_TM is None else mask_TM
        bias_TM = q_BNTDh.new_zeros(T, M).masked_fill_(~allowed_TM, float("-inf"))
        return bias_TM.repeat(repeats, 1)

    needs_bias = mask_TM is not None or (causal and T > 1)
    bias = (reuse or BiasReuse()).get(make_bias) if needs_bias else None
    return _grouped_sdpa(q_BNTDh, k_BKMDh, v_BKMDh, bias)


def attend_parts(
    q_BNTDh: Tensor,
    seen: Sequence[tuple[Tensor, Tensor]],
    own: tuple[Tensor, Tensor],
    own_mask_TM: Tensor,
    *,
    reuse: BiasReuse | None = None,
) -> Tensor:
    """``attend`` over keys and values that lie in several places, without gathering them.

    Every query sees all of ``seen`` (pairs of [B, K, M, Dh], possibly empty) and of ``own`` what the boolean
    ``own_mask_TM`` lets it, which must be something for each query. Each part is attended by itself and the results
    are joined by their log-sum-exp, so that no mask is ever as long as the video. Where no kernel gives the
    log-sum-exp, the parts are put together and masked.
    """
    B, N, T, Dh = q_BNTDh.shape
    K = own[0].shape[1]
    seen = [(k, v) for k, v in seen if k.shape[2]]
    if not _gives_log_sum(q_BNTDh):
        keys, values = (torch.cat(part, dim=2) for part in zip(*seen, own, strict=True))
        before_TM = own_mask_TM.new_ones(T, keys.shape[2] - own_mask_TM.shape[1])
        return attend(q_BNTDh, keys, values, mask_TM=torch.cat((before_TM, own_mask_TM), dim=1), reuse=reuse)

    def make_bias() -> Tensor:
        bias_TM = q_BNTDh.new_zeros(own_mask_TM.shape).masked_fill_(~own_mask_TM, float("-inf"))
        return bias_TM.repeat(N // K, 1)

    rows = q_BNTDh.reshape(B, K, N // K * T, Dh)
    parts = [_attend_with_log_sum(rows, k, v, None) for k, v in seen]
    parts.append(_attend_with_log_sum(rows, *own, (reuse or BiasReuse()).get(make_bias)))
    log_sums = torch.stack([log_sum for _, log_sum in parts])
    weights = log_sums.softmax(dim=0).to(q_BNTDh.dtype)
    joined = parts[0][0] * weights[0, ..., None]
    for (out, _), weight in zip(parts[1:], weights[1:], strict=True):
        joined = torch.addcmul(joined, out, weight[..., None])
    return joined.reshape(B, N, T, Dh)


def _gives_log_sum(q: Tensor) -> bool:
    if q.device.type == "cpu":
        return True
    return q.device.type == "cuda" and q.dtype in (torch.float16, torch.bfloat16) and q.shape[3] <= _FLASH_MAX_HEAD_DIM


def _attend_with_log_sum(rows: Tensor, k: Tensor, v: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor]:
    """Attention and the log-sum-exp of each row's scaled logits, which torch's public function does not return."""
    if rows.device.type == "cpu":
        out, log_sum = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(rows, k, v, attn_mask=bias)
        return out, log_sum
    if bias is None:
        found = torch.ops.aten._scaled_dot_product_flash_attention(rows, k, v)
        return found[0], found[1]
    logits = (rows @ k.transpose(2, 3)).to(torch.float32) * rows.shape[3] ** -0.5 + bias
    log_sum = logits.logsumexp(dim=-1)
    return (logits - log_sum[..., None]).exp().to(v.dtype) @ v, log_sum


def lower_right_mask(T: int, M: int, device: torch.device | None = None) -> Tensor:
    """Boolean [T, M]: the last T of M tokens each see themselves and everything earlier."""
    return torch.ones(T, M, dtype=torch.bool, device=device).tril_(M - T)


def _grouped_sdpa(q_BNTDh: Tensor, k_BKMDh: Tensor, v_BKMDh: Tensor, bias: Tensor | None) -> Tensor:
    """Query heads that share a KV head become more rows of it, so that keys and values are never repeated."""
    B, N, T, Dh = q_BNTDh.shape
    K = k_BKMDh.shape[1]
    rows = q_BNTDh.reshape(B, K, N // K * T, Dh)
    return functional.scaled_dot_product_attention(rows, k_BKMDh, v_BKMDh, attn_mask=bias).reshape(B, N, T, Dh)


@functools.cache
def _flash_installed() -> bool:
    return importlib.util.find_spec("flash_attn") is not None


def _flash(q_BNTDh: Tensor, k_BKMDh: Tensor, v_BKMDh: Tensor, causal: bool) -> Tensor:
    import flash_attn

    kernel: Any = flash_attn.flash_attn_func
    out_BTNDh: Tensor = kernel(*(x.transpose(1, 2) for x in (q_BNTDh, k_BKMDh, v_BKMDh)), causal=causal)
    return out_BTNDh.transpose(1, 2)
