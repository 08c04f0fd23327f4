"""Retention: which rule decides, what a dry run says, what is really given up, and what is left alone."""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path

import pytest

from indexers.records import EXPIRED, VideoRow
from indexers.store import LanceStore
from indexers.testing import START, make_video
from pipeline.config import RetentionRule, load_settings
from pipeline.errors import ConfigError, UsageError
from pipeline.ledger import Verdict, verdict
from pipeline.reader import ArchiveReader
from pipeline.retention import NOTHING, run_retention, wanted_tier
from pipeline.tiers import Tier, kv_file_bytes, tier_of
from tests.unit.pipeline.test_tiers import check_files, make_tiered
from tests.vxl import call

GATE = RetentionRule(after_days=2, keep="int4", camera="gate")
ALL = (RetentionRule(after_days=1, keep="int8"), RetentionRule(after_days=30, keep="nothing"))
OLD = make_video("old", start_time=START - timedelta(days=100), camera="yard")
NEW, UNKNOWN = make_video("new", camera="yard"), make_video("unknown", camera="yard", start_time=None)
NOW = START + timedelta(days=10)


@pytest.mark.parametrize(
    ("camera", "days", "wanted"),
    [
        ("yard", 0.5, None),
        ("yard", 1, "int8"),
        ("yard", 40, NOTHING),
        (None, 1, "int8"),
        ("gate", 1, None),
        ("gate", 40, "int4"),
    ],
)
def test_a_camera_s_own_rules_replace_those_for_all_and_the_strictest_decides(
    camera: str | None, days: float, wanted: str | None
) -> None:
    assert wanted_tier(camera, timedelta(days=days), [*ALL, GATE]) == wanted


def reader_of(folder: Path, *rules: RetentionRule, pins: tuple[str, ...] = ()) -> ArchiveReader:
    settings = load_settings(overrides={"storage.retention": rules, "storage.pins": pins}, environ={})
    return ArchiveReader(folder, settings)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return make_tiered(tmp_path / "archive", [OLD, NEW, UNKNOWN], 1)


def test_a_dry_run_says_what_a_run_then_frees(folder: Path) -> None:
    reader = reader_of(folder, *ALL)
    before = kv_file_bytes(folder)
    planned = run_retention(reader, dry_run=True, now=NOW)
    assert kv_file_bytes(folder) == before
    done = run_retention(reader, now=NOW)
    assert [step["segment_id"] for step in done["demoted"]] == [step["segment_id"] for step in planned["demoted"]]
    assert done["expired"] == planned["expired"] == [{"uri": OLD.uri, "camera": "yard", "video_id": OLD.video_id}]
    assert done["unknown_age"] == planned["unknown_age"] == 1
    assert done["freed_bytes"] == pytest.approx(planned["freed_bytes"], rel=0.05)
    store = LanceStore.open(folder)
    check_files(folder, store)
    states: dict[str, VideoRow] = {row.uri: row for row in store.videos()}
    assert states[OLD.uri].state == EXPIRED and verdict(states[OLD.uri]) is Verdict.SKIP
    assert store.segments(OLD.video_id) == []
    assert [tier_of(segment) for segment in store.segments(NEW.video_id)] == [Tier.INT8]
    assert [tier_of(segment) for segment in store.segments(UNKNOWN.video_id)] == [Tier.EXACT]
    again = run_retention(reader, now=NOW)
    assert (again["demoted"], again["expired"], again["freed_bytes"]) == ([], [], 0)


def test_sparse_only_goes_by_age_and_nothing_comes_back(folder: Path) -> None:
    run_retention(reader_of(folder, RetentionRule(after_days=5, keep="none")), now=NOW)
    later = run_retention(reader_of(folder, RetentionRule(after_days=5, keep="int8")), now=NOW)
    assert later["demoted"] == []
    store = LanceStore.open(folder)
    assert {tier_of(s) for video in (OLD, NEW) for s in store.segments(video.video_id)} == {Tier.NONE}


def test_pins_outlive_every_rule(folder: Path) -> None:
    done = run_retention(reader_of(folder, *ALL, pins=("yard",)), now=NOW)
    assert (done["demoted"], done["expired"], done["freed_bytes"]) == ([], [], 0)


def test_a_cap_without_room_puts_encoding_off(folder: Path) -> None:
    settings = load_settings(
        overrides={"storage.retention": [ALL[0]], "storage.max_kv_bytes": kv_file_bytes(folder)}, environ={}
    )
    before = kv_file_bytes(folder)
    assert run_retention(ArchiveReader(folder, settings), now=NOW)["demoted"] == []
    assert kv_file_bytes(folder) == before


def test_without_rules_it_is_refused(folder: Path) -> None:
    with pytest.raises(UsageError, match="no retention rules"):
        run_retention(reader_of(folder))
    assert call("retention", "--archive", folder).code == 2
    with pytest.raises(ConfigError, match="keep"):
        load_settings(overrides={"storage.retention": [{"after_days": 1, "keep": "int2"}]}, environ={})


def test_the_command_and_the_statistics_agree(folder: Path, tmp_path: Path) -> None:
    config = tmp_path / "vxl.toml"
    config.write_text(
        '[[storage.retention]]\nafter_days = 1\nkeep = "int4"\n\n'
        '[[storage.retention]]\nafter_days = 1\nkeep = "nothing"\ncamera = "gate"\n'
    )
    options = ("--archive", folder, "--config", config)
    planned = call("retention", "--dry-run", "--json", *options).json
    stats = call("kv", "stats", "--json", *options).json
    assert stats["retention"] == {
        **{"rules": 2, "segments": len(planned["demoted"]), "videos": 0},
        **{"frees_bytes": planned["freed_bytes"], "unknown_age": 1, "without_tokens": 0},
    }
    assert "vxl retention would free" in call("kv", "stats", *options).out
    assert "would free" in call("retention", "--dry-run", *options).out
    done = call("retention", *options)
    assert done.code == 0 and "freed" in done.out and "have no start time" in done.out
    tiers = call("kv", "stats", "--json", *options).json["total"]["tiers"]
    assert sorted((tier["codec"], tier["segments"]) for tier in tiers) == [("exact", 1), ("int4", 2)]
