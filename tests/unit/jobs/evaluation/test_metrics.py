"""The figures: right answers give 1, wrong ones 0, and each metric counts what it says and nothing else."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

from jobs.evaluation.answers import CHECKABLE
from jobs.evaluation.metrics import METRICS, document
from jobs.evaluation.records import COLUMNS, AskedTwice, ShareAnswer, pooled, run_from_dict
from jobs.evaluation.twice import WAYS
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


def test_what_training_never_showed_is_told_apart() -> None:
    new = [asked("exists", {"plain"}, n, question=question("exists", n, never_shown=True)) for n in range(2)]
    old = asked("exists", {"bilevel", "dense"}, 9, question=question("exists", 9, never_shown=False))
    rows = document(make_run(questions=(*new, old, asked("exists", set(), 5))))["by_novelty"]
    assert {name: row["bilevel"]["n"] for name, row in rows.items()} == {"never shown in training": 2, "other": 1}
    assert [rows["never shown in training"][name] for name in ("plain", "dense")] == [1.0, 0.0]
    assert rows["other"]["bilevel"]["value"] == 1.0


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
    assert both.video_hours == 2 * first.video_hours and both.conditions == first.conditions
    results = document(both)
    assert results["seed"] == [1, 2] and results["counts"]["questions"] == 2 * len(EXPECTED)
    assert results["metrics"]["bilevel"] == 0.5 and results["metrics"]["needle_answer"] == 0.5
    assert results["differences"]["bilevel_minus_dense"]["n"] == 2 * len(CHECKABLE)
    with pytest.raises(ValueError, match="seeds"):
        pooled((first, first))


def test_runs_of_other_weights_or_settings_are_refused_by_name() -> None:
    first, second = make_run(), make_run(seeds=(2,))
    for changes in ({"weights of the model": "other"}, {"query.limit": 3}, {"a new one": 1}):
        other = replace(second, conditions={**second.conditions, **changes})
        with pytest.raises(ValueError, match=f"seed 1 and the run of seed 2 differ in {next(iter(changes))}"):
            pooled((first, other))
    with pytest.raises(ValueError, match=r"differ in query\.limit: 10 and None"):
        pooled((first, replace(second, conditions={"weights of the model": "abc"})))
    with pytest.raises(ValueError, match=r"'b\.json' does not say what it was made with"):
        pooled((first, replace(second, conditions={})), ("'a.json'", "'b.json'"))
    old = make_run().to_dict()
    del old["conditions"], old["twice"]
    assert pooled((run_from_dict(json.loads(json.dumps(old))),)).conditions == {}, "one old run can still be told"


def test_the_curve_pairs_every_share_with_all_dense() -> None:
    small, large = ShareAnswer("no", 10), ShareAnswer("yes", 40)
    items = tuple(asked("exists", {"dense"}, number, by_share={"0.2": small, "1": large}) for number in range(4))
    run = make_run(questions=(*items, asked("exists", set(), 9), asked("when", set(), 10)))
    rows = document(run_from_dict(json.loads(json.dumps(run.to_dict()))))["bilevel_curve"]
    assert [row["dense_share"] for row in rows] == [0.2, 1.0]
    assert [(row["right"]["value"], row["right"]["n"], row["minus_dense"]["value"]) for row in rows] == [
        (0.0, 4, -1.0),
        (1.0, 4, 0.0),
    ]
    assert [row["bytes_share"] for row in rows] == [0.1, 0.4]
    assert document(make_run())["bilevel_curve"] == []


def test_long_videos_indexed_twice_join_the_comparison_of_segments() -> None:
    def both(number: int, segments: str, whole: str, **changes: int) -> AskedTwice:
        made = AskedTwice(
            question("exists", number), dict.fromkeys(WAYS, segments), {"dense": whole, "ask": "no"}, num_segments=3
        )
        return replace(made, **changes)

    twice = (both(1, "yes", "yes"), both(2, "no", "yes"), both(3, "no", "yes", num_segments=1))
    run = make_run(questions=(asked("exists", {"dense"}, 4, num_segments=3),), twice=twice)
    results = document(run_from_dict(json.loads(json.dumps(run.to_dict()))))
    found = results["segments_vs_whole"]
    assert (found["segments"]["value"], found["whole_video"]["value"]) == (0.6667, 0.6667)
    assert found["difference"]["n"] == 3
    assert found["long_videos"]["dense"]["difference"]["value"] == -0.5
    assert found["long_videos"]["ask"]["difference"]["value"] == 0.5
    assert results["counts"]["questions_asked_twice"] == 3
    assert "long_videos" not in document(make_run())["segments_vs_whole"]


def test_the_document_is_json_without_nan() -> None:
    json.dumps(document(make_run(questions=(), searches=(), needles=())), allow_nan=False)
