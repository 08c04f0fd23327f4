"""The one seam to attention kernels: flash-attn or torch's SDPA behind ``attend``. Only this file asks what is there.

Attention over keys that lie in several places is computed place by place and joined by the log-sum-exp, so that
nothing is gathered and no mask is longer than the tokens that need one.

Shapes: B batch, N query heads, K KV heads (N is a multiple of K), T queries, M keys, Dh head width. Heads come before
tokens everywhere in the package; the kernel's own layout is a matter of this file.
"""

from __future__ import annotations

import enum
import functools
import importlib.util
from collections.abc import Callable, Sequence
from dataclasses import dataclass
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
    if causal and M > T > 1 and _gives_log_sum(q_BNTDh) and not _needs_gradient(q_BNTDh, k_BKMDh, v_BKMDh):
        return _causal_by_parts(q_BNTDh, k_BKMDh, v_BKMDh)

    def make_bias() -> Tensor:
        allowed_TM = lower_right_mask(T, M, q_BNTDh.device) if mask_TM is None else mask_TM
        bias_TM = q_BNTDh.new_zeros(T, M).masked_fill_(~allowed_TM, float("-inf"))
        return bias_TM.repeat(repeats, 1)

    needs_bias = mask_TM is not None or (causal and T > 1)
    bias = (reuse or BiasReuse()).get(make_bias) if needs_bias else None
    return _grouped_sdpa(q_BNTDh, k_BKMDh, v_BKMDh, bias)


@dataclass(frozen=True, eq=False, slots=True)
class PartialAttention:
    """Attention over a part of the keys: its result, and the log-sum-exp of each query's scaled logits over them."""

    out_BNTDh: Tensor
    log_sum_BNT: Tensor

    def rows(self, start: int, stop: int) -> PartialAttention:
        """That of the queries [start, stop)."""
        return PartialAttention(self.out_BNTDh[:, :, start:stop], self.log_sum_BNT[:, :, start:stop])


def attend_part(q_BNTDh: Tensor, k_BKMDh: Tensor, v_BKMDh: Tensor) -> PartialAttention | None:
    """Attention of many queries over keys that all of them see, to be joined with the rest by ``attend_parts``.

    None where no kernel gives the log-sum-exp, or there is no key: then give the keys to ``attend_parts`` themselves.
    """
    if not k_BKMDh.shape[2] or not _gives_log_sum(q_BNTDh):
        return None
    return _grouped_part(q_BNTDh, k_BKMDh, v_BKMDh, None)


def attend_parts(
    q_BNTDh: Tensor,
    seen: Sequence[tuple[Tensor, Tensor]],
    own: tuple[Tensor, Tensor],
    own_mask_TM: Tensor,
    *,
    before: PartialAttention | None = None,
    reuse: BiasReuse | None = None,
) -> Tensor:
    """``attend`` over keys and values that lie in several places, without gathering them.

    Every query sees all of ``seen`` (pairs of [B, K, M, Dh], possibly empty) and of ``own`` what the boolean
    ``own_mask_TM`` lets it, which must be something for each query; ``before`` is what these queries have attended to
    already. Each part is attended by itself and the results are joined by their log-sum-exp, so that no mask is ever
    as long as the video. Where no kernel gives the log-sum-exp, the parts are put together and masked.
    """
    T = q_BNTDh.shape[2]
    repeats = q_BNTDh.shape[1] // own[0].shape[1]
    seen = [(k, v) for k, v in seen if k.shape[2]]
    if not _gives_log_sum(q_BNTDh):
        assert before is None
        keys, values = (torch.cat(part, dim=2) for part in zip(*seen, own, strict=True))
        before_TM = own_mask_TM.new_ones(T, keys.shape[2] - own_mask_TM.shape[1])
        return attend(q_BNTDh, keys, values, mask_TM=torch.cat((before_TM, own_mask_TM), dim=1), reuse=reuse)

    def make_bias() -> Tensor:
        bias_TM = q_BNTDh.new_zeros(own_mask_TM.shape).masked_fill_(~own_mask_TM, float("-inf"))
        return bias_TM.repeat(repeats, 1)

    parts = [] if before is None else [before]
    parts += [_grouped_part(q_BNTDh, k, v, None) for k, v in seen]
    parts.append(_grouped_part(q_BNTDh, *own, (reuse or BiasReuse()).get(make_bias)))
    return _join(parts)


def _join(parts: Sequence[PartialAttention]) -> Tensor:
    """The attention over all keys from that over parts of them."""
    weights = torch.stack([part.log_sum_BNT for part in parts]).softmax(dim=0).to(parts[0].out_BNTDh.dtype)
    joined = parts[0].out_BNTDh * weights[0, ..., None]
    for part, weight in zip(parts[1:], weights[1:], strict=True):
        joined = torch.addcmul(joined, part.out_BNTDh, weight[..., None])
    return joined


def _causal_by_parts(q_BNTDh: Tensor, k_BKMDh: Tensor, v_BKMDh: Tensor) -> Tensor:
    """The last T of M tokens over the M - T before them, which all see, and causally over themselves: no mask."""
    T = q_BNTDh.shape[2]
    repeats = q_BNTDh.shape[1] // k_BKMDh.shape[1]
    k_BNTDh, v_BNTDh = (x[:, :, -T:].repeat_interleave(repeats, dim=1) for x in (k_BKMDh, v_BKMDh))
    own = _attend_with_log_sum(q_BNTDh, k_BNTDh, v_BNTDh, None, causal=True)
    earlier = _grouped_part(q_BNTDh, k_BKMDh[:, :, :-T], v_BKMDh[:, :, :-T], None)
    return _join([earlier, PartialAttention(*own)])


def _needs_gradient(*tensors: Tensor) -> bool:
    """The kernels that give the log-sum-exp pass no gradient through it."""
    return torch.is_grad_enabled() and any(tensor.requires_grad for tensor in tensors)


def _gives_log_sum(q: Tensor) -> bool:
    if q.device.type == "cpu":
        return True
    fits = q.shape[3] <= _FLASH_MAX_HEAD_DIM and q.shape[3] % 8 == 0  # the kernel itself pads nothing
    return fits and q.device.type == "cuda" and q.dtype in (torch.float16, torch.bfloat16)


def _grouped_part(q_BNTDh: Tensor, k_BKMDh: Tensor, v_BKMDh: Tensor, bias: Tensor | None) -> PartialAttention:
    """Query heads that share a KV head as more rows of it (``bias`` is [N/K * T, M])."""
    B, N, T, Dh = q_BNTDh.shape
    K = k_BKMDh.shape[1]
    out, log_sum = _attend_with_log_sum(q_BNTDh.reshape(B, K, N // K * T, Dh), k_BKMDh, v_BKMDh, bias)
    return PartialAttention(out.reshape(B, N, T, Dh), log_sum.reshape(B, N, T))


def _attend_with_log_sum(
    rows: Tensor, k: Tensor, v: Tensor, bias: Tensor | None, *, causal: bool = False
) -> tuple[Tensor, Tensor]:
    """Attention and the log-sum-exp of each row's scaled logits, which torch's public function does not return.

    ``causal`` needs as many rows as keys and excludes ``bias``.
    """
    if rows.device.type == "cpu":
        out, log_sum = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(
            rows, k, v, is_causal=causal, attn_mask=bias
        )
        return out, log_sum
    if bias is None:
        found = torch.ops.aten._scaled_dot_product_flash_attention(rows, k, v, is_causal=causal)
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
    if rows.requires_grad and rows.device.type == "cpu":
        # In training: torch's CPU kernel is slow on its way back.
        logits = (rows @ k_BKMDh.transpose(2, 3)) * Dh**-0.5
        weights = (logits if bias is None else logits + bias).softmax(dim=-1).to(v_BKMDh.dtype)
        return (weights @ v_BKMDh).reshape(B, N, T, Dh)
    return functional.scaled_dot_product_attention(rows, k_BKMDh, v_BKMDh, attn_mask=bias).reshape(B, N, T, Dh)


@functools.cache
def _flash_installed() -> bool:
    return importlib.util.find_spec("flash_attn") is not None


def _flash(q_BNTDh: Tensor, k_BKMDh: Tensor, v_BKMDh: Tensor, causal: bool) -> Tensor:
    import flash_attn

    kernel: Any = flash_attn.flash_attn_func
    out_BTNDh: Tensor = kernel(*(x.transpose(1, 2) for x in (q_BNTDh, k_BKMDh, v_BKMDh)), causal=causal)
    return out_BTNDh.transpose(1, 2)
