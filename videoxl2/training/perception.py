"""Stage 1: the image tower, DTS and projector learn to see from dense labels, before any language.

Answers alone teach a small model from nothing very slowly; what the renderer knows of every cell teaches it in minutes.
Owns the targets, the heads that read them off, and the loss. The heads are thrown away afterwards.

Each frame's features tell what its cells show (the sizes of ``samples.CELL_*``). Each frame group's tokens, before and
after pooling, tell the set of everything that was in their cells during the four frames: kinds, colours, trousers,
motions, actions, and which of them belong together (kind with colour, shirt with trousers, shirt with action). After
pooling they also tell where in the picture they are.

Shapes: G frame groups, F = 4 G frames, C width, Y and X cells, A actors, H outputs of a set.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Collection
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from videoxl2.config import ModelSpec
from videoxl2.dts import reinterpret_groups
from videoxl2.model import VideoXL2
from videoxl2.training.samples import CELL_ACTIONS, CELL_COLOURS, CELL_KINDS, CELL_MOTIONS
from videoxl2.vision import resize_grid

FRAME_SIZES = (len(CELL_KINDS), len(CELL_COLOURS), len(CELL_COLOURS), len(CELL_MOTIONS), len(CELL_ACTIONS))
_PAIRS = ((0, 1), (1, 2), (1, 4), (0, 3), (0, 4))
"""Which two labels of one actor are told together, as places in ``FRAME_SIZES``."""
SET_SIZE = sum(FRAME_SIZES) + sum(FRAME_SIZES[a] * FRAME_SIZES[b] for a, b in _PAIRS) + len(CELL_KINDS)
"""Outputs of a set; the last ones tell which kinds stand in the cell in the group's first frame."""
_BACKGROUND_WEIGHT = 0.05
_FRAME_LOSS_WEIGHT = 0.5
_SET_LOSS_WEIGHT = 0.1
_PLACE_LOSS_WEIGHT = 0.3
COLOUR, TROUSERS, MOTION, ACTION = 1, 2, 3, 4
"""The places of these labels in ``FRAME_SIZES``, and their rows in a recording's table of actors."""
COMMON_ACTIONS = frozenset({"none", "enter", "leave", "walk", "drive", "open"})
"""What most of what is seen does; the other actions are rare, and shown and weighed more."""
_ACTION_WEIGHT = 3.0
"""Actions are learned last, and most questions are about them."""


@dataclass(frozen=True)
class GroupTargets:
    """What one batch of frame groups shows: labels per cell of each frame, and sets per cell of each group.

    ``coloured_G`` is False for groups shown in other colours than their labels say; nothing is learned of those.
    """

    frame_F5YX: Tensor
    cell_GHYX: Tensor
    token_GHyx: Tensor
    coloured_G: Tensor

    def to(self, device: torch.device) -> GroupTargets:
        return GroupTargets(
            self.frame_F5YX.to(device),
            self.cell_GHYX.to(device),
            self.token_GHyx.to(device),
            self.coloured_G.to(device),
        )


def actor_codes(actors_5A: NDArray[np.uint8]) -> NDArray[np.int64]:
    """The outputs of a set that each actor turns on, [A, number of labels and pairs]; column 0 is the background."""
    columns: list[NDArray[np.int64]] = []
    base = 0
    values = actors_5A.astype(np.int64)
    for label, size in enumerate(FRAME_SIZES):
        columns.append(base + values[label])
        base += size
    for a, b in _PAIRS:
        columns.append(base + values[a] * FRAME_SIZES[b] + values[b])
        base += FRAME_SIZES[a] * FRAME_SIZES[b]
    return np.stack(columns, axis=1)


def anchor_cells(owners_YX: NDArray[np.uint8], num_actors: int) -> list[tuple[int, int, int]]:
    """For each actor that owns a cell (actor, y, x): the lowest of its cells nearest to its middle column."""
    found: list[tuple[int, int, int]] = []
    for actor in range(1, num_actors + 1):
        rows, columns = np.nonzero(owners_YX == actor)
        if rows.size:
            lowest = rows == rows.max()
            middle = int(np.abs(columns[lowest] - columns.mean()).argmin())
            found.append((actor, int(rows.max()), int(columns[lowest][middle])))
    return found


def group_sets(
    owners_FYX: NDArray[np.uint8], actors_F5A: NDArray[np.uint8], frames_per_group: int = 4
) -> NDArray[np.bool_]:
    """Sets per cell of each group, [G, H, Y, X]; frames are a whole number of groups."""
    F, Y, X = owners_FYX.shape
    sets = np.zeros((F // frames_per_group, SET_SIZE, Y, X), np.bool_)
    first_kind = SET_SIZE - len(CELL_KINDS)
    for frame in range(F):
        group, codes_AK = frame // frames_per_group, actor_codes(actors_F5A[frame])
        rows, columns = np.nonzero(owners_FYX[frame])
        codes = codes_AK[owners_FYX[frame][rows, columns]]
        sets[group, codes, rows[:, None], columns[:, None]] = True
        if frame % frames_per_group == 0:
            for actor, y, x in anchor_cells(owners_FYX[frame], actors_F5A.shape[2] - 1):
                sets[group, first_kind + int(actors_F5A[frame, 0, actor]), y, x] = True
    return sets


def targets_of(
    owners_FYX: NDArray[np.uint8],
    actors_F5A: list[NDArray[np.uint8]],
    stride: int,
    coloured_G: NDArray[np.bool_] | None = None,
) -> GroupTargets:
    """Targets of frames from any clips (each frame with the table of its own actors), in their own colours unless
    ``coloured_G`` says which are."""
    labels = np.stack(
        [table[:, owners] * (owners > 0) for owners, table in zip(owners_FYX, actors_F5A, strict=True)]
    ).astype(np.int64)
    sets = np.concatenate(
        [
            group_sets(owners_FYX[i : i + 4], np.stack(_same_width(actors_F5A[i : i + 4])))
            for i in range(0, len(owners_FYX), 4)
        ]
    )
    cell_GHYX = torch.from_numpy(sets).to(torch.float32)
    known_G = np.ones(len(sets), np.bool_) if coloured_G is None else coloured_G
    token_GHyx = functional.max_pool2d(cell_GHYX, stride)
    return GroupTargets(torch.from_numpy(labels), cell_GHYX, token_GHyx, torch.from_numpy(known_G))


def _same_width(tables: list[NDArray[np.uint8]]) -> list[NDArray[np.uint8]]:
    width = max(table.shape[1] for table in tables)
    return [np.pad(table, ((0, 0), (0, width - table.shape[1]))) for table in tables]


class PerceptionHeads(nn.Module):
    """Linear readings of the features; training only."""

    def __init__(self, spec: ModelSpec) -> None:
        super().__init__()
        self.frame = nn.Linear(spec.vision.width, sum(FRAME_SIZES))
        self.cell = nn.Linear(spec.dts.channels, SET_SIZE)
        self.token = nn.Linear(spec.language.width, SET_SIZE)
        self.place = nn.Linear(spec.language.width, 2 * math.isqrt(spec.tokens_per_group))
        # From nothing, whatever the size of the features that they read.
        for head, rarity in ((self.frame, 0.0), (self.cell, -4.0), (self.token, -4.0), (self.place, 0.0)):
            nn.init.zeros_(head.weight)
            nn.init.constant_(head.bias, rarity)


@dataclass(frozen=True)
class Perceived:
    """Features of a batch: the tower's [F, C, Y, X], DTS's [G, S, C], visual tokens [G, P, D]."""

    maps_FCYX: Tensor
    merged_GSC: Tensor
    tokens_GPD: Tensor


def perceive(model: VideoXL2, features_FPD: Tensor) -> Perceived:
    """From the tower's features to visual tokens, with everything in between; frames are a whole number of groups."""
    maps_FCYX = resize_grid(features_FPD, model.spec.dts.grid)
    merged_GSC = model.dts(reinterpret_groups(maps_FCYX, model.spec.frames_per_group))
    return Perceived(maps_FCYX, merged_GSC, model.projector(merged_GSC))


def perception_loss(heads: PerceptionHeads, seen: Perceived, targets: GroupTargets) -> dict[str, Tensor]:
    """The parts of the loss by name; their sum is what is minimised."""
    frame_logits_FHYX = heads.frame(seen.maps_FCYX.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
    is_seen_FYX = targets.frame_F5YX[:, 0] > 0
    seen_weight_FYX = torch.where(is_seen_FYX, 1.0, _BACKGROUND_WEIGHT)
    coloured_F = targets.coloured_G.repeat_interleave(len(is_seen_FYX) // len(targets.coloured_G))
    frame_loss = frame_logits_FHYX.new_zeros((), dtype=torch.float32)
    for label, logits in enumerate(frame_logits_FHYX.float().split(FRAME_SIZES, dim=1)):
        loss_FYX = functional.cross_entropy(logits, targets.frame_F5YX[:, label], reduction="none")
        of_colour = label in (COLOUR, TROUSERS)
        weight_FYX = seen_weight_FYX * coloured_F[:, None, None] if of_colour else seen_weight_FYX
        frame_loss = frame_loss + (loss_FYX * weight_FYX).sum() / weight_FYX.sum().clamp(min=1e-6)
    side = round(seen.merged_GSC.shape[1] ** 0.5)
    cell_GHYX = heads.cell(seen.merged_GSC).transpose(1, 2).unflatten(2, (side, side))
    small = round(seen.tokens_GPD.shape[1] ** 0.5)
    token_GHyx = heads.token(seen.tokens_GPD).transpose(1, 2).unflatten(2, (small, small))
    return {
        "frame": _FRAME_LOSS_WEIGHT * frame_loss,
        "cell": _SET_LOSS_WEIGHT * set_loss(cell_GHYX, targets.cell_GHYX, targets.coloured_G),
        "token": _SET_LOSS_WEIGHT * set_loss(token_GHyx, targets.token_GHyx, targets.coloured_G),
        "place": _PLACE_LOSS_WEIGHT * place_loss(heads.place(seen.tokens_GPD), targets.token_GHyx),
    }


def place_loss(logits_GPN: Tensor, sets_GHyx: Tensor) -> Tensor:
    """Cross-entropy of the row and the column of each visual token, the mean of both; empty tokens weigh little.

    Nothing else asks for them, and without it a token tells its column to nobody (a linear reading had 0.54 of six).
    """
    side = sets_GHyx.shape[-1]
    cell_P = torch.arange(side * side, device=logits_GPN.device)
    row_GPy, column_GPx = logits_GPN.float().split(side, dim=-1)
    losses_GP = [
        functional.cross_entropy(logits_GPY.transpose(1, 2), place_P.expand(len(sets_GHyx), -1), reduction="none")
        for logits_GPY, place_P in ((row_GPy, cell_P // side), (column_GPx, cell_P % side))
    ]
    weight_GP = torch.where(sets_GHyx.any(dim=1), 1.0, _BACKGROUND_WEIGHT).flatten(1)
    return (torch.stack(losses_GP).mean(dim=0) * weight_GP).sum() / weight_GP.sum()


def set_loss(logits_GHYX: Tensor, sets_GHYX: Tensor, coloured_G: Tensor) -> Tensor:
    """Binary cross-entropy of all outputs of a cell, averaged over cells; empty cells weigh little, and what tells a
    colour counts only where the colours are true."""
    losses_GHYX = functional.binary_cross_entropy_with_logits(logits_GHYX.float(), sets_GHYX, reduction="none")
    weights_H = set_weights().to(losses_GHYX.device)
    colours_H = colour_outputs().to(losses_GHYX.device)
    weights_GH = torch.where(coloured_G[:, None] | ~colours_H, weights_H, 0.0)
    losses_GYX = torch.einsum("ghyx,gh->gyx", losses_GHYX, weights_GH)
    weight_GYX = torch.where(sets_GHYX.any(dim=1), 1.0, _BACKGROUND_WEIGHT)
    return (losses_GYX * weight_GYX).sum() / weight_GYX.sum()


@functools.cache
def set_weights() -> Tensor:
    """How much each output of a set counts in the loss, [H]: what tells an action counts more."""
    return 1 + (_ACTION_WEIGHT - 1) * _tells(ACTION).float()


@functools.cache
def colour_outputs() -> Tensor:
    """Which outputs of a set tell a colour, of a shirt, body, coat or trousers, [H]."""
    return _tells(COLOUR) | _tells(TROUSERS)


def _tells(place: int) -> Tensor:
    """Which outputs of a set tell the label at a place of ``FRAME_SIZES``, alone or in a pair, [H]."""
    labels = [label == place for label, size in enumerate(FRAME_SIZES) for _ in range(size)]
    pairs = [place in (a, b) for a, b in _PAIRS for _ in range(FRAME_SIZES[a] * FRAME_SIZES[b])]
    standing = [False] * len(CELL_KINDS)
    return torch.tensor([*labels, *pairs, *standing])


def action_outputs(but: Collection[str]) -> list[int]:
    """The outputs of a set that tell an action, but for those named."""
    base = sum(FRAME_SIZES[:ACTION])
    return [base + number for number, name in enumerate(CELL_ACTIONS) if name not in but]


@torch.no_grad()
def place_score(logits_GPN: Tensor, sets_GHyx: Tensor) -> float:
    """Share of visual tokens that show something whose row and column are both read rightly, for validation."""
    side = sets_GHyx.shape[-1]
    row_GP, column_GP = (part.argmax(dim=-1) for part in logits_GPN.split(side, dim=-1))
    is_right_GP = row_GP * side + column_GP == torch.arange(side * side, device=logits_GPN.device)
    shows_GP = (sets_GHyx > 0.5).any(dim=1).flatten(1)
    return float((is_right_GP & shows_GP).sum()) / max(float(shows_GP.sum()), 1.0)


@torch.no_grad()
def set_scores(logits_GHYX: Tensor, sets_GHYX: Tensor) -> dict[str, float]:
    """F1 of each label and pair at threshold 0.5, for validation."""
    names = ["kind", "colour", "trousers", "motion", "action", "kind+colour", "shirt+trousers", "shirt+action"]
    names += ["kind+motion", "kind+action", "standing"]
    sizes = [*FRAME_SIZES, *(FRAME_SIZES[a] * FRAME_SIZES[b] for a, b in _PAIRS), len(CELL_KINDS)]
    result: dict[str, float] = {}
    parts = zip((logits_GHYX > 0).split(sizes, 1), (sets_GHYX > 0.5).split(sizes, 1), names, strict=True)
    for guess, truth, name in parts:
        both = float((guess & truth).sum())
        result[name] = 2 * both / max(float(guess.sum() + truth.sum()), 1.0)
    return result
