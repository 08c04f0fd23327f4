"""The figures: right answers give 1, wrong ones 0, and each metric counts what it says and nothing else."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

from jobs.evaluation.answers import CHECKABLE
from jobs.evaluation.metrics import METRICS, document
from jobs.evaluation.records import COLUMNS, pooled, run_from_dict
from tests.unit.jobs.evaluation.samples import EXPECTED, asked, make_run, needle, question, search


def test_all_right_is_one_and_all_wrong_is_zero() -> None:
    metrics = document(make_run())["metrics"]
    assert tuple(metrics) == METRICS
    share = {name for name in METRICS if name not in ("when_median_error_s", "bilevel_bytes_share")}
    assert all(metrics[name] == 1.0 for name in share), metrics
    assert metrics["when_median_error_s"] == 0.0 and metrics["bilevel_bytes_share"] == 0.3
    wrong = document(make_run(set(), searches=(search(1, 6), search(2, None))))["metrics"]
    assert all(wrong[name] == 0.0 for name in share - {"majority"}), wrong
    assert wrong["when_median_error_s"] == 85.0  # from 15 to 100


@pytest.mark.parametrize("column", COLUMNS)
def test_a_column_counts_its_own_answers(column: str) -> None:
    metrics = document(make_run({column}))["metrics"]
    assert {name for name in COLUMNS if metrics[name]} == {column}
    assert metrics["multiple_choice"] == metrics["exists"] == (1.0 if column == "bilevel" else 0.0)


def test_accuracy_is_over_checkable_questions_only() -> None:
    run = make_run()
    wrong_time = replace(run.questions[-1], answers=dict.fromkeys(COLUMNS, "never"))
    metrics = document(replace(run, questions=(*run.questions[:-1], wrong_time)))
    assert metrics["metrics"]["dense"] == 1.0 and metrics["counts"]["checkable"] == len(CHECKABLE)
    assert metrics["metrics"]["when_median_error_s"] == 600.0


def test_one_wrong_answer_of_four_is_three_quarters() -> None:
    items = tuple(asked("exists", {"bilevel"} if number else set(), number) for number in range(4))
    results = document(make_run(questions=items))
    assert results["metrics"]["exists"] == results["metrics"]["bilevel"] == 0.75
    assert results["differences"]["bilevel_minus_dense"]["value"] == 0.75
    assert results["intervals"]["exists"]["low"] == pytest.approx(0.3006, abs=1e-3)


def test_the_majority_is_the_commonest_answer_of_each_kind() -> None:
    no = [asked("exists", set(), number, question=question("exists", number, expected="no")) for number in range(3)]
    colours = [
        asked("colour", set(), n, question=question("colour", n, expected=c)) for n, c in enumerate(("red", "blue"))
    ]
    results = document(make_run(questions=(*no, asked("exists", set(), 9), *colours)))
    assert results["metrics"]["majority"] == pytest.approx(4 / 6, abs=1e-4)
    assert results["by_kind"]["exists"]["majority"] == 0.75


def test_recall_looks_at_five_and_keeps_single_and_double_apart() -> None:
    searches = (search(1, 5), search(1, 6), search(2, 1), search(2, 2), search(2, None), search(2, 5))
    results = document(make_run(searches=searches))
    assert results["metrics"]["search_single_recall5"] == 0.5
    assert results["metrics"]["search_double_recall5"] == 0.75
    assert results["search"]["double"]["recall1"]["value"] == 0.25
    assert results["search"]["single"]["chance_recall5"] == 0.4
    assert results["baselines"]["search_double_recall5"] == 0.4


def test_bytes_are_summed_before_they_are_divided() -> None:
    items = (asked("exists", set(), 1), asked("exists", set(), 2, kv_bytes_read=100, dense_bytes=900))
    assert document(make_run(questions=items))["metrics"]["bilevel_bytes_share"] == 0.13


def test_needles_by_length_and_depth() -> None:
    needles = (
        needle(0.5, 0.05, dense=True, right=True),
        needle(0.5, 0.05, dense=False, right=True),
        needle(0.5, 0.95, dense=False, right=False),
        needle(6.0, 0.05, dense=True, right=False),
    )
    results = document(make_run(needles=needles))
    assert results["metrics"]["needle_retrieval"] == 0.5 and results["metrics"]["needle_answer"] == 0.5
    cells = {
        (cell["hours"], cell["depth"]): (cell["n"], cell["retrieval"], cell["answer"])
        for cell in results["needles"]["cells"]
    }
    assert cells == {(0.5, 0.05): (2, 0.5, 1.0), (0.5, 0.95): (1, 0.0, 0.0), (6.0, 0.05): (1, 1.0, 0.0)}
    assert results["baselines"]["needle_retrieval"] == 0.2


def test_segments_are_compared_over_videos_that_have_several() -> None:
    items = (
        asked("exists", {"dense"}, 1, num_segments=3),
        asked("colour", {"dense", "chunked"}, 2, num_segments=3),
        asked("where", {"chunked"}, 3, num_segments=1),
    )
    found = document(make_run(questions=items))["segments_vs_whole"]
    assert (found["segments"]["value"], found["whole_video"]["value"], found["difference"]["n"]) == (1.0, 0.5, 2)


def test_what_was_not_measured_is_null_with_a_note() -> None:
    results = document(make_run(needles=(), searches=()))
    missing = [name for name in METRICS if results["metrics"][name] is None]
    assert missing == ["search_single_recall5", "search_double_recall5", "needle_retrieval", "needle_answer"]
    assert all(any(name in note for note in results["notes"]) for name in missing)
    said = document(make_run(needles=(), notes=("needle_retrieval, needle_answer: switched off",)))
    assert said["notes"] == ["needle_retrieval, needle_answer: switched off"]


def test_a_run_survives_json_and_runs_pool() -> None:
    first = make_run()
    again = run_from_dict(json.loads(json.dumps(first.to_dict())))
    assert again == first
    both = pooled((first, make_run(set(), seeds=(2,))))
    results = document(both)
    assert results["seed"] == [1, 2] and results["counts"]["questions"] == 2 * len(EXPECTED)
    assert results["metrics"]["bilevel"] == 0.5 and results["metrics"]["needle_answer"] == 0.5
    with pytest.raises(ValueError, match="seeds"):
        pooled((first, first))


def test_the_document_is_json_without_nan() -> None:
    json.dumps(document(make_run(questions=(), searches=(), needles=())), allow_nan=False)
