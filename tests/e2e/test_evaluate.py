"""``vxl evaluate rendered`` end to end: rendered, indexed, asked from another process, counted."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from jobs.evaluation.metrics import METRICS
from jobs.evaluation.records import COLUMNS
from jobs.evaluation.report import read_run
from tests.vxl import Done, call, spawn

RENDERED = ("evaluate", "rendered", "--seed", "3")


@pytest.fixture(scope="module")
def kept(tmp_path_factory: pytest.TempPathFactory) -> tuple[Done, Path]:
    """A run of six questions about two minutes, without the needle test; its folders."""
    root = tmp_path_factory.mktemp("evaluate")
    done = spawn(
        *(*RENDERED, "--questions", "6", "--minutes", "2", "--needle-hours", "0", "--json"),
        *("--folder", root / "work", "--report", root / "report"),
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
    assert counts["questions"] == 6 and counts["searches"] == 2 and counts["videos"] == 2
    assert counts["hours"] == pytest.approx(2 / 60, abs=1e-3)
    missing = {name for name, value in results["metrics"].items() if value is None}
    assert missing == {"needle_retrieval", "needle_answer"}
    assert any("needle_retrieval" in note for note in results["notes"])


def test_short_videos_are_read_whole_and_every_way_of_the_same_kv_answers_alike(kept: tuple[Done, Path]) -> None:
    """Two minutes are three chunks at most: bi-level, dense and one whole prefill hold the same KV."""
    results = kept[0].json
    assert results["metrics"]["bilevel_bytes_share"] == 1.0
    run = read_run(kept[1] / "report" / "run.json")
    assert len(run.questions) == 6
    for item in run.questions:
        assert set(item.answers) == set(COLUMNS)
        assert item.answers["dense"] == item.answers["chunked"]
        assert item.answers["bilevel"].startswith(item.answers["dense"])  # ask may go on for longer


def test_what_was_kept(kept: tuple[Done, Path]) -> None:
    work, report = kept[1] / "work", kept[1] / "report"
    assert len(list((work / "footage").rglob("*.mp4"))) == 2 and (work / "archive" / "archive.json").is_file()
    tasks = [json.loads(line) for line in (work / "archive-tasks.jsonl").read_text(encoding="utf-8").splitlines()]
    assert [task["kind"] for task in tasks] == ["ask"] * 6 + ["search"] * 2
    assert {path.suffix for path in report.iterdir()} == {".json", ".md", ".png"}


def test_a_folder_that_is_not_empty_and_lengths_that_cannot_be_are_refused(tmp_path: Path) -> None:
    (tmp_path / "x").touch()
    assert "is not empty" in call(*RENDERED, "--folder", tmp_path).error_line
    assert "is negative" in call(*RENDERED, "--needle-hours", "-1").error_line
    short = call(*RENDERED, "--questions", "6", "--minutes", "2", "--needle-hours", "0.001")
    assert short.code == 2 and "too short" in short.error_line
