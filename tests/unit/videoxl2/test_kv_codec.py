"""The bytes of encoded KV are those of the layout that the module states, written out by hand here."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from videoxl2.errors import KVLayoutError
from videoxl2.kv import KVLevel
from videoxl2.kv_codec import (
    LARGEST,
    CodecSettings,
    Grouping,
    KVCodec,
    decode_kv,
    encode_kv,
    encoded_bytes,
    error_bound,
)
from videoxl2.prefill import PrefillResult

INT8, INT4 = CodecSettings(KVCodec.INT8), CodecSettings(KVCodec.INT4)


def by_hand(payload: np.ndarray, shape: tuple[int, ...], settings: CodecSettings) -> np.ndarray:
    """Decoding as a stranger would write it from the docstring: one value at a time."""
    L, _, K, M, Dh = shape
    out = np.zeros(shape, dtype=np.float32)
    at = 0
    for which, grouping in enumerate((settings.keys, settings.values)):
        count = L * K * M * Dh
        if settings.codec is KVCodec.INT4:
            packed = payload[at : at + (count + 1) // 2]
            at += packed.size
            codes = [int(packed[n // 2]) >> 4 if n % 2 else int(packed[n // 2]) & 15 for n in range(count)]
        else:
            codes = [int(code) for code in payload[at : at + count]]
            at += count
        groups = -(-(M if grouping.axis == "channel" else Dh) // grouping.size)
        size = L * K * groups * (Dh if grouping.axis == "channel" else M)
        offsets, steps = (payload[at + 2 * size * n :][: 2 * size].tobytes() for n in range(2))
        at += 4 * size
        offset, step = np.frombuffer(offsets, "<f2"), np.frombuffer(steps, "<f2")
        for n in range(count):
            layer, head, token, channel = np.unravel_index(n, (L, K, M, Dh))
            if grouping.axis == "channel":
                group = ((layer * K + head) * groups + token // grouping.size) * Dh + channel
            else:
                group = ((layer * K + head) * M + token) * groups + channel // grouping.size
            out[layer, which, head, token, channel] = np.float32(offset[group]) + np.float32(step[group]) * codes[n]
    assert at == payload.size
    return out


@pytest.mark.parametrize("codec", [KVCodec.INT8, KVCodec.INT4])
@pytest.mark.parametrize(("keys", "values"), [("channel", "token"), ("token", "channel")])
@pytest.mark.parametrize("shape", [(2, 2, 1, 5, 3), (1, 2, 3, 7, 5), (2, 2, 2, 4, 4)])
def test_the_layout_is_the_documented_one(codec: KVCodec, keys: str, values: str, shape: tuple[int, ...]) -> None:
    settings = CodecSettings(codec, Grouping(keys, 3), Grouping(values, 2))  # type: ignore[arg-type]
    kv = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    payload = encode_kv(kv, settings)
    assert payload.size == encoded_bytes(shape, "float32", settings)
    torch.testing.assert_close(
        decode_kv(payload, shape, "float32", settings).numpy(), by_hand(payload, shape, settings)
    )


def test_known_values_give_known_bytes() -> None:
    kv = torch.zeros(1, 2, 1, 3, 1)
    kv[0, 0, 0, :, 0] = torch.tensor([0.0, 7.5, 15.0])
    kv[0, 1, 0, :, 0] = torch.tensor([-1.0, 2.0, 5.0])
    payload = encode_kv(kv, CodecSettings(KVCodec.INT4, Grouping("channel", 64), Grouping("token", 64)))
    half = np.array([0.0, 1.0], "<f2").tobytes()
    values = np.array([-1, 2, 5, 0, 0, 0], "<f2").tobytes()
    assert payload.tobytes() == bytes([0x80, 0x0F]) + half + bytes([0, 0]) + values


@pytest.mark.parametrize("settings", [INT8, INT4])
def test_constant_and_zero_groups_come_back_as_they_were(settings: CodecSettings) -> None:
    kv = torch.full((2, 2, 1, 130, 64), 1.5)
    kv[0] = 0.0
    assert torch.equal(decode_kv(encode_kv(kv, settings), tuple(kv.shape), "float32", settings), kv)


def test_an_exact_chunk_is_a_view_of_its_bytes() -> None:
    kv = torch.randn(1, 2, 1, 4, 8)
    exact = CodecSettings(KVCodec.EXACT)
    payload = encode_kv(kv, exact)
    assert decode_kv(payload, tuple(kv.shape), "float32", exact).data_ptr() == payload.ctypes.data
    assert not error_bound(kv, exact).any()


def test_a_large_channel_hurts_its_own_group_only() -> None:
    """Why keys are grouped along the channel: one channel of 100 must not coarsen the others."""
    kv = torch.randn(1, 2, 1, 64, 32, generator=torch.Generator().manual_seed(0))
    kv[:, 0, :, :, 5] += 100.0
    others = [channel for channel in range(32) if channel != 5]
    errors = {}
    for axis in ("channel", "token"):
        settings = CodecSettings(KVCodec.INT4, Grouping(axis, 32), Grouping("token", 32))  # type: ignore[arg-type]
        back = decode_kv(encode_kv(kv, settings), tuple(kv.shape), "float32", settings)
        errors[axis] = float((back - kv)[:, 0][..., others].abs().max())
    assert errors["channel"] < 0.3 < 3 < errors["token"] * 3


@pytest.mark.parametrize("settings", [INT8, INT4])
def test_the_model_s_own_kv_keeps_within_its_bound(tiny_prefill: PrefillResult, settings: CodecSettings) -> None:
    for chunk in tiny_prefill.chunks:
        assert chunk.level is KVLevel.DENSE
        kv = chunk.kv_LSKMDh
        back = decode_kv(encode_kv(kv, settings), tuple(kv.shape), "float32", settings)
        assert bool(((back - kv).abs() <= error_bound(kv, settings)).all())
        assert encoded_bytes(tuple(kv.shape), "bfloat16", settings) < kv.numel() * 2 * 0.72


@pytest.mark.parametrize("value", [float("nan"), float("inf"), LARGEST * 1.01])
def test_what_does_not_fit_is_refused(value: float) -> None:
    kv = torch.zeros(1, 2, 1, 4, 4)
    kv[0, 1, 0, 2, 2] = value
    for settings in (INT8, INT4):
        with pytest.raises(KVLayoutError, match="store this chunk exactly"):
            encode_kv(kv, settings)
    encode_kv(kv, CodecSettings(KVCodec.EXACT))


def test_wrong_sizes_shapes_and_settings_are_refused() -> None:
    kv = torch.zeros(1, 2, 1, 4, 4)
    payload = encode_kv(kv, INT8)
    with pytest.raises(KVLayoutError, match="bytes do not hold"):
        decode_kv(payload[:-1], (1, 2, 1, 4, 4), "float32", INT8)
    with pytest.raises(KVLayoutError, match="bytes do not hold"):
        decode_kv(payload, (1, 2, 1, 4, 4), "float32", INT4)
    with pytest.raises(KVLayoutError, match="head width"):
        encode_kv(kv[0], INT8)
    for dtype in ("int8", "nothing"):
        with pytest.raises(KVLayoutError, match="floating-point"):
            encoded_bytes((1, 2, 1, 4, 4), dtype, CodecSettings(KVCodec.EXACT))
    for axis, size in (("layer", 4), ("token", 0)):
        with pytest.raises(ValueError, match="grouping"):
            Grouping(axis, size)  # type: ignore[arg-type]
