"""Published selection files: ids of each benchmark, what a question gets, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from videoxl2.errors import ModelError
from videoxl2.selection import read_selection_file, unique_id

VIDEOMME = (
    "Select the best answer to the following multiple-choice question based on the video and the subtitles. Respond "
    "with only the letter (A, B, C, or D) of the correct option.\nWhere is the dog?\n['A. Yard.', 'B. Roof.']\n\n"
    "Answer with the option's letter from the given choices directly."
)
MLVU = "\nWhat comes first?\n(A) a\n(B) b\nOnly give the best option.\n\nBest option: ("
LETTERS = "Who waits?\nA. (A) one\nB. (B) two\nAnswer with the option's letter from the given choices directly."


@pytest.mark.parametrize(
    ("benchmark", "prompt", "expected"),
    [
        ("videomme", VIDEOMME, "v1.mp4_Where is the dog?"),
        ("mlvu", MLVU, "v1.mp4_What comes first?"),
        ("longvideobench", LETTERS, "v1.mp4_Who waits?"),
        ("lvbench", LETTERS, "v1_Who waits?"),
    ],
)
def test_unique_ids(benchmark: str, prompt: str, expected: str) -> None:
    assert unique_id(benchmark, "/somewhere/else/v1.mp4", prompt) == expected


def entry(units: dict[str, list[int]], chunk: int = 4, compression: int = 4, **changes: Any) -> dict[str, Any]:
    config = {"selected_topk": 8, "selected_chunk_size": chunk, "compression": compression, "relevance oracle": "x"}
    return {"config": config, "selected_unit_indices": units, **changes}


def write(folder: Path, content: Any, name: str = "mlvu.json") -> Path:
    (folder / name).write_text(json.dumps(content))
    return folder / name


def test_a_question_gets_its_dense_chunks(tmp_path: Path) -> None:
    path = write(tmp_path, {"needle": entry({"v1.mp4_What comes first?": [9, 2, 31]}), "topic_reasoning": None})
    found = read_selection_file(path)
    assert found.benchmark == "mlvu" and found.plain_categories == ("topic_reasoning",)
    selection = found.find("v1.mp4", MLVU)
    assert selection is not None
    assert (selection.category, selection.units) == ("needle", (9, 2, 31))
    assert selection.dense_chunks(64) == (0, 1, 4, 15)
    assert selection.dense_chunks(18) == (0, 1, 4), "the last chunk is short, and units beyond the video are ignored"
    assert (selection.levels.chunk_groups, selection.levels.compression) == (4, 4)


def test_a_question_without_entry_is_told_to_the_caller(tmp_path: Path) -> None:
    found = read_selection_file(write(tmp_path, {"topic_reasoning": None}))
    assert found.find("v1.mp4", MLVU) is None
    assert found.plain_categories == ("topic_reasoning",)
    content = {"needle": {**entry({}), "selected_unit_indices": {"v1.mp4_What comes first?": None}}}
    assert read_selection_file(write(tmp_path, content)).find("v1.mp4", MLVU) is None


def test_an_empty_list_is_all_dense(tmp_path: Path) -> None:
    found = read_selection_file(write(tmp_path, {"ego": entry({"v1.mp4_What comes first?": []})}))
    selection = found.find("v1.mp4", MLVU)
    assert selection is not None and selection.dense_chunks(9) == (0, 1, 2)


def test_the_last_category_that_holds_a_question_counts(tmp_path: Path) -> None:
    key = "v1.mp4_What comes first?"
    content = {"a": entry({key: [1]}, chunk=4), "b": entry({key: [2]}, chunk=6, compression=2)}
    selection = read_selection_file(write(tmp_path, content)).find("v1.mp4", MLVU)
    assert selection is not None
    assert (selection.category, selection.units, selection.chunk_groups, selection.compression) == ("b", (2,), 6, 2)


@pytest.mark.parametrize(
    ("name", "benchmark"),
    [("videomme_long.json", "videomme"), ("longvideobench.json", "longvideobench"), ("lvbench_tv.json", "lvbench")],
)
def test_the_benchmark_is_in_the_file_name(tmp_path: Path, name: str, benchmark: str) -> None:
    assert read_selection_file(write(tmp_path, {}, name)).benchmark == benchmark


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ([], "no object"),
        ({"a": {"config": {}, "selected_unit_indices": {}}}, "selected_chunk_size"),
        ({"a": {"config": {"selected_chunk_size": 4, "compression": 4}}}, "selected_unit_indices"),
        ({"a": entry({"x": ["no"]})}, "another form"),
        ({"a": entry({"x": "12"})}, "another form"),  # type: ignore[dict-item]
        ({"a": entry({"x": [1.5]})}, "another form"),  # type: ignore[list-item]
        ({"a": entry({"x": [-1]})}, "another form"),
        ({"a": entry({}, chunk=4.5)}, "another form"),  # type: ignore[arg-type]
        ("text", "no object"),
        ({"a": "text"}, "another form"),
        ({"a": entry({}, selected_unit_indices=[1])}, "another form"),
        ({"a": entry({}, compression=0)}, "below 1"),
    ],
)
def test_other_files_are_refused(tmp_path: Path, content: Any, message: str) -> None:
    with pytest.raises(ModelError, match=message):
        read_selection_file(write(tmp_path, content))


def test_unnamed_and_unknown_benchmarks(tmp_path: Path) -> None:
    path = write(tmp_path, {}, "selected.json")
    with pytest.raises(ModelError, match="give it explicitly"):
        read_selection_file(path)
    assert read_selection_file(path, "mlvu").benchmark == "mlvu"
    with pytest.raises(ModelError, match="none of"):
        read_selection_file(path, "other")
    with pytest.raises(ValueError, match="none of"):
        unique_id("other", "v", "q")
    with pytest.raises(ModelError, match="cannot read"):
        read_selection_file(tmp_path / "mlvu_absent.json")
