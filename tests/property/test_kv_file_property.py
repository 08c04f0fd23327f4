"""KV files give back any bytes as they were, and refuse every file that differs from the one written by one bit."""

from __future__ import annotations

import tempfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from indexers.errors import CorruptKV
from indexers.kv_file import ITEM_BYTES, DenseKVHeader, DenseKVReader, KVEncoding, StepGroup, write_dense_kv
from pipeline.kv_encoding import codec_settings
from videoxl2.kv_codec import encoded_bytes

STEP_GROUPS = st.builds(StepGroup, st.sampled_from(["channel", "token"]), st.integers(1, 70))
LOSSY = st.builds(KVEncoding, st.sampled_from(["int8", "int4"]), STEP_GROUPS, STEP_GROUPS)
GROUPS = st.lists(st.tuples(st.integers(0, 5), st.integers(0, 40)), max_size=3).map(tuple)
HEADERS = st.builds(
    DenseKVHeader,
    video_id=st.text(max_size=40),
    segment_index=st.integers(0, 10**6),
    fingerprint=st.text(alphabet="0123456789abcdef", min_size=32, max_size=32),
    dtype=st.sampled_from(sorted(ITEM_BYTES)),
    layers=st.integers(1, 3),
    kv_heads=st.integers(1, 3),
    head_dim=st.integers(1, 40),
    chunk_groups=st.lists(GROUPS, max_size=5).map(tuple),
    encoding=st.one_of(st.just(KVEncoding()), LOSSY),
    format=st.sampled_from([2, 3]),
)


def make_payloads(header: DenseKVHeader, seed: int) -> list[bytes]:
    rng = np.random.default_rng(seed)
    return [rng.bytes(header.chunk_bytes(chunk)) for chunk in range(header.num_chunks)]


@settings(max_examples=60, deadline=None)
@given(header=HEADERS, seed=st.integers(0, 2**32 - 1))
def test_any_shape_and_dtype_comes_back_bit_for_bit(header: DenseKVHeader, seed: int) -> None:
    payloads = make_payloads(header, seed)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "x.vxlkv"
        written = write_dense_kv(path, header, payloads)
        with DenseKVReader(path, written.digest) as reader:
            assert reader.header == header
            assert [bytes(reader.read_chunk(chunk)) for chunk in range(header.num_chunks)] == payloads
        assert path.stat().st_size == written.num_bytes


@settings(max_examples=150, deadline=None)
@given(header=HEADERS, seed=st.integers(0, 1000), where=st.floats(0, 1, exclude_max=True), bit=st.integers(0, 7))
def test_any_flipped_bit_is_found_and_blamed_on_its_place(
    header: DenseKVHeader, seed: int, where: float, bit: int
) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "x.vxlkv"
        written = write_dense_kv(path, header, make_payloads(header, seed))
        damaged = bytearray(path.read_bytes())
        position = int(where * len(damaged))
        damaged[position] ^= 1 << bit
        path.write_bytes(damaged)
        holders = [chunk for chunk, entry in enumerate(written) if entry.length and position >= entry.offset]
        with pytest.raises(CorruptKV) as caught, DenseKVReader(path) as reader:
            reader.verify()
        assert caught.value.path == str(path)
        assert caught.value.chunk == (holders[-1] if holders else None)


@settings(max_examples=60, deadline=None)
@given(header=HEADERS, seed=st.integers(0, 1000), where=st.floats(0, 1, exclude_max=True), extra=st.integers(0, 5000))
def test_a_file_of_another_length_is_found(header: DenseKVHeader, seed: int, where: float, extra: int) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "x.vxlkv"
        write_dense_kv(path, header, make_payloads(header, seed))
        whole = path.read_bytes()
        path.write_bytes(whole[: int(where * len(whole))])
        with pytest.raises(CorruptKV):
            DenseKVReader(path)
        path.write_bytes(whole + bytes(extra + 1))
        with pytest.raises(CorruptKV):
            DenseKVReader(path)


@settings(max_examples=200, deadline=None)
@given(header=HEADERS.filter(lambda header: "int" not in header.dtype))
def test_the_file_and_the_codec_agree_on_the_length_of_a_chunk(header: DenseKVHeader) -> None:
    for chunk in range(header.num_chunks):
        expected = encoded_bytes(header.section_shape(chunk), header.dtype, codec_settings(header.encoding))
        assert header.chunk_bytes(chunk) == header.num_sections * expected


@settings(max_examples=30, deadline=None)
@given(header=HEADERS, seed=st.integers(0, 1000))
def test_written_twice_is_the_same_file(header: DenseKVHeader, seed: int) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "x.vxlkv"
        first = write_dense_kv(path, header, make_payloads(header, seed))
        content = path.read_bytes()
        assert write_dense_kv(path, header, make_payloads(header, seed)).digest == first.digest
        assert path.read_bytes() == content
        assert [entry.name for entry in Path(folder).iterdir()] == ["x.vxlkv"]
