"""Short stories in a random place: somebody passes, runs, falls, drops a bag, a car parks, smoke rises.

Owns who does what, when and where; each episode adds actors and exactly timed actions to a ``Cast``. Colours are drawn
so that no combination of words is shown that is kept for a later split (``splits``).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

import numpy as np

from videoxl2.training.places import Ground, Lane, Place, Portal, Spot
from videoxl2.training.scene import (
    Action,
    Actor,
    Bag,
    Bicycle,
    Colour,
    Dog,
    Doorway,
    Opening,
    Person,
    SceneryKind,
    Smoke,
    Track,
    Vehicle,
)
from videoxl2.training.splits import Split, is_allowed

SHIRTS: tuple[Colour, ...] = ("red", "orange", "yellow", "green", "blue", "purple", "pink", "white", "black")
TROUSERS: tuple[Colour, ...] = ("blue", "black", "grey", "brown", "white", "green")
PAINTS: tuple[Colour, ...] = ("red", "yellow", "green", "blue", "white", "black", "orange")
BAGS: tuple[Colour, ...] = ("red", "yellow", "green", "blue", "orange", "black")
COATS: tuple[Colour, ...] = ("brown", "black", "white")

_SKINS = ((226, 184, 156), (206, 158, 126), (164, 116, 84), (112, 76, 54))
_HAIRS: tuple[Colour, ...] = ("black", "brown", "grey", "yellow")
_WALK_MPS = (1.05, 1.6)
_RUN_MPS = (3.3, 4.2)
_DOOR_BEFORE_S, _DOOR_AFTER_S = 0.9, 1.3
_INDOOR_RUN: frozenset[SceneryKind] = frozenset({"corridor", "shop", "parking"})


@dataclass
class Cast:
    """Everything that happens in one scene, while it is being invented."""

    place: Place
    split: Split
    duration_s: float
    is_dark: bool
    rng: np.random.Generator
    actors: list[Actor] = field(default_factory=list)
    actions: list[Action] = field(default_factory=list)
    openings: list[Opening] = field(default_factory=list)
    door_times: dict[str, list[tuple[float, float]]] = field(default_factory=dict)
    _busy_until: dict[str, float] = field(default_factory=dict)
    _number: int = 0

    # --- drawing --------------------------------------------------------------------------------------------------

    def uniform(self, low: float, high: float) -> float:
        return float(self.rng.uniform(low, high))

    def chance(self, probability: float) -> bool:
        return bool(self.rng.random() < probability)

    def new_id(self, noun: str) -> str:
        self._number += 1
        return f"{noun}-{self._number}"

    def colour(self, options: Sequence[Colour], kind: str, actions: Sequence[str]) -> Colour:
        """A colour in which this split may show the kind doing all the actions."""
        allowed = [c for c in options if all(is_allowed(self.split, kind, c, action) for action in actions)]
        return allowed[int(self.rng.integers(len(allowed)))]

    def person(self, track: Track, actions: Sequence[str]) -> Person:
        shirt = self.colour(SHIRTS, "person", actions)
        below = [c for c in TROUSERS if c != shirt and is_allowed(self.split, "shirt", shirt, "trousers", c)]
        return Person(
            self.new_id("person"),
            track,
            shirt,
            below[int(self.rng.integers(len(below)))],
            hair=_HAIRS[int(self.rng.integers(len(_HAIRS)))],
            skin=_SKINS[int(self.rng.integers(len(_SKINS)))],
            height_m=self.uniform(1.66, 1.88),
        )

    def portal(self, band: int | None = None, other_than: Portal | None = None) -> Portal:
        """Somewhere to come from or go to, in a band if there is one."""
        options = [p for p in self.place.portals if p is not other_than]
        in_band = [p for p in options if band is None or p.band == band]
        options = in_band or options
        return options[int(self.rng.integers(len(options)))]

    def spot(self, band: int, near: float | None = None) -> Spot:
        options = [spot for spot in self.place.spots if spot.band == band]
        if near is not None:
            options = sorted(options, key=lambda spot: abs(spot.x - near))[:3]
        return options[int(self.rng.integers(len(options)))]

    def is_free(self, name: str, start_s: float, end_s: float) -> bool:
        """Reserve a lane, bay or door; False when it is taken."""
        if self._busy_until.get(name, -math.inf) > start_s:
            return False
        self._busy_until[name] = end_s
        return True

    # --- adding ---------------------------------------------------------------------------------------------------

    def add(self, actor: Actor, *actions: Action) -> None:
        self.actors.append(actor)
        self.actions.extend(actions)

    def use_door(self, portal: Portal, t: float) -> None:
        """Open the portal's door, if it has one, for somebody who passes it about ``t``."""
        if portal.door is not None:
            self.door_times.setdefault(portal.door, []).append((t - _DOOR_BEFORE_S, t + _DOOR_AFTER_S))

    def close_doors(self) -> None:
        """Turn the collected times into one actor per door."""
        for name, times in sorted(self.door_times.items()):
            merged: list[tuple[float, float]] = []
            for start, end in sorted(times):
                if merged and start <= merged[-1][1] + 0.3:
                    merged[-1] = (merged[-1][0], max(end, merged[-1][1]))
                else:
                    merged.append((start, end))
            ends = self.place.door(name).ends
            x, z = (ends[0][0] + ends[1][0]) / 2, (ends[0][1] + ends[1][1]) / 2
            track = Track(((merged[0][0], x, z), (merged[-1][1], x, z)))
            self.actors.append(Doorway(name, track, ends, tuple(merged)))


@dataclass(frozen=True)
class Walk:
    """A timed way: the track's waypoints, when the walker is inside the picture, and when each stop begins and ends."""

    points: tuple[tuple[float, float, float], ...]
    inside_s: float
    outward_s: float
    stops: tuple[tuple[float, float], ...]

    @property
    def end_s(self) -> float:
        return self.points[-1][0]

    def track(self, smooth_s: float = 0.5) -> Track:
        return Track(self.points, smooth_s)


def walk(
    cast: Cast, t: float, speed: float, start: Portal, end: Portal, stops: Sequence[tuple[Ground, float]] = ()
) -> Walk:
    """The way from a portal over stops ``((x, z), seconds)`` to another portal, from ``t`` on; opens its doors."""
    points = [(t, *start.outside)]
    held: list[tuple[float, float]] = []

    def go(x: float, z: float) -> float:
        now, at_x, at_z = points[-1]
        arrival = now + max(math.hypot(x - at_x, z - at_z) / speed, 0.2)
        points.append((arrival, x, z))
        return arrival

    inside_s = go(*start.inside)
    cast.use_door(start, (t + inside_s) / 2)
    for (x, z), pause_s in stops:
        arrival = go(x, z)
        if pause_s > 0:
            points.append((arrival + pause_s, x, z))
            held.append((arrival, arrival + pause_s))
    outward_s = go(*end.inside)
    gone_s = go(*end.outside)
    cast.use_door(end, (outward_s + gone_s) / 2)
    return Walk(tuple(points), inside_s, outward_s, tuple(held))


def _come_and_go(person: Person, way: Walk) -> list[Action]:
    return [
        Action("enter", person.actor_id, way.points[0][0], way.inside_s),
        Action("leave", person.actor_id, way.outward_s, way.end_s),
    ]


def _ends(cast: Cast) -> tuple[Portal, Portal]:
    start = cast.portal()
    band = start.band if cast.chance(0.9) else None
    return start, cast.portal(band, start)


def _lingering(kind: str, seconds: tuple[float, float]) -> Callable[[Cast, float], float]:
    """Somebody comes, stands at one place for a while and goes."""

    def episode(cast: Cast, t: float) -> float:
        start, end = _ends(cast)
        spot = cast.spot(start.band)
        way = walk(cast, t, cast.uniform(*_WALK_MPS), start, end, [((spot.x, spot.z), cast.uniform(*seconds))])
        person = cast.person(way.track(), (kind, "walk"))
        held = way.stops[0]
        cast.add(person, *_come_and_go(person, way), Action(kind, person.actor_id, *held))
        return way.end_s

    return episode


def pass_by(cast: Cast, t: float) -> float:
    start, end = _ends(cast)
    way = walk(cast, t, cast.uniform(*_WALK_MPS), start, end)
    person = cast.person(way.track(), ("walk",))
    cast.add(person, *_come_and_go(person, way), Action("walk", person.actor_id, t, way.end_s))
    if cast.chance(0.25):
        cast.add(Bag(cast.new_id("bag"), person.actor_id, cast.colour(BAGS, "bag", ("carry",)), end_s=way.end_s))
    return way.end_s


def run_through(cast: Cast, t: float) -> float:
    start, end = _ends(cast)
    way = walk(cast, t, cast.uniform(*_RUN_MPS), start, end)
    person = cast.person(way.track(0.3), ("run",))
    is_anomaly = cast.place.kind in _INDOOR_RUN
    run = Action("run", person.actor_id, t, way.end_s, is_anomaly=is_anomaly)
    cast.add(person, *_come_and_go(person, way), run)
    return way.end_s


def loiter(cast: Cast, t: float) -> float:
    """Somebody wanders between a few places for most of a minute."""
    start, end = _ends(cast)
    stops: list[tuple[Ground, float]] = []
    for _ in range(int(cast.rng.integers(3, 5))):
        spot = cast.spot(start.band, stops[-1][0][0] if stops else None)
        place = (spot.x + cast.uniform(-0.4, 0.4), spot.z)
        stops.append((place, cast.uniform(3.0, 8.0)))
    way = walk(cast, t, cast.uniform(0.7, 1.1), start, end, stops)
    person = cast.person(way.track(), ("loiter",))
    act = Action("loiter", person.actor_id, way.stops[0][0], way.stops[-1][1], is_anomaly=True)
    cast.add(person, *_come_and_go(person, way), act)
    return way.end_s


def fall(cast: Cast, t: float) -> float:
    start, end = _ends(cast)
    spot, lying = cast.spot(start.band), cast.uniform(5.0, 14.0)
    way = walk(cast, t, cast.uniform(*_WALK_MPS), start, end, [((spot.x, spot.z), lying)])
    person = replace(cast.person(way.track(), ("fall", "walk")), falls=way.stops)
    act = Action("fall", person.actor_id, *way.stops[0], is_anomaly=True)
    cast.add(person, *_come_and_go(person, way), act)
    return way.end_s


def drop_bag(cast: Cast, t: float) -> float:
    """Somebody puts a bag down and goes; in half of the cases it is picked up later, by the same or another."""
    start, end = _ends(cast)
    spot = cast.spot(start.band)
    way = walk(cast, t, cast.uniform(*_WALK_MPS), start, end, [((spot.x, spot.z), cast.uniform(2.0, 3.5))])
    person = cast.person(way.track(), ("drop", "walk"))
    stop = way.stops[0]
    dropped_s = (stop[0] + stop[1]) / 2
    colour = cast.colour(BAGS, "bag", ("carry", "drop", "pick"))
    bag = Bag(cast.new_id("bag"), person.actor_id, colour, dropped_s=dropped_s)
    picker: tuple[Person, Walk] | None = None
    last_s = way.end_s
    if cast.chance(0.5):
        start, end = _ends(cast)
        at = cast.uniform(stop[1] + 3.0, stop[1] + 25.0)
        # The hand is beside the body: stand so that the bag is at the feet.
        back = walk(cast, at, cast.uniform(*_WALK_MPS), start, end, [((spot.x + 0.25, spot.z), cast.uniform(1.6, 2.6))])
        other = cast.person(back.track(), ("pick", "walk"))
        picker = other, back
        picked_s = (back.stops[0][0] + back.stops[0][1]) / 2
        bag = replace(bag, picked_s=picked_s, picker_id=other.actor_id, end_s=back.end_s)
        last_s = max(last_s, back.end_s)
    drop = Action("drop", person.actor_id, *stop, object_id=bag.actor_id, is_anomaly=picker is None)
    cast.add(person, *_come_and_go(person, way), drop)
    cast.add(bag)
    if picker is not None:
        other, back = picker
        pick = Action("pick", other.actor_id, *back.stops[0], object_id=bag.actor_id)
        cast.add(other, *_come_and_go(other, back), pick)
    return last_s


def meet(cast: Cast, t: float) -> float:
    """Two come, stand face to face, and go."""
    first_in, first_out = _ends(cast)
    second_in = cast.portal(first_in.band, first_in)
    second_out = cast.portal(first_in.band, first_out)
    spot, talk, gap = cast.spot(first_in.band), cast.uniform(5.0, 12.0), 0.45
    speeds = cast.uniform(*_WALK_MPS), cast.uniform(*_WALK_MPS)
    ways: list[Walk] = []
    probes = [
        walk(replace(cast, door_times={}), 0.0, speed, portal, portal, [((spot.x, spot.z), 1.0)]).stops[0][0]
        for speed, portal in zip(speeds, (first_in, second_in), strict=True)
    ]
    arrival = t + max(probes)
    sides = (-gap, gap) if first_in.outside[0] < second_in.outside[0] else (gap, -gap)
    for speed, probe, come, go, side in zip(
        speeds, probes, (first_in, second_in), (first_out, second_out), sides, strict=True
    ):
        ways.append(walk(cast, arrival - probe, speed, come, go, [((spot.x + side, spot.z), talk)]))
    people = [cast.person(way.track(), ("meet", "walk")) for way in ways]
    both = max(way.stops[0][0] for way in ways), min(way.stops[0][1] for way in ways)
    act = Action("meet", people[0].actor_id, *both, object_id=people[1].actor_id)
    cast.add(people[0], *_come_and_go(people[0], ways[0]), act)
    cast.add(people[1], *_come_and_go(people[1], ways[1]))
    return max(way.end_s for way in ways)


def _along(points: Sequence[Ground], t: float, speed: float) -> tuple[tuple[float, float, float], ...]:
    timed = [(t, *points[0])]
    for x, z in points[1:]:
        now, at_x, at_z = timed[-1]
        timed.append((now + math.hypot(x - at_x, z - at_z) / speed, x, z))
    return tuple(timed)


def _lane(cast: Cast) -> tuple[Lane, int]:
    number = int(cast.rng.integers(len(cast.place.lanes)))
    return cast.place.lanes[number], number


def _body(cast: Cast) -> Literal["car", "van"]:
    return "van" if cast.chance(0.3) else "car"


def drive(cast: Cast, t: float) -> float:
    lane, number = _lane(cast)
    is_wrong = lane.has_arrows and cast.chance(0.18)
    way = list(lane.way)
    # The gate has no allowed direction: half of the vehicles come in, half go out.
    if is_wrong or (not lane.has_arrows and cast.chance(0.5)):
        way.reverse()
    points = _along(way, t, cast.uniform(3.2, 5.0))
    end_s = points[-1][0]
    if not cast.is_free(f"lane-{number}", t, end_s):
        return t
    body, kind = _body(cast), "wrong_way" if is_wrong else "drive"
    lights = ((t, end_s),) if cast.is_dark else ()
    smooth = 1.3 if len(points) > 2 else 0.5
    vehicle = Vehicle(cast.new_id(body), Track(points, smooth), body, cast.colour(PAINTS, body, (kind,)), lights=lights)
    cast.add(vehicle, Action(kind, vehicle.actor_id, t, end_s, is_anomaly=is_wrong))
    if cast.place.barrier is not None:
        near = min(points, key=lambda point: math.hypot(point[1], point[2] - cast.place.wall_z))
        cast.openings.append(Opening("barrier", (near[0] - 3.5, near[0] + 4.5)))
    return end_s


def park(cast: Cast, t: float) -> float:
    """A car turns from the aisle into a free bay; its driver walks away."""
    free = [i for i, _ in enumerate(cast.place.bays) if f"bay-{i}" not in cast._busy_until]
    free = [i for i in free if abs(cast.place.bays[i][0]) < 5.5]
    if not free:
        return drive(cast, t)
    bay = free[int(cast.rng.integers(len(free)))]
    x, z = cast.place.bays[bay]
    lane = cast.place.lanes[0]
    before = -math.copysign(3.0, lane.end[0] - lane.start[0])
    points = _along([lane.start, (x + before, lane.start[1]), (x, z - 3.0), (x, z)], t, cast.uniform(2.6, 3.6))
    parked_s = points[-1][0]
    if not cast.is_free("lane-0", t, parked_s):
        return t
    cast.is_free(f"bay-{bay}", t, math.inf)
    body = _body(cast)
    track = Track((*points, (parked_s + 0.6, x, z)), 1.2, is_parked_after=True)
    lights = ((t, parked_s + 2.0),) if cast.is_dark else ()
    vehicle = Vehicle(cast.new_id(body), track, body, cast.colour(PAINTS, body, ("park", "drive")), lights=lights)
    cast.add(vehicle, Action("park", vehicle.actor_id, points[1][0], parked_s))
    if cast.chance(0.6):
        beside = (x + 1.35, z - 0.4)
        end = cast.portal(1)
        way = walk(cast, parked_s + 2.0, cast.uniform(*_WALK_MPS), Portal(1, beside, (x + 1.35, z - 3.2)), end)
        driver = cast.person(way.track(), ("walk",))
        cast.add(driver, Action("walk", driver.actor_id, way.points[0][0], way.end_s))
        return way.end_s
    return parked_s + 2.0


def ride(cast: Cast, t: float) -> float:
    lane, number = _lane(cast)
    shift = 1.1 if lane.has_arrows else 0.0
    points = _along([(x, z - shift) for x, z in lane.way], t, cast.uniform(2.6, 3.8))
    if not cast.is_free(f"lane-{number}", t, points[-1][0]):
        return t
    shirt = cast.colour(SHIRTS, "bicycle", ("ride",))
    trousers: Colour = "black" if shirt != "black" else "blue"
    bicycle = Bicycle(cast.new_id("bicycle"), Track(points, 0.8), shirt, trousers)
    cast.add(bicycle, Action("ride", bicycle.actor_id, t, points[-1][0]))
    if cast.place.barrier is not None:
        cast.openings.append(Opening("barrier", (points[2][0] - 2.0, points[-2][0] + 2.0)))
    return points[-1][0]


def dog(cast: Cast, t: float) -> float:
    """A dog crosses, alone and fast or beside somebody."""
    start, end = _ends(cast)
    is_alone = cast.chance(0.5)
    speed = cast.uniform(2.8, 3.8) if is_alone else cast.uniform(1.1, 1.4)
    way = walk(cast, t, speed, start, end)
    kind = "run" if is_alone else "walk"
    if not is_alone:
        person = cast.person(way.track(), ("walk",))
        cast.add(person, *_come_and_go(person, way), Action("walk", person.actor_id, t, way.end_s))
    beside = tuple((when, x + (0.0 if is_alone else 0.75), z - (0.0 if is_alone else 0.2)) for when, x, z in way.points)
    animal = Dog(cast.new_id("dog"), Track(beside), cast.colour(COATS, "dog", (kind,)))
    cast.add(animal, Action(kind, animal.actor_id, t, way.end_s))
    return way.end_s


def door_left_open(cast: Cast, t: float) -> float:
    """Somebody comes through a door that then stays open for a long time."""
    with_door = [p for p in cast.place.portals if p.door is not None]
    portal = with_door[int(cast.rng.integers(len(with_door)))]
    assert portal.door is not None
    way = walk(cast, t, cast.uniform(*_WALK_MPS), portal, cast.portal(portal.band, portal))
    closed_s = min(way.inside_s + cast.uniform(12.0, 35.0), cast.duration_s)
    person = cast.person(way.track(), ("walk",))
    cast.add(person, *_come_and_go(person, way), Action("walk", person.actor_id, t, way.end_s))
    cast.door_times.setdefault(portal.door, []).append((t, closed_s))
    cast.actions.append(Action("open", portal.door, t, closed_s, is_anomaly=True))
    return max(way.end_s, closed_s)


def smoke(cast: Cast, t: float) -> float:
    spots = cast.place.spots
    spot = spots[int(cast.rng.integers(len(spots)))]
    end_s = t + cast.uniform(12.0, 28.0)
    x, z = spot.x, spot.z + 0.2
    actor = Smoke(cast.new_id("smoke"), Track(((t, x, z), (end_s, x, z))))
    cast.add(actor, Action("smoke", actor.actor_id, t, end_s, is_anomaly=True))
    return end_s


stop = _lingering("stop", (4.0, 9.0))

Episode = Callable[[Cast, float], float]
_COMMON: tuple[tuple[Episode, float], ...] = (
    (pass_by, 5.0),
    (stop, 2.0),
    (run_through, 2.0),
    (loiter, 1.2),
    (fall, 1.4),
    (drop_bag, 2.2),
    (meet, 1.8),
    (smoke, 0.9),
)
_OUTDOOR: tuple[tuple[Episode, float], ...] = (*_COMMON, (drive, 5.0), (ride, 2.2), (dog, 2.0))
EPISODES: dict[SceneryKind, tuple[tuple[Episode, float], ...]] = {
    "street": (*_OUTDOOR, (door_left_open, 1.2)),
    "parking": (*_OUTDOOR, (park, 3.0), (door_left_open, 1.0)),
    "gate": _OUTDOOR,
    "corridor": (*_COMMON, (door_left_open, 1.5)),
    "shop": (*_COMMON, (door_left_open, 1.3)),
}


def parked_cars(cast: Cast) -> None:
    """Cars that stand in the bays from the beginning; a few of them drive off."""
    for number, (x, z) in enumerate(cast.place.bays):
        if not cast.chance(0.4):
            continue
        cast.is_free(f"bay-{number}", 0.0, math.inf)
        body = _body(cast)
        heading = math.pi / 2 if cast.chance(0.6) else -math.pi / 2
        leaves_s = cast.uniform(10.0, 600.0) if heading < 0 and cast.chance(0.4) else math.inf
        if leaves_s < cast.duration_s - 14.0 and cast.is_free("lane-0", leaves_s, leaves_s + 11.0):
            lane = cast.place.lanes[0]
            beyond = math.copysign(3.0, lane.end[0] - lane.start[0])
            turn = [(x, z), (x, z - 2.6), (x + beyond, lane.start[1]), lane.end]
            track = Track(_along(turn, leaves_s, 3.0), 1.2, is_parked_before=True, first_heading=heading)
            lights = ((leaves_s - 2.0, track.end_s),) if cast.is_dark else ()
            vehicle = Vehicle(cast.new_id(body), track, body, cast.colour(PAINTS, body, ("drive",)), lights=lights)
            cast.add(vehicle, Action("drive", vehicle.actor_id, leaves_s, track.end_s))
        else:
            track = Track(((0.0, x, z),), is_parked_before=True, is_parked_after=True, first_heading=heading)
            cast.add(Vehicle(cast.new_id(body), track, body, cast.colour(PAINTS, body, ("stand",))))
