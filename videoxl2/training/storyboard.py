"""The stories of the demo: three cameras, one minute each, and seeded passers-by for every further minute.

Owns who does what, when and where. The facts of the first minute are fixed (``vxl demo`` asks about them); the seed
changes textures, noise, hair and skin, and everything after the first minute.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from datetime import datetime
from fractions import Fraction

import numpy as np

from videoxl2.training.scene import (
    COLOURS,
    Action,
    Actor,
    Bag,
    Camera,
    Colour,
    Dog,
    Opening,
    Person,
    Scene,
    Track,
    Vehicle,
)
from videoxl2.training.scenery import CORRIDOR_HALF_WIDTH, GATE_WALL_Z, PARKED, bay_centre

STORY_S = 60.0

DEMO_CAMERAS: dict[str, Camera] = {
    "gate": Camera("gate", "gate", 640, 360, Fraction(15), 660.0, 58.0, 5.2),
    "parking": Camera("parking", "parking", 768, 432, Fraction(25, 2), 780.0, 44.0, 7.4),
    "corridor": Camera("corridor", "corridor", 480, 270, Fraction(10), 330.0, 66.0, 2.6),
}
_STARTS = {
    "gate": datetime(2026, 3, 1, 8, 0, 0),
    "corridor": datetime(2026, 3, 1, 12, 15, 0),
    "parking": datetime(2026, 3, 1, 22, 30, 0),
}
_SKINS = ((226, 184, 156), (206, 158, 126), (164, 116, 84), (112, 76, 54))
_HAIRS: tuple[Colour, ...] = ("black", "brown", "grey", "yellow")

Story = tuple[list[Actor], list[Action], list[Opening]]


def demo_scene(camera_name: str, seed: int, duration_s: float = STORY_S) -> Scene:
    """The demo scene of one camera. Stories later than ``duration_s`` are cut; later minutes get seeded passers-by."""
    camera = DEMO_CAMERAS.get(camera_name)
    if camera is None:
        raise ValueError(f"no demo camera is called {camera_name!r}; there are {', '.join(DEMO_CAMERAS)}")
    if duration_s <= 0:
        raise ValueError(f"duration_s must be positive, not {duration_s}")
    rng = np.random.default_rng([seed, 101, list(DEMO_CAMERAS).index(camera_name)])
    actors, actions, openings = {"gate": _gate, "parking": _parking, "corridor": _corridor}[camera.scenery]()
    actors = [_with_looks(actor, rng) for actor in actors]
    for minute in range(1, math.ceil(duration_s / STORY_S)):
        more = _passer_by(camera, rng, minute)
        actors, actions, openings = actors + more[0], actions + more[1], openings + more[2]
    kept = [action for action in actions if action.start_s < duration_s]
    kept = [replace(action, end_s=min(action.end_s, duration_s)) for action in kept]
    return Scene(camera, _STARTS[camera_name], duration_s, seed, tuple(actors), tuple(kept), tuple(openings))


def _with_looks(actor: Actor, rng: np.random.Generator) -> Actor:
    if not isinstance(actor, Person):
        return actor
    return replace(
        actor,
        skin=_SKINS[rng.integers(len(_SKINS))],
        hair=_HAIRS[rng.integers(len(_HAIRS))],
        height_m=float(rng.uniform(1.68, 1.86)),
    )


def _crossing(z_from: float, t_from: float, z_to: float, t_to: float, z: float) -> float:
    """When a straight walk from one depth to another passes depth ``z``."""
    return t_from + (t_to - t_from) * (z - z_from) / (z_to - z_from)


def _gate() -> Story:
    """A walker comes in, a white van comes in, somebody leaves a bag and goes, a dog crosses."""
    walker = Person(
        "walker",
        Track(
            ((2.0, -11.0, 27.6), (7.5, -2.2, 26.5), (10.8, -2.2, GATE_WALL_Z), (14.5, -2.6, 15.5), (20.0, -11.0, 12.0))
        ),
        "red",
        "blue",
    )
    van = Vehicle(
        "van",
        Track(
            ((20.5, 24.0, 31.2), (24.5, 4.6, 30.8), (26.6, 0.6, 26.5), (29.0, 0.3, 18.5), (33.5, -1.5, 5.0)),
            smooth_s=1.3,
        ),
        "van",
        "white",
    )
    courier = Person(
        "courier",
        Track(
            (
                (35.0, 9.5, 12.6),
                (40.0, 2.9, 14.6),
                (42.0, 2.9, 14.6),
                (46.4, -2.1, 17.9),
                (49.0, -2.2, 21.6),
                (54.5, -9.5, 27.2),
            )
        ),
        "yellow",
        "black",
    )
    bag = Bag("bag", "courier", "green", dropped_s=41.0)
    dog = Dog("dog", Track(((53.0, -12.0, 14.5), (58.5, 11.0, 13.4))), "brown")
    barrier_open = (22.5, 31.0)
    through = _crossing(17.9, 46.4, 21.6, 49.0, GATE_WALL_Z)
    van_through = _crossing(26.5, 26.6, 18.5, 29.0, GATE_WALL_Z)
    actions = [
        Action("enter", "walker", 9.8, 11.8),
        Action("enter", "van", van_through - 1.0, van_through + 1.0),
        Action("drive", "van", 20.5, 31.5),
        Action("drop", "courier", 40.0, 42.0, "bag"),
        Action("leave", "courier", through - 1.0, through + 1.0),
        Action("run", "dog", 53.0, 58.5),
    ]
    return [walker, van, courier, bag, dog], actions, [Opening("barrier", barrier_open)]


def _parking() -> Story:
    """A red car parks and its driver goes; much later somebody runs through while a car's lights flash."""
    bay_x, bay_z = bay_centre(0)
    car = Vehicle(
        "car",
        Track(
            (
                (4.0, -19.0, 20.4),
                (8.8, -4.0, 20.4),
                (11.6, bay_x, 23.4),
                (14.6, bay_x, bay_z - 0.1),
                (15.2, bay_x, bay_z - 0.1),
            ),
            1.4,
            is_parked_after=True,
        ),
        "car",
        "red",
        lights=((0.0, 16.5),),
    )
    driver = Person(
        "driver",
        Track(
            (
                (18.0, bay_x + 1.45, bay_z - 0.4),
                (18.8, bay_x + 1.45, bay_z - 0.8),
                (21.2, bay_x + 1.5, 23.6),
                (30.0, 18.0, 21.2),
            )
        ),
        "green",
        "grey",
    )
    runner = Person(
        "runner",
        Track(((42.0, 17.5, 21.5), (45.0, 5.5, 19.2), (47.8, -7.0, 16.8), (49.4, -15.0, 15.4))),
        "black",
        "black",
        has_hood=True,
    )
    alarm_id = PARKED[3][0]
    alarm_x, alarm_z = bay_centre(PARKED[3][1])
    alarm = Vehicle(
        alarm_id, Track(((0.0, alarm_x, alarm_z),), is_parked_after=True), "car", PARKED[3][3], flashes=((41.0, 53.0),)
    )
    actions = [
        Action("drive", "car", 4.0, 14.6),
        Action("park", "car", 11.6, 15.2),
        Action("leave", "driver", 18.0, 30.0),
        Action("run", "runner", 42.0, 49.4, is_anomaly=True),
        Action("flash", alarm_id, 41.0, 53.0, is_anomaly=True),
    ]
    return [car, driver, runner, alarm], actions, []


def _corridor() -> Story:
    """One walks towards the camera, one goes away with a suitcase, two meet and talk."""
    out = CORRIDOR_HALF_WIDTH + 0.8
    first = Person(
        "first",
        Track(((3.0, 0.2, 24.0), (4.4, 0.2, 21.4), (15.0, -0.5, 6.6), (16.0, -0.9, 5.95), (17.2, -out, 5.95)), 0.4),
        "blue",
        "grey",
    )
    traveller = Person(
        "traveller",
        Track(((22.0, out, 8.95), (23.4, 0.8, 8.95), (24.2, 0.4, 9.6), (33.6, 0.1, 21.4), (35.4, 0.1, 24.0)), 0.4),
        "purple",
        "black",
    )
    suitcase = Bag("suitcase", "traveller", "orange", "suitcase", end_s=35.4)
    host = Person(
        "host",
        Track(
            (
                (44.0, -out, 12.15),
                (45.6, -0.7, 12.15),
                (46.0, -0.45, 12.0),
                (52.0, -0.45, 11.98),
                (52.8, -0.7, 12.15),
                (54.4, -out, 12.15),
            ),
            0.3,
        ),
        "white",
        "blue",
    )
    visitor = Person(
        "visitor",
        Track(((42.4, 0.3, 24.0), (44.0, 0.3, 21.4), (47.4, 0.5, 12.1), (52.0, 0.48, 12.06), (59.2, 0.3, 23.0)), 0.4),
        "green",
        "brown",
    )
    actions = [
        Action("walk", "first", 4.4, 16.0),
        Action("leave", "first", 16.0, 17.2),
        Action("enter", "traveller", 22.0, 23.4),
        Action("leave", "traveller", 33.0, 35.0),
        Action("meet", "host", 47.4, 52.0, "visitor"),
        Action("stop", "visitor", 47.4, 52.0),
    ]
    openings = [
        Opening("end", (2.4, 5.6)),
        Opening("left-near", (14.8, 17.8)),
        Opening("right-middle", (21.4, 24.2)),
        Opening("end", (32.6, 36.0)),
        Opening("end", (41.8, 45.0)),
        Opening("left-far", (43.4, 46.2)),
        Opening("left-far", (52.0, 55.0)),
        Opening("end", (58.0, 60.0)),
    ]
    return [first, traveller, suitcase, host, visitor], actions, openings


_ROUTES: dict[str, tuple[tuple[tuple[float, float, float], ...], ...]] = {
    "gate": (
        ((0.0, -11.0, 13.5), (14.0, 12.0, 14.5)),
        ((0.0, 12.5, 15.5), (15.0, -11.0, 12.5)),
    ),
    "parking": (
        ((0.0, -17.0, 22.5), (24.0, 17.0, 20.0)),
        ((0.0, 18.0, 24.0), (23.0, -15.0, 18.0)),
    ),
    "corridor": (
        (
            (0.0, -CORRIDOR_HALF_WIDTH - 0.8, 5.95),
            (1.6, -0.6, 5.95),
            (12.0, 0.4, 19.0),
            (24.0, -0.3, 5.95),
            (26.0, -CORRIDOR_HALF_WIDTH - 0.8, 5.95),
        ),
    ),
}


def _passer_by(camera: Camera, rng: np.random.Generator, minute: int) -> Story:
    """Somebody in random colours who crosses the picture during one minute; one minute in three stays empty."""
    if rng.random() < 1 / 3:
        return [], [], []
    routes: Sequence[tuple[tuple[float, float, float], ...]] = _ROUTES[camera.scenery]
    route = routes[int(rng.integers(len(routes)))]
    start = minute * STORY_S + float(rng.uniform(2.0, 30.0))
    names: list[Colour] = [name for name in COLOURS if name != "silver"]
    shirt, trousers = rng.choice(len(names), 2, replace=False)
    track = Track(tuple((start + t, x, z) for t, x, z in route))
    person = Person(f"passer-{minute}", track, names[shirt], names[trousers])
    openings: list[Opening] = []
    if camera.scenery == "corridor":
        ends = (track.start_s, track.end_s - 2.0)
        openings = [Opening("left-near", (end - 0.6, end + 2.6)) for end in ends]
    return [_with_looks(person, rng)], [Action("walk", person.actor_id, track.start_s, track.end_s)], openings
