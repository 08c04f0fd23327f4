"""Subtitles of a benchmark's videos: SRT files and the JSON of LongVideoBench, and which of them go into a prompt."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from jobs.evaluation.benchmarks.items import Subtitle
from jobs.evaluation.benchmarks.rows import AnnotationError, read_text

_SRT_TIMES = re.compile(r"(\d+):(\d{2}):(\d{2})[,.](\d{1,3})\s*-->\s*(\d+):(\d{2}):(\d{2})[,.](\d{1,3})")
_TAG = re.compile(r"<[^>]*>")
_SHORTEST_S = 1.0


def read_srt(path: Path) -> tuple[Subtitle, ...]:
    """The subtitles of an SRT file in its order, without their markup; sections without a time are passed over."""
    found = []
    for section in re.split(r"\n\s*\n", read_text(path, path.name).replace("\r\n", "\n")):
        lines = section.strip().split("\n")
        for at, line in enumerate(lines[:2]):
            if times := _SRT_TIMES.search(line):
                text = _TAG.sub("", " ".join(lines[at + 1 :])).strip()
                if text:
                    found.append(Subtitle(_srt_seconds(*times.groups()[:4]), _srt_seconds(*times.groups()[4:]), text))
                break
    return tuple(found)


def _srt_seconds(hours: str, minutes: str, seconds: str, fraction: str) -> float:
    return int(hours) * 3600 + int(minutes) * 60 + int(seconds) + int(fraction.ljust(3, "0")) / 1000


def read_longvideobench(path: Path, starts_at_s: float, duration_s: float) -> tuple[Subtitle, ...]:
    """The subtitles of one LongVideoBench file on the clock of the cut video, which begins at ``starts_at_s``.

    Both published forms are read: ``timestamp`` with ``text``, and ``start``, ``end`` as ``hh:mm:ss`` with ``line``. A
    subtitle without an end lasts to the end. Raises ``AnnotationError`` naming file and entry.
    """
    try:
        content = json.loads(read_text(path, path.name))
    except ValueError as exc:
        raise AnnotationError(f"subtitles {path.name} are not JSON: {exc}") from exc
    if not isinstance(content, list):
        raise AnnotationError(f"subtitles {path.name} should be a list")
    found = []
    for number, entry in enumerate(content, start=1):
        try:
            start, end, text = _entry(entry, duration_s)
        except (TypeError, ValueError, KeyError) as exc:
            raise AnnotationError(f"subtitles {path.name}, entry {number}: not in a known form ({exc})") from exc
        found.append(Subtitle(start - starts_at_s, end - starts_at_s, text))
    return tuple(found)


def _entry(entry: dict[str, Any], duration_s: float) -> tuple[float, float, str]:
    if "timestamp" in entry:
        start, end = entry["timestamp"]
        return float(start), float(end) if isinstance(end, float) else duration_s, str(entry["text"])
    return _clock_seconds(entry["start"]), _clock_seconds(entry["end"]), str(entry["line"])


def _clock_seconds(text: str) -> float:
    hours, minutes, seconds = text.split(":")
    return int(hours) * 3600 + int(minutes) * 60 + float(seconds)


def shown_at(subtitles: Sequence[Subtitle], times_s: Sequence[float]) -> list[str]:
    """Video-MME: texts of the subtitles that are on the screen in one of the sampled frames, in their order."""
    return [line.text for line in subtitles if any(line.start_s <= time_s < line.end_s for time_s in times_s)]


def covering(subtitles: Sequence[Subtitle], times_s: Sequence[float]) -> list[str]:
    """LongVideoBench: as ``shown_at``, with a subtitle shorter than one second widened to one about its middle."""
    texts = []
    for line in subtitles:
        start, end = line.start_s, line.end_s
        if end - start < _SHORTEST_S:
            middle = (start + end) / 2
            start, end = middle - _SHORTEST_S / 2, middle + _SHORTEST_S / 2
        if any(start < time_s < end for time_s in times_s):
            texts.append(line.text)
    return texts
