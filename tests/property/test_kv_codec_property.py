"""Any KV survives its codec: bit for bit when exact, within the stated bound otherwise."""

from __future__ import annotations

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from videoxl2.kv import kv_to_numpy
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

SHAPES = st.tuples(st.integers(1, 3), st.just(2), st.integers(1, 3), st.integers(0, 41), st.integers(1, 19))
DTYPES = st.sampled_from(["float32", "float16", "bfloat16", "float64"])
GROUPINGS = st.builds(Grouping, st.sampled_from(["channel", "token"]), st.integers(1, 70))
LOSSY = st.builds(CodecSettings, st.sampled_from([KVCodec.INT8, KVCodec.INT4]), GROUPINGS, GROUPINGS)


@st.composite
def chunks(draw: st.DrawFn) -> torch.Tensor:
    """Noise around offsets of any size, on any scale, with some constant and some zero channels."""
    shape, dtype = draw(SHAPES), draw(DTYPES)
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**32 - 1)))
    scale = 10.0 ** draw(st.integers(-9, 3))
    offset = 10.0 ** draw(st.integers(-9, 4)) * draw(st.sampled_from([-1.0, 0.0, 1.0]))
    kv = torch.randn(shape, generator=generator, dtype=torch.float64) * scale
    kv += offset * torch.randn(1, 1, 1, 1, shape[4], generator=generator, dtype=torch.float64)
    kv *= torch.randint(0, 3, (1, 2, 1, 1, shape[4]), generator=generator) > 0
    return kv.clamp(-LARGEST, LARGEST).to(getattr(torch, dtype))


def name_of(kv: torch.Tensor) -> str:
    return str(kv.dtype).removeprefix("torch.")


@settings(max_examples=60, deadline=None)
@given(kv=chunks())
def test_exact_is_bit_for_bit(kv: torch.Tensor) -> None:
    exact = CodecSettings(KVCodec.EXACT)
    payload = encode_kv(kv, exact)
    assert payload.nbytes == encoded_bytes(tuple(kv.shape), name_of(kv), exact)
    assert bytes(kv_to_numpy(decode_kv(payload, tuple(kv.shape), name_of(kv), exact))) == bytes(kv_to_numpy(kv))


@settings(max_examples=300, deadline=None)
@given(kv=chunks(), codec=LOSSY)
def test_every_value_is_within_the_stated_bound(kv: torch.Tensor, codec: CodecSettings) -> None:
    payload = encode_kv(kv, codec)
    assert payload.nbytes == encoded_bytes(tuple(kv.shape), name_of(kv), codec)
    back = decode_kv(payload, tuple(kv.shape), name_of(kv), codec)
    assert (back.dtype, back.shape) == (kv.dtype, kv.shape)
    assert bool(((back.double() - kv.double()).abs() <= error_bound(kv, codec).double()).all())


@settings(max_examples=60, deadline=None)
@given(kv=chunks(), codec=LOSSY)
def test_the_bytes_depend_on_nothing_but_the_values(kv: torch.Tensor, codec: CodecSettings) -> None:
    strided = kv.transpose(3, 4).contiguous().transpose(3, 4)
    assert bytes(encode_kv(kv, codec)) == bytes(encode_kv(strided, codec))
