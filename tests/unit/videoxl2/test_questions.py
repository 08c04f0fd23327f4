"""Several questions over one cache, and the choice of tokens, as invariants."""

from __future__ import annotations

import sys

import pytest
import torch

from videoxl2.bench import peak_memory
from videoxl2.config import GenerationSettings
from videoxl2.decode import assemble_cache, generate
from videoxl2.errors import ContextOverflow
from videoxl2.kv import KVCache, sparsify
from videoxl2.model import VideoXL2
from videoxl2.prefill import PrefillResult
from videoxl2.questions import generate_batch
from videoxl2.token_choice import TokenChoice

QUESTIONS = [
    "What happens at the gate?",
    "Does anyone leave a bag behind? Say so in a few words.",
    "Why?",
    "When does the red car appear?",
]
BATCHED = 1e-4
"""Logits: the same rows over the same keys in another order, under a mask instead of causality."""


def test_each_question_gets_the_logits_it_gets_alone(tiny_model: VideoXL2, tiny_prefill: PrefillResult) -> None:
    pieces = [sparsify(tiny_prefill.chunks[0], 4), *tiny_prefill.chunks[1:]]
    suffixes = [tiny_model.tokenizer.prompt_parts(question)[1] for question in QUESTIONS]
    cache = tiny_model.assemble(pieces)
    before = cache.length
    steps = list(generate_batch(tiny_model, cache, suffixes, 6, keep_logits=True))
    assert cache.length == before
    assert [question for question, _ in steps] == list(range(4)) * 6, "by steps, each question once per step"
    for question, suffix in enumerate(suffixes):
        alone = list(generate(tiny_model, tiny_model.assemble(pieces), suffix, 6, keep_logits=True))
        batched = [step for owner, step in steps if owner == question]
        assert [step.token_id for step in batched] == [step.token_id for step in alone]
        for ours, theirs in zip(batched, alone, strict=True):
            assert ours.logits_V is not None and theirs.logits_V is not None
            assert float((ours.logits_V - theirs.logits_V).abs().max()) <= BATCHED


def test_the_video_is_not_copied(tiny_model: VideoXL2, tiny_prefill: PrefillResult) -> None:
    cache = tiny_model.assemble(list(tiny_prefill.chunks))
    address, capacity = cache.keys(0, 1).data_ptr(), cache.capacity
    tiny_model.generate_texts(cache, QUESTIONS, GenerationSettings(max_new_tokens=8))
    assert (cache.keys(0, 1).data_ptr(), cache.capacity) == (address, capacity)


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="the peak of resident memory is read from /proc")
@pytest.mark.parametrize("num_questions", [1, 4])
def test_answering_takes_a_fraction_of_the_cache_s_memory(tiny_model: VideoXL2, num_questions: int) -> None:
    """Measured on a cache of 160 MB: no copy, no mask of its length times the questions' tokens, no growing."""
    spec, cpu = tiny_model.language.spec, torch.device("cpu")
    num_tokens = 160_000_000 // (spec.kv_values_per_token * 4)
    cache = KVCache(spec, num_tokens + 1024, limit=1 << 40)
    cache.slot(0, num_tokens).fill_(0.01)
    cache.advance(num_tokens)
    suffixes = [tiny_model.tokenizer.prompt_parts(question)[1] for question in QUESTIONS[:num_questions]]
    list(generate_batch(tiny_model, cache, suffixes, 1))
    with peak_memory(cpu) as peak:
        before = peak()
        steps = list(generate_batch(tiny_model, cache, suffixes, 3))
        assert len(steps) == 3 * num_questions
        assert peak() - before < 160_000_000 / 5


@pytest.mark.parametrize("temperature", [0.0, 1.3])
def test_an_answer_does_not_depend_on_its_company(
    tiny_model: VideoXL2, tiny_prefill: PrefillResult, temperature: float
) -> None:
    settings = GenerationSettings(max_new_tokens=10, temperature=temperature, top_p=0.9, seed=5)
    cache = tiny_model.assemble(list(tiny_prefill.chunks[:3]))
    alone = [tiny_model.generate_text(cache, question, settings) for question in QUESTIONS]
    assert tiny_model.generate_texts(cache, QUESTIONS, settings) == alone
    assert tiny_model.generate_texts(cache, QUESTIONS[::-1], settings) == alone[::-1]
    assert tiny_model.generate_texts(cache, [], settings) == []


def test_streams_add_up_and_may_be_left_early(tiny_model: VideoXL2, tiny_prefill: PrefillResult) -> None:
    cache = tiny_model.assemble(list(tiny_prefill.chunks[:2]))
    before, settings = cache.length, GenerationSettings(max_new_tokens=12)
    pieces = tiny_model.stream_texts(cache, QUESTIONS[:2], settings)
    next(pieces)
    pieces.close()
    assert cache.length == before
    joined = ["", ""]
    for question, piece in tiny_model.stream_texts(cache, QUESTIONS[:2], settings):
        joined[question] += piece
    assert joined == tiny_model.generate_texts(cache, QUESTIONS[:2], settings)


def test_text_comes_while_it_is_generated(
    tiny_model: VideoXL2, tiny_prefill: PrefillResult, monkeypatch: pytest.MonkeyPatch
) -> None:
    passes: list[int] = []
    run = tiny_model.language.run
    monkeypatch.setattr(
        tiny_model.language, "run", lambda x, attention: (passes.append(x.shape[1]), run(x, attention))[1]
    )
    monkeypatch.setattr(tiny_model.tokenizer, "decode", lambda ids: "".join(chr(97 + i % 26) for i in ids))
    monkeypatch.setitem(tiny_model.tokenizer.__dict__, "eos_ids", ())
    cache = tiny_model.assemble(list(tiny_prefill.chunks[:1]))
    passes.clear()
    seen = [len(passes) for _ in tiny_model.stream_text(cache, QUESTIONS[0], GenerationSettings(max_new_tokens=5))]
    assert seen == [1, 2, 3, 4, 5], "one pass of the layers, then one piece"


def test_finished_questions_leave_the_batch(tiny_model: VideoXL2, tiny_prefill: PrefillResult) -> None:
    cache = tiny_model.assemble(list(tiny_prefill.chunks[:1]))
    suffixes = [tiny_model.tokenizer.prompt_parts(question)[1] for question in QUESTIONS]
    free = [
        [step.token_id for owner, step in generate_batch(tiny_model, cache, suffixes, 6) if owner == question]
        for question in range(4)
    ]
    end = free[1][2]
    stopped: list[list[int]] = [[], [], [], []]
    for owner, step in generate_batch(tiny_model, cache, suffixes, 6, {end}):
        stopped[owner].append(step.token_id)
    assert stopped == [tokens[: tokens.index(end)] if end in tokens else tokens for tokens in free]


def test_likeliest_tokens_are_read_once_per_step(
    tiny_model: VideoXL2, tiny_prefill: PrefillResult, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a GPU every reading makes the host wait, so the questions of a batch share one."""
    cache = tiny_model.assemble(tiny_prefill.chunks)
    suffixes = [tiny_model.tokenizer.prompt_parts(question)[1] for question in QUESTIONS]
    alone = [step.token_id for _, step in generate_batch(tiny_model, cache, suffixes, 2)]
    for settings in (None, GenerationSettings()):
        choices = None if settings is None else [TokenChoice(settings) for _ in suffixes]
        with monkeypatch.context() as patch:
            patch.setattr("videoxl2.questions.likeliest", lambda _: pytest.fail("one question was read by itself"))
            patch.setattr(TokenChoice, "__call__", lambda *_: pytest.fail("one question was read by itself"))
            steps = generate_batch(tiny_model, cache, suffixes, 2, choices=choices)
            assert [step.token_id for _, step in steps] == alone
    mixed = [TokenChoice(GenerationSettings(temperature=t, seed=5)) for t in (0.0, 2.0, 0.0, 0.0)]
    found = [(owner, step.token_id) for owner, step in generate_batch(tiny_model, cache, suffixes, 2, choices=mixed)]
    assert [token for owner, token in found if owner != 1] == [t for n, t in enumerate(alone) if n % 4 != 1]


def test_the_position_limit_counts_each_question_alone(tiny_model: VideoXL2, tiny_prefill: PrefillResult) -> None:
    chunk = tiny_prefill.chunks[0]
    length = tiny_model.assemble([chunk]).length
    cache = assemble_cache(tiny_model, [chunk], max_tokens=length + 5)
    steps = list(generate_batch(tiny_model, cache, [[5, 6, 7, 8]] * 3, 2))
    assert len(steps) == 6, "twelve tokens of three questions fit where one has room for five"
    with pytest.raises(ContextOverflow):
        list(generate_batch(tiny_model, cache, [[5, 6, 7, 8], [5]], 3))
    assert cache.length == length
    with pytest.raises(ValueError, match="suffix"):
        list(generate_batch(tiny_model, cache, [[5], []], 3))


def test_same_seed_same_text(tiny_model: VideoXL2, tiny_prefill: PrefillResult) -> None:
    cache = tiny_model.assemble(list(tiny_prefill.chunks))

    def text(**changes: float) -> str:
        settings = GenerationSettings.model_validate({"max_new_tokens": 24, "temperature": 1.5, **changes})
        return tiny_model.generate_text(cache, QUESTIONS[0], settings)

    assert text(seed=1) == text(seed=1)
    assert len({text(seed=seed) for seed in range(4)}) > 1
    assert text(temperature=0, seed=1) == text(temperature=0, seed=2)
    assert text(temperature=1e-6, seed=3) == text(temperature=0)
    assert text(top_p=1e-9, seed=3) == text(temperature=0)


def test_sampling_follows_the_distribution() -> None:
    probabilities = torch.tensor([0.5, 0.0, 0.3, 0.2])
    choose = TokenChoice(GenerationSettings(temperature=1, seed=0))
    counts = torch.bincount(torch.tensor([choose(probabilities.log()) for _ in range(4000)]), minlength=4)
    assert counts[1] == 0 and torch.allclose(counts / 4000, probabilities, atol=0.03)


@pytest.mark.parametrize(
    ("top_p", "kept"), [(0.4, {0}), (0.5, {0}), (0.51, {0, 2}), (0.9, {0, 2, 3}), (1.0, {0, 2, 3})]
)
def test_top_p_keeps_the_likeliest_that_reach_it(top_p: float, kept: set[int]) -> None:
    choose = TokenChoice(GenerationSettings(temperature=1, top_p=top_p, seed=0))
    logits = torch.tensor([0.5, 0.0, 0.3, 0.2], dtype=torch.float64).log()
    assert {choose(logits) for _ in range(300)} == kept


def test_temperature_flattens() -> None:
    logits = torch.tensor([2.0, 0.0])

    def share(temperature: float) -> float:
        choose = TokenChoice(GenerationSettings(temperature=temperature, seed=1))
        return sum(choose(logits) == 0 for _ in range(2000)) / 2000

    assert share(0.5) > share(1.0) > share(4.0) > 0.5
