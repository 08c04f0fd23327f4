"""A run: frames by the published rule, replies kept and taken up again, failures told, figures with intervals."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from jobs.evaluation.benchmarks.charades import CHARADES_STA
from jobs.evaluation.benchmarks.frames import sample_video
from jobs.evaluation.benchmarks.items import Item, Score
from jobs.evaluation.benchmarks.loading import load
from jobs.evaluation.benchmarks.longvideobench import LONG_VIDEO_BENCH
from jobs.evaluation.benchmarks.lvbench import LVBENCH
from jobs.evaluation.benchmarks.mlvu import MLVU
from jobs.evaluation.benchmarks.results import ResultsFile, RunFacts
from jobs.evaluation.benchmarks.runner import Asker, run, scored
from jobs.evaluation.benchmarks.summary import summarise, table_columns, table_rows
from jobs.evaluation.benchmarks.videomme import VIDEO_MME
from pipeline.errors import UnreadableMedia, UsageError
from tests.clips import RECIPES, make, read_numbers, rotate
from tests.unit.jobs.evaluation.benchmarks.samples import lvbench_qa, mlvu_row, videomme_row
from tests.vxl import call
from videoxl2.errors import ContextOverflow
from videoxl2.sampling import published_frame_indices

Put = Callable[..., Path]
FACTS = RunFacts(benchmark="mlvu", mode="chunked", weights_digest="d", max_frames=8, subtitles=False, dtype="float32")


@pytest.mark.parametrize("max_frames", [5, 8, 400])
@pytest.mark.parametrize("name", ["many.mkv", "h264.ts", "mpeg4.avi", "vfr.mp4"])
def test_frames_are_those_that_the_published_rule_names(tmp_path: Path, name: str, max_frames: int) -> None:
    clip = make(RECIPES[name], tmp_path)
    found = sample_video(clip.path, max_frames, 160, drop_remainder=False)
    fps = len(clip.times_s) / (clip.times_s[-1] + clip.step_s) if name == "vfr.mp4" else 30.0
    if name == "vfr.mp4":  # containers round the average rate of such files each in their way
        assert len(found.times_s) in range(1, max_frames + 1)
        numbers = read_numbers(list(np.asarray(found.frames_FHW3)))
        assert numbers == sorted(set(numbers))
        return
    indices, times_s = published_frame_indices(len(clip.times_s), fps, max_frames)
    assert read_numbers(list(np.asarray(found.frames_FHW3))) == indices
    assert list(found.times_s) == times_s


def test_plain_mode_drops_the_frames_behind_the_last_group(tmp_path: Path) -> None:
    clip = make(RECIPES["h264.mp4"], tmp_path)
    assert len(sample_video(clip.path, 6, 32, drop_remainder=False).times_s) == 6
    assert len(sample_video(clip.path, 6, 32, drop_remainder=True).times_s) == 4
    assert len(sample_video(clip.path, 3, 32, drop_remainder=True).times_s) == 3


def test_turned_pictures_are_upright(tmp_path: Path) -> None:
    clip = make(RECIPES["h264.mp4"], tmp_path)
    upright = np.asarray(sample_video(clip.path, 1, 64, drop_remainder=False).frames_FHW3)[0].astype(int)
    turned = rotate(clip.path, tmp_path / "turned.mp4", 180)
    found = np.asarray(sample_video(turned, 1, 64, drop_remainder=False).frames_FHW3)[0].astype(int)
    assert np.abs(found[::-1, ::-1] - upright).mean() < 2


class FakeModel:
    """Answers B, and keeps what it was asked."""

    def __init__(self) -> None:
        self.spec = SimpleNamespace(vision=SimpleNamespace(image_size=32))
        self.indexed: list[tuple[tuple[int, ...], Any]] = []
        self.asked: list[tuple[str, str, int]] = []

    def index(self, frames_FHW3: Any, times_s: Any, settings: Any = None, chunk_groups: int = 6) -> Any:
        self.indexed.append((tuple(frames_FHW3.shape), settings))
        return f"video {len(self.indexed)}"

    def chat(self, video: Any, question: str, mode: str = "chunked", *, generation: Any = None) -> str:
        self.asked.append((video, question, generation.max_new_tokens))
        return "B) it is"


@pytest.fixture
def needles(put: Put, tmp_path: Path) -> list[Item]:
    rows = [
        mlvu_row(question="At 01:05, what?", answer="A phone"),
        mlvu_row(video="other.mp4"),
        mlvu_row(),
    ]
    put("2_needle.json", rows)
    put("video/needle_1.mp4")
    put("video/other.mp4")
    return list(load(MLVU, tmp_path).items)


def test_a_video_is_indexed_once_and_clock_times_are_rewritten(needles: list[Item], tmp_path: Path) -> None:
    model: Any = FakeModel()
    with ResultsFile(tmp_path / "out.jsonl", FACTS) as results:
        run(MLVU, needles, Asker(model, MLVU, "chunked", max_frames=8), results)
        found = scored(MLVU, needles, results)
    assert [shape for shape, _ in model.indexed] == [(6, 32, 32, 3)] * 2, "two per second"
    assert [video for video, _, _ in model.asked] == ["video 1", "video 1", "video 2"]
    assert "At 65 seconds, what?" in model.asked[0][1] and model.asked[0][2] == 16
    assert [(score.prediction, score.value) for _, score in found] == [("B", 1.0), ("B", 0.0), ("B", 0.0)]


@pytest.mark.parametrize(
    ("benchmark", "mode", "expected"),
    [
        (LVBENCH, "chunked", ("chunked", 4, 11)),
        (LONG_VIDEO_BENCH, "chunked", ("chunked", 6, 5)),
        (LONG_VIDEO_BENCH, "bilevel", ("chunked", 4, 3)),
        (MLVU, "plain", ("plain", 4, 3)),
    ],
)
def test_videos_are_prefilled_as_published(
    needles: list[Item], benchmark: Any, mode: Any, expected: tuple[str, int, int]
) -> None:
    model: Any = FakeModel()
    Asker(model, benchmark, mode, max_frames=4)(needles[0])
    settings = model.indexed[0][1]
    assert (settings.mode, settings.block_groups, settings.previous_blocks) == expected


def test_a_run_goes_on_where_it_stopped(needles: list[Item], tmp_path: Path) -> None:
    path = tmp_path / "out.jsonl"
    asked: list[str] = []

    def ask(item: Item) -> str:
        asked.append(item.item_id)
        if len(asked) == 2:
            raise KeyboardInterrupt
        return "C) yes"

    with pytest.raises(KeyboardInterrupt), ResultsFile(path, FACTS) as results:
        run(MLVU, needles, ask, results)
    with path.open("a") as file:
        file.write('{"id": "needle-2", "rep')
    with ResultsFile(path, FACTS) as results:
        run(MLVU, needles, ask, results)
        assert len(scored(MLVU, needles, results)) == 3
    assert asked == ["needle-1", "needle-3", "needle-3", "needle-2"]
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    assert [line.get("id") for line in lines] == [None, "needle-1", "needle-3", "needle-2"]
    assert lines[1]["reply"] == "C) yes" and (lines[1]["prediction"], lines[1]["value"]) == ("C", 0.0)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("not JSON\n", "line 1 is no line of a results file"),
        ('{"format": 1}\n', "line 1 is no line of a results file"),
        ("[1]\n", "line 1 is no line of a results file"),
    ],
)
def test_a_file_of_something_else_is_refused(tmp_path: Path, content: str, words: str) -> None:
    path = tmp_path / "out.jsonl"
    path.write_text(content)
    with pytest.raises(UsageError, match=words), ResultsFile(path, FACTS):
        pass
    assert path.read_text() == content


def test_a_file_of_another_run_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "out.jsonl"
    with ResultsFile(path, FACTS):
        pass
    with (
        pytest.raises(UsageError, match="holds a run with mode 'chunked', this one has 'plain'"),
        ResultsFile(path, replace(FACTS, mode="plain")),
    ):
        pass


def test_what_fails_is_kept_passed_over_and_tried_again(needles: list[Item], tmp_path: Path) -> None:
    errors: dict[str, Exception] = {
        "needle-1": UnreadableMedia("needle_1.mp4", "cut off"),
        "needle-2": ContextOverflow(9000, 4096),
    }

    def ask(item: Item) -> str:
        if item.item_id in errors:
            raise errors[item.item_id]
        return "C)"

    with ResultsFile(tmp_path / "out.jsonl", FACTS) as results:
        run(MLVU, needles, ask, results)
        assert "cut off" in results.failures["needle-1"]
        assert "--frames" in results.failures["needle-2"]
        assert len(scored(MLVU, needles, results)) == 1
    errors.clear()
    with ResultsFile(tmp_path / "out.jsonl", FACTS) as results:
        run(MLVU, needles, ask, results)
        assert not results.failures and len(results.replies) == 3


def item(item_id: str, options: int = 4, **categories: tuple[str, ...]) -> Item:
    return Item(
        item_id=item_id,
        video=Path("v.mp4"),
        question="?",
        source="x",
        options=("o",) * options,
        answer="A",
        categories=categories,
    )


def test_accuracy_in_all_and_by_group() -> None:
    pairs = [
        (item("1", duration=("short",), task=("count",)), Score("A", 1.0)),
        (item("2", duration=("short",), task=("ocr", "count")), Score("B", 0.0)),
        (item("3", duration=("short",), task=("ocr",)), Score("A", 1.0)),
        (item("4", 2, duration=("long",), task=("ocr",)), Score("B", 0.0)),
        (item("5", duration=("long",), task=("ocr",)), Score("A", None)),
    ]
    found = summarise(VIDEO_MME, pairs)
    accuracy = found["metrics"]["accuracy"]
    assert (accuracy["value"], accuracy["n"]) == (0.5, 4)
    assert accuracy["low"] < 0.5 < accuracy["high"]
    assert found["metrics"]["chance"] == pytest.approx((0.25 * 3 + 0.5) / 4)
    assert found["metrics"]["macro_accuracy"] == pytest.approx((2 / 3 + 0) / 2)
    assert found["by"]["task"]["count"]["accuracy"]["value"] == 0.5
    assert found["by"]["task"]["ocr"]["accuracy"]["n"] == 3
    rows = table_rows(found)
    assert rows[0][:4] == ["all", "", "4", "50.0"]
    assert all(len(row) == len(table_columns(VIDEO_MME)) for row in rows)


def test_grounding_figures() -> None:
    pairs = [(item(str(value)), Score("", value)) for value in (0.0, 0.35, 0.5, 0.71)]
    found = summarise(CHARADES_STA, pairs)
    assert found["metrics"]["miou"] == pytest.approx(0.39)
    assert [found["metrics"][f"r1_iou_{limit}"]["value"] for limit in (0.3, 0.5, 0.7)] == [0.75, 0.5, 0.25]
    assert len(table_rows(found)[0]) == len(table_columns(CHARADES_STA))


def test_nothing_scored_is_no_figure() -> None:
    found = summarise(MLVU, [(item("1", task=("x",)), Score("A", None))])
    assert found["metrics"]["accuracy"] == {"value": None, "low": None, "high": None, "n": 0}
    assert table_rows(found) == [["all", "", "0", "-", "-", "-"]]


@pytest.mark.slow
def test_the_command_runs_with_the_packaged_model(put: Put, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    put("videomme.json", [videomme_row(), videomme_row(question_id="001-2")])
    put("data/abcDEF12_-x.mp4")
    put("video_info.meta.jsonl", json.dumps({"key": "clip", "type": "sport", "qa": [lvbench_qa()]}))
    put("charades_sta_test.txt", "clip 0.5 2.0##person sits.\nclip 1.0 9.0##beyond.\n")
    put("videos/clip.mp4")
    arguments = ("--frames", "8", "--json")
    done = call("evaluate", "benchmark", "Video-MME", tmp_path, *arguments, "--mode", "bilevel")
    assert done.code == 0, done.err
    document = done.json
    assert document["counts"]["items"] == document["metrics"]["accuracy"]["n"] == 2
    assert set(document["by"]) == {"duration", "task", "domain", "sub_category"}
    kept = (tmp_path / "videomme-bilevel.results.jsonl").read_text()
    again = call("evaluate", "benchmark", "videomme", tmp_path, *arguments, "--mode", "bilevel")
    assert again.json["metrics"] == document["metrics"]
    assert (tmp_path / "videomme-bilevel.results.jsonl").read_text() == kept
    assert call("evaluate", "benchmark", "lvbench", tmp_path, *arguments, "--mode", "plain").code == 0
    refused = call("evaluate", "benchmark", "charades-sta", tmp_path, *arguments)
    assert refused.code == 2 and "beyond the end" in refused.error_line
    done = call("evaluate", "benchmark", "charades-sta", tmp_path, "--frames", "8", "--skip-invalid")
    assert done.code == 0, done.err
    assert "mIoU" in done.out and "1 rows left out" in done.out


@pytest.mark.parametrize(
    ("words", "error"),
    [
        (["imagenet", "."], "there is no benchmark 'imagenet'"),
        (["mlvu", ".", "--mode", "fast"], "'fast' is none of plain, chunked, bilevel"),
        (["mlvu", ".", "--subtitles"], "MLVU dev has no subtitles"),
        (["mlvu", "nowhere"], "folder 'nowhere' is not there"),
    ],
)
def test_wrong_usage_is_one_line(words: list[str], error: str) -> None:
    done = call("evaluate", "benchmark", *words)
    assert done.code == 2
    assert error in done.error_line
