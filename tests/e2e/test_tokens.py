"""Projected tokens in the place of dense KV: the same answers without the video, and from other processes."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest

from indexers.kv_file import DenseKVReader
from indexers.records import SegmentRow, rows_of
from indexers.store import LanceStore
from indexers.sweep import find_orphans, missing_kv
from pipeline import Archive
from pipeline.config import load_settings
from pipeline.cost_log import COST_LOG, append_cost, read_costs
from pipeline.kv_source import KVSource, read_dense_chunk
from pipeline.reader import ArchiveReader
from pipeline.tiers import Tier, kv_file_bytes, tier_of
from tests.e2e.conftest import KEY_PATTERN
from tests.vxl import call, spawn
from videoxl2.kv import KVLevel

QUESTION = ("ask", "What colour is the car?", "--json", "--max-new-tokens", "8")
RULES = """
[[storage.retention]]
after_days = 7
keep = "tokens"

[[storage.retention]]
after_days = 90
keep = "none"
"""


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory, long_clip: Path) -> Path:
    """An archive whose settings have the rules above, of two segments of two chunks each."""
    root = tmp_path_factory.mktemp("made")
    footage = root / "footage" / "gate" / "2026-03-01"
    footage.mkdir(parents=True)
    shutil.copy(long_clip, footage / "080000.mp4")
    (root / "vxl.toml").write_text(RULES)
    done = call(
        *("ingest", root / "footage", "--archive", root / "archive", "--segment-s", "20", "--fps", "2", "--json"),
        *("--key-pattern", KEY_PATTERN, "--time-zone", "Europe/Berlin", "--config", root / "vxl.toml"),
    )
    assert done.code == 0, done.err
    return root


@pytest.fixture
def root(made: Path, tmp_path: Path) -> Path:
    """A copy of it, without the footage."""
    shutil.copytree(made / "archive", tmp_path / "archive")
    shutil.copy(made / "vxl.toml", tmp_path / "vxl.toml")
    return tmp_path


def segments_of(archive: Path) -> list[SegmentRow]:
    with LanceStore.open(archive) as store:
        return store.segments_of()


def told(answer: dict[str, Any]) -> dict[str, Any]:
    """An answer without its timings and the bytes that another way reads."""
    context = {name: value for name, value in answer["context"].items() if name != "kv_bytes_read"}
    return {**{name: value for name, value in answer.items() if name != "timings"}, "context": context}


def check(archive: Path, tier: Tier) -> None:
    """All segments are in a tier; every file that is named is there, and no other."""
    with LanceStore.open(archive) as store:
        segments = store.segments_of()
        assert {tier_of(segment) for segment in segments} == {tier}
        assert find_orphans(archive, store) == [] and missing_kv(store) == []
        assert kv_file_bytes(archive) == sum(segment.file_bytes for segment in segments)
        assert sum(video.kv_bytes for video in store.videos()) == kv_file_bytes(archive)


def test_retention_leaves_tokens_that_answer_as_dense_kv_does_without_the_video(root: Path, made: Path) -> None:
    archive, options = root / "archive", ("--archive", root / "archive", "--config", root / "vxl.toml")
    check(archive, Tier.EXACT)
    before = call(*QUESTION, *options, "--reuse", "reload").json
    assert before["context"]["dense_chunks"] > 0
    dense_bytes = sum(segment.kv_bytes for segment in segments_of(archive))

    planned = call("retention", "--dry-run", "--json", *options).json
    assert {(step["before"], step["after"]) for step in planned["demoted"]} == {("exact", "none")}  # a spring long ago
    (root / "week.toml").write_text(RULES.split("\n\n")[0])
    week = ("--archive", archive, "--config", root / "week.toml")
    planned = call("retention", "--dry-run", "--json", *week).json
    done = call("retention", "--json", *week).json
    assert {(step["before"], step["after"]) for step in done["demoted"]} == {("exact", "tokens")}
    assert done["freed_bytes"] == planned["freed_bytes"] == dense_bytes and done["without_tokens"] == 0
    check(archive, Tier.TOKENS)
    assert call("doctor", *options, "--json").json["ok"]

    for run, reuse in ((spawn, "reload"), (call, "auto")):
        with hidden(made / "footage"):
            after = run(*QUESTION, *options, "--reuse", reuse)
        assert after.code == 0, after.err
        assert told(after.json) == told(before)
        assert after.json["timings"]["recompute_s"] > 0
        assert after.json["context"]["kv_bytes_read"] < before["context"]["kv_bytes_read"]

    stats = call("kv", "stats", "--json", *options).json
    (tier,) = stats["total"]["tiers"]
    assert (tier["tier"], tier["codec"], tier["segments"]) == ("tokens", "none", 2)
    assert tier["bytes"] == tier["tokens_bytes"] == stats["total"]["tokens_bytes"] == kv_file_bytes(archive)
    assert stats["total"]["dense_bytes"] == 0 and stats["retention"]["frees_bytes"] == kv_file_bytes(archive)
    assert stats["planner"]["tokens"]["asks"] == 2
    assert "tokens" in call("kv", "stats", *options).out

    assert call("retention", "--json", *options).json["freed_bytes"] == tier["bytes"]
    check(archive, Tier.NONE)
    assert call(*QUESTION, *options, "--reuse", "reload").json["context"]["dense_chunks"] == 0


class hidden:
    """While it is entered a folder has another name."""

    def __init__(self, folder: Path) -> None:
        self._folder, self._away = folder, folder.with_name("away")

    def __enter__(self) -> None:
        self._folder.rename(self._away)

    def __exit__(self, *exc: object) -> None:
        self._away.rename(self._folder)


def rows(reader: ArchiveReader) -> list[dict[str, Any]]:
    return rows_of(reader.store.chunks())


def evict_to_tokens(archive: Path) -> None:
    """Demote by a cap that tokens alone fit under."""
    size = sum(segment.tokens_bytes for segment in segments_of(archive))
    done = call("kv", "evict", "--archive", archive, "--max-bytes", str(size), "--json")
    assert done.code == 0 and {step["after"] for step in done.json["demoted"]} >= {"tokens"}, done.out
    check(archive, Tier.TOKENS)


def test_kv_made_of_tokens_is_what_ingestion_stored(root: Path) -> None:
    """In this process, with the number of threads that ingestion had or another."""
    archive = root / "archive"
    reader = ArchiveReader(archive, load_settings(environ={}))
    stored = {}
    for segment in reader.store.segments_of():
        with DenseKVReader(archive / str(segment.kv_path), segment.kv_digest) as file:
            for row in rows(reader):
                if row["segment_id"] == segment.segment_id:
                    stored[row["chunk_id"]] = read_dense_chunk(file, row["chunk_index"])
    assert len(stored) > len(segments_of(archive)), "segments of several chunks"
    evict_to_tokens(archive)
    loaded = KVSource(reader, "reload").load([(row, KVLevel.DENSE) for row in rows(reader)])
    assert loaded.tokens_s > 0 and loaded.recompute_s == 0 and loaded.chunks.keys() == stored.keys()
    for key, chunk in loaded.chunks.items():
        assert chunk.groups == stored[key].groups  # type: ignore[union-attr]
        difference = (chunk.kv_LSKMDh - stored[key].kv_LSKMDh).abs().max()  # type: ignore[union-attr]
        assert float(difference) <= 1e-5


def test_verify_holds_tokens_to_the_video(root: Path, made: Path) -> None:
    archive = root / "archive"
    dense = call("kv", "verify", "--archive", archive, "--all", "--json").json
    assert dense["ok"] and {row["codec"] for row in dense["segments"]} == {"exact"}
    assert all(row["max_visual_error"] <= 1e-4 and row["tokens_digest"] for row in dense["segments"])
    evict_to_tokens(archive)
    done = call("kv", "verify", "--archive", archive, "--all", "--json")
    assert done.code == 0, done.out
    assert {row["codec"] for row in done.json["segments"]} == {"tokens"} and done.json["ok"]
    assert [row["codec"] for row in done.json["codecs"]] == ["tokens"]

    segment = segments_of(archive)[1]
    path = archive / str(segment.tokens_path)
    content = bytearray(path.read_bytes())
    content[-5000] ^= 1
    path.write_bytes(content)
    with hidden(made / "footage"):
        failed = call("kv", "verify", "--archive", archive, "--all", "--json")
    assert failed.code == 1
    assert [row["segment_id"] for row in failed.json["segments"] if row["status"] == "failed"] == [segment.segment_id]
    assert failed.json["counts"]["not verifiable"] == 1
    settings = root / "all.toml"
    settings.write_text("[ingest.levels]\ndense_share = 1.0\n")  # all files are read, whatever the weights choose
    asked = ("ask", "What colour is the car?", "--archive", archive, "--reuse", "reload")
    refused = call(*asked, "--config", settings)
    assert refused.code == 1 and "checksum" in refused.err


def test_lost_dense_kv_is_made_of_its_tokens(root: Path, made: Path) -> None:
    archive = root / "archive"
    before = call(*QUESTION, "--archive", archive, "--reuse", "reload").json
    for segment in segments_of(archive):
        (archive / str(segment.kv_path)).unlink()
    with hidden(made / "footage"):
        after = call(*QUESTION, "--archive", archive, "--reuse", "reload")
    assert after.code == 0, after.err
    assert told(after.json) == told(before)
    for segment in segments_of(archive):
        (archive / str(segment.tokens_path)).unlink()
    assert call("doctor", "--archive", archive, "--json").code == 1
    with hidden(made / "footage"):
        assert call(*QUESTION, "--archive", archive, "--reuse", "reload").code == 1


def test_the_planner_predicts_the_language_models_pass_and_chooses_by_it(root: Path) -> None:
    archive = root / "archive"
    (prefill,) = (cost for cost in read_costs(archive) if cost.path == "prefill")
    (ingest,) = (cost for cost in read_costs(archive) if cost.path == "ingest")
    assert prefill.tokens == sum(segment.num_tokens for segment in segments_of(archive))
    assert 0 < prefill.actual_s < ingest.actual_s
    evict_to_tokens(archive)
    opened = Archive(archive, settings=load_settings(environ={}))
    first = opened.ask("What colour is the car?", max_new_tokens=1)
    noted = [cost for cost in read_costs(archive) if cost.path == "tokens"]
    assert len(noted) == 1 and noted[0].predicted_tokens_s and noted[0].actual_s > 0 and noted[0].tokens > 0
    assert noted[0].actual_s == pytest.approx(first.timings.recompute_s, rel=0.01)

    # A machine that decodes in no time and has a slow language model recomputes; one of the other kind does not.
    for tokens_s, recompute_s, path in ((1000.0, 0.001, "recompute"), (0.001, 1000.0, "tokens")):
        (archive / COST_LOG).unlink()
        for _ in range(3):
            append_cost(archive, noted[0].__class__(**{**_fields(noted[0]), "actual_s": tokens_s}))
            again = {"path": "recompute", "frames": 50, "actual_s": recompute_s}
            append_cost(archive, noted[0].__class__(**{**_fields(noted[0]), **again}))
        answer = opened.ask("What colour is the car?", max_new_tokens=1)
        assert answer.answer == first.answer
        assert path in {cost.path for cost in read_costs(archive)[6:]}


def _fields(cost: Any) -> dict[str, Any]:
    return {name: getattr(cost, name) for name in cost.__dataclass_fields__}


def test_a_cap_without_room_for_dense_kv_keeps_tokens(root: Path, tmp_path: Path, long_clip: Path) -> None:
    """It fits the tokens of three segments, and the dense KV of none."""
    config = tmp_path / "capped.toml"
    largest = max(segments_of(root / "archive"), key=lambda segment: segment.tokens_bytes)
    cap = 4 * largest.tokens_bytes
    assert cap < largest.kv_bytes
    config.write_text(f"[storage]\nkeep_tokens = true\nmax_kv_bytes = {cap}\n")
    archive = tmp_path / "capped"
    done = call(
        *("ingest", long_clip, "--archive", archive, "--segment-s", "20", "--fps", "2", "--json"),
        *("--config", config),
    )
    assert done.code == 0, done.err
    assert any("2 segments keep tokens only" in notice for notice in done.json["notices"])
    check(archive, Tier.TOKENS)
    assert done.json["kv_bytes"] == kv_file_bytes(archive) <= cap
    answer = call(*QUESTION, "--archive", archive, "--reuse", "reload").json
    assert answer["context"]["dense_chunks"] > 0
    dense = call(*QUESTION, "--archive", root / "archive", "--reuse", "reload").json
    assert (answer["answer"], answer["context"]["tokens"]) == (dense["answer"], dense["context"]["tokens"])


def test_a_rule_that_keeps_tokens_falls_back_where_none_were_kept(tmp_path: Path, made: Path) -> None:
    archive = tmp_path / "archive"
    done = call(
        *("ingest", made / "footage", "--archive", archive, "--segment-s", "20"),
        *("--key-pattern", KEY_PATTERN, "--time-zone", "Europe/Berlin"),
    )
    assert done.code == 0, done.err
    assert {segment.tokens_path for segment in segments_of(archive)} == {None}
    config = tmp_path / "vxl.toml"
    config.write_text(RULES.split("\n\n")[0])
    report = call("retention", "--archive", archive, "--config", config, "--json").json
    assert report["without_tokens"] == 2 and {step["after"] for step in report["demoted"]} == {"int4"}
    assert "have none" in call("retention", "--archive", archive, "--config", config).out
