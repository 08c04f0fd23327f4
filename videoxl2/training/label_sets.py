"""Sets of labels: everything that a cell or a visual token shows, as outputs that are on or off.

Owns which outputs there are and what each tells: kinds, colours, trousers, motions, actions, which of them belong
together (kind with colour, shirt with trousers, shirt with action), and which kinds stand in the cell. The renderer's
labels become such sets here.

Shapes: G frame groups, F = 4 G frames, Y and X cells, A actors, S cells or tokens, H outputs of a set, N rows of them.
"""

from __future__ import annotations

import functools
from collections.abc import Collection
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from videoxl2.training.samples import CELL_ACTIONS, CELL_COLOURS, CELL_KINDS, CELL_MOTIONS

_NAMES = (CELL_KINDS, CELL_COLOURS, CELL_COLOURS, CELL_MOTIONS, CELL_ACTIONS)
FRAME_SIZES = tuple(len(names) for names in _NAMES)
_PAIRS = ((0, 1), (1, 2), (1, 4), (0, 3), (0, 4))
"""Which two labels of one actor are told together, as places in ``FRAME_SIZES``."""
SET_SIZE = sum(FRAME_SIZES) + sum(FRAME_SIZES[a] * FRAME_SIZES[b] for a, b in _PAIRS) + len(CELL_KINDS)
"""Outputs of a set; the last ones tell which kinds stand in the cell in the group's first frame."""
KIND, COLOUR, TROUSERS, MOTION, ACTION = 0, 1, 2, 3, 4
"""The places of these labels in ``FRAME_SIZES``, and their rows in a recording's table of actors."""
COMMON_ACTIONS = frozenset({"none", "enter", "leave", "walk", "drive", "open"})
"""What most of what is seen does; the other actions are rare, and shown and weighed more."""
_ACTION_WEIGHT = 3.0
"""Actions are learned last, and most questions are about them."""


def actor_codes(actors_5A: NDArray[np.integer[Any]]) -> NDArray[np.int64]:
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


def sets_of_labels(labels_S5: Tensor) -> Tensor:
    """The sets [S, H] of cells with one thing in each, of which nothing is known but its labels."""
    S = len(labels_S5)
    codes_SK = torch.from_numpy(actor_codes(labels_S5.cpu().numpy().T)).to(labels_S5.device)
    return torch.zeros(S, SET_SIZE, device=labels_S5.device).scatter_(1, codes_SK, 1.0)


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


def output_of(place: int, name: str) -> int:
    """The output of a set that tells the label ``name`` at a place of ``FRAME_SIZES``."""
    return sum(FRAME_SIZES[:place]) + _NAMES[place].index(name)


def pair_of(first: int, first_name: str, second: int, second_name: str) -> int:
    """The output of a set that tells two labels together, of places that are told together."""
    base = sum(FRAME_SIZES) + sum(FRAME_SIZES[a] * FRAME_SIZES[b] for a, b in _PAIRS[: _PAIRS.index((first, second))])
    return base + _NAMES[first].index(first_name) * FRAME_SIZES[second] + _NAMES[second].index(second_name)


def spread_to_pairs(labels_NH: Tensor) -> Tensor:
    """The same labels [N, H] and all pairs in which they are."""
    parts = labels_NH[:, : sum(FRAME_SIZES)].split(FRAME_SIZES, dim=1)
    pairs = [torch.maximum(parts[a][:, :, None], parts[b][:, None, :]).flatten(1) for a, b in _PAIRS]
    return torch.cat((*parts, *pairs, labels_NH[:, -len(CELL_KINDS) :]), dim=1)


def action_outputs(but: Collection[str]) -> list[int]:
    """The outputs of a set that tell an action, but for those named."""
    base = sum(FRAME_SIZES[:ACTION])
    return [base + number for number, name in enumerate(CELL_ACTIONS) if name not in but]


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
