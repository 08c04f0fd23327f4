"""The stored record checks itself; the working cache grows, refuses to overflow and can be set back."""

from __future__ import annotations

import gc

import numpy as np
import pytest
import torch

from videoxl2.config import LanguageSpec
from videoxl2.errors import ContextOverflow, KVLayoutError
from videoxl2.kv import ChunkKV, KVCache, KVLevel, join_chunks, kv_from_buffer, kv_to_numpy, sparsify

SPEC = LanguageSpec(
    vocab_size=10, width=8, mlp_width=8, num_layers=2, num_heads=2, num_kv_heads=1, head_dim=4, max_positions=50
)


def chunk_of(tokens: int, level: KVLevel = KVLevel.DENSE) -> ChunkKV:
    return ChunkKV(torch.randn(2, 2, 1, tokens, 4), ((1, tokens - 1),), level)


def test_a_chunk_states_its_size() -> None:
    chunk = chunk_of(5)
    assert (chunk.num_tokens, chunk.num_groups, chunk.num_bytes) == (5, 1, 2 * 2 * 5 * 4 * 4)


@pytest.mark.parametrize("shape", [(2, 2, 1, 6, 4), (2, 3, 1, 5, 4), (2, 2, 5, 4)])
def test_a_chunk_of_another_shape_is_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(KVLayoutError):
        ChunkKV(torch.zeros(shape), ((1, 4),), KVLevel.DENSE)


def test_sparse_kv_is_not_made_sparser_nor_joined_with_dense() -> None:
    sparse = sparsify(chunk_of(9), 4)
    assert sparse.num_tokens == 3
    with pytest.raises(KVLayoutError, match="dense"):
        sparsify(sparse, 4)
    with pytest.raises(KVLayoutError, match="one level"):
        join_chunks([sparse, chunk_of(5)])
    with pytest.raises(ValueError, match="compression"):
        sparsify(chunk_of(5), 0)


def test_a_tensor_over_a_buffer_shares_it_and_keeps_it_alive() -> None:
    array = np.arange(8, dtype=np.uint8)
    tensor = kv_from_buffer(array, "uint8", (2, 4))
    array[3] = 99
    assert tensor[0, 3] == 99
    kept = kv_from_buffer(bytes(range(200)), "uint8", (200,))
    gc.collect()
    assert kept.tolist() == list(range(200))
    assert kv_to_numpy(kept[10:20]).tolist() == list(range(10, 20))


@pytest.mark.parametrize(("dtype", "shape"), [("bfloat16", (5,)), ("float99", (4,)), ("nn", (4,))])
def test_bytes_that_do_not_fit_are_refused(dtype: str, shape: tuple[int, ...]) -> None:
    with pytest.raises(KVLayoutError):
        kv_from_buffer(bytes(8), dtype, shape)


def test_an_empty_buffer() -> None:
    assert kv_from_buffer(b"", "float16", (2, 0)).shape == (2, 0)


def test_the_cache_grows_and_keeps_what_it_holds() -> None:
    cache = KVCache(SPEC, 2)
    keys = torch.randn(1, 2, 4)
    for layer in range(2):
        cache.write(layer, 0, keys, keys + layer)
    cache.advance(2)
    cache.reserve(3)
    assert cache.capacity >= 3 and cache.length == 2
    assert torch.equal(cache.keys(1, 2), keys) and torch.equal(cache.values(1, 2), keys + 1)


def test_the_cache_never_passes_its_limit() -> None:
    cache = KVCache(SPEC, 40)
    cache.reserve(50)
    with pytest.raises(ContextOverflow) as caught:
        cache.reserve(51)
    assert (caught.value.needed, caught.value.limit) == (51, 50)
    with pytest.raises(ContextOverflow):
        KVCache(SPEC, 51)
    assert KVCache(SPEC, 51, limit=60).limit == 60


def test_the_length_can_only_be_set_back() -> None:
    cache = KVCache(SPEC, 10)
    cache.advance(6)
    cache.length = 4
    assert cache.length == 4
    for wrong in (5, -1):
        with pytest.raises(ValueError, match="set back"):
            cache.length = wrong
    with pytest.raises(ValueError, match="outside"):
        cache.advance(11)
