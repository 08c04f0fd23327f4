"""Assembly, headers, generation and reuse of a cache, on the packaged model."""

from __future__ import annotations

import pytest
import torch

from videoxl2.config import GenerationSettings, LevelSettings, PrefillSettings
from videoxl2.decode import HeaderIds, assemble_cache, generate, select_levels
from videoxl2.errors import ContextOverflow, KVLayoutError
from videoxl2.kv import ChunkKV, KVLevel, sparsify
from videoxl2.language import QwenDecoder
from videoxl2.masked_prefill import prefill_masked
from videoxl2.model import VideoXL2
from videoxl2.prefill import PrefillResult, video_layout

QUESTION = "What happens at the gate?"
DESCRIBE = "Describe what happens."
"""Answered with a sentence, so with several tokens."""
ABS = 1e-4


def tokens_of(model: VideoXL2, pieces: list[ChunkKV | HeaderIds], count: int = 8) -> list[int]:
    _, suffix = model.tokenizer.prompt_parts(QUESTION)
    return [step.token_id for step in generate(model, model.assemble(pieces), suffix, count)]


def test_all_dense_reload_answers_like_one_masked_pass(tiny_model: VideoXL2) -> None:
    shape = (7, tiny_model.spec.tokens_per_group, tiny_model.spec.language.width)
    visual = torch.randn(shape, generator=torch.Generator().manual_seed(5))
    times = [4.0 * group for group in range(7)]
    knobs = PrefillSettings(block_groups=2, previous_blocks=1)
    _, suffix = tiny_model.tokenizer.prompt_parts(QUESTION)
    layout = video_layout(tiny_model.tokenizer, times, visual)
    masked = prefill_masked(tiny_model.language, layout, visual, times, knobs, 3, suffix)
    cache = tiny_model.assemble(list(tiny_model.prefill(visual, times, knobs, 3).chunks))
    assert cache.length == layout.length
    step = next(iter(generate(tiny_model, cache, suffix, 1, keep_logits=True)))
    with torch.no_grad():
        expected = tiny_model.language.logits(masked.hidden_MD[-1])
    assert step.logits_V is not None
    assert float((step.logits_V - expected).abs().max()) <= ABS


def test_a_cache_set_back_takes_another_question(tiny_model: VideoXL2, tiny_prefill: PrefillResult) -> None:
    cache = tiny_model.assemble(list(tiny_prefill.chunks))
    before = cache.length
    settings = GenerationSettings(max_new_tokens=12)
    first = tiny_model.generate_text(cache, QUESTION, settings)
    other = tiny_model.generate_text(cache, "How many people are there?", settings)
    assert cache.length == before
    assert tiny_model.generate_text(cache, QUESTION, settings) == first
    assert other != first


def test_streamed_pieces_make_up_the_answer(tiny_model: VideoXL2, tiny_prefill: PrefillResult) -> None:
    cache = tiny_model.assemble(list(tiny_prefill.chunks[:2]))
    before = cache.length
    pieces = tiny_model.stream_text(cache, DESCRIBE, GenerationSettings(max_new_tokens=20))
    first = next(pieces)
    pieces.close()  # type: ignore[attr-defined]
    assert cache.length == before, "a caller that stops early leaves the cache as it was"
    whole = "".join(tiny_model.stream_text(cache, DESCRIBE, GenerationSettings(max_new_tokens=20)))
    assert whole.startswith(first) and len(whole) > len(first)


def test_generation_ends_before_an_end_token(tiny_model: VideoXL2, tiny_prefill: PrefillResult) -> None:
    _, suffix = tiny_model.tokenizer.prompt_parts(QUESTION)
    free = tokens_of(tiny_model, list(tiny_prefill.chunks), 6)
    cache = tiny_model.assemble(list(tiny_prefill.chunks))
    stopped = [step.token_id for step in generate(tiny_model, cache, suffix, 6, {free[3]})]
    assert stopped == free[: free.index(free[3])]


def test_logits_only_where_they_are_asked_for(tiny_model: VideoXL2, tiny_prefill: PrefillResult) -> None:
    cache = tiny_model.assemble(list(tiny_prefill.chunks[:1]))
    step = next(iter(generate(tiny_model, cache, [5], 1)))
    assert step.logits_V is None


def test_a_header_sees_the_pieces_before_it(tiny_model: VideoXL2, tiny_prefill: PrefillResult) -> None:
    header = HeaderIds(tuple(tiny_model.tokenizer.encode("Camera gate.")))
    first, second = tiny_prefill.chunks[:2]
    behind_first = tiny_model.assemble([first, header])
    behind_second = tiny_model.assemble([second, header])
    span = slice(behind_first.length - len(header.ids), behind_first.length)
    last = tiny_model.spec.language.num_layers - 1
    values = [cache.values(last, cache.length)[:, span] for cache in (behind_first, behind_second)]
    assert not torch.allclose(values[0], values[1], atol=1e-3)


def test_a_header_first_equals_a_longer_prefix(tiny_model: VideoXL2, tiny_prefill: PrefillResult) -> None:
    header = HeaderIds(tuple(tiny_model.tokenizer.encode("Camera gate.")))
    chunk = tiny_prefill.chunks[0]
    split = tiny_model.assemble([header, chunk])
    prefix = [*tiny_model.tokenizer.prefix_ids(), *header.ids]
    joined = assemble_cache(tiny_model, [chunk], prefix_ids=prefix)
    assert split.length == joined.length
    for layer in range(tiny_model.spec.language.num_layers):
        torch.testing.assert_close(split.keys(layer, split.length), joined.keys(layer, joined.length), atol=ABS, rtol=0)


def test_positions_are_contiguous_from_zero(tiny_model: VideoXL2, tiny_prefill: PrefillResult) -> None:
    """Whatever was there before it, a chunk's keys are rotated to the place where it now stands."""
    chunk = tiny_prefill.chunks[3]
    cache = tiny_model.assemble([sparsify(tiny_prefill.chunks[0], 4), chunk])
    start = cache.length - chunk.num_tokens
    rotated = tiny_model.language.rotary(start, cache.length).rotate(chunk.kv_LSKMDh[2, 0])
    assert torch.equal(cache.keys(2, cache.length)[:, start:], rotated)
    assert torch.equal(cache.values(2, cache.length)[:, start:], chunk.kv_LSKMDh[2, 1])


def test_a_step_rotates_only_its_own_key(
    tiny_model: VideoXL2, tiny_prefill: PrefillResult, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The published code rotates the whole cache again on every step."""
    cache = tiny_model.assemble(list(tiny_prefill.chunks))
    spans: list[tuple[int, int]] = []
    rotary = QwenDecoder.rotary

    def counted(self: QwenDecoder, start: int, end: int) -> object:
        spans.append((start, end))
        return rotary(self, start, end)

    monkeypatch.setattr(QwenDecoder, "rotary", counted)
    before = cache.length
    list(generate(tiny_model, cache, [5, 6], 3))
    assert spans == [(before, before + 2), (before + 2, before + 3), (before + 3, before + 4)]


def test_overflow_is_found_before_any_work(tiny_model: VideoXL2, tiny_prefill: PrefillResult) -> None:
    with pytest.raises(ContextOverflow) as caught:
        tiny_model.assemble(list(tiny_prefill.chunks), max_tokens=100)
    assert caught.value.limit == 100
    cache = tiny_model.assemble(list(tiny_prefill.chunks[:1]), max_tokens=200)
    with pytest.raises(ContextOverflow):
        list(generate(tiny_model, cache, [5] * 4, 200 - cache.length))


def test_kv_of_another_model_is_refused(tiny_model: VideoXL2) -> None:
    alien = ChunkKV(torch.zeros(4, 2, 3, 5, 32), ((1, 4),), KVLevel.DENSE)
    with pytest.raises(KVLayoutError, match="KV heads"):
        tiny_model.assemble([alien])


def test_stored_precision_may_differ_from_the_models(tiny_model: VideoXL2, tiny_prefill: PrefillResult) -> None:
    half = [ChunkKV(c.kv_LSKMDh.to(torch.bfloat16), c.groups, c.level) for c in tiny_prefill.chunks]
    cache = tiny_model.assemble(half)
    assert cache.dtype == torch.float32 and cache.length == tiny_model.assemble(list(tiny_prefill.chunks)).length


def test_levels_need_sizes_for_a_budget_and_refuse_nan() -> None:
    with pytest.raises(ValueError, match="dense_tokens"):
        select_levels([0.1], LevelSettings(), max_tokens=5)
    with pytest.raises(ValueError, match="NaN"):
        select_levels([float("nan")], LevelSettings())
    assert select_levels([], LevelSettings()) == []


def test_an_empty_suffix_is_refused(tiny_model: VideoXL2, tiny_prefill: PrefillResult) -> None:
    with pytest.raises(ValueError, match="suffix"):
        list(generate(tiny_model, tiny_model.assemble([tiny_prefill.chunks[0]]), [], 1))
