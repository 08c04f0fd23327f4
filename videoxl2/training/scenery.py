"""The unmoving part of each camera's picture: surfaces, walls, lamps, depth of what may hide an actor, and doors.

Owns what a place looks like. ``build_scenery`` is called once for a scene; the renderer then only multiplies,
copies and draws over its arrays. Every pixel's surface is found by casting its ray into a few planes, so textures
have the right perspective; boxes (booth, pillars, parked cars) are drawn over it with their own depth.

Dimensions: H rows, W columns.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import numpy as np

from videoxl2.training.painter import Floats, Painter, Texture, add_glow, brick, prop, shade, softened, stamp
from videoxl2.training.scene import Camera, Colour, Pose, Track, Vehicle
from videoxl2.training.sprites import draw_vehicle, vehicle_footprint


@dataclass(frozen=True)
class Door:
    """How the picture differs inside a box while an opening is open: colours and depth."""

    left: int
    top: int
    rgb_HW3: Floats
    depth_HW: Floats


@dataclass(frozen=True)
class Scenery:
    """A lit background and what the renderer needs to place actors in it.

    ``depth_HW`` is the distance of walls and props in metres, infinite where nothing hides an actor (ground, sky).
    ``light_at`` gives the light falling on an actor at a ground point, per colour channel. ``sun`` is the direction of
    shadows on the ground in metres per metre of height, or None for soft contact shadows only. ``haze_at`` is the share
    of ``haze_rgb`` that fog mixes into an actor at a distance.
    """

    rgb_HW3: Floats
    depth_HW: Floats
    light_at: Callable[[float, float], tuple[float, float, float]]
    sun: tuple[float, float] | None
    noise_sigma: float
    doors: Mapping[str, Door] = field(default_factory=dict)
    parked: Mapping[str, tuple[Vehicle, Pose]] = field(default_factory=dict)
    haze_at: Callable[[float], float] | None = None
    haze_rgb: tuple[float, float, float] = (0.0, 0.0, 0.0)


def build_scenery(camera: Camera, seed: int) -> Scenery:
    """The scenery of ``camera.scenery``; the same seed gives the same pixels."""
    rng = np.random.default_rng([seed, 7001])
    return {"gate": _gate, "parking": _parking, "corridor": _corridor}[camera.scenery](camera, rng)


# --- gate: daylight, a drive through a brick wall -----------------------------------------------------------------

GATE_WALL_Z = 21.0
GATE_HALF_WIDTH = 3.3


def _gate(camera: Camera, rng: np.random.Generator) -> Scenery:
    texture, painter = Texture(rng), Painter.of(camera)
    below, x, z = painter.ground()
    haze = np.clip((z - 20) / 160, 0, 0.55)

    sky = np.clip((painter.dy * camera.focal_px) / max(camera.horizon_px, 1), 0, 1)
    clouds = np.clip(
        texture(painter.dx + 3, painter.dy * 3, 0.12) + texture(painter.dx, painter.dy * 3, 0.05) * 0.5, 0, 1
    )
    painter.rgb[:] = np.asarray((206, 216, 226), np.float32) - sky[..., None] * np.asarray((70, 46, 18), np.float32)
    painter.rgb += clouds[..., None] * 20
    # A row of trees and two roofs on the horizon.
    along = painter.dx * 100
    leaves = np.sqrt(np.abs(texture(along, along * 0, 1.3))) * 0.010 + 0.004 * np.abs(
        texture(along, along * 0 + 4, 0.4)
    )
    crown = 0.006 + leaves + 0.022 * np.clip(texture(along, along * 0 + 9, 11.0) + 0.35, 0, 1)
    trees = (painter.dy > -0.002) & (painter.dy < crown)
    painter.paint(trees, (74, 96, 72), 1.0 + 0.25 * texture(along, painter.dy * 300, 0.7))

    tone = 1 + 0.10 * texture(x, z, 0.9) + 0.06 * texture(x, z, 0.18)
    painter.paint(below, (106, 128, 74), tone + 0.08 * texture(x, z, 4.0))  # grass
    street = below & (z > 28) & (z < 37)
    painter.paint(street, (104, 106, 110), 1 + 0.05 * texture(x, z, 1.5))
    painter.paint(below & ((np.abs(z - 28.3) < 0.3) | (np.abs(z - 36.7) < 0.3)), (172, 172, 168))
    painter.paint(street & (np.abs(z - 32.5) < 0.12) & ((x % 6) < 3), (222, 222, 214))
    hedge = (painter.dy * 48 + camera.height_m > 0) & (
        painter.dy * 48 + camera.height_m < 1.5 + 0.2 * texture(painter.dx * 48, z * 0, 0.8)
    )
    painter.paint(hedge, (70, 96, 58), 1 + 0.2 * texture(painter.dx * 48, painter.dy * 48, 0.35))
    drive = below & (np.abs(x) < GATE_HALF_WIDTH + 0.1) & (z < 28)
    apron = below & (z < 17.5) & (np.abs(x - 1) < 40)
    slab = ((x % 1.2) < 0.04) | ((z % 1.2) < 0.05)
    yard = 1 + 0.06 * texture(x, z, 0.6) + 0.05 * texture(x, z, 3.0)
    painter.paint(apron, (154, 150, 142), np.where(slab, 0.86, yard))
    painter.paint(drive, (96, 98, 102), 1 + 0.07 * texture(x, z, 0.5) + 0.06 * texture(x, z, 2.5))
    painter.paint(drive & (np.abs(np.abs(x) - GATE_HALF_WIDTH) < 0.09), (206, 202, 190), yard)
    painter.paint(drive & (np.abs(z - 19.0) < 0.2), (226, 226, 220), yard)  # stop line
    painter.rgb[below] = (painter.rgb * (1 - haze[..., None]) + haze[..., None] * np.asarray((196, 204, 208)))[below]

    wall_up = camera.height_m + painter.dy * GATE_WALL_Z
    wall_x = painter.dx * GATE_WALL_Z
    wall = (wall_up >= 0) & (wall_up < 2.5) & (np.abs(wall_x) > GATE_HALF_WIDTH + 0.3)
    painter.paint(wall, (150, 92, 72), brick(texture, wall_x, wall_up))
    painter.paint(wall & (wall_up > 2.36), (188, 182, 172))
    painter.depth[wall] = GATE_WALL_Z

    rgb, depth = painter.finished()
    shade(rgb, camera, [(-14, 20.9, 0), (-3.6, 20.9, 0), (-3.6, 19.2, 0), (-14, 19.2, 0)], 0.42)
    shade(rgb, camera, [(3.6, 20.9, 0), (14, 20.9, 0), (14, 19.2, 0), (3.6, 19.2, 0)], 0.42)
    for side in (-1, 1):
        place = side * (GATE_HALF_WIDTH + 0.45)
        stamp(
            rgb, depth, prop(camera, place, GATE_WALL_Z - 0.1, 0.7, 0.7, 0.0, 2.95, (172, 162, 148)), GATE_WALL_Z - 0.3
        )
        stamp(
            rgb, depth, prop(camera, place, GATE_WALL_Z - 0.1, 0.9, 0.9, 2.95, 3.1, (196, 190, 178)), GATE_WALL_Z - 0.3
        )
    shade(rgb, camera, [(5.0, 17.6, 0), (8.4, 17.6, 0), (7.2, 14.8, 0), (3.8, 14.8, 0)], 0.4)
    stamp(rgb, depth, prop(camera, 6.9, 18.3, 2.6, 2.2, 0.0, 2.5, (204, 200, 188)), 17.2)  # gatehouse
    stamp(rgb, depth, prop(camera, 6.9, 18.3, 3.0, 2.6, 2.5, 2.66, (92, 98, 104)), 17.0)
    stamp(rgb, depth, prop(camera, 6.9, 17.18, 1.9, 0.02, 1.05, 2.1, (66, 82, 96)), 17.1)
    stamp(rgb, depth, prop(camera, 5.58, 18.3, 0.02, 1.5, 1.05, 2.1, (74, 90, 104)), 17.15)
    stamp(
        rgb, depth, prop(camera, GATE_HALF_WIDTH + 0.75, 17.9, 0.45, 0.45, 0.0, 1.05, (196, 60, 44)), 17.7
    )  # barrier's box
    return Scenery(rgb, depth, lambda _x, _z: (1.0, 0.99, 0.96), (-0.55, -0.35), 2.2)


# --- parking: a lot at night under lamps --------------------------------------------------------------------------

BAY_WIDTH = 2.9
BAY_FRONT_Z = 26.0
BAY_DEPTH = 5.6
_LAMPS = ((-13.0, 33.0, 1.25), (1.0, 33.0, 1.35), (15.0, 33.0, 1.25), (-7.0, 15.0, 0.8), (9.0, 15.0, 0.85))
_NIGHT = np.asarray((0.17, 0.19, 0.25), np.float32)
_LAMPLIGHT = np.asarray((0.80, 0.76, 0.66), np.float32)
PARKED: tuple[tuple[str, int, str, Colour], ...] = (
    ("parked-0", -4, "car", "grey"),
    ("parked-1", -3, "car", "silver"),
    ("parked-2", -1, "van", "white"),
    ("parked-3", 3, "car", "black"),
    ("parked-4", 4, "car", "silver"),
)


def bay_centre(index: int) -> tuple[float, float]:
    """Centre of a parking bay on the ground: bay 0 lies right of the middle."""
    return (index + 0.5) * BAY_WIDTH, BAY_FRONT_Z + BAY_DEPTH / 2


def _lamp_light(x: Floats | float, z: Floats | float) -> Floats:
    """Light on the ground at (x, z), one value per colour channel in a last axis."""
    total = np.zeros(np.broadcast(x, z).shape, np.float32)
    for lamp_x, lamp_z, power in _LAMPS:
        distance = ((np.asarray(x) - lamp_x) ** 2 + (np.asarray(z) - lamp_z) ** 2) / 8.5**2
        total += np.float32(power) / (1 + distance) ** 1.35
    return np.asarray(_NIGHT + np.minimum(total, 1.25)[..., None] * _LAMPLIGHT, np.float32)


def _parking(camera: Camera, rng: np.random.Generator) -> Scenery:
    texture, painter = Texture(rng), Painter.of(camera)
    below, x, z = painter.ground()
    painter.rgb[:] = np.asarray((20, 24, 38), np.float32) + np.clip(0.05 - painter.dy, 0, 0.05)[..., None] * 300

    tone = 1 + 0.09 * texture(x, z, 0.25) + 0.08 * texture(x, z, 1.2) + 0.08 * texture(x, z, 6.0)
    painter.paint(below, (104, 104, 108), tone)
    stain = np.clip(texture(x * 0.7 + 31, z, 1.4) - 0.75, 0, 1)
    painter.rgb[below] *= (1 - 0.5 * stain)[below][..., None]
    row_end = BAY_FRONT_Z + BAY_DEPTH
    wear = 1 + 0.18 * texture(x, z, 0.3)
    for front, back in ((BAY_FRONT_Z, row_end), (9.0, 14.6)):
        in_row = below & (z > front) & (z < back)
        line = np.abs(((x + BAY_WIDTH / 2) % BAY_WIDTH) - BAY_WIDTH / 2) < 0.075
        painter.paint(in_row & line & (np.abs(x) < 5.02 * BAY_WIDTH), (206, 206, 198), wear)
    painter.paint(below & (np.abs(z - row_end) < 0.07) & (np.abs(x) < 5.02 * BAY_WIDTH), (206, 206, 198), wear)
    for centre in (-9.0, 0.0, 9.0):  # arrows on the aisle
        shaft = (np.abs(z - 20.3) < 0.13) & (x > centre - 1.4) & (x < centre + 0.5)
        head = (x >= centre + 0.5) & (x < centre + 1.4) & (np.abs(z - 20.3) < 0.55 * (centre + 1.4 - x) / 0.9)
        painter.paint(below & (shaft | head), (196, 196, 188), wear)
    painter.paint(below & (z > row_end + 0.8), (150, 148, 142), tone)  # pavement
    painter.paint(below & (z > row_end + 2.6), (66, 86, 54), tone + 0.1 * texture(x, z, 0.4))
    painter.rgb[below] *= _lamp_light(x, z)[below]

    wall_z = 42.0
    up, along = camera.height_m + painter.dy * wall_z, painter.dx * wall_z
    wall = (up >= 0) & (up < 11.0)
    glow = _lamp_light(along, np.full_like(along, 36.0)) * np.clip(1.0 - up / 13.0, 0.25, 1)[..., None] * 0.62
    painter.paint(wall, (142, 126, 112), brick(texture, along, up))
    painter.rgb[wall] *= glow[wall]
    cell_x, cell_up = along % 4.2, up % 3.4
    pane = wall & (cell_x > 1.2) & (cell_x < 3.0) & (cell_up > 1.1) & (cell_up < 2.6)
    lit = texture(np.floor(along / 4.2) * 5.7, np.floor(up / 3.4) * 3.3, 1.0) > 0.55
    painter.paint(pane, (34, 40, 54))
    painter.paint(pane & lit, (222, 186, 118), 1 - 0.16 * (cell_up - 1.1))
    frame = pane & ((np.abs(cell_x - 2.1) < 0.05) | (np.abs(cell_up - 1.85) < 0.05))
    painter.paint(frame, (60, 58, 56))
    painter.depth[wall] = wall_z

    rgb, depth = painter.finished()
    parked: dict[str, tuple[Vehicle, Pose]] = {}
    for name, bay, body, colour in PARKED:
        bay_x, bay_z = bay_centre(bay)
        vehicle = Vehicle(
            name, Track(((0.0, bay_x, bay_z),), is_parked_after=True), "van" if body == "van" else "car", colour
        )
        pose = Pose(bay_x, bay_z, -math.pi / 2 if bay % 2 else math.pi / 2, 0.0, 0.0)
        corners = [(float(px), float(pz), 0.0) for px, _, pz in vehicle_footprint(vehicle, pose)]
        shade(rgb, camera, corners, 0.6, 0.5)
        red, green, blue = _lamp_light(bay_x, bay_z)
        stamp(rgb, depth, draw_vehicle(camera, vehicle, pose), bay_z - 1.0, (red, green, blue))
        parked[name] = (vehicle, pose)
    for lamp_x, lamp_z, _ in _LAMPS[:3]:
        stamp(
            rgb, depth, prop(camera, lamp_x, lamp_z + 0.3, 0.16, 0.16, 0.0, 7.2, (88, 90, 94)), lamp_z, (0.8, 0.8, 0.8)
        )
        head = camera.project(np.asarray([lamp_x, 7.25, lamp_z]))
        add_glow(rgb, float(head[0]), float(head[1]), camera.pixels_per_metre(lamp_z) * 0.32, (255, 244, 214), 1.0)
        add_glow(rgb, float(head[0]), float(head[1]), camera.pixels_per_metre(lamp_z) * 1.7, (255, 236, 196), 0.22)

    def light_at(x: float, z: float) -> tuple[float, float, float]:
        red, green, blue = (_lamp_light(x, z) + 0.06).tolist()
        return red, green, blue

    return Scenery(rgb, depth, light_at, None, 3.2, parked=parked)


# --- corridor: indoor, doors on both sides ------------------------------------------------------------------------

CORRIDOR_HALF_WIDTH = 1.7
CORRIDOR_LENGTH = 22.0
_CEILING = 3.1
_DOOR_HEIGHT = 2.12
# name -> (side, near z, far z); side 0 is the door at the end, then the numbers are x
CORRIDOR_DOORS: Mapping[str, tuple[int, float, float]] = {
    "left-near": (-1, 5.4, 6.5),
    "left-far": (-1, 11.6, 12.7),
    "right-middle": (1, 8.4, 9.5),
    "end": (0, -0.6, 0.6),
}


def _corridor(camera: Camera, rng: np.random.Generator) -> Scenery:
    texture = Texture(rng)
    shut, depth = _corridor_view(camera, texture, frozenset())
    doors: dict[str, Door] = {}
    for name in CORRIDOR_DOORS:
        open_rgb, open_depth = _corridor_view(camera, texture, frozenset({name}))
        changed = (np.abs(open_rgb - shut).max(axis=2) > 0.5) | (open_depth != depth)
        rows, columns = np.flatnonzero(changed.any(axis=1)), np.flatnonzero(changed.any(axis=0))
        if rows.size:
            area = np.s_[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
            doors[name] = Door(int(columns[0]), int(rows[0]), open_rgb[area].copy(), open_depth[area].copy())

    def light_at(x: float, z: float) -> tuple[float, float, float]:
        level = 0.80 + 0.16 * math.cos(math.tau * (z - 3.0) / 4.0) * (1 if z < CORRIDOR_LENGTH else 0)
        return level, level * 0.99, level * 0.95

    return Scenery(shut, depth, light_at, None, 1.8, doors=doors)


def _corridor_view(camera: Camera, texture: Texture, open_doors: frozenset[str]) -> tuple[Floats, Floats]:
    """The corridor's picture and depth with the named doors open."""
    painter = Painter.of(camera)
    dx, dy, half, h = painter.dx, painter.dy, CORRIDOR_HALF_WIDTH, camera.height_m
    to_side = half / np.maximum(np.abs(dx), 1e-6)
    to_floor = np.where(dy < 0, h / np.maximum(-dy, 1e-6), 1e6)
    to_ceiling = np.where(dy > 0, (_CEILING - h) / np.maximum(dy, 1e-6), 1e6)
    z = np.minimum(np.minimum(to_side, to_floor), np.minimum(to_ceiling, CORRIDOR_LENGTH)).astype(np.float32)
    x, up = (dx * z).astype(np.float32), (h + dy * z).astype(np.float32)
    is_floor, is_ceiling, is_end = z == to_floor, z == to_ceiling, z == np.float32(CORRIDOR_LENGTH)
    is_wall = ~(is_floor | is_ceiling | is_end)
    lamps = 0.84 + 0.16 * np.cos(np.float32(math.tau) * (z - 3.0) / 4.0)
    lamps = lamps * np.clip(1.04 - 0.012 * z, 0.6, 1.1)

    tile = ((x % 0.6) < 0.02) | ((z % 0.6) < 0.03)
    checker = ((np.floor(x / 0.6) + np.floor(z / 0.6)) % 2) * 0.05
    painter.paint(is_floor, (146, 142, 134), np.where(tile, 0.8, 0.97 + checker + 0.05 * texture(x, z, 0.35)) * lamps)
    painter.paint(is_ceiling, (206, 206, 202), np.where(((x % 0.85) < 0.03) | ((z % 0.6) < 0.03), 0.88, 1.0) * lamps)
    panel = is_ceiling & (np.abs(x) < 0.42) & (np.abs(((z - 1.0) % 4.0) - 2.0) < 0.6)
    painter.paint(panel, (255, 255, 250), 1.0)
    plaster = 1 + 0.03 * texture(z * 1.1 + x, up, 0.5) + 0.03 * texture(z + 40, up, 2.5)
    painter.paint(is_wall, (204, 200, 186), plaster * lamps * np.where(dx < 0, 0.97, 0.91))
    painter.paint(is_wall & (up < 1.0), (124, 142, 150), plaster * lamps * np.where(dx < 0, 0.97, 0.9))
    painter.paint((is_wall | is_end) & (up < 0.12), (70, 74, 78), lamps)
    painter.paint(is_wall & (np.abs(up - 1.02) < 0.035), (96, 100, 102), lamps)
    painter.paint(is_end & (up >= 0.12), (196, 192, 180), 0.86)
    painter.rgb[is_floor] += (
        16 * (np.clip(1 - np.abs(x) / 0.7, 0, 1) * np.clip(lamps - 0.8, 0, 1) * 4)[is_floor][..., None]
    )
    painter.depth[is_wall] = z[is_wall]
    painter.depth[is_end] = CORRIDOR_LENGTH
    painter.depth[is_ceiling] = z[is_ceiling]

    for name, (side, low, high) in CORRIDOR_DOORS.items():
        across = x if side == 0 else z
        surface = is_end if side == 0 else (is_wall & (np.sign(dx) == side))
        frame = surface & (across > low - 0.09) & (across < high + 0.09) & (up < _DOOR_HEIGHT + 0.09) & (up > 0)
        leaf = surface & (across > low) & (across < high) & (up < _DOOR_HEIGHT) & (up > 0)
        painter.paint(frame, (92, 84, 74), lamps)
        if name in open_doors:
            painter.paint(leaf, (64, 62, 58), 0.75 + 0.35 * up / _DOOR_HEIGHT)
            painter.depth[leaf] = np.inf
            continue
        grain = 1 + 0.06 * texture(across * 6, up, 0.5)
        painter.paint(leaf, (142, 104, 68) if side else (104, 122, 132), grain * lamps * (0.95 if side <= 0 else 0.88))
        knob = leaf & (np.abs(across - (low + 0.12)) < 0.05) & (np.abs(up - 1.03) < 0.05)
        painter.paint(knob, (210, 206, 190))
        if side == 0:
            pane = leaf & (np.abs(across - (low + high) / 2) < 0.22) & (up > 1.2) & (up < 1.9)
            painter.paint(pane, (176, 196, 206))
    sign = is_end & (np.abs(x) < 0.36) & (np.abs(up - 2.42) < 0.13)
    painter.paint(sign, (32, 142, 84))
    painter.paint(sign & (np.abs(up - 2.42) < 0.05) & (np.abs(x) < 0.24), (232, 244, 236))
    poster = is_wall & (dx > 0) & (z > 5.2) & (z < 6.3) & (up > 1.25) & (up < 2.05)
    painter.paint(poster, (232, 228, 214), lamps)
    painter.paint(poster & (z > 5.35) & (z < 6.15) & (up > 1.5) & (up < 1.92), (92, 132, 160), lamps)
    return softened(painter)
