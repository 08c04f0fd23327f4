"""Loading a benchmark: rows read, ids and answers checked, videos found and their lengths compared with the times.

All of it happens before the first question, and everything that is wrong is reported at once.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from jobs.evaluation.benchmarks.items import Benchmark, Item
from jobs.evaluation.benchmarks.rows import AnnotationError, RowError
from pipeline.errors import UnreadableMedia

TIME_TOLERANCE_S = 0.5
"""How far a time may lie beyond the end of its video: annotators' clocks round, containers too."""

LENGTH_TOLERANCE = 0.02
"""Share by which an annotated length may exceed the file's, on top of ``TIME_TOLERANCE_S``."""

_SHOWN = 10


@dataclass(frozen=True, slots=True)
class Loaded:
    """A benchmark ready to run. What was left out is listed: files that are absent, and rows with what is wrong."""

    items: tuple[Item, ...]
    missing: tuple[str, ...]
    """Videos that are not there, relative to the folder, each once."""
    num_missing_items: int
    invalid: tuple[str, ...]
    """Rows that cannot be used, each with its reason."""


class MissingVideos(AnnotationError):
    """Videos that the annotation names are not there. ``missing`` lists all of them, relative to the folder."""

    def __init__(self, missing: Sequence[str], num_items: int) -> None:
        self.missing = tuple(missing)
        super().__init__(
            f"{len(missing)} videos of {num_items} questions are not there: {_first(missing)}; "
            "fetch them, or leave their questions out with --skip-missing"
        )


class InvalidItems(AnnotationError):
    """Rows of the annotation that cannot be used. ``invalid`` lists all of them with their reasons."""

    def __init__(self, invalid: Sequence[str]) -> None:
        self.invalid = tuple(invalid)
        super().__init__(
            f"{len(invalid)} rows cannot be used: {_first(invalid)}; "
            "correct them, or leave them out with --skip-invalid"
        )


def _first(texts: Sequence[str]) -> str:
    more = f"; and {len(texts) - _SHOWN} more" if len(texts) > _SHOWN else ""
    return "; ".join(texts[:_SHOWN]) + more


def load(
    benchmark: Benchmark,
    folder: Path,
    *,
    subtitles: bool = False,
    limit: int | None = None,
    skip_missing: bool = False,
    skip_invalid: bool = False,
) -> Loaded:
    """The items of the benchmark below ``folder``, the first ``limit`` of them that can be asked.

    Annotations are checked whole. Videos are looked at (for their length) only as far as ``limit`` reaches.

    Raises:
        InvalidItems: rows of another form, answers outside the options, ids that come twice, times beyond the end of
            their video, videos that cannot be read; unless ``skip_invalid``.
        MissingVideos: videos are not there; unless ``skip_missing``.
        AnnotationError: the folder or the annotation file is absent or unreadable, or nothing is left to ask.
    """
    invalid: list[str] = []
    items: list[Item] = []
    seen: dict[str, str] = {}
    for found in benchmark.read(folder, subtitles):
        if isinstance(found, RowError):
            invalid.append(str(found))
        elif found.item_id in seen:
            invalid.append(f"{found.source}: the id {found.item_id!r} was used before, in {seen[found.item_id]}")
        else:
            seen[found.item_id] = found.source
            items.append(found)
    usable: list[Item] = []
    missing: dict[str, int] = {}
    lengths: dict[Path, float | UnreadableMedia] = {}
    for item in items:
        if limit is not None and len(usable) >= limit:
            break
        if not item.video.is_file():
            name = item.video.relative_to(folder).as_posix() if item.video.is_relative_to(folder) else str(item.video)
            missing[name] = missing.get(name, 0) + 1
            continue
        problem = _beyond_the_end(item, lengths)
        if problem is None:
            usable.append(item)
        else:
            invalid.append(f"{item.source}: {problem}")
    if invalid and not skip_invalid:
        raise InvalidItems(invalid)
    if missing and not skip_missing:
        raise MissingVideos(tuple(missing), sum(missing.values()))
    if not usable:
        raise AnnotationError(f"{str(folder)!r}: nothing of {benchmark.title} is left to ask")
    return Loaded(tuple(usable), tuple(missing), sum(missing.values()), tuple(invalid))


def _beyond_the_end(item: Item, lengths: dict[Path, float | UnreadableMedia]) -> str | None:
    """What is wrong between an item's times and its video's length; None where nothing is."""
    if item.video not in lengths:
        lengths[item.video] = _length_of(item.video)
    length_s = lengths[item.video]
    if isinstance(length_s, UnreadableMedia):
        return str(length_s)
    name = item.video.name
    if item.interval is not None and item.interval[1] > length_s + TIME_TOLERANCE_S:
        start_s, end_s = item.interval
        return f"{start_s:g} to {end_s:g} s is beyond the end of {name!r}, which lasts {length_s:.2f} s"
    most_s = length_s * (1 + LENGTH_TOLERANCE) + TIME_TOLERANCE_S
    if item.duration_s is not None and item.duration_s > most_s:
        return f"{name!r} should last {item.duration_s:g} s and lasts {length_s:.2f} s"
    return None


def _length_of(video: Path) -> float | UnreadableMedia:
    from pipeline.probe import probe

    try:
        return probe(str(video)).duration_s
    except UnreadableMedia as unreadable:
        return unreadable
