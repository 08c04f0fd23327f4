"""Figures that only random scenes show: cyclists, somebody falling, smoke, open doors.

Owns their shapes; like ``sprites`` it knows nothing about light or composition.

Dimensions: H rows, W columns of a sprite.
"""

from __future__ import annotations

import math
from itertools import pairwise

import numpy as np
from PIL import Image, ImageDraw, ImageFilter

from videoxl2.training.scene import COLOURS, Bicycle, Camera, Doorway, Person, Pose, Smoke
from videoxl2.training.sprites import Canvas, Frame3D, Sprite, shaded

_FALL_S = 0.7
_RISE_S = 1.2
_SMOKE_GROWS_S = 3.0
_SMOKE_RISES_M = 2.6
_NUM_PUFFS = 14


def fallen_pitch(person: Person, t: float) -> float:
    """How far a person is tipped over at ``t``: 0 upright, about pi/2 flat on the ground."""
    for start, end in person.falls:
        if start <= t < end:
            share = min((t - start) / _FALL_S, (end - t) / _RISE_S, 1.0)
            return math.radians(86.0) * share * share
    return 0.0


def draw_bicycle(camera: Camera, bicycle: Bicycle, pose: Pose) -> Sprite | None:
    """A bicycle along its heading with a rider who pedals."""
    frame, canvas = Frame3D.of(pose), Canvas(camera)
    shirt, trousers, metal = COLOURS[bicycle.shirt], COLOURS[bicycle.trousers], (52, 54, 60)
    for axle in (-0.52, 0.52):
        rim = [
            frame.at(axle + 0.34 * math.cos(a), 0.0, 0.34 + 0.34 * math.sin(a)) for a in np.linspace(0, math.tau, 15)
        ]
        for start, end in pairwise(rim):
            canvas.capsule(start, end, 0.05, (26, 26, 28))
    pedals, saddle, handle = frame.at(0.0, 0, 0.32), frame.at(-0.2, 0, 0.9), frame.at(0.42, 0, 1.0)
    for start, end in (
        (frame.at(-0.52, 0, 0.34), pedals),
        (pedals, saddle),
        (pedals, handle),
        (saddle, frame.at(0.36, 0, 0.85)),
        (handle, frame.at(0.52, 0, 0.34)),
    ):
        canvas.capsule(start, end, 0.045, metal)
    turn = pose.distance / 0.34 * 0.55
    for side, phase, tone in ((0.09, 0.0, 0.72), (-0.09, math.pi, 1.0)):
        foot = (0.16 * math.cos(turn + phase), 0.32 + 0.16 * math.sin(turn + phase))
        knee = (0.26 + foot[0] * 0.3, 0.66 + (foot[1] - 0.32) * 0.6)
        canvas.capsule(frame.at(-0.16, side, 0.96), frame.at(knee[0], side, knee[1]), 0.16, shaded(trousers, tone))
        canvas.capsule(frame.at(knee[0], side, knee[1]), frame.at(foot[0], side, foot[1]), 0.12, shaded(trousers, tone))
        canvas.capsule(frame.at(foot[0], side, foot[1]), frame.at(foot[0] + 0.14, side, foot[1]), 0.09, (40, 36, 34))
    for side in (0.12, -0.12):
        canvas.capsule(frame.at(-0.16, side * 0.6, 1.0), frame.at(0.12, side, 1.42), 0.24, shaded(shirt, 0.9))
    canvas.capsule(frame.at(-0.16, 0, 1.02), frame.at(0.12, 0, 1.44), 0.26, shirt)
    for side in (0.2, -0.2):
        canvas.capsule(frame.at(0.14, side, 1.4), frame.at(0.42, side, 1.06), 0.1, shaded(shirt, 0.84))
    head = frame.at(0.26, 0, 1.66)
    canvas.capsule(head, head, 0.23, bicycle.skin)
    cap = frame.at(0.23, 0, 1.72)
    canvas.capsule(cap, cap, 0.22, (58, 44, 36))
    return canvas.rasterise()


def draw_smoke(camera: Camera, smoke: Smoke, t: float) -> Sprite | None:
    """A rising column of grey puffs that grows over its first seconds."""
    pose = smoke.track.pose(t)
    scale = camera.pixels_per_metre(pose.z)
    grown = min(1.0, 0.25 + 0.75 * (t - smoke.track.start_s) / _SMOKE_GROWS_S)
    foot = camera.project(np.asarray([pose.x, 0.0, pose.z]))
    reach = _SMOKE_RISES_M * scale
    left, right = max(0, round(foot[0] - 0.5 * reach)), min(camera.width, round(foot[0] + 0.7 * reach))
    top, bottom = max(0, round(foot[1] - 1.25 * reach)), min(camera.height, round(foot[1] + 0.15 * reach))
    if right <= left or bottom <= top:
        return None
    picture = Image.new("L", (right - left, bottom - top))
    pen = ImageDraw.Draw(picture)
    for number in range(_NUM_PUFFS):
        phase = (0.22 * t + number * 0.618) % 1.0
        if phase > grown:
            continue
        sway = 0.16 * math.sin(number * 2.4 + 1.3 * t) * (0.3 + phase)
        column = foot[0] - left + (sway + 0.25 * phase * phase) * scale
        row = foot[1] - top - (0.15 + 2.2 * phase) * scale
        radius = (0.2 + 0.42 * phase) * scale
        pen.ellipse((column - radius, row - radius, column + radius, row + radius), fill=round(235 - 70 * phase))
    soft = np.asarray(picture.filter(ImageFilter.GaussianBlur(max(0.8, 0.12 * scale))), np.float32) / np.float32(255)
    rows = np.linspace(0, 1, soft.shape[0], dtype=np.float32)[:, None]
    grey = np.float32(208) - np.float32(84) * rows
    rgb = np.repeat(np.broadcast_to(grey, soft.shape)[..., None], 3, axis=2)
    return Sprite(left, top, rgb, np.minimum(soft * np.float32(1.3), np.float32(0.94)))


def draw_doorway(camera: Camera, doorway: Doorway) -> Sprite | None:
    """The dark opening in the wall, a little lighter towards the floor of the room behind."""
    canvas = Canvas(camera)
    (x0, z0), (x1, z1) = doorway.ends
    h = doorway.height_m
    canvas.polygon([(x0, 0, z0), (x1, 0, z1), (x1, h, z1), (x0, h, z0)], (34, 34, 38))
    canvas.polygon([(x0, 0, z0), (x1, 0, z1), (x1, 0.22 * h, z1), (x0, 0.12 * h, z0)], (74, 70, 64))
    return canvas.rasterise()


def draw_leaf(camera: Camera, doorway: Doorway) -> Sprite | None:
    """The door's leaf, swung out on its hinge towards the viewer's side of the wall."""
    canvas, h = Canvas(camera), doorway.height_m
    (x0, z0), (x1, z1) = doorway.ends
    width = math.hypot(x1 - x0, z1 - z0)
    if z0 == z1:
        tip = (x0 - 0.35 * width, z0 - 0.94 * width)
    else:
        inwards = -math.copysign(1.0, x0)
        tip = (x0 + inwards * 0.8 * width, z0 + math.copysign(0.5 * width, z0 - z1))
    corners = [(x0, 0.02, z0), (tip[0], 0.02, tip[1]), (tip[0], h, tip[1]), (x0, h, z0)]
    canvas.polygon(corners, (126, 98, 70))
    inner = [
        (x0 + (tip[0] - x0) * s, y, z0 + (tip[1] - z0) * s)
        for s, y in ((0.2, 0.25), (0.8, 0.25), (0.8, h - 0.25), (0.2, h - 0.25))
    ]
    canvas.polygon(inner, (108, 84, 60))
    return canvas.rasterise()
