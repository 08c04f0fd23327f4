"""KV as fewer bytes: exact, int8 or int4 in groups, and back. Pure: tensors and bytes, no files.

A group is a run of values that share an offset and a step. Along ``channel`` a group is one channel of a head over
consecutive tokens; along ``token`` it is consecutive channels of one token. Keys have channels that are large for all
tokens, so that grouping them along the token destroys them. Values are told to have none and to suit either; measured
on what we have, the channel is better for them too (``docs/benchmarks/kv_codec_cpu_202611.md``).

An encoded chunk is the codes of the keys, their offsets, their steps, then the same of the values:

- codes: one byte each (int8), or two per byte, the earlier in the lower half (int4; an odd last one is followed by 0),
  in the order of the tensor ``[layer][kv_head][token][head_dim]``;
- offsets and steps: float16, little-endian, ``[layer][kv_head][group of tokens][head_dim]`` along ``channel`` and
  ``[layer][kv_head][token][group of channels]`` along ``token``. The last group of an axis may be short.

A value is ``offset + step * code``, computed in float32. With ``levels`` = 255 (int8) or 15 (int4) its error is at most
half its group's step, and the rounding to the chunk's own dtype. A step is at most ``range / levels`` of its group,
plus what rounding offset and step outwards to float16 adds: see ``error_bound``.

Shapes: L layers, S = 2 (key, value), K KV heads, M tokens, Dh head width, J groups, R values in a group.
"""

from __future__ import annotations

import enum
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from videoxl2.errors import KVLayoutError
from videoxl2.kv import kv_from_buffer, kv_to_numpy

Axis = Literal["channel", "token"]
LARGEST = 60_000.0
"""Values beyond do not fit into float16 offsets and steps; KV of no known model comes near it."""
_HALF_EPS = 2.0**-10
_HALF_TINY = 2.0**-24
_FLOAT_EPS = 2.0**-21


class KVCodec(enum.StrEnum):
    """How a chunk's values become bytes."""

    EXACT = "exact"
    INT8 = "int8"
    INT4 = "int4"


@dataclass(frozen=True, slots=True)
class Grouping:
    """Along which axis values share a step, and how many of them do."""

    axis: Axis
    size: int

    def __post_init__(self) -> None:
        if self.axis not in ("channel", "token") or self.size < 1:
            raise ValueError(f"a grouping is along channel or token, of at least 1 value, not {self.axis}, {self.size}")


KEY_GROUPING = Grouping("channel", 64)
VALUE_GROUPING = Grouping("channel", 64)


@dataclass(frozen=True, slots=True)
class CodecSettings:
    """A codec with its groupings; they decide the bytes, so the file says them. Exact ignores them."""

    codec: KVCodec
    keys: Grouping = field(default=KEY_GROUPING)
    values: Grouping = field(default=VALUE_GROUPING)

    @property
    def levels(self) -> int:
        """Largest code."""
        return {KVCodec.INT8: 255, KVCodec.INT4: 15}[self.codec]


def encoded_bytes(shape: tuple[int, ...], dtype: str, settings: CodecSettings) -> int:
    """Length of an encoded chunk of ``shape`` [L, 2, K, M, Dh] whose values are of ``dtype`` (torch's name)."""
    if settings.codec is KVCodec.EXACT:
        return int(np.prod(shape, dtype=np.int64)) * _torch_dtype(dtype).itemsize
    return sum(
        _code_bytes(shape, settings) + 2 * 2 * int(np.prod(_parameter_shape(shape, grouping), dtype=np.int64))
        for grouping in (settings.keys, settings.values)
    )


def encode_kv(kv_LSKMDh: Tensor, settings: CodecSettings) -> np.ndarray:
    """The chunk's bytes as a flat uint8 array. Works on the tensor's device.

    Raises ``KVLayoutError`` for another shape, and for int8 and int4 where a value is not finite or beyond ``LARGEST``.
    """
    if kv_LSKMDh.ndim != 5 or kv_LSKMDh.shape[1] != 2:
        raise KVLayoutError(f"a chunk's KV is [layers, 2, KV heads, tokens, head width], got {list(kv_LSKMDh.shape)}")
    if settings.codec is KVCodec.EXACT:
        return kv_to_numpy(kv_LSKMDh)
    if kv_LSKMDh.numel() and not float(kv_LSKMDh.abs().max()) <= LARGEST:  # also where one is NaN
        raise KVLayoutError(f"{settings.codec} needs finite values of at most {LARGEST:g}; store this chunk exactly")
    parts = []
    for which, grouping in enumerate((settings.keys, settings.values)):
        codes, offset, step = _quantise(kv_LSKMDh[:, which], grouping, settings.levels)
        packed = _pack_nibbles(codes.flatten()) if settings.codec is KVCodec.INT4 else codes.flatten()
        parts += [kv_to_numpy(packed), kv_to_numpy(offset), kv_to_numpy(step)]
    return np.concatenate(parts)


def decode_kv(
    payload: object, shape: tuple[int, ...], dtype: str, settings: CodecSettings, device: str | torch.device = "cpu"
) -> Tensor:
    """A chunk [L, 2, K, M, Dh] of ``dtype`` from its bytes; they are uploaded as they are and expanded on ``device``.

    On the CPU an exact chunk is a view of ``payload`` (any buffer). Raises ``KVLayoutError`` when the number of bytes
    is not the one that shape, dtype and settings make.
    """
    if settings.codec is KVCodec.EXACT:
        return kv_from_buffer(payload, dtype, shape, device)
    raw_B = kv_from_buffer(payload, "uint8", (encoded_bytes(shape, dtype, settings),), device)
    kv_LSKMDh = torch.empty(shape, dtype=_torch_dtype(dtype), device=device)
    decode_kv_into(raw_B, dtype, settings, kv_LSKMDh)
    return kv_LSKMDh


def decode_kv_into(raw_B: Tensor, dtype: str, settings: CodecSettings, out_LSKMDh: Tensor) -> None:
    """Expand an encoded chunk of ``dtype`` (uint8, flat, on the device of ``out``) straight to where it is used.

    ``out`` [L, 2, K, M, Dh] may be a slot of a larger tensor; where it is of another dtype the values are rounded to
    the chunk's own first, so that a chunk has the same values wherever it lands. Layers are written in order. Raises
    ``KVLayoutError`` when the number of bytes is not the one that shape, dtype and settings make.
    """
    shape = tuple(out_LSKMDh.shape)
    expected = encoded_bytes(shape, dtype, settings)
    if raw_B.dtype is not torch.uint8 or raw_B.numel() != expected:
        raise KVLayoutError(f"{raw_B.numel()} bytes do not hold {settings.codec} {dtype} {list(shape)} ({expected})")
    if settings.codec is KVCodec.EXACT:
        out_LSKMDh.copy_(_aligned(raw_B, _torch_dtype(dtype)).view(shape))
        return
    if out_LSKMDh.dtype is not _torch_dtype(dtype):
        rounded = torch.empty(shape, dtype=_torch_dtype(dtype), device=out_LSKMDh.device)
        decode_kv_into(raw_B, dtype, settings, rounded)
        out_LSKMDh.copy_(rounded)
        return
    L, _, K, M, Dh = shape
    at = 0

    def take(size: int) -> Tensor:
        nonlocal at
        at += size
        return raw_B[at - size : at]

    for which, grouping in enumerate((settings.keys, settings.values)):
        codes = take(_code_bytes(shape, settings))
        if settings.codec is KVCodec.INT4:
            codes = _unpack_nibbles(codes, L * K * M * Dh)
        parameter_shape = _parameter_shape(shape, grouping)
        size = 2 * int(np.prod(parameter_shape, dtype=np.int64))
        offset, step = (_aligned(take(size), torch.float16).view(parameter_shape) for _ in range(2))
        _dequantise(codes.view(L, K, M, Dh), offset, step, grouping, out_LSKMDh[:, which])


def encode_sections(kv_LSKMDh: Tensor, settings: CodecSettings, num_sections: int) -> np.ndarray:
    """A chunk's bytes, of which ``num_sections`` runs of its layers, equally many in each, can be expanded alone."""
    if settings.codec is KVCodec.EXACT or num_sections == 1:
        return encode_kv(kv_LSKMDh, settings)  # exact bytes are in the order of the layers as they are
    return np.concatenate([encode_kv(section, settings) for section in kv_LSKMDh.chunk(num_sections)])


def decode_sections_into(
    raw_B: Tensor, dtype: str, settings: CodecSettings, out_LSKMDh: Tensor, num_sections: int
) -> None:
    """Expand consecutive sections of ``encode_sections`` into the layers that they are of; see ``decode_kv_into``."""
    if settings.codec is KVCodec.EXACT or num_sections == 1:
        decode_kv_into(raw_B, dtype, settings, out_LSKMDh)
        return
    size = raw_B.numel() // num_sections
    for number, section_LSKMDh in enumerate(out_LSKMDh.chunk(num_sections)):
        decode_kv_into(raw_B[number * size : (number + 1) * size], dtype, settings, section_LSKMDh)


def error_bound(kv_LSKMDh: Tensor, settings: CodecSettings) -> Tensor:
    """The largest error that each value [L, 2, K, M, Dh] may have after encoding and decoding, as float32.

    Half a step of ``(range + |least| / 1024) / levels``, widened by 1/1024 and 2^-24 for float16, plus float32's own
    rounding and that of the chunk's dtype. Zero for the exact codec.
    """
    kv_LSKMDh = kv_LSKMDh.detach()
    if settings.codec is KVCodec.EXACT or not kv_LSKMDh.numel():
        return torch.zeros(kv_LSKMDh.shape, device=kv_LSKMDh.device)
    bounds = []
    for which, grouping in enumerate((settings.keys, settings.values)):
        values = kv_LSKMDh[:, which].float()
        least, most = (torch.stack(found) for found in zip(*(_extremes(v, grouping) for v in values), strict=True))
        spread = most - least + least.abs() * _HALF_EPS + _HALF_TINY
        half_step = (spread / settings.levels * (1 + _HALF_EPS) + _HALF_TINY) / 2
        size = torch.maximum(least.abs(), most.abs()) + half_step
        rounding = size * (_FLOAT_EPS + torch.finfo(kv_LSKMDh.dtype).eps)
        rounding = rounding + torch.finfo(kv_LSKMDh.dtype).tiny
        bounds.append(_expand(half_step + rounding, values.shape, grouping))
    return torch.stack(bounds, dim=1)


def _quantise(values_LKMDh: Tensor, grouping: Grouping, levels: int) -> tuple[Tensor, Tensor, Tensor]:
    """Codes like the values, and offset and step of each group as float16, rounded outwards so that no code clips.

    One layer at a time, so that the float32 copy stays small.
    """
    codes_LKMDh = torch.empty(values_LKMDh.shape, dtype=torch.uint8, device=values_LKMDh.device)
    shape = _group_shape(values_LKMDh.shape, grouping)
    offset = torch.empty(shape, dtype=torch.float16, device=values_LKMDh.device)
    step = torch.empty_like(offset)
    if not values_LKMDh.numel():
        return codes_LKMDh, offset, step
    for layer in range(values_LKMDh.shape[0]):
        values_KMDh = values_LKMDh[layer].float()
        least, most = _extremes(values_KMDh, grouping)
        offset[layer] = _half_below(least)
        step[layer] = _half_above((most - offset[layer].float()) / levels)
        figures = offset[layer].float(), step[layer].float().clamp_min(_HALF_TINY)
        out = _by_group(grouping, codes_LKMDh[layer])
        for (values, lows, steps), (codes,) in zip(_by_group(grouping, values_KMDh, *figures), out, strict=True):
            codes.copy_(((values - lows) / steps).round_().clamp_(0, levels))
    return codes_LKMDh, offset, step


def _dequantise(codes_LKMDh: Tensor, offset: Tensor, step: Tensor, grouping: Grouping, out_LKMDh: Tensor) -> None:
    """``offset + step * code`` into ``out``, one layer at a time."""
    for layer in range(codes_LKMDh.shape[0]):
        figures = offset[layer].float(), step[layer].float()
        out = _by_group(grouping, out_LKMDh[layer])
        for (codes, lows, steps), (values,) in zip(_by_group(grouping, codes_LKMDh[layer], *figures), out, strict=True):
            values.copy_(codes * steps + lows)


def _by_group(grouping: Grouping, values_KMDh: Tensor, *figures: Tensor) -> Iterator[tuple[Tensor, ...]]:
    """Views of one layer with the grouped axis split in (group, value), and of each group's figures beside them.

    The whole groups first, then a short last one.
    """
    axis = _axis(grouping) - 1
    length = values_KMDh.shape[axis]
    num_whole, rest = divmod(length, grouping.size)
    for first, count, size in ((0, num_whole, grouping.size), (num_whole, 1, rest)):
        if count and size:
            split = values_KMDh.narrow(axis, first * grouping.size, count * size).unflatten(axis, (count, size))
            yield split, *(figure.narrow(axis, first, count).unsqueeze(axis + 1) for figure in figures)


def _extremes(values_KMDh: Tensor, grouping: Grouping) -> tuple[Tensor, Tensor]:
    """Least and largest value of each group of one layer."""
    axis = _axis(grouping) - 1
    pieces = [split.aminmax(dim=axis + 1) for (split,) in _by_group(grouping, values_KMDh)]
    return torch.cat([piece[0] for piece in pieces], dim=axis), torch.cat([piece[1] for piece in pieces], dim=axis)


def _expand(groups: Tensor, shape: torch.Size, grouping: Grouping) -> Tensor:
    """Each group's figure at each of its values."""
    axis = _axis(grouping)
    return groups.repeat_interleave(grouping.size, dim=axis).narrow(axis, 0, shape[axis])


def _axis(grouping: Grouping) -> int:
    return 2 if grouping.axis == "channel" else 3


def _group_shape(shape: tuple[int, ...], grouping: Grouping) -> tuple[int, ...]:
    L, K, M, Dh = shape
    if grouping.axis == "channel":
        return (L, K, -(-M // grouping.size), Dh)
    return (L, K, M, -(-Dh // grouping.size))


def _parameter_shape(shape: tuple[int, ...], grouping: Grouping) -> tuple[int, ...]:
    L, _, K, M, Dh = shape
    return _group_shape((L, K, M, Dh), grouping)


def _code_bytes(shape: tuple[int, ...], settings: CodecSettings) -> int:
    """Bytes of the codes of the keys, or of the values."""
    count = int(np.prod(shape, dtype=np.int64)) // 2
    return -(-count // 2) if settings.codec is KVCodec.INT4 else count


def _pack_nibbles(codes_N: Tensor) -> Tensor:
    if codes_N.numel() % 2:
        codes_N = torch.cat([codes_N, codes_N.new_zeros(1)])
    return codes_N[0::2] | (codes_N[1::2] << 4)


def _unpack_nibbles(packed: Tensor, count: int) -> Tensor:
    return torch.stack([packed & 15, packed >> 4], dim=1).flatten()[:count]


def _half_below(values: Tensor) -> Tensor:
    """The largest float16 not above each value."""
    half = values.half()
    bits = half.view(torch.int16)
    # One step down: towards zero for positive numbers, away from it for negative ones; below zero comes -2^-24.
    below = torch.where(half > 0, bits - 1, torch.where(half < 0, bits + 1, torch.full_like(bits, -32767)))
    return torch.where(half.float() > values, below, bits).view(torch.float16)


def _half_above(values: Tensor) -> Tensor:
    """The least float16 not below each value; values are not negative."""
    half = values.half()
    bits = half.view(torch.int16)
    return torch.where(half.float() < values, bits + 1, bits).view(torch.float16)


def _aligned(raw_B: Tensor, dtype: torch.dtype) -> Tensor:
    """Bytes as numbers; copied where an odd number of bytes before them left them at an address of the wrong kind."""
    if raw_B.storage_offset() % dtype.itemsize:
        raw_B = raw_B.clone()
    return raw_B.view(dtype)


def _torch_dtype(name: str) -> torch.dtype:
    dtype = getattr(torch, name, None)
    if not isinstance(dtype, torch.dtype) or not dtype.is_floating_point:
        raise KVLayoutError(f"{name!r} is not a floating-point dtype")
    return dtype
