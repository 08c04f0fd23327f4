"""What visual tokens show, as the decoder is taught it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from videoxl2.layout import TokenLayout
from videoxl2.model import VideoXL2
from videoxl2.training.label_sets import SET_SIZE, action_outputs, output_of, pair_of, set_weights
from videoxl2.training.perception import targets_of
from videoxl2.training.recordings import Recording
from videoxl2.training.samples import CELL_ACTIONS
from videoxl2.training.silence import outputs_held_back
from videoxl2.training.token_labels import (
    TokenLabels,
    TokenReading,
    TokensRead,
    TokenTargets,
    choose_tokens,
    time_digits,
)

COMMON = {"none", "enter", "leave", "walk", "drive", "open"}


def dense(labels: TokenLabels, num_groups: int, tokens: int) -> np.ndarray:
    sets_GPH = np.zeros((num_groups, tokens, SET_SIZE), np.bool_)
    sets_GPH[tuple(labels.row_R3.T)] = True
    return sets_GPH


@pytest.fixture(scope="module")
def recording(clips: Path) -> Recording:
    """The liveliest of the recorded clips."""
    found = [Recording.load(path).without_pictures() for path in sorted((clips / "train").glob("*.npz"))]
    return max(found, key=lambda item: int((item.owners_FYX > 0).sum()))


def test_tokens_show_what_stage_perception_teaches_the_projector(recording: Recording) -> None:
    labels = TokenLabels.of(recording, 2, 5, 9)
    frames = slice(2, 22)
    targets = targets_of(recording.owners_FYX[frames], list(recording.actors_F5A[frames]), stride=2)
    expected_GPH = targets.token_GHyx.flatten(2).transpose(1, 2).numpy() > 0
    assert expected_GPH.any()
    assert np.array_equal(dense(labels, 5, 9), expected_GPH)


def test_parts_and_joints_are_those_of_the_whole(recording: Recording) -> None:
    whole = dense(TokenLabels.of(recording, 0, 8, 9), 8, 9)
    labels = TokenLabels.of(recording, 0, 8, 9)
    assert np.array_equal(dense(labels.part(3, 6), 3, 9), whole[3:6])
    joined = TokenLabels.join([labels.part(5, 8), labels.part(0, 2)], [3, 2])
    assert np.array_equal(dense(joined, 5, 9), np.concatenate((whole[5:8], whole[:2])))


def test_cells_that_tokens_cannot_share_are_refused(recording: Recording) -> None:
    with pytest.raises(ValueError, match="25 visual tokens do not share 6 x 6"):
        TokenLabels.of(recording, 0, 2, 25)


def test_all_that_is_shown_is_read_and_a_part_of_the_rest(recording: Recording) -> None:
    labels = TokenLabels.of(recording, 0, 8, 9)
    layout = TokenLayout.build([1, 2, 3], [[4, 5]] * 8, 9)
    times_s = [2.0 + 4 * group for group in range(8)]
    targets = choose_tokens(labels, layout, times_s, np.random.default_rng(0))
    sets_GPH = dense(labels, 8, 9)
    places = {span.time_end + p: (g, p) for g, span in enumerate(layout.spans) for p in range(9)}
    tokens = targets.token_S.tolist()
    assert len(set(tokens)) == len(tokens)
    shown = zip(tokens, targets.set_SH.numpy(), targets.digit_SN.tolist(), targets.cell_S.tolist(), strict=True)
    for token, set_H, digit_N, cell in shown:
        assert np.array_equal(set_H, sets_GPH[places[token]])
        assert cell == places[token][1]
        seconds = round(times_s[places[token][0]])
        assert digit_N == [0, 0, *divmod(seconds, 10), 0, 0, *divmod(seconds, 10)]
    shows_S = targets.set_SH.any(dim=1)
    assert int(shows_S.sum()) == int(sets_GPH.any(axis=2).sum())
    assert 0 < int((~shows_S).sum()) < len(places) - int(shows_S.sum())
    assert float(targets.weight_S.sum()) == pytest.approx(1.0)


def test_rare_actions_weigh_more() -> None:
    first = action_outputs(())[0]
    walk, pick = first + CELL_ACTIONS.index("walk"), first + CELL_ACTIONS.index("pick")
    labels = TokenLabels(np.asarray([[0, 1, walk], [0, 2, pick]], np.int32))
    targets = choose_tokens(labels, TokenLayout.build([1], [[4]], 4), [0.0], np.random.default_rng(0))
    by_token = dict(zip(targets.token_S.tolist(), targets.weight_S.tolist(), strict=True))
    assert by_token[2 + 2] == pytest.approx(3 * by_token[2 + 1])
    assert set(action_outputs(COMMON)) == set(action_outputs(())) - {first + CELL_ACTIONS.index(a) for a in COMMON}


def test_losses_are_cross_entropy_weighted_over_tokens_and_outputs() -> None:
    spec = VideoXL2.from_pretrained("tiny").spec.language
    reading = TokenReading(spec, 9)
    rng = np.random.default_rng(3)
    sets = torch.from_numpy(rng.random((3, SET_SIZE)) < 0.2)
    digits = torch.from_numpy(time_digits([0.0, 59.6, 7384.0]))
    targets = TokenTargets(
        torch.tensor([4, 0, 2]), sets, torch.tensor([0.5, 0.2, 0.3]), digits, torch.tensor([7, 0, 5])
    )
    hidden_MD = torch.from_numpy(rng.normal(size=(6, spec.width))).float()
    with torch.no_grad():
        reading.heads.weight.normal_(std=0.1)
        share_SH = torch.sigmoid(reading.heads(hidden_MD[[4, 0, 2]]).double())
        likely_SH = torch.where(sets, share_SH, 1 - share_SH)
        told_SH = (~outputs_held_back(sets)).double() * set_weights().double()
        expected = -0.1 * (targets.weight_S.double()[:, None] * told_SH * likely_SH.log()).sum()
        assert float(reading(hidden_MD, targets).losses(targets)["sight"]) == pytest.approx(float(expected), rel=1e-4)
        reading.clock.weight.normal_(std=0.1)
        likely_SNX = torch.softmax(reading.clock(hidden_MD[[4, 0, 2]]).double().view(3, 8, 10), dim=-1)
        told_SN = likely_SNX.gather(2, digits[..., None])[..., 0].log()
        expected = -(targets.weight_S.double()[:, None] * told_SN / 8).sum()
        assert float(reading(hidden_MD, targets).losses(targets)["clock"]) == pytest.approx(float(expected), rel=1e-4)
        reading.place.weight.normal_(std=0.1)
        read = reading(hidden_MD, targets)
        rows_SY, columns_SX = reading.place(hidden_MD[[4, 0, 2]]).double().view(3, 2, 3).log_softmax(dim=-1).unbind(1)
        told_S = (rows_SY[[0, 1, 2], [2, 0, 1]] + columns_SX[[0, 1, 2], [1, 0, 2]]) / 2
        expected = -(targets.weight_S.double() * told_S).sum()
        assert float(read.losses(targets)["place"]) == pytest.approx(float(expected), rel=1e-4)
        assert read.cells().tolist() == (3 * rows_SY.argmax(dim=1) + columns_SX.argmax(dim=1)).tolist()


@pytest.mark.parametrize(
    ("time_s", "digits"),
    [
        (0.0, [0, 0, 0, 0, 0, 0, 0, 0]),
        (59.6, [0, 0, 6, 0, 0, 1, 0, 0]),
        (256.0, [0, 2, 5, 6, 0, 4, 1, 6]),
        (7384.0, [7, 3, 8, 4, 2, 3, 0, 4]),
        (12345.4, [2, 3, 4, 5, 0, 5, 4, 5]),
    ],
)
def test_a_time_is_told_in_seconds_and_in_minutes(time_s: float, digits: list[int]) -> None:
    assert time_digits([time_s]).tolist() == [digits]


def test_what_training_must_not_show_is_not_taught_to_be_absent() -> None:
    sets_SH = torch.zeros(1, SET_SIZE, dtype=torch.bool)
    shown = [output_of(0, "person"), output_of(1, "red"), output_of(2, "grey"), pair_of(0, "person", 1, "red")]
    sets_SH[0, shown] = True
    targets = TokenTargets(
        torch.tensor([0]), sets_SH, torch.ones(1), torch.zeros(1, 8, dtype=torch.long), torch.tensor([0])
    )
    logits_SH = torch.zeros(1, SET_SIZE, requires_grad=True)
    read = TokensRead(logits_SH, torch.zeros(1, 8, 10), torch.zeros(1, 3), torch.zeros(1, 3))
    read.losses(targets)["sight"].backward()
    assert logits_SH.grad is not None
    grad_H = logits_SH.grad[0]
    assert float(grad_H[output_of(2, "brown")]) == 0 == float(grad_H[pair_of(1, "red", 2, "brown")])
    assert float(grad_H[output_of(2, "blue")]) > 0 > float(grad_H[output_of(2, "grey")])
