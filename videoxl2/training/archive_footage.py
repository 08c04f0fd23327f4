"""Whole archives of rendered cameras for evaluation: hours of H.264 files, with labels, questions and queries beside.

Owns the plan of an archive (cameras, files, wall-clock) and rendering that is cheap while nothing moves: a picture in
which no actor moved is drawn anew only when its clock changes, and the same picture is encoded again in between.

The footage lies in one folder per camera, everything that tells about it in ``labels/``: ``labels.jsonl`` (one
``RenderedVideo`` per file), ``facts.jsonl``, ``questions.jsonl``, ``queries.jsonl`` and ``anomalies.jsonl``.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from videoxl2.processes import process_pool
from videoxl2.training.conditions import random_conditions
from videoxl2.training.facts import Facts, Watch, facts_of, owned_places
from videoxl2.training.footage import RenderedVideo, count_pixels, footage_key, import_av, label
from videoxl2.training.queries import search_queries
from videoxl2.training.questions import questions_of
from videoxl2.training.random_scenes import CAMERA_KINDS, random_scene
from videoxl2.training.render import Renderer
from videoxl2.training.scene import Bag, Doorway, Person, Scene, SceneryKind, Smoke, Vehicle
from videoxl2.training.splits import Split

LABELS_FOLDER = "labels"
FILE_MINUTES = 10.0
ARCHIVE_EVENTS_PER_MINUTE = 1.5
_GOP_S = 2.0
_CRF = 27
_LOOK_S = 0.5
_RAIN_REFRESH_S = 0.5
_REFRESH_S = 4.0
_MOVING_MPS = 0.02
# How long a bag falls, a person tips over and a barrier turns.
_DROPS_S, _TIPS_S, _TURNS_S = 0.6, 1.3, 2.0
_FORMATS: tuple[tuple[int, int, Fraction], ...] = (
    (480, 270, Fraction(10)),
    (416, 234, Fraction(8)),
    (512, 288, Fraction(25, 4)),
    (640, 360, Fraction(5)),
    (480, 270, Fraction(12)),
)
_FIRST_DAY = datetime(2026, 4, 6)


@dataclass(frozen=True)
class RenderedArchive:
    """What was written: the label of every file, and how many questions and queries are asked about them."""

    videos: tuple[RenderedVideo, ...]
    num_questions: int
    num_queries: int

    @property
    def hours(self) -> float:
        return sum(video.duration_s for video in self.videos) / 3600.0


def plan_archive(
    seed: int,
    hours: float,
    cameras: Sequence[SceneryKind] = CAMERA_KINDS,
    split: Split = "test",
    *,
    file_minutes: float = FILE_MINUTES,
    events_per_minute: float = ARCHIVE_EVENTS_PER_MINUTE,
) -> list[Scene]:
    """The scene of every file, camera by camera in order of time: ``hours`` of footage in all, shared by the cameras.

    Every camera keeps its place, picture size and frame rate; light follows the clock, weather the hour.
    """
    if hours <= 0 or not cameras:
        raise ValueError(f"needs a positive number of hours and a camera, not {hours} and {list(cameras)}")
    scenes: list[Scene] = []
    length_s = hours * 3600.0 / len(cameras)
    for number, kind in enumerate(cameras):
        rng = np.random.default_rng([seed, 81, number])
        start = _FIRST_DAY + timedelta(days=int(rng.integers(0, 200)), minutes=int(rng.integers(0, 24 * 60)))
        layout, shape = int(rng.integers(1 << 20)), _FORMATS[int(rng.integers(len(_FORMATS)))]
        done_s, index = 0.0, 0
        while done_s < length_s - 1e-6:
            duration_s = min(file_minutes * 60.0, length_s - done_s)
            moment = start + timedelta(seconds=round(done_s))
            weather = random_conditions(kind, moment, np.random.default_rng([seed, 82, number, moment.hour]))
            scene = random_scene(
                kind,
                (seed * 1009 + number) * 10_007 + index,
                duration_s,
                split,
                events_per_minute=events_per_minute,
                layout=layout,
                start=moment,
                conditions=weather,
                camera_name=f"{kind}-{number + 1}",
                size=shape[:2],
                fps=shape[2],
            )
            scenes.append(scene)
            done_s, index = done_s + duration_s, index + 1
    return scenes


def render_archive(
    folder: str | Path,
    seed: int,
    hours: float,
    cameras: Sequence[SceneryKind] = CAMERA_KINDS,
    split: Split = "test",
    *,
    file_minutes: float = FILE_MINUTES,
    events_per_minute: float = ARCHIVE_EVENTS_PER_MINUTE,
    questions_per_kind: int = 2,
    num_queries: int = 100,
    workers: int = 1,
    on_progress: Callable[[str, int, int], None] | None = None,
) -> RenderedArchive:
    """Write an archive below ``folder``; the same arguments give the same archive.

    ``on_progress(key, files_done, num_files)`` is called after every file. With several ``workers`` files are rendered
    in as many processes. Raises ValueError for an impossible plan, ImportError when PyAV is missing.
    """
    root = Path(folder)
    scenes = plan_archive(seed, hours, cameras, split, file_minutes=file_minutes, events_per_minute=events_per_minute)
    videos: list[RenderedVideo] = []
    facts: dict[str, Facts] = {}

    def collect(results: Iterable[tuple[RenderedVideo, Facts]]) -> None:
        for video, known in results:
            videos.append(video)
            facts[video.key] = known
            if on_progress is not None:
                on_progress(video.key, len(videos), len(scenes))

    if workers > 1:
        with process_pool(workers) as pool:
            collect(pool.map(render_file, [root] * len(scenes), scenes))
    else:
        collect(render_file(root, scene) for scene in scenes)
    questions = [
        {"video": key, **item.to_dict()}
        for number, (key, known) in enumerate(facts.items())
        for item in questions_of(known, seed * 1009 + number, split, questions_per_kind)
    ]
    queries = [query.to_dict() for query in search_queries(facts, seed, num_queries)]
    labels = root / LABELS_FOLDER
    labels.mkdir(parents=True, exist_ok=True)
    _write(labels / "labels.jsonl", (video.to_dict() for video in videos))
    _write(labels / "facts.jsonl", ({"video": key, **known.to_dict()} for key, known in facts.items()))
    _write(labels / "questions.jsonl", questions)
    _write(labels / "queries.jsonl", queries)
    _write(
        labels / "anomalies.jsonl",
        (
            {"video": key, "kind": event.kind, "start_s": event.start_s, "end_s": event.end_s}
            for key, known in facts.items()
            for event in known.anomalies
        ),
    )
    return RenderedArchive(tuple(videos), len(questions), len(queries))


def _write(path: Path, rows: Iterable[Mapping[str, Any]]) -> None:
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")


def render_file(root: Path, scene: Scene) -> tuple[RenderedVideo, Facts]:
    """Render and encode one scene below ``root``; gives its labels and facts. Unfinished files have another name."""
    av = import_av()
    camera, key, num = scene.camera, footage_key(scene), len(scene.actors)
    target = root / key
    target.parent.mkdir(parents=True, exist_ok=True)
    unfinished = target.with_suffix(".partial.mp4")
    renderer, stillness = Renderer(scene), _Stillness(scene)
    counts = np.zeros((scene.num_frames, num), np.int64)
    look_every = max(1, round(_LOOK_S * camera.fps))
    looks: list[NDArray[np.float64]] = []
    with av.open(str(unfinished), "w", options={"movflags": "+faststart"}) as container:
        stream = container.add_stream("libx264", rate=camera.fps)
        stream.width, stream.height, stream.pix_fmt = camera.width, camera.height, "yuv420p"
        gop = str(round(_GOP_S * camera.fps))
        stream.options = {"crf": str(_CRF), "preset": "superfast", "g": gop, "threads": "1", "sc_threshold": "0"}
        picture: Any = None
        counted = np.zeros(num, np.int64)
        places = np.zeros((3, num))
        for index in range(scene.num_frames):
            t = scene.frame_time_s(index)
            is_drawn, has_ticked = stillness.is_new(t)
            if is_drawn:
                frame = renderer.moment(t, index, has_clock=False)
                counted = count_pixels(frame, num)
                places = owned_places(frame.actors_HW, num)
            if is_drawn or has_ticked:
                pixels = frame.rgb_HW3.copy()
                renderer.burn_clock(pixels, t)
                picture = av.VideoFrame.from_ndarray(pixels, format="rgb24").reformat(format="yuv420p")
            picture.pts, picture.time_base = index, 1 / camera.fps
            counts[index] = counted
            if index % look_every == 0:
                looks.append(places)
            container.mux(stream.encode(picture))
        container.mux(stream.encode(None))
    unfinished.replace(target)
    stacked = np.asarray(looks)
    times: NDArray[np.float64] = np.arange(len(looks), dtype=np.float64) * float(look_every / camera.fps)
    watch = Watch(times, float(look_every / camera.fps), stacked[:, 0], stacked[:, 1], stacked[:, 2])
    facts = facts_of(scene, watch)
    video = label(scene, counts)
    return video, replace(facts, end_s=min(facts.end_s, video.duration_s))


class _Stillness:
    """Says which frames must be drawn, because something moves or rain falls, and when the clock ticks.

    Light and noise of a still picture change every few seconds only.
    """

    def __init__(self, scene: Scene) -> None:
        self._scene = scene
        self._last: object = None
        self._second = -1
        is_wet = scene.conditions is not None and scene.conditions.weather == "rain"
        self._refresh_s = _RAIN_REFRESH_S if is_wet else _REFRESH_S

    def is_new(self, t: float) -> tuple[bool, bool]:
        """Whether the picture at ``t`` differs from the last one asked for, and whether its clock does."""
        state = (math.floor(t / self._refresh_s + 1e-6), self._moving(t))
        second = math.floor(t + 1e-6)
        answer = state != self._last, second != self._second
        self._last, self._second = state, second
        return answer

    def _moving(self, t: float) -> object:
        """A value that differs between two moments when a picture of them differs."""
        where: list[object] = []
        for actor in self._scene.actors:
            if isinstance(actor, Bag):
                where.append((t < actor.dropped_s + _DROPS_S, t < actor.picked_s, t < actor.end_s))
                where.append(t if 0 <= t - actor.dropped_s < _DROPS_S else None)
            elif isinstance(actor, Doorway):
                where.append(tuple(low <= t < high for low, high in actor.intervals))
            elif isinstance(actor, Smoke):
                where.append(t if actor.track.is_present(t) else None)
            elif t < actor.track.start_s or t >= actor.track.end_s:
                where.append(actor.track.is_present(t))
            else:
                where.append(t if actor.track.pose(t).speed > _MOVING_MPS else None)
            if isinstance(actor, Person) and any(
                low <= t < low + _TIPS_S or high - _TIPS_S <= t < high for low, high in actor.falls
            ):
                where.append(t)
            if isinstance(actor, Vehicle):
                where.append(tuple(low <= t < high for low, high in actor.lights))
        for opening in self._scene.openings:
            low, high = opening.interval
            is_turning = low <= t < low + _TURNS_S or high - _TURNS_S <= t < high
            where.append(t if is_turning else low <= t < high)
        return where
