"""Retention: what footage keeps as it grows old, by the rules of the settings file. Decided purely, then carried out.

Age goes by the footage's own wall clock, from the end of a segment; footage of unknown start has no age and is kept.
Rules for a camera take the place of those for all; of the rules that apply, the one that keeps least decides. A pin
keeps everything. ``nothing`` is about whole videos: one expires when all of it is old enough, and is not indexed again.
"""

from __future__ import annotations

import logging
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

from indexers.access_log import shorten_access_log
from indexers.folder import Place
from indexers.lease import WriterLease
from indexers.records import DELETED, DELETING, EXPIRED, SegmentRow, VideoRow
from indexers.store import LanceStore
from indexers.sweep import sweep
from pipeline.admin import erase, finish_deletions
from pipeline.config import RetentionRule, StorageSettings, rules_for
from pipeline.errors import UsageError
from pipeline.reader import ArchiveReader
from pipeline.tiers import (
    LOWER_TIERS,
    Candidate,
    Demotion,
    Tier,
    TierKeeper,
    bytes_left,
    is_pinned,
    kv_file_bytes,
    refresh_videos,
    tier_of,
)

logger = logging.getLogger(__name__)

NOTHING = "nothing"


@dataclass(frozen=True, slots=True, kw_only=True)
class RetentionPlan:
    """What the rules ask for now. ``freed`` estimates bytes of files and, for expired videos, of sparse KV.

    ``without_tokens`` counts segments that should keep their tokens and have none: they keep int4.
    """

    demotions: tuple[tuple[SegmentRow, VideoRow, Tier], ...]
    expired: tuple[VideoRow, ...]
    unknown_age: int
    without_tokens: int
    freed: int


def wanted_tier(camera: str | None, age: timedelta, rules: Sequence[RetentionRule]) -> str | None:
    """What footage of a camera and age keeps: a tier, ``nothing``, or ``None`` where no rule applies."""
    applying = [rule.keep for rule in rules_for(camera, rules) if age >= timedelta(days=rule.after_days)]
    order = (*Tier, NOTHING)
    return max(applying, key=order.index, default=None)


def plan_retention(
    folder: Place, store: LanceStore, rules: Sequence[RetentionRule], pins: Collection[str], now: datetime
) -> RetentionPlan:
    """Read what there is and decide; changes nothing."""
    demotions, expired, unknown, without_tokens, freed = [], [], 0, 0, 0
    videos = [row for row in store.videos() if row.state not in (DELETED, DELETING, EXPIRED)]
    segments: dict[str, list[SegmentRow]] = {}
    for segment in store.segments_of():
        segments.setdefault(segment.video_id, []).append(segment)
    for video in videos:
        of = segments.get(video.video_id, [])
        if not of or is_pinned(video, pins) or not rules:
            continue
        if video.start_time is None:
            unknown += 1
            continue
        wanted = [
            wanted_tier(video.camera, now - (video.start_time + timedelta(seconds=item.end_s)), rules) for item in of
        ]
        if all(keep == NOTHING for keep in wanted):
            expired.append(video)
            freed += sum(item.file_bytes + item.sparse_bytes for item in of)
            continue
        for item, keep in zip(of, wanted, strict=True):
            tier = Tier.NONE if keep == NOTHING else Tier(keep) if keep is not None else Tier.EXACT
            if tier is Tier.TOKENS and item.kv_path is not None and item.tokens_path is None:
                without_tokens += 1
                tier = Tier.INT4
            if tier.rank <= tier_of(item).rank:
                continue
            left = bytes_left(folder, item, tier)
            if left is None or left >= item.file_bytes > 0:
                continue  # lost, or so short that encoding it frees nothing
            demotions.append((item, video, tier))
            freed += item.file_bytes - left
    return RetentionPlan(
        demotions=tuple(demotions),
        expired=tuple(expired),
        unknown_age=unknown,
        without_tokens=without_tokens,
        freed=freed,
    )


def run_retention(
    reader: ArchiveReader, *, dry_run: bool = False, wait_s: float = 0.0, now: datetime | None = None
) -> dict[str, Any]:
    """Carry out the rules, or with ``dry_run`` say what that would free. See ``Archive.retention``.

    Raises ``UsageError`` where the settings have no rules.
    """
    storage = reader.settings.storage
    if not storage.retention:
        raise UsageError("the settings have no retention rules: write [[storage.retention]] into the file of --config")
    moment = now or datetime.now(UTC)
    if dry_run:
        plan = plan_retention(reader.folder, reader.store, storage.retention, storage.pins, moment)
        steps = [_planned(reader.folder, *step) for step in plan.demotions]
        return _report(plan, steps, plan.freed, dry_run=True)
    with WriterLease(reader.folder, wait_s) as lease:
        finish_deletions(reader.store)
        sweep(reader.folder, reader.store, lease)
        plan = plan_retention(reader.folder, reader.store, storage.retention, storage.pins, moment)
        before = kv_file_bytes(reader.folder)
        keeper = TierKeeper(reader.folder, reader.store, storage.pins, lease)
        steps = []
        for segment, video, tier in sorted(
            plan.demotions, key=lambda step: -step[2].rank
        ):  # what only frees goes first
            step = keeper.demote(Candidate(segment, video, 0.0), tier, storage.max_kv_bytes)
            if step is None:
                logger.warning("no room to encode segment %s as %s; the next run tries again", segment.segment_id, tier)
            else:
                steps.append(step)
        lease.require()
        refresh_videos(reader.store)
        going = reader.store.segments_of([row.video_id for row in plan.expired])
        sparse = sum(segment.sparse_bytes for segment in going)
        erase(reader.store, plan.expired, EXPIRED)
        sweep(reader.folder, reader.store, lease)
        shorten_access_log(reader.folder, (segment.segment_id for segment in reader.store.segments_of()), lease)
        return _report(plan, steps, before - kv_file_bytes(reader.folder) + sparse, dry_run=False)


def evict(
    reader: ArchiveReader, *, max_bytes: int | None = None, dry_run: bool = False, wait_s: float = 0.0
) -> dict[str, Any]:
    """Bring files of dense KV and tokens under a cap. See ``ArchiveKV.evict``. Raises ``UsageError`` without one."""
    storage: StorageSettings = reader.settings.storage
    cap = storage.max_kv_bytes if max_bytes is None else max_bytes
    if cap is None:
        raise UsageError("no cap given: set storage.max_kv_bytes in the settings file, or --max-bytes")
    if cap < 0:
        raise UsageError(f"--max-bytes {cap} must be 0 or more")
    before = kv_file_bytes(reader.folder)
    if dry_run:
        keeper = TierKeeper(reader.folder, reader.store, storage.pins)
        steps = _plan_eviction(reader.folder, keeper.candidates(), before - cap)
        after = before - sum(step.freed for step in steps)
    else:
        with WriterLease(reader.folder, wait_s) as lease:
            finish_deletions(reader.store)
            sweep(reader.folder, reader.store, lease)
            keeper = TierKeeper(reader.folder, reader.store, storage.pins, lease)
            steps = keeper.make_room(cap, 0)
            refresh_videos(reader.store)
            shorten_access_log(reader.folder, (item.segment_id for item in reader.store.segments_of()), lease)
        after = kv_file_bytes(reader.folder)
    return {
        "max_bytes": cap,
        "bytes_before": before,
        "bytes_after": after,
        "fits": after <= cap,
        "demoted": [step.to_dict() for step in steps],
        "dry_run": dry_run,
    }


def _plan_eviction(folder: Place, candidates: Sequence[Candidate], excess: int) -> list[Demotion]:
    """The steps that ``TierKeeper.make_room`` would take with room to encode in; sizes are estimates."""
    steps: list[Demotion] = []
    sizes = {item.segment.segment_id: item.segment.file_bytes for item in candidates}
    tiers = {item.segment.segment_id: tier_of(item.segment) for item in candidates}
    for tier in LOWER_TIERS:
        for item in candidates:
            key = item.segment.segment_id
            left = bytes_left(folder, item.segment, tier)
            if excess <= 0 or tiers[key].rank >= tier.rank or left is None or left >= sizes[key]:
                continue
            steps.append(_step(item.segment, item.video, tiers[key], tier, sizes[key] - left))
            excess -= sizes[key] - left
            sizes[key], tiers[key] = left, tier
    return steps


def _planned(folder: Place, segment: SegmentRow, video: VideoRow, tier: Tier) -> Demotion:
    left = bytes_left(folder, segment, tier) or 0
    return _step(segment, video, tier_of(segment), tier, segment.file_bytes - left)


def _step(segment: SegmentRow, video: VideoRow | None, before: Tier, after: Tier, freed: int) -> Demotion:
    return Demotion(
        segment_id=segment.segment_id,
        uri="" if video is None else video.uri,
        camera=None if video is None else video.camera,
        before=before,
        after=after,
        freed=freed,
    )


def _report(plan: RetentionPlan, steps: Sequence[Demotion], freed: int, *, dry_run: bool) -> dict[str, Any]:
    return {
        "demoted": [step.to_dict() for step in steps],
        "expired": [{"uri": row.uri, "camera": row.camera, "video_id": row.video_id} for row in plan.expired],
        "unknown_age": plan.unknown_age,
        "without_tokens": plan.without_tokens,
        "freed_bytes": freed,
        "dry_run": dry_run,
    }
