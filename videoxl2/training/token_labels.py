"""What each visual token shows, from the renderer's labels, so that the decoder can be taught more than answers.

An answer is one or two tokens about a video of thousands. What stands in every cell and what it does is known as well
(``label_sets.group_sets``), and a token that has seen the groups before it can tell more of it than the vision part,
which sees one group at a time: whether somebody stops or loiters, drops a bag or picks one up. So the hidden states of
the decoder's lower half are read by a head that is thrown away afterwards, as those of stage ``perception`` are.

They must also tell when their token's group is, digit by digit as answers say it: the timestamp before the group is
written in other tokens than an answer, and who finds what was asked for must have the time at hand. And where in the
picture the token is: visual tokens tell it, but answers alone did not teach the decoder to keep it.

Shapes: F frames, G frame groups, P visual tokens per group, R rows of labels, M tokens of prefix and video, S tokens
that are read, H outputs of a set, N digits of a time, Y rows and X columns of tokens in a picture, D width.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from videoxl2.config import LanguageSpec
from videoxl2.layout import TokenLayout
from videoxl2.training.label_sets import COMMON_ACTIONS, SET_SIZE, action_outputs, group_sets, set_weights
from videoxl2.training.recordings import Recording
from videoxl2.training.silence import outputs_held_back

_EMPTY_SHARE, _EMPTY_WEIGHT = 0.5, 0.2
"""Tokens that show nothing: how many are read for each that shows something, and what all of them weigh together."""
_RARE_WEIGHT = 3.0
_LOSS_SCALE = 0.1
_RARITY = -4.0
_NUM_DIGITS = 8


@dataclass(frozen=True)
class TokenLabels:
    """What the tokens of consecutive frame groups show: rows (group, token of the group, output of the set) [R, 3],
    ordered by group."""

    row_R3: NDArray[np.int32]

    @classmethod
    def of(cls, recording: Recording, first_frame: int, num_groups: int, tokens_per_group: int) -> TokenLabels:
        """Labels of ``num_groups`` groups of four frames from ``first_frame`` on.

        Raises ValueError where the recording's cells are not a whole number of times those of the tokens.
        """
        frames = slice(first_frame, first_frame + 4 * num_groups)
        sets_GHYX = group_sets(recording.owners_FYX[frames], recording.actors_F5A[frames])
        cells, side = sets_GHYX.shape[-1], round(tokens_per_group**0.5)
        if side * side != tokens_per_group or cells % side:
            raise ValueError(f"{tokens_per_group} visual tokens do not share {cells} x {cells} labelled cells evenly")
        stride = cells // side
        tokens_GHyx = sets_GHYX.reshape(*sets_GHYX.shape[:2], side, stride, side, stride).any(axis=(3, 5))
        tokens_GPH = tokens_GHyx.reshape(*tokens_GHyx.shape[:2], tokens_per_group).transpose(0, 2, 1)
        return cls(np.stack(np.nonzero(tokens_GPH), axis=1).astype(np.int32))

    def part(self, first: int, end: int) -> TokenLabels:
        """Those of groups [first, end), which become groups from 0 on."""
        low, high = np.searchsorted(self.row_R3[:, 0], (first, end))
        return TokenLabels(self.row_R3[low:high] - np.asarray([first, 0, 0], np.int32))

    @classmethod
    def join(cls, parts: Sequence[TokenLabels], num_groups: Sequence[int]) -> TokenLabels:
        """Labels of stretches that follow each other, each of so many groups."""
        starts = np.cumsum([0, *num_groups[:-1]])
        rows = [part.row_R3 + np.asarray([start, 0, 0]) for part, start in zip(parts, starts, strict=True)]
        return cls(np.concatenate(rows).astype(np.int32))


@dataclass(frozen=True, eq=False)
class TokenTargets:
    """Tokens whose hidden state is read: places [S] among prefix and video, what they show [S, H], weights [S], the
    digits [S, N] of the time of their group and their number [S] in it, row by row of the picture."""

    token_S: Tensor
    set_SH: Tensor
    weight_S: Tensor
    digit_SN: Tensor
    cell_S: Tensor


def time_digits(times_s: Sequence[float]) -> NDArray[np.int64]:
    """Times as answers say them, [G, N] for G of them: four digits of whole seconds, then two of minutes and two of the
    seconds beside these. Longer times keep their last digits."""
    whole_G = np.round(np.asarray(times_s)).astype(np.int64)
    parts = [whole_G // ten for ten in (1000, 100, 10, 1)]
    parts += [number_G // ten for number_G in (whole_G // 60, whole_G % 60) for ten in (10, 1)]
    return np.stack(parts, axis=1) % 10


def choose_tokens(
    labels: TokenLabels, layout: TokenLayout, times_s: Sequence[float], rng: np.random.Generator
) -> TokenTargets:
    """All tokens that show something and a random part of the others, which are most and say little.

    ``times_s`` are those of the frame groups.
    """
    group_R, cell_R, output_R = labels.row_R3.T
    P = layout.spans[0].end - layout.spans[0].time_end
    shown_S, row_R = np.unique(group_R * P + cell_R, return_inverse=True)
    empty = np.setdiff1d(np.arange(layout.num_groups * P), shown_S, assume_unique=True)
    number = min(len(empty), max(P, round(_EMPTY_SHARE * len(shown_S))))
    chosen = np.concatenate((shown_S, rng.choice(empty, number, replace=False)))
    sets_SH = np.zeros((len(chosen), SET_SIZE), np.bool_)
    sets_SH[row_R, output_R] = True
    weights = np.full(len(chosen), _EMPTY_WEIGHT * max(1, len(shown_S)) / max(1, number))
    is_rare = sets_SH[: len(shown_S), action_outputs(COMMON_ACTIONS)].any(axis=1)
    weights[: len(shown_S)] = np.where(is_rare, _RARE_WEIGHT, 1.0)
    starts_G = np.asarray([span.time_end for span in layout.spans])
    return TokenTargets(
        torch.from_numpy(starts_G[chosen // P] + chosen % P),
        torch.from_numpy(sets_SH),
        torch.from_numpy(weights / weights.sum()).float(),
        torch.from_numpy(time_digits(times_s)[chosen // P]),
        torch.from_numpy(chosen % P),
    )


class TokenReading(nn.Module):
    """Reads off a hidden state what its token shows, when and where; training only. From nothing, as
    ``PerceptionHeads``."""

    def __init__(self, spec: LanguageSpec, tokens_per_group: int) -> None:
        super().__init__()
        self.side = math.isqrt(tokens_per_group)
        self.heads = nn.Linear(spec.width, SET_SIZE)
        self.clock = nn.Linear(spec.width, _NUM_DIGITS * 10)
        self.place = nn.Linear(spec.width, 2 * self.side)
        for head, rarity in ((self.heads, _RARITY), (self.clock, 0.0), (self.place, 0.0)):
            nn.init.zeros_(head.weight)
            nn.init.constant_(head.bias, rarity)

    def forward(self, hidden_MD: Tensor, targets: TokenTargets) -> TokensRead:
        """What is read off the tokens that ``targets`` names."""
        read_SD = hidden_MD.index_select(0, targets.token_S.to(hidden_MD.device))
        row_SY, column_SX = self.place(read_SD).float().split(self.side, dim=-1)
        digit_SNX = self.clock(read_SD).float().unflatten(1, (_NUM_DIGITS, 10))
        return TokensRead(self.heads(read_SD).float(), digit_SNX, row_SY, column_SX)


@dataclass(frozen=True)
class TokensRead:
    """Logits of what tokens show [S, H], of the digits of their times [S, N, 10], of their rows and columns."""

    set_SH: Tensor
    digit_SNX: Tensor
    row_SY: Tensor
    column_SX: Tensor

    def losses(self, targets: TokenTargets) -> dict[str, Tensor]:
        """Weighted over tokens: ``sight``, binary cross-entropy of all outputs of a token but for what training must
        not show there, of which those that tell an action count more; ``clock``, cross-entropy of the digits;
        ``place``, of row and column; each the mean over what is told."""
        weight_S = targets.weight_S.to(self.set_SH)
        sets_SH = targets.set_SH.to(self.set_SH)
        losses_SH = functional.binary_cross_entropy_with_logits(self.set_SH, sets_SH, reduction="none")
        losses_SH = losses_SH.masked_fill(outputs_held_back(sets_SH), 0.0)
        digit_SN = targets.digit_SN.to(weight_S.device)
        losses_SN = functional.cross_entropy(self.digit_SNX.transpose(1, 2), digit_SN, reduction="none")
        side, cell_S = self.row_SY.shape[1], targets.cell_S.to(weight_S.device)
        rows_S = functional.cross_entropy(self.row_SY, cell_S // side, reduction="none")
        columns_S = functional.cross_entropy(self.column_SX, cell_S % side, reduction="none")
        return {
            "sight": _LOSS_SCALE * (losses_SH @ set_weights().to(losses_SH)) @ weight_S,
            "clock": losses_SN.mean(dim=1) @ weight_S,
            "place": (rows_S + columns_S) @ weight_S / 2,
        }

    def cells(self) -> Tensor:
        """The likeliest number of each token in its group, [S]."""
        return self.row_SY.argmax(dim=-1) * self.row_SY.shape[1] + self.column_SX.argmax(dim=-1)


def read_layer(spec: LanguageSpec) -> int:
    """The layer whose output is read: half of the layers have gathered what the groups before show, and half are left
    to make something of it."""
    return spec.num_layers // 2 - 1
