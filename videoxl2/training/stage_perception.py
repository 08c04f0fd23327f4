"""Stage 1 as a run: recorded clips in, a vision part and a dual encoder out.

The two share one tower while they learn: each batch of frames goes through it once, the dense labels teach DTS and the
projector, and sigmoid losses over (text, frame group) pairs teach the search embedding.

Shapes: F frames, G frame groups, B texts, E embedding width.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Generic, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from videoxl2.dual_encoder import DualEncoder
from videoxl2.model import VideoXL2
from videoxl2.preprocess import frames_to_pixels
from videoxl2.text_tower import TextSpec, canonical_text
from videoxl2.tokenizer import Tokenizer
from videoxl2.training.errors import TrainingError
from videoxl2.training.facts import Facts, Interval
from videoxl2.training.label_sets import ACTION, COMMON_ACTIONS, MOTION, set_scores
from videoxl2.training.paraphrases import paraphrase
from videoxl2.training.perception import (
    GroupTargets,
    PerceptionHeads,
    perceive,
    perception_loss,
    place_score,
    targets_of,
)
from videoxl2.training.recordings import Recording, finished_files
from videoxl2.training.replicas import average_gradients, batch_number
from videoxl2.training.samples import CELL_ACTIONS, CELL_KINDS, CELL_MOTIONS
from videoxl2.training.search_targets import KnownClaims, batch_claims, known_claims, pair_labels, texts_of
from videoxl2.training.splits import Split
from videoxl2.training.trainer import TrainSettings, fit

FRAMES_PER_GROUP = 4
# Most of what is seen walks or drives by; what is rare is shown more often than it happens.
_RARE_ACTIONS = tuple(number for number, name in enumerate(CELL_ACTIONS) if name not in COMMON_ACTIONS)
_COMMON_WORTH, _RARE_WORTH, _KIND_WORTH = 0.6, 3.0, 1.0
_RARE_KINDS = tuple(CELL_KINDS.index(kind) for kind in ("bicycle", "dog", "bag", "smoke"))
_ANY_WINDOW = 0.12
_SETTLING_RATE = 2e-3
_HUE_TURN = (40.0, 320.0)
"""Degrees; what is turned less is hardly of another colour."""
_MIRRORED_MOTIONS = np.asarray(
    [CELL_MOTIONS.index({"left": "right", "right": "left"}.get(motion, motion)) for motion in CELL_MOTIONS], np.uint8
)


@dataclass(frozen=True)
class PerceptionBatch:
    """Frames [F, 3, S, S], their dense targets, texts [B, T] and pair labels [B, G]."""

    pixels_F3SS: Tensor
    targets: GroupTargets
    text_BT: Tensor
    labels_BG: Tensor


@dataclass(frozen=True)
class ClipWindows:
    """Windows of clips: pictures [F, S, S, 3] and cell owners [F, Y, X] of each, one table [5, A + 1] per frame of all,
    and of each the facts of its clip with the interval of every frame group; what is known to be true of them."""

    frames: list[NDArray[np.uint8]]
    owners: list[NDArray[np.uint8]]
    tables: list[NDArray[np.uint8]]
    facts: list[Facts]
    spans: list[list[Interval]]
    claims: KnownClaims
    recoloured: NDArray[np.bool_]

    @property
    def recoloured_G(self) -> NDArray[np.bool_]:
        """Which frame groups are shown in other colours."""
        return np.repeat(self.recoloured, [len(groups) for groups in self.spans])


@dataclass(frozen=True)
class BatchShape:
    """What one step looks at: ``clips`` windows of ``groups`` frame groups, and ``texts`` texts about them.

    ``mirror``: half of the windows are shown mirrored, as if the place lay the other way round. ``rare``: so many of
    them show a rare action, each of these equally often, though some happen a hundred times as often as others.
    ``recoloured``: so many are shown in other colours, of which nothing is told. Training never shows some colours
    with some actions (``splits``), and what one can tell of an action by its colour is wrong of all other footage.
    """

    clips: int = 8
    groups: int = 1
    texts: int = 64
    mirror: bool = True
    rare: float = 0.5
    recoloured: float = 0.4


class ClipSampler:
    """Batches of windows from recorded clips; windows in which something is to be seen are likelier."""

    def __init__(
        self, paths: Sequence[Path], tokenizer: Tokenizer, text: TextSpec, shape: BatchShape, seed: int
    ) -> None:
        self._paths = list(paths)
        self._ids_of = functools.partial(text_ids, tokenizer, text)
        self._shape, self._seed = shape, seed
        watched = [what_happens(path) for path in self._paths]
        self._lively = [liveliness(happens) for happens in watched]
        share = np.asarray([0.3 + lively_F.mean() for lively_F in self._lively])
        self._share = share / share.sum()
        self._rare = rare_moments(watched)
        self._facts: dict[int, Facts] = {}

    def batch(self, step: int, image_size: int, pool_stride: int) -> PerceptionBatch:
        """The batch of a step."""
        rng = np.random.default_rng([self._seed, step])
        seen = self.windows(rng)
        text_BT, labels_BG = self.texts(seen, rng)
        targets = targets_of(np.concatenate(seen.owners), seen.tables, pool_stride, ~seen.recoloured_G)
        return PerceptionBatch(frames_to_pixels(np.concatenate(seen.frames), image_size), targets, text_BT, labels_BG)

    def windows(self, rng: np.random.Generator) -> ClipWindows:
        """As many windows as the shape says, each from a random clip."""
        size = self._shape.groups * FRAMES_PER_GROUP
        frames, owners, tables, facts, spans = [], [], [], [], []
        is_recoloured = rng.random(self._shape.clips) < self._shape.recoloured
        for recolour in is_recoloured.tolist():
            number, first = self._place(size, rng)
            clip = Recording.load(self._paths[number])
            window = (
                augment(clip.frames(first, first + size), rng),
                clip.owners_FYX[first : first + size],
                clip.actors_F5A[first : first + size],
            )
            shown = mirrored(*window) if self._shape.mirror and rng.random() < 0.5 else window
            frames.append(recoloured(shown[0], rng) if recolour else shown[0])
            owners.append(shown[1])
            tables += list(shown[2])
            facts.append(self._facts_of(number, clip))
            spans.append(
                [(float(t), float(t) + FRAMES_PER_GROUP) for t in range(first, first + size, FRAMES_PER_GROUP)]
            )
        return ClipWindows(frames, owners, tables, facts, spans, known_claims(facts, spans), is_recoloured)

    def texts(self, seen: ClipWindows, rng: np.random.Generator) -> tuple[Tensor, Tensor]:
        """Ids [B, T] of texts about the windows, and the label of each with each frame group [B, G]."""
        claims = batch_claims(seen.claims, self._shape.texts, rng)
        texts = [paraphrase(text, rng) for text in texts_of(claims)]
        labels_BG = pair_labels(claims, seen.facts, seen.spans).astype(np.int64)
        names_colour_B = np.asarray([claim.colour is not None or claim.trousers is not None for claim in claims])
        labels_BG[np.outer(names_colour_B, seen.recoloured_G)] = -1
        return self._ids_of(texts), torch.from_numpy(labels_BG)

    def _facts_of(self, number: int, clip: Recording) -> Facts:
        """What is true of a clip, but for where in the picture: kept, since making it takes longer than reading it."""
        if number not in self._facts:
            facts = clip.facts(clip.scene(), 0, clip.num_frames)
            seen, doubtful = (
                tuple(replace(item, sightings=()) for item in items)
                for items in (facts.objects, facts.doubtful_objects)
            )
            self._facts[number] = replace(facts, objects=seen, doubtful_objects=doubtful)
        return self._facts[number]

    def _place(self, size: int, rng: np.random.Generator) -> tuple[int, int]:
        """Number of a clip, and the first frame of a window of ``size`` frames."""
        if self._rare and rng.random() < self._shape.rare:
            moments_M2 = self._rare[int(rng.integers(len(self._rare)))]
            clip, frame = moments_M2[int(rng.integers(len(moments_M2)))].tolist()
            first = frame - int(rng.integers(size))
            return clip, min(max(first, 0), len(self._lively[clip]) - size)
        clip = int(rng.choice(len(self._paths), p=self._share))
        lively_F = self._lively[clip]
        starts = np.arange(len(lively_F) - size + 1)
        if rng.random() < _ANY_WINDOW:
            return clip, int(rng.choice(starts))
        weight = np.convolve(lively_F, np.ones(size), "valid") + 0.05 * size
        return clip, int(rng.choice(starts, p=weight / weight.sum()))


def text_ids(tokenizer: Tokenizer, spec: TextSpec, texts: Sequence[str]) -> Tensor:
    """Ids [B, T] of texts as ``text_tower.TextEncoder.token_ids`` makes them."""
    found = [tokenizer.encode(canonical_text(text))[: spec.num_positions - 1] for text in texts]
    return torch.tensor([ids + [spec.pad_id] * (spec.num_positions - len(ids)) for ids in found])


def what_happens(path: Path) -> list[NDArray[np.uint8]]:
    """Of each frame of a recorded clip the labels [5, V] of who is seen in it."""
    with np.load(path) as stored:
        owners_FYX, actors_F5A = stored["owners"], stored["actors"]
    return [
        table_5A[:, np.unique(owners_YX[owners_YX > 0])]
        for owners_YX, table_5A in zip(owners_FYX, actors_F5A, strict=True)
    ]


def liveliness(happens: Sequence[NDArray[np.uint8]]) -> NDArray[np.float64]:
    """How much there is to learn from each frame of a clip [F]: who is seen acting, rare actions more."""
    worth_A = np.asarray(
        [0.0, *(_COMMON_WORTH if name in COMMON_ACTIONS else _RARE_WORTH for name in CELL_ACTIONS[1:])]
    )
    found = []
    for table_5V in happens:
        moving = 0.5 * (table_5V[MOTION] > 1) + _KIND_WORTH * np.isin(table_5V[0], _RARE_KINDS)
        found.append(float((worth_A[table_5V[ACTION]] + moving).sum()))
    return np.asarray(found)


def rare_moments(watched: Sequence[Sequence[NDArray[np.uint8]]]) -> list[NDArray[np.int64]]:
    """For each rare action that happens, where: rows (number of the clip, frame) [M, 2]."""
    found: dict[int, list[tuple[int, int]]] = {action: [] for action in _RARE_ACTIONS}
    for number, happens in enumerate(watched):
        for frame, table_5V in enumerate(happens):
            for action in found.keys() & set(table_5V[ACTION].tolist()):
                found[action].append((number, frame))
    return [np.asarray(moments) for moments in found.values() if moments]


def augment(frames_FHW3: NDArray[np.uint8], rng: np.random.Generator) -> NDArray[np.uint8]:
    """Brightness and contrast shifted a little, alike for all pictures of a window."""
    gain, shift = rng.uniform(0.85, 1.15), rng.uniform(-12, 12)
    table = np.clip(np.arange(256) * gain + shift, 0, 255).astype(np.uint8)
    return np.asarray(table[frames_FHW3], np.uint8)


def recoloured(frames_FHW3: NDArray[np.uint8], rng: np.random.Generator) -> NDArray[np.uint8]:
    """Pictures of a window with every hue turned by the same angle, and half of them mirrored; what is grey stays."""
    turn = hue_turn(float(rng.uniform(*_HUE_TURN)), is_mirrored=bool(rng.random() < 0.5))
    turned = frames_FHW3.astype(np.float32) @ turn.T.astype(np.float32)
    return np.asarray(np.clip(np.rint(turned), 0, 255), np.uint8)


def hue_turn(degrees: float, *, is_mirrored: bool) -> NDArray[np.float64]:
    """The matrix [3, 3] that turns colours about the axis of greys, and exchanges green and blue first if mirrored.

    A third of a turn makes red green, green blue and blue red.
    """
    axis = np.full(3, 3**-0.5)
    cross = np.cross(np.eye(3), axis)
    angle = np.deg2rad(degrees)
    turn = np.cos(angle) * np.eye(3) + np.sin(angle) * cross + (1 - np.cos(angle)) * np.outer(axis, axis)
    return np.asarray(turn[:, [0, 2, 1]] if is_mirrored else turn)


def mirrored(
    frames_FHW3: NDArray[np.uint8], owners_FYX: NDArray[np.uint8], tables_F5A: NDArray[np.uint8]
) -> tuple[NDArray[np.uint8], NDArray[np.uint8], NDArray[np.uint8]]:
    """Pictures and labels of a window with left and right exchanged. No text of the search stage names a side."""
    tables_F5A = tables_F5A.copy()
    tables_F5A[:, MOTION] = _MIRRORED_MOTIONS[tables_F5A[:, MOTION]]
    return np.ascontiguousarray(frames_FHW3[:, :, ::-1]), np.ascontiguousarray(owners_FYX[:, :, ::-1]), tables_F5A


def group_vectors(dual: DualEncoder, features_FPD: Tensor) -> Tensor:
    """Search vectors [G, E] of frame groups from the tower's features, as ingestion makes them: the mean of frames."""
    vectors_FE = functional.normalize(dual.image.head(dual.image.post_layernorm(features_FPD)).float(), dim=-1)
    return functional.normalize(vectors_FE.unflatten(0, (-1, FRAMES_PER_GROUP)).mean(dim=1), dim=-1)


def sigmoid_loss(dual: DualEncoder, vectors_GE: Tensor, text_BT: Tensor, labels_BG: Tensor) -> Tensor:
    """SigLIP's loss over pairs that are certain: the mean of the true ones, and four times that of the false ones."""
    texts_BE = functional.normalize(dual.text(text_BT).float(), dim=-1)
    logits_BG = texts_BE @ vectors_GE.T * dual.logit_scale.exp().clamp(max=60.0) + dual.logit_bias
    signs_BG = torch.where(labels_BG > 0, 1.0, -1.0)
    losses_BG = -functional.logsigmoid(signs_BG * logits_BG)
    is_true, is_false = labels_BG > 0, labels_BG == 0
    zero = losses_BG.new_zeros(())
    positive = losses_BG[is_true].mean() if bool(is_true.any()) else zero
    return 0.5 * positive + 0.5 * losses_BG[is_false].mean() * 4


Batch = TypeVar("Batch")


class Prefetcher(Generic[Batch]):
    """Batches of the steps to come, made in threads while the model works, from this replica's number of the step."""

    def __init__(self, make: Callable[[int], Batch], ahead: int = 3, threads: int = 1) -> None:
        self._make = make
        self._pool = ThreadPoolExecutor(threads)
        self._ahead = max(ahead, threads)
        self._waiting: dict[int, Future[Batch]] = {}

    def get(self, step: int) -> Batch:
        """The batch of a step; those of the next steps are begun."""
        for future in range(step, step + self._ahead):
            if future not in self._waiting:
                self._waiting[future] = self._pool.submit(self._make, batch_number(future))
        return self._waiting.pop(step).result()


@dataclass
class PerceptionModules:
    """What stage 1 trains. The dual encoder's image tower and the model's tower are one."""

    model: VideoXL2
    dual: DualEncoder
    heads: PerceptionHeads

    @classmethod
    def build(cls, model: VideoXL2, dual: DualEncoder) -> PerceptionModules:
        dual.image.encoder = model.vision
        return cls(model, dual, PerceptionHeads(model.spec))

    def named(self) -> dict[str, torch.nn.Module]:
        return {
            "vision": self.model.vision,
            "dts": self.model.dts,
            "projector": self.model.projector,
            "heads": self.heads,
            **frame_modules(self.dual),
            **text_modules(self.dual),
        }


def frame_modules(dual: DualEncoder) -> dict[str, torch.nn.Module]:
    """What makes vectors of frames out of the tower's features."""
    return {"image_norm": dual.image.post_layernorm, "image_head": dual.image.head}


def text_modules(dual: DualEncoder) -> dict[str, torch.nn.Module]:
    """What makes vectors of texts, and the scale of their products."""
    return {"text": dual.text, "scale": SigmoidScale(dual)}


class SigmoidScale(torch.nn.Module):
    """The two numbers of the sigmoid loss as a module of their own."""

    def __init__(self, dual: DualEncoder) -> None:
        super().__init__()
        self.logit_scale, self.logit_bias = dual.logit_scale, dual.logit_bias


def forward_losses(modules: PerceptionModules, batch: PerceptionBatch) -> dict[str, Tensor]:
    """The named losses of a batch."""
    device = modules.model.device
    with torch.autocast(device.type, torch.bfloat16):
        features_FPD = modules.model.vision(batch.pixels_F3SS.to(device))
        seen = perceive(modules.model, features_FPD)
        losses = perception_loss(modules.heads, seen, batch.targets.to(device))
        vectors_GE = group_vectors(modules.dual, features_FPD)
    losses["search"] = 4 * sigmoid_loss(modules.dual, vectors_GE, batch.text_BT.to(device), batch.labels_BG.to(device))
    return losses


def settle_heads(modules: PerceptionModules, batch_of: Callable[[int], PerceptionBatch], steps: int) -> None:
    """Let new heads learn to read the features of a trained model, which stays as it is meanwhile."""
    heads = list(modules.heads.parameters())
    optimiser = torch.optim.AdamW(heads, lr=_SETTLING_RATE)
    device = modules.model.device
    for step in range(steps):
        batch = batch_of(step)
        with torch.autocast(device.type, torch.bfloat16):
            with torch.no_grad():
                seen = perceive(modules.model, modules.model.vision(batch.pixels_F3SS.to(device)))
            losses = perception_loss(modules.heads, seen, batch.targets.to(device))
        optimiser.zero_grad()
        torch.stack(list(losses.values())).sum().backward()
        average_gradients(heads)
        optimiser.step()


def train_perception(
    folder: Path,
    modules: PerceptionModules,
    clips: Path,
    tokenizer: Tokenizer,
    settings: TrainSettings,
    shape: BatchShape | None = None,
    *,
    threads: int = 1,
    settle_steps: int = 0,
    on_step: Callable[[int, float], None] | None = None,
) -> int:
    """Run or continue stage 1 on recorded clips (``recordings``); gives the steps done.

    A run that begins with a trained model lets its new heads settle for ``settle_steps`` first.
    """
    torch.manual_seed(settings.seed)
    spec = modules.model.spec

    def sampler(split: Split, sizes: BatchShape) -> ClipSampler:
        return clip_sampler(clips, split, tokenizer, modules.dual, sizes, settings.seed)

    size, stride = spec.vision.image_size, spec.pool_stride
    shown = sampler("train", shape or BatchShape())
    feed = Prefetcher(lambda number: shown.batch(number, size, stride), threads=threads)
    held_out = clip_paths(clips, "validation")
    check_shape = BatchShape(min(16, len(held_out)), 4, 128, mirror=False, rare=0.0, recoloured=0.0)
    checks = [sampler("validation", check_shape).batch(i, size, stride) for i in range(min(3, len(held_out)))]

    if not (folder / "state.pt").exists():
        settle_heads(modules, feed.get, settle_steps)

    def losses_at(step: int) -> Mapping[str, Tensor]:
        return forward_losses(modules, feed.get(step))

    return fit(
        folder,
        modules.named(),
        losses_at,
        settings,
        validate=lambda: check(modules, checks),
        validate_every=200,
        on_step=on_step,
    )


def clip_paths(clips: Path, split: Split) -> list[Path]:
    """The recorded clips of a split in order of seed; ``TrainingError`` where there are none."""
    paths = finished_files(clips / split, ".npz")
    if not paths:
        raise TrainingError(f"{clips / split} holds no recorded clips; record them first (stage footage)")
    return paths


def clip_sampler(
    clips: Path, split: Split, tokenizer: Tokenizer, dual: DualEncoder, shape: BatchShape, seed: int
) -> ClipSampler:
    """Batches of a split's clips, with texts as the text tower takes them."""
    return ClipSampler(clip_paths(clips, split), tokenizer, dual.text.spec, shape, seed)


@torch.no_grad()
def check(modules: PerceptionModules, batches: Sequence[PerceptionBatch]) -> dict[str, float]:
    """F1 of the visual tokens' readings, how many of them tell their ``place``, and how well groups are ranked for
    texts (mean average precision)."""
    scores: dict[str, list[float]] = {}
    device = modules.model.device
    for batch in batches:
        features_FPD = modules.model.vision(batch.pixels_F3SS.to(device))
        seen = perceive(modules.model, features_FPD)
        side = round(seen.tokens_GPD.shape[1] ** 0.5)
        logits = modules.heads.token(seen.tokens_GPD).transpose(1, 2).unflatten(2, (side, side))
        for name, value in set_scores(logits.cpu(), batch.targets.token_GHyx).items():
            scores.setdefault(name, []).append(value)
        places_GPN = modules.heads.place(seen.tokens_GPD).cpu()
        scores.setdefault("place", []).append(place_score(places_GPN, batch.targets.token_GHyx))
        vectors_GE = group_vectors(modules.dual, features_FPD)
        texts_BE = functional.normalize(modules.dual.text(batch.text_BT.to(device)), dim=-1)
        ranked_BG = (texts_BE @ vectors_GE.T).cpu()
        scores.setdefault("search_ap", []).append(mean_average_precision(ranked_BG, batch.labels_BG))
    return {name: float(np.mean(values)) for name, values in scores.items()}


def mean_average_precision(scores_BG: Tensor, labels_BG: Tensor) -> float:
    """Of texts that are true somewhere; uncertain groups are left out of each ranking."""
    found: list[float] = []
    for scores_G, labels_G in zip(scores_BG, labels_BG, strict=True):
        known = labels_G >= 0
        truth = labels_G[known][scores_G[known].argsort(descending=True)] > 0
        if bool(truth.any()):
            ranks = torch.arange(1, len(truth) + 1)
            found.append(float((truth.cumsum(0) / ranks)[truth].mean()))
    return float(np.mean(found)) if found else 0.0
