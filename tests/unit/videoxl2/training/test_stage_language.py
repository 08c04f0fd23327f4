"""The differentiable pass of training gives the very logits that prefill, pooling, assembly and decoding give."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch

from videoxl2.config import LanguageSpec, PrefillSettings
from videoxl2.decode import assemble_cache
from videoxl2.kv import ChunkKV, sparsify
from videoxl2.language import QwenDecoder
from videoxl2.model import VideoXL2
from videoxl2.prefill import prefill
from videoxl2.training.dialogues import Stretch, join_facts
from videoxl2.training.facts import Facts
from videoxl2.training.initialise import initialise_for_training
from videoxl2.training.questions import QA
from videoxl2.training.stage_language import LanguageSettings, dialogue_logits, make_dialogue

QUESTIONS = [
    QA("exists", "Is there a red car?", "yes", (), None, ()),
    QA("when", "When does a person run? Answer in seconds.", "12 to 20 seconds", (), None, ()),
]


def tiny_model() -> VideoXL2:
    model = VideoXL2.from_pretrained("tiny")
    spec = dataclasses.replace(model.spec.language, num_layers=2)
    decoder = QwenDecoder(spec)
    initialise_for_training(decoder, 3)
    model.language = decoder.eval()
    return model


def stretch_of(num_groups: int, spec: LanguageSpec) -> Stretch:
    tokens = np.random.default_rng(5).normal(size=(num_groups, 36, spec.width)).astype(np.float16)
    times = tuple(4.0 * group for group in range(num_groups))
    return Stretch(tokens, times, Facts("street", 0.0, 4.0 * num_groups, (), ()))


def logits_by_inference(model: VideoXL2, stretch: Stretch, dense: set[int] | None) -> torch.Tensor:
    """Answer logits of both questions through the code that answers: prefill, sparsify, assemble, extend."""
    visual = torch.from_numpy(stretch.visual_GPD).float()
    result = prefill(model, visual, list(stretch.times_s), PrefillSettings(), 6)
    pieces: list[ChunkKV] = [
        chunk if dense is None or number in dense else sparsify(chunk, 4) for number, chunk in enumerate(result.chunks)
    ]
    found = []
    for item in QUESTIONS:
        cache = assemble_cache(model, pieces)
        suffix = model.tokenizer.prompt_parts(item.question)[1]
        answer = model.tokenizer.encode(item.answer)
        hidden = model.language.extend(cache, model.language.embed([*suffix, *answer]))
        found.append(model.language.logits(hidden[len(suffix) - 1 :]))
    return torch.cat(found)


@pytest.mark.parametrize("num_groups", [1, 7, 23])
def test_dense_samples_equal_inference(num_groups: int) -> None:
    model = tiny_model()
    stretch = stretch_of(num_groups, model.spec.language)
    settings = LanguageSettings(skip=0.0, pooled=0.0)
    sample = make_dialogue(model.tokenizer, stretch, QUESTIONS, settings, np.random.default_rng(0))
    with torch.no_grad():
        trained = dialogue_logits(model.language, sample)
        expected = logits_by_inference(model, stretch, None)
    assert trained.shape == expected.shape
    torch.testing.assert_close(trained, expected, atol=1e-4, rtol=0)


def test_pooled_samples_equal_inference_with_the_same_levels() -> None:
    model = tiny_model()
    stretch = stretch_of(23, model.spec.language)
    settings = LanguageSettings(skip=0.0, pooled=1.0)
    seen = set()
    for seed in range(12):
        sample = make_dialogue(model.tokenizer, stretch, QUESTIONS, settings, np.random.default_rng(seed))
        pool = sample.pool
        assert pool is not None
        starts = [sample.layout.spans[6 * chunk].time_end for chunk in range(4)]
        dense = {
            chunk
            for chunk, start in enumerate(starts)
            if bool((pool.weight_CJ[pool.token_CJ[:, 0] == start, 0] == 1.0).any())
        }
        seen.add(frozenset(dense))
        with torch.no_grad():
            trained = dialogue_logits(model.language, sample)
            expected = logits_by_inference(model, stretch, dense)
        torch.testing.assert_close(trained, expected, atol=1e-4, rtol=0)
    assert len(seen) > 3


def test_gradients_reach_every_parameter_of_the_decoder() -> None:
    model = tiny_model()
    for parameter in model.language.parameters():
        parameter.requires_grad_(True)
    sample = make_dialogue(
        model.tokenizer,
        stretch_of(8, model.spec.language),
        QUESTIONS,
        LanguageSettings(pooled=1.0),
        np.random.default_rng(1),
    )
    dialogue_logits(model.language, sample).square().mean().backward()
    missing = [name for name, p in model.language.named_parameters() if p.grad is None or not bool(p.grad.any())]
    assert missing == []


def test_joined_facts_keep_objects_of_parts_apart() -> None:
    part = Facts("street", 0.0, 8.0, (), ())
    later = Facts("gate", 32.0, 40.0, (), ())
    assert join_facts([part]) is part
    joined = join_facts([part, later])
    assert (joined.camera_kind, joined.start_s, joined.end_s) == ("street", 0.0, 40.0)
