"""Stage 2: what reads tokens and texts learns, labels fit the cached groups, and a cut run ends as a whole one."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from videoxl2.config import GroupSpec, ModelSpec
from videoxl2.dual_encoder import DualEncoder
from videoxl2.text_tower import TextSpec
from videoxl2.tokenizer import Tokenizer
from videoxl2.training.dialogues import CachedClip
from videoxl2.training.initialise import initialise_for_training
from videoxl2.training.recordings import Recording
from videoxl2.training.stage_perception import clip_paths
from videoxl2.training.stage_search import GroupSampler, LabelledClip, SearchShape, search_modules, train_search
from videoxl2.training.trainer import TrainSettings, read_log

SHAPE = SearchShape(clips=2, groups=5, texts=8)
SETTINGS = TrainSettings(steps=7, learning_rate=5e-3, warmup_steps=2, log_every=1, save_every_s=0.0)
NUM_TOKENS = 4
Cached = dict[str, list[CachedClip]]


def made(spec: ModelSpec, text: TextSpec, seed: int = 4) -> DualEncoder:
    width = spec.language.width
    group = GroupSpec(
        token_width=width, width=32, mlp_width=48, num_layers=1, num_heads=2, embedding_width=text.embedding_width
    )
    dual = DualEncoder(spec.vision, text, group)
    initialise_for_training(dual, seed)
    return dual


def weights(dual: DualEncoder) -> dict[str, torch.Tensor]:
    return {name: parameter.detach().clone() for name, parameter in dual.named_parameters()}


@pytest.fixture(scope="module")
def cached(clips: Path, small_spec: ModelSpec) -> Cached:
    """The clips with tokens that say nothing, from their third frame on."""
    found: Cached = {}
    for split in ("train", "validation"):
        for path in clip_paths(clips, split):  # type: ignore[arg-type]
            recording = Recording.load(path).without_pictures()
            groups = (recording.num_frames - 2) // 4
            tokens = np.random.default_rng(recording.seed).normal(size=(groups, NUM_TOKENS, small_spec.language.width))
            clip = CachedClip(recording, recording.scene(), 2, tokens.astype(np.float16))
            found.setdefault(split, []).append(clip)
    return found


def test_the_head_for_tokens_and_the_texts_learn_and_nothing_else(
    cached: Cached,
    tmp_path: Path,
    small_spec: ModelSpec,
    small_text: TextSpec,
    tokenizer: Tokenizer,
) -> None:
    dual = made(small_spec, small_text)
    before = weights(dual)
    assert train_search(tmp_path, dual, cached, tokenizer, SETTINGS, SHAPE) == 7
    changed = {name for name, value in weights(dual).items() if not torch.equal(value, before[name])}
    assert changed == {name for name in before if not name.startswith("image.")}
    assert 0 <= read_log(tmp_path)[-1]["validation"]["search_ap"] <= 1


def test_a_run_that_was_cut_ends_as_the_one_that_was_not(
    cached: Cached,
    tmp_path: Path,
    small_spec: ModelSpec,
    small_text: TextSpec,
    tokenizer: Tokenizer,
) -> None:
    whole = made(small_spec, small_text)
    train_search(tmp_path / "whole", whole, cached, tokenizer, SETTINGS, SHAPE)
    cut = made(small_spec, small_text)

    def stop(step: int, loss: float) -> None:
        if step == 5:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train_search(tmp_path / "cut", cut, cached, tokenizer, SETTINGS, SHAPE, on_step=stop)
    again = made(small_spec, small_text)
    train_search(tmp_path / "cut", again, cached, tokenizer, SETTINGS, SHAPE)
    assert all(torch.equal(value, weights(again)[name]) for name, value in weights(whole).items())


def test_batches_are_made_from_their_number_and_half_of_their_texts_are_shown(
    cached: Cached, small_text: TextSpec, tokenizer: Tokenizer
) -> None:
    sampler = GroupSampler(cached["train"], tokenizer, small_text, SHAPE, 0)
    first, same, other = (sampler.batch(number) for number in (5, 5, 6))
    assert torch.equal(first.tokens_GPD, same.tokens_GPD) and not torch.equal(first.tokens_GPD, other.tokens_GPD)
    assert torch.equal(first.text_BT, same.text_BT) and torch.equal(first.labels_BG, same.labels_BG)
    assert first.tokens_GPD.shape == (2 * 5, NUM_TOKENS, cached["train"][0].visual_GPD.shape[2])
    assert first.text_BT.shape == (8, small_text.num_positions) and first.labels_BG.shape == (8, 10)
    shown = [float((sampler.batch(number).labels_BG == 1).any(dim=1).float().mean()) for number in range(20)]
    assert np.mean(shown) > 0.3, "where a window shows little, more texts differ"


def test_labels_are_those_of_the_frames_that_a_group_holds(cached: Cached) -> None:
    """A group's first frame is not the clip's: labels follow the cached tokens, not the recording."""
    num_shown = 0
    for clip in cached["train"]:
        labelled = LabelledClip(clip)
        for claim in (claim for claim in labelled.claims if claim.action is None and claim.colour is None):
            actors = [number for number, actor in enumerate(clip.scene.actors) if actor.kind == claim.kind]
            for group in np.flatnonzero(labelled.labels(claim) == 1).tolist():
                first = clip.first_frame + 4 * group
                assert clip.recording.watch.area_FA[first : first + 4, actors].max() > 0
                num_shown += 1
    assert num_shown > 10


def test_all_that_is_shown_is_asked_of_held_out_clips(
    cached: Cached, small_text: TextSpec, tokenizer: Tokenizer
) -> None:
    sampler = GroupSampler(cached["validation"], tokenizer, small_text, SHAPE, 0)
    asked = sampler.whole(64)
    assert len(asked.tokens_GPD) == cached["validation"][0].num_groups == asked.labels_BG.shape[1]
    assert bool((asked.labels_BG == 1).any(dim=1).all())


def test_what_is_trained_has_the_names_of_stage_1(small_spec: ModelSpec, small_text: TextSpec) -> None:
    modules = search_modules(made(small_spec, small_text))
    assert sorted(modules) == ["group", "scale", "text"]
    assert sorted(modules["scale"].state_dict()) == ["logit_bias", "logit_scale"]
    with pytest.raises(ValueError, match="no head"):
        search_modules(DualEncoder(small_spec.vision, small_text))
