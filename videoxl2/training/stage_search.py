"""Stage 2: text and picture meet. The tower of stage 1 is frozen; everything that search adds to it goes on learning.

Trained are the tower's final norm and pooling head, the text tower, and scale and bias of the sigmoid loss. Because the
tower stands still, its features of a batch of windows are computed once and serve several batches of texts, each a step
of its own: texts are cheap and pictures are not.

Shapes: F frames, P patches, D width, B texts, T text positions, G frame groups.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from videoxl2.dual_encoder import DualEncoder
from videoxl2.preprocess import frames_to_pixels
from videoxl2.tokenizer import Tokenizer
from videoxl2.training.stage_perception import (
    BatchShape,
    ClipSampler,
    Prefetcher,
    SigmoidScale,
    clip_paths,
    clip_sampler,
    group_vectors,
    mean_average_precision,
    sigmoid_loss,
)
from videoxl2.training.trainer import TrainSettings, fit

_CHECK_SEED = 10_007
_MOST_CHECK_CLIPS = 16
_NUM_CHECKS = 3


@dataclass(frozen=True)
class SearchShape:
    """``clips`` windows of ``groups`` frame groups are looked at once for ``rounds`` steps of ``texts`` texts each."""

    clips: int = 12
    groups: int = 4
    texts: int = 96
    rounds: int = 4


@dataclass(frozen=True)
class SearchBatch:
    """Frames [F, 3, S, S], and per round texts [B, T] with their pair labels [B, G] (1 true, 0 false, -1 unsure)."""

    pixels_F3SS: Tensor
    rounds: tuple[tuple[Tensor, Tensor], ...]


def search_modules(dual: DualEncoder) -> dict[str, nn.Module]:
    """What stage 2 trains, by the names that stage 1 gives it too."""
    return {
        "image_norm": dual.image.post_layernorm,
        "image_head": dual.image.head,
        "text": dual.text,
        "scale": SigmoidScale(dual),
    }


def search_batch(sampler: ClipSampler, seed: int, number: int, rounds: int, image_size: int) -> SearchBatch:
    """Batch ``number`` of windows with ``rounds`` sets of texts about them; the same numbers give the same batch."""
    rng = np.random.default_rng([seed, number, 79])
    seen = sampler.windows(rng)
    texts = tuple(sampler.texts(seen, rng) for _ in range(rounds))
    return SearchBatch(frames_to_pixels(np.concatenate(seen.frames), image_size), texts)


def train_search(
    folder: Path,
    dual: DualEncoder,
    clips: Path,
    tokenizer: Tokenizer,
    settings: TrainSettings,
    shape: SearchShape | None = None,
    *,
    threads: int = 1,
    on_step: Callable[[int, float], None] | None = None,
) -> int:
    """Run or continue stage 2 on recorded clips; gives the steps done. The tower of ``dual`` comes out frozen.

    A step is one set of texts; ``shape.rounds`` steps share the pictures. Raises ``TrainingError`` without clips.
    """
    torch.manual_seed(settings.seed)
    shape = shape or SearchShape()
    tower = dual.image.encoder.eval().requires_grad_(False)
    device = dual.logit_scale.device
    image_size = tower.spec.image_size
    sizes = BatchShape(shape.clips, shape.groups, shape.texts)
    sampler = clip_sampler(clips, "train", tokenizer, dual, sizes, settings.seed)

    def make(number: int, size: int, _stride: int) -> SearchBatch:
        return search_batch(sampler, settings.seed, number, shape.rounds, size)

    feed = Prefetcher(make, image_size, 1, threads=threads)
    held_out = len(clip_paths(clips, "validation"))
    check_sizes = BatchShape(min(_MOST_CHECK_CLIPS, held_out), shape.groups, 128)
    checker = clip_sampler(clips, "validation", tokenizer, dual, check_sizes, _CHECK_SEED)
    checks = [search_batch(checker, _CHECK_SEED, i, 1, image_size) for i in range(min(_NUM_CHECKS, held_out))]
    looked_at: dict[int, tuple[Tensor, SearchBatch]] = {}

    def losses_at(step: int) -> Mapping[str, Tensor]:
        number, round_ = divmod(step, shape.rounds)
        if number not in looked_at:
            looked_at.clear()
            batch = feed.get(number)
            with torch.no_grad(), torch.autocast(device.type, torch.bfloat16):
                looked_at[number] = tower(batch.pixels_F3SS.to(device)).float(), batch
        features_FPD, batch = looked_at[number]
        text_BT, labels_BG = batch.rounds[round_]
        with torch.autocast(device.type, torch.bfloat16):
            vectors_GE = group_vectors(dual, features_FPD)
        return {"search": sigmoid_loss(dual, vectors_GE, text_BT.to(device), labels_BG.to(device))}

    return fit(
        folder,
        search_modules(dual),
        losses_at,
        settings,
        validate=lambda: check_search(dual, checks),
        validate_every=200,
        on_step=on_step,
    )


@torch.no_grad()
def check_search(dual: DualEncoder, batches: Sequence[SearchBatch]) -> dict[str, float]:
    """How well frame groups are ranked for texts that are true somewhere: mean average precision."""
    device, found = dual.logit_scale.device, []
    for batch in batches:
        vectors_GE = group_vectors(dual, dual.image.encoder(batch.pixels_F3SS.to(device)))
        for text_BT, labels_BG in batch.rounds:
            texts_BE = functional.normalize(dual.text(text_BT.to(device)).float(), dim=-1)
            found.append(mean_average_precision((texts_BE @ vectors_GE.T).cpu(), labels_BG))
    return {"search_ap": float(np.mean(found))}
