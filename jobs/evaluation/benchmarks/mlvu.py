"""MLVU (github.com/JUNJIE99/MLVU): the seven multiple-choice tasks of the dev set, and the test set.

Dev is seven JSON files of ``{video, duration, question, candidates, answer, question_type}``; the answer is the text of
an option. Test is one file with ``question_id`` besides, with answers (``test_mcq_gt.json``) or without. The two
generation tasks are judged by another model in the publication and are not here.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from jobs.evaluation.benchmarks.answers import letter_before_bracket
from jobs.evaluation.benchmarks.items import LETTERS, Benchmark, Item, RunPlan, Score
from jobs.evaluation.benchmarks.places import find_annotation, find_video
from jobs.evaluation.benchmarks.rows import AnnotationError, Row, RowError, read_rows

DEV_FILES = (
    "1_plotQA.json",
    "2_needle.json",
    "3_ego.json",
    "4_count.json",
    "5_order.json",
    "6_anomaly_reco.json",
    "7_topic_reasoning.json",
)
TEST_FILES = ("test_mcq_gt.json", "test_multi_choice_tasks.json", "test_question.json")
_ANNOTATION_PLACES = ("", "json/", "data/", "MLVU/json/", "upload_json/")
_TEST_PLACES = ("", "test-ground-truth/", "MLVU_Test/", "leaderboard/")


def read_dev(folder: Path, subtitles: bool = False) -> Iterator[Item | RowError]:
    """Items of every dev file that is there, in the order of the tasks; at least one must be."""
    paths = []
    for name in DEV_FILES:
        try:
            paths.append(find_annotation(folder, [place + name for place in _ANNOTATION_PLACES], "MLVU dev"))
        except AnnotationError:
            if not folder.is_dir():
                raise
    if not paths:
        looked = ", ".join(place + DEV_FILES[0] for place in _ANNOTATION_PLACES)
        raise AnnotationError(f"{str(folder)!r} holds no annotation of MLVU dev; looked for {looked} and the other six")
    for path in paths:
        task = path.stem.split("_", 1)[1]
        places = [f"{root}{path.stem}" for root in ("video/", "MLVU/video/")]
        places += [f"video/{task}", f"MLVU/video/{task}", path.stem, "video", "videos", "."]
        for number, row in enumerate(read_rows(path, folder), start=1):
            try:
                yield _item(row, f"{task}-{number}", folder, places)
            except RowError as error:
                yield error


def read_test(folder: Path, subtitles: bool = False) -> Iterator[Item | RowError]:
    """Items of the test set, from the file with answers where it is there."""
    names = [place + name for name in TEST_FILES for place in _TEST_PLACES]
    path = find_annotation(folder, names, "MLVU test")
    places = ("video", "MLVU_Test/video", "videos", "mlvu_test", ".")
    for row in read_rows(path, folder):
        try:
            yield _item(row, row.text("question_id"), folder, places)
        except RowError as error:
            yield error


def _item(row: Row, item_id: str, folder: Path, places: Sequence[str]) -> Item:
    candidates = row.texts("candidates")
    if not 2 <= len(candidates) <= len(LETTERS):
        raise row.error(f"{len(candidates)} candidates are no choice")
    answer = None
    if row.has("answer"):
        answer = _letter_of(row, candidates)
    return Item(
        item_id=item_id,
        video=find_video(folder, row.text("video"), places),
        question=row.text("question"),
        source=row.source,
        options=candidates,
        answer=answer,
        categories={"task": (row.text("question_type"),)},
        duration_s=row.number("duration") if row.has("duration") else None,
    )


def _letter_of(row: Row, candidates: Sequence[str]) -> str:
    """The letter of the option that reads like the answer; of equal ones the last, as the publication counts."""
    answer = row.text("answer")
    same = [at for at, candidate in enumerate(candidates) if candidate == answer]
    if not same:
        raise row.error(f"the answer {answer!r} is none of the candidates {', '.join(map(repr, candidates))}")
    return LETTERS[same[-1]]


def prompt(item: Item, times_s: Sequence[float] = ()) -> str:
    """The question with its lettered options, and a beginning of the answer that asks for a letter and a bracket."""
    options = "\n".join(f"({letter}) {option}" for letter, option in zip(item.letters, item.options, strict=True))
    return f"\n{item.question}\n{options}\nOnly give the best option.\n\nBest option: ("


def score(item: Item, reply: str) -> Score:
    """The character before the first bracket, else the whole reply, must be the letter."""
    letter = letter_before_bracket(reply)
    return Score(letter, None if item.answer is None else float(letter == item.answer))


_PLAN = RunPlan(max_frames=256, max_new_tokens=16)
MLVU = Benchmark(name="mlvu", title="MLVU dev", read=read_dev, prompt=prompt, score=score, plan=_PLAN)
MLVU_TEST = Benchmark(name="mlvu-test", title="MLVU test", read=read_test, prompt=prompt, score=score, plan=_PLAN)
