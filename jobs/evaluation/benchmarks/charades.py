"""Charades-STA (github.com/jiyanggao/TALL): when does what a sentence says happen? Scored by the overlap in time.

The text form has a line ``VIDEO START END##SENTENCE`` per item, in seconds. JSON forms in use: a list of ``{video,
caption, timestamp}``, and the captioning form ``{"annotations": [{image_id, caption, timestamp, id}]}``.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Sequence
from pathlib import Path

from jobs.evaluation.benchmarks.answers import interval_in, interval_iou
from jobs.evaluation.benchmarks.items import Benchmark, Item, RunPlan, Score
from jobs.evaluation.benchmarks.places import find_annotation, find_video
from jobs.evaluation.benchmarks.rows import Row, RowError, read_lines, read_rows

_ANNOTATIONS = (
    "charades_sta_test.txt",
    "*/charades_sta_test.txt",
    "charades_sta_test.json",
    "test.caption_coco_format.json",
    "*/test.caption_coco_format.json",
    "charades_sta*.json",
    "test.json",
    "*.parquet",
    "data/*.parquet",
)
_VIDEO_PLACES = ("Charades_v1_480", "Charades_v1", "videos", "video", ".")
_LINE = re.compile(r"(\S+)\s+(\S+)\s+([^#\s]+)\s*##(.*)")

_INSTRUCTION = (
    "Please find the visual event described by a sentence in the video, determining its starting and ending times. "
    "The format should be: 'The event happens in the start time - end time'. For example, The event 'person turn a "
    "light on' happens in the 24.3 - 30.4 seonds. Now I will give you the textual sentence: "
)
"""The misspelt word is part of the published prompt."""


def read(folder: Path, subtitles: bool = False) -> Iterator[Item | RowError]:
    """Items in the order of the file."""
    path = find_annotation(folder, _ANNOTATIONS, "Charades-STA")
    if path.suffix == ".txt":
        for number, (line, source) in enumerate(read_lines(path, folder), start=1):
            try:
                yield parse_line(line, source, number, folder)
            except RowError as error:
                yield error
        return
    for number, row in enumerate(read_rows(path, folder), start=1):
        try:
            yield _item(row, number, folder)
        except RowError as error:
            yield error


def parse_line(line: str, source: str, number: int, folder: Path) -> Item:
    """The item of one line of text. Raises ``RowError``."""
    found = _LINE.fullmatch(line)
    if found is None:
        raise RowError(source, f"not 'VIDEO START END##SENTENCE': {line[:80]!r}")
    try:
        start_s, end_s = float(found[2]), float(found[3])
    except ValueError as exc:
        raise RowError(source, f"start {found[2]!r} and end {found[3]!r} should be seconds") from exc
    return _made(found[1], found[4], (start_s, end_s), f"{found[1]}-{number}", source, folder)


def _item(row: Row, number: int, folder: Path) -> Item:
    name = row.text("video" if row.has("video") else "image_id")
    times = row.values.get("timestamp")
    if not isinstance(times, list) or len(times) != 2 or not all(isinstance(t, int | float) for t in times):
        raise row.error("'timestamp' should be [start, end] in seconds")
    item_id = row.text("id") if row.has("id") else f"{Path(name).stem}-{number}"
    return _made(name, row.text("caption"), (float(times[0]), float(times[1])), item_id, row.source, folder)


def _made(name: str, sentence: str, interval: tuple[float, float], item_id: str, source: str, folder: Path) -> Item:
    start_s, end_s = interval
    if not sentence.strip():
        raise RowError(source, "the sentence is empty")
    if not (math.isfinite(start_s) and math.isfinite(end_s) and 0 <= start_s < end_s):
        raise RowError(source, f"{start_s:g} to {end_s:g} s is no stretch of time")
    return Item(
        item_id=item_id,
        video=find_video(folder, name, _VIDEO_PLACES),
        question=sentence.strip(),
        source=source,
        interval=interval,
    )


def prompt(item: Item, times_s: Sequence[float] = ()) -> str:
    """The instruction with an example, then the sentence."""
    return f"{_INSTRUCTION}{item.question}. Please return its start time and end time."


def score(item: Item, reply: str) -> Score:
    """IoU of the stretch that the reply names with the true one; 0 where it names none."""
    found = interval_in(reply)
    if found is None:
        return Score("", 0.0)
    assert item.interval is not None
    return Score(f"{found[0]:g} - {found[1]:g}", interval_iou(found, item.interval))


CHARADES_STA = Benchmark(
    name="charades-sta",
    title="Charades-STA",
    read=read,
    prompt=prompt,
    score=score,
    plan=RunPlan(max_frames=256, max_new_tokens=50),
    metric="grounding",
)
