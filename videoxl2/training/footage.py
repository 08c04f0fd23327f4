"""Video files of rendered scenes, and the label file that says exactly what they show.

Owns encoding (H.264 in MP4 through PyAV, imported only when a file is written), file names and labels. Names follow
``<camera>/<date>/<time>.mp4`` in local wall-clock time; the container carries no creation time, so that the name is the
only clock. ``labels.jsonl`` lies beside the cameras' folders, one JSON object per video.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from videoxl2.training.render import RenderedFrame, Renderer
from videoxl2.training.scene import Scene
from videoxl2.training.storyboard import DEMO_CAMERAS, demo_scene

LABELS_NAME = "labels.jsonl"
_GOP_S = 2.0
_CRF = 23
# An actor counts as visible from this share of the picture on: 35 pixels of 640x360.
_VISIBLE_SHARE = 1.5e-4
# Shorter gaps (behind a post) do not end an interval, and shorter glimpses do not make one.
_BRIDGED_GAP_S = 0.5


@dataclass(frozen=True)
class ObjectLabel:
    """One actor: ``visible`` are the intervals, in seconds, in which its pixels are in the picture."""

    object_id: str
    kind: str
    attributes: dict[str, str]
    text: str
    visible: tuple[tuple[float, float], ...]


@dataclass(frozen=True)
class ActionLabel:
    """One action of one actor, in seconds of the video."""

    kind: str
    object_id: str
    target_id: str | None
    text: str
    start_s: float
    end_s: float
    is_anomaly: bool


@dataclass(frozen=True)
class RenderedVideo:
    """One written file and everything that is known about it. ``key`` is its path inside the footage folder.

    ``start_local`` is ISO 8601 wall-clock time without a zone. ``still`` are intervals without any moving actor.
    """

    key: str
    camera: str
    start_local: str
    duration_s: float
    fps: float
    width: int
    height: int
    num_frames: int
    seed: int
    objects: tuple[ObjectLabel, ...]
    actions: tuple[ActionLabel, ...]
    still: tuple[tuple[float, float], ...]

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return asdict(self)


def render_footage(
    folder: str | Path,
    seed: int = 7,
    minutes: float = 3.0,
    cameras: Sequence[str] | None = None,
    on_progress: Callable[[str, int, int], None] | None = None,
) -> list[RenderedVideo]:
    """Render one video for each named demo camera (all by default), ``minutes`` in all, and write their labels.

    ``on_progress(camera, frames_done, num_frames)`` is called about once per second of footage. An existing label file
    is replaced. Raises ValueError for an unknown camera, ImportError naming the package when PyAV is missing.
    """
    names = list(DEMO_CAMERAS) if cameras is None else list(cameras)
    if minutes <= 0 or not names:
        raise ValueError(f"needs a positive number of minutes and a camera, not {minutes} and {names}")
    scenes = [demo_scene(name, seed, minutes * 60.0 / len(names)) for name in names]
    root = Path(folder)
    videos = [write_video(root, scene, on_progress) for scene in scenes]
    lines = [json.dumps(video.to_dict(), ensure_ascii=False) for video in videos]
    (root / LABELS_NAME).write_text("".join(line + "\n" for line in lines), encoding="utf-8")
    return videos


def footage_key(scene: Scene) -> str:
    """Where a scene's file lies inside the footage folder: ``gate/2026-03-01/080000.mp4``."""
    return f"{scene.camera.name}/{scene.start:%Y-%m-%d}/{scene.start:%H%M%S}.mp4"


def write_video(root: Path, scene: Scene, on_progress: Callable[[str, int, int], None] | None = None) -> RenderedVideo:
    """Render and encode one scene below ``root``; gives its labels. An unfinished file never has the final name."""
    av = import_av()
    camera, key = scene.camera, footage_key(scene)
    target = root / key
    target.parent.mkdir(parents=True, exist_ok=True)
    unfinished = target.with_suffix(".partial.mp4")
    counts = np.zeros((scene.num_frames, len(scene.actors)), np.int64)
    every = max(1, round(float(camera.fps)))
    with av.open(str(unfinished), "w", options={"movflags": "+faststart"}) as container:
        stream = container.add_stream("libx264", rate=camera.fps)
        stream.width, stream.height, stream.pix_fmt = camera.width, camera.height, "yuv420p"
        gop = str(round(_GOP_S * camera.fps))
        stream.options = {"crf": str(_CRF), "preset": "veryfast", "g": gop}
        for frame in Renderer(scene).frames():
            counts[frame.index] = count_pixels(frame, len(scene.actors))
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame.rgb_HW3, format="rgb24")))
            if on_progress is not None and (frame.index + 1) % every == 0:
                on_progress(camera.name, frame.index + 1, scene.num_frames)
        container.mux(stream.encode(None))
    unfinished.replace(target)
    return label(scene, counts)


def count_pixels(frame: RenderedFrame, num_actors: int) -> np.ndarray:
    """How many pixels each actor has in a frame, ``[num_actors]``."""
    return np.bincount(frame.actors_HW.ravel(), minlength=num_actors + 1)[1 : num_actors + 1]


def label(scene: Scene, pixel_counts: np.ndarray) -> RenderedVideo:
    """The labels of a scene from its script and from the pixels ``[num_frames, num_actors]`` that its actors have."""
    camera = scene.camera
    period, threshold = float(1 / camera.fps), _VISIBLE_SHARE * camera.width * camera.height
    objects = tuple(
        ObjectLabel(
            actor.actor_id,
            actor.kind,
            actor.attributes,
            actor.words,
            _intervals(pixel_counts[:, number] >= threshold, period),
        )
        for number, actor in enumerate(scene.actors)
    )
    seen = {item.object_id: item.visible for item in objects}
    actions = tuple(
        ActionLabel(
            action.kind,
            action.actor_id,
            action.object_id,
            _sentence(scene, action.kind, action.actor_id, action.object_id),
            *span,
            action.is_anomaly,
        )
        for action in sorted(scene.actions, key=lambda action: action.start_s)
        if (span := _seen_part(action.start_s, action.end_s, seen[action.actor_id])) is not None
    )
    moved = np.zeros(scene.num_frames, bool)
    moved[1:] = (np.abs(np.diff(pixel_counts, axis=0)) > threshold / 4).any(axis=1)
    for action in actions:
        moved[round(action.start_s / period) : round(action.end_s / period)] = True
    motion = [span for span in _intervals(moved, period) if span[1] - span[0] >= _BRIDGED_GAP_S]
    still = tuple(span for span in _gaps(motion, scene.num_frames * period) if span[1] - span[0] >= 1.0)
    return RenderedVideo(
        key=footage_key(scene),
        camera=camera.name,
        start_local=scene.start.isoformat(),
        duration_s=round(scene.num_frames * period, 3),
        fps=float(camera.fps),
        width=camera.width,
        height=camera.height,
        num_frames=scene.num_frames,
        seed=scene.seed,
        objects=objects,
        actions=actions,
        still=still,
    )


_VERBS = {
    "enter": "comes in",
    "leave": "walks away",
    "stop": "stops",
    "run": "runs",
    "drop": "leaves",
    "park": "parks",
    "drive": "drives",
    "walk": "walks",
    "meet": "meets and talks to",
    "flash": "flashes its lights",
    "loiter": "loiters",
    "fall": "falls down",
    "pick": "picks up",
    "wrong_way": "drives the wrong way",
    "ride": "rides past",
    "open": "is left open",
    "smoke": "rises",
}


def _sentence(scene: Scene, kind: str, actor_id: str, object_id: str | None) -> str:
    words = f"{scene.actor(actor_id).words} {_VERBS[kind]}"
    return words if object_id is None else f"{words} {scene.actor(object_id).words}"


def _seen_part(start_s: float, end_s: float, visible: tuple[tuple[float, float], ...]) -> tuple[float, float] | None:
    """The part of an action from the first to the last moment at which its actor is in the picture; None if never."""
    parts = [(max(start_s, low), min(end_s, high)) for low, high in visible if low < end_s and high > start_s]
    return (round(parts[0][0], 3), round(parts[-1][1], 3)) if parts else None


def _intervals(is_on: np.ndarray, period_s: float) -> tuple[tuple[float, float], ...]:
    """Half-open intervals in seconds of the runs of True, short gaps bridged."""
    padded = np.concatenate([[False], is_on.astype(bool), [False]])
    edges = np.flatnonzero(padded[1:] != padded[:-1]).reshape(-1, 2)
    spans: list[list[int]] = []
    for start, end in edges.tolist():
        if spans and (start - spans[-1][1]) * period_s <= _BRIDGED_GAP_S:
            spans[-1][1] = end
        else:
            spans.append([start, end])
    return tuple((round(start * period_s, 3), round(end * period_s, 3)) for start, end in spans)


def _gaps(spans: Sequence[tuple[float, float]], duration_s: float) -> list[tuple[float, float]]:
    """What of ``[0, duration_s)`` the intervals leave."""
    starts = [0.0, *(end for _, end in spans)]
    ends = [*(start for start, _ in spans), round(duration_s, 3)]
    return [(start, end) for start, end in zip(starts, ends, strict=True) if end > start]


def import_av() -> Any:
    """PyAV, imported only where files are written."""
    try:
        import av
    except ImportError as error:
        raise ImportError("writing footage needs PyAV: pip install av") from error
    return av
