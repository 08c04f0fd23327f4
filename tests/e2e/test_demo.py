"""``vxl demo``: the main job from rendering to report, each step in its own process."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.vxl import call, spawn


@pytest.mark.ray
@pytest.mark.s3
@pytest.mark.slow
@pytest.mark.xdist_group("ray")
def test_demo(tmp_path: Path) -> None:
    folder = tmp_path / "demo"
    done = spawn("demo", folder, "--minutes", "0.6")
    assert done.code == 0, done.err
    assert "indexed 3 videos" in done.out
    assert "nothing to do: all 3 videos" in done.out
    assert done.out.count("$ vxl search") == 2
    assert done.out.count("$ vxl ask") == 2
    assert done.out.count("$ vxl anomalies") == 1
    assert "trained on rendered footage only" in done.out
    assert "lancedb fork support" not in done.err
    page = (folder / "report.html").read_text()
    assert page.count("data:image/jpeg;base64,") >= 8
    assert "http://" not in page.replace("http://www.w3.org/", "")
    status = call("status", "--archive", folder / "archive", "--json").json
    assert status["cameras"] == {"corridor": 1, "gate": 1, "parking": 1}
    assert {
        row["start_time_source"] for row in call("videos", "--archive", folder / "archive", "--json").json["videos"]
    } == {"key"}


def test_demo_never_empties_a_folder_of_others(tmp_path: Path) -> None:
    (tmp_path / "letters.txt").write_text("keep me")
    done = call("demo", tmp_path)
    assert done.code == 2
    assert "not an earlier demo" in done.error_line
    assert (tmp_path / "letters.txt").exists()
