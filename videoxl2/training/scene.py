"""What happens in front of a fixed camera: geometry, actors, their paths, and the actions that labels are made from.

Owns plain values only: nothing here draws (``sprites``, ``scenery``, ``render``) or writes files (``footage``), and no
story is told here (``storyboard``). Lengths are metres, times are seconds from the first picture, colours are names.

The world has x to the right, y up from the ground and z away from the camera. The camera is a pinhole with a shifted
lens: verticals stay vertical and the horizon is a straight row, which is how most wall-mounted cameras are set up.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from fractions import Fraction
from functools import cached_property
from itertools import pairwise
from typing import TYPE_CHECKING, Literal

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from videoxl2.training.conditions import Conditions
    from videoxl2.training.places import Place

Colour = Literal[
    "red", "orange", "yellow", "green", "blue", "purple", "pink", "brown", "white", "grey", "silver", "black"
]

COLOURS: Mapping[Colour, tuple[int, int, int]] = {
    "red": (204, 28, 32),
    "orange": (240, 122, 24),
    "yellow": (240, 206, 44),
    "green": (36, 142, 66),
    "blue": (34, 78, 204),
    "purple": (128, 52, 170),
    "pink": (238, 130, 170),
    "brown": (122, 80, 46),
    "white": (236, 236, 232),
    "grey": (122, 126, 130),
    "silver": (178, 182, 188),
    "black": (30, 30, 34),
}

SceneryKind = Literal["gate", "parking", "corridor", "street", "shop"]

_TRACK_RATE = 25.0


@dataclass(frozen=True, slots=True)
class Camera:
    """A fixed camera: picture size, frame rate and projection.

    ``focal_px`` is the focal length and ``horizon_px`` the row of the horizon, both in pixels of the full picture;
    ``height_m`` is the height of the lens above the ground.
    """

    name: str
    scenery: SceneryKind
    width: int
    height: int
    fps: Fraction
    focal_px: float
    horizon_px: float
    height_m: float

    def project(self, points_N3: NDArray[np.float64]) -> NDArray[np.float64]:
        """World points ``[..., 3]`` in metres to picture points ``[..., 2]`` in pixels (column, row). Needs z > 0."""
        points = np.asarray(points_N3, dtype=np.float64)
        z = points[..., 2]
        column = self.width / 2 + self.focal_px * points[..., 0] / z
        row = self.horizon_px + self.focal_px * (self.height_m - points[..., 1]) / z
        return np.stack([column, row], axis=-1)

    def pixels_per_metre(self, z: float) -> float:
        """How many pixels one metre across the line of sight covers at distance ``z``."""
        return self.focal_px / z


@dataclass(frozen=True)
class Pose:
    """Where an actor is at one moment. ``heading`` is the angle of travel: 0 along +x, pi/2 away from the camera."""

    x: float
    z: float
    heading: float
    speed: float
    distance: float


@dataclass(frozen=True)
class Track:
    """A path through waypoints ``(t, x, z)`` with rounded corners and soft starts and stops.

    Before the first and after the last waypoint the actor is absent, unless ``is_parked_before`` or
    ``is_parked_after``. Two waypoints at the same place are a stop. ``smooth_s`` is the width of the
    rounding window: positions deviate from the straight path only within half of it around a waypoint.
    """

    waypoints: tuple[tuple[float, float, float], ...]
    smooth_s: float = 0.5
    is_parked_before: bool = False
    is_parked_after: bool = False
    first_heading: float | None = None

    def __post_init__(self) -> None:
        times = [point[0] for point in self.waypoints]
        if not times or any(later <= earlier for earlier, later in pairwise(times)):
            raise ValueError("waypoints must be in strictly increasing order of time, and at least one")

    @property
    def start_s(self) -> float:
        return self.waypoints[0][0]

    @property
    def end_s(self) -> float:
        return self.waypoints[-1][0]

    def is_present(self, t: float) -> bool:
        """True when the actor is in the world at ``t`` (not yet: in the picture)."""
        after_start = self.is_parked_before or t >= self.start_s
        before_end = self.is_parked_after or t < self.end_s
        return after_start and before_end

    @cached_property
    def _samples(self) -> tuple[NDArray[np.float64], ...]:
        """Times, x, z, heading, speed and distance walked, sampled at ``_TRACK_RATE`` per second."""
        points = np.asarray(self.waypoints, dtype=np.float64)
        pad = self.smooth_s
        count = max(2, round((self.end_s - self.start_s + 2 * pad) * _TRACK_RATE) + 1)
        times = np.linspace(self.start_s - pad, self.end_s + pad, count)
        step = times[1] - times[0]
        # Extrapolate beyond the ends, so that smoothing does not slow down an actor who crosses the picture's edge.
        reach = max(1, round(self.smooth_s / step / 2))
        kernel = np.hanning(2 * reach + 3)[1:-1]
        kernel /= kernel.sum()
        wide = np.concatenate(
            [times[0] - step * np.arange(reach, 0, -1), times, times[-1] + step * np.arange(1, reach + 1)]
        )
        x = np.convolve(self._extrapolated(wide, points[:, 0], points[:, 1]), kernel, mode="valid")
        z = np.convolve(self._extrapolated(wide, points[:, 0], points[:, 2]), kernel, mode="valid")
        vx, vz = np.gradient(x, step), np.gradient(z, step)
        speed = np.hypot(vx, vz)
        heading = self._held_heading(vx, vz, speed)
        distance = np.concatenate([[0.0], np.cumsum(np.hypot(np.diff(x), np.diff(z)))])
        return times, x, z, heading, speed, distance

    def _extrapolated(
        self, t: NDArray[np.float64], times: NDArray[np.float64], values: NDArray[np.float64]
    ) -> NDArray[np.float64]:
        result = np.interp(t, times, values)
        if len(times) > 1 and not self.is_parked_before:
            slope = (values[1] - values[0]) / (times[1] - times[0])
            result = np.where(t < times[0], values[0] + slope * (t - times[0]), result)
        if len(times) > 1 and not self.is_parked_after:
            slope = (values[-1] - values[-2]) / (times[-1] - times[-2])
            result = np.where(t > times[-1], values[-1] + slope * (t - times[-1]), result)
        return result

    def _held_heading(
        self, vx: NDArray[np.float64], vz: NDArray[np.float64], speed: NDArray[np.float64]
    ) -> NDArray[np.float64]:
        """Direction of travel; while standing still, the last one (or ``first_heading`` before any movement)."""
        moving = speed > 0.08
        fallback = self.first_heading if self.first_heading is not None else -np.pi / 2
        if not moving.any():
            return np.full(len(speed), fallback)
        raw = np.arctan2(vz, vx)
        last_moving = np.maximum.accumulate(np.where(moving, np.arange(len(speed)), -1))
        start = raw[np.argmax(moving)] if self.first_heading is None else self.first_heading
        return np.unwrap(np.where(last_moving >= 0, raw[np.maximum(last_moving, 0)], start))

    def pose(self, t: float) -> Pose:
        """The pose at ``t``; outside the path, the nearest end's."""
        times, *series = self._samples
        clamped = min(max(t, self.start_s), self.end_s)
        x, z, heading, speed, distance = (float(np.interp(clamped, times, values)) for values in series)
        return Pose(x, z, heading, speed, distance)


def _article(colour: Colour) -> str:
    return "an" if colour == "orange" else "a"


@dataclass(frozen=True)
class Person:
    """Somebody on foot. A running gait is drawn when the track is fast (over 2.6 m/s).

    ``falls`` are the intervals from losing balance to being up again; between them the person lies on the ground.
    """

    actor_id: str
    track: Track
    shirt: Colour
    trousers: Colour
    hair: Colour = "brown"
    skin: tuple[int, int, int] = (214, 168, 138)
    height_m: float = 1.76
    has_hood: bool = False
    falls: tuple[tuple[float, float], ...] = ()

    @property
    def kind(self) -> str:
        return "person"

    @property
    def attributes(self) -> dict[str, str]:
        return {"shirt": self.shirt, "trousers": self.trousers}

    @property
    def words(self) -> str:
        garment = "hoodie" if self.has_hood else "shirt"
        return f"a person in {_article(self.shirt)} {self.shirt} {garment} and {self.trousers} trousers"


@dataclass(frozen=True)
class Vehicle:
    """A car or van. ``lights`` are the intervals during which its headlights are on."""

    actor_id: str
    track: Track
    body: Literal["car", "van"]
    colour: Colour
    lights: tuple[tuple[float, float], ...] = ()
    flashes: tuple[tuple[float, float], ...] = ()

    @property
    def kind(self) -> str:
        return self.body

    @property
    def attributes(self) -> dict[str, str]:
        return {"colour": self.colour}

    @property
    def words(self) -> str:
        return f"{_article(self.colour)} {self.colour} {self.body}"


@dataclass(frozen=True)
class Dog:
    """A dog that trots along its track."""

    actor_id: str
    track: Track
    colour: Colour = "brown"

    @property
    def kind(self) -> str:
        return "dog"

    @property
    def attributes(self) -> dict[str, str]:
        return {"colour": self.colour}

    @property
    def words(self) -> str:
        return f"{_article(self.colour)} {self.colour} dog"


@dataclass(frozen=True)
class Bicycle:
    """A bicycle with its rider: the colour that is seen of it is the rider's shirt."""

    actor_id: str
    track: Track
    shirt: Colour
    trousers: Colour = "black"
    skin: tuple[int, int, int] = (214, 168, 138)

    @property
    def kind(self) -> str:
        return "bicycle"

    @property
    def attributes(self) -> dict[str, str]:
        return {"shirt": self.shirt}

    @property
    def words(self) -> str:
        return f"a cyclist in {_article(self.shirt)} {self.shirt} shirt"


@dataclass(frozen=True)
class Smoke:
    """Smoke that rises from a place on the ground while its track lasts (two waypoints at one place)."""

    actor_id: str
    track: Track

    @property
    def kind(self) -> str:
        return "smoke"

    @property
    def attributes(self) -> dict[str, str]:
        return {}

    @property
    def words(self) -> str:
        return "smoke"


@dataclass(frozen=True)
class Doorway:
    """A door of a random place that is open during ``intervals`` (the track spans them all).

    ``ends`` are the corners ``(x, z)`` of the opening, the hinge first; the leaf swings away from the camera.
    """

    actor_id: str
    track: Track
    ends: tuple[tuple[float, float], tuple[float, float]]
    intervals: tuple[tuple[float, float], ...]
    height_m: float = 2.1

    @property
    def kind(self) -> str:
        return "door"

    @property
    def attributes(self) -> dict[str, str]:
        return {}

    @property
    def words(self) -> str:
        return "a door"


@dataclass(frozen=True)
class Bag:
    """A bag or suitcase in its carrier's hand until ``dropped_s``, then on the ground until ``end_s``.

    Somebody else (or the same person) may pick it up: ``picker_id`` carries it from ``picked_s`` on.
    """

    actor_id: str
    carrier_id: str
    colour: Colour
    shape: Literal["bag", "suitcase"] = "bag"
    dropped_s: float = float("inf")
    end_s: float = float("inf")
    picked_s: float = float("inf")
    picker_id: str | None = None

    @property
    def kind(self) -> str:
        return self.shape

    @property
    def attributes(self) -> dict[str, str]:
        return {"colour": self.colour}

    @property
    def words(self) -> str:
        return f"{_article(self.colour)} {self.colour} {self.shape}"


Actor = Person | Vehicle | Bicycle | Dog | Bag | Smoke | Doorway


@dataclass(frozen=True)
class Opening:
    """A door or barrier of the scenery, by the scenery's own name for it, that is open during ``interval``."""

    name: str
    interval: tuple[float, float]


@dataclass(frozen=True)
class Action:
    """One labelled action. ``kind`` is a word of ``footage``'s verbs: enter, leave, stop, run, drop, meet, ..."""

    kind: str
    actor_id: str
    start_s: float
    end_s: float
    object_id: str | None = None
    is_anomaly: bool = False
    text: str = ""

    def __post_init__(self) -> None:
        if self.end_s <= self.start_s:
            raise ValueError(f"action {self.kind} of {self.actor_id} ends at {self.end_s}, before {self.start_s}")


@dataclass(frozen=True)
class Scene:
    """Everything one video shows. ``start`` is the local wall-clock time of its first picture, without a zone.

    A random scene has a ``place`` and the ``conditions`` it is seen in; without them the demo's scenery is shown.
    """

    camera: Camera
    start: datetime
    duration_s: float
    seed: int
    actors: Sequence[Actor]
    actions: Sequence[Action] = field(default_factory=tuple)
    openings: Sequence[Opening] = field(default_factory=tuple)
    place: Place | None = None
    conditions: Conditions | None = None

    def __post_init__(self) -> None:
        ids = [actor.actor_id for actor in self.actors]
        if len(set(ids)) != len(ids):
            raise ValueError("two actors of a scene have the same actor_id")
        unknown = {action.actor_id for action in self.actions} - set(ids)
        if unknown:
            raise ValueError(f"actions name unknown actors: {sorted(unknown)}")

    @property
    def num_frames(self) -> int:
        return round(self.duration_s * self.camera.fps)

    def frame_time_s(self, index: int) -> float:
        return float(index / self.camera.fps)

    def actor(self, actor_id: str) -> Actor:
        return next(actor for actor in self.actors if actor.actor_id == actor_id)
