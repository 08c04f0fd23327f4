"""Assembly of chunks of several segments, videos and cameras, against a cache put together by hand.

The decoder is a small random one of its own shape: nothing here depends on a checkpoint.
"""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from videoxl2.config import LanguageSpec
from videoxl2.decode import Assembly, HeaderIds, Piece, assemble_cache, generate
from videoxl2.errors import ContextOverflow, KVLayoutError
from videoxl2.kv import ChunkKV, KVCache, KVLevel, sparsify
from videoxl2.language import GapAttention, QwenDecoder

SPEC = LanguageSpec(
    vocab_size=40, width=24, mlp_width=16, num_layers=3, num_heads=4, num_kv_heads=2, head_dim=6, max_positions=400
)
PREFIX = (1, 2, 3)
CLOSE = 1e-5  # in float64; what is left are the rotation tables, which are float32 as published
CHUNKS = [(camera, segment, number) for camera in ("gate", "yard") for segment in range(2) for number in range(2)]


@pytest.fixture(scope="module")
def model() -> Any:
    torch.manual_seed(0)
    decoder = QwenDecoder(SPEC).double().requires_grad_(False).eval()
    for name, parameter in decoder.named_parameters():
        parameter.fill_(1.0) if "norm" in name else parameter.normal_(0.0, 0.3)
    return SimpleNamespace(language=decoder, tokenizer=None)


def chunk_of(camera: str, segment: int, number: int) -> ChunkKV:
    """Chunks of different places differ in values and in how many tokens they have."""
    seed = CHUNKS.index((camera, segment, number))
    groups = tuple((2 + (seed + group) % 3, 8) for group in range(1 + seed % 3))
    shape = (SPEC.num_layers, 2, SPEC.num_kv_heads, sum(map(sum, groups)), SPEC.head_dim)
    return ChunkKV(
        torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64), groups, KVLevel.DENSE
    )


class Arriving:
    """A chunk whose layers are put into place only when they are waited for; until then the place holds nonsense."""

    def __init__(self, chunk: ChunkKV, band: int = 2) -> None:
        self._chunk = chunk
        self._band = band
        self.calls: list[str] = []

    @property
    def shape(self) -> tuple[int, int, int, int, int]:
        L, S, K, M, Dh = self._chunk.kv_LSKMDh.shape
        return (L, S, K, M, Dh)

    def bind(self, slot_LSKMDh: Tensor) -> None:
        self.calls.append("bind")
        self._slot_LSKMDh = slot_LSKMDh
        slot_LSKMDh.fill_(torch.nan)

    def start(self) -> None:
        self.calls.append("start")

    def wait(self, layer: int) -> int:
        self.calls.append(f"wait {layer}")
        end = min(layer + self._band, SPEC.num_layers)
        self._slot_LSKMDh[layer:end].copy_(self._chunk.kv_LSKMDh[layer:end])
        return end


def rotated(keys_KMDh: Tensor, start: int) -> Tensor:
    """Rotation by complex numbers, in float64: (first half, second half) of a head are its real and imaginary parts."""
    half = SPEC.head_dim // 2
    positions_M = torch.arange(start, start + keys_KMDh.shape[1], dtype=torch.float64)
    speeds_H = SPEC.rope_theta ** (-torch.arange(half, dtype=torch.float64) / half)
    turns_MH = torch.polar(torch.ones(len(positions_M), half, dtype=torch.float64), positions_M[:, None] * speeds_H)
    numbers_KMH = torch.complex(keys_KMDh[..., :half].double(), keys_KMDh[..., half:].double()) * turns_MH
    return torch.cat((numbers_KMH.real, numbers_KMH.imag), dim=-1)


def by_hand(decoder: QwenDecoder, pieces: list[ChunkKV | HeaderIds]) -> list[tuple[Tensor, Tensor]]:
    """Keys and values of each layer: stored chunks turned to their place, texts prefilled behind what stands before."""
    empty = torch.zeros(SPEC.num_kv_heads, 0, SPEC.head_dim, dtype=torch.float64)
    layers = [(empty, empty) for _ in range(SPEC.num_layers)]
    for piece in (HeaderIds(PREFIX), *pieces):
        start = layers[0][0].shape[1]
        if isinstance(piece, ChunkKV):
            added = [(rotated(kv[0], start), kv[1]) for kv in piece.kv_LSKMDh]
        else:
            cache = KVCache(SPEC, start + len(piece.ids), dtype=torch.float64)
            for layer, (keys, values) in enumerate(layers):
                cache.write(layer, 0, keys, values)
            cache.advance(start)
            with torch.no_grad():
                decoder.extend(cache, decoder.embed(piece.ids))
            end = cache.length
            added = [
                (cache.keys(layer, end)[:, start:].clone(), cache.values(layer, end)[:, start:].clone())
                for layer in range(SPEC.num_layers)
            ]
        layers = [
            (torch.cat((keys, more_keys), dim=1), torch.cat((values, more_values), dim=1))
            for (keys, values), (more_keys, more_values) in zip(layers, added, strict=True)
        ]
    return layers


HEADERS = st.lists(st.integers(4, 39), min_size=1, max_size=4).map(lambda ids: HeaderIds(tuple(ids)))
PLACES = st.tuples(st.sampled_from(CHUNKS), st.booleans())


@settings(max_examples=60, deadline=None)
@given(places=st.lists(PLACES, max_size=7, unique_by=lambda place: place[0]), headers=st.data(), is_pending=st.data())
def test_any_pieces_in_any_order_equal_a_cache_put_together_by_hand(
    model: Any, places: list[tuple[tuple[str, int, int], bool]], headers: st.DataObject, is_pending: st.DataObject
) -> None:
    reference: list[ChunkKV | HeaderIds] = []
    pieces: list[Piece] = []
    previous: str | None = None
    for place, is_sparse in places:
        if place[0] != previous:  # another camera: a text says so
            header = headers.draw(HEADERS)
            reference.append(header)
            pieces.append(header)
            previous = place[0]
        chunk = sparsify(chunk_of(*place), 4) if is_sparse else chunk_of(*place)
        reference.append(chunk)
        pieces.append(Arriving(chunk) if is_pending.draw(st.booleans()) else chunk)
    cache = assemble_cache(model, pieces, prefix_ids=PREFIX)
    layers = by_hand(model.language, reference)
    assert cache.length == layers[0][0].shape[1]
    for layer, (keys, values) in enumerate(layers):
        torch.testing.assert_close(cache.keys(layer, cache.length), keys, atol=CLOSE, rtol=0)
        torch.testing.assert_close(cache.values(layer, cache.length), values, atol=CLOSE, rtol=0)


def test_arriving_chunks_give_the_same_bits_as_chunks_that_are_there(model: Any) -> None:
    chunks = [chunk_of(*place) for place in CHUNKS]
    there = assemble_cache(model, [chunks[3], HeaderIds((7, 8)), chunks[0]], prefix_ids=PREFIX)
    arriving = assemble_cache(model, [Arriving(chunks[3]), HeaderIds((7, 8)), Arriving(chunks[0])], prefix_ids=PREFIX)
    for layer in range(SPEC.num_layers):
        assert torch.equal(there.keys(layer, there.length), arriving.keys(layer, arriving.length))
        assert torch.equal(there.values(layer, there.length), arriving.values(layer, arriving.length))


@settings(max_examples=60, deadline=None)
@given(
    places=st.lists(PLACES, max_size=6, unique_by=lambda place: place[0]),
    question=st.lists(st.integers(4, 39), min_size=1, max_size=5),
    room=st.sampled_from([0, 1, 512]),
    data=st.data(),
)
def test_a_question_that_goes_along_with_the_layers_is_the_one_asked_afterwards(
    model: Any, places: list[tuple[tuple[str, int, int], bool]], question: list[int], room: int, data: st.DataObject
) -> None:
    """Whatever arrives in whichever bands, with texts between, and where the cache has to grow for the question."""
    there: list[Piece] = []
    pieces: list[Piece] = []
    for place, is_sparse in places:
        if data.draw(st.booleans()):
            there.append(data.draw(HEADERS))
            pieces.append(there[-1])
        chunk = sparsify(chunk_of(*place), 4) if is_sparse else chunk_of(*place)
        there.append(chunk)
        pieces.append(
            Arriving(chunk, data.draw(st.integers(1, SPEC.num_layers))) if data.draw(st.booleans()) else chunk
        )
    decoder = model.language
    with torch.no_grad():
        cache = assemble_cache(model, there, prefix_ids=PREFIX)
        length = cache.length
        expected = [decoder.extend(cache, decoder.embed(question)), decoder.extend(cache, decoder.embed([5]))]
    assembly = Assembly(model, pieces, prefix_ids=PREFIX, room=room)
    assert assembly.length == length
    for ids, hidden_TD in zip((question, [5]), expected, strict=True):
        torch.testing.assert_close(assembly.extend(ids), hidden_TD, atol=CLOSE, rtol=0)
    found = assembly.finish()
    assert found.length == cache.length
    for layer in range(SPEC.num_layers):
        torch.testing.assert_close(found.keys(layer, cache.length), cache.keys(layer, cache.length), atol=CLOSE, rtol=0)
        torch.testing.assert_close(
            found.values(layer, cache.length), cache.values(layer, cache.length), atol=CLOSE, rtol=0
        )


def test_a_layer_is_used_before_later_ones_are_waited_for(model: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    log: list[str] = []

    class Logged(Arriving):
        def wait(self, layer: int) -> int:
            log.append(f"wait {layer}")
            return super().wait(layer)

    attend = GapAttention.attend

    def watched(self: GapAttention, layer: int, q_BNTDh: Tensor) -> Tensor:
        found = attend(self, layer, q_BNTDh)
        log.append(f"used {layer}")
        return found

    monkeypatch.setattr(GapAttention, "attend", watched)
    chunk = chunk_of(*CHUNKS[0])
    Assembly(model, [Logged(chunk, 1), HeaderIds((7,)), Logged(chunk, 2)], prefix_ids=PREFIX).extend((5, 6))
    assert log == ["wait 0", "wait 0", "used 0", "wait 1", "used 1", "wait 2", "wait 2", "used 2"]


@pytest.mark.parametrize("damaged", range(SPEC.num_layers))
def test_no_token_comes_out_before_the_last_layer_was_found_whole(model: Any, damaged: int) -> None:
    class Damaged(Arriving):
        def wait(self, layer: int) -> int:
            if layer == damaged:
                raise OSError("checksum differs")
            return super().wait(layer)

    pieces = [Arriving(chunk_of(*CHUNKS[0]), 3), Damaged(chunk_of(*CHUNKS[1]), 1)]
    tokens: list[int] = []
    with pytest.raises(OSError, match="checksum"):
        tokens.extend(
            step.token_id
            for step in generate(model, Assembly(model, pieces, prefix_ids=PREFIX), (5, 6), max_new_tokens=3)
        )
    assert not tokens


def test_everything_is_under_way_before_anything_is_waited_for(model: Any) -> None:
    log: list[str] = []

    class Logged(Arriving):
        def __init__(self, name: str) -> None:
            super().__init__(chunk_of(*CHUNKS[0]))
            self.name = name

        def bind(self, slot_LSKMDh: Tensor) -> None:
            super().bind(slot_LSKMDh)
            log.append(f"bind {self.name}")

        def start(self) -> None:
            log.append(f"start {self.name}")

        def wait(self, layer: int) -> int:
            log.append(f"wait {self.name} {layer}")
            return super().wait(layer)

    assemble_cache(model, [Logged("a"), HeaderIds((5,)), Logged("b")], prefix_ids=PREFIX)
    assert log == ["bind a", "bind b", "start a", "start b", "wait a 0", "wait b 0", "wait a 2", "wait b 2"]


def test_nothing_is_started_for_a_context_that_is_too_long_or_of_another_model(model: Any) -> None:
    chunk = Arriving(chunk_of(*CHUNKS[0]))
    with pytest.raises(ContextOverflow):
        assemble_cache(model, [chunk], prefix_ids=PREFIX, max_tokens=5)
    alien = Arriving(ChunkKV(torch.zeros(SPEC.num_layers, 2, 1, 3, SPEC.head_dim), ((1, 2),), KVLevel.DENSE))
    with pytest.raises(KVLayoutError, match="KV heads"):
        assemble_cache(model, [chunk, alien], prefix_ids=PREFIX)
    assert chunk.calls == alien.calls == []
