"""Training clips: shapes, determinism, and grid labels that say what the pixels show."""

from __future__ import annotations

import itertools
from dataclasses import replace
from datetime import datetime

import numpy as np
import pytest

from videoxl2.training.places import random_place
from videoxl2.training.random_scenes import random_scene
from videoxl2.training.render import Renderer
from videoxl2.training.samples import (
    CELL_ACTIONS,
    CELL_COLOURS,
    CELL_KINDS,
    CELL_MOTIONS,
    ClipSample,
    cell_owners,
    clip_scene,
    motion_of,
    render_clip,
    render_size,
)
from videoxl2.training.scene import Action, Colour, Person, Scene, Track
from videoxl2.training.splits import NUM_LAYOUTS, SPLITS
from videoxl2.training.vocabulary import all_words, training_sentences, words_in

NOON = datetime(2026, 5, 4, 12)


def one_person(shirt: Colour, x0: float, x1: float, falls: bool = False) -> Scene:
    """Somebody who walks across an empty shop floor for ten seconds."""
    empty = random_scene("shop", 1, 10.0, layout=0, start=NOON, size=render_size(208))
    track = Track(((0.0, x0, 7.0), (10.0, x1, 7.0)), is_parked_before=True, is_parked_after=True)
    person = Person("p", track, shirt, "black", falls=((0.0, 10.0),) if falls else ())
    return replace(empty, actors=(person,), actions=(Action("walk", "p", 0.0, 10.0),), openings=())


def test_a_clip_has_its_shapes_and_is_the_same_again() -> None:
    scene = clip_scene(3)
    clip, again = (render_clip(scene, 6.0, 5, fps=0.5, image_size=112, grid=6, offset_s=100.0) for _ in range(2))
    assert clip.frames_u8_FHWC.shape == (5, 112, 112, 3) and clip.frames_u8_FHWC.dtype == np.uint8
    assert clip.times_s.tolist() == [106.0, 108.0, 110.0, 112.0, 114.0]
    for name in ("kind", "colour", "trousers", "motion", "action"):
        grid = getattr(clip, f"cell_{name}_FYX")
        assert grid.shape == (5, 6, 6) and grid.dtype == np.uint8
        assert (grid == getattr(again, f"cell_{name}_FYX")).all()
    assert (clip.frames_u8_FHWC == again.frames_u8_FHWC).all() and clip.questions == again.questions
    assert (clip.facts.start_s, clip.facts.end_s) == (106.0, 116.0)
    assert all(106.0 <= low < high <= 116.0 for _, low, high in clip.captions)


def test_clips_outside_the_scene_are_refused() -> None:
    with pytest.raises(ValueError, match="leaves the scene"):
        render_clip(clip_scene(3), 50.0, 11)


@pytest.mark.parametrize(("shirt", "channel"), [("red", 0), ("green", 1), ("blue", 2)])
def test_cells_named_for_a_shirt_show_its_colour(shirt: Colour, channel: int) -> None:
    clip = render_clip(one_person(shirt, -2.0, 2.0), 1.0, 3)
    assert set(np.unique(clip.cell_kind_FYX)) == {0, CELL_KINDS.index("person")}
    for frame, kinds, colours in zip(clip.frames_u8_FHWC, clip.cell_kind_FYX, clip.cell_colour_FYX, strict=True):
        assert set(np.unique(colours[kinds > 0])) == {CELL_COLOURS.index(shirt)}
        rows, columns = np.nonzero(kinds)
        cell = 208 / 12
        area = frame[
            round(rows.min() * cell) : round((rows.max() + 1) * cell),
            round(columns.min() * cell) : round((columns.max() + 1) * cell),
        ].astype(int)
        others = [c for c in range(3) if c != channel]
        strong = (area[..., channel] - area[..., others].max(axis=-1)) > 40
        assert strong.sum() > 60, "the shirt is inside the cells"
        outside = frame.astype(int).copy()
        outside[round(rows.min() * cell) : round((rows.max() + 1) * cell)] = 0
        assert ((outside[..., channel] - outside[..., others].max(axis=-1)) > 70).sum() < strong.sum() / 4


@pytest.mark.parametrize(("x0", "x1", "motion"), [(-2.0, 2.0, "right"), (2.0, -2.0, "left"), (1.0, 1.02, "still")])
def test_motion_is_told_and_seen(x0: float, x1: float, motion: str) -> None:
    clip = render_clip(one_person("red", x0, x1), 2.0, 5)
    named = clip.cell_motion_FYX[clip.cell_kind_FYX > 0]
    assert set(np.unique(named)) == {CELL_MOTIONS.index(motion)}
    assert set(np.unique(clip.cell_action_FYX[clip.cell_kind_FYX > 0])) == {CELL_ACTIONS.index("walk")}
    red = [
        np.nonzero((frame[..., 0].astype(int) - frame[..., 1:].max(axis=-1)) > 60)[1].mean()
        for frame in clip.frames_u8_FHWC
    ]
    moved = red[-1] - red[0]
    assert {"right": moved > 15, "left": moved < -15, "still": abs(moved) < 4}[motion]


def test_towards_and_away_follow_the_heading() -> None:
    scene = one_person("red", 0.0, 0.0)
    for z0, z1, motion in ((6.0, 10.0, "away"), (10.0, 6.0, "towards")):
        person = replace(scene.actors[0], track=Track(((0.0, 0.0, z0), (10.0, 0.3, z1))))
        assert motion_of(replace(scene, actors=(person,)), person, 5.0) == motion


def test_who_has_fallen_lies_flat() -> None:
    def height(is_fallen: bool) -> tuple[int, int]:
        owners = Renderer(one_person("red", 0.0, 0.1, is_fallen)).moment(5.0, 0).actors_HW
        rows, columns = np.nonzero(owners)
        return int(np.ptp(rows)), int(np.ptp(columns))

    standing, lying = height(False), height(True)
    assert lying[0] < standing[0] * 0.6 and lying[1] > standing[1]


def test_a_cell_belongs_to_who_has_most_of_it() -> None:
    owners = np.zeros((12, 12), np.uint8)
    owners[0:4, 0:4] = 1
    owners[1:4, 1:4] = 2
    owners[8, 8] = 1
    grid = cell_owners(owners, 2, 3)
    assert grid.tolist() == [[2, 0, 0], [0, 0, 0], [0, 0, 1]]


def test_labels_and_answers_agree_over_many_clips() -> None:
    """Whoever is counted in a picture has cells there; an empty picture has none."""
    clips: list[ClipSample] = [render_clip(clip_scene(seed), 10.0, 6, image_size=160) for seed in range(10)]
    seen = 0
    for clip in clips:
        for frame, t in enumerate(clip.times_s.tolist()):
            here = {o.kind for o in clip.facts.objects for s in o.sightings if s.time_s == t and s.area > 0.006}
            cells = {CELL_KINDS[i] for i in np.unique(clip.cell_kind_FYX[frame])} - {"none"}
            everything = (*clip.facts.objects, *clip.facts.doubtful_objects)
            assert cells <= {o.kind for o in everything for s in o.sightings if s.time_s == t}
            assert here <= cells | {"smoke", "door"}
            seen += len(here)
    assert seen > 10
    assert sum(len(clip.questions) for clip in clips) > 40


def test_splits_share_no_layout() -> None:
    places = {split: [random_place("street", split, n) for n in range(200)] for split in SPLITS}
    ids = {split: {place.layout_id for place in found} for split, found in places.items()}
    heights = {split: {place.focal_h for place in found} for split, found in places.items()}
    for split in SPLITS:
        assert len(ids[split]) == len(heights[split]) == min(200, NUM_LAYOUTS[split])
    for one, other in itertools.combinations(SPLITS, 2):
        assert not ids[one] & ids[other] and not heights[one] & heights[other]


def test_the_vocabulary_is_closed_and_small() -> None:
    words = set(all_words())
    assert len(words) < 200
    for split in ("train", "test"):
        used = {word for text in training_sentences(5, 3000, split) for word in words_in(text)}
        assert used <= words, used - words
