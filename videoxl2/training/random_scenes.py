"""Random scenes: a seeded place, its light and weather, and what happens there.

Owns the timetable. Surveillance is mostly still: events come at random moments, with a quiet stretch now and then, and
every episode ends before the scene does.
"""

from __future__ import annotations

from dataclasses import replace
from datetime import datetime, timedelta
from fractions import Fraction
from typing import get_args

import numpy as np

from videoxl2.training.conditions import Conditions, light_of_hour, random_conditions
from videoxl2.training.episodes import EPISODES, Cast, parked_cars
from videoxl2.training.places import Place, random_place
from videoxl2.training.scene import Scene, SceneryKind
from videoxl2.training.splits import Split, scene_seed

CAMERA_KINDS: tuple[SceneryKind, ...] = get_args(SceneryKind)
EVENTS_PER_MINUTE = 2.0
_MAX_ACTORS = 240
_MAX_AT_ONCE, _CROWDED_SHARE = 3, 0.3
"""How many episodes may run at once: three, or as many as this share of those that begin in a minute."""
_DAY_SPREAD_DAYS = 300


def random_scene(
    camera_kind: SceneryKind,
    seed: int,
    duration_s: float,
    split: Split = "train",
    *,
    events_per_minute: float = EVENTS_PER_MINUTE,
    layout: int | None = None,
    start: datetime | None = None,
    conditions: Conditions | None = None,
    camera_name: str | None = None,
    size: tuple[int, int] = (480, 270),
    fps: Fraction = Fraction(10),
) -> Scene:
    """A scene of one kind of camera; the same arguments give the same scene.

    ``layout`` fixes the place among those of the split, ``start`` the wall-clock time (which decides the light) and
    ``size`` the picture's width and height in pixels. Raises ValueError for an unknown kind or a negative length.
    """
    if camera_kind not in CAMERA_KINDS:
        raise ValueError(f"no camera is a {camera_kind!r}; there are {', '.join(CAMERA_KINDS)}")
    if duration_s <= 0:
        raise ValueError(f"duration_s must be positive, not {duration_s}")
    rng = np.random.default_rng(scene_seed(split, camera_kind, seed))
    number = int(rng.integers(1 << 30))
    place = random_place(camera_kind, split, number if layout is None else layout)
    drawn = datetime(2026, 1, 1) + timedelta(seconds=int(rng.integers(_DAY_SPREAD_DAYS * 86_400)))
    moment = drawn if start is None else start
    light = random_conditions(camera_kind, moment, rng)
    light = light if conditions is None else conditions
    camera = place.camera(camera_name or camera_kind, *size, fps)
    cast = _story(place, split, duration_s, light.light != "day", rng, events_per_minute)
    kept = tuple(replace(action, end_s=min(action.end_s, duration_s)) for action in cast.actions)
    return Scene(
        camera,
        moment,
        duration_s,
        int(rng.integers(2**31)),
        tuple(cast.actors),
        tuple(sorted(kept, key=lambda action: action.start_s)),
        tuple(cast.openings),
        place,
        light,
    )


def _story(
    place: Place, split: Split, duration_s: float, is_dark: bool, rng: np.random.Generator, events_per_minute: float
) -> Cast:
    """Episodes at random moments; one that would not end in time, or that crowds the picture, is left out."""
    cast = Cast(place, split, duration_s, is_dark, rng)
    parked_cars(cast)
    options, most_at_once = EPISODES[place.kind], max(_MAX_AT_ONCE, round(_CROWDED_SHARE * events_per_minute))
    shares = np.asarray([share for _, share in options])
    shares /= shares.sum()
    gap_s = 60.0 / events_per_minute
    t, running = float(rng.uniform(0.0, min(gap_s, duration_s / 3))), list[float]()
    while t < duration_s and len(cast.actors) < _MAX_ACTORS:
        running = [end for end in running if end > t]
        episode = options[int(rng.choice(len(options), p=shares))][0]
        before = _snapshot(cast)
        if len(running) < most_at_once:
            end_s = episode(cast, t)
            if end_s > duration_s:
                _restore(cast, before)
            else:
                running.append(end_s)
        t += float(rng.exponential(gap_s))
        if rng.random() < 0.08:
            t += float(rng.uniform(1.0, 3.0)) * gap_s
    cast.close_doors()
    return cast


def light_name(scene: Scene) -> str:
    """The word for a scene's light: of its conditions, or of its clock."""
    return scene.conditions.light if scene.conditions is not None else light_of_hour(scene.start.hour)


_Snapshot = tuple[int, int, int, dict[str, int]]


def _snapshot(cast: Cast) -> _Snapshot:
    doors = {name: len(times) for name, times in cast.door_times.items()}
    return len(cast.actors), len(cast.actions), len(cast.openings), doors


def _restore(cast: Cast, before: _Snapshot) -> None:
    """Forget what was added since the snapshot."""
    actors, actions, openings, doors = before
    del cast.actors[actors:], cast.actions[actions:], cast.openings[openings:]
    cast.door_times = {name: times[: doors[name]] for name, times in cast.door_times.items() if name in doors}
