"""Stage 2: texts meet what the vision part of stage 1 says of a frame group, its visual tokens.

The vision part stands still, and its tokens of all clips are cached (stage ``features``), so a step costs little and
takes many frame groups: windows of many clips against many texts. Trained are the head that makes a search vector of a
group's tokens (``dual_encoder.GroupHead``), the text tower, and scale and bias of the sigmoid loss. What frames alone
cannot tell, such as who runs, the tokens can: they were taught it.

Shapes: G frame groups, P visual tokens per group, D text width, B texts, T text positions, E embedding width.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from videoxl2.dual_encoder import DualEncoder
from videoxl2.text_tower import TextSpec
from videoxl2.tokenizer import Tokenizer
from videoxl2.training.claims import Claim
from videoxl2.training.dialogues import CachedClip
from videoxl2.training.paraphrases import paraphrase
from videoxl2.training.queries import claims_in
from videoxl2.training.search_targets import KnownClaims, batch_claims, pair_labels, texts_of
from videoxl2.training.stage_perception import (
    FRAMES_PER_GROUP,
    Prefetcher,
    mean_average_precision,
    sigmoid_loss,
    text_ids,
    text_modules,
)
from videoxl2.training.trainer import TrainSettings, fit

_BATCH_SEED = 79
_MOST_CHECK_CLIPS = 40
_CHECK_GROUPS = 64


@dataclass(frozen=True)
class SearchShape:
    """A batch: ``clips`` windows of up to ``groups`` frame groups, and ``texts`` texts."""

    clips: int = 16
    groups: int = 16
    texts: int = 128


@dataclass(frozen=True)
class SearchBatch:
    """Visual tokens [G, P, D], texts [B, T], and the label of each pair [B, G]: 1 true, 0 false, -1 unsure."""

    tokens_GPD: Tensor
    text_BT: Tensor
    labels_BG: Tensor


class LabelledClip:
    """A cached clip whose frame groups are labelled for a claim when one is first asked for."""

    def __init__(self, clip: CachedClip) -> None:
        self.visual_GPD = clip.visual_GPD
        self._facts = clip.facts(0, clip.num_groups, 0.0)
        self._spans = [
            (float(first), float(first + FRAMES_PER_GROUP))
            for first in range(0, clip.num_groups * FRAMES_PER_GROUP, FRAMES_PER_GROUP)
        ]
        self.claims: list[Claim] = sorted(claims_in(self._facts), key=repr)
        self._labels: dict[Claim, NDArray[np.int8]] = {}

    @property
    def num_groups(self) -> int:
        return len(self._spans)

    def labels(self, claim: Claim) -> NDArray[np.int8]:
        """Labels [G] of the clip's groups for a claim."""
        if claim not in self._labels:
            self._labels[claim] = pair_labels([claim], [self._facts], [self._spans])[0]
        return self._labels[claim]


class GroupSampler:
    """Batches of windows of clips with texts about them; the same number gives the same batch."""

    def __init__(
        self, clips: Sequence[CachedClip], tokenizer: Tokenizer, text: TextSpec, shape: SearchShape, seed: int
    ) -> None:
        self._clips = [LabelledClip(clip) for clip in clips]
        self._tokenizer, self._text, self._shape, self._seed = tokenizer, text, shape, seed
        lengths = np.asarray([clip.num_groups for clip in self._clips], np.float64)
        self._share = lengths / lengths.sum()

    def batch(self, number: int) -> SearchBatch:
        """Batch ``number``: clips are taken as often as they are long."""
        rng = np.random.default_rng([self._seed, number, _BATCH_SEED])
        cuts: list[tuple[LabelledClip, slice]] = []
        for place in rng.choice(len(self._clips), size=self._shape.clips, p=self._share).tolist():
            clip = self._clips[place]
            length = min(self._shape.groups, clip.num_groups)
            first = int(rng.integers(clip.num_groups - length + 1))
            cuts.append((clip, slice(first, first + length)))
        claims = batch_claims(_known(cuts), self._shape.texts, rng)
        texts = [paraphrase(text, rng) for text in texts_of(claims)]
        return self._batch(cuts, claims, texts)

    def whole(self, groups: int) -> SearchBatch:
        """The first groups of all clips, with the plain text of every claim that one of them shows."""
        cuts = [(clip, slice(0, min(groups, clip.num_groups))) for clip in self._clips]
        claims = list(_known(cuts).shown) or [Claim("person")]
        return self._batch(cuts, claims, texts_of(claims))

    def _batch(
        self, cuts: Sequence[tuple[LabelledClip, slice]], claims: Sequence[Claim], texts: Sequence[str]
    ) -> SearchBatch:
        tokens_GPD = np.concatenate([clip.visual_GPD[cut] for clip, cut in cuts]).astype(np.float32)
        labels_BG = np.stack([np.concatenate([clip.labels(claim)[cut] for clip, cut in cuts]) for claim in claims])
        return SearchBatch(
            torch.from_numpy(tokens_GPD),
            text_ids(self._tokenizer, self._text, texts),
            torch.from_numpy(labels_BG.astype(np.int64)),
        )


def _known(cuts: Sequence[tuple[LabelledClip, slice]]) -> KnownClaims:
    """What the windows show for certain, and what else is true of their clips."""
    shown = {claim for clip, cut in cuts for claim in clip.claims if (clip.labels(claim)[cut] == 1).any()}
    elsewhere = {claim for clip, _ in cuts for claim in clip.claims} - shown
    return KnownClaims(tuple(sorted(shown, key=repr)), tuple(sorted(elsewhere, key=repr)))


def search_modules(dual: DualEncoder) -> dict[str, nn.Module]:
    """What stage 2 trains; texts go on from stage 1. ``ValueError`` for an encoder without a head for tokens."""
    if dual.group is None:
        raise ValueError("this dual encoder has no head that reads visual tokens")
    return {"group": dual.group, **text_modules(dual)}


def group_vectors_of(dual: DualEncoder, tokens_GPD: Tensor) -> Tensor:
    """Search vectors [G, E] of frame groups from their visual tokens, as ``ImageEncoder.embed_groups`` makes them."""
    assert dual.group is not None
    return functional.normalize(dual.group(tokens_GPD).float(), dim=-1)


def train_search(
    folder: Path,
    dual: DualEncoder,
    clips: Mapping[str, Sequence[CachedClip]],
    tokenizer: Tokenizer,
    settings: TrainSettings,
    shape: SearchShape | None = None,
    *,
    on_step: Callable[[int, float], None] | None = None,
) -> int:
    """Run or continue stage 2 on cached clips of the splits ``train`` and ``validation``; gives the steps done."""
    torch.manual_seed(settings.seed)
    shape, device, text = shape or SearchShape(), dual.logit_scale.device, dual.text.spec
    sampler = GroupSampler(clips["train"], tokenizer, text, shape, settings.seed)
    held_out = GroupSampler(clips["validation"][:_MOST_CHECK_CLIPS], tokenizer, text, shape, settings.seed)
    asked = held_out.whole(_CHECK_GROUPS)
    feed = Prefetcher(sampler.batch)

    def losses_at(step: int) -> Mapping[str, Tensor]:
        batch = feed.get(step)
        with torch.autocast(device.type, torch.bfloat16):
            vectors_GE = group_vectors_of(dual, batch.tokens_GPD.to(device))
        return {"search": sigmoid_loss(dual, vectors_GE, batch.text_BT.to(device), batch.labels_BG.to(device))}

    return fit(
        folder,
        search_modules(dual),
        losses_at,
        settings,
        validate=lambda: check_search(dual, asked),
        validate_every=200,
        on_step=on_step,
    )


@torch.no_grad()
def check_search(dual: DualEncoder, batch: SearchBatch) -> dict[str, float]:
    """How well frame groups are ranked for texts that are true somewhere: mean average precision."""
    device = dual.logit_scale.device
    vectors_GE = group_vectors_of(dual, batch.tokens_GPD.to(device))
    texts_BE = functional.normalize(dual.text(batch.text_BT.to(device)).float(), dim=-1)
    return {"search_ap": float(mean_average_precision((texts_BE @ vectors_GE.T).cpu(), batch.labels_BG))}
