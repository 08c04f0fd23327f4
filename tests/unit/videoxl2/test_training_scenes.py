"""Random scenes: seeded, of every kind, quiet enough, with actions that the pixels show."""

from __future__ import annotations

from collections import Counter
from datetime import datetime
from fractions import Fraction

import numpy as np
import pytest

from videoxl2.training.claims import PERSON_ACTIONS
from videoxl2.training.episodes import SHIRTS
from videoxl2.training.facts import facts_of, script_facts, watch_pixels
from videoxl2.training.random_scenes import CAMERA_KINDS, random_scene
from videoxl2.training.render import Renderer
from videoxl2.training.scene import Bag, Person, Scene, SceneryKind
from videoxl2.training.splits import first_split, is_allowed

SIZE = (256, 144)


def story(scene: Scene) -> list[tuple[str, str, float, float]]:
    return [(a.kind, a.actor_id, a.start_s, a.end_s) for a in scene.actions]


@pytest.mark.parametrize("kind", CAMERA_KINDS)
def test_the_same_seed_gives_the_same_scene_and_pixels(kind: SceneryKind) -> None:
    first, again, other = (random_scene(kind, seed, 40.0, size=SIZE) for seed in (4, 4, 5))
    assert story(first) == story(again) and first.conditions == again.conditions and first.place is again.place
    assert story(first) != story(other) or first.conditions != other.conditions
    frames = [Renderer(scene).moment(20.0, 3) for scene in (first, again)]
    assert (frames[0].rgb_HW3 == frames[1].rgb_HW3).all() and (frames[0].actors_HW == frames[1].actors_HW).all()


def test_the_splits_are_different_scenes() -> None:
    scenes = [random_scene("street", 4, 60.0, split) for split in ("train", "validation", "test")]
    assert len({scene.place.layout_id for scene in scenes if scene.place}) == 3
    assert len({str(story(scene)) for scene in scenes}) == 3


def test_every_action_occurs_and_ends_in_time() -> None:
    kinds: Counter[str] = Counter()
    for kind in CAMERA_KINDS:
        for seed in range(30):
            scene = random_scene(kind, seed, 120.0)
            kinds.update(action.kind for action in scene.actions)
            assert all(0 <= a.start_s < a.end_s <= 120.0 for a in scene.actions)
    expected = "enter leave walk run stop loiter fall drop pick meet drive wrong_way park ride open smoke"
    assert set(kinds) == set(expected.split())


def test_surveillance_is_mostly_quiet() -> None:
    """At the default rate there are minutes without anybody, and most of the time at most two things happen."""
    shares, longest = [], []
    for seed in range(20):
        scene = random_scene("corridor", seed, 600.0)
        busy = np.zeros(600, int)
        for action in scene.actions:
            busy[int(action.start_s) : int(action.end_s) + 1] += action.kind not in ("enter", "leave")
        shares.append(float((busy == 0).mean()))
        longest.append(max(len(run) for run in "".join("0" if b else "1" for b in busy).split("0")))
    assert 0.3 < np.mean(shares) < 0.85
    assert np.median(longest) >= 60


def test_words_kept_for_later_splits_are_not_shown() -> None:
    for split in ("train", "validation"):
        for seed in range(40):
            scene = random_scene(CAMERA_KINDS[seed % 5], seed, 90.0, split, events_per_minute=4.0)
            actors = {actor.actor_id: actor for actor in scene.actors}
            for action in scene.actions:
                actor = actors[action.actor_id]
                look = actor.attributes
                colour = look.get("shirt", look.get("colour"))
                if colour:
                    assert is_allowed(split, actor.kind, colour, action.kind), action
            for actor in scene.actors:
                if isinstance(actor, Person):
                    assert is_allowed(split, "shirt", actor.shirt, "trousers", actor.trousers)
    assert {first_split("a", str(n)) for n in range(50)} == {"train", "validation", "test"}


def test_training_shows_every_colour_doing_most_things() -> None:
    """What is kept for the test is a pair here and there, not a colour or an action."""
    worn: Counter[tuple[str, str]] = Counter()
    for seed in range(60):
        scene = random_scene(CAMERA_KINDS[seed % 5], seed, 300.0, "train", events_per_minute=4.0)
        people = {actor.actor_id: actor.shirt for actor in scene.actors if isinstance(actor, Person)}
        worn.update((people[a.actor_id], a.kind) for a in scene.actions if a.actor_id in people)
    for shirt in SHIRTS:
        does = {action for colour, action in worn if colour == shirt}
        assert {"enter", "walk", "leave"} <= does and len(does & set(PERSON_ACTIONS)) >= 5, (shirt, does)
        assert worn[shirt, "enter"] > 0.5 * sum(worn[other, "enter"] for other in SHIRTS) / len(SHIRTS)
    for action in PERSON_ACTIONS:
        assert len({colour for colour, done in worn if done == action}) >= 5, action


@pytest.mark.parametrize("kind", CAMERA_KINDS)
def test_labelled_actions_are_seen_in_the_pixels(kind: SceneryKind) -> None:
    """Script and pixels agree: who acts is in the picture then, and pixel facts are never more than the script's."""
    scene = random_scene(kind, 11, 60.0, events_per_minute=5.0, size=SIZE, start=datetime(2026, 6, 1, 12))
    renderer = Renderer(scene)
    times = np.arange(0.0, 60.0, 1.5)
    owners = [renderer.moment(t, i).actors_HW for i, t in enumerate(times.tolist())]
    facts = facts_of(scene, watch_pixels(times.tolist(), 1.5, owners, len(scene.actors)))
    assert facts.events
    for event in facts.events:
        number = [actor.actor_id for actor in scene.actors].index(event.object_id) + 1
        seen = [(o == number).sum() for t, o in zip(times, owners, strict=True) if event.start_s <= t < event.end_s]
        assert max(seen) > 5
    scripted = {(a.kind, a.actor_id) for a in scene.actions}
    assert {(event.kind, event.object_id) for event in facts.events} <= scripted


def test_a_dropped_bag_lies_where_it_was_put_until_it_is_picked_up() -> None:
    found = 0
    for seed in range(60):
        scene = random_scene("shop", seed, 90.0, events_per_minute=5.0, size=SIZE)
        for number, bag in enumerate(scene.actors, start=1):
            if not isinstance(bag, Bag) or bag.picker_id is None or bag.dropped_s == float("inf"):
                continue
            renderer = Renderer(scene)
            places = [
                np.argwhere(renderer.moment(t, 0).actors_HW == number).mean(axis=0)
                for t in (bag.dropped_s + 1.5, bag.picked_s - 0.5)
                if (renderer.moment(t, 0).actors_HW == number).any()
            ]
            if len(places) == 2:
                assert np.abs(places[0] - places[1]).max() < 4
                assert not (renderer.moment(min(bag.end_s + 0.1, 89.9), 0).actors_HW == number).any()
                found += 1
        if found >= 2:
            break
    assert found >= 2


def test_an_open_door_is_seen_and_shut_again() -> None:
    scenes = (random_scene("street", seed, 60.0) for seed in range(40))
    scene = next(s for s in scenes if any(a.kind == "open" and a.start_s > 2.0 for a in s.actions))
    action = next(a for a in scene.actions if a.kind == "open")
    number = [actor.actor_id for actor in scene.actors].index(action.actor_id) + 1
    renderer = Renderer(scene)
    middle = (action.start_s + action.end_s) / 2
    assert (renderer.moment(middle, 0).actors_HW == number).sum() > 40
    before = renderer.moment(max(0.0, action.start_s - 0.5), 0)
    assert not (before.actors_HW == number).any()


def test_night_is_darker_than_day() -> None:
    levels = [
        Renderer(random_scene("gate", 3, 20.0, layout=2, start=datetime(2026, 5, 1, hour), size=SIZE))
        .moment(1.0, 0)
        .rgb_HW3.mean()
        for hour in (12, 18, 23)
    ]
    assert levels[0] > levels[1] > levels[2] > 25


def test_script_facts_need_no_pixels_and_are_quick() -> None:
    scene = random_scene("gate", 2, 60.0, fps=Fraction(10))
    facts = script_facts(scene, 30.0)
    assert facts.start_s == 30.0 and facts.end_s == 90.0


def test_wrong_requests_are_refused() -> None:
    with pytest.raises(ValueError, match="no camera is a 'roof'"):
        random_scene("roof", 1, 10.0)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="positive"):
        random_scene("gate", 1, 0.0)
