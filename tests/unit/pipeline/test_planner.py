"""What is predicted from which measurements, what is chosen, and what the log of costs survives."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from indexers.testing import make_video
from pipeline import cost_log
from pipeline.ask import PlannedChunk
from pipeline.config import Settings
from pipeline.cost_log import COST_LOG, Cost, CostPath, append_cost, read_costs
from pipeline.errors import ModelMismatch
from pipeline.planner import Forecast, ReusePlan, forecast, planner_accuracy
from pipeline.reader import ArchiveReader
from pipeline.recipe import Manifest, write_manifest
from tests.unit.pipeline.samples import make_archive, tiny_recipe
from videoxl2.kv import KVLevel


def cost(path: CostPath, seconds: float, *, num_bytes: int = 0, frames: int = 0, segments: int = 1) -> Cost:
    return Cost(
        host="here", device="cpu", path=path, bytes=num_bytes, frames=frames, segments=segments, actual_s=seconds
    )


def no_probe() -> float | None:
    raise AssertionError("there were measurements")


def test_reload_goes_by_the_asks_that_read_about_as_much() -> None:
    small = [cost("reload", 0.01, num_bytes=1000) for _ in range(5)]
    large = [cost("reload", 1.0, num_bytes=1_000_000) for _ in range(5)]
    found = forecast([*small, *large], 2000, 0, 1, no_probe)
    assert found.reload_s == pytest.approx(0.02) and found.recompute_s is None
    assert forecast([*small, *large], 500_000, 0, 1, no_probe).reload_s == pytest.approx(0.5)


def test_recompute_goes_by_frames_of_segments_of_that_length_else_by_ingestion() -> None:
    ingest = cost("ingest", 100.0, frames=1000, segments=2)
    assert forecast([ingest], 1, 600, 1, lambda: 0.5) == Forecast(reload_s=0.5, recompute_s=60.0)
    short = [cost("recompute", 2.0, frames=10) for _ in range(5)]
    long = [cost("recompute", 6.0, frames=600) for _ in range(5)]
    assert forecast([ingest, *short, *long], 1, 1200, 2, lambda: None).recompute_s == pytest.approx(12.0)
    assert forecast([ingest, *short, *long], 1, 20, 2, lambda: None).recompute_s == pytest.approx(4.0)


def test_a_pass_over_tokens_goes_by_tokens_of_segments_of_that_length_else_by_ingestion() -> None:
    ingest = replace(cost("prefill", 10.0, segments=2), tokens=10_000)
    assert forecast([ingest], 0, 0, 1, no_probe).tokens_s == 0.0, "nothing has to be made of tokens"
    assert forecast([], 0, 0, 1, no_probe, tokens=5000, token_segments=1).tokens_s is None
    found = forecast([ingest], 0, 600, 1, no_probe, tokens=4000, token_segments=1)
    assert (found.reload_s, found.tokens_s) == (0.0, pytest.approx(4.0))
    measured = [replace(cost("tokens", 1.0), tokens=5000) for _ in range(5)]
    long = [replace(cost("tokens", 90.0), tokens=50_000) for _ in range(5)]
    again = forecast([ingest, *measured, *long], 10, 0, 1, lambda: 0.5, tokens=4000, token_segments=1)
    assert again.tokens_s == pytest.approx(0.8) and again.stored_s == pytest.approx(1.3)


def test_what_tokens_take_counts_in_the_choice() -> None:
    assert Forecast(1.0, 2.0, 0.5).choice == "auto"
    assert Forecast(1.0, 2.0, 1.5).choice == "recompute"
    assert Forecast(1.0, 2.0, None).choice == "auto", "what cannot be predicted is not weighed"


def test_first_asks_are_predicted_from_first_asks() -> None:
    first = replace(cost("reload", 1.0, num_bytes=1000), is_first=True)
    later = cost("reload", 0.01, num_bytes=1000)
    assert forecast([first, later], 1000, 0, 1, no_probe, is_first=True).reload_s == pytest.approx(1.0)
    assert forecast([first, later], 1000, 0, 1, no_probe).reload_s == pytest.approx(0.01)
    assert forecast([later], 1000, 0, 1, lambda: 0.3, is_first=True).reload_s == 0.3


def test_one_odd_measurement_does_not_decide() -> None:
    measured = [cost("reload", s, num_bytes=1000) for s in (0.01, 0.011, 5.0, 0.009, 0.01)]
    assert forecast(measured, 1000, 0, 1, no_probe).reload_s == pytest.approx(0.01)


def test_the_latest_of_many_count() -> None:
    slow = [cost("reload", 9.0, num_bytes=1000) for _ in range(100)]
    fast = [cost("reload", 0.1, num_bytes=1000) for _ in range(5)]
    assert forecast([*slow, *fast], 1000, 0, 1, no_probe).reload_s == pytest.approx(0.1)


@pytest.mark.parametrize(
    ("reload_s", "recompute_s", "choice"),
    [(1.0, 2.0, "auto"), (2.0, 1.0, "recompute"), (None, 1.0, "auto"), (1.0, None, "auto"), (None, None, "auto")],
)
def test_only_what_is_predicted_to_be_faster_is_chosen(
    reload_s: float | None, recompute_s: float | None, choice: str
) -> None:
    assert Forecast(reload_s, recompute_s).choice == choice


def test_the_log_skips_what_it_cannot_read_and_stays_small(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cost_log, "LARGEST_BYTES", 4000)
    monkeypatch.setattr(cost_log, "_KEPT_LINES", 5)
    assert read_costs(tmp_path) == []
    wanted = [cost("reload", 1.0 + number, num_bytes=10) for number in range(60)]
    for one in wanted:
        assert append_cost(tmp_path, one)
    found = read_costs(tmp_path)
    assert found == wanted[-len(found) :] and (tmp_path / COST_LOG).stat().st_size < 5000
    with (tmp_path / COST_LOG).open("ab") as log:
        log.write(b'\xff\n{"host": 1}\n[]\n{"cut": \n')
    assert read_costs(tmp_path) == found
    assert not append_cost(tmp_path / "absent", wanted[0])


def test_accuracy_is_the_median_factor_of_what_was_predicted(tmp_path: Path) -> None:
    assert planner_accuracy(tmp_path)["reload"] == {"asks": 0, "median_error": None}
    for predicted in (None, 2.0, 0.5, 1.5):
        fields = {"host": "h", "device": "cpu", "path": "reload", "bytes": 1, "frames": 1, "segments": 1}
        append_cost(tmp_path, Cost(**fields, actual_s=1.0, predicted_reload_s=predicted))  # type: ignore[arg-type]
    assert planner_accuracy(tmp_path)["reload"] == {"asks": 3, "median_error": 2.0}


@pytest.mark.parametrize("reuse", ["auto", "reload"])
def test_rows_of_another_fingerprint_are_refused_where_only_sparse_kv_is_read(tmp_path: Path, reuse: str) -> None:
    """A KV file carries a fingerprint of its own; rows of sparse KV have their segment's, which nobody looked at."""
    recipe = tiny_recipe()
    folder = make_archive(tmp_path / "a", [make_video("a", fingerprint=recipe.fingerprint)])
    write_manifest(folder, Manifest(model="tiny", recipe=recipe.model_copy(update={"fps": 2.0})))
    reader = ArchiveReader(folder, Settings())
    rows = reader.store.chunks().to_pylist()
    plan = [PlannedChunk(row=row, score=0.0, level=KVLevel.SPARSE, best_group_id="") for row in rows]
    with pytest.raises(ModelMismatch, match=f"segment {rows[0]['segment_id']} has fingerprint"):
        ReusePlan(reader, plan, reuse)
