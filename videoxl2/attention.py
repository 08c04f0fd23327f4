"""The one seam to attention: every call of the package, whichever kernel runs. Only this file asks what is there.

Attention over keys that lie in several places is computed place by place and joined by the log-sum-exp, so that
nothing is gathered and no mask is longer than the tokens that need one. The kernels are ``attention_kernels``'.

Shapes: B batch, N query heads, K KV heads (N is a multiple of K), T queries, M keys, Dh head width. Heads come before
tokens everywhere in the package; a kernel's own layout is its own matter.
"""

from __future__ import annotations

import enum
import functools
import importlib.util
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional

from videoxl2 import attention_kernels as kernels
from videoxl2.attention_kernels import BiasReuse, Kernel, PartialAttention, Visible
from videoxl2.errors import ModelError

__all__ = [
    "AttentionBackend",
    "BiasReuse",
    "PartialAttention",
    "attend",
    "attend_part",
    "attend_parts",
    "choose_backend",
    "kernel_for",
    "lower_right_mask",
]

_FLASH_MAX_HEAD_DIM = 256
_HALF = (torch.float16, torch.bfloat16)


class AttentionBackend(enum.StrEnum):
    """Which kernels run.

    ``sdpa`` are torch's own; ``flash`` is flash-attn, which leaves calls with a mask and those that it cannot take to
    torch's; ``flex`` is FlexAttention for every call; ``plain`` is attention written out, to compare with.
    """

    SDPA = "sdpa"
    FLASH = "flash"
    FLEX = "flex"
    PLAIN = "plain"


def choose_backend(name: str, device: torch.device, dtype: torch.dtype) -> AttentionBackend:
    """``auto`` takes flash-attn where it is installed and fits, else SDPA; a named kernel that cannot run raises."""
    fits = device.type == "cuda" and dtype in _HALF
    if name == "auto":
        return AttentionBackend.FLASH if fits and _flash_installed() else AttentionBackend.SDPA
    backend = AttentionBackend(name)
    if backend is AttentionBackend.FLASH and not (fits and _flash_installed()):
        raise ModelError("attention 'flash' needs flash-attn (extra 'gpu'), a CUDA device and fp16 or bf16")
    return backend


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
    causal = causal and T > 1
    if backend is not AttentionBackend.SDPA and not _needs_gradient(q_BNTDh, k_BKMDh, v_BKMDh):
        if causal and T < M and backend is not AttentionBackend.FLASH:
            return _causal_by_parts(q_BNTDh, k_BKMDh, v_BKMDh, backend)
        kernel = kernel_for(backend, q_BNTDh, is_masked=mask_TM is not None)
        if kernel is kernels.flash_attn or backend is not AttentionBackend.FLASH:
            return kernel(q_BNTDh, k_BKMDh, v_BKMDh, Visible(causal, mask_TM, reuse)).out_BNTDh
    if causal and T == M:
        repeats = q_BNTDh.shape[1] // k_BKMDh.shape[1]
        k, v = (x.repeat_interleave(repeats, dim=1) if repeats > 1 else x for x in (k_BKMDh, v_BKMDh))
        return functional.scaled_dot_product_attention(q_BNTDh, k, v, is_causal=True)
    if causal and not _needs_gradient(q_BNTDh, k_BKMDh, v_BKMDh):
        return _causal_by_parts(q_BNTDh, k_BKMDh, v_BKMDh, backend)
    if causal:
        mask_TM = lower_right_mask(T, M, q_BNTDh.device)
    bias = Visible(mask_TM=mask_TM, reuse=reuse).made_once(
        lambda mask_TM: kernels.folded_bias(mask_TM, q_BNTDh, k_BKMDh)
    )
    return _grouped_sdpa(q_BNTDh, k_BKMDh, v_BKMDh, bias)


def attend_part(
    q_BNTDh: Tensor, k_BKMDh: Tensor, v_BKMDh: Tensor, *, backend: AttentionBackend = AttentionBackend.SDPA
) -> PartialAttention | None:
    """Attention of many queries over keys that all of them see, to be joined with the rest by ``attend_parts``.

    None where there is no key.
    """
    if not k_BKMDh.shape[2]:
        return None
    return kernel_for(backend, q_BNTDh, is_masked=False)(q_BNTDh, k_BKMDh, v_BKMDh)


def attend_parts(
    q_BNTDh: Tensor,
    seen: Sequence[tuple[Tensor, Tensor]],
    own: tuple[Tensor, Tensor],
    own_mask_TM: Tensor,
    *,
    before: PartialAttention | None = None,
    reuse: BiasReuse | None = None,
    backend: AttentionBackend = AttentionBackend.SDPA,
) -> Tensor:
    """``attend`` over keys and values that lie in several places, without gathering them.

    Every query sees all of ``seen`` (pairs of [B, K, M, Dh], possibly empty) and of ``own`` what the boolean
    ``own_mask_TM`` lets it, which must be something for each query; ``before`` is what these queries have attended to
    already. Each part is attended by itself and the results are joined by their log-sum-exp, so that no mask is ever
    as long as the video.
    """
    parts = [before, *(attend_part(q_BNTDh, k, v, backend=backend) for k, v in seen)]
    masked = kernel_for(backend, q_BNTDh, is_masked=True)
    parts.append(masked(q_BNTDh, *own, Visible(mask_TM=own_mask_TM, reuse=reuse)))
    return kernels.join([part for part in parts if part is not None])


def kernel_for(backend: AttentionBackend, q_BNTDh: Tensor, *, is_masked: bool) -> Kernel:
    """The kernel that gives a part of the attention of such queries."""
    device, dtype, head_dim = q_BNTDh.device, q_BNTDh.dtype, q_BNTDh.shape[3]
    if backend is AttentionBackend.FLEX:
        return kernels.flex
    if backend is AttentionBackend.FLASH and not is_masked and head_dim <= _FLASH_MAX_HEAD_DIM:
        return kernels.flash_attn
    if backend is AttentionBackend.PLAIN:
        return kernels.written_out
    if device.type == "cpu":
        return kernels.cpu_flash
    if device.type == "cuda":
        is_flash_size = head_dim <= _FLASH_MAX_HEAD_DIM and head_dim % 8 == 0  # the kernel itself pads nothing
        if not is_masked and dtype in _HALF and is_flash_size and _is_ampere(device):
            return kernels.cuda_flash
        if dtype in (*_HALF, torch.float32) and head_dim * dtype.itemsize % 16 == 0:
            return kernels.cuda_efficient
    return kernels.written_out


def _causal_by_parts(q_BNTDh: Tensor, k_BKMDh: Tensor, v_BKMDh: Tensor, backend: AttentionBackend) -> Tensor:
    """The last T of M tokens over the M - T before them, which all see, and causally over themselves: no mask."""
    T = q_BNTDh.shape[2]
    kernel = kernel_for(backend, q_BNTDh, is_masked=False)
    own = kernel(q_BNTDh, k_BKMDh[:, :, -T:], v_BKMDh[:, :, -T:], Visible(causal=True))
    return kernels.join([kernel(q_BNTDh, k_BKMDh[:, :, :-T], v_BKMDh[:, :, :-T]), own])


def _needs_gradient(*tensors: Tensor) -> bool:
    """The kernels that give the log-sum-exp pass no gradient through it."""
    return torch.is_grad_enabled() and any(tensor.requires_grad for tensor in tensors)


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


@functools.cache
def _is_ampere(device: torch.device) -> bool:
    return torch.cuda.get_device_capability(device) >= (8, 0)
