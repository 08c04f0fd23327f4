"""One step of everything: from pixels through tower, DTS, projector and decoder to the loss of the answers, and back.

The published stages 3 and 4 train all parts at once. Ours train the decoder on cached visual tokens, which is what a
CPU can do; this module is the step without the cache. It is used by the instruction stage when parts of the model are
unfrozen, and it is what shows that the published configuration can be trained by this code.

Shapes: F frames, S image side, G frame groups, P visual tokens per group, D text width.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from videoxl2.model import VideoXL2
from videoxl2.preprocess import frames_to_pixels
from videoxl2.tokenizer import Tokenizer
from videoxl2.training.dialogues import CachedClip, StretchSettings, random_stretch
from videoxl2.training.errors import TrainingError
from videoxl2.training.feature_cache import first_frame
from videoxl2.training.language_samples import Dialogue, LanguageSettings, answer_priors, random_dialogue
from videoxl2.training.recordings import Recording
from videoxl2.training.splits import Split
from videoxl2.training.stage_language import answer_accuracy, dialogue_losses, mean_losses
from videoxl2.training.stage_perception import Prefetcher, clip_paths
from videoxl2.training.trainer import TrainSettings, fit

PARTS = ("vision", "dts", "projector", "language")
"""What can be trained, in the order that data flows."""

_CHECK_SEED = 999
_MOST_CHECKS = 4


@dataclass(frozen=True)
class PixelDialogue:
    """One sample with its pictures: pixels [4 G, 3, S, S] in [-1, 1], and a dialogue without visual tokens."""

    pixels_F3SS: Tensor
    dialogue: Dialogue


def parts_of(model: VideoXL2, names: Iterable[str]) -> dict[str, nn.Module]:
    """The named parts of a model. Raises ``TrainingError`` for a name that is none of ``PARTS``, and for no name."""
    chosen = list(names)
    if not chosen or (unknown := [name for name in chosen if name not in PARTS]):
        what = ", ".join(repr(name) for name in unknown) if chosen else "nothing"
        raise TrainingError(f"cannot train {what}: the parts of the model are {', '.join(PARTS)}")
    return {name: model.get_submodule(name) for name in PARTS if name in chosen}


def with_visual_tokens(model: VideoXL2, sample: PixelDialogue) -> Dialogue:
    """The dialogue with visual tokens [G, P, D] that carry their gradient back to the pixels."""
    maps_FCYX = model.frame_maps(sample.pixels_F3SS.to(model.device))
    return replace(sample.dialogue, visual_GPD=model.merge_maps(maps_FCYX))


def end_to_end_losses(model: VideoXL2, sample: PixelDialogue, language: LanguageSettings) -> dict[str, Tensor]:
    """The sample's losses, scalars; the gradient reaches every part that asks for one."""
    return dialogue_losses(model.language, with_visual_tokens(model, sample), language)


class PictureFeed:
    """Samples of stretches with their pictures, read from recorded clips when they are needed."""

    def __init__(
        self, clips: Path, split: Split, model: VideoXL2, tokenizer: Tokenizer, settings: LanguageSettings, seed: int
    ) -> None:
        self._paths = clip_paths(clips, split)
        self._tokenizer, self._settings, self._seed = tokenizer, settings, seed
        self._per_group = model.spec.frames_per_group
        self._clips = [self._without_tokens(path, model.spec.tokens_per_group) for path in self._paths]
        self._priors = answer_priors(self._clips, settings, seed)

    def __len__(self) -> int:
        return len(self._clips)

    def make(self, step: int, image_size: int) -> list[PixelDialogue]:
        """The samples of a step; the same step gives the same samples."""
        rng = np.random.default_rng([self._seed, step, 83])
        settings = self._settings
        found: list[PixelDialogue] = []
        while len(found) < settings.samples:
            stretch = random_stretch(self._clips, StretchSettings(settings.groups), rng)
            sample = random_dialogue(self._tokenizer, stretch, settings, rng, self._priors)
            if sample is None:
                continue
            frames = [self._frames(cut.clip, cut.first, cut.end) for cut in stretch.cuts]
            found.append(PixelDialogue(frames_to_pixels(np.concatenate(frames), image_size), sample))
        return found

    def _frames(self, clip: int, first: int, end: int) -> np.ndarray:
        start = self._clips[clip].first_frame
        recording = Recording.load(self._paths[clip])
        return recording.frames(start + self._per_group * first, start + self._per_group * end)

    def _without_tokens(self, path: Path, tokens_per_group: int) -> CachedClip:
        recording = Recording.load(path).without_pictures()
        first = first_frame(recording, self._per_group)
        groups = (recording.num_frames - first) // self._per_group
        return CachedClip(recording, recording.scene(), first, np.zeros((groups, tokens_per_group, 0), np.float16))


def train_end_to_end(
    folder: Path,
    model: VideoXL2,
    clips: Path,
    tokenizer: Tokenizer,
    settings: TrainSettings,
    language: LanguageSettings,
    unfrozen: Sequence[str],
    *,
    threads: int = 1,
    on_step: Callable[[int, float], None] | None = None,
) -> int:
    """Run or continue the instruction stage from pixels, training the parts in ``unfrozen``; gives the steps done."""
    torch.manual_seed(settings.seed)
    modules = parts_of(model, unfrozen)
    model.requires_grad_(False)
    for module in modules.values():
        module.requires_grad_(True)
    size = model.spec.vision.image_size
    pictures = PictureFeed(clips, "train", model, tokenizer, language, settings.seed)
    feed = Prefetcher(lambda step: pictures.make(step, size), threads=threads)
    held_out = PictureFeed(clips, "validation", model, tokenizer, language, _CHECK_SEED)
    checks = [sample for step in range(min(_MOST_CHECKS, len(held_out))) for sample in held_out.make(step, size)]

    def losses_at(step: int) -> Mapping[str, Tensor]:
        samples = feed.get(step)
        with torch.autocast(model.device.type, torch.bfloat16):
            return mean_losses([end_to_end_losses(model, sample, language) for sample in samples])

    @torch.no_grad()
    def validate() -> Mapping[str, float]:
        return answer_accuracy(model.language, [with_visual_tokens(model, sample) for sample in checks])

    return fit(folder, modules, losses_at, settings, validate=validate, validate_every=200, on_step=on_step)
