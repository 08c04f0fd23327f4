"""A run over a benchmark: decode each video once, ask its questions in the chosen mode, keep every reply at once."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Protocol

from jobs.evaluation.benchmarks.frames import sample_video
from jobs.evaluation.benchmarks.items import Benchmark, Item, Mode, Score
from jobs.evaluation.benchmarks.results import ResultsFile
from pipeline.errors import MediaError
from videoxl2.chat import ChatMode, VideoFrames
from videoxl2.config import GenerationSettings, ModelSpec, PrefillSettings
from videoxl2.errors import ContextOverflow
from videoxl2.prefill import PrefillResult
from videoxl2.sampling import rewrite_clock_times

logger = logging.getLogger(__name__)


class BenchmarkModel(Protocol):
    """The part of ``VideoXL2`` that a run needs."""

    @property
    def spec(self) -> ModelSpec: ...

    def index(
        self, frames_FHW3: Any, times_s: Sequence[float], settings: PrefillSettings | None = None, chunk_groups: int = 6
    ) -> PrefillResult: ...

    def chat(
        self,
        video: VideoFrames | PrefillResult,
        question: str,
        mode: ChatMode = "chunked",
        *,
        generation: GenerationSettings | None = None,
    ) -> str: ...


class Asker:
    """Asks a model about the videos of a benchmark; keeps the KV of the last video, for the video's next question.

    Calling raises ``MediaError`` for a video that cannot be decoded, ``ContextOverflow`` for one that does not fit.
    """

    def __init__(
        self, model: BenchmarkModel, benchmark: Benchmark, mode: Mode, *, max_frames: int, subtitles: bool = False
    ) -> None:
        block_groups, previous_blocks = benchmark.plan.blocks(mode)
        self._model, self._mode, self._max_frames = model, mode, max_frames
        self._prompt = (benchmark.prompt_with_subtitles if subtitles else None) or benchmark.prompt
        self._settings = PrefillSettings(
            mode="plain" if mode == "plain" else "chunked", block_groups=block_groups, previous_blocks=previous_blocks
        )
        self._generation = GenerationSettings(max_new_tokens=benchmark.plan.max_new_tokens)
        self._last: tuple[Path, PrefillResult, Sequence[float]] | None = None

    def __call__(self, item: Item) -> str:
        """The model's reply to the item's prompt, with clock times rewritten as published."""
        video, times_s = self._indexed(item.video)
        prompt = rewrite_clock_times(self._prompt(item, times_s))
        return self._model.chat(video, prompt, self._mode, generation=self._generation)

    def _indexed(self, path: Path) -> tuple[PrefillResult, Sequence[float]]:
        if self._last is None or self._last[0] != path:
            self._last = None  # two videos' KV need not fit at once
            frames = sample_video(
                path, self._max_frames, self._model.spec.vision.image_size, drop_remainder=self._mode == "plain"
            )
            self._last = path, self._model.index(frames.frames_FHW3, frames.times_s, self._settings), frames.times_s
        return self._last[1], self._last[2]


def run(benchmark: Benchmark, items: Sequence[Item], ask: Callable[[Item], str], results: ResultsFile) -> None:
    """Ask every item that the file has no reply to, video by video. What fails is kept as a failure and passed over."""
    waiting = [item for item in _by_video(items) if item.item_id not in results.replies]
    logger.info("%s: %d of %d items to ask", benchmark.title, len(waiting), len(items))
    for number, item in enumerate(waiting, start=1):
        started = time.perf_counter()
        try:
            reply = ask(item)
        except MediaError as unreadable:
            results.fail(item.item_id, str(unreadable))
            logger.warning("%s: %s", item.item_id, unreadable)
            continue
        except ContextOverflow as overflow:
            results.fail(item.item_id, f"{overflow}; take fewer frames with --frames")
            logger.warning("%s: %s", item.item_id, overflow)
            continue
        score = benchmark.score(item, reply)
        results.add(
            item.item_id,
            reply,
            video=item.video.name,
            prediction=score.prediction,
            value=score.value,
            answer=item.answer,
            wall_s=round(time.perf_counter() - started, 3),
        )
        logger.info("%d of %d: %s %s", number, len(waiting), item.item_id, score.prediction)


def _by_video(items: Sequence[Item]) -> Iterator[Item]:
    """Items with those of one video together, videos in the order of their first item."""
    videos: dict[Path, list[Item]] = {}
    for item in items:
        videos.setdefault(item.video, []).append(item)
    for same in videos.values():
        yield from same


def scored(benchmark: Benchmark, items: Sequence[Item], results: ResultsFile) -> list[tuple[Item, Score]]:
    """Scores of every item that has a reply, in the order of the items."""
    replies = results.replies
    return [(item, benchmark.score(item, replies[item.item_id])) for item in items if item.item_id in replies]
