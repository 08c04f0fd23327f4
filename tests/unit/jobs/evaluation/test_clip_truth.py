"""Clips with known contents: what is read and refused, which replies are right, and what random orders give."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from jobs.evaluation.benchmarks.loading import InvalidItems, MissingVideos
from jobs.evaluation.benchmarks.rows import AnnotationError
from jobs.evaluation.clip_truth import ClipQuestion, commonest_answers, is_accepted, is_exact, read_truth, words_of
from jobs.evaluation.clips import Ranking, mean_of, random_figures
from jobs.evaluation.statistics import chance_of_a_hit
from tests.clips import RECIPES, make
from tests.vxl import call


@pytest.fixture(scope="module")
def three_seconds(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make(RECIPES["h264.mp4"], tmp_path_factory.mktemp("clip")).path


def search(row_id: str = "a-1", **changes: Any) -> dict[str, Any]:
    row = {"id": row_id, "file": "a.mp4", "type": "search", "query": "bars", "intervals": [{"start_s": 1, "end_s": 2}]}
    return {**row, "tolerance_s": 0.5, **changes}


def question(row_id: str = "a-2", **changes: Any) -> dict[str, Any]:
    row = {"id": row_id, "file": "a.mp4", "type": "qa", "question": "How many bars?", "answer": "10", "accept": ["ten"]}
    return {**row, **changes}


def folder_of(folder: Path, clip: Path, *rows: dict[str, Any]) -> Path:
    shutil.copy(clip, folder / "a.mp4")
    (folder / "manifest.jsonl").write_text(json.dumps({"file": "a.mp4"}) + "\n")
    (folder / "truth.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


def test_what_is_read(tmp_path: Path, three_seconds: Path) -> None:
    negative = {"id": "a-3", "file": "a.mp4", "type": "negative", "query": "a dog", "intervals": []}
    truth = read_truth(folder_of(tmp_path, three_seconds, search(), question(), negative))
    assert truth.files == ("a.mp4",) and truth.path_of("a.mp4").is_file()
    assert truth.searches[0].spans == ((0.5, 2.5),)
    assert (truth.questions[0].accepted, truth.questions[0].kind) == (("10", "ten"), "how many")
    assert truth.num_negative == 1


@pytest.mark.parametrize(
    ("row", "why"),
    [
        (search(intervals=[{"start_s": 1, "end_s": 9}]), "truth.jsonl, line 2, intervals 1: 1 to 9 s is beyond"),
        (search(intervals=[{"start_s": 2, "end_s": 1}]), "2 to 1 s is no stretch"),
        (search(intervals=[]), "needs at least one interval"),
        (search(file="b.mp4"), "the clip 'b.mp4' is not in manifest.jsonl"),
        (search("a-0"), "the id 'a-0' was used before"),
        (question(answer=None), "'answer' should be a text, it is missing"),
        (question(type="quiz"), "the type 'quiz' is none of search, qa, negative"),
    ],
)
def test_a_row_that_cannot_be_used_is_named(tmp_path: Path, three_seconds: Path, row: dict[str, Any], why: str) -> None:
    with pytest.raises(InvalidItems) as caught:
        read_truth(folder_of(tmp_path, three_seconds, question("a-0"), row))
    assert why in caught.value.invalid[0]


def test_missing_files_are_named(tmp_path: Path, three_seconds: Path) -> None:
    with pytest.raises(AnnotationError, match=r"no manifest\.jsonl"):
        read_truth(tmp_path)
    folder = folder_of(tmp_path, three_seconds, search())
    (folder / "a.mp4").unlink()
    with pytest.raises(MissingVideos, match=r"a\.mp4"):
        read_truth(folder)
    done = call("evaluate", "clips", tmp_path / "absent")
    assert done.code == 2 and "manifest.jsonl" in done.error_line


@pytest.mark.parametrize(
    ("reply", "accepted", "is_right"),
    [
        ("There are four cars.", ["4"], True),
        ("4 of 5 cars", ["4"], True),
        ("5, not 4", ["4"], False),
        ("lon4ide", ["4"], False),
        ("1 3 seconds", ["13.0"], True),
        ("No, it is grey.", ["no"], True),
        ("There is no ring", ["no"], False),
        ("Yes.", ["no", "no, grey"], False),
        ("The color is Gray", ["grey"], True),
        ("a red car", ["red"], True),
        ("a reddish car", ["red"], False),
        ("he wears a straw hat", ["a straw hat", "hat"], True),
        ("SAM Two", ["SAM TWO"], True),
        ("", ["red"], False),
        ("...", ["red"], False),
    ],
)
def test_replies(reply: str, accepted: list[str], is_right: bool) -> None:
    assert is_accepted(reply, accepted) is is_right


@given(st.text(), st.lists(st.text(), max_size=3))
def test_what_is_exactly_right_is_right(reply: str, accepted: list[str]) -> None:
    if is_exact(reply, accepted):
        assert is_accepted(reply, accepted)
    assert words_of(reply.upper()) == words_of(reply.upper().lower())


def test_the_commonest_answer_of_each_kind() -> None:
    answers = [("What colour is it?", "red"), ("What colour is he?", "Red"), ("What colour?", "blue"), ("Is it?", "no")]
    rows = [ClipQuestion(str(number), "a.mp4", text, (said,)) for number, (text, said) in enumerate(answers)]
    assert commonest_answers(rows) == ["red", "red", "red", "no"]
    kinds = ["Is it day or night?", "Does he run?", "How many cars?", "Which way is it?", "Where is it?"]
    found = [ClipQuestion("", "", text, ("x",)).kind for text in kinds]
    assert found == ["one of two", "yes or no", "how many", "other", "where"]


def test_random_orders_give_what_counting_gives() -> None:
    rows = [Ranking((3, 9), 12), Ranking((1,), 4), Ranking((), 5)]
    found = random_figures(rows, seeds=4000)
    for name, limit in (("recall1", 1), ("recall5", 5)):
        expected = sum(chance_of_a_hit(row.num_moments, len(row.right_ranks), limit) for row in rows) / 3
        assert found[name].value == pytest.approx(expected, abs=0.02)
    assert found["mrr"].low is not None and found["mrr"].high is not None
    assert found["mrr"].low <= (found["mrr"].value or 0) <= found["mrr"].high
    assert random_figures([])["mrr"].n == 0


def test_ranks_and_means() -> None:
    row = Ranking((3, 9), 12)
    assert (row.is_within(1), row.is_within(5), row.reciprocal) == (False, True, 1 / 3)
    assert Ranking((), 5).reciprocal == 0.0
    found = mean_of([0.0, 1.0] * 50)
    assert found.value == 0.5 and found.low is not None and 0.35 < found.low < 0.5
    assert mean_of([]).value is None


@pytest.mark.slow
def test_the_command_on_a_clip(tmp_path: Path, three_seconds: Path) -> None:
    (tmp_path / "with space").mkdir()
    folder = folder_of(tmp_path / "with space", three_seconds, search(), question())
    done = call("evaluate", "clips", folder, "--json", "--archive", tmp_path / "archive")
    assert done.code == 0, done.err
    document = done.json
    assert document["counts"] == {"clips": 1, "seconds": 3.0, "search": 1, "qa": 1, "negative": 0}
    assert document["search"]["own_clip"]["recall5"] == document["search"]["all_clips"]["recall5"]
    assert document["search"]["own_clip"]["recall5"]["value"] == 1.0, "the one moment is the right one"
    assert document["questions"]["all"]["right"]["n"] == document["questions"]["how many"]["right"]["n"] == 1
    assert [row["id"] for row in document["rows"]] == ["a-1", "a-2"]
    text = call("evaluate", "clips", folder, "--archive", tmp_path / "archive")
    assert text.code == 0 and "random order" in text.out and "without video" in text.out
    (folder / "b.mp4").write_text("no video")
    with (folder / "manifest.jsonl").open("a") as manifest:
        manifest.write(json.dumps({"file": "b.mp4"}) + "\n")
    with (folder / "truth.jsonl").open("a") as rows:
        rows.write(json.dumps(question("b-1", file="b.mp4")) + "\n")
    done = call("evaluate", "clips", folder, "--json", "--archive", tmp_path / "archive")
    assert done.code == 3
    assert "not a video file" in done.json["failed"]["b.mp4"]
    assert done.json["rows"][-1]["answer"] == "" and not done.json["rows"][-1]["right"]
