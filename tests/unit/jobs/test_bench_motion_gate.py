"""The arithmetic of the motion-gating benchmark, on archives made by hand."""

from __future__ import annotations

import pytest

from jobs.evaluation.records import AskedSearch
from tests.benchmarks.bench_motion_gate import (
    Happenings,
    Measured,
    StoredChunk,
    lost_share,
    parse,
    row_of,
    saving,
    table,
    true_chunks,
)
from tests.unit.jobs.evaluation.samples import search

CHUNKS = tuple(
    StoredChunk((key, start, start + 24.0), motion=0.0, is_dense=is_dense)
    for key, start, is_dense in (("a", 0.0, True), ("a", 24.0, False), ("a", 48.0, False), ("b", 0.0, False))
)


def measured(threshold: float | None, kv_bytes: int, searches: tuple[AskedSearch, ...] = ()) -> Measured:
    return Measured(
        threshold=threshold,
        kv_bytes=kv_bytes,
        sparse_bytes=7,
        chunks=CHUNKS if threshold is not None else tuple(StoredChunk(c.span, c.motion, True) for c in CHUNKS),
        searches=searches,
        right={"choice": (True, False), "exists": (True,)},
        needles_right=(),
    )


def test_a_chunk_is_true_when_it_shares_time_with_what_happens_in_its_video() -> None:
    assert true_chunks(CHUNKS, [("a", 23.0, 24.0)]) == [CHUNKS[0]]
    assert true_chunks(CHUNKS, [("a", 24.0, 24.5)]) == [CHUNKS[1]]  # half-open: it begins where the first ends
    assert true_chunks(CHUNKS, [("a", 20.0, 30.0), ("a", 21.0, 22.0)]) == list(CHUNKS[:2])
    assert true_chunks(CHUNKS, [("c", 0.0, 100.0)]) == []


def test_lost_is_the_share_of_true_chunks_without_dense_kv() -> None:
    estimate = lost_share(CHUNKS, [("a", 20.0, 30.0), ("b", 1.0, 2.0)])
    assert (estimate.value, estimate.n) == (pytest.approx(2 / 3), 3)
    assert lost_share(CHUNKS, []).value is None


def test_saving() -> None:
    assert saving(25, 100) == 0.75
    assert saving(100, 100) == 0.0
    assert saving(0, 0) is None


def test_a_row_holds_every_figure_with_its_sample_and_the_table_shows_it() -> None:
    searches = (search(1, 1), search(1, 6, 1), search(2, None))
    happenings = Happenings(events=(("a", 0.0, 72.0),), evidence=(("b", 0.0, 1.0),), needles=())
    base, gated = measured(None, 1_000_000, searches), measured(0.004, 250_000, searches)
    row = row_of(gated, base, happenings)
    assert (row["static_motion"], row["kv_saving"], row["sparse_bytes"]) == (0.004, 0.75, 7)
    shares = {name: (value["value"], value["n"]) for name, value in row.items() if isinstance(value, dict)}
    assert shares == {
        "search_single_recall5": (0.5, 2),
        "search_double_recall5": (0.0, 1),
        "multiple_choice": (0.5, 2),
        "exists": (1.0, 1),
        "needle_answer": (None, 0),
        "lost_events": (pytest.approx(2 / 3), 3),
        "lost_evidence": (1.0, 1),
        "lost_needles": (None, 0),
        "static": (0.75, 4),
    }
    lines = table({"rows": [row_of(base, base, happenings), row]}).splitlines()
    assert len({line.count("|") for line in lines}) == 1
    assert lines[2].startswith("| off | 1.0 | 0.000 |") and lines[3].startswith("| 0.004 | 0.2 | 0.750 | 0.500 (2) |")
    assert "| - (0) |" in lines[3]


def test_options() -> None:
    defaults = parse([])
    assert defaults.thresholds == (0.001, 0.004) and len(defaults.needle_hours) == 1
    assert parse(["--needle-hours", "", "--thresholds", "0.01"]).needle_hours == ()
