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

import math
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from videoxl2.config import ModelSpec
from videoxl2.dts import reinterpret_groups
from videoxl2.model import VideoXL2
from videoxl2.training.label_sets import (
    COLOUR,
    FRAME_SIZES,
    SET_SIZE,
    TROUSERS,
    colour_outputs,
    group_sets,
    set_weights,
    sets_of_labels,
)
from videoxl2.training.silence import outputs_held_back
from videoxl2.vision import resize_grid

_BACKGROUND_WEIGHT = 0.05
_FRAME_LOSS_WEIGHT = 0.5
_SET_LOSS_WEIGHT = 0.1
_PLACE_LOSS_WEIGHT = 0.3


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
    logits_FHYX = heads.frame(seen.maps_FCYX.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
    side = round(seen.merged_GSC.shape[1] ** 0.5)
    cell_GHYX = heads.cell(seen.merged_GSC).transpose(1, 2).unflatten(2, (side, side))
    small = round(seen.tokens_GPD.shape[1] ** 0.5)
    token_GHyx = heads.token(seen.tokens_GPD).transpose(1, 2).unflatten(2, (small, small))
    return {
        "frame": _FRAME_LOSS_WEIGHT * frame_loss(logits_FHYX, targets.frame_F5YX, targets.coloured_G),
        "cell": _SET_LOSS_WEIGHT * set_loss(cell_GHYX, targets.cell_GHYX, targets.coloured_G),
        "token": _SET_LOSS_WEIGHT * set_loss(token_GHyx, targets.token_GHyx, targets.coloured_G),
        "place": _PLACE_LOSS_WEIGHT * place_loss(heads.place(seen.tokens_GPD), targets.token_GHyx),
    }


def frame_loss(logits_FHYX: Tensor, frame_F5YX: Tensor, coloured_G: Tensor) -> Tensor:
    """Cross-entropy of each label of a cell among what training may show there (``silence``), averaged over cells;
    empty cells weigh little, and colours count only where they are true."""
    is_seen_FYX = frame_F5YX[:, 0] > 0
    seen_weight_FYX = torch.where(is_seen_FYX, 1.0, _BACKGROUND_WEIGHT)
    coloured_F = coloured_G.repeat_interleave(len(is_seen_FYX) // len(coloured_G))
    silent_SH = outputs_held_back(sets_of_labels(frame_F5YX.movedim(1, -1)[is_seen_FYX]))
    silent_FYXH = torch.zeros(*is_seen_FYX.shape, sum(FRAME_SIZES), dtype=torch.bool, device=logits_FHYX.device)
    silent_FYXH[is_seen_FYX] = silent_SH[:, : sum(FRAME_SIZES)]
    told_FHYX = logits_FHYX.float().masked_fill(silent_FYXH.movedim(-1, 1), -math.inf)
    total = logits_FHYX.new_zeros((), dtype=torch.float32)
    for label, logits in enumerate(told_FHYX.split(FRAME_SIZES, dim=1)):
        loss_FYX = functional.cross_entropy(logits, frame_F5YX[:, label], reduction="none")
        of_colour = label in (COLOUR, TROUSERS)
        weight_FYX = seen_weight_FYX * coloured_F[:, None, None] if of_colour else seen_weight_FYX
        total = total + (loss_FYX * weight_FYX).sum() / weight_FYX.sum().clamp(min=1e-6)
    return total


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
    """Binary cross-entropy of all outputs of a cell but for what training must not show there (``silence``), averaged
    over cells; empty cells weigh little, and what tells a colour counts only where the colours are true."""
    is_shown_GYX = sets_GHYX.any(dim=1)
    silent_GYXH = torch.zeros_like(sets_GHYX.movedim(1, -1), dtype=torch.bool)
    silent_GYXH[is_shown_GYX] = outputs_held_back(sets_GHYX.movedim(1, -1)[is_shown_GYX])
    losses_GHYX = functional.binary_cross_entropy_with_logits(logits_GHYX.float(), sets_GHYX, reduction="none")
    losses_GHYX = losses_GHYX.masked_fill(silent_GYXH.movedim(-1, 1), 0.0)
    weights_H = set_weights().to(losses_GHYX.device)
    colours_H = colour_outputs().to(losses_GHYX.device)
    weights_GH = torch.where(coloured_G[:, None] | ~colours_H, weights_H, 0.0)
    losses_GYX = torch.einsum("ghyx,gh->gyx", losses_GHYX, weights_GH)
    weight_GYX = torch.where(is_shown_GYX, 1.0, _BACKGROUND_WEIGHT)
    return (losses_GYX * weight_GYX).sum() / weight_GYX.sum()


@torch.no_grad()
def place_score(logits_GPN: Tensor, sets_GHyx: Tensor) -> float:
    """Share of visual tokens that show something whose row and column are both read rightly, for validation."""
    side = sets_GHyx.shape[-1]
    row_GP, column_GP = (part.argmax(dim=-1) for part in logits_GPN.split(side, dim=-1))
    is_right_GP = row_GP * side + column_GP == torch.arange(side * side, device=logits_GPN.device)
    shows_GP = (sets_GHyx > 0.5).any(dim=1).flatten(1)
    return float((is_right_GP & shows_GP).sum()) / max(float(shows_GP.sum()), 1.0)
