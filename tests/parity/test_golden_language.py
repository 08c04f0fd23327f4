"""Layout, mask, prefill, bi-level caches, logits and greedy tokens against what the published code recorded."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from tests.parity.conftest import Golden, max_difference
from tests.parity.tolerances import KV, LOGITS
from videoxl2.config import PrefillSettings
from videoxl2.decode import assemble_cache, generate, published_dense_chunks
from videoxl2.kv import ChunkKV, sparsify
from videoxl2.prefill import PrefillResult, prefill_layout, prefill_masked, visibility_mask

SETTINGS = {
    "full": PrefillSettings(mode="plain", block_groups=2, previous_blocks=1),
    "chunk": PrefillSettings(mode="chunked", block_groups=2, previous_blocks=1),
}
LAYER = 1


def run_prefill(golden: Golden, visual: Tensor, mode: str, chunk_groups: int = 2) -> PrefillResult:
    settings = SETTINGS[mode]
    return prefill_layout(golden.model.language, golden.layout, visual, golden.times_s, settings, chunk_groups)


def joined_kv(result: PrefillResult) -> Tensor:
    return torch.cat([result.prefix_kv, *(chunk.kv_LSKMDh for chunk in result.chunks)], dim=3)


def ask(golden: Golden, pieces: list[ChunkKV]) -> tuple[Tensor, list[int], list[Tensor]]:
    """Logits of all question positions, greedy tokens, logits of each step."""
    cache = assemble_cache(golden.model, pieces, prefix_ids=golden.prefix_ids)
    before = cache.length
    decoder = golden.model.language
    with torch.no_grad():
        suffix_logits = decoder.logits(decoder.extend(cache, decoder.embed(golden.suffix_ids)))
    cache.length = before
    steps = list(generate(golden.model, cache, golden.suffix_ids, 16, keep_logits=True))
    return suffix_logits, [step.token_id for step in steps], [s.logits_V for s in steps if s.logits_V is not None]


def check_answer(golden: Golden, name: str, pieces: list[ChunkKV]) -> None:
    suffix_logits, tokens, step_logits = ask(golden, pieces)
    assert max_difference(suffix_logits, golden.tensors[f"{name}.suffix_logits"]) <= LOGITS
    assert tokens == golden.tensors[f"{name}.greedy_tokens"].tolist()
    assert max_difference(torch.stack(step_logits[:4]), golden.tensors[f"{name}.step_logits"]) <= LOGITS


def test_layout_spans(golden: Golden) -> None:
    spans = [[span.start, span.time_end, span.end] for span in golden.layout.spans]
    assert spans == golden.config["inputs"]["group_spans"]
    assert golden.layout.visual_start == golden.config["inputs"]["visual_start"]
    assert golden.layout.length == golden.config["inputs"]["visual_end"]


def test_mask_is_the_published_one(golden: Golden) -> None:
    mask = visibility_mask(golden.layout, len(golden.suffix_ids), SETTINGS["chunk"])
    tensors = golden.tensors
    assert mask.sum(dim=1).tolist() == tensors["chunk.mask_row_counts"].tolist()
    assert torch.equal(mask[tensors["chunk.mask_rows_index"]].to(torch.uint8), tensors["chunk.mask_rows"])
    assert int(mask.sum()) == golden.config["prefill"]["allowed_pairs"]


@pytest.mark.parametrize("mode", ["full", "chunk"])
def test_answer_after_prefill(golden: Golden, golden_visual: Tensor, mode: str) -> None:
    check_answer(golden, mode, list(run_prefill(golden, golden_visual, mode).chunks))


@pytest.mark.parametrize("mode", ["full", "chunk"])
def test_answer_after_masked_pass(golden: Golden, golden_visual: Tensor, mode: str) -> None:
    masked = prefill_masked(
        golden.model.language, golden.layout, golden_visual, golden.times_s, SETTINGS[mode], 2, golden.suffix_ids
    )
    with torch.no_grad():
        logits = golden.model.language.logits(masked.hidden_MD)
    probes = golden.tensors["probe_positions"]
    assert max_difference(logits[probes], golden.tensors[f"{mode}.probe_logits"]) <= LOGITS
    assert max_difference(logits[-18:], golden.tensors[f"{mode}.suffix_logits"]) <= LOGITS


@pytest.mark.parametrize("mode", ["full", "chunk"])
def test_layer_cache_after_prefill(golden: Golden, golden_visual: Tensor, mode: str) -> None:
    """The recorded cache includes the question, so ours is extended by it."""
    result = run_prefill(golden, golden_visual, mode)
    cache = assemble_cache(golden.model, result.chunks, prefix_ids=golden.prefix_ids)
    with torch.no_grad():
        golden.model.language.extend(cache, golden.model.language.embed(golden.suffix_ids))
    tensors = golden.tensors
    assert max_difference(cache.keys(LAYER, cache.length), tensors[f"{mode}.kv.layer1.key_postrope"]) <= KV
    assert max_difference(cache.values(LAYER, cache.length), tensors[f"{mode}.kv.layer1.value"]) <= KV


def test_keys_leave_prefill_before_rotation(golden: Golden, golden_visual: Tensor) -> None:
    kv = joined_kv(run_prefill(golden, golden_visual, "chunk"))[LAYER]
    length = golden.layout.length
    recorded_keys = golden.tensors["bilevel.prefill.kv.layer1.key_prerope"][:, :length]
    assert max_difference(kv[0], recorded_keys) <= KV
    assert max_difference(kv[1], golden.tensors["chunk.kv.layer1.value"][:, :length]) <= KV


@pytest.mark.parametrize("index", [0, 1, 2])
def test_bilevel(golden: Golden, golden_visual: Tensor, index: int) -> None:
    selection: dict[str, Any] = golden.config["bilevel_selections"][index]
    name, size = f"bilevel.{selection['name']}", selection["selected_chunk_size"]
    result = run_prefill(golden, golden_visual, "chunk", chunk_groups=size)
    dense = published_dense_chunks(selection["selected_unit_indices"], size, len(result.chunks))
    assert [chunk + 1 for chunk in dense] == selection["dense_chunks_1based"]
    assert len(result.chunks) == selection["num_decode_chunks"]
    pieces = [
        chunk if place in dense else sparsify(chunk, selection["compression"])
        for place, chunk in enumerate(result.chunks)
    ]
    mixed = torch.cat([result.prefix_kv, *(piece.kv_LSKMDh for piece in pieces)], dim=3)
    assert mixed.shape[3] == selection["mixed_kv_len"]
    assert golden.tensors[f"{name}.suffix_position_ids"].tolist() == list(range(mixed.shape[3], mixed.shape[3] + 18))
    for recorded, found in (("key_prerope", mixed[LAYER, 0]), ("value", mixed[LAYER, 1])):
        if f"{name}.kv.layer1.{recorded}" in golden.tensors:
            assert max_difference(found, golden.tensors[f"{name}.kv.layer1.{recorded}"]) <= KV
    check_answer(golden, name, pieces)
