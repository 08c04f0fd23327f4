"""An archive opened for queries: its manifest checked, its store and models loaded on first use, its scope rules.

Reading takes no lock: queries run beside ingestion and see whole videos only.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from functools import cached_property
from typing import TYPE_CHECKING
from zoneinfo import ZoneInfo

from indexers.folder import Folder, Place, as_folder
from indexers.records import VideoRow
from indexers.scope import ClockWindow, Scope
from indexers.store import LanceStore
from pipeline.config import Settings
from pipeline.coverage import coverage_of
from pipeline.errors import ConfigError, UsageError
from pipeline.media import normalise_uri
from pipeline.recipe import Manifest, read_manifest, require_checkpoint
from pipeline.results import Coverage
from pipeline.times import check_order, parse_time_range, parse_time_zone, to_utc
from videoxl2.checkpoint import CheckpointInfo, read_checkpoint_info, resolve_checkpoint, weights_notice

if TYPE_CHECKING:
    from videoxl2.model import VideoXL2
    from videoxl2.text_tower import TextEncoder


@dataclass(frozen=True, slots=True, kw_only=True)
class Filters:
    """What the caller restricts a query to, parsed but not yet checked against the archive."""

    cameras: tuple[str, ...] = ()
    videos: tuple[str, ...] = ()
    after: datetime | None = None
    before: datetime | None = None
    time_range: tuple[str, str] | None = None
    zone: ZoneInfo | None = None


def make_filters(
    *,
    cameras: Sequence[str] = (),
    videos: Sequence[str] = (),
    after: str | datetime | None = None,
    before: str | datetime | None = None,
    time_range: str | tuple[str, str] | None = None,
    time_zone: str | None = None,
) -> Filters:
    """Parse and check filters. Raises ``UsageError`` for naive times without a zone, empty ranges, unknown zones."""
    zone = parse_time_zone(time_zone)
    after_utc, before_utc = to_utc(after, zone, "--after"), to_utc(before, zone, "--before")
    check_order(after_utc, before_utc)
    daily = parse_time_range(time_range)
    if daily is not None:
        if zone is None:
            raise UsageError("--time-range is local time of day; give --time-zone")
        try:
            ClockWindow.parse(daily, zone.key)
        except ValueError as exc:
            raise UsageError(f"--time-range: {exc}") from exc
    return Filters(
        cameras=tuple(cameras),
        videos=tuple(normalise_uri(video) for video in videos),
        after=after_utc,
        before=before_utc,
        time_range=daily,
        zone=zone,
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Resolved:
    """Filters checked against an archive: their scope, its coverage, and the visible videos in it when a query began.

    Videos that became visible since then may be among what is found.
    """

    scope: Scope
    coverage: Coverage
    videos: tuple[VideoRow, ...] = ()


class ArchiveReader:
    """One archive, open for reading."""

    def __init__(self, place: Place, settings: Settings) -> None:
        folder: Folder = as_folder(place)
        manifest = read_manifest(folder)
        if manifest is None:
            where = folder.address()
            raise ConfigError(f"there is no archive at {where!r}; make one with: vxl ingest SOURCE --archive ...")
        self.folder = folder
        self.manifest: Manifest = manifest
        self.settings = settings

    def under(self, settings: Settings) -> ArchiveReader:
        """The same archive under other settings; store and models that are loaded already are shared."""
        other = copy.copy(self)
        other.settings = settings
        return other

    @cached_property
    def store(self) -> LanceStore:
        return LanceStore.open(self.folder)

    @cached_property
    def checkpoint(self) -> CheckpointInfo:
        """The checkpoint that made the archive. Raises ``ModelMismatch`` when the one found is another in any way."""
        info = read_checkpoint_info(resolve_checkpoint(self.manifest.model))
        require_checkpoint(self.manifest, info, self.folder.address())
        return info

    @property
    def notices(self) -> tuple[str, ...]:
        """What a reader of any result that depends on meaning must be told."""
        notice = weights_notice(self.checkpoint)
        return () if notice is None else (notice,)

    @cached_property
    def text_encoder(self) -> TextEncoder:
        from videoxl2.text_tower import TextEncoder

        return TextEncoder.from_pretrained(str(self.checkpoint.folder))

    @cached_property
    def model(self) -> VideoXL2:
        import torch

        from videoxl2.model import VideoXL2

        dtype = getattr(torch, self.manifest.recipe.dtype)
        return VideoXL2.from_pretrained(str(self.checkpoint.folder), device=self.settings.device, dtype=dtype)

    def videos(self) -> list[VideoRow]:
        """The ledger's rows, newest state."""
        return self.store.videos()

    def resolve(self, filters: Filters) -> Resolved:
        """What a query is about. Raises ``UsageError`` for a camera or video the archive lacks."""
        rows = self.videos()
        known_cameras = {row.camera for row in rows if row.camera is not None}
        for camera in filters.cameras:
            if camera not in known_cameras:
                shown = ", ".join(sorted(repr(name) for name in known_cameras)) or "none"
                raise UsageError(f"unknown camera {camera!r}; the archive has: {shown}")
        video_ids: list[str] = []
        for uri in filters.videos:
            matching = [row.video_id for row in rows if row.uri == uri]
            if not matching:
                raise UsageError(f"unknown video {uri!r}; list what is there with: vxl videos")
            video_ids.extend(matching)
        scope = Scope(
            cameras=filters.cameras or None,
            video_ids=tuple(video_ids) or None,
            after=filters.after,
            before=filters.before,
            time_range=filters.time_range,
            time_zone=filters.zone.key if filters.zone else None,
        )
        coverage = coverage_of(
            rows,
            cameras=filters.cameras,
            video_ids=video_ids,
            after=filters.after,
            before=filters.before,
            clock=scope.clock,
        )
        in_scope = (row for row in rows if scope.admits(row.video_id, row.camera, row.start_time, row.end_time))
        return Resolved(scope=scope, coverage=coverage, videos=tuple(row for row in in_scope if row.is_visible))
