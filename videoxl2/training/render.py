"""Frames of a scene: background, doors, shadows, actors, lamps, light, noise and clock, in that order.

Owns composition. A frame depends only on the scene and its index, so frames may be rendered in any order and twice the
same scene gives the same bytes. Beside the colours every frame says which actor each pixel shows, counted before noise
and clock are put over it: labels come from there, not from the script.

Dimensions: H rows, W columns.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from datetime import timedelta
from functools import cached_property, lru_cache

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFilter, ImageFont

from videoxl2.training.backdrops import lit_scenery
from videoxl2.training.figures import draw_bicycle, draw_doorway, draw_leaf, draw_smoke, fallen_pitch
from videoxl2.training.painter import add_glow
from videoxl2.training.scene import Actor, Bag, Bicycle, Dog, Doorway, Person, Pose, Scene, Smoke, Vehicle
from videoxl2.training.scenery import GATE_HALF_WIDTH, Scenery, build_scenery
from videoxl2.training.sprites import (
    Canvas,
    Frame3D,
    Point,
    Sprite,
    draw_bag,
    draw_dog,
    draw_person,
    draw_vehicle,
    hand_position,
    lamp_positions,
    shadow_mask,
    vehicle_footprint,
)

_NUM_NOISE_FRAMES = 5
_NOISE_MARGIN = 24
_BARRIER_RAMP_S = 1.6
_DOOR_RAMP_S = 0.4
_FLASH_PERIOD_S = 0.9
_LIGHT_SWING = {"gate": 0.055, "parking": 0.012, "corridor": 0.010, "street": 0.04, "shop": 0.010}
_NUM_RAIN_FRAMES = 4


@dataclass(frozen=True)
class RenderedFrame:
    """One frame: ``rgb_HW3`` uint8; ``actors_HW`` uint8, 0 for the background and i + 1 for ``scene.actors[i]``."""

    index: int
    time_s: float
    rgb_HW3: NDArray[np.uint8]
    actors_HW: NDArray[np.uint8]


@dataclass(frozen=True)
class _Placed:
    """An actor's picture in one frame, with the distance that decides who hides whom."""

    number: int
    z: float
    sprite: Sprite
    light: tuple[float, float, float]


class Renderer:
    """Renders the frames of one scene. Building it draws the background (0.3 s at 384 x 216); a frame takes 10 ms."""

    def __init__(self, scene: Scene) -> None:
        if len(scene.actors) > 254:
            raise ValueError(f"a scene can show at most 254 actors, not {len(scene.actors)}")
        self.scene = scene
        if scene.place is not None and scene.conditions is not None:
            self.scenery: Scenery = lit_scenery(scene.place, scene.camera, scene.conditions)
        else:
            self.scenery = build_scenery(scene.camera, scene.seed)
        self._static: dict[str, Sprite | None] = {}
        self._by_id = {actor.actor_id: actor for actor in scene.actors}
        self._bags = [actor for actor in scene.actors if isinstance(actor, Bag)]

    def frames(self) -> Iterator[RenderedFrame]:
        for index in range(self.scene.num_frames):
            yield self.frame(index)

    def frame(self, index: int) -> RenderedFrame:
        """Frame ``index`` of the scene, 0 being its first picture."""
        if not 0 <= index < self.scene.num_frames:
            raise IndexError(f"frame {index} of a scene with {self.scene.num_frames} frames")
        return self.moment(self.scene.frame_time_s(index), index)

    def moment(self, t: float, index: int, has_clock: bool = True) -> RenderedFrame:
        """The picture at any time of the scene; ``index`` chooses its noise. ``burn_clock`` adds a clock later."""
        scene, camera = self.scene, self.scene.camera
        rgb = self.scenery.rgb_HW3.copy()
        depth = self._open_doors(rgb, t)
        owners = np.zeros((camera.height, camera.width), np.uint8)
        present = [(number, actor) for number, actor in enumerate(scene.actors) if self._is_present(actor, t)]
        for _, actor in present:
            self._cast_shadow(rgb, depth, actor, t)
        for number, actor in present:
            if isinstance(actor, Doorway):
                depth = self._open_doorway(rgb, depth, owners, number + 1, actor)
        self._light_the_road(rgb, t)
        placed = [self._placed(number, actor, t) for number, actor in present]
        placed.append(self._barrier(t))
        for item in sorted((item for item in placed if item is not None), key=lambda item: -item.z):
            _composite(rgb, depth, owners, item)
        self._lamp_glow(rgb, t)
        if scene.conditions is not None and scene.conditions.weather == "rain":
            self._rain(rgb, index)
        rgb *= self._light(t)
        rgb += self._noise(index)
        pixels = np.clip(rgb, 0, 255).astype(np.uint8)
        if has_clock:
            self.burn_clock(pixels, t)
        return RenderedFrame(index, t, pixels, owners)

    # --- actors ---------------------------------------------------------------------------------------------------

    def _is_present(self, actor: Actor, t: float) -> bool:
        if isinstance(actor, Bag):
            if t >= actor.picked_s:
                return t < actor.end_s and self._carrier(actor, t).track.is_present(t)
            return t < actor.end_s and (t >= actor.dropped_s or self._carrier(actor, t).track.is_present(t))
        if isinstance(actor, Doorway):
            return any(start <= t < end for start, end in actor.intervals)
        return actor.track.is_present(t)

    def _carrier(self, bag: Bag, t: float) -> Person:
        """Who carries the bag, or did last."""
        carrier_id = bag.picker_id if t >= bag.picked_s and bag.picker_id is not None else bag.carrier_id
        carrier = self._by_id[carrier_id]
        if not isinstance(carrier, Person):
            raise ValueError(f"{bag.actor_id} is carried by {carrier_id}, which is not a person")
        return carrier

    def _bag_place(self, bag: Bag, t: float) -> tuple[Point, float]:
        """Where a bag's handle (in the hand) or its place on the ground is, and its heading."""
        carrier, is_held_again = self._carrier(bag, t), t >= bag.picked_s
        pose = carrier.track.pose(t if is_held_again else min(t, bag.dropped_s))
        frame = Frame3D.of(pose)
        if bag.shape == "suitcase":
            return frame.at(-0.38, -0.26, 0.0), pose.heading
        hand = hand_position(carrier, pose)
        if t < bag.dropped_s or is_held_again:
            return hand, pose.heading
        fall = max(0.0, hand[1] - 4.9 * (t - bag.dropped_s) ** 2)
        return (hand[0], fall, hand[2]), pose.heading

    def _is_carrying(self, person: Person, t: float) -> bool:
        return any(
            (bag.carrier_id == person.actor_id and t < bag.dropped_s)
            or (bag.picker_id == person.actor_id and t >= bag.picked_s)
            for bag in self._bags
        )

    def _placed(self, number: int, actor: Actor, t: float) -> _Placed | None:
        camera = self.scene.camera
        if isinstance(actor, Bag):
            place, heading = self._bag_place(actor, t)
            x, z, sprite = place[0], place[2], draw_bag(camera, actor, place, heading)
        else:
            pose = actor.track.pose(t)
            x, z = pose.x, pose.z
            if isinstance(actor, Person):
                sprite = draw_person(camera, actor, pose, self._is_carrying(actor, t), fallen_pitch(actor, t))
            elif isinstance(actor, Bicycle):
                sprite = draw_bicycle(camera, actor, pose)
            elif isinstance(actor, Smoke):
                sprite = draw_smoke(camera, actor, t)
            elif isinstance(actor, Doorway):
                sprite = draw_leaf(camera, actor)
                z = max(corner[1] for corner in actor.ends)
            elif isinstance(actor, Dog):
                sprite = draw_dog(camera, actor, pose)
            else:
                sprite = self._vehicle_sprite(actor, pose, t)
                z -= 1.0
        if sprite is None:
            return None
        if self.scenery.haze_at is not None:
            sprite = _hazed(sprite, self.scenery.light_at(x, z), self.scenery.haze_at(z), self.scenery.haze_rgb)
            return _Placed(number + 1, z, sprite, (1.0, 1.0, 1.0))
        return _Placed(number + 1, z, sprite, self.scenery.light_at(x, z))

    def _open_doorway(
        self,
        rgb: NDArray[np.float32],
        depth: NDArray[np.float32],
        owners: NDArray[np.uint8],
        number: int,
        doorway: Doorway,
    ) -> NDArray[np.float32]:
        """Put the dark of an open door into the wall and let what is behind it show; gives the new depth."""
        if doorway.actor_id not in self._static:
            self._static[doorway.actor_id] = draw_doorway(self.scene.camera, doorway)
        sprite = self._static[doorway.actor_id]
        if sprite is None:
            return depth
        z = min(corner[1] for corner in doorway.ends) - 0.3
        _composite(rgb, depth, owners, _Placed(number, z, sprite, self.scenery.light_at(doorway.ends[0][0], z)))
        depth = depth.copy()
        rows, columns = sprite.alpha_HW.shape
        area = np.s_[sprite.top : sprite.top + rows, sprite.left : sprite.left + columns]
        depth[area] = np.where((sprite.alpha_HW > 0.5) & (depth[area] >= z), np.float32(np.inf), depth[area])
        return depth

    def _vehicle_sprite(self, vehicle: Vehicle, pose: Pose, t: float) -> Sprite | None:
        """The picture of a vehicle, drawn once while it stands still with the same lamps."""
        lights = _lamp_power(vehicle, t) > 0.5
        if pose.speed > 1e-3:
            return draw_vehicle(self.scene.camera, vehicle, pose, lights)
        key = f"{vehicle.actor_id}/{lights}/{pose.x:.4f}/{pose.z:.4f}"
        if key not in self._static:
            self._static[key] = draw_vehicle(self.scene.camera, vehicle, pose, lights)
        return self._static[key]

    def _barrier(self, t: float) -> _Placed | None:
        """The striped arm of the gate: flat when shut, raised while its opening lasts."""
        if self.scene.camera.scenery != "gate":
            return None
        angle = math.radians(82.0) * self._openness("barrier", t, _BARRIER_RAMP_S)
        canvas, z, length, stripes = Canvas(self.scene.camera), 17.7, 5.4, 9
        if self.scene.place is not None and self.scene.place.barrier is not None:
            return self._placed_barrier(self.scene.place.barrier, angle)
        for stripe in range(stripes):
            ends = [length * (stripe + share) / stripes for share in (0.0, 1.0)]
            low, high = ((GATE_HALF_WIDTH + 0.75 - e * math.cos(angle), 0.95 + e * math.sin(angle), z) for e in ends)
            canvas.capsule(low, high, 0.11, (206, 46, 40) if stripe % 2 else (238, 238, 234))
        sprite = canvas.rasterise()
        return None if sprite is None else _Placed(0, z - 0.1, sprite, self.scenery.light_at(0.0, z))

    def _placed_barrier(self, barrier: tuple[float, float, float], angle: float) -> _Placed | None:
        """The arm of a random gate: it reaches from its hinge towards the other side of the drive."""
        hinge, z, length = barrier
        canvas, stripes, towards = Canvas(self.scene.camera), 9, -math.copysign(1.0, hinge)
        for stripe in range(stripes):
            ends = [length * (stripe + share) / stripes for share in (0.0, 1.0)]
            low, high = ((hinge + towards * e * math.cos(angle), 0.95 + e * math.sin(angle), z) for e in ends)
            canvas.capsule(low, high, 0.11, (178, 92, 84) if stripe % 2 else (228, 228, 224))
        sprite = canvas.rasterise()
        return None if sprite is None else _Placed(0, z - 0.1, sprite, self.scenery.light_at(hinge, z))

    def _openness(self, name: str, t: float, ramp_s: float) -> float:
        """How far an opening of the scenery is open at ``t``, 0 to 1."""
        shares = [
            min((t - opening.interval[0]) / ramp_s, (opening.interval[1] - t) / ramp_s)
            for opening in self.scene.openings
            if opening.name == name
        ]
        linear = min(max([0.0, *shares]), 1.0)
        return linear * linear * (3 - 2 * linear)

    def _open_doors(self, rgb: NDArray[np.float32], t: float) -> NDArray[np.float32]:
        """Put open doors into the picture; gives the depth that goes with it."""
        depth = self.scenery.depth_HW
        for name, door in self.scenery.doors.items():
            share = self._openness(name, t, _DOOR_RAMP_S)
            if share <= 0:
                continue
            depth = depth.copy()
            rows, columns = door.depth_HW.shape
            area = np.s_[door.top : door.top + rows, door.left : door.left + columns]
            rgb[area] += np.float32(share) * (door.rgb_HW3 - rgb[area])
            depth[area] = door.depth_HW
        return depth

    # --- light ----------------------------------------------------------------------------------------------------

    def _cast_shadow(self, rgb: NDArray[np.float32], depth: NDArray[np.float32], actor: Actor, t: float) -> None:
        if actor.actor_id in self.scenery.parked or isinstance(actor, Smoke | Doorway):
            return
        ground, height, z = self._footprint(actor, t)
        sun = self.scenery.sun
        if sun is not None:
            tip = ground + np.asarray([sun[0] * height, 0.0, sun[1] * height])
            ground = _hull(np.concatenate([ground, tip]))
        mask = shadow_mask(self.scene.camera, ground, 0.16 if sun is not None else 0.42)
        if mask is None:
            return
        left, top, soft = mask
        rows, columns = soft.shape
        area = np.s_[top : top + rows, left : left + columns]
        reaches = depth[area] > z - 0.5
        rgb[area] *= (1 - np.float32(0.5) * soft * reaches)[..., None]

    def _footprint(self, actor: Actor, t: float) -> tuple[NDArray[np.float64], float, float]:
        """The ground an actor covers ``[N, 3]``, its height and its distance."""
        if isinstance(actor, Bag):
            place, heading = self._bag_place(actor, t)
            frame, length, width, height = Frame3D(place[0], place[2], heading), 0.3, 0.18, 0.4
        else:
            pose = actor.track.pose(t)
            if isinstance(actor, Vehicle):
                return vehicle_footprint(actor, pose), 1.4 if actor.body == "car" else 2.1, pose.z
            frame = Frame3D.of(pose)
            length, width, height = (0.5, 0.16, 0.6) if isinstance(actor, Dog) else (0.24, 0.2, 1.6)
            if isinstance(actor, Bicycle):
                length = 0.8
        angles = np.linspace(0, math.tau, 12, endpoint=False)
        ring = frame.many((length * math.cos(a), width * math.sin(a), 0.0) for a in angles)
        return ring, height, frame.z

    def _lit_vehicles(self, t: float) -> Iterator[tuple[Vehicle, Pose, float]]:
        for actor in self.scene.actors:
            if isinstance(actor, Vehicle) and actor.track.is_present(t):
                power = _lamp_power(actor, t)
                if power > 0.01:
                    yield actor, actor.track.pose(t), power

    def _light_the_road(self, rgb: NDArray[np.float32], t: float) -> None:
        """The pool of light in front of headlights."""
        for _, pose, power in self._lit_vehicles(t):
            frame = Frame3D.of(pose)
            beam = frame.many([(2.3, 0.7, 0), (2.3, -0.7, 0), (8.5, -2.2, 0), (10.0, 0, 0), (8.5, 2.2, 0)])
            mask = shadow_mask(self.scene.camera, beam, 1.5)
            if mask is not None:
                left, top, soft = mask
                rows, columns = soft.shape
                area = np.s_[top : top + rows, left : left + columns]
                rgb[area] *= (1 + np.float32(0.75 * power) * soft)[..., None]

    def _lamp_glow(self, rgb: NDArray[np.float32], t: float) -> None:
        """The flare of lamps that look towards the camera."""
        camera = self.scene.camera
        for vehicle, pose, power in self._lit_vehicles(t):
            towards = -math.sin(pose.heading)
            heads, tails = lamp_positions(vehicle, pose)
            for lamps, facing, colour, size in (
                (heads, towards, (255, 246, 220), 0.55),
                (tails, -towards, (255, 40, 30), 0.28),
            ):
                strength = power * min(1.0, max(0.0, facing + 0.25))
                for lamp in lamps if strength > 0 else ():
                    if lamp[2] > 1.0:
                        column, row = camera.project(np.asarray(lamp)).tolist()
                        radius = camera.pixels_per_metre(lamp[2]) * size
                        add_glow(rgb, column, row, radius, colour, 0.75 * strength)
                        add_glow(rgb, column, row, radius * 3.2, colour, 0.16 * strength)

    def _light(self, t: float) -> NDArray[np.float32]:
        """Slow changes of the light, one gain per colour channel."""
        phase = float(np.random.default_rng([self.scene.seed, 11]).uniform(0, math.tau))
        swing = _LIGHT_SWING[self.scene.camera.scenery]
        slow = math.sin(math.tau * t / 53.0 + phase) + 0.5 * math.sin(math.tau * t / 19.0 + 2 * phase)
        level, warmth = 1 + swing * slow, 0.01 * math.sin(math.tau * t / 90.0 + phase)
        return np.asarray([level + warmth, level, level - warmth], np.float32)

    def _rain(self, rgb: NDArray[np.float32], index: int) -> None:
        """Bright streaks in front of everything, another sample of them in every frame."""
        camera = self.scene.camera
        frames = _rain_frames(camera.width, camera.height)
        rng = np.random.default_rng([self.scene.seed, 14, index])
        strength = 30.0 if self.scene.conditions is not None and self.scene.conditions.light == "night" else 46.0
        rgb += np.roll(frames[int(rng.integers(len(frames)))], int(rng.integers(camera.width)), axis=1)[
            ..., None
        ] * np.float32(strength)

    @cached_property
    def _noise_frames(self) -> list[NDArray[np.float32]]:
        if self.scene.place is not None:
            size = self.scene.camera.width, self.scene.camera.height
            return [frame * np.float32(self.scenery.noise_sigma) for frame in _unit_noise(*size)]
        camera, rng = self.scene.camera, np.random.default_rng([self.scene.seed, 12])
        shape = (camera.height + _NOISE_MARGIN, camera.width + _NOISE_MARGIN, 3)
        sigma = np.float32(self.scenery.noise_sigma)
        frames = []
        for _ in range(_NUM_NOISE_FRAMES):
            grain = rng.standard_normal((*shape[:2], 1), dtype=np.float32)
            tint = rng.standard_normal(shape, dtype=np.float32)
            frames.append((grain * np.float32(0.85) + tint * np.float32(0.45)) * sigma)
        return frames

    def _noise(self, index: int) -> NDArray[np.float32]:
        """Sensor noise: a seeded cut of one of a few prepared noise pictures."""
        camera, rng = self.scene.camera, np.random.default_rng([self.scene.seed, 13, index])
        top, left, number = rng.integers([_NOISE_MARGIN, _NOISE_MARGIN, _NUM_NOISE_FRAMES]).tolist()
        return self._noise_frames[number][top : top + camera.height, left : left + camera.width]

    # --- clock ----------------------------------------------------------------------------------------------------

    def burn_clock(self, pixels: NDArray[np.uint8], t: float) -> None:
        """Write camera name and wall-clock time into the picture, as cameras do."""
        camera = self.scene.camera
        moment = self.scene.start + timedelta(seconds=math.floor(t + 1e-6))
        size, margin = max(11, round(camera.height / 26)), round(camera.height / 45)
        _write(pixels, moment.strftime("%Y-%m-%d  %H:%M:%S"), size, margin, margin)
        _write(pixels, f"CAM {camera.name.upper()}", size, margin, camera.height - margin - 2 * size + size // 2)


def _lamp_power(vehicle: Vehicle, t: float) -> float:
    """Brightness of a vehicle's lamps at ``t``, 0 to 1; flashing lamps go on and off with soft edges."""
    if any(start <= t < end for start, end in vehicle.lights):
        return 1.0
    if any(start <= t < end for start, end in vehicle.flashes):
        return 1.5 * max(0.0, min(1.0, 0.5 + 1.6 * math.sin(math.tau * t / _FLASH_PERIOD_S)))
    return 0.0


def _composite(rgb: NDArray[np.float32], depth: NDArray[np.float32], owners: NDArray[np.uint8], item: _Placed) -> None:
    """Draw one actor over the picture where no wall or prop is nearer."""
    sprite = item.sprite
    rows, columns = sprite.alpha_HW.shape
    area = np.s_[sprite.top : sprite.top + rows, sprite.left : sprite.left + columns]
    alpha = sprite.alpha_HW * (depth[area] >= item.z)
    rgb[area] += (sprite.rgb_HW3 * np.asarray(item.light, np.float32) - rgb[area]) * alpha[..., None]
    owners[area] = np.where(alpha > 0.5, item.number, owners[area])


def _hull(points_N3: NDArray[np.float64]) -> NDArray[np.float64]:
    """Convex hull of ground points (x, z), in order."""
    ordered = sorted({(float(x), float(z)) for x, _, z in points_N3})

    def half(points: list[tuple[float, float]]) -> list[tuple[float, float]]:
        chain: list[tuple[float, float]] = []
        for p in points:
            while len(chain) > 1:
                (ax, az), (bx, bz) = chain[-2], chain[-1]
                if (bx - ax) * (p[1] - az) - (bz - az) * (p[0] - ax) > 0:
                    break
                chain.pop()
            chain.append(p)
        return chain[:-1]

    return np.asarray([(x, 0.0, z) for x, z in half(ordered) + half(ordered[::-1])])


def _hazed(
    sprite: Sprite, light: tuple[float, float, float], haze: float, haze_rgb: tuple[float, float, float]
) -> Sprite:
    """A lit sprite seen through fog."""
    lit = sprite.rgb_HW3 * (np.asarray(light, np.float32) * np.float32(1 - haze))
    return replace(sprite, rgb_HW3=lit + np.asarray(haze_rgb, np.float32) * np.float32(haze))


@lru_cache(maxsize=8)
def _unit_noise(width: int, height: int) -> tuple[NDArray[np.float32], ...]:
    """Noise pictures of unit strength that all random scenes of one size share."""
    rng, shape = np.random.default_rng([width, height, 12]), (height + _NOISE_MARGIN, width + _NOISE_MARGIN)
    grains = [rng.standard_normal((*shape, 1), dtype=np.float32) * np.float32(0.85) for _ in range(_NUM_NOISE_FRAMES)]
    return tuple(g + rng.standard_normal((*shape, 3), dtype=np.float32) * np.float32(0.45) for g in grains)


@lru_cache(maxsize=8)
def _rain_frames(width: int, height: int) -> tuple[NDArray[np.float32], ...]:
    """Slanted streaks, 0..1."""
    frames = []
    for number in range(_NUM_RAIN_FRAMES):
        rng = np.random.default_rng([width, height, 15, number])
        picture = Image.new("L", (width, height))
        pen = ImageDraw.Draw(picture)
        for _ in range(width * height // 1100):
            column, row = rng.uniform(0, width), rng.uniform(-0.1, 1) * height
            length = height * rng.uniform(0.03, 0.09)
            pen.line((column, row, column - length * 0.15, row + length), fill=int(rng.integers(70, 220)))
        frames.append(np.asarray(picture.filter(ImageFilter.GaussianBlur(0.5)), np.float32) / np.float32(255))
    return tuple(frames)


@lru_cache(maxsize=64)
def _text_mask(text: str, size: int) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Ink and outline of a text, 0..1, drawn with the font that Pillow carries."""
    font = ImageFont.load_default(size)
    width = math.ceil(font.getlength(text)) + 6
    picture = Image.new("L", (width, size + size // 2 + 4))
    ImageDraw.Draw(picture).text((3, 2), text, fill=255, font=font)
    outline = picture.filter(ImageFilter.MaxFilter(3))
    scale = np.float32(255)
    return np.asarray(picture, np.float32) / scale, np.asarray(outline, np.float32) / scale


def _write(pixels: NDArray[np.uint8], text: str, size: int, left: int, top: int) -> None:
    """White text with a dark outline, in place, cut at the picture's edge."""
    ink, outline = _text_mask(text, size)
    target = pixels[top : top + ink.shape[0], left : left + ink.shape[1]]
    ink, outline = ink[: target.shape[0], : target.shape[1], None], outline[: target.shape[0], : target.shape[1], None]
    mixed = target * (1 - 0.8 * outline)
    target[:] = (mixed * (1 - ink) + 246 * ink).astype(np.uint8)
