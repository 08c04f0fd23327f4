"""The command ``vxl train``: what it prints, and which exit code an error gets."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import pytest

from jobs.output import Output
from jobs.train import print_report, progress
from tests.vxl import call
from videoxl2.errors import ModelError
from videoxl2.training import stages
from videoxl2.training.errors import TrainingError
from videoxl2.training.stages import StageOptions, StageReport

REPORT = StageReport(
    "search",
    "run",
    {"steps": 12000, "wall_s": 3661.4, "validation": {"search_ap": 0.8125}, "device": None},
    ["search/state.pt", "search/loss.png"],
    ["search ended after 3 of 12000 steps"],
)


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, Path, StageOptions]]:
    """Requests that reached the stages, none of which runs."""
    found: list[tuple[str, Path, StageOptions]] = []

    def run_stage(stage: str, folder: Path, options: StageOptions, observe: Any) -> StageReport:
        found.append((stage, folder, options))
        observe(1, 2, 0.5)
        return REPORT

    monkeypatch.setattr(stages, "run_stage", run_stage)
    return found


def test_options_reach_the_stage(asked: list[tuple[str, Path, StageOptions]]) -> None:
    done = call(
        *("train", "--stage", "instruction", "--folder", "run", "--device", "cpu", "--seed", "3", "--steps", "7"),
        *("--minutes", "1.5", "--workers", "2", "--config", "c.json", "--unfreeze", "vision, dts", "--json"),
        *("--start", "tiny", "--rate", "0.002", "--clip-minutes", "4", "--events-per-minute", "12"),
    )
    assert done.code == 0 and done.err == ""
    assert done.json == REPORT.to_document()
    expected = StageOptions(
        device="cpu",
        seed=3,
        steps=7,
        minutes=1.5,
        clip_minutes=4,
        events_per_minute=12.0,
        workers=2,
        config=Path("c.json"),
        start="tiny",
        rate=0.002,
        unfreeze=("vision", "dts"),
    )
    assert asked == [("instruction", Path("run"), expected)]


def test_the_report_is_readable(asked: list[tuple[str, Path, StageOptions]]) -> None:
    done = call("train", "--stage", "search", "--folder", "run")
    assert done.out.splitlines() == [
        "stage search of the run in run",
        "  steps: 12,000",
        "  wall s: 3,661",
        "  validation: search_ap 0.8125",
        "  device: -",
        "  files: search/state.pt, search/loss.png",
        "note: search ended after 3 of 12000 steps",
    ]


@pytest.mark.parametrize(
    ("error", "code", "said"),
    [
        (TrainingError("run has no trained perception"), 2, "vxl: run has no trained perception"),
        (ModelError("'x' is no device"), 2, "vxl: 'x' is no device"),
        (FloatingPointError("ten steps"), 1, "stage train search: ten steps; what was saved last is still in run"),
    ],
)
def test_errors_have_exit_codes(monkeypatch: pytest.MonkeyPatch, error: Exception, code: int, said: str) -> None:
    def run_stage(*arguments: Any) -> StageReport:
        raise error

    monkeypatch.setattr(stages, "run_stage", run_stage)
    done = call("train", "--stage", "search", "--folder", "run")
    assert done.code == code and said in done.error_line


def test_stage_and_folder_are_needed() -> None:
    for words in (("--stage", "footage"), ("--folder", "run")):
        assert call("train", *words).code == 2


def test_nothing_is_shown_when_piped(capsys: pytest.CaptureFixture[str]) -> None:
    stream = io.StringIO()
    with progress(Output(stream, False), "search") as observe:
        observe(1, 10, 0.25)
    assert stream.getvalue() == "" and capsys.readouterr() == ("", "")
    print_report(REPORT, Output(stream, False))
    assert "search" in stream.getvalue()
