"""Training clips: frames rendered fast, labels per cell of the model's grid, captions and questions.

Owns the step from a scene to what a training loop takes. Frames are not encoded as video: a JPEG round trip of random
quality, at the camera's own shape before the square resize, stands in for H.264.

Dimensions: F frames, H rows, W columns, Y and X cells of the grid, A actors.
"""

from __future__ import annotations

import io
import math
from dataclasses import dataclass
from fractions import Fraction

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from videoxl2.training.captions import Caption, captions_of
from videoxl2.training.facts import Facts, facts_of, watch_pixels
from videoxl2.training.qa import QA
from videoxl2.training.questions import questions_of
from videoxl2.training.random_scenes import CAMERA_KINDS, random_scene
from videoxl2.training.render import Renderer
from videoxl2.training.scene import COLOURS, Actor, Bag, Scene
from videoxl2.training.splits import Split
from videoxl2.training.wording import ACTIONS

# Names of the numbers in the label grids; 0 is always "nothing".
CELL_KINDS: tuple[str, ...] = ("none", "person", "car", "van", "bicycle", "dog", "bag", "smoke", "door")
CELL_COLOURS: tuple[str, ...] = ("none", *COLOURS)
CELL_MOTIONS: tuple[str, ...] = ("none", "still", "left", "right", "towards", "away")
CELL_ACTIONS: tuple[str, ...] = ("none", *ACTIONS)

GRID = 12
# The picture is rendered about as high as the model's image, so that no detail is made up by the resize.
_ASPECT = Fraction(16, 9)
_MIN_CELL_SHARE = 0.06
_STILL_MPS = 0.12
_JPEG_QUALITY = (38, 88)


@dataclass(frozen=True)
class ClipSample:
    """One training clip. Times are seconds in the clock that captions and questions use.

    The grids are uint8 and index ``CELL_KINDS``, ``CELL_COLOURS`` (of a shirt, body or coat; ``cell_trousers_FYX``: of
    the trousers), ``CELL_MOTIONS`` and ``CELL_ACTIONS``; a cell belongs to the actor with most of its pixels.
    """

    frames_u8_FHWC: NDArray[np.uint8]
    times_s: NDArray[np.float64]
    cell_kind_FYX: NDArray[np.uint8]
    cell_colour_FYX: NDArray[np.uint8]
    cell_trousers_FYX: NDArray[np.uint8]
    cell_motion_FYX: NDArray[np.uint8]
    cell_action_FYX: NDArray[np.uint8]
    captions: list[Caption]
    questions: list[QA]
    facts: Facts


def clip_scene(
    seed: int,
    split: Split = "train",
    image_size: int = 208,
    duration_s: float = 60.0,
    events_per_minute: float | None = None,
) -> Scene:
    """A scene of a random kind at the size that clips are rendered at, livelier than real surveillance.

    ``events_per_minute`` fixes how much happens; without it that differs from seed to seed.
    """
    rng = np.random.default_rng([seed, 61])
    kind = CAMERA_KINDS[int(rng.integers(len(CAMERA_KINDS)))]
    drawn = float(rng.choice([0.5, 2.0, 4.0, 6.0]))
    rate = drawn if events_per_minute is None else events_per_minute
    return random_scene(kind, seed, duration_s, split, events_per_minute=rate, size=render_size(image_size))


def render_size(image_size: int) -> tuple[int, int]:
    """Width and height of the picture that becomes a square of ``image_size``."""
    height = 2 * round(image_size * 0.52)
    return 2 * round(height * _ASPECT / 2), height


def render_clip(
    scene: Scene,
    start_s: float,
    num_frames: int,
    fps: float = 1.0,
    image_size: int = 208,
    *,
    grid: int = GRID,
    offset_s: float = 0.0,
    seed: int = 0,
    split: Split = "train",
    renderer: Renderer | None = None,
) -> ClipSample:
    """``num_frames`` pictures of a scene from ``start_s`` on, ``fps`` per second, with labels and questions.

    ``offset_s`` is added to all times, as if the clip came later in a longer video. ``seed`` chooses compression and
    questions; ``renderer`` may be given to render several clips of one scene. A scene of another size than
    ``render_size(image_size)`` costs more time. Raises ValueError when the clip leaves the scene.
    """
    period = 1.0 / fps
    if start_s < 0 or start_s + num_frames * period > scene.duration_s + 1e-6:
        raise ValueError(f"clip of {num_frames * period} s at {start_s} s leaves the scene of {scene.duration_s} s")
    rng = np.random.default_rng([scene.seed, seed, round(start_s * 1000)])
    drawer = Renderer(scene) if renderer is None else renderer
    times: NDArray[np.float64] = start_s + period * np.arange(num_frames, dtype=np.float64)
    quality = int(rng.integers(*_JPEG_QUALITY))
    frames = np.empty((num_frames, image_size, image_size, 3), np.uint8)
    owners: list[NDArray[np.uint8]] = []
    labels = np.zeros((5, num_frames, grid, grid), np.uint8)
    for index, t in enumerate(times.tolist()):
        picture = drawer.moment(t, int(rng.integers(1 << 30)))
        frames[index] = compressed(picture.rgb_HW3, quality, image_size)
        owners.append(picture.actors_HW)
        labels[:, index] = actor_labels(scene, t)[:, cell_owners(picture.actors_HW, len(scene.actors), grid)]
    watch = watch_pixels(times.tolist(), period, owners, len(scene.actors))
    facts = facts_of(scene, watch, offset_s)
    kinds, colours, trousers, motions, actions = labels
    questions = questions_of(facts, int(rng.integers(1 << 30)), split)
    return ClipSample(
        frames, times + offset_s, kinds, colours, trousers, motions, actions, captions_of(facts), questions, facts
    )


def compressed(rgb_HW3: NDArray[np.uint8], quality: int, image_size: int) -> NDArray[np.uint8]:
    """The picture after a JPEG round trip and the resize to a square that the model's preprocessing does."""
    buffer = io.BytesIO()
    Image.fromarray(rgb_HW3).save(buffer, "JPEG", quality=quality)
    decoded = Image.open(buffer)
    return np.asarray(decoded.resize((image_size, image_size), Image.Resampling.BICUBIC))


def cell_owners(actors_HW: NDArray[np.uint8], num_actors: int, grid: int) -> NDArray[np.int64]:
    """Which actor each cell shows, ``[Y, X]``: 0 for none, i + 1 for actor i; the one with most pixels wins."""
    height, width = actors_HW.shape
    result = np.zeros((grid, grid), np.int64)
    rows, columns = np.nonzero(actors_HW)
    if not rows.size:
        return result
    cell = (rows * grid // height) * grid + columns * grid // width
    num = num_actors + 1
    counts = np.bincount(cell * num + actors_HW[rows, columns], minlength=grid * grid * num).reshape(-1, num)
    enough = counts.max(axis=1) >= _MIN_CELL_SHARE * height * width / grid**2
    return np.asarray(np.where(enough, counts.argmax(axis=1), 0).reshape(grid, grid), np.int64)


def actor_labels(scene: Scene, t: float) -> NDArray[np.uint8]:
    """Kind, colour, trousers, motion and action of every actor at ``t``, ``[5, A + 1]``; column 0 is the background."""
    result = np.zeros((5, len(scene.actors) + 1), np.uint8)
    result[:3] = actor_looks(scene)
    acting: dict[str, str] = {}
    for action in scene.actions:
        if action.start_s <= t < action.end_s:
            for actor_id in (action.actor_id, action.object_id if action.kind == "meet" else None):
                if actor_id is not None and acting.get(actor_id) in (None, "enter", "leave", "walk"):
                    acting[actor_id] = action.kind
    for number, actor in enumerate(scene.actors, start=1):
        result[3, number] = CELL_MOTIONS.index(motion_of(scene, actor, t))
        result[4, number] = CELL_ACTIONS.index(acting.get(actor.actor_id, "none"))
    return result


def actor_looks(scene: Scene) -> NDArray[np.uint8]:
    """Kind, colour and trousers of every actor, which never change, ``[3, A + 1]``; column 0 is the background."""
    result = np.zeros((3, len(scene.actors) + 1), np.uint8)
    for number, actor in enumerate(scene.actors, start=1):
        look = actor.attributes
        result[0, number] = CELL_KINDS.index("bag" if actor.kind == "suitcase" else actor.kind)
        result[1, number] = CELL_COLOURS.index(look.get("shirt", look.get("colour", "none")))
        result[2, number] = CELL_COLOURS.index(look.get("trousers", "none"))
    return result


def motion_of(scene: Scene, actor: Actor, t: float) -> str:
    """Still, or the main direction of travel as the camera sees it; a bag moves with who carries it."""
    track = None
    if isinstance(actor, Bag):
        if t < actor.dropped_s or t >= actor.picked_s:
            carrier = actor.picker_id if t >= actor.picked_s and actor.picker_id else actor.carrier_id
            holder = scene.actor(carrier)
            track = None if isinstance(holder, Bag) else holder.track
    else:
        track = actor.track
    pose = track.pose(t) if track is not None else None
    if pose is None or pose.speed < _STILL_MPS:
        return "still"
    across, along = math.cos(pose.heading), math.sin(pose.heading)
    if abs(across) >= abs(along):
        return "right" if across > 0 else "left"
    return "away" if along > 0 else "towards"
