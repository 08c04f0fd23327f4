"""LVBench (github.com/THUDM/LVBench): questions about videos of an hour, one JSON line per video.

A line has ``key`` (the video), ``type`` and ``qa``: ``{uid, question, answer, question_type, time_reference}``. Options
are lines ``(A) ...`` of the question's text; an item has one or more question types and counts in each.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from pathlib import Path

from jobs.evaluation.benchmarks.answers import lone_letter
from jobs.evaluation.benchmarks.items import LETTERS, Benchmark, Item, RunPlan, Score
from jobs.evaluation.benchmarks.places import find_annotation, find_video
from jobs.evaluation.benchmarks.rows import Row, RowError, read_rows

_ANNOTATIONS = ("video_info.meta.jsonl", "data/video_info.meta.jsonl", "test.jsonl", "data/test.jsonl")
_VIDEO_PLACES = ("videos", "all_videos", "scripts/videos", "video", ".")
_OPTION = re.compile(r"^\s*\(([A-Z])\)\s*(.*\S)\s*$", re.MULTILINE)
_CLOCK = re.compile(r"(?:(\d{1,2}):)?(\d{1,3}):(\d{2}(?:\.\d+)?)")


def read(folder: Path, subtitles: bool = False) -> Iterator[Item | RowError]:
    """Items in the order of the file."""
    path = find_annotation(folder, _ANNOTATIONS, "LVBench")
    for row in read_rows(path, folder):
        try:
            name, questions = row.text("key"), row.rows("qa")
            kind = (row.text("type"),) if row.has("type") else ()
        except RowError as error:
            yield error
            continue
        video = find_video(folder, name, _VIDEO_PLACES)
        for question in questions:
            try:
                yield _item(question, video, kind)
            except RowError as error:
                yield error


def _item(row: Row, video: Path, kind: tuple[str, ...]) -> Item:
    stem, options = split_options(row)
    answer = row.text("answer").strip() if row.has("answer") else None
    if answer is not None and answer not in tuple(LETTERS[: len(options)]):
        raise row.error(f"the answer {answer!r} is none of the options A to {LETTERS[len(options) - 1]}")
    types = row.texts("question_type")
    if not types:
        raise row.error("'question_type' names no type")
    return Item(
        item_id=row.text("uid"),
        video=video,
        question=stem,
        source=row.source,
        options=options,
        answer=answer,
        interval=_time_reference(row),
        categories={"question_type": types, "video_type": kind},
    )


def split_options(row: Row) -> tuple[str, tuple[str, ...]]:
    """The question before its first option, and the options, each with its bracketed letter as the data set has it."""
    text = row.text("question")
    found = list(_OPTION.finditer(text))
    letters = "".join(option[1] for option in found)
    if len(found) < 2 or letters != LETTERS[: len(found)]:
        raise row.error(f"the question should end in lines (A), (B), ...; found {letters or 'none'}")
    stem = text[: found[0].start()].strip()
    if not stem:
        raise row.error("there is no question before the options")
    return stem, tuple(f"({option[1]}) {option[2]}" for option in found)


def _time_reference(row: Row) -> tuple[float, float] | None:
    """``mm:ss-mm:ss``, also with hours, also one time alone; None where the field is empty."""
    if not row.has("time_reference") or not str(row.values["time_reference"]).strip():
        return None
    text = row.text("time_reference").strip()
    parts = [_CLOCK.fullmatch(part.strip()) for part in text.split("-")]
    if not 1 <= len(parts) <= 2 or any(part is None for part in parts):
        raise row.error(f"'time_reference' {text!r} is not mm:ss-mm:ss or hh:mm:ss-hh:mm:ss")
    times = [int(part[1] or 0) * 3600 + int(part[2]) * 60 + float(part[3]) for part in parts if part is not None]
    if times[-1] < times[0]:
        raise row.error(f"'time_reference' {text!r} ends before it starts")
    return times[0], times[-1]


def prompt(item: Item, times_s: Sequence[float] = ()) -> str:
    """The question and the options, lettered once more as in the published run of the model: ``A. (A) ...``."""
    options = "".join(f"{letter}. {option}\n" for letter, option in zip(item.letters, item.options, strict=True))
    return f"{item.question}\n{options}Answer with the option's letter from the given choices directly."


def score(item: Item, reply: str) -> Score:
    """The letter that the reply names must be the answer; an empty reply is wrong."""
    letter = lone_letter(reply)
    return Score(letter, None if item.answer is None else float(letter == item.answer))


LVBENCH = Benchmark(
    name="lvbench",
    title="LVBench",
    read=read,
    prompt=prompt,
    score=score,
    plan=RunPlan(max_frames=600, max_new_tokens=16, chunked_blocks=(4, 11), bilevel_blocks=(4, 11)),
)
