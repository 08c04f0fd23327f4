"""Which outputs of a set training is silent about: what it must not show together with what is there.

Every cell and token tells a set of labels and pairs of labels (``label_sets.group_sets``), all outputs against each
other. Where a red shirt is shown, "brown trousers" is always off in training, since such footage is kept for the test;
``held_back`` says why that must not be taught.

Shapes: S cells or tokens, H outputs of a set, N outputs that silence others.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator

import torch
from torch import Tensor

from videoxl2.training.claims import PALETTES
from videoxl2.training.held_back import DEEDS, trousers_held_back
from videoxl2.training.label_sets import ACTION, COLOUR, KIND, SET_SIZE, TROUSERS, output_of, pair_of, spread_to_pairs
from videoxl2.training.splits import Split, is_allowed


def outputs_held_back(sets_SH: Tensor, split: Split = "train") -> Tensor:
    """Which outputs [S, H] say nothing where these [S, H] are shown: those that are off because ``split`` must not show
    them there."""
    shown_N, silent_NH = _silencing(split)
    is_shown_SH = sets_SH > 0.5
    shown_SN = is_shown_SH[:, shown_N.to(sets_SH.device)].float()
    return (shown_SN @ silent_NH.to(sets_SH.device) > 0) & ~is_shown_SH


@functools.cache
def _silencing(split: Split) -> tuple[Tensor, Tensor]:
    """The outputs [N] that silence others, and which [N, H]: labels, and all pairs that one of them is part of."""
    pairs = set(_silenced(split))
    shown = sorted({first for first, _ in pairs})
    silent_NH = torch.zeros(len(shown), SET_SIZE)
    for first, second in pairs:
        silent_NH[shown.index(first), second] = 1
    return torch.tensor(shown, dtype=torch.long), spread_to_pairs(silent_NH)


def _silenced(split: Split) -> Iterator[tuple[int, int]]:
    """Two outputs at a time: where the first is shown, training must not show the second."""
    for kind, colours in PALETTES.items():
        for colour in colours:
            coloured = pair_of(KIND, kind, COLOUR, colour)
            for deed in DEEDS[kind]:
                if not is_allowed(split, kind, colour, deed):
                    yield coloured, output_of(ACTION, deed)
                    yield pair_of(KIND, kind, ACTION, deed), output_of(COLOUR, colour)
            for below in trousers_held_back(split, colour) if kind == "person" else ():
                yield coloured, output_of(TROUSERS, below)
                yield output_of(TROUSERS, below), output_of(COLOUR, colour)
