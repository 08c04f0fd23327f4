"""``vxl evaluate rendered`` end to end: rendered, indexed, asked from another process, counted."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from jobs.evaluation.answers import CHECKABLE
from jobs.evaluation.curve import DENSE_SHARES
from jobs.evaluation.metrics import METRICS
from jobs.evaluation.records import COLUMNS
from jobs.evaluation.report import read_run
from tests.vxl import Done, call, spawn

RENDERED = ("evaluate", "rendered", "--seed", "3")


@pytest.fixture(scope="module")
def kept(tmp_path_factory: pytest.TempPathFactory) -> tuple[Done, Path]:
    """A run of six questions about two minutes, without the needle test; its folders.

    Beside them two minutes are indexed twice, as one and in segments of a minute.
    """
    root = tmp_path_factory.mktemp("evaluate")
    (root / "settings.toml").write_text("[ingest]\nsegment_s = 60.0\n")
    done = spawn(
        *(*RENDERED, "--questions", "6", "--minutes", "2", "--needle-hours", "0", "--whole-minutes", "2", "--json"),
        *("--folder", root / "work", "--report", root / "report"),
        env={"VXL_CONFIG": str(root / "settings.toml")},
    )
    assert done.code == 0, done.err
    return done, root


def test_the_document_has_exactly_the_promised_metrics(kept: tuple[Done, Path]) -> None:
    results = kept[0].json
    assert {"seed", "counts", "metrics"} <= results.keys() and results["seed"] == 3
    assert (
        set(results["metrics"])
        == set(METRICS)
        == {
            *("search_single_recall5", "search_double_recall5", "multiple_choice", "exists", "when_median_error_s"),
            *("needle_retrieval", "needle_answer", "plain", "chunked", "dense", "bilevel", "bilevel_bytes_share"),
            *("int8", "int4", "sparse_only", "recompute_hits", "blind", "majority"),
        }
    )
    counts = results["counts"]
    assert counts["questions"] == 6 and counts["searches"] == 2 and counts["videos"] == 3
    assert counts["hours"] == pytest.approx(4 / 60, abs=1e-3)
    missing = {name for name, value in results["metrics"].items() if value is None}
    assert missing == {"needle_retrieval", "needle_answer"}
    assert any("needle_retrieval" in note for note in results["notes"])


def test_every_way_of_the_same_kv_answers_alike(kept: tuple[Done, Path]) -> None:
    """Stored dense KV is that of one prefill; bi-level is by default the curve's fifth of the chunks."""
    results = kept[0].json
    run = read_run(kept[1] / "report" / "run.json")
    assert len(run.questions) == 6
    for item in run.questions:
        assert set(item.answers) == set(COLUMNS)
        assert item.answers["dense"] == item.answers["chunked"]
        if item.question.kind in CHECKABLE:
            assert item.by_share["0.2"].answer == item.answers["bilevel"]
    (fifth,) = [row for row in results["bilevel_curve"] if row["dense_share"] == 0.2]
    assert results["metrics"]["bilevel_bytes_share"] == pytest.approx(fifth["bytes_share"], abs=1e-4)
    assert fifth["bytes_share"] < 0.7, "one of three chunks"


def test_the_curve_reads_more_as_more_is_dense(kept: tuple[Done, Path]) -> None:
    rows = kept[0].json["bilevel_curve"]
    assert [row["dense_share"] for row in rows] == list(DENSE_SHARES)
    read = [row["bytes_share"] for row in rows]
    assert read == sorted(read) and read[0] < 1.0 and read[-1] == 1.0
    for item in read_run(kept[1] / "report" / "run.json").questions:
        if item.question.kind in CHECKABLE:
            assert item.by_share["1"].answer.startswith(item.answers["dense"])
            assert item.by_share["0.2"].kv_bytes_read < item.dense_bytes
        else:
            assert not item.by_share


def test_long_videos_are_asked_in_segments_and_as_one(kept: tuple[Done, Path]) -> None:
    results, run = kept[0].json, read_run(kept[1] / "report" / "run.json")
    assert run.twice and all(item.num_segments == 2 for item in run.twice)
    checkable = sum(item.question.kind in CHECKABLE for item in run.twice)
    compared = results["segments_vs_whole"]
    assert compared["difference"]["n"] == checkable, "videos of one segment do not count"
    assert {way: row["difference"]["n"] for way, row in compared["long_videos"].items()} == {
        "dense": checkable,
        "ask": checkable,
    }
    assert results["counts"]["questions_asked_twice"] == len(run.twice)
    assert {"long_index_whole_wall_s", "long_index_segments_wall_s"} <= results["timings"].keys()


def test_a_run_says_what_it_was_made_with(kept: tuple[Done, Path]) -> None:
    found = read_run(kept[1] / "report" / "run.json").conditions
    assert found["ingest.segment_s"] == 60.0 and found["query.relevance"] == "embedding"
    assert found["ingest.levels.max_dense_chunks"] == 8
    assert all(
        len(found[name]) >= 32 for name in ("weights of the model", "weights of the search encoder", "fingerprint")
    )


def test_what_was_kept(kept: tuple[Done, Path]) -> None:
    work, report = kept[1] / "work", kept[1] / "report"
    assert len(list((work / "footage").rglob("*.mp4"))) == 2 and (work / "archive" / "archive.json").is_file()
    tasks = [json.loads(line) for line in (work / "archive-tasks.jsonl").read_text(encoding="utf-8").splitlines()]
    assert [task["kind"] for task in tasks][:8] == ["ask"] * 6 + ["search"] * 2
    among, curve = [task for task in tasks[8:] if "levels" not in task], tasks[-len(DENSE_SHARES) :]
    assert all(len(task["videos"]) == 2 for task in among), "there are two kinds of camera"
    assert all(task["levels"]["dense_share"] in DENSE_SHARES for task in curve)
    answered = [item.among_answer for item in read_run(report / "run.json").questions if item.among_answer is not None]
    assert len(among) == len(answered) == kept[0].json["among_videos"]["right"]["n"] > 0
    assert {path.suffix for path in report.iterdir()} == {".json", ".md", ".png"}


def test_a_folder_that_is_not_empty_and_lengths_that_cannot_be_are_refused(tmp_path: Path) -> None:
    (tmp_path / "x").touch()
    assert "is not empty" in call(*RENDERED, "--folder", tmp_path).error_line
    assert "is negative" in call(*RENDERED, "--needle-hours", "-1").error_line
    short = call(*RENDERED, "--questions", "6", "--minutes", "2", "--needle-hours", "0.001")
    assert short.code == 2 and "too short" in short.error_line
