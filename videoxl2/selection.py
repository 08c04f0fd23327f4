"""The published selection files: which 8-frame units of a video were chosen for each question (``reference`` 5.3).

A file maps categories to a configuration and to lists of units by a unique id that is made of the video's file name and
the question's text, cut differently for each benchmark. With it a published bi-level run can be repeated; at run time
``relevance`` takes its place.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from videoxl2.config import LevelSettings
from videoxl2.decode import published_dense_chunks
from videoxl2.errors import ModelError


def _between_instruction_and_options(prompt: str) -> str:
    return prompt.split("\n[")[0].split("option.\n")[-1]


_QUESTION_OF: Mapping[str, Callable[[str], str]] = {
    "videomme": _between_instruction_and_options,
    "mlvu": lambda prompt: prompt.split("\n(")[0].strip(),
    "longvideobench": lambda prompt: prompt.split("\nA.")[0],
    "lvbench": lambda prompt: prompt.split("\nA.")[0],
}
BENCHMARKS = tuple(_QUESTION_OF)


@dataclass(frozen=True, slots=True)
class PublishedSelection:
    """The chosen units of one question. Units count 8 frames from the start and are in the file's order."""

    category: str
    units: tuple[int, ...]
    chunk_groups: int
    compression: int

    def dense_chunks(self, num_groups: int) -> tuple[int, ...]:
        """The dense chunks (from 0) of a video of ``num_groups`` frame groups; the others are sparse."""
        return published_dense_chunks(self.units, self.chunk_groups, -(-num_groups // self.chunk_groups))

    @property
    def levels(self) -> LevelSettings:
        """Chunk size and compression as settings."""
        return LevelSettings(chunk_groups=self.chunk_groups, compression=self.compression)


@dataclass(frozen=True, slots=True)
class SelectionFile:
    """A file that has been read. ``plain_categories`` are those whose entry is null."""

    benchmark: str
    selections: Mapping[str, PublishedSelection]
    plain_categories: tuple[str, ...]

    def find(self, video_name: str, prompt: str) -> PublishedSelection | None:
        """The selection of a question, or None where the file has none.

        ``prompt`` is the benchmark's question text with its options, before clock times are rewritten. Without an
        entry the published code falls back silently to plain full attention, the chunk mask included: that is what a
        caller repeating a published run does with None, and why it is told.
        """
        return self.selections.get(unique_id(self.benchmark, video_name, prompt))


def unique_id(benchmark: str, video_name: str, prompt: str) -> str:
    """The id of a question in a file of this benchmark (one of ``BENCHMARKS``); paths count by their last part."""
    if benchmark not in _QUESTION_OF:
        raise ValueError(f"benchmark {benchmark!r} is none of {', '.join(BENCHMARKS)}")
    name = PurePosixPath(video_name).name
    if benchmark == "lvbench":
        name = name.split(".mp4")[0]
    return f"{name}_{_QUESTION_OF[benchmark](prompt)}"


def read_selection_file(path: Path | str, benchmark: str | None = None) -> SelectionFile:
    """Read a published file; ``benchmark`` None takes it from the file's name, as the published code does.

    A question that several categories hold takes the last of them, as there. Raises ``ModelError`` naming what is
    missing or of another type.
    """
    path = Path(path)
    if benchmark is None:
        benchmark = next((name for name in BENCHMARKS if name in path.stem.lower()), None)
        if benchmark is None:
            raise ModelError(f"the name of {path} holds no benchmark ({', '.join(BENCHMARKS)}); give it explicitly")
    elif benchmark not in BENCHMARKS:
        raise ModelError(f"benchmark {benchmark!r} is none of {', '.join(BENCHMARKS)}")
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as problem:
        raise ModelError(f"cannot read {path}: {problem}") from problem
    if not isinstance(content, dict):
        raise ModelError(f"{path} holds no object of categories")
    selections: dict[str, PublishedSelection] = {}
    for category, entry in content.items():
        if entry is not None:
            selections |= _read_category(path, category, entry)
    plain = tuple(category for category, entry in content.items() if entry is None)
    return SelectionFile(benchmark, selections, plain)


def _read_category(path: Path, category: str, entry: Any) -> dict[str, PublishedSelection]:
    try:
        chunk_groups = _whole(entry["config"]["selected_chunk_size"])
        compression = _whole(entry["config"]["compression"])
        listed = {
            str(key): tuple(map(_whole, _listed(units)))
            for key, units in entry["selected_unit_indices"].items()
            if units is not None  # like a question without an entry
        }
    except KeyError as missing:
        raise ModelError(f"category {category!r} of {path} has no {missing.args[0]!r}") from missing
    except (TypeError, ValueError, AttributeError) as unfit:
        raise ModelError(f"category {category!r} of {path} has another form: {unfit}") from unfit
    if chunk_groups < 1 or compression < 1:
        raise ModelError(f"category {category!r} of {path} has a chunk size or compression below 1")
    return {key: PublishedSelection(category, units, chunk_groups, compression) for key, units in listed.items()}


def _whole(value: Any) -> int:
    """Nothing is rounded or read out of a text: another number would choose another chunk."""
    if type(value) is not int or value < 0:
        raise ValueError(f"{value!r} is no number of units, groups or tokens")
    return value


def _listed(units: Any) -> list[Any]:
    if not isinstance(units, list):
        raise TypeError(f"{units!r} is no list of units")
    return units
