"""What is true of a clip or a video: who is seen when and where, and what happens. Questions are made from this alone.

Owns the records and how they follow from a scene and from rendered pixels. Something too small or too short to be
recognised is ``doubtful``: it is never asked about, and nothing that it could make true is ever denied.

Dimensions: F frames looked at, A actors of the scene.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from videoxl2.training.scene import Bag, Doorway, Scene

Interval = tuple[float, float]

# Shares of the picture's pixels: visible at all, and large enough to tell what it is (22 pixels of 208x208).
VISIBLE_SHARE = 1.5e-4
CLEAR_SHARE = 5e-4
# Enough of an action must lie in the window that one can tell what it is.
_MIN_SEEN_S: Mapping[str, float] = {
    "loiter": 12.0,
    "open": 7.0,
    "meet": 2.5,
    "stop": 3.0,
    "smoke": 3.0,
    "fall": 2.0,
    "drop": 0.3,
    "pick": 0.3,
    "park": 0.3,
}
_DEFAULT_MIN_SEEN_S = 1.0
_WHOLE = frozenset({"drop", "pick", "park"})
_MIN_STATIONARY_M = 0.3


@dataclass(frozen=True)
class Sighting:
    """An object at one moment: its middle and its lower edge as shares of the picture, and its share of the pixels."""

    time_s: float
    x: float
    bottom: float
    area: float


@dataclass(frozen=True)
class ObjectFact:
    """Somebody or something that is seen. ``moves`` is False for what stands where it was all the time."""

    object_id: str
    kind: str
    attributes: dict[str, str]
    visible: tuple[Interval, ...]
    sightings: tuple[Sighting, ...]
    moves: bool


@dataclass(frozen=True)
class EventFact:
    """Something that an object does during ``[start_s, end_s)``, to ``target_id`` if it needs one."""

    event_id: str
    kind: str
    object_id: str
    target_id: str | None
    start_s: float
    end_s: float
    is_anomaly: bool


@dataclass(frozen=True)
class Facts:
    """Everything known of ``[start_s, end_s)``, in the clock that its questions use.

    ``doubtful_objects`` and ``doubtful_events`` are there but may be missed.
    """

    camera_kind: str
    start_s: float
    end_s: float
    objects: tuple[ObjectFact, ...]
    events: tuple[EventFact, ...]
    doubtful_objects: tuple[ObjectFact, ...] = ()
    doubtful_events: tuple[EventFact, ...] = ()

    @cached_property
    def by_id(self) -> Mapping[str, ObjectFact]:
        """All objects, doubtful ones too."""
        return {item.object_id: item for item in (*self.doubtful_objects, *self.objects)}

    def object(self, object_id: str) -> ObjectFact:
        return self.by_id[object_id]

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return asdict(self)

    @property
    def anomalies(self) -> tuple[EventFact, ...]:
        return tuple(event for event in self.events if event.is_anomaly)


@dataclass(frozen=True)
class Watch:
    """Where each actor's pixels are at the moments looked at: counts, mean column and lowest row, as shares."""

    times_F: NDArray[np.float64]
    period_s: float
    area_FA: NDArray[np.float64]
    x_FA: NDArray[np.float64]
    bottom_FA: NDArray[np.float64]


def watch_pixels(times_s: Sequence[float], period_s: float, owners: Iterable[NDArray[np.uint8]], num: int) -> Watch:
    """A ``Watch`` from rendered pixel ownership, one picture per time."""
    rows = [owned_places(actors_HW, num) for actors_HW in owners]
    stacked = np.asarray(rows, np.float64).reshape(len(times_s), 3, num)
    return Watch(np.asarray(times_s, np.float64), period_s, stacked[:, 0], stacked[:, 1], stacked[:, 2])


def owned_places(actors_HW: NDArray[np.uint8], num: int) -> NDArray[np.float64]:
    """Area, mean column and lowest row of each actor as shares of the picture, ``[3, A]``."""
    height, width = actors_HW.shape
    result = np.zeros((3, num))
    rows, columns = np.nonzero(actors_HW)
    if rows.size:
        owner = actors_HW[rows, columns].astype(np.int64) - 1
        counts = np.bincount(owner, minlength=num)
        result[0] = counts / (height * width)
        result[1] = np.bincount(owner, weights=columns + 0.5, minlength=num) / np.maximum(counts, 1) / width
        np.maximum.at(result[2], owner, (rows + 1) / height)
    return result


def watch_script(scene: Scene, period_s: float = 1.0) -> Watch:
    """A ``Watch`` from the script alone: projected places, nothing hides anything. For texts that need no pixels."""
    times = np.arange(0.0, scene.duration_s, period_s)
    num, camera = len(scene.actors), scene.camera
    area, x, bottom = (np.zeros((len(times), num)) for _ in range(3))
    by_id = {actor.actor_id: actor for actor in scene.actors}
    for number, actor in enumerate(scene.actors):
        for index, t in enumerate(times.tolist()):
            carrier = actor
            when = t
            if isinstance(actor, Bag):
                if t >= actor.end_s:
                    continue
                carrier = by_id[actor.picker_id if t >= actor.picked_s and actor.picker_id else actor.carrier_id]
                when = min(t, actor.dropped_s) if t < actor.picked_s else t
            if isinstance(carrier, Bag) or not carrier.track.is_present(when):
                continue
            if isinstance(actor, Doorway) and not any(low <= t < high for low, high in actor.intervals):
                continue
            pose = carrier.track.pose(when)
            column, row = camera.project(np.asarray([pose.x, 0.0, max(pose.z, 0.7)])).tolist()
            head = camera.project(np.asarray([pose.x, 1.2, max(pose.z, 0.7)])).tolist()[1]
            if 0 < column < camera.width and head < camera.height and pose.z > 1.2:
                area[index, number] = 0.004
                x[index, number], bottom[index, number] = column / camera.width, min(row / camera.height, 1.0)
    return Watch(times, period_s, area, x, bottom)


def facts_of(scene: Scene, watch: Watch, offset_s: float = 0.0) -> Facts:
    """What is true of the stretch watched; ``offset_s`` is added to every time."""
    start, end = float(watch.times_F[0]), float(watch.times_F[-1]) + watch.period_s
    clear: list[ObjectFact] = []
    faint: list[ObjectFact] = []
    seen_at: dict[str, NDArray[np.float64]] = {}
    for number, actor in enumerate(scene.actors):
        is_seen = watch.area_FA[:, number] >= VISIBLE_SHARE
        if not is_seen.any():
            continue
        seen_at[actor.actor_id] = watch.times_F[is_seen]
        spans = tuple(_shift(span, offset_s) for span in runs(is_seen, start, watch.period_s))
        sightings = tuple(
            Sighting(round(t + offset_s, 3), round(x, 4), round(bottom, 4), round(area, 6))
            for t, x, bottom, area, seen in zip(
                watch.times_F.tolist(),
                watch.x_FA[:, number].tolist(),
                watch.bottom_FA[:, number].tolist(),
                watch.area_FA[:, number].tolist(),
                is_seen.tolist(),
                strict=True,
            )
            if seen
        )
        fact = ObjectFact(
            actor.actor_id, actor.kind, dict(actor.attributes), spans, sightings, _moves(scene, number, start, end)
        )
        is_clear = int((watch.area_FA[:, number] >= CLEAR_SHARE).sum()) >= min(2, len(watch.times_F))
        (clear if is_clear else faint).append(fact)
    faint_ids = {item.object_id for item in faint}
    events: list[EventFact] = []
    doubtful: list[EventFact] = []
    for index, action in enumerate(scene.actions):
        low, high = max(action.start_s, start), min(action.end_s, end)
        times = seen_at.get(action.actor_id)
        if high <= low or times is None:
            continue
        inside = times[(times >= low - 1e-9) & (times < high)]
        if not inside.size:
            continue
        low, high = max(low, float(inside[0])), min(high, float(inside[-1]) + watch.period_s)
        event = EventFact(
            f"event-{index}",
            action.kind,
            action.actor_id,
            action.object_id,
            *_shift((low, high), offset_s),
            action.is_anomaly,
        )
        needed = {action.actor_id, action.object_id} - {None}
        is_known = not (needed & faint_ids) and needed <= set(seen_at)
        is_told = _is_told(action.kind, (action.start_s, action.end_s), (low, high), (start, end), len(inside))
        (events if is_known and is_told else doubtful).append(event)
    order = sorted(events, key=lambda event: (event.start_s, event.event_id))
    kind = scene.camera.scenery
    return Facts(kind, start + offset_s, end + offset_s, tuple(clear), tuple(order), tuple(faint), tuple(doubtful))


def _is_told(kind: str, whole: Interval, seen: Interval, window: Interval, num_frames: int) -> bool:
    """Whether what is seen of an action is enough to tell it."""
    if kind in _WHOLE and not (window[0] <= whole[0] and whole[1] <= window[1]):
        return False
    if kind == "enter":
        return whole[0] > window[0] and seen[0] > window[0] + 0.5
    if kind == "leave":
        return whole[1] < window[1] - 0.5
    if kind in ("run", "walk", "drive", "ride", "wrong_way") and num_frames < 2:
        return False
    return seen[1] - seen[0] >= _MIN_SEEN_S.get(kind, _DEFAULT_MIN_SEEN_S)


def _moves(scene: Scene, number: int, start: float, end: float) -> bool:
    actor = scene.actors[number]
    if isinstance(actor, Bag):
        return actor.dropped_s > start or actor.picked_s < end
    places = [actor.track.pose(t) for t in np.linspace(start, end, 6).tolist()]
    reach = max(abs(p.x - places[0].x) + abs(p.z - places[0].z) for p in places)
    return reach > _MIN_STATIONARY_M or not (actor.track.is_present(start) and actor.track.is_present(end - 0.01))


def runs(is_on: NDArray[np.bool_], start_s: float, period_s: float) -> Iterator[Interval]:
    """Half-open intervals of the runs of True."""
    padded = np.concatenate([[False], is_on, [False]])
    for low, high in np.flatnonzero(padded[1:] != padded[:-1]).reshape(-1, 2).tolist():
        yield (start_s + low * period_s, start_s + high * period_s)


def _shift(span: Interval, offset_s: float) -> Interval:
    return round(span[0] + offset_s, 3), round(span[1] + offset_s, 3)


def script_facts(scene: Scene, offset_s: float = 0.0) -> Facts:
    """Facts of a whole scene without rendering it."""
    return facts_of(scene, watch_script(scene), offset_s)


def from_dict(values: Mapping[str, Any]) -> Facts:
    """The facts that ``Facts.to_dict`` wrote, after JSON."""

    def objects(items: Sequence[Mapping[str, Any]]) -> tuple[ObjectFact, ...]:
        return tuple(
            ObjectFact(
                item["object_id"],
                item["kind"],
                dict(item["attributes"]),
                tuple((low, high) for low, high in item["visible"]),
                tuple(Sighting(**sighting) for sighting in item["sightings"]),
                item["moves"],
            )
            for item in items
        )

    return Facts(
        values["camera_kind"],
        values["start_s"],
        values["end_s"],
        objects(values["objects"]),
        tuple(EventFact(**item) for item in values["events"]),
        objects(values["doubtful_objects"]),
        tuple(EventFact(**item) for item in values["doubtful_events"]),
    )
