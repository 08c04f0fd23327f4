"""Stage 2: the tower stands still, all else of search learns, and a run that was cut ends as one that was not."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from videoxl2.config import ModelSpec
from videoxl2.dual_encoder import DualEncoder
from videoxl2.text_tower import TextSpec
from videoxl2.tokenizer import Tokenizer
from videoxl2.training.errors import TrainingError
from videoxl2.training.initialise import initialise_for_training
from videoxl2.training.stage_perception import BatchShape, clip_sampler
from videoxl2.training.stage_search import SearchShape, search_batch, search_modules, train_search
from videoxl2.training.trainer import TrainSettings, read_log

SHAPE = SearchShape(clips=2, groups=2, texts=8, rounds=3)
SETTINGS = TrainSettings(steps=7, learning_rate=5e-3, warmup_steps=2, log_every=1, save_every_s=0.0)


def made(spec: ModelSpec, text: TextSpec, seed: int = 4) -> DualEncoder:
    dual = DualEncoder(spec.vision, text)
    initialise_for_training(dual, seed)
    return dual


def weights(dual: DualEncoder) -> dict[str, torch.Tensor]:
    return {name: parameter.detach().clone() for name, parameter in dual.named_parameters()}


def test_all_but_the_tower_learns_and_pictures_are_looked_at_once_for_all_rounds(
    clips: Path, tmp_path: Path, small_spec: ModelSpec, small_text: TextSpec, tokenizer: Tokenizer
) -> None:
    dual = made(small_spec, small_text)
    before, looked_at = weights(dual), []
    dual.image.encoder.register_forward_hook(lambda module, inputs, output: looked_at.append(len(inputs[0])))
    assert train_search(tmp_path, dual, clips, tokenizer, SETTINGS, SHAPE) == 7
    changed = {name for name, value in weights(dual).items() if not torch.equal(value, before[name])}
    frozen = {name for name in before if name.startswith("image.encoder.")}
    assert changed == before.keys() - frozen
    assert looked_at.count(2 * 2 * 4) == 3  # seven steps are three batches of pictures
    assert 0 <= read_log(tmp_path)[-1]["validation"]["search_ap"] <= 1


def test_a_run_cut_between_two_rounds_ends_as_the_one_that_was_not(
    clips: Path,
    tmp_path: Path,
    small_spec: ModelSpec,
    small_text: TextSpec,
    tokenizer: Tokenizer,
) -> None:
    whole = made(small_spec, small_text)
    train_search(tmp_path / "whole", whole, clips, tokenizer, SETTINGS, SHAPE)
    cut = made(small_spec, small_text)

    def stop(step: int, loss: float) -> None:
        if step == 5:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train_search(tmp_path / "cut", cut, clips, tokenizer, SETTINGS, SHAPE, on_step=stop)
    again = made(small_spec, small_text)
    train_search(tmp_path / "cut", again, clips, tokenizer, SETTINGS, SHAPE)
    assert all(torch.equal(value, weights(again)[name]) for name, value in weights(whole).items())


def test_batches_are_made_from_their_number(
    clips: Path, small_spec: ModelSpec, small_text: TextSpec, tokenizer: Tokenizer
) -> None:
    dual = made(small_spec, small_text)
    sampler = clip_sampler(clips, "train", tokenizer, dual, BatchShape(2, 2, 8), 0)
    first, same, other = (search_batch(sampler, 0, number, 3, 96) for number in (5, 5, 6))
    assert torch.equal(first.pixels_F3SS, same.pixels_F3SS) and not torch.equal(first.pixels_F3SS, other.pixels_F3SS)
    for (text_BT, labels_BG), (same_BT, same_BG) in zip(first.rounds, same.rounds, strict=True):
        assert torch.equal(text_BT, same_BT) and torch.equal(labels_BG, same_BG)
        assert text_BT.shape == (8, small_text.num_positions) and labels_BG.shape == (8, 4)
    assert not torch.equal(first.rounds[0][0], first.rounds[1][0])


def test_what_is_trained_has_the_names_of_stage_1(small_spec: ModelSpec, small_text: TextSpec) -> None:
    modules: dict[str, Any] = search_modules(made(small_spec, small_text))
    assert sorted(modules) == ["image_head", "image_norm", "scale", "text"]
    assert sorted(modules["scale"].state_dict()) == ["logit_bias", "logit_scale"]


def test_without_clips_it_says_what_to_do(
    tmp_path: Path, small_spec: ModelSpec, small_text: TextSpec, tokenizer: Tokenizer
) -> None:
    with pytest.raises(TrainingError, match="stage footage"):
        train_search(tmp_path / "run", made(small_spec, small_text), tmp_path, tokenizer, SETTINGS, SHAPE)
