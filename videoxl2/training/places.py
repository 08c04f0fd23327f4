"""Random places: the geometry of a fixed camera's view, drawn from a layout seed.

Owns where the ground, walls, doors, lanes and standing places are, and which materials they have; ``backdrops`` paints
them and ``episodes`` lets people use them. Lengths are metres in the world of ``scene``; ``focal_h`` and ``horizon_h``
are shares of the picture's height, so that a place can be seen by cameras of any size.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from fractions import Fraction
from functools import lru_cache

import numpy as np

from videoxl2.training.scene import Camera, SceneryKind
from videoxl2.training.splits import Split, layout_seed
from videoxl2.training.sprites import RGB

Ground = tuple[float, float]

# Half the width of the widest picture (16:9) in heights, and what an actor needs beyond the edge to be out of sight.
_HALF_ASPECT = 8 / 9
_PERSON_MARGIN_M = 0.7
VEHICLE_MARGIN_M = 3.2


@dataclass(frozen=True)
class DoorSpot:
    """A door that can open: the corners ``(x, z)`` of its opening on the ground, the hinge first."""

    name: str
    ends: tuple[Ground, Ground]


@dataclass(frozen=True)
class Portal:
    """Where people come into view: a point out of sight, one in sight, and the door between them, if any.

    People who keep to one ``band`` (a pavement, an aisle) cross no road.
    """

    band: int
    outside: Ground
    inside: Ground
    door: str | None = None


@dataclass(frozen=True)
class Spot:
    """A place in sight where somebody may stand."""

    band: int
    x: float
    z: float


@dataclass(frozen=True)
class Lane:
    """The way of vehicles in the allowed direction, from out of sight to out of sight.

    ``has_arrows``: the direction is painted on the ground, so that the wrong way can be seen.
    """

    way: tuple[Ground, ...]
    has_arrows: bool

    @property
    def start(self) -> Ground:
        return self.way[0]

    @property
    def end(self) -> Ground:
        return self.way[-1]


@dataclass(frozen=True)
class Box:
    """An unmoving prop; ``z`` is its middle."""

    x: float
    z: float
    length: float
    depth: float
    low: float
    high: float
    colour: RGB


@dataclass(frozen=True, eq=False)
class Place:
    """One layout of one kind of camera. Compared by identity: ``random_place`` gives the same object again."""

    kind: SceneryKind
    layout_id: str
    texture_seed: int
    focal_h: float
    horizon_h: float
    height_m: float
    wall_z: float
    half_width: float
    materials: Mapping[str, RGB]
    portals: tuple[Portal, ...]
    spots: tuple[Spot, ...]
    lanes: tuple[Lane, ...] = ()
    doors: tuple[DoorSpot, ...] = ()
    bays: tuple[Ground, ...] = ()
    lamps: tuple[tuple[float, float, float], ...] = ()
    boxes: tuple[Box, ...] = field(default_factory=tuple)
    barrier: tuple[float, float, float] | None = None

    def camera(self, name: str, width: int, height: int, fps: Fraction) -> Camera:
        """A camera of any size that sees this place."""
        return Camera(
            name, self.kind, width, height, fps, self.focal_h * height, self.horizon_h * height, self.height_m
        )

    def edge_x(self, z: float, margin_m: float = _PERSON_MARGIN_M) -> float:
        """Distance from the middle at which an actor at ``z`` is out of the widest picture."""
        return z * _HALF_ASPECT / self.focal_h + margin_m

    def door(self, name: str) -> DoorSpot:
        return next(door for door in self.doors if door.name == name)


@lru_cache(maxsize=512)
def random_place(kind: SceneryKind, split: Split, number: int) -> Place:
    """Layout ``number`` of a split (modulo the number of its layouts)."""
    seed = layout_seed(split, kind, number)
    rng = np.random.default_rng(seed)
    makers = {"street": _street, "parking": _parking, "gate": _gate, "corridor": _corridor, "shop": _shop}
    return makers[kind](rng, f"{kind}-{split}-{seed[-1]}", int(rng.integers(2**31)))


_WALLS: tuple[RGB, ...] = (
    (150, 92, 72),
    (176, 164, 146),
    (132, 124, 118),
    (190, 184, 170),
    (122, 132, 140),
    (168, 148, 118),
    (146, 154, 138),
)
_GROUNDS: tuple[RGB, ...] = ((154, 150, 142), (138, 138, 136), (168, 158, 144), (126, 130, 134))
_ROADS: tuple[RGB, ...] = ((96, 98, 102), (84, 86, 92), (110, 108, 106))
_DOORS: tuple[RGB, ...] = ((112, 84, 58), (84, 100, 112), (142, 104, 68), (94, 78, 72), (74, 92, 84))


def _pick(rng: np.random.Generator, options: tuple[RGB, ...]) -> RGB:
    return options[int(rng.integers(len(options)))]


def _between(rng: np.random.Generator, low: float, high: float) -> float:
    return float(rng.uniform(low, high))


def _edges(band: int, z_low: float, z_high: float, focal_h: float, rng: np.random.Generator) -> list[Portal]:
    """Portals at both edges of the picture for a band of depths."""
    portals = []
    for side in (-1, 1):
        z = _between(rng, z_low, z_high)
        reach = z * _HALF_ASPECT / focal_h
        portals.append(Portal(band, (side * (reach + _PERSON_MARGIN_M), z), (side * (reach - 1.0), z)))
    return portals


def _wall_door(name: str, x: float, wall_z: float, width: float = 1.15) -> DoorSpot:
    return DoorSpot(name, ((x - width / 2, wall_z), (x + width / 2, wall_z)))


def _through(band: int, door: DoorSpot) -> Portal:
    """The portal of a door in a back wall (ends at one z) or a side wall (ends at one x)."""
    (x0, z0), (x1, z1) = door.ends
    x, z = (x0 + x1) / 2, (z0 + z1) / 2
    if z0 == z1:
        return Portal(band, (x, z + 1.0), (x, z - 0.8), door.name)
    side = 1.0 if x > 0 else -1.0
    return Portal(band, (x + side * 0.9, z), (x - side * 0.6, z), door.name)


def _grid(
    rng: np.random.Generator, band: int, xs: tuple[float, float], zs: tuple[float, float], count: int
) -> list[Spot]:
    """Standing places spread over a rectangle."""
    step = (xs[1] - xs[0]) / count
    return [Spot(band, xs[0] + (i + _between(rng, 0.25, 0.75)) * step, _between(rng, *zs)) for i in range(count)]


def _street(rng: np.random.Generator, layout_id: str, texture_seed: int) -> Place:
    """Two pavements and a road across the picture, houses with a door behind; traffic keeps to the right."""
    focal, near, road = _between(rng, 1.5, 1.75), _between(rng, 7.8, 8.6), _between(rng, 4.8, 5.4)
    kerb = near + 1.3
    far = kerb + road
    wall = far + 2.3
    reach = far * _HALF_ASPECT / focal
    doors = tuple(
        _wall_door(f"door-{i}", x, wall) for i, x in enumerate((_between(rng, -6, -3), _between(rng, 2.5, 6)))
    )
    portals = [*_edges(0, near, kerb - 0.5, focal, rng), *_edges(1, far + 0.6, wall - 0.8, focal, rng)]
    portals += [_through(1, door) for door in doors]
    spots = _grid(rng, 0, (-3.2, 3.2), (near, kerb - 0.4), 4) + _grid(rng, 1, (-5.8, 5.8), (far + 0.6, wall - 0.9), 4)
    lane_z = (kerb + road * 0.27, kerb + road * 0.75)
    edge = [z * _HALF_ASPECT / focal + VEHICLE_MARGIN_M for z in lane_z]
    lanes = (
        Lane(((-edge[0], lane_z[0]), (edge[0], lane_z[0])), True),
        Lane(((edge[1], lane_z[1]), (-edge[1], lane_z[1])), True),
    )
    posts = [_between(rng, -0.75, -0.3) * reach, _between(rng, 0.3, 0.75) * reach]
    boxes = [Box(x, far + 0.35, 0.14, 0.14, 0.0, 6.5, (86, 88, 92)) for x in posts]
    if rng.random() < 0.5:
        boxes.append(Box(_between(rng, -2, 2), wall - 0.4, 1.5, 0.5, 0.0, 0.8, (104, 92, 78)))
    return Place(
        "street",
        layout_id,
        texture_seed,
        focal,
        _between(rng, 0.12, 0.2),
        _between(rng, 3.2, 3.6),
        wall,
        0.0,
        {
            "road": _pick(rng, _ROADS),
            "pavement": _pick(rng, _GROUNDS),
            "wall": _pick(rng, _WALLS),
            "wall2": _pick(rng, _WALLS),
            "door": _pick(rng, _DOORS),
        },
        tuple(portals),
        tuple(spots),
        lanes,
        doors,
        lamps=(*((x, far, 1.1) for x in posts), (_between(rng, -2, 2), near - 1.5, 1.0)),
        boxes=tuple(boxes),
    )


def _parking(rng: np.random.Generator, layout_id: str, texture_seed: int) -> Place:
    """A one-way aisle with painted arrows between a footpath and a row of bays; a building with a door behind."""
    focal, near, aisle = _between(rng, 1.5, 1.7), _between(rng, 9.0, 9.8), _between(rng, 3.6, 4.2)
    front = near + 0.9 + aisle
    wall = front + 5.2 + _between(rng, 2.0, 3.0)
    bay, shift = _between(rng, 2.7, 3.0), _between(rng, -1.2, 1.2)
    bays = tuple(((i + 0.5) * bay + shift, front + 2.6) for i in range(-4, 4))
    direction = 1 if rng.random() < 0.5 else -1
    z = near + 0.9 + aisle / 2
    edge = z * _HALF_ASPECT / focal + VEHICLE_MARGIN_M
    doors = (_wall_door("door-0", _between(rng, -5, 5), wall),)
    portals = [*_edges(0, near - 0.5, near + 0.3, focal, rng), *_edges(1, front - 1.0, front - 0.4, focal, rng)]
    portals.append(_through(1, doors[0]))
    spots = _grid(rng, 0, (-4.0, 4.0), (near - 0.5, near + 0.5), 4) + _grid(
        rng, 1, (-6, 6), (front - 0.9, front - 0.3), 3
    )
    posts = (-5.5 + shift, 5.5 + shift)
    return Place(
        "parking",
        layout_id,
        texture_seed,
        focal,
        _between(rng, 0.08, 0.14),
        _between(rng, 3.9, 4.3),
        wall,
        0.0,
        {
            "road": _pick(rng, _ROADS),
            "pavement": _pick(rng, _GROUNDS),
            "wall": _pick(rng, _WALLS),
            "door": _pick(rng, _DOORS),
        },
        tuple(portals),
        tuple(spots),
        (Lane(((-direction * edge, z), (direction * edge, z)), True),),
        doors,
        bays,
        (*((x, front + 5.4, 1.2) for x in posts), (0.0, near, 0.9)),
        tuple(Box(x, front + 5.6, 0.15, 0.15, 0.0, 6.0, (88, 90, 94)) for x in posts),
    )


def _gate(rng: np.random.Generator, layout_id: str, texture_seed: int) -> Place:
    """A drive through a wall with a barrier and a booth; a street behind the wall."""
    focal, wall, half = _between(rng, 1.35, 1.55), _between(rng, 14.0, 16.0), _between(rng, 2.6, 3.1)
    side = 1.0 if rng.random() < 0.5 else -1.0
    beyond = wall + 8.0
    edge = beyond * _HALF_ASPECT / focal + VEHICLE_MARGIN_M
    portals = [*_edges(0, 7.8, 9.6, focal, rng)]
    walk_x = -side * (half - 0.6)
    street_x = -side * (beyond * _HALF_ASPECT / focal)
    portals.append(Portal(0, (street_x - side * _PERSON_MARGIN_M, beyond - 2.2), (walk_x, wall - 0.6)))
    spots = _grid(rng, 0, (-4.6, 4.6), (8.2, 11.8), 6)
    out_z = _between(rng, 9.4, 10.2)
    out_x = -side * (out_z * _HALF_ASPECT / focal + VEHICLE_MARGIN_M)
    turns = ((side * 4.0, beyond), (0.0, beyond - 3.5), (0.0, wall - 2.5), (-side * 2.2, out_z))
    lane = Lane(((side * edge, beyond), *turns, (out_x, out_z)), False)
    booth_x = side * (half + 2.4)
    booth = _pick(rng, ((204, 200, 188), (176, 182, 186), (188, 172, 150)))
    boxes = (
        Box(half + 0.4, wall - 0.1, 0.6, 0.6, 0.0, 2.7, (172, 162, 148)),
        Box(-half - 0.4, wall - 0.1, 0.6, 0.6, 0.0, 2.7, (172, 162, 148)),
        Box(booth_x, wall - 2.6, 2.1, 1.8, 0.0, 2.4, booth),
        Box(booth_x, wall - 2.6, 2.4, 2.1, 2.4, 2.55, (92, 98, 104)),
        Box(booth_x, wall - 3.52, 1.5, 0.02, 1.05, 2.0, (66, 82, 96)),
        Box(side * (half + 0.65), wall - 3.2, 0.4, 0.4, 0.0, 1.05, (104, 106, 110)),
    )
    return Place(
        "gate",
        layout_id,
        texture_seed,
        focal,
        _between(rng, 0.12, 0.2),
        _between(rng, 4.0, 4.8),
        wall,
        half,
        {
            "road": _pick(rng, _ROADS),
            "pavement": _pick(rng, _GROUNDS),
            "wall": _pick(rng, _WALLS),
            "grass": _pick(rng, ((106, 128, 74), (122, 124, 84), (92, 116, 78))),
        },
        tuple(portals),
        tuple(spots),
        (lane,),
        lamps=((side * (half + 1.2), wall - 3.0, 1.2), (-side * 4.0, 9.0, 1.0), (0.0, wall + 6, 0.8)),
        boxes=boxes,
        barrier=(side * (half + 0.65), wall - 3.4, 2 * half - 0.2),
    )


def _corridor(rng: np.random.Generator, layout_id: str, texture_seed: int) -> Place:
    """A corridor along the view with doors at the sides and at its end."""
    half, length = _between(rng, 1.6, 2.3), _between(rng, 14.0, 18.0)
    doors, low = [_wall_door("end", 0.0, length, 1.2)], _between(rng, 5.0, 6.0)
    sides = [-1.0, 1.0, -1.0] if rng.random() < 0.5 else [1.0, -1.0, 1.0]
    for index, side in enumerate(sides):
        doors.append(DoorSpot(f"door-{index}", ((side * half, low + 1.1), (side * half, low))))
        low += _between(rng, 2.4, 3.0)
    portals = [_through(0, door) for door in doors]
    portals.append(Portal(0, (_between(rng, -0.5, 0.5), 0.8), (_between(rng, -0.5, 0.5), 5.0)))
    spots = [Spot(0, _between(rng, -0.6, 0.6) * half, 5.5 + i * 1.4) for i in range(5)]
    return Place(
        "corridor",
        layout_id,
        texture_seed,
        _between(rng, 1.1, 1.35),
        _between(rng, 0.2, 0.3),
        _between(rng, 2.45, 2.7),
        length,
        half,
        {
            "floor": _pick(rng, ((146, 142, 134), (122, 128, 134), (158, 144, 122), (112, 116, 110))),
            "wall": _pick(rng, ((204, 200, 186), (190, 198, 204), (206, 196, 176), (186, 196, 184))),
            "dado": _pick(rng, ((124, 142, 150), (150, 134, 116), (128, 144, 126), (176, 174, 168))),
            "door": _pick(rng, _DOORS),
            "end": _pick(rng, _DOORS),
        },
        tuple(portals),
        tuple(spots),
        doors=tuple(doors),
    )


def _shop(rng: np.random.Generator, layout_id: str, texture_seed: int) -> Place:
    """A sales floor: shelves along the back wall, a counter at one side, low shelves in the middle, a door."""
    focal, wall = _between(rng, 1.15, 1.3), _between(rng, 11.5, 13.0)
    side = 1.0 if rng.random() < 0.5 else -1.0
    door = _wall_door("door-0", side * _between(rng, 1.5, 4.5), wall, 1.25)
    portals = [*_edges(0, 6.6, 7.6, focal, rng), *_edges(0, wall - 2.4, wall - 1.3, focal, rng), _through(0, door)]
    spots = _grid(rng, 0, (-3.4, 3.4), (6.4, 7.4), 4) + _grid(rng, 0, (-5.0, 5.0), (wall - 2.2, wall - 1.2), 4)
    wood = _pick(rng, ((150, 122, 90), (126, 128, 132), (170, 158, 138)))
    boxes = (
        Box(-side * _between(rng, 3.6, 4.4), wall - 3.4, 2.6, 0.8, 0.0, 0.62, wood),
        Box(side * _between(rng, 1.2, 2.4), wall - 3.6, 2.4, 0.7, 0.0, 0.5, (148, 150, 150)),
    )
    return Place(
        "shop",
        layout_id,
        texture_seed,
        focal,
        _between(rng, 0.16, 0.24),
        _between(rng, 2.9, 3.3),
        wall,
        0.0,
        {
            "floor": _pick(rng, ((176, 170, 158), (148, 150, 152), (160, 138, 112), (132, 134, 130))),
            "wall": _pick(rng, ((214, 208, 194), (196, 202, 204), (206, 192, 170))),
            "shelf": _pick(rng, ((188, 184, 176), (120, 104, 86), (150, 156, 160))),
            "door": _pick(rng, _DOORS),
        },
        tuple(portals),
        tuple(spots),
        doors=(door,),
        boxes=boxes,
    )
