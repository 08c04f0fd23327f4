"""Ingestion under a byte cap, the choice between reload and recompute, and static footage, on real archives."""

from __future__ import annotations

import itertools
import shutil
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from indexers.access_log import last_uses
from indexers.errors import MissingKV
from indexers.kv_file import DenseKVReader
from indexers.records import SPARSE_SCHEMA, to_table
from indexers.store import LanceStore
from pipeline import Archive, ArchiveError, kv_verify
from pipeline.config import load_settings
from pipeline.cost_log import COST_LOG, append_cost, read_costs
from pipeline.tiers import kv_file_bytes, tier_of
from tests.clips import Recipe, make
from tests.vxl import call

QUESTION = ("ask", "What colour is the car?", "--json", "--max-new-tokens", "8")


@contextmanager
def watched(archive: Path) -> Iterator[list[int]]:
    """Bytes of dense KV files, looked at again and again while the block runs."""
    seen, done = [0], threading.Event()

    def watch() -> None:
        while not done.is_set():
            seen.append(kv_file_bytes(archive))
            time.sleep(0.002)

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        yield seen
    finally:
        done.set()
        watcher.join()


def settings_file(folder: Path, text: str) -> Path:
    path = folder / "vxl.toml"
    path.write_text(text)
    return path


def ingest(archive: Path, footage: Path, *more: str | Path) -> Any:
    done = call("ingest", footage, "--archive", archive, "--segment-s", "10", "--json", *more)
    assert done.code == 0, done.err
    return done.json


def tiers_of(archive: Path) -> list[str]:
    with LanceStore.open(archive) as store:
        return [str(tier_of(segment)) for segment in store.segments_of()]


def told(answer: dict[str, Any]) -> dict[str, Any]:
    """An answer without its timings and the bytes that the other way does not read."""
    context = {name: value for name, value in answer["context"].items() if name != "kv_bytes_read"}
    return {**{name: value for name, value in answer.items() if name != "timings"}, "context": context}


def test_the_cap_holds_while_ten_times_too_much_is_ingested(tmp_path: Path) -> None:
    """Every look at the files finds them under the cap, and all of it can be asked without the video."""
    footage, archive = tmp_path / "footage", tmp_path / "archive"
    footage.mkdir()
    options = {"preset": "veryfast", "crf": "28", "g": "10"}
    two_segments = make(Recipe("two.mp4", num_frames=100, fps=5, options=options), tmp_path).path
    names = [f"{number:02d}.mp4" for number in range(10)]
    for name in names:
        shutil.copy(two_segments, footage / name)
    cap = ingest(tmp_path / "free", footage / names[0])["kv_bytes"]  # one video of ten
    config = settings_file(tmp_path, f"[storage]\nmax_kv_bytes = {cap}\n")
    with watched(archive) as seen:
        report = ingest(archive, footage, "--config", config)
    assert report["counts"]["indexed"] == len(names)
    assert 0 < max(seen) <= cap
    assert 0 < kv_file_bytes(archive) <= cap
    assert any("storage.max_kv_bytes" in notice for notice in report["notices"])
    assert {"int4", "none"} & set(tiers_of(archive))
    assert call("doctor", "--archive", archive, "--json").json["ok"]
    stats = call("kv", "stats", "--archive", archive, "--json", "--config", config).json
    assert stats["cap"] == {"max_kv_bytes": cap, "kv_file_bytes": kv_file_bytes(archive)}
    shutil.rmtree(footage)
    answer = call(*QUESTION, "--archive", archive, "--reuse", "reload")
    assert answer.code == 0, answer.err


def test_a_cap_without_room_for_a_segment_keeps_sparse_kv_only(tmp_path: Path, clip: Path) -> None:
    footage, archive = tmp_path / "footage", tmp_path / "archive"
    footage.mkdir()
    shutil.copy(clip, footage / "a.mp4")
    report = ingest(archive, footage, "--config", settings_file(tmp_path, "[storage]\nmax_kv_bytes = 1000\n"))
    assert report["kv_bytes"] == 0 and report["sparse_bytes"] > 0
    assert any("no room" in notice for notice in report["notices"])
    assert kv_file_bytes(archive) == 0
    answer = call(*QUESTION, "--archive", archive, "--reuse", "reload").json
    assert answer["context"]["dense_chunks"] == 0 and answer["context"]["sparse_chunks"] > 0
    recomputed = call(*QUESTION, "--archive", archive, "--reuse", "recompute").json
    assert recomputed["context"]["dense_chunks"] > 0


@pytest.fixture
def movable(tmp_path: Path, long_clip: Path) -> tuple[Path, Path]:
    """An archive of one video and its own copy of the footage."""
    footage, archive = tmp_path / "footage", tmp_path / "archive"
    footage.mkdir()
    shutil.copy(long_clip, footage / "a.mp4")
    ingest(archive, footage)
    return archive, footage


def test_the_planner_notes_what_it_predicted_and_what_came(movable: tuple[Path, Path]) -> None:
    archive, _ = movable
    opened = Archive(archive, settings=load_settings(environ={}))
    for number in range(12):
        opened.ask(f"What happens {number} times?", reuse="recompute" if number % 4 == 3 else "auto", max_new_tokens=1)
    assert [cost.path for cost in read_costs(archive)].count("ingest") == 1
    measured = opened.kv.stats()["planner"]
    assert measured["reload"]["asks"] == 9 and measured["recompute"]["asks"] == 3
    assert all(cost.actual_s > 0 for cost in read_costs(archive))
    # How good predictions are depends on what else runs here: tests/benchmarks/bench_planner.py measures it.
    assert measured["reload"]["median_error"] >= 1 and measured["recompute"]["median_error"] >= 1
    assert len(last_uses(archive)) == 4


def test_auto_takes_the_cheaper_way_and_the_answer_is_the_same(movable: tuple[Path, Path]) -> None:
    archive, footage = movable
    reloaded = call(*QUESTION, "--archive", archive).json
    assert reloaded["timings"]["recompute_s"] == 0
    truth = next(cost for cost in read_costs(archive) if cost.path == "reload")
    (archive / COST_LOG).unlink()
    assert truth.is_first  # of its process, as every ask of the command line is
    append_cost(archive, replace(truth, actual_s=1000.0))
    append_cost(archive, replace(truth, path="recompute", actual_s=0.001))
    recomputed = call(*QUESTION, "--archive", archive).json
    assert recomputed["timings"]["recompute_s"] > 0 and recomputed["timings"]["load_s"] == 0
    assert told(recomputed) == told(reloaded)
    shutil.rmtree(footage)
    append_cost(archive, replace(truth, path="recompute", actual_s=0.001))
    append_cost(archive, replace(truth, path="recompute", actual_s=0.001))
    gone = call("--log-level", "ERROR", *QUESTION, "--archive", archive)
    assert gone.code == 0, gone.err
    assert gone.json["timings"]["recompute_s"] == 0 and told(gone.json) == told(reloaded)


def test_kv_that_was_given_up_is_answered_sparse_and_without_the_video(movable: tuple[Path, Path]) -> None:
    archive, footage = movable
    before = call(*QUESTION, "--archive", archive).json
    assert before["context"]["dense_chunks"] > 0
    assert call("kv", "evict", "--archive", archive, "--max-bytes", "0").code == 0
    shutil.rmtree(footage)
    for reuse in ("auto", "reload"):
        after = call(*QUESTION, "--archive", archive, "--reuse", reuse)
        assert after.code == 0, after.err
        context = after.json["context"]
        assert (context["dense_chunks"], context["sparse_chunks"]) == (
            0,
            before["context"]["dense_chunks"] + before["context"]["sparse_chunks"],
        )
        assert {citation["level"] for citation in after.json["citations"]} == {"sparse"}


@pytest.mark.parametrize("share", [0.5, 0.0])
def test_kv_that_is_demoted_while_it_is_read_is_asked_for_once_more(
    movable: tuple[Path, Path], share: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A file that is removed on S3 is gone for who reads it: the answer is that of what the archive keeps then."""
    archive, footage = movable
    shutil.rmtree(footage)
    before = tiers_of(archive)
    opened = Archive(archive, settings=load_settings(environ={}))
    read, first = DenseKVReader.read_chunk_into, threading.Lock()

    def demoted(self: DenseKVReader, *arguments: Any) -> None:
        if first.acquire(blocking=False):
            opened.kv.evict(max_bytes=int(share * kv_file_bytes(archive)))
        if not Path(self.path).exists():
            raise MissingKV(self.path)
        read(self, *arguments)

    with monkeypatch.context() as patch:
        patch.setattr(DenseKVReader, "read_chunk_into", demoted)
        answer = opened.ask("What happens?", reuse="reload", max_new_tokens=8)
    pieces = list(opened.ask_stream("What happens?", reuse="reload", max_new_tokens=8))
    after = pieces[-1]
    assert not isinstance(after, str)
    assert tiers_of(archive) != before
    assert (answer.answer, answer.token_ids, answer.citations) == (after.answer, after.token_ids, after.citations)
    assert answer.context == after.context


@pytest.mark.parametrize("is_deleted", [False, True])
def test_a_demotion_beside_verification_is_no_damage(
    movable: tuple[Path, Path], is_deleted: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Segments are chosen first and verified for minutes: one demoted meanwhile was reported as lost."""
    archive, _ = movable
    opened = Archive(archive, settings=load_settings(environ={}))
    stored, calls = kv_verify._stored_dense, itertools.count()

    def demoted(reader: Any, segment: Any) -> Any:
        if next(calls) == 0 and is_deleted:
            opened.delete(*(video["uri"] for video in opened.videos()))
        elif not is_deleted:
            opened.kv.evict(max_bytes=0)
        return stored(reader, segment)

    monkeypatch.setattr(kv_verify, "_stored_dense", demoted)
    report = opened.kv.verify(all_segments=True)
    assert report["ok"] or is_deleted
    assert report["counts"]["failed"] == 0
    assert {row["codec"] for row in report["segments"]} <= ({"none"} if not is_deleted else set())


def test_kv_that_is_lost_while_it_is_read_is_a_typed_error(
    movable: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever loses it again and again asks twice and no more, and nothing of an answer was given out."""
    archive, _ = movable
    attempts: list[str] = []
    said: list[str] = []

    def lost(self: DenseKVReader, *arguments: Any) -> None:
        attempts.append(self.path)
        raise MissingKV(self.path)

    monkeypatch.setattr(DenseKVReader, "read_chunk_into", lost)
    stream = Archive(archive, settings=load_settings(environ={})).ask_stream("What happens?", reuse="reload")
    with pytest.raises(ArchiveError, match="vxlkv"):
        said.extend(map(str, stream))
    assert attempts and not said


def test_static_footage_keeps_sparse_kv_only_where_the_settings_say_so(tmp_path: Path, long_clip: Path) -> None:
    footage = tmp_path / "footage"
    footage.mkdir()
    shutil.copy(long_clip, footage / "a.mp4")
    options = ("--fps", "5")  # two chunks and a bit in each segment
    free = ingest(tmp_path / "free", footage, *options)
    assert not any("static" in notice for notice in free["notices"])
    with LanceStore.open(tmp_path / "free") as store:
        rows = store.chunks(columns=["motion", "num_tokens"]).to_pylist()
    motion = sorted(row["motion"] for row in rows)
    threshold = (motion[len(motion) // 2 - 1] + motion[len(motion) // 2]) / 2
    still = sum(row["motion"] <= threshold for row in rows)
    config = settings_file(tmp_path, f"[storage]\nstatic_motion = {threshold!r}\n")
    gated = tmp_path / "gated"
    report = ingest(gated, footage, *options, "--config", config)
    assert 0 < report["kv_bytes"] < free["kv_bytes"] and report["sparse_bytes"] == free["sparse_bytes"]
    assert any(f"{still} of {len(rows)} chunks measured as static" in notice for notice in report["notices"])
    stats = call("kv", "stats", "--archive", gated, "--json").json
    assert stats["never_dense"]["chunks"] == still
    assert stats["never_dense"]["saved_bytes"] == pytest.approx(free["kv_bytes"] - report["kv_bytes"], rel=0.2)
    answer = call(*QUESTION, "--archive", gated).json
    assert answer["context"]["sparse_chunks"] > 0
    verified = call("kv", "verify", "--archive", gated, "--all", "--json")
    assert verified.code == 0, verified.out  # whole segments of sparse KV are held to the video as well
    assert call("kv", "evict", "--archive", gated, "--max-bytes", str(report["kv_bytes"] // 2)).code == 0
    assert call("kv", "verify", "--archive", gated, "--all", "--json").json["counts"]["failed"] == 0
    assert call(*QUESTION, "--archive", gated).json["citations"]

    everything = tmp_path / "still"
    report = ingest(
        everything, footage, *options, "--config", settings_file(tmp_path, "[storage]\nstatic_motion = 1\n")
    )
    assert report["kv_bytes"] == 0 and kv_file_bytes(everything) == 0
    assert call(*QUESTION, "--archive", everything).json["context"]["dense_chunks"] == 0
    verified = call("kv", "verify", "--archive", everything, "--segments", "1", "--json")
    assert verified.code == 0 and {row["codec"] for row in verified.json["segments"]} == {"none"}, verified.out
    assert all(row["is_bit_exact"] and row["answer_agreement"] for row in verified.json["segments"])
    with LanceStore.open(everything) as store:
        first, *_, last = sorted(store.read_table("sparse_kv"), key=lambda row: str(row["row_id"]))
        store._table("sparse_kv").delete(f"row_id = '{first['row_id']}'")
        store._merge("sparse_kv", to_table([{**first, "kv": last["kv"]}], SPARSE_SCHEMA))
    (footage / "a.mp4").unlink()
    failed = call("kv", "verify", "--archive", everything, "--all", "--json")
    assert failed.code == 1
    assert [row["segment_id"] for row in failed.json["segments"] if row["status"] == "failed"] == [first["segment_id"]]
