"""The report: a table with verdicts, pictures, a section of a document, and runs that are pooled."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path

import pytest

from jobs.evaluation import pictures
from jobs.evaluation.metrics import METRICS, document
from jobs.evaluation.report import fill_section, main, to_markdown, write_report
from jobs.evaluation.targets import TARGETS
from pipeline.errors import ConfigError, UsageError
from tests.unit.jobs.evaluation.samples import asked, make_run, question

ROOT = Path(__file__).resolve().parents[4]


def test_targets_point_at_figures_that_exist() -> None:
    results = document(make_run())
    several = [target.name for target in TARGETS if target.value(results) is None]
    assert several == ["10-minute segments less whole video"]  # the run has no video of several segments
    for target in TARGETS:
        assert not target.baseline or target.guess(results) is not None, target
        if target.path[0] == "metrics":
            assert target.path[1] in METRICS


def test_verdicts_follow_the_figures() -> None:
    right, wrong = document(make_run()), document(make_run(set()))
    by_name = {target.name: target for target in TARGETS}
    choice, error = by_name["multiple choice, four options"], by_name["when does X happen, median error in seconds"]
    assert choice.is_met(right) is True and choice.is_met(wrong) is False
    assert error.is_met(right) is True and error.is_met(wrong) is False
    assert choice.is_met({}) is None
    low, high = choice.interval(wrong) or (1.0, 0.0)
    assert low == 0.0 < high


def test_the_table_holds_every_target_and_every_column() -> None:
    text = to_markdown(document(make_run()), ["a.png"], "folder/")
    for target in TARGETS:
        assert f"| {target.name} |" in text
    assert "| bilevel | 1.000 |" in text and "](folder/a.png)" in text
    assert "what the answer shows" not in text, "nothing says whether training showed it"
    known = make_run(questions=[asked("exists", {"plain"}, question=question("exists", never_shown=True))])
    assert "| never shown in training | 1 | 1.000 | 0.000 | 0.000 |" in to_markdown(document(known), [], "")
    widths: dict[str, int] = {}
    for block in re.findall(r"(?:^\|.*\n)+", text, re.MULTILINE):
        for line in block.splitlines():
            assert widths.setdefault(block, line.count("|")) == line.count("|"), line


def test_a_report_is_written_and_runs_are_pooled_into_a_document(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("matplotlib")
    for number in (1, 2):
        run = make_run(seeds=(number,))
        write_report(tmp_path / str(number), run, document(run))
    assert json.loads((tmp_path / "1" / "results.json").read_text())["metrics"]["dense"] == 1.0
    assert (tmp_path / "1" / pictures.HEAT_MAP).read_bytes().startswith(b"\x89PNG")
    page = tmp_path / "page.md"
    page.write_text("# Title\n<!-- results: filled -->\nold\n<!-- end of results -->\nafter\n")
    runs = [str(tmp_path / str(number) / "run.json") for number in (1, 2)]
    assert main([*runs, "--folder", str(tmp_path / "both"), "--document", str(page)]) == 0
    text = page.read_text()
    assert "old" not in text and text.startswith("# Title\n") and text.endswith("<!-- end of results -->\nafter\n")
    assert "seed 1, 2: 14 questions" in text and f"](both/{pictures.WAYS})" in text
    other = tmp_path / "other.json"
    changed = make_run(seeds=(3,), conditions={"weights of the model": "xyz", "query.limit": 10})
    other.write_text(json.dumps(changed.to_dict()))
    assert main([runs[0], str(other), "--folder", str(tmp_path / "x")]) == 2
    said = capsys.readouterr().err
    assert str(other) in said and runs[0] in said and "weights of the model" in said
    assert not (tmp_path / "x").exists()
    assert main([runs[0], runs[0], "--folder", str(tmp_path / "x")]) == 2
    assert main([str(page), "--folder", str(tmp_path / "x")]) == 2


def test_a_document_without_a_section_is_refused(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text("# Title\n")
    with pytest.raises(UsageError, match="no section"):
        fill_section(page, "x")


def test_the_documentation_has_the_section() -> None:
    text = (ROOT / "docs" / "evaluation.md").read_text(encoding="utf-8")
    assert "<!-- results: " in text and "<!-- end of results -->" in text
    for name in METRICS:
        assert f"`{name}`" in text, f"docs/evaluation.md does not define {name}"


def test_without_matplotlib_one_line_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(ConfigError, match="pip install"):
        pictures.import_matplotlib()
