"""Any chunks of any files, in any order, come back to where they are used: bit for bit, or within the codec's bound."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from indexers.errors import CorruptKV
from indexers.folder import LocalFile
from indexers.kv_file import DenseKVHeader, DenseKVReader, KVEncoding, StepGroup, write_dense_kv
from pipeline.kv_encoding import codec_settings, encode_chunk
from pipeline.kv_reload import Reload
from videoxl2.kv_codec import decode_kv, encode_kv, error_bound

STEP_GROUPS = st.builds(StepGroup, st.sampled_from(["channel", "token"]), st.integers(1, 40))
ENCODINGS = st.one_of(
    st.just(KVEncoding()), st.builds(KVEncoding, st.sampled_from(["int8", "int4"]), STEP_GROUPS, STEP_GROUPS)
)
HEADERS = st.builds(
    DenseKVHeader,
    video_id=st.just("a" * 32),
    segment_index=st.integers(0, 9),
    fingerprint=st.just("f" * 32),
    dtype=st.sampled_from(["float32", "float16", "bfloat16"]),
    layers=st.integers(1, 5),
    kv_heads=st.integers(1, 2),
    head_dim=st.integers(1, 17),
    chunk_groups=st.lists(st.tuples(st.tuples(st.integers(0, 3), st.integers(0, 30))), min_size=1, max_size=5).map(
        tuple
    ),
    encoding=ENCODINGS,
    format=st.sampled_from([2, 3, 3]),
)


@pytest.fixture(autouse=True, scope="module")
def bands_of_any_size() -> Iterator[None]:
    """Chunks here are too small to be read in bands, as a rule."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(LocalFile, "least_read_bytes", 1)
        yield


def values_of(header: DenseKVHeader, seed: int) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    shapes = [header.chunk_shape(chunk) for chunk in range(header.num_chunks)]
    return [torch.randn(shape, generator=generator).to(getattr(torch, header.dtype)) for shape in shapes]


def write(path: Path, header: DenseKVHeader, values: list[torch.Tensor]) -> None:
    write_dense_kv(path, header, [encode_chunk(kv, header) for kv in values])


@settings(max_examples=80, deadline=None)
@given(
    headers=st.lists(HEADERS, min_size=1, max_size=3),
    seed=st.integers(0, 1000),
    span_bytes=st.sampled_from([1, 4096, 10_000, 2**20]),
    reads_in_flight=st.integers(1, 4),
    layer_bands=st.integers(1, 6),
    data=st.data(),
)
def test_any_chunks_in_any_order_land_in_their_slots(
    headers: list[DenseKVHeader],
    seed: int,
    span_bytes: int,
    reads_in_flight: int,
    layer_bands: int,
    data: st.DataObject,
) -> None:
    shape = {"layers": headers[0].layers, "kv_heads": headers[0].kv_heads, "head_dim": headers[0].head_dim}
    headers = [replace(header, dtype=headers[0].dtype, **shape) for header in headers]  # one model's archive
    values = [values_of(header, seed + number) for number, header in enumerate(headers)]
    everything = [(file, chunk) for file, header in enumerate(headers) for chunk in range(header.num_chunks)]
    order = data.draw(st.lists(st.sampled_from(everything), max_size=8))
    with (
        tempfile.TemporaryDirectory() as folder,
        Reload(layer_bands=layer_bands, reads_in_flight=reads_in_flight, span_bytes=span_bytes) as reload,
    ):
        files = []
        for number, header in enumerate(headers):
            write(Path(folder) / str(number), header, values[number])
            files.append(reload.add(DenseKVReader(Path(folder) / str(number))))
        pieces = [reload.chunk(files[file], chunk) for file, chunk in order]
        total = sum(piece.shape[3] for piece in pieces)
        L, S, K, _, Dh = headers[0].chunk_shape(0)
        # A cache is longer than what it holds, so that slots are never contiguous; the rest of it must stay as it was.
        cache = torch.full((L, S, K, total + 3, Dh), 7.0, dtype=values[0][0].dtype)
        at = 1
        for piece in pieces:
            piece.bind(cache[:, :, :, at : at + piece.shape[3]])
            at += piece.shape[3]
        for piece in pieces:
            piece.start()
        for piece in reversed(pieces):
            piece.load()
        at = 1
        for (file, chunk), piece in zip(order, pieces, strict=True):
            codec = codec_settings(headers[file].encoding)
            kv = values[file][chunk]
            found = cache[:, :, :, at : at + piece.shape[3]]
            expected = decode_kv(encode_kv(kv, codec), tuple(kv.shape), headers[file].dtype, codec)
            assert torch.equal(found, expected)
            assert bool(((found.double() - kv.double()).abs() <= error_bound(kv, codec).double()).all())
            at += piece.shape[3]
        assert bool((cache[:, :, :, [0, total + 1, total + 2]] == 7.0).all())


@settings(max_examples=60, deadline=None)
@given(
    header=HEADERS,
    seed=st.integers(0, 1000),
    where=st.floats(0, 1, exclude_max=True),
    bit=st.integers(0, 7),
    layer_bands=st.integers(1, 6),
)
def test_a_flipped_bit_anywhere_is_an_error_of_its_chunk_and_of_no_other(
    header: DenseKVHeader, seed: int, where: float, bit: int, layer_bands: int
) -> None:
    values = values_of(header, seed)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "x"
        write(path, header, values)
        with DenseKVReader(path) as file:
            entries = file.entries
        content = bytearray(path.read_bytes())
        position = int(where * len(content))
        content[position] ^= 1 << bit
        path.write_bytes(content)
        holders = [chunk for chunk, entry in enumerate(entries) if entry.length and position >= entry.offset]
        if not holders:
            with pytest.raises(CorruptKV, match="header"):
                DenseKVReader(path)
            return
        with Reload(layer_bands=layer_bands) as reload:
            file = reload.add(DenseKVReader(path))
            pieces = [reload.chunk(file, chunk) for chunk in range(header.num_chunks)]
            for piece in pieces:
                piece.bind_to_own()
                piece.start()
            for chunk, piece in enumerate(pieces):
                entry = entries[chunk]
                damaged = min((position - entry.offset) // max(entry.section_bytes, 1), entry.num_sections - 1)
                for band in piece.bands:
                    if chunk == holders[-1] and damaged in band.sections:
                        with pytest.raises(CorruptKV, match=f"chunk {chunk}"):
                            piece.wait(band.layers.start)
                    else:
                        assert piece.wait(band.layers.start) == band.layers.stop
