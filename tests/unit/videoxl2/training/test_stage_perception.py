"""Windows of recorded clips as the first stage sees them."""

from __future__ import annotations

import colorsys
from pathlib import Path

import numpy as np
import pytest

from videoxl2.text_tower import TextSpec
from videoxl2.tokenizer import Tokenizer
from videoxl2.training.samples import CELL_ACTIONS, CELL_MOTIONS
from videoxl2.training.stage_perception import (
    BatchShape,
    ClipSampler,
    hue_turn,
    mirrored,
    rare_moments,
    recoloured,
    what_happens,
)

COMMON = {CELL_ACTIONS.index(name) for name in ("none", "walk", "enter", "leave", "drive", "open")}


def test_a_mirrored_window_exchanges_left_and_right_and_nothing_else() -> None:
    rng = np.random.default_rng(0)
    frames = rng.integers(0, 255, (4, 6, 8, 3)).astype(np.uint8)
    owners = rng.integers(0, 3, (4, 3, 4)).astype(np.uint8)
    tables = rng.integers(0, 2, (4, 5, 3)).astype(np.uint8)
    tables[:, 3] = [CELL_MOTIONS.index(name) for name in ("left", "right", "away")]
    again = tables.copy()
    seen_frames, seen_owners, seen_tables = mirrored(frames, owners, tables)
    assert np.array_equal(seen_frames[2, :, 0], frames[2, :, 7])
    assert np.array_equal(seen_owners[1, :, 3], owners[1, :, 0])
    assert [CELL_MOTIONS[code] for code in seen_tables[0, 3]] == ["right", "left", "away"]
    assert np.array_equal(np.delete(seen_tables, 3, axis=1), np.delete(tables, 3, axis=1))
    assert np.array_equal(tables, again)  # the clip's own labels stay
    for once, original in zip(mirrored(seen_frames, seen_owners, seen_tables), (frames, owners, tables), strict=True):
        assert np.array_equal(once, original)


def acting(*actions: str) -> np.ndarray:
    """Labels [5, V] of people who do this."""
    return np.stack([np.asarray([1, 2, 3, 1, CELL_ACTIONS.index(action)], np.uint8) for action in actions], axis=1)


def test_rare_moments_are_told_by_action() -> None:
    still, quiet = acting("walk"), np.zeros((5, 0), np.uint8)
    found = rare_moments([[still, acting("walk", "pick"), quiet], [acting("fall", "pick"), still, acting("fall")]])
    assert sorted(moments.tolist() for moments in found) == [[[0, 1], [1, 0]], [[1, 0], [1, 2]]]


def test_windows_show_rare_actions_as_often_as_asked(clips: Path, tokenizer: Tokenizer, small_text: TextSpec) -> None:
    """Each rare action that happens anywhere, equally often."""
    paths = sorted((clips / "train").glob("*.npz"))
    rare = {int(table[4]) for path in paths for frame in what_happens(path) for table in frame.T} - COMMON
    assert rare, "nothing rare happens in the recorded clips"
    counts = {}
    for share in (0.0, 1.0):
        sampler = ClipSampler(paths, tokenizer, small_text, BatchShape(clips=40, mirror=False, rare=share), 5)
        seen = sampler.windows(np.random.default_rng(1))
        shown = [
            {int(code) for i in range(4) for code in seen.tables[4 * number + i][4, np.unique(owners[i])]}
            for number, owners in enumerate(seen.owners)
        ]
        counts[share] = [sum(action in actions for actions in shown) for action in sorted(rare)]
        if share == 1.0:
            assert all(actions & rare for actions in shown)
    assert min(counts[1.0]) >= 40 / len(rare) / 2
    assert min(counts[1.0]) > min(counts[0.0])


def test_a_third_of_a_turn_exchanges_red_green_and_blue() -> None:
    red, green, blue = np.eye(3)
    turn = hue_turn(120.0, is_mirrored=False)
    assert np.allclose([turn @ red, turn @ green, turn @ blue], [green, blue, red])
    other = hue_turn(120.0, is_mirrored=True)
    assert np.allclose([other @ red, other @ green, other @ blue], [green, red, blue])
    assert np.allclose(hue_turn(77.0, is_mirrored=True) @ np.ones(3), np.ones(3))
    hue = colorsys.rgb_to_hsv(*(hue_turn(60.0, is_mirrored=False) @ red).clip(0, 1))[0]
    assert hue == pytest.approx(1 / 6)  # yellow


def test_recoloured_windows_keep_what_is_grey_and_what_happens(
    clips: Path, tokenizer: Tokenizer, small_text: TextSpec
) -> None:
    paths = sorted((clips / "train").glob("*.npz"))
    rng = np.random.default_rng(3)
    frames = rng.integers(0, 255, (4, 6, 8, 3)).astype(np.uint8)
    frames[1] = frames[1, :, :, :1]
    shown = recoloured(frames, rng)
    assert np.array_equal(shown[1], frames[1]) and not np.array_equal(shown[0], frames[0])
    light = frames[0].astype(np.float64).mean(axis=-1)
    inside = ((shown[0] > 0) & (shown[0] < 255)).all(axis=-1)
    assert inside.mean() > 0.3 and np.abs(shown[0].mean(axis=-1) - light)[inside].max() < 1
    for share in (0.0, 0.5, 1.0):
        sampler = ClipSampler(paths, tokenizer, small_text, BatchShape(clips=20, texts=64, recoloured=share), 5)
        batch = sampler.batch(0, 32, 2)
        seen = sampler.windows(np.random.default_rng([5, 0]))
        assert batch.targets.coloured_G.tolist() == (~seen.recoloured).tolist()
        assert seen.recoloured.mean() == share or (share == 0.5 and 0.2 < seen.recoloured.mean() < 0.8)
        told_GB = (batch.labels_BG >= 0).numpy().T
        if share:  # texts that name no colour are told of all windows
            assert 0 < told_GB[seen.recoloured].mean() < 0.6
        assert share == 1.0 or told_GB[~seen.recoloured].mean() > 0.8
