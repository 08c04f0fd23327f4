"""Readers in threads and in a process of their own, while a writer ingests, replaces, demotes, compacts and deletes."""

from __future__ import annotations

import json
import multiprocessing
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from indexers.store import LanceStore
from tests.faults import looking, made_up
from tests.faults.checks import check

ROUNDS = 3


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_reader_gets_whole_chunks_or_a_typed_error(tmp_path: Path) -> None:
    """Chunks say whose they are: none is ever a mixture of two, of two codecs, or of keys and values."""
    folder, over, report = tmp_path / "archive", tmp_path / "over", tmp_path / "report"
    made_up.ingest(folder, made_up.listing(made_up.FIRST_DAY), made_up.settings(cap=None))
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["tests.faults.made_up"])
    writer = context.Process(target=made_up.churn, args=(folder, ROUNDS))
    reader = context.Process(target=looking.run, args=(folder, 3, over, report))
    with ThreadPoolExecutor(2) as pool:
        threads = [pool.submit(looking.look_until, folder, seed, over.exists) for seed in (1, 2)]
        reader.start()
        writer.start()
        writer.join()
        over.touch()
        reader.join()
        seen = [thread.result() for thread in threads]
    assert (writer.exitcode, reader.exitcode) == (0, 0)
    seen.append(Counter(json.loads(report.read_text())))
    print(*seen, sep="\n")
    total: Counter[str] = sum(seen, Counter())
    assert total[looking.MIXED] == 0
    assert total["dense"] > 0 and total["sparse"] > 0
    errors = {name: count for name, count in total.items() if name not in ("dense", "sparse", "nothing")}
    assert sum(errors.values()) < total["dense"] + total["sparse"], errors
    store = check(folder)
    assert isinstance(store, LanceStore)
    tiers = {segment.codec for segment in store.segments_of()}
    assert "none" in tiers and tiers & {"int8", "int4"}
