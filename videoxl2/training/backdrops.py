"""Painted backgrounds of random places, and the same under light and weather.

Owns the look of a ``Place`` without actors. Painting is slow (0.1 to 0.5 s) and cached per place and picture size;
lighting it for one scene is a few milliseconds.

Dimensions: H rows, W columns.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from fractions import Fraction
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from videoxl2.training.conditions import INDOOR_KINDS, Conditions
from videoxl2.training.painter import Floats, Painter, Texture, add_glow, brick, prop, shade, softened, stamp
from videoxl2.training.places import Place
from videoxl2.training.scene import Camera
from videoxl2.training.scenery import Scenery
from videoxl2.training.sprites import RGB

Mask = NDArray[np.bool_]
_DOOR_HEIGHT = 2.1
_LAMPLIGHT = np.asarray((0.62, 0.57, 0.48), np.float32)
_LAMP_REACH_M = 6.0
_CACHED_BACKDROPS = 128


@dataclass(frozen=True)
class Backdrop:
    """A place in even white light: colours, what hides actors, and where every pixel lies (infinite z: sky)."""

    rgb_HW3: Floats
    depth_HW: Floats
    x_HW: Floats
    z_HW: Floats


def lit_scenery(place: Place, camera: Camera, conditions: Conditions) -> Scenery:
    """The place as ``camera`` sees it in ``conditions``."""
    backdrop = _painted(place, camera.width, camera.height)
    gain = np.asarray(conditions.gain, np.float32)

    def light(x: Floats, z: Floats) -> Floats:
        pool = np.zeros(x.shape, np.float32)
        for lamp_x, lamp_z, power in place.lamps:
            distance = ((x - np.float32(lamp_x)) ** 2 + (z - np.float32(lamp_z)) ** 2) / np.float32(_LAMP_REACH_M**2)
            pool += np.float32(power) / (1 + distance)
        return gain + np.minimum(pool, 1.2)[..., None] * _LAMPLIGHT * np.float32(conditions.lamps)

    if conditions.lamps:
        is_sky = np.isinf(backdrop.z_HW)
        rgb = backdrop.rgb_HW3 * light(backdrop.x_HW, np.minimum(backdrop.z_HW, np.float32(200.0)))
        rgb[is_sky] = backdrop.rgb_HW3[is_sky] * gain * np.float32(0.55)
    else:
        rgb = backdrop.rgb_HW3 * gain
    if conditions.fog_per_m and place.kind not in INDOOR_KINDS:
        haze = 1 - np.exp(-np.minimum(backdrop.z_HW, np.float32(120.0)) * np.float32(conditions.fog_per_m))
        rgb += haze[..., None] * (np.asarray(conditions.fog_rgb, np.float32) - rgb)
    if conditions.lamps > 0.5:
        _glowing_lamps(rgb, place, camera)

    def light_at(x: float, z: float) -> tuple[float, float, float]:
        red, green, blue = light(np.asarray(x, np.float32), np.asarray(z, np.float32)).ravel().tolist()
        floor = 0.05
        return red + floor, green + floor, blue + floor

    def haze_at(z: float) -> float:
        return 1 - math.exp(-z * conditions.fog_per_m)

    return Scenery(
        rgb,
        backdrop.depth_HW,
        light_at,
        conditions.sun,
        conditions.noise_sigma,
        haze_at=haze_at if conditions.fog_per_m else None,
        haze_rgb=conditions.fog_rgb,
    )


def _glowing_lamps(rgb: Floats, place: Place, camera: Camera) -> None:
    for box in place.boxes:
        if box.length < 0.2 and box.high > 4:
            column, row = camera.project(np.asarray([box.x, box.high, box.z])).tolist()
            size = camera.pixels_per_metre(box.z)
            add_glow(rgb, column, row, size * 0.25, (255, 244, 214), 1.0)
            add_glow(rgb, column, row, size * 1.3, (255, 236, 196), 0.25)


@lru_cache(maxsize=_CACHED_BACKDROPS)
def _painted(place: Place, width: int, height: int) -> Backdrop:
    return paint(place, place.camera("", width, height, Fraction(1)))


def paint(place: Place, camera: Camera) -> Backdrop:
    """The place painted for one camera, in even light."""
    rng = np.random.default_rng([place.texture_seed, 7])
    texture, painter = Texture(rng), Painter.of(camera)
    painters: dict[str, Callable[[Place, Painter, Texture, np.random.Generator], None]] = {
        "street": _street,
        "parking": _parking,
        "gate": _gate,
        "corridor": _corridor,
        "shop": _shop,
    }
    painters[place.kind](place, painter, texture, rng)
    rgb, depth = softened(painter)
    for box in sorted(place.boxes, key=lambda box: -box.z):
        if box.low == 0.0 and box.length > 0.5:
            half, reach = box.length / 2 + 0.1, box.depth / 2 + 0.15
            corners = [(box.x + a * half, box.z + b * reach, 0.0) for a, b in ((-1, -1), (1, -1), (1, 1), (-1, 1))]
            shade(rgb, camera, corners, 0.35)
        sprite = prop(camera, box.x, box.z, box.length, box.depth, box.low, box.high, box.colour)
        stamp(rgb, depth, sprite, box.z - box.depth / 2)
    column = np.arange(camera.width, dtype=np.float32) + 0.5 - camera.width / 2
    row = camera.horizon_px - (np.arange(camera.height, dtype=np.float32) + 0.5)
    dx, dy = np.meshgrid(column / np.float32(camera.focal_px), row / np.float32(camera.focal_px))
    ground = np.where(dy < -1e-4, camera.height_m / np.maximum(-dy, 1e-4), np.inf)
    z = np.minimum(depth, ground).astype(np.float32)
    return Backdrop(rgb, depth, (dx * np.minimum(z, 500)).astype(np.float32), z)


# --- parts --------------------------------------------------------------------------------------------------------


def _wall(painter: Painter, z: float) -> tuple[Floats, Floats]:
    """Where every pixel's ray meets the plane at ``z``: along and up."""
    return (painter.dx * z).astype(np.float32), (painter.camera.height_m + painter.dy * z).astype(np.float32)


def _paint_door(
    painter: Painter, surface: Mask, across: Floats, up: Floats, ends: tuple[float, float], rgb: RGB
) -> None:
    """A shut door in a surface: frame, leaf with a panel, handle."""
    low, high = min(ends), max(ends)
    frame = surface & (across > low - 0.1) & (across < high + 0.1) & (up < _DOOR_HEIGHT + 0.1) & (up > 0)
    leaf = surface & (across > low) & (across < high) & (up < _DOOR_HEIGHT) & (up > 0)
    painter.paint(frame, (216, 212, 202), 0.92)
    painter.paint(leaf, rgb)
    panel = leaf & (across > low + 0.18) & (across < high - 0.18) & (up > 0.25) & (up < _DOOR_HEIGHT - 0.25)
    painter.paint(panel, rgb, 0.86)
    painter.paint(leaf & (np.abs(across - (high - 0.14)) < 0.05) & (np.abs(up - 1.03) < 0.05), (224, 220, 200))


def _arrow(painter: Painter, below: Mask, x: Floats, z: Floats, at: float, lane_z: float, direction: float) -> None:
    """An arrow on the ground that points along the lane."""
    along, off = (x - np.float32(at)) * np.float32(direction), np.abs(z - np.float32(lane_z))
    shaft = (off < 0.16) & (along > -1.5) & (along < 0.4)
    head = (along >= 0.4) & (along < 1.5) & (off < 0.62 * (1.5 - along) / 1.1)
    painter.paint(below & (shaft | head), (224, 224, 216))


def _facade(
    painter: Painter,
    texture: Texture,
    surface: Mask,
    along: Floats,
    up: Floats,
    rgb: RGB,
    is_brick: bool,
    floor_m: float,
) -> None:
    """A house front with rows of windows above the ground floor."""
    painter.paint(surface, rgb, brick(texture, along, up) if is_brick else 1 + 0.04 * texture(along, up, 0.8))
    cell_x, cell_up = along % 2.6, (up - 3.1) % floor_m
    pane = surface & (up > 3.3) & (cell_x > 0.8) & (cell_x < 1.9) & (cell_up > 0.7) & (cell_up < 2.0)
    painter.paint(pane, (66, 76, 90), 1 + 0.15 * texture(along, up, 1.0))
    painter.paint(surface & (np.abs(up - 3.1) < 0.08), (200, 196, 186), 0.9)


def _street(place: Place, painter: Painter, texture: Texture, rng: np.random.Generator) -> None:
    below, x, z = painter.ground()
    kerb, far = place.lanes[0].start[1], place.lanes[1].start[1]
    road_width = (far - kerb) / 0.48
    low, high = kerb - 0.27 * road_width, kerb + 0.73 * road_width
    slab = ((x % 1.0) < 0.035) | ((z % 1.0) < 0.05)
    tone = np.where(slab, 0.86, 1 + 0.05 * texture(x, z, 0.5) + 0.05 * texture(x, z, 3.0))
    painter.paint(below, place.materials["pavement"], tone)
    road = below & (z > low) & (z < high)
    painter.paint(road, place.materials["road"], 1 + 0.06 * texture(x, z, 0.4) + 0.05 * texture(x, z, 3.0))
    for edge in (low, high):
        painter.paint(below & (np.abs(z - edge) < 0.11), (190, 188, 182))
    middle = (low + high) / 2
    painter.paint(road & (np.abs(z - middle) < 0.08) & ((x % 3) < 1.6), (220, 220, 212))
    for lane in place.lanes:
        direction = 1.0 if lane.end[0] > lane.start[0] else -1.0
        for at in (-7.0, 0.0, 7.0):
            _arrow(painter, below, x, z, at, lane.start[1], direction)
    along, up = _wall(painter, place.wall_z)
    wall = up >= 0
    split = float(rng.uniform(-2.0, 2.0))
    left = along < split
    _facade(painter, texture, wall & left, along, up, place.materials["wall"], rng.random() < 0.5, 2.9)
    _facade(painter, texture, wall & ~left, along, up, place.materials["wall2"], rng.random() < 0.5, 3.2)
    window = wall & (up > 0.7) & (up < 2.5) & ((along + 40) % 5.0 > 1.0) & ((along + 40) % 5.0 < 4.2)
    painter.paint(window, (84, 96, 108), 1 + 0.18 * texture(along, up, 0.9))
    sign = wall & (up > 2.55) & (up < 2.95) & ((along + 40) % 5.0 > 0.8) & ((along + 40) % 5.0 < 4.4)
    painter.paint(sign, ((128, 108, 92), (96, 112, 120), (118, 122, 100))[int(rng.integers(3))])
    for door in place.doors:
        _paint_door(painter, wall, along, up, (door.ends[0][0], door.ends[1][0]), place.materials["door"])
    painter.depth[wall] = place.wall_z


def _parking(place: Place, painter: Painter, texture: Texture, rng: np.random.Generator) -> None:
    below, x, z = painter.ground()
    lane = place.lanes[0]
    front, back = place.bays[0][1] - 2.6, place.bays[0][1] + 2.6
    tone = 1 + 0.07 * texture(x, z, 0.3) + 0.07 * texture(x, z, 2.0)
    painter.paint(below, place.materials["road"], tone)
    half = place.bays[1][0] - place.bays[0][0]
    lines = below & (z > front) & (z < back) & (x > place.bays[0][0] - half) & (x < place.bays[-1][0] + half)
    off = np.abs(((x - np.float32(place.bays[0][0] - half / 2) + half / 2) % half) - half / 2)
    painter.paint(lines & (off < 0.07), (212, 212, 204))
    painter.paint(below & (z > back) & (np.abs(z - back) < 0.12), (190, 188, 182))
    painter.paint(below & (z > back + 0.12), place.materials["pavement"], tone)
    painter.paint(below & (z < lane.start[1] - 2.2), place.materials["pavement"], tone)
    painter.paint(below & (np.abs(z - (lane.start[1] - 2.2)) < 0.07), (190, 188, 182))
    direction = 1.0 if lane.end[0] > lane.start[0] else -1.0
    for at in (-6.0, 0.0, 6.0):
        _arrow(painter, below, x, z, at, lane.start[1], direction)
    along, up = _wall(painter, place.wall_z)
    wall = up >= 0
    _facade(painter, texture, wall, along, up, place.materials["wall"], rng.random() < 0.6, 3.1)
    for door in place.doors:
        _paint_door(painter, wall, along, up, (door.ends[0][0], door.ends[1][0]), place.materials["door"])
    painter.depth[wall] = place.wall_z


def _gate(place: Place, painter: Painter, texture: Texture, rng: np.random.Generator) -> None:
    camera, half, wall_z = painter.camera, place.half_width, place.wall_z
    below, x, z = painter.ground()
    sky = np.clip((painter.dy * camera.focal_px) / max(camera.horizon_px, 1), 0, 1)
    painter.rgb[:] = np.asarray((206, 216, 226), np.float32) - sky[..., None] * np.asarray((60, 40, 14), np.float32)
    along = painter.dx * 100
    crown = 0.012 + 0.02 * np.abs(texture(along, along * 0, 1.3)) + 0.03 * np.clip(texture(along, along * 0, 9.0), 0, 1)
    painter.paint((painter.dy > -0.002) & (painter.dy < crown), (78, 98, 74), 1 + 0.25 * texture(along, sky * 90, 0.7))
    painter.paint(below, place.materials["grass"], 1 + 0.1 * texture(x, z, 0.9) + 0.08 * texture(x, z, 4.0))
    street = below & (z > wall_z + 5.6) & (z < wall_z + 10.5)
    painter.paint(street, place.materials["road"], 1 + 0.05 * texture(x, z, 1.5))
    slab = ((x % 1.2) < 0.04) | ((z % 1.2) < 0.05)
    yard = below & (z < wall_z - 2.0)
    painter.paint(yard, place.materials["pavement"], np.where(slab, 0.87, 1 + 0.06 * texture(x, z, 0.6)))
    drive = below & (np.abs(x) < half) & (z < wall_z + 6)
    painter.paint(drive, place.materials["road"], 1 + 0.07 * texture(x, z, 0.5) + 0.05 * texture(x, z, 2.5))
    painter.paint(drive & (np.abs(np.abs(x) - half) < 0.09), (206, 202, 190))
    painter.paint(drive & (np.abs(z - (wall_z - 2.6)) < 0.15), (226, 226, 220))
    reach, up = _wall(painter, wall_z)
    wall = (up >= 0) & (up < 2.2) & (np.abs(reach) > half + 0.2)
    painter.paint(wall, place.materials["wall"], brick(texture, reach, up) if rng.random() < 0.7 else 1.0)
    painter.paint(wall & (up > 2.06), (188, 182, 172))
    painter.depth[wall] = wall_z


def _corridor(place: Place, painter: Painter, texture: Texture, rng: np.random.Generator) -> None:
    dx, dy, half, h = painter.dx, painter.dy, place.half_width, place.height_m
    ceiling = 3.0
    to_side = half / np.maximum(np.abs(dx), 1e-6)
    to_floor = np.where(dy < 0, h / np.maximum(-dy, 1e-6), 1e6)
    to_ceiling = np.where(dy > 0, (ceiling - h) / np.maximum(dy, 1e-6), 1e6)
    z = np.minimum(np.minimum(to_side, to_floor), np.minimum(to_ceiling, place.wall_z)).astype(np.float32)
    x, up = (dx * z).astype(np.float32), (h + dy * z).astype(np.float32)
    is_floor, is_ceiling, is_end = z == to_floor, z == to_ceiling, z == np.float32(place.wall_z)
    is_wall = ~(is_floor | is_ceiling | is_end)
    lamps = (0.88 + 0.12 * np.cos(np.float32(math.tau) * (z - 3.0) / 4.0)) * np.clip(1.04 - 0.012 * z, 0.6, 1.1)
    tile = ((x % 0.6) < 0.02) | ((z % 0.6) < 0.03)
    painter.paint(is_floor, place.materials["floor"], np.where(tile, 0.84, 1 + 0.05 * texture(x, z, 0.35)) * lamps)
    painter.paint(is_ceiling, (206, 206, 202), np.where((z % 0.6) < 0.03, 0.9, 1.0) * lamps)
    panel = is_ceiling & (np.abs(x) < 0.42) & (np.abs(((z - 1.0) % 4.0) - 2.0) < 0.6)
    painter.paint(panel, (255, 255, 250))
    plaster = (1 + 0.03 * texture(z * 1.1 + x, up, 0.5)) * lamps
    painter.paint(
        is_wall | is_end, place.materials["wall"], plaster * np.where(is_end, 0.92, np.where(dx < 0, 0.97, 0.9))
    )
    painter.paint((is_wall | is_end) & (up < 1.0), place.materials["dado"], plaster * np.where(dx < 0, 0.97, 0.9))
    painter.paint((is_wall | is_end) & (up < 0.12), (70, 74, 78), lamps)
    painter.depth[is_wall | is_ceiling] = z[is_wall | is_ceiling]
    painter.depth[is_end] = place.wall_z
    for door in place.doors:
        (x0, z0), (x1, z1) = door.ends
        if z0 == z1:
            _paint_door(painter, is_end, x, up, (x0, x1), place.materials["end"])
        else:
            _paint_door(painter, is_wall & (np.sign(dx) == np.sign(x0)), z, up, (z0, z1), place.materials["door"])


def _shop(place: Place, painter: Painter, texture: Texture, rng: np.random.Generator) -> None:
    below, x, z = painter.ground()
    tile = ((x % 0.8) < 0.025) | ((z % 0.8) < 0.035)
    painter.paint(below, place.materials["floor"], np.where(tile, 0.9, 1 + 0.04 * texture(x, z, 0.6)))
    along, up = _wall(painter, place.wall_z)
    wall = up >= 0
    painter.paint(wall, place.materials["wall"], 1 + 0.03 * texture(along, up, 1.2))
    shelf = wall & (up < 2.0) & (np.abs(along) < 30)
    painter.paint(shelf, place.materials["shelf"], 0.8)
    row, across = np.floor(up / 0.48), np.floor(along / 0.3)
    for index, colour in enumerate(
        ((150, 120, 104), (112, 128, 142), (152, 146, 112), (128, 142, 122), (170, 166, 160))
    ):
        choice = np.floor(np.abs(texture(across * 3.7, row * 5.1, 1.0)) * 23) % 5 == index
        goods = shelf & choice & ((up % 0.48) > 0.06) & ((up % 0.48) < 0.38) & ((along % 0.3) > 0.03)
        painter.paint(goods, colour, 1 + 0.12 * texture(along, up, 0.2))
    painter.paint(shelf & ((up % 0.48) < 0.05), place.materials["shelf"], 1.05)
    ceiling_up = 3.6
    above = painter.dy > 0
    over = np.where(above, (ceiling_up - place.height_m) / np.maximum(painter.dy, 1e-4), 1e6)
    is_ceiling = above & (over < place.wall_z)
    cx = (painter.dx * over).astype(np.float32)
    painter.paint(is_ceiling, (208, 208, 204), 1.0)
    painter.paint(is_ceiling & (np.abs(((cx + 50) % 4.0) - 2.0) < 0.5) & ((over % 3.0) < 1.8), (255, 255, 250))
    gap = wall & (np.abs(along - np.float32((place.doors[0].ends[0][0] + place.doors[0].ends[1][0]) / 2)) < 1.0)
    painter.paint(gap, place.materials["wall"], 0.97)
    for door in place.doors:
        _paint_door(painter, wall, along, up, (door.ends[0][0], door.ends[1][0]), place.materials["door"])
    painter.depth[wall & ~is_ceiling] = place.wall_z
    painter.depth[is_ceiling] = over.astype(np.float32)[is_ceiling]
