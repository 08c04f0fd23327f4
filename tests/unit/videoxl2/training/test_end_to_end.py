"""A step from pixels through all parts: at the published size without memory, and small with numbers."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from videoxl2.bench import random_spec
from videoxl2.config import ModelSpec
from videoxl2.model import VideoXL2
from videoxl2.tokenizer import Tokenizer
from videoxl2.training.dialogues import Stretch
from videoxl2.training.end_to_end import (
    PARTS,
    PictureFeed,
    PixelDialogue,
    end_to_end_losses,
    parts_of,
    train_end_to_end,
)
from videoxl2.training.errors import TrainingError
from videoxl2.training.facts import Facts
from videoxl2.training.initialise import initialise_for_training
from videoxl2.training.language_samples import LanguageSettings, make_dialogue
from videoxl2.training.qa import QA
from videoxl2.training.recordings import Recording
from videoxl2.training.trainer import TrainSettings, read_log

QUESTIONS = [
    QA("exists", "Is there a red car?", "yes", (), None, ()),
    QA("when", "When does a person run? Answer in seconds.", "12 to 20 seconds", (), None, ()),
]


def sample_of(spec: ModelSpec, tokenizer: Tokenizer, pixels_F3SS: torch.Tensor) -> PixelDialogue:
    groups = len(pixels_F3SS) // spec.frames_per_group
    times = tuple(4.0 * group for group in range(groups))
    empty = np.zeros((groups, spec.tokens_per_group, 0), np.float16)
    stretch = Stretch(empty, times, Facts("street", 0.0, 4.0 * groups, (), ()))
    settings, rng = LanguageSettings(pooled=1.0, skip=0.0), np.random.default_rng(0)
    return PixelDialogue(pixels_F3SS, make_dialogue(tokenizer, stretch, QUESTIONS, settings, rng))


def end_to_end_loss(model: VideoXL2, sample: PixelDialogue) -> torch.Tensor:
    return end_to_end_losses(model, sample, LanguageSettings())["answer"]


def without_gradient(model: VideoXL2) -> list[str]:
    return [name for name, parameter in model.named_parameters() if parameter.grad is None]


@pytest.mark.slow
def test_the_published_configuration_takes_a_whole_step(tokenizer: Tokenizer) -> None:
    """On the meta device: every operation runs with its shapes, no number is computed and no memory is needed."""
    spec = random_spec("8b")
    with torch.device("meta"):
        model = VideoXL2(spec)
        pixels_F3SS = torch.empty(8, 3, 384, 384)
    assert sum(parameter.numel() for parameter in model.parameters()) > 8e9
    sample = sample_of(spec, tokenizer, pixels_F3SS)
    loss = end_to_end_loss(model, sample)
    assert loss.shape == () and loss.is_meta
    loss.backward()
    assert without_gradient(model) == []
    optimiser = torch.optim.AdamW(model.parameters(), lr=1e-5, foreach=False)
    optimiser.step()
    assert len(optimiser.state) == len(list(model.parameters()))


@pytest.fixture
def model(small_spec: ModelSpec) -> VideoXL2:
    made = VideoXL2(small_spec)
    initialise_for_training(made, 1)
    return made


def test_one_batch_is_learned_by_all_parts(model: VideoXL2, tokenizer: Tokenizer) -> None:
    side = model.spec.vision.image_size
    pixels = torch.rand(8, 3, side, side, generator=torch.Generator().manual_seed(2)) * 2 - 1
    sample = sample_of(model.spec, tokenizer, pixels)
    before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    optimiser = torch.optim.AdamW(model.parameters(), lr=5e-3)
    losses = []
    for _ in range(60):
        loss = end_to_end_loss(model, sample)
        optimiser.zero_grad()
        loss.backward()
        assert without_gradient(model) == []
        optimiser.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < 0.3 * losses[0]
    changed = {
        name.split(".")[0] for name, parameter in model.named_parameters() if bool((parameter != before[name]).any())
    }
    assert changed == set(PARTS)


def test_the_answer_depends_on_the_pixels(model: VideoXL2, tokenizer: Tokenizer) -> None:
    side = model.spec.vision.image_size
    pixels = (torch.rand(8, 3, side, side) * 2 - 1).requires_grad_(True)
    end_to_end_loss(model, sample_of(model.spec, tokenizer, pixels)).backward()
    assert pixels.grad is not None
    assert all(bool(pixels.grad[frame].any()) for frame in range(8))


def test_samples_show_the_frames_of_their_cuts(
    clips: Path, small_spec: ModelSpec, model: VideoXL2, tokenizer: Tokenizer
) -> None:
    settings = LanguageSettings(groups=(3, 5), samples=2, questions=4)
    feed = PictureFeed(clips, "train", model, tokenizer, settings, 7)
    assert len(feed) == 3
    samples, again = (feed.make(4, small_spec.vision.image_size) for _ in range(2))
    for sample, same in zip(samples, again, strict=True):
        groups = sample.dialogue.layout.num_groups
        assert len(sample.pixels_F3SS) == 4 * groups and groups in (3, 5)
        assert torch.equal(sample.pixels_F3SS, same.pixels_F3SS)
        assert torch.equal(sample.dialogue.token_T, same.dialogue.token_T)
    recorded = [Recording.load(path).frames(0, 59) for path in sorted((clips / "train").glob("*.npz"))]
    shown = ((samples[0].pixels_F3SS[0] + 1) * 127.5).round().permute(1, 2, 0).to(torch.uint8).numpy()
    assert any((frame == shown).all() for frames in recorded for frame in frames)


def test_only_unfrozen_parts_are_trained(clips: Path, tmp_path: Path, model: VideoXL2, tokenizer: Tokenizer) -> None:
    before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    settings = TrainSettings(steps=2, learning_rate=1e-2, warmup_steps=1)
    language = LanguageSettings(groups=(2,), samples=1, questions=3)
    parts = ("vision", "projector")
    assert train_end_to_end(tmp_path, model, clips, tokenizer, settings, language, parts) == 2
    changed = {
        name.split(".")[0] for name, parameter in model.named_parameters() if bool((parameter != before[name]).any())
    }
    assert changed == set(parts)
    assert read_log(tmp_path)[-1]["validation"]


def test_parts_have_names(model: VideoXL2) -> None:
    assert list(parts_of(model, ("language", "vision"))) == ["vision", "language"]
    for wrong in ((), ("tower",)):
        with pytest.raises(TrainingError, match="the parts of the model are vision, dts, projector, language"):
            parts_of(model, wrong)
