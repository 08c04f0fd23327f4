"""Recorded clips: rendered once, kept in files, cut into training samples of any stretch again and again.

Owns the file format (one ``.npz`` per clip) and rendering many clips in parallel. A file holds the pictures as the
model takes them (JPEG), who owns each grid cell, what each actor does at each moment, and the pixel ``Watch`` from
which the facts of any stretch follow; the scene itself is drawn again from its seed.

Dimensions: F frames, Y and X cells of the grid, A actors of the scene.
"""

from __future__ import annotations

import io
import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from videoxl2.processes import process_pool
from videoxl2.training.errors import TrainingError
from videoxl2.training.facts import Facts, Watch, facts_of, watch_pixels
from videoxl2.training.render import Renderer
from videoxl2.training.samples import GRID, actor_labels, actor_looks, cell_owners, clip_scene, compressed
from videoxl2.training.scene import Scene
from videoxl2.training.splits import Split

CLIP_S = 60
_STORED_QUALITY = 92
_H264_LIKE = (38, 88)


@dataclass(frozen=True)
class Recording:
    """One recorded clip, one picture per second but for the last of its scene.

    ``owners_FYX`` is 0 for background, i + 1 for actor i; ``actors_F5A`` gives kind, colour, trousers, motion and
    action of owner a at frame f (column 0 is the background) as numbers of ``samples.CELL_*``.
    ``events_per_minute`` is how much was asked to happen, None where the seed chose it.
    """

    seed: int
    split: Split
    image_size: int
    jpegs: tuple[bytes, ...]
    owners_FYX: NDArray[np.uint8]
    actors_F5A: NDArray[np.uint8]
    watch: Watch
    events_per_minute: float | None = None

    @property
    def num_frames(self) -> int:
        return len(self.jpegs)

    def scene(self) -> Scene:
        """The scene that was recorded; ``TrainingError`` where this version draws another one from the seed."""
        made = clip_scene(self.seed, self.split, self.image_size, float(self.num_frames + 1), self.events_per_minute)
        if not np.array_equal(actor_looks(made), self.actors_F5A[0, :3]):
            raise TrainingError(
                f"clip {self.seed} ({self.split}) was recorded by another version of vxl, which drew its scene "
                "differently: remove the run's clips and record them again (stage footage)"
            )
        return made

    def frames(self, first: int, end: int) -> NDArray[np.uint8]:
        """Pictures [F, S, S, 3] of frames [first, end)."""
        return np.stack([np.asarray(Image.open(io.BytesIO(jpeg))) for jpeg in self.jpegs[first:end]])

    def facts(self, scene: Scene, first: int, end: int, offset_s: float = 0.0) -> Facts:
        """What is true of frames [first, end), whose first moment becomes ``offset_s``."""
        watch = self.watch
        part = Watch(
            watch.times_F[first:end],
            watch.period_s,
            watch.area_FA[first:end],
            watch.x_FA[first:end],
            watch.bottom_FA[first:end],
        )
        return facts_of(scene, part, offset_s - float(part.times_F[0]))

    def without_pictures(self) -> Recording:
        """The recording for its labels alone."""
        return replace(self, jpegs=(b"",) * len(self.jpegs))

    def save(self, path: Path) -> None:
        """Write the file; an unfinished one has another name."""
        ends = np.cumsum([len(jpeg) for jpeg in self.jpegs])
        unfinished = path.with_suffix(".partial.npz")
        np.savez(
            unfinished,
            seed=np.int64(self.seed),
            split=np.str_(self.split),
            image_size=np.int64(self.image_size),
            jpeg=np.frombuffer(b"".join(self.jpegs), np.uint8),
            ends=ends,
            owners=self.owners_FYX,
            actors=self.actors_F5A,
            times=self.watch.times_F,
            period=np.float64(self.watch.period_s),
            area=self.watch.area_FA.astype(np.float32),
            x=self.watch.x_FA.astype(np.float32),
            bottom=self.watch.bottom_FA.astype(np.float32),
            events_per_minute=np.float64(np.nan if self.events_per_minute is None else self.events_per_minute),
        )
        unfinished.replace(path)

    @classmethod
    def load(cls, path: Path) -> Recording:
        """Read a file that ``save`` wrote."""
        with np.load(path) as stored:
            data = stored["jpeg"].tobytes()
            ends = stored["ends"].tolist()
            starts = [0, *ends[:-1]]
            watch = Watch(
                stored["times"],
                float(stored["period"]),
                stored["area"].astype(np.float64),
                stored["x"].astype(np.float64),
                stored["bottom"].astype(np.float64),
            )
            return cls(
                int(stored["seed"]),
                str(stored["split"]),  # type: ignore[arg-type]
                int(stored["image_size"]),
                tuple(data[low:high] for low, high in zip(starts, ends, strict=True)),
                stored["owners"],
                stored["actors"],
                watch,
                _asked_rate(stored),
            )


def _asked_rate(stored: Mapping[str, NDArray[np.float64]]) -> float | None:
    """Events per minute of a file; files of earlier versions do not say, since nobody could ask."""
    rate = float(stored["events_per_minute"]) if "events_per_minute" in stored else math.nan
    return None if math.isnan(rate) else rate


def record(
    seed: int,
    split: Split = "train",
    image_size: int = 208,
    grid: int = GRID,
    seconds: int = CLIP_S,
    events_per_minute: float | None = None,
) -> Recording:
    """Render the clip of a seed: ``seconds`` at one picture per second, from a random fraction of a second.

    ``image_size`` is the side of the pictures in pixels, ``grid`` that of the labels in cells.
    """
    scene = clip_scene(seed, split, image_size, float(seconds), events_per_minute)
    rng = np.random.default_rng([seed, 67])
    renderer, num = Renderer(scene), len(scene.actors)
    quality = int(rng.integers(*_H264_LIKE))
    times = float(rng.random()) * 0.9 + np.arange(seconds - 1, dtype=np.float64)
    jpegs: list[bytes] = []
    pixels: list[NDArray[np.uint8]] = []
    owners = np.zeros((len(times), grid, grid), np.uint8)
    actors = np.zeros((len(times), 5, num + 1), np.uint8)
    for index, t in enumerate(times.tolist()):
        picture = renderer.moment(t, int(rng.integers(1 << 30)))
        buffer = io.BytesIO()
        Image.fromarray(compressed(picture.rgb_HW3, quality, image_size)).save(
            buffer, "JPEG", quality=_STORED_QUALITY, subsampling=0
        )
        jpegs.append(buffer.getvalue())
        pixels.append(picture.actors_HW)
        owners[index] = cell_owners(picture.actors_HW, num, grid)
        actors[index] = actor_labels(scene, t)
    watch = watch_pixels(times.tolist(), 1.0, pixels, num)
    return Recording(seed, split, image_size, tuple(jpegs), owners, actors, watch, events_per_minute)


def recording_path(folder: Path, split: Split, seed: int) -> Path:
    return folder / split / f"{seed:08d}.npz"


def record_many(
    folder: Path,
    split: Split,
    seeds: Iterable[int],
    *,
    image_size: int = 208,
    grid: int = GRID,
    seconds: int = CLIP_S,
    events_per_minute: float | None = None,
    workers: int = 1,
    on_progress: Callable[[int], None] | None = None,
) -> int:
    """Record the clips of ``seeds`` that the folder lacks, in ``workers`` processes; gives how many were recorded.

    Those that it has may be of another length, or livelier.
    """
    (folder / split).mkdir(parents=True, exist_ok=True)
    missing = [seed for seed in seeds if not recording_path(folder, split, seed).exists()]
    jobs: list[_Job] = [(folder, split, seed, image_size, grid, seconds, events_per_minute) for seed in missing]
    if workers == 1 or len(jobs) < 2:
        for number, job in enumerate(jobs, start=1):
            _record_one(job)
            if on_progress is not None:
                on_progress(number)
        return len(jobs)
    with process_pool(workers) as pool:
        for number, _ in enumerate(pool.map(_record_one, jobs, chunksize=4 if seconds <= CLIP_S else 1), start=1):
            if on_progress is not None:
                on_progress(number)
    return len(missing)


_Job = tuple[Path, Split, int, int, int, int, float | None]


def _record_one(job: _Job) -> None:
    folder, split, seed, image_size, grid, seconds, events_per_minute = job
    made = record(seed, split, image_size, grid, seconds, events_per_minute)
    made.save(recording_path(folder, split, seed))


def finished_files(folder: Path, suffix: str) -> list[Path]:
    """The files of a folder that are written to their end, by name; none where there is no folder."""
    return sorted(path for path in folder.glob(f"*{suffix}") if ".partial" not in path.name)
