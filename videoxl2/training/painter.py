"""Tools to paint an unmoving picture: smooth textures, the rays of every pixel, props, shade and glow.

Owns no place; ``scenery`` (the demo) and ``backdrops`` (random places) say what is painted.

Dimensions: H rows, W columns.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageFilter

from videoxl2.training.scene import Camera
from videoxl2.training.sprites import RGB, Canvas, Frame3D, Sprite, draw_box, shadow_mask

Floats = NDArray[np.float32]
_OVERSAMPLE = 2


class Texture:
    """Smooth seeded noise over the plane, about -1..1, cheap to look up at many points."""

    def __init__(self, rng: np.random.Generator, size: int = 256) -> None:
        self._grid = rng.normal(0.0, 0.6, (size, size)).astype(np.float32)

    def __call__(self, a: Floats, b: Floats, cell: float) -> Floats:
        """Values at points ``(a, b)`` with features of about ``cell`` in the same unit."""
        size = self._grid.shape[0]
        fa, fb = np.nan_to_num(a / cell), np.nan_to_num(b / cell)
        ia, ib = np.floor(fa), np.floor(fb)
        ta, tb = fa - ia, fb - ib
        ia, ib = ia.astype(np.int64) % size, ib.astype(np.int64) % size
        ja, jb = (ia + 1) % size, (ib + 1) % size
        g = self._grid
        low = g[ia, ib] * (1 - tb) + g[ia, jb] * tb
        high = g[ja, ib] * (1 - tb) + g[ja, jb] * tb
        return np.asarray(low * (1 - ta) + high * ta, dtype=np.float32)


@dataclass
class Painter:
    """A picture at twice the size under construction, with the ray of every pixel."""

    camera: Camera
    rgb: Floats
    depth: Floats
    dx: Floats
    dy: Floats

    @classmethod
    def of(cls, camera: Camera) -> Painter:
        rows, columns = camera.height * _OVERSAMPLE, camera.width * _OVERSAMPLE
        column = (np.arange(columns, dtype=np.float32) + 0.5) / _OVERSAMPLE
        row = (np.arange(rows, dtype=np.float32) + 0.5) / _OVERSAMPLE
        dx, dy = np.meshgrid((column - camera.width / 2) / camera.focal_px, (camera.horizon_px - row) / camera.focal_px)
        depth = np.full((rows, columns), np.inf, dtype=np.float32)
        black = np.zeros((rows, columns, 3), np.float32)
        return cls(camera, black, depth, dx.astype(np.float32), dy.astype(np.float32))

    def ground(self) -> tuple[NDArray[np.bool_], Floats, Floats]:
        """Which pixels look at the ground, and where (x, z) their ray meets it."""
        below = self.dy < -1e-4
        z = np.where(below, self.camera.height_m / np.where(below, -self.dy, 1.0), 1e4).astype(np.float32)
        return below, (self.dx * z).astype(np.float32), z

    def paint(self, where: NDArray[np.bool_], colour: RGB, tone: Floats | float = 1.0) -> None:
        values = np.asarray(colour, np.float32) * np.broadcast_to(np.asarray(tone, np.float32), where.shape)[..., None]
        self.rgb[where] = values[where]

    def finished(self) -> tuple[Floats, Floats]:
        """Colours averaged down and the nearest depth kept, at the camera's size."""
        h, w = self.camera.height, self.camera.width
        rgb = self.rgb.reshape(h, _OVERSAMPLE, w, _OVERSAMPLE, 3).mean(axis=(1, 3))
        return rgb.astype(np.float32), self.depth[::_OVERSAMPLE, ::_OVERSAMPLE].copy()


def stamp(
    rgb: Floats, depth: Floats, sprite: Sprite | None, z: float, light: tuple[float, float, float] = (1, 1, 1)
) -> None:
    """Draw a finished prop into the background, with its depth."""
    if sprite is None:
        return
    rows, columns = sprite.alpha_HW.shape
    area = np.s_[sprite.top : sprite.top + rows, sprite.left : sprite.left + columns]
    alpha = sprite.alpha_HW[..., None]
    rgb[area] = rgb[area] * (1 - alpha) + sprite.rgb_HW3 * np.asarray(light, np.float32) * alpha
    depth[area] = np.where(sprite.alpha_HW > 0.5, z, depth[area])


def prop(
    camera: Camera,
    x: float,
    z: float,
    length: float,
    width: float,
    low: float,
    high: float,
    colour: RGB,
    heading: float = 0.0,
) -> Sprite | None:
    canvas = Canvas(camera)
    draw_box(canvas, Frame3D(x, z, heading), length, width, low, high, colour)
    return canvas.rasterise()


def brick(texture: Texture, along: Floats, up: Floats) -> Floats:
    """Tone of a brick wall at points along and up the wall (metres)."""
    course = np.floor(up / 0.16)
    offset = along + np.where(course % 2 == 0, 0.0, 0.2)
    joint = ((up % 0.16) < 0.022) | ((offset % 0.4) < 0.025)
    each = texture(np.floor(offset / 0.4) * 7.3, course * 3.1, 1.0) * 0.11
    return np.where(joint, 1.22, 1.0 + each + texture(along, up, 0.6) * 0.05).astype(np.float32)


def shade(
    rgb: Floats, camera: Camera, ground: list[tuple[float, float, float]], strength: float, softness: float = 0.25
) -> None:
    """Darken a polygon on the ground, points ``(x, z, up)``."""
    points = np.asarray([(x, up, z) for x, z, up in ground])
    mask = shadow_mask(camera, points, softness)
    if mask is not None:
        left, top, soft = mask
        rows, columns = soft.shape
        rgb[top : top + rows, left : left + columns] *= 1 - strength * soft[..., None]


def add_glow(rgb: Floats, column: float, row: float, radius: float, colour: RGB, strength: float) -> None:
    """Add a soft round light to a picture, in place."""
    reach = math.ceil(radius * 3)
    top, bottom = max(0, int(row) - reach), min(rgb.shape[0], int(row) + reach + 1)
    left, right = max(0, int(column) - reach), min(rgb.shape[1], int(column) + reach + 1)
    if bottom <= top or right <= left:
        return
    rows = np.arange(top, bottom, dtype=np.float32)[:, None] - row
    columns = np.arange(left, right, dtype=np.float32)[None, :] - column
    mask = np.exp(-(rows**2 + columns**2) / (2 * (radius / 1.4) ** 2)) * strength
    rgb[top:bottom, left:right] += mask[..., None].astype(np.float32) * np.asarray(colour, np.float32)


def softened(painter: Painter) -> tuple[Floats, Floats]:
    """The finished picture with the slight blur of a cheap lens."""
    rgb, depth = painter.finished()
    picture = Image.fromarray(np.clip(rgb, 0, 255).astype(np.uint8)).filter(ImageFilter.GaussianBlur(0.5))
    return np.asarray(picture, dtype=np.float32).copy(), depth
