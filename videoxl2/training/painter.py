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
_STRIP = 16


class Texture:
    """Smooth seeded noise over the plane, about -1..1, cheap to look up at many points."""

    _size = 256

    def __init__(self, rng: np.random.Generator) -> None:
        self._values = rng.normal(0.0, 0.6, (self._size, self._size)).astype(np.float32).ravel()

    def __call__(self, a: Floats, b: Floats, cell: float) -> Floats:
        """Values at points ``(a, b)`` with features of about ``cell`` in the same unit."""
        a, b = np.broadcast_arrays(a, b)
        values = np.empty(a.shape, np.float32)
        for top in range(0, len(a), _STRIP):  # what is in between stays in the cache
            strip = slice(top, top + _STRIP)
            values[strip] = self._at(a[strip], b[strip], cell)
        return values

    def _at(self, a: Floats, b: Floats, cell: float) -> Floats:
        fa, fb = np.nan_to_num(a / cell), np.nan_to_num(b / cell)
        ia, ib = np.floor(fa), np.floor(fb)
        ta, tb = fa - ia, fb - ib
        last = self._size - 1  # the size is a power of two, so that "& last" is "% size"
        ia, ib = ia.astype(np.int64) & last, ib.astype(np.int64) & last
        ja, jb = (ia + 1) & last, (ib + 1) & last
        ia *= self._size
        ja *= self._size
        values, sb = self._values, 1 - tb
        low = values.take(ia + ib) * sb + values.take(ia + jb) * tb
        high = values.take(ja + ib) * sb + values.take(ja + jb) * tb
        return low * (1 - ta) + high * ta


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
        shown = np.broadcast_to(np.asarray(tone, np.float32), where.shape)[where]
        self.rgb[where] = shown[:, None] * np.asarray(colour, np.float32)

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
