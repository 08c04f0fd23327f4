"""Drawing of actors: small supersampled pictures with an alpha channel, from posed 3D primitives.

Owns the shapes of people, vehicles, dogs and bags and nothing about time, light or composition: every function takes a
pose and gives a ``Sprite``. Shapes are capsules and convex polygons in the camera's world, projected point by point, so
gait and perspective are right from any direction.

Dimensions: H rows, W columns of a sprite.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFilter

from videoxl2.training.scene import COLOURS, Bag, Camera, Dog, Person, Pose, Vehicle

RGB = tuple[int, int, int]
Point = tuple[float, float, float]

SUPERSAMPLING = 3
RUN_SPEED = 2.6
_NEAR_M = 0.6
_WINDOW: RGB = (38, 48, 60)
_TYRE: RGB = (24, 24, 26)


@dataclass(frozen=True)
class Sprite:
    """An actor's picture: ``rgb_HW3`` and ``alpha_HW`` as float32 (0..255, 0..1) with its corner in the frame."""

    left: int
    top: int
    rgb_HW3: NDArray[np.float32]
    alpha_HW: NDArray[np.float32]


def shaded(colour: RGB, factor: float) -> RGB:
    """The colour made darker (factor below 1) or lighter (above 1, towards white)."""
    if factor <= 1:
        return tuple(round(channel * factor) for channel in colour)  # type: ignore[return-value]
    return tuple(round(channel + (255 - channel) * (factor - 1)) for channel in colour)  # type: ignore[return-value]


class Canvas:
    """Collects projected shapes, then rasterises them once: far shapes must be added first."""

    def __init__(self, camera: Camera) -> None:
        self.camera = camera
        self._shapes: list[tuple[NDArray[np.float64], float, RGB]] = []

    def polygon(self, points: Sequence[Point] | NDArray[np.float64], colour: RGB) -> None:
        world = np.asarray(points, dtype=np.float64)
        if (world[:, 2] > _NEAR_M).all():
            self._shapes.append((self.camera.project(world), 0.0, colour))

    def capsule(self, start: Point, end: Point, thickness_m: float, colour: RGB) -> None:
        """A limb: a thick line with round ends. A point (start equal to end) is a ball."""
        world = np.asarray([start, end], dtype=np.float64)
        if (world[:, 2] > _NEAR_M).all():
            width = self.camera.pixels_per_metre(float(world[:, 2].mean())) * thickness_m
            self._shapes.append((self.camera.project(world), max(width, 0.5), colour))

    def face(self, points: Sequence[Point] | NDArray[np.float64], colour: RGB) -> bool:
        """A polygon that is drawn only when its front (counter-clockwise on the picture) is towards the camera."""
        world = np.asarray(points, dtype=np.float64)
        if not (world[:, 2] > _NEAR_M).all():
            return False
        flat = self.camera.project(world)
        column, row = flat[:, 0], flat[:, 1]
        doubled_area = float(np.sum(column * np.roll(row, -1) - np.roll(column, -1) * row))
        if doubled_area >= 0:
            return False
        self._shapes.append((flat, 0.0, colour))
        return True

    def rasterise(self) -> Sprite | None:
        """The sprite, cut to the frame; None when nothing of it lies inside."""
        if not self._shapes:
            return None
        low = np.min([points.min(axis=0) - width for points, width, _ in self._shapes], axis=0)
        high = np.max([points.max(axis=0) + width for points, width, _ in self._shapes], axis=0)
        left, top = max(0, math.floor(low[0]) - 1), max(0, math.floor(low[1]) - 1)
        right = min(self.camera.width, math.ceil(high[0]) + 2)
        bottom = min(self.camera.height, math.ceil(high[1]) + 2)
        if right <= left or bottom <= top:
            return None
        picture = Image.new("RGBA", ((right - left) * SUPERSAMPLING, (bottom - top) * SUPERSAMPLING))
        pen = ImageDraw.Draw(picture)
        for points, width, colour in self._shapes:
            place = (points - (left, top)) * SUPERSAMPLING
            fill = (*colour, 255)
            if width == 0.0:
                pen.polygon([tuple(point) for point in place], fill=fill)
                continue
            thick = width * SUPERSAMPLING
            pen.line([tuple(place[0]), tuple(place[1])], fill=fill, width=max(1, round(thick)))
            for column, row in place:
                half = thick / 2
                pen.ellipse((column - half, row - half, column + half, row + half), fill=fill)
        pixels = np.asarray(picture.reduce(SUPERSAMPLING), dtype=np.float32)
        return Sprite(left, top, pixels[..., :3], pixels[..., 3] / np.float32(255))


@dataclass(frozen=True)
class Frame3D:
    """An actor's own axes in the world: forward along the heading, side to its left, up.

    ``pitch`` tips the actor over its feet, pi/2 being flat on the ground.
    """

    x: float
    z: float
    heading: float
    pitch: float = 0.0

    @classmethod
    def of(cls, pose: Pose) -> Frame3D:
        return cls(pose.x, pose.z, pose.heading)

    def at(self, forward: float, side: float, up: float) -> Point:
        if self.pitch:
            sin_p, cos_p = math.sin(self.pitch), math.cos(self.pitch)
            forward, up = forward * cos_p + up * sin_p, max(0.03, up * cos_p - forward * sin_p + 0.14 * sin_p)
        cos, sin = math.cos(self.heading), math.sin(self.heading)
        return (self.x + forward * cos - side * sin, up, self.z + forward * sin + side * cos)

    def many(self, points: Iterable[Point]) -> NDArray[np.float64]:
        return np.asarray([self.at(*point) for point in points], dtype=np.float64)


# --- people -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Gait:
    swing: float
    knee: float
    elbow: float
    lean: float
    bounce: float
    phase: float


def _gait(pose: Pose, height_m: float) -> _Gait:
    """Limb angles from speed and distance walked: feet do not slide, and arms hang when standing."""
    effort = min(pose.speed / 1.2, 1.0)
    if pose.speed > RUN_SPEED:
        return _Gait(0.85, 1.5, 1.4, 0.2, 0.05, math.tau * pose.distance / (1.45 * height_m))
    return _Gait(
        0.46 * effort, 0.65 * effort, 0.35, 0.04 * effort, 0.02 * effort, math.tau * pose.distance / (0.82 * height_m)
    )


def hand_position(person: Person, pose: Pose) -> Point:
    """Where the carrying hand (the right one) is."""
    h = person.height_m
    return Frame3D.of(pose).at(0.03, -0.15 * h, 0.45 * h)


def draw_person(
    camera: Camera, person: Person, pose: Pose, is_carrying: bool = False, pitch: float = 0.0
) -> Sprite | None:
    h, gait = person.height_m, _gait(pose, person.height_m)
    body = Frame3D(pose.x, pose.z, pose.heading, pitch)
    canvas = Canvas(camera)
    shirt, trousers, hair = COLOURS[person.shirt], COLOURS[person.trousers], COLOURS[person.hair]
    bounce = gait.bounce * abs(math.sin(gait.phase)) * h
    hip_up, shoulder_up = 0.50 * h + bounce, 0.81 * h + bounce
    lean = gait.lean * h

    def leg(side: float, phase: float, tone: float) -> None:
        angle = gait.swing * math.sin(phase)
        bend = gait.knee * max(0.0, math.cos(phase)) + 0.05
        thigh, shin = 0.25 * h, 0.25 * h
        hip = (0.0, side * 0.052 * h, hip_up)
        knee = (thigh * math.sin(angle), hip[1], hip_up - thigh * math.cos(angle))
        ankle = (
            knee[0] + shin * math.sin(angle - bend),
            hip[1],
            max(0.035 * h, knee[2] - shin * math.cos(angle - bend)),
        )
        toe = (ankle[0] + 0.085 * h, ankle[1], max(0.02 * h, ankle[2] - 0.015 * h))
        canvas.capsule(body.at(*ankle), body.at(*toe), 0.055 * h, shaded((44, 38, 36), tone))
        canvas.capsule(body.at(*knee), body.at(*ankle), 0.068 * h, shaded(trousers, tone * 0.95))
        canvas.capsule(body.at(*hip), body.at(*knee), 0.092 * h, shaded(trousers, tone))

    def arm(side: float, phase: float, tone: float) -> None:
        carries = is_carrying and side < 0
        angle = 0.0 if carries else gait.swing * 0.9 * math.sin(phase)
        upper, lower = 0.16 * h, 0.15 * h
        shoulder = (lean, side * 0.118 * h, shoulder_up)
        elbow = (lean + upper * math.sin(angle), side * 0.138 * h, shoulder_up - upper * math.cos(angle))
        flex = 0.05 if carries else gait.elbow * (1 if gait.elbow > 1 else 0.5 + 0.5 * max(0.0, math.sin(phase)))
        hand = (elbow[0] + lower * math.sin(angle + flex), elbow[1], elbow[2] - lower * math.cos(angle + flex))
        canvas.capsule(body.at(*hand), body.at(*hand), 0.055 * h, shaded(person.skin, tone))
        canvas.capsule(body.at(*elbow), body.at(*hand), 0.05 * h, shaded(shirt, tone * 0.93))
        canvas.capsule(body.at(*shoulder), body.at(*elbow), 0.06 * h, shaded(shirt, tone))

    # The side farther from the camera first, a little darker.
    left_z, right_z = body.at(0, 0.1, 0)[2], body.at(0, -0.1, 0)[2]
    far, near = (1.0, -1.0) if left_z > right_z else (-1.0, 1.0)
    phases = {1.0: gait.phase, -1.0: gait.phase + math.pi}
    arm(far, phases[-far], 0.72)
    leg(far, phases[far], 0.74)
    leg(near, phases[near], 1.0)

    shoulder = 0.098 * h
    corners = [
        (lean, shoulder, shoulder_up),
        (lean, -shoulder, shoulder_up),
        (0.0, -0.06 * h, hip_up),
        (0.0, 0.06 * h, hip_up),
    ]
    torso = [body.at(*corner) for corner in corners]
    for thickness, tone in ((0.122, 0.78), (0.086, 1.0)):
        canvas.polygon(torso, shaded(shirt, tone))
        for start, end in zip(torso, torso[1:] + torso[:1], strict=True):
            canvas.capsule(start, end, thickness * h, shaded(shirt, tone))
    canvas.capsule(
        body.at(0, 0.045 * h, hip_up - 0.02 * h), body.at(0, -0.045 * h, hip_up - 0.02 * h), 0.10 * h, trousers
    )
    arm(near, phases[-near], 0.88)

    head_up = 0.917 * h + bounce
    canvas.capsule(
        body.at(lean, 0, shoulder_up), body.at(lean, 0, head_up - 0.03 * h), 0.055 * h, shaded(person.skin, 0.85)
    )
    faces_camera = math.sin(pose.heading) < 0.25
    cover = shirt if person.has_hood else hair
    skull, face = body.at(lean, 0, head_up + 0.006 * h), body.at(lean + 0.03 * h, 0, head_up - 0.018 * h)
    canvas.capsule(skull, skull, 0.142 * h if person.has_hood else 0.128 * h, shaded(cover, 0.92))
    if faces_camera:
        canvas.capsule(face, body.at(lean + 0.026 * h, 0, head_up - 0.03 * h), 0.094 * h, person.skin)
    return canvas.rasterise()


# --- vehicles -----------------------------------------------------------------------------------------------------

# Side profiles as (forward, up) in metres, front first along the top, then back along the bottom.
_BODIES: dict[str, tuple[float, list[tuple[float, float]], list[tuple[float, float]], float]] = {
    "car": (
        1.78,
        [(-2.15, 0.32), (-2.2, 0.72), (-2.05, 0.98), (0.95, 0.98), (2.0, 0.82), (2.15, 0.58), (2.1, 0.32)],
        [(-1.75, 0.97), (-1.2, 1.44), (0.15, 1.46), (1.05, 0.97)],
        1.32,
    ),
    "van": (
        1.95,
        [(-2.6, 0.36), (-2.62, 1.15), (-2.6, 1.2), (1.7, 1.2), (2.35, 1.02), (2.5, 0.66), (2.45, 0.36)],
        [(-2.6, 1.19), (-2.52, 2.12), (0.85, 2.14), (1.75, 1.19)],
        1.72,
    ),
}
_WHEELS: dict[str, tuple[float, float, float]] = {"car": (1.35, -1.3, 0.32), "van": (1.6, -1.6, 0.35)}


def vehicle_footprint(vehicle: Vehicle, pose: Pose) -> NDArray[np.float64]:
    """The four corners on the ground, ``[4, 3]``."""
    width, profile, _, _ = _BODIES[vehicle.body]
    back, front = min(p[0] for p in profile), max(p[0] for p in profile)
    frame = Frame3D.of(pose)
    half = width / 2
    return frame.many([(front, half, 0.0), (front, -half, 0.0), (back, -half, 0.0), (back, half, 0.0)])


def lamp_positions(vehicle: Vehicle, pose: Pose) -> tuple[list[Point], list[Point]]:
    """World positions of the two headlights and of the two tail lights."""
    width, profile, _, _ = _BODIES[vehicle.body]
    frame, half = Frame3D.of(pose), width / 2 - 0.25
    front, back = max(p[0] for p in profile), min(p[0] for p in profile)
    heads = [frame.at(front + 0.02, side, 0.68) for side in (half, -half)]
    tails = [frame.at(back - 0.02, side, 0.78) for side in (half, -half)]
    return heads, tails


def _extruded(
    canvas: Canvas, frame: Frame3D, profile: list[tuple[float, float]], half: float, half_top: float, colour: RGB
) -> None:
    """A convex profile pulled out to both sides; narrower at the top when ``half_top`` is smaller."""
    low, high = min(p[1] for p in profile), max(p[1] for p in profile)

    def side_at(up: float, sign: float) -> float:
        share = (up - low) / max(high - low, 1e-6)
        return sign * (half + (half_top - half) * share)

    left = [frame.at(f, side_at(u, 1.0), u) for f, u in profile]
    right = [frame.at(f, side_at(u, -1.0), u) for f, u in profile]
    for (f0, u0), (f1, u1), l0, l1, r0, r1 in zip(profile, profile[1:], left, left[1:], right, right[1:], strict=False):
        length = math.hypot(f1 - f0, u1 - u0) or 1.0
        upward = max(0.0, (f1 - f0) / length)
        canvas.face([l0, r0, r1, l1], shaded(colour, min(0.72 + 0.36 * upward, 1.06)))
    canvas.face(left, shaded(colour, 0.84))
    canvas.face(right[::-1], shaded(colour, 0.84))


def draw_vehicle(camera: Camera, vehicle: Vehicle, pose: Pose, lights_on: bool = False) -> Sprite | None:
    width, lower, cabin, roof_width = _BODIES[vehicle.body]
    frame, canvas, colour = Frame3D.of(pose), Canvas(camera), COLOURS[vehicle.colour]
    half = width / 2
    front_wheel, back_wheel, radius = _WHEELS[vehicle.body]

    def wheel(forward: float, sign: float) -> None:
        angles = np.linspace(0, math.tau, 18, endpoint=False) * sign
        for scale, tone in ((1.0, _TYRE), (0.62, (140, 142, 146)), (0.2, (70, 70, 74))):
            rim = [
                (forward + radius * scale * math.cos(a), sign * (half + 0.01), radius + radius * scale * math.sin(a))
                for a in angles
            ]
            canvas.face(frame.many(rim)[::-1], tone)

    draw_box(canvas, frame, 3.9, width - 0.2, 0.08, 0.36, (18, 18, 20))  # the dark under the body
    _extruded(canvas, frame, lower, half, half, colour)
    sill = [(-2.1, 0.32), (-2.1, 0.42), (2.05, 0.42), (2.05, 0.32)]
    for sign in (1.0, -1.0):
        strip = frame.many([(f, sign * (half + 0.005), u) for f, u in sill])
        canvas.face(strip if sign > 0 else strip[::-1], shaded(colour, 0.5))
        for forward in (front_wheel, back_wheel):
            wheel(forward, sign)

    front, back = max(p[0] for p in lower), min(p[0] for p in lower)
    lamp = (255, 250, 226) if lights_on else (206, 210, 212)
    tail = (255, 40, 32) if lights_on else (150, 22, 24)
    for side in (half - 0.25, -(half - 0.25)):
        w = 0.19
        canvas.face(
            frame.many(
                [
                    (front, side + w, 0.58),
                    (front, side - w, 0.58),
                    (front - 0.1, side - w, 0.78),
                    (front - 0.1, side + w, 0.78),
                ]
            )[::-1],
            lamp,
        )
        canvas.face(
            frame.many(
                [
                    (back - 0.02, side - w, 0.66),
                    (back - 0.02, side + w, 0.66),
                    (back, side + w, 0.9),
                    (back, side - w, 0.9),
                ]
            )[::-1],
            tail,
        )
    reach = half - 0.5
    grille = [
        (front + 0.005, reach, 0.58),
        (front + 0.005, -reach, 0.58),
        (front - 0.09, -reach, 0.74),
        (front - 0.09, reach, 0.74),
    ]
    canvas.face(frame.many(grille)[::-1], (44, 46, 50))
    plate = frame.many(
        [
            (front + 0.01, 0.26, 0.42),
            (front + 0.01, -0.26, 0.42),
            (front + 0.01, -0.26, 0.54),
            (front + 0.01, 0.26, 0.54),
        ]
    )
    canvas.face(plate[::-1], (226, 226, 218))

    half_roof = roof_width / 2
    _extruded(canvas, frame, cabin, half - 0.06, half_roof, colour)
    _draw_windows(canvas, frame, vehicle, cabin, half - 0.06, half_roof)
    return canvas.rasterise()


def _draw_windows(
    canvas: Canvas, frame: Frame3D, vehicle: Vehicle, cabin: list[tuple[float, float]], half: float, half_roof: float
) -> None:
    low, high = cabin[0][1], cabin[1][1]

    def at(corner: tuple[float, float], side: float, out: float = 0.015) -> Point:
        forward, up = corner
        share = (up - low) / (high - low)
        reach = half + (half_roof - half) * share
        return frame.at(forward + out, side * (reach + abs(out)) if abs(side) == 1 else side * reach, up)

    def between(a: tuple[float, float], b: tuple[float, float], share: float) -> tuple[float, float]:
        return (a[0] + (b[0] - a[0]) * share, a[1] + (b[1] - a[1]) * share)

    back_low, back_high, front_high, front_low = cabin
    screen = [between(front_low, front_high, 0.08), between(front_low, front_high, 0.9)]
    shine = shaded(_WINDOW, 1.14)
    canvas.face([at(screen[0], 0.86), at(screen[0], -0.86), at(screen[1], -0.84), at(screen[1], 0.84)][::-1], shine)
    if vehicle.body == "car":
        rear = [between(back_low, back_high, 0.15), between(back_low, back_high, 0.9)]
        canvas.face(
            [
                at(rear[0], 0.84, -0.015),
                at(rear[0], -0.84, -0.015),
                at(rear[1], -0.82, -0.015),
                at(rear[1], 0.82, -0.015),
            ],
            _WINDOW,
        )
        middle = (back_low[0] + front_low[0]) / 2 - 0.15
        panes = [
            [
                (back_low[0] + 0.32, low + 0.06),
                (back_high[0] + 0.12, high - 0.09),
                (middle - 0.05, high - 0.07),
                (middle - 0.05, low + 0.06),
            ],
            [
                (middle + 0.05, low + 0.06),
                (middle + 0.05, high - 0.07),
                (front_high[0] - 0.02, high - 0.09),
                (front_low[0] - 0.3, low + 0.06),
            ],
        ]
    else:
        panes = [
            [
                (0.15, low + 0.08),
                (0.15, high - 0.2),
                (front_high[0] - 0.05, high - 0.2),
                (front_low[0] - 0.28, low + 0.08),
            ]
        ]
    for side in (1.0, -1.0):
        for pane in panes:
            corners = [at(corner, side, 0.0) for corner in pane]
            canvas.face(corners if side > 0 else corners[::-1], _WINDOW)


# --- dogs and bags ------------------------------------------------------------------------------------------------


def draw_dog(camera: Camera, dog: Dog, pose: Pose) -> Sprite | None:
    body, canvas, coat = Frame3D.of(pose), Canvas(camera), COLOURS[dog.colour]
    phase = math.tau * pose.distance / 0.62
    swing = 0.55 * min(pose.speed / 1.0, 1.0)
    up = 0.44 + 0.015 * math.sin(2 * phase)
    legs = [(0.3, 0.09, 0.0), (0.3, -0.09, math.pi), (-0.3, 0.09, math.pi), (-0.3, -0.09, 0.0)]
    legs.sort(key=lambda leg: -body.at(leg[0], leg[1], 0)[2])
    for index, (forward, side, offset) in enumerate(legs):
        angle = swing * math.sin(phase + offset)
        tone = 0.68 if index < 2 else 0.9
        knee = (forward + 0.2 * math.sin(angle), side, up - 0.2)
        paw = (forward + 0.42 * math.sin(angle * 0.8) + 0.02, side, 0.03)
        canvas.capsule(body.at(forward, side, up), body.at(*knee), 0.11, shaded(coat, tone))
        canvas.capsule(body.at(*knee), body.at(*paw), 0.065, shaded(coat, tone * 0.9))
    wag = 0.08 * math.sin(1.7 * phase)
    canvas.capsule(body.at(-0.36, 0, up + 0.05), body.at(-0.62, wag, up + 0.26), 0.055, shaded(coat, 0.85))
    canvas.capsule(body.at(-0.32, 0, up + 0.02), body.at(0.32, 0, up + 0.04), 0.25, shaded(coat, 0.85))
    canvas.capsule(body.at(-0.3, 0, up + 0.05), body.at(0.3, 0, up + 0.07), 0.18, coat)
    canvas.capsule(body.at(0.32, 0, up + 0.08), body.at(0.48, 0, up + 0.26), 0.15, shaded(coat, 0.95))
    canvas.capsule(body.at(0.5, 0, up + 0.3), body.at(0.54, 0, up + 0.3), 0.19, coat)
    canvas.capsule(body.at(0.56, 0, up + 0.26), body.at(0.7, 0, up + 0.23), 0.095, shaded(coat, 0.8))
    for side in (0.075, -0.075):
        canvas.capsule(body.at(0.47, side, up + 0.38), body.at(0.44, side, up + 0.28), 0.06, shaded(coat, 0.55))
    return canvas.rasterise()


def draw_box(canvas: Canvas, frame: Frame3D, length: float, width: float, low: float, high: float, colour: RGB) -> None:
    """An upright box centred on the frame's origin."""
    a, b = length / 2, width / 2
    corners = [(a, b), (a, -b), (-a, -b), (-a, b)]
    for (f0, s0), (f1, s1), tone in zip(corners, corners[1:] + corners[:1], (0.8, 0.92, 0.74, 0.86), strict=True):
        canvas.face(frame.many([(f0, s0, low), (f0, s0, high), (f1, s1, high), (f1, s1, low)]), shaded(colour, tone))
    canvas.face(frame.many([(f, s, high) for f, s in corners])[::-1], shaded(colour, 1.06))


def draw_bag(camera: Camera, bag: Bag, place: Point, heading: float) -> Sprite | None:
    """``place`` is the top of the handle when carried (its height decides) or the point on the ground."""
    canvas, frame, colour = Canvas(camera), Frame3D(place[0], place[2], heading), COLOURS[bag.colour]
    if bag.shape == "suitcase":
        draw_box(canvas, frame, 0.3, 0.46, 0.05, 0.72, colour)
        for side in (0.16, -0.16):
            canvas.capsule(frame.at(0.0, side, 0.72), frame.at(0.08, side * 0.8, 0.98), 0.025, (70, 70, 74))
        canvas.capsule(frame.at(0.08, 0.13, 0.98), frame.at(0.08, -0.13, 0.98), 0.035, (50, 50, 54))
        return canvas.rasterise()
    low = max(0.02, place[1] - 0.46)
    draw_box(canvas, frame, 0.56, 0.28, low, low + 0.34, colour)
    band = shaded(colour, 1.35)
    for side in (0.145, -0.145):
        strip = frame.many(
            [(-0.28, side, low + 0.2), (-0.28, side, low + 0.25), (0.28, side, low + 0.25), (0.28, side, low + 0.2)]
        )
        canvas.face(strip if side > 0 else strip[::-1], band)
    canvas.capsule(frame.at(-0.14, 0, low + 0.34), frame.at(-0.07, 0, low + 0.47), 0.035, shaded(colour, 0.7))
    canvas.capsule(frame.at(0.14, 0, low + 0.34), frame.at(0.07, 0, low + 0.47), 0.035, shaded(colour, 0.7))
    canvas.capsule(frame.at(-0.07, 0, low + 0.47), frame.at(0.07, 0, low + 0.47), 0.035, shaded(colour, 0.7))
    return canvas.rasterise()


def shadow_mask(
    camera: Camera, ground_N3: NDArray[np.float64], softness_m: float
) -> tuple[int, int, NDArray[np.float32]] | None:
    """A soft mask ``(left, top, mask_HW)`` of a polygon on the ground, 0..1; None when out of the frame."""
    if (ground_N3[:, 2] <= _NEAR_M).any():
        return None
    points = camera.project(ground_N3)
    blur = max(0.8, softness_m * camera.pixels_per_metre(float(ground_N3[:, 2].mean())) * 0.5)
    margin = math.ceil(blur * 2.5) + 1
    left, top = (np.floor(points.min(axis=0)).astype(int) - margin).tolist()
    right, bottom = (np.ceil(points.max(axis=0)).astype(int) + margin).tolist()
    inner = max(left, 0), max(top, 0), min(right, camera.width), min(bottom, camera.height)
    if inner[2] <= inner[0] or inner[3] <= inner[1] or (right - left) * (bottom - top) > 4_000_000:
        return None
    picture = Image.new("L", (right - left, bottom - top))
    ImageDraw.Draw(picture).polygon([tuple(point) for point in points - (left, top)], fill=255)
    soft = picture.filter(ImageFilter.GaussianBlur(blur))
    cut = soft.crop((inner[0] - left, inner[1] - top, inner[2] - left, inner[3] - top))
    return inner[0], inner[1], np.asarray(cut, dtype=np.float32) / np.float32(255)
