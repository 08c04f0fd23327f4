"""Video-MME (github.com/MME-Benchmarks/Video-MME): four options, three lengths of video, with or without subtitles.

Read from the Parquet file of the published data set, one row per question, from the same rows as JSON, or from the JSON
of the benchmark's template, where each video holds its ``questions``.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from jobs.evaluation.benchmarks.answers import first_letter
from jobs.evaluation.benchmarks.items import LETTERS, Benchmark, Item, RunPlan, Score, Subtitle
from jobs.evaluation.benchmarks.places import find_annotation, find_video
from jobs.evaluation.benchmarks.rows import Row, RowError, read_rows
from jobs.evaluation.benchmarks.subtitles import read_srt, shown_at

DURATIONS = ("short", "medium", "long")
_ANNOTATIONS = (
    "videomme/test-00000-of-00001.parquet",
    "test-00000-of-00001.parquet",
    "videomme/*.parquet",
    "*.parquet",
    "videomme.json",
    "Video-MME.json",
    "test.json",
    "test_qa.json",
    "videomme.jsonl",
)
_VIDEO_PLACES = ("data", "videos", "video", "videomme", ".")
_SUBTITLE_PLACES = ("subtitle", "subtitles", "data/subtitle")

_INSTRUCTION = (
    "Select the best answer to the following multiple-choice question based on the video and the subtitles. Respond "
    "with only the letter (A, B, C, or D) of the correct option."
)


def read(folder: Path, subtitles: bool = False) -> Iterator[Item | RowError]:
    """Items in the order of the file. With ``subtitles``, those of each video that has an SRT file."""
    path = find_annotation(folder, _ANNOTATIONS, "Video-MME")
    lines: dict[str, tuple[Subtitle, ...]] = {}
    for row in read_rows(path, folder):
        try:
            questions = row.rows("questions") if row.has("questions") else [row]
        except RowError as error:
            yield error
            continue
        for question in questions:
            try:
                name = _video_name(row)
                if subtitles and name not in lines:
                    lines[name] = _subtitles(folder, name)
                yield _item(row, question, folder, name, lines.get(name, ()))
            except RowError as error:
                yield error


def _video_name(row: Row) -> str:
    """Files are called after the video's id on its site; the template knows it from the address only, or not at all."""
    if row.has("videoID"):
        return row.text("videoID")
    if row.has("url") and "v=" in (url := row.text("url")):
        return url.split("v=", 1)[1].split("&", 1)[0]
    return row.text("video_id")


def _subtitles(folder: Path, name: str) -> tuple[Subtitle, ...]:
    path = next((path for place in _SUBTITLE_PLACES if (path := folder / place / f"{name}.srt").is_file()), None)
    return () if path is None else read_srt(path)


def _item(row: Row, question: Row, folder: Path, name: str, lines: tuple[Subtitle, ...]) -> Item:
    options = question.texts("options")
    if not 2 <= len(options) <= len(LETTERS):
        raise question.error(f"{len(options)} options are no choice")
    answer = question.text("answer").strip() if question.has("answer") else None
    if answer is not None and answer not in tuple(LETTERS[: len(options)]):
        raise question.error(f"the answer {answer!r} is none of the options A to {LETTERS[len(options) - 1]}")
    duration = row.text("duration")
    if duration not in DURATIONS:
        raise question.error(f"the duration {duration!r} is none of {', '.join(DURATIONS)}")
    return Item(
        item_id=question.text("question_id"),
        video=find_video(folder, name, _VIDEO_PLACES),
        question=question.text("question"),
        source=question.source,
        options=options,
        answer=answer,
        categories={
            "duration": (duration,),
            "task": (question.text("task_type"),),
            "domain": (row.text("domain"),),
            "sub_category": (row.text("sub_category"),),
        },
        subtitles=lines,
    )


def prompt(item: Item, times_s: Sequence[float] = ()) -> str:
    """Instruction, question and options as the model's published run wrote them: the options as a list in brackets."""
    question = f"{_INSTRUCTION}\n{item.question}\n{list(item.options)}\n"
    return f"{question}\nAnswer with the option's letter from the given choices directly."


def prompt_with_subtitles(item: Item, times_s: Sequence[float] = ()) -> str:
    """As the benchmark asks with subtitles: those shown in the frames at ``times_s``, and an answer to be completed."""
    shown = "\n".join(shown_at(item.subtitles, times_s)) if item.subtitles else "No subtitles available"
    head = f"This video's subtitles are listed below: \n{shown}"
    return f"{head}\n{_INSTRUCTION}\n{item.question}\n{list(item.options)}\nThe best answer is:"


def score(item: Item, reply: str) -> Score:
    """The first letter A to D behind the usual phrases must be the answer."""
    letter = first_letter(reply)
    return Score(letter, None if item.answer is None else float(letter == item.answer))


_PLAN = RunPlan(max_frames=400, max_new_tokens=16)
VIDEO_MME = Benchmark(
    name="videomme",
    title="Video-MME",
    read=read,
    prompt=prompt,
    prompt_with_subtitles=prompt_with_subtitles,
    score=score,
    plan=_PLAN,
)
