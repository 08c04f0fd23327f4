"""The six ways on a minute of footage with the packaged model: what they report, and what must agree."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from jobs import bench_reuse
from jobs.bench_material import large_spec, make_footage
from jobs.bench_reuse import ALL_DENSE, ORACLE, RELOAD, RIVAL, SPARSE, TEXT, UNIFORM, ReuseBench, forget_files, measure
from tests.vxl import call
from videoxl2.checkpoint import read_checkpoint_info, resolve_checkpoint
from videoxl2.config import ModelSpec

SMALL = ReuseBench(models=("tiny",), hours=(48 / 3600, 96 / 3600), fps=2.0, file_s=48.0, answer_tokens=4)


@pytest.fixture(scope="module")
def document(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    return measure(tmp_path_factory.mktemp("reuse"), SMALL)


def row(document: dict[str, Any], way: str, hours: float = SMALL.hours[1]) -> dict[str, Any]:
    (found,) = (row for row in document["rows"] if (row["way"], row["hours"]) == (way, hours))
    return dict(found)


def test_every_way_stands_beside_the_others(document: dict[str, Any]) -> None:
    ways = [row["way"] for row in document["rows"] if row["hours"] == SMALL.hours[0]]
    assert ways == [UNIFORM, RIVAL, TEXT, SPARSE, RELOAD, ORACLE, ALL_DENSE]
    assert len(document["rows"]) == 2 * len(ways)
    assert json.loads(json.dumps(document)) == document
    for measured in document["rows"]:
        if measured["way"] == TEXT:
            assert measured["note"].startswith("not available")
            continue
        assert measured["cold_first_token_s"] > 0 and measured["warm_first_token_s"] > 0
        assert 0 <= measured["top1_agreement"] <= 1
        reads_video = measured["way"] in (UNIFORM, RIVAL)
        assert (measured["video_bytes"] > 0, measured["kv_bytes_read"] > 0) == (reads_video, not reads_video)
        assert (measured["compute_s"] > 0) == reads_video


def test_what_must_agree_agrees(document: dict[str, Any]) -> None:
    """The reference with itself; and where all chunks are dense by default, the default with the reference."""
    for hours in SMALL.hours:
        assert row(document, ALL_DENSE, hours)["top1_agreement"] == 1.0
        reload = row(document, RELOAD, hours)
        if reload["sparse_chunks"] == 0:
            assert reload["top1_agreement"] == 1.0
    assert row(document, SPARSE)["kv_bytes_read"] < row(document, RELOAD)["kv_bytes_read"]
    assert row(document, ORACLE)["kv_bytes_read"] < row(document, ALL_DENSE)["kv_bytes_read"]
    assert row(document, RIVAL)["dense_chunks"] == row(document, RELOAD)["dense_chunks"]


def test_the_headline_is_made_of_its_rows(document: dict[str, Any]) -> None:
    assert (document["model"], document["hours"]) == ("tiny", SMALL.hours[1])
    assert document["recompute_first_token_s"] == row(document, RIVAL)["warm_first_token_s"]
    assert document["reload_first_token_s"] == row(document, RELOAD)["warm_first_token_s"]
    assert document["break_even_bytes_per_s"] > 0


def test_it_is_printed(document: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bench_reuse, "measure", lambda folder, bench, report: document)
    done = call("bench", "reuse", "--model", "tiny")
    assert done.code == 0, done.err
    assert RIVAL in done.out and "break-even" in done.out and "not available" in done.out
    assert call("bench", "reuse", "--json").json == document


@pytest.mark.parametrize(
    "words",
    [["--model", "huge"], ["--hours", "0"], ["--hours", "nan"], ["--frames", "4"], ["--device", "cpu"]],
    ids=" ".join,
)
def test_what_cannot_be_measured_is_refused(words: list[str]) -> None:
    assert call("bench", "reuse", *words).code == 2
    assert call("bench", "prefill", "--frames", "4", "--hours", "1").code == 2


def test_the_larger_model_follows_the_packaged_one() -> None:
    tiny = read_checkpoint_info(resolve_checkpoint("tiny")).spec
    large = large_spec(tiny)
    assert large.tokens_per_group == tiny.tokens_per_group and large.vision.image_size == tiny.vision.image_size
    assert large.language.kv_values_per_token > tiny.language.kv_values_per_token
    assert ModelSpec.from_config(large.to_config()) == large


def test_footage_is_made_as_it_says(tmp_path: Path) -> None:
    files = make_footage(tmp_path, 2, 6.0)
    assert [file.path.relative_to(tmp_path).as_posix() for file in files] == [
        "gate/2026-03-01/000000.mp4",
        "gate/2026-03-01/010000.mp4",
    ]
    assert all(0 < file.event_s[0] < file.event_s[1] < file.duration_s for file in files)
    forget_files([tmp_path, files[0].path])
