"""``vxl evaluate clips`` on the real clips: every row is counted, and the figures stand beside guessing.

No target: what a model reaches on real footage is reported, not demanded.
"""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import pytest

from jobs.evaluation.clip_truth import is_accepted, read_truth
from tests.vxl import call

pytestmark = [pytest.mark.footage, pytest.mark.slow]


def test_the_truth_file_is_read_whole(footage_folder: Path) -> None:
    kinds = Counter(json.loads(line)["type"] for line in (footage_folder / "truth.jsonl").read_text().splitlines())
    truth = read_truth(footage_folder)
    assert (len(truth.searches), len(truth.questions), truth.num_negative) == (
        kinds["search"],
        kinds["qa"],
        kinds["negative"],
    )
    for question in truth.questions:
        assert all(is_accepted(answer, question.accepted) for answer in question.accepted), question.row_id


@pytest.mark.timeout(1500)
def test_every_row_is_in_the_report(footage_folder: Path, tmp_path: Path) -> None:
    truth = read_truth(footage_folder)
    done = call("evaluate", "clips", footage_folder, "--archive", tmp_path / "archive", "--json")
    assert done.code == 0, done.err
    report = done.json
    assert not report["failed"]
    assert len(report["rows"]) == len(truth.searches) + len(truth.questions)
    for figures in report["search"].values():
        for name in ("recall1", "recall5", "mrr"):
            assert figures[name]["n"] == len(truth.searches)
            assert 0.0 <= figures[name]["low"] <= figures[name]["value"] <= figures[name]["high"] <= 1.0
            assert 0.0 < figures["random"][name]["value"] < 1.0
    for row in report["rows"]:
        if row["type"] == "search":
            assert 0 < row["own_clip"]["moments"] <= row["all_clips"]["moments"]
    everything = report["questions"].pop("all")
    for figures in (everything, *report["questions"].values()):
        assert set(figures) >= {"right", "exact", "blind", "commonest"}
    assert (
        everything["right"]["n"] == sum(f["right"]["n"] for f in report["questions"].values()) == len(truth.questions)
    )
    assert everything["commonest"]["value"] > 0
