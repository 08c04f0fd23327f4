"""What a benchmark is made of: items to ask, subtitles beside them, what a reply scored, and how it is to be run.

Records only; formats are read in the module of each benchmark, videos are checked in ``loading``.
"""

from __future__ import annotations

import string
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, TypeAlias

from jobs.evaluation.benchmarks.rows import RowError

LETTERS = string.ascii_uppercase
"""The letters of options, in their order."""

Mode: TypeAlias = Literal["plain", "chunked", "bilevel"]
MODES: tuple[Mode, ...] = ("plain", "chunked", "bilevel")


@dataclass(frozen=True, slots=True)
class Subtitle:
    """One subtitle: shown from ``start_s`` to ``end_s`` of the video."""

    start_s: float
    end_s: float
    text: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Item:
    """One question about one video.

    ``answer`` is the letter of the right option, None where the benchmark keeps it to itself; grounding items have an
    ``interval`` (seconds of the video) instead. ``categories`` holds the benchmark's own groupings, the main one first.
    """

    item_id: str
    video: Path
    """Where the video lies, or should lie."""
    question: str
    source: str
    """File and row of the annotation."""
    options: tuple[str, ...] = ()
    answer: str | None = None
    interval: tuple[float, float] | None = None
    """What grounding is scored against; elsewhere the stretch that the annotation says the answer is in."""
    categories: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    duration_s: float | None = None
    """Length of the video as the annotation gives it."""
    subtitles: tuple[Subtitle, ...] = ()

    @property
    def letters(self) -> str:
        """The letters that may be answered."""
        return LETTERS[: len(self.options)]

    @property
    def category(self) -> str:
        """The item's (first) value in the benchmark's main grouping; empty where there is none."""
        return next((values[0] for values in self.categories.values() if values), "")


@dataclass(frozen=True, slots=True)
class Score:
    """What a reply is worth. ``value``: 1 or 0 for a choice, IoU for grounding, None where no answer is published."""

    prediction: str
    value: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class RunPlan:
    """How the published evaluation of the model runs a benchmark (``docs/benchmark_adapters.md``)."""

    max_frames: int
    max_new_tokens: int
    chunked_blocks: tuple[int, int] = (4, 3)
    """Frame groups of a prefill block, and earlier blocks that are seen, in mode ``chunked``."""
    bilevel_blocks: tuple[int, int] = (4, 3)

    def blocks(self, mode: Mode) -> tuple[int, int]:
        """The prefill window of a mode."""
        return self.bilevel_blocks if mode == "bilevel" else self.chunked_blocks


@dataclass(frozen=True, slots=True, kw_only=True)
class Benchmark:
    """One benchmark: how its files are read, how an item is asked and how a reply is scored.

    ``read`` takes the folder and whether subtitles are wanted, and gives an item or an error for every row. Prompts
    take an item and the times of the sampled frames, which only subtitles depend on; ``prompt_with_subtitles`` is None
    where the benchmark has none.
    """

    name: str
    title: str
    read: Callable[[Path, bool], Iterator[Item | RowError]]
    prompt: Callable[[Item, Sequence[float]], str]
    score: Callable[[Item, str], Score]
    plan: RunPlan
    metric: Literal["accuracy", "grounding"] = "accuracy"
    prompt_with_subtitles: Callable[[Item, Sequence[float]], str] | None = None
