"""LongVideoBench (github.com/longvideobench/LongVideoBench): up to five options, four groups of length, subtitles.

``lvb_val.json`` is a list of ``{id, video_path, subtitle_path, question, candidates, correct_choice, duration,
duration_group, question_category, starting_timestamp_for_subtitles, ...}``; the Parquet form has ``option0`` to
``option4`` with ``N/A`` for none. The test file has no ``correct_choice``.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from jobs.evaluation.benchmarks.answers import first_letter_or_guess
from jobs.evaluation.benchmarks.items import LETTERS, Benchmark, Item, RunPlan, Score, Subtitle
from jobs.evaluation.benchmarks.places import find_annotation, find_video
from jobs.evaluation.benchmarks.rows import AnnotationError, Row, RowError, read_rows
from jobs.evaluation.benchmarks.subtitles import covering, read_longvideobench

DURATION_GROUPS = (15, 60, 600, 3600)
"""Longest length in seconds of each group of videos."""

_VALIDATION = ("lvb_val.json", "validation-00000-of-00001.parquet", "*validation*.parquet")
_TEST = ("lvb_test_wo_gt.json", "test-00000-of-00001.parquet")
_VIDEO_PLACES = ("videos", "data", "video", ".")


def read_validation(folder: Path, subtitles: bool = False) -> Iterator[Item | RowError]:
    """Items of the validation set. With ``subtitles``, each item's subtitle file must be there."""
    yield from _read(folder, _VALIDATION, "LongVideoBench validation", subtitles)


def read_test(folder: Path, subtitles: bool = False) -> Iterator[Item | RowError]:
    """Items of the test set, whose answers are not published."""
    yield from _read(folder, _TEST, "LongVideoBench test", subtitles)


def _read(folder: Path, names: Sequence[str], title: str, subtitles: bool) -> Iterator[Item | RowError]:
    for row in read_rows(find_annotation(folder, names, title), folder):
        try:
            yield _item(row, folder, subtitles)
        except RowError as error:
            yield error


def _item(row: Row, folder: Path, subtitles: bool) -> Item:
    options = _options(row)
    answer = None
    if row.has("correct_choice"):
        choice = row.number("correct_choice")
        if choice not in range(len(options)):
            raise row.error(f"'correct_choice' {choice:g} is none of the options 0 to {len(options) - 1}")
        answer = LETTERS[int(choice)]
    group = row.number("duration_group")
    if group not in DURATION_GROUPS:
        raise row.error(f"'duration_group' {group:g} is none of {', '.join(map(str, DURATION_GROUPS))}")
    return Item(
        item_id=row.text("id"),
        video=find_video(folder, row.text("video_path"), _VIDEO_PLACES),
        question=row.text("question"),
        source=row.source,
        options=options,
        answer=answer,
        categories={"duration_group": (f"{group:g}",), "question_category": (row.text("question_category"),)},
        duration_s=row.number("duration"),
        subtitles=_subtitles(row, folder) if subtitles else (),
    )


def _options(row: Row) -> tuple[str, ...]:
    if row.has("candidates"):
        options = row.texts("candidates")
    else:
        named = [name for name in (f"option{number}" for number in range(5)) if row.has(name)]
        options = tuple(text for name in named if (text := row.text(name)) != "N/A")
    if not 2 <= len(options) <= 5:
        raise row.error(f"{len(options)} options; two to five are expected")
    return options


def _subtitles(row: Row, folder: Path) -> tuple[Subtitle, ...]:
    name = row.text("subtitle_path")
    starts_at_s = row.number("starting_timestamp_for_subtitles") if row.has("starting_timestamp_for_subtitles") else 0.0
    try:
        return read_longvideobench(folder / "subtitles" / name, starts_at_s, row.number("duration"))
    except AnnotationError as unreadable:
        raise row.error(str(unreadable)) from unreadable


def prompt(item: Item, times_s: Sequence[float] = ()) -> str:
    """The question and the options, as the published run of the model asks without subtitles."""
    options = "\n".join(f"{letter}. {option}" for letter, option in zip(item.letters, item.options, strict=True))
    return f"{item.question}\n{options}\nAnswer with the option's letter from the given choices directly.\n"


def prompt_with_subtitles(item: Item, times_s: Sequence[float] = ()) -> str:
    """The subtitles that cover a frame at ``times_s``, in their order, before the question.

    The benchmark puts each between the frames it belongs to; here the frames come first, as one stretch, since that is
    the only form that the model takes.
    """
    return "".join(f"{text}\n" for text in covering(item.subtitles, times_s)) + prompt(item)


def score(item: Item, reply: str) -> Score:
    """The first letter A to E behind the usual phrases must be the answer; a reply without one is a guess."""
    letter = first_letter_or_guess(reply, item.letters, item.item_id)
    return Score(letter, None if item.answer is None else float(letter == item.answer))


_PLAN = RunPlan(max_frames=400, max_new_tokens=32, chunked_blocks=(6, 5))
LONG_VIDEO_BENCH = Benchmark(
    name="longvideobench",
    title="LongVideoBench validation",
    read=read_validation,
    prompt=prompt,
    prompt_with_subtitles=prompt_with_subtitles,
    score=score,
    plan=_PLAN,
)
LONG_VIDEO_BENCH_TEST = Benchmark(
    name="longvideobench-test",
    title="LongVideoBench test",
    read=read_test,
    prompt=prompt,
    prompt_with_subtitles=prompt_with_subtitles,
    score=score,
    plan=_PLAN,
)
