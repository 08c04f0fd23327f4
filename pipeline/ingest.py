"""Ingestion: list sources, run what the ledger says is missing, commit what workers made durable.

This process is the only writer of the tables and holds the archive's writer lease. Every commit is keyed and
idempotent, and a video becomes visible in one atomic step after its last segment, so a crash anywhere followed by the
same command gives the same tables.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Any

from indexers.access_log import shorten_access_log
from indexers.errors import CorruptStaging, DiskFull
from indexers.folder import Folder, Place, as_folder, reached
from indexers.lease import WriterLease
from indexers.records import (
    DELETED,
    DELETING,
    DISCOVERED,
    INDEXED,
    QUARANTINED,
    QUEUED,
    RUNNING,
    SegmentRows,
    VideoRow,
    make_video_id,
)
from indexers.staging import STAGED_SUFFIX, read_staged, remove_staged
from indexers.store import LanceStore
from indexers.sweep import STAGING_FOLDER, sweep
from pipeline.admin import finish_deletions
from pipeline.config import Settings
from pipeline.cost_log import Cost, append_cost, host_name
from pipeline.errors import ConfigError
from pipeline.keypattern import KeyPattern
from pipeline.ledger import Verdict, after_failure, verdict
from pipeline.media import MediaObject, MediaSource, open_source
from pipeline.recipe import Manifest
from pipeline.results import IngestReport, VideoReport
from pipeline.runner import Runner, make_runner
from pipeline.tasks import SegmentStaged, StageFailure, VideoDone, VideoProgress, VideoTask, WorkerEvent
from pipeline.tiers import KeptKV, TierKeeper, refresh_videos, room_wanted
from pipeline.times import parse_time_zone

logger = logging.getLogger(__name__)

Observer = Callable[[str, dict[str, Any]], None]
"""Called with a phase name and plain facts; the command line draws progress from it."""


@dataclass(frozen=True, kw_only=True)
class Listed:
    """An object that a source lists, with what its key says about it."""

    media: MediaObject
    source: str
    video_id: str
    camera: str | None
    title: str
    start_time: datetime | None
    time_zone: str | None
    fits_pattern: bool = True


def list_objects(sources: Iterable[MediaSource], pattern: KeyPattern | None, time_zone: str | None) -> list[Listed]:
    """Every object of the sources once, in key order."""
    listed: dict[str, Listed] = {}
    for source in sources:
        for media in source.list():
            facts = pattern.match(media.key) if pattern is not None else None
            identity = make_video_id(media.uri, media.etag)
            listed[identity] = Listed(
                media=media,
                source=source.uri,
                video_id=identity,
                camera=facts.camera if facts else None,
                title=(facts.title if facts else None) or _stem(media.key),
                start_time=facts.start_time if facts else None,
                time_zone=time_zone,
                fits_pattern=facts is None or facts.is_match,
            )
    return list(listed.values())


def check_pattern(listed: list[Listed], pattern: str | None) -> str | None:
    """A notice when some keys do not fit the pattern. Raises ``ConfigError`` when none does: camera and start of
    everything would be lost, and could only be repaired by indexing again."""
    strangers = [item.media.key for item in listed if not item.fits_pattern]
    if not strangers:
        return None
    if len(strangers) == len(listed):
        raise ConfigError(f"--key-pattern {pattern!r} fits none of {len(listed)} keys, for example {strangers[0]!r}")
    return (
        f"{len(strangers)} of {len(listed)} keys do not fit the key pattern, for example {strangers[0]!r}: "
        "they have no camera, and a start only where their container names one"
    )


def _stem(key: str) -> str:
    name = key.rsplit("/", 1)[-1]
    return name.rsplit(".", 1)[0] or name


def open_sources(sources: Iterable[str], settings: Settings) -> list[MediaSource]:
    """The sources, each checked to be reachable. Raises ``SourceUnavailable`` before any work."""
    opened = [open_source(source, settings.s3) for source in sources]
    for source in opened:
        source.check()
    return opened


def parse_key_pattern(pattern: str | None, time_zone: str | None) -> KeyPattern | None:
    """The rule that turns keys into camera and start time. Raises ``ConfigError`` or ``UsageError``."""
    zone = parse_time_zone(time_zone)
    return None if pattern is None else KeyPattern.parse(pattern, zone)


class Ingestion:
    """One run over an archive: a committer, its runner, and the outcome of every listed object."""

    def __init__(self, archive: Place, manifest: Manifest, settings: Settings, observe: Observer) -> None:
        self._archive: Folder = as_folder(archive)
        self._manifest = manifest
        self._settings = settings
        self._observe = observe
        self._store: LanceStore
        self._lease: WriterLease
        self._tasks: dict[str, VideoTask] = {}
        self._rows: dict[str, VideoRow] = {}
        self._indexed: set[str] = set()
        self._failed: set[str] = set()
        self._quarantined: set[str] = set()
        self._kept = KeptKV(manifest.recipe, settings.storage)
        self._prefill_s = 0.0
        self._notices: list[str] = []

    def run(self, listed: list[Listed], wait_s: float) -> IngestReport:
        """Index what is missing. Raises ``ArchiveLocked`` when another process writes."""
        started = time.monotonic()
        with WriterLease(self._archive, wait_s) as lease:
            self._lease = lease
            self._store = LanceStore.open(self._archive)
            finish_deletions(self._store)
            refresh_videos(self._store)
            self._rows = {row.video_id: row for row in self._store.videos()}
            self._recover_staged()
            sweep(self._archive, self._store, lease)
            todo = self._plan(listed)
            if todo:
                self._index(todo)
                sweep(self._archive, self._store, lease)
                lease.require()
                shorten_access_log(self._archive, (row.segment_id for row in self._store.segments_of()), lease)
                self._compact()
        return self._report(listed, time.monotonic() - started)

    def _compact(self) -> None:
        """Compaction writes tables anew; a disk without room for that is no failure of what was indexed."""
        try:
            self._store.compact()
        except DiskFull as exc:
            logger.warning("the tables were not compacted: %s", exc)
            self._notices.append(f"the tables were not compacted: {exc}; make room and run vxl compact")

    def _recover_staged(self) -> None:
        """Commit segments that a killed run made durable but did not commit."""
        with reached(self._archive):
            staged = sorted(file.name for file in self._archive.list(STAGING_FOLDER))
        for path in staged:
            if not path.endswith(STAGED_SUFFIX):
                continue
            try:
                rows = read_staged(path, self._archive)
            except CorruptStaging as exc:
                logger.warning("%s", exc)
            else:
                if self._is_wanted(rows):
                    self._store.insert_segment(rows)
                    logger.info("recovered staged segment %s", rows.segment_id)
            remove_staged(path, self._archive)

    def _is_wanted(self, rows: SegmentRows) -> bool:
        row = self._rows.get(rows.video_id)
        is_open = row is not None and row.state in (DISCOVERED, QUEUED, RUNNING)
        is_ours = rows.segment["fingerprint"] == self._manifest.recipe.fingerprint
        with reached(self._archive):
            has_files = all(self._archive.size(path) is not None for path in rows.file_paths)
        return is_open and is_ours and has_files

    def _plan(self, listed: list[Listed]) -> list[VideoTask]:
        todo = []
        for item in listed:
            match verdict(self._rows.get(item.video_id)):
                case Verdict.INDEX:
                    todo.append(self._task(item))
                case Verdict.RESTORE:
                    self._publish(replace(self._rows[item.video_id], superseded_by=None))
                    self._indexed.add(item.video_id)
                case Verdict.SKIP:
                    pass
        self._save(*(self._ledger_row(task, QUEUED) for task in todo))
        self._observe("planned", {"todo": len(todo), "skipped": len(listed) - len(todo)})
        return todo

    def _task(self, item: Listed) -> VideoTask:
        return VideoTask(
            video_id=item.video_id,
            uri=item.media.uri,
            key=item.media.key,
            etag=item.media.etag,
            size=item.media.size,
            source=item.source,
            camera=item.camera,
            title=item.title,
            start_time=item.start_time,
            time_zone=item.time_zone,
            first_segment=self._num_committed(item.video_id),
        )

    def _num_committed(self, video_id: str) -> int:
        """The first segment index that is not committed; segments of a video commit in order."""
        return 1 + max((segment.segment_index for segment in self._store.segments(video_id)), default=-1)

    def _index(self, todo: list[VideoTask]) -> None:
        runner = make_runner(self._archive, self._manifest, self._settings)
        try:
            self._make_room()
            runner.start()
            self._observe("started", {})
            started = time.monotonic()
            for task in todo:
                self._tasks[task.video_id] = task
                runner.submit(task)
            while (event := runner.next_event()) is not None:
                self._commit(event, runner)
            self._note_rate(time.monotonic() - started)
        finally:
            runner.close()

    def _make_room(self) -> None:
        """Demote until the next segment of every worker fits under the cap. Comes before workers write."""
        cap = self._settings.storage.max_kv_bytes
        if cap is None:
            return
        workers = self._settings.runner.workers if self._settings.runner.kind == "ray" else 1
        storage = self._settings.storage
        keeper = TierKeeper(self._archive, self._store, storage.pins, self._lease)
        wanted = room_wanted(self._manifest.recipe, self._store, cap, workers, tokens=storage.may_keep_tokens)
        steps = keeper.make_room(cap, wanted)
        if steps:
            self._kept.demoted += len(steps)
            self._rows.update((row.video_id, row) for row in self._store.videos())

    def _note_rate(self, seconds: float) -> None:
        """What indexing here took is what recomputing will take, until an ask has measured that itself.

        What the language model took of it is what making KV from tokens will take.
        """
        if self._settings.runner.kind != "local" or not self._kept.frames:
            return
        from videoxl2.model import choose_device

        cost = Cost(
            host=host_name(),
            device=str(choose_device(self._settings.device, None)[0]),
            path="ingest",
            bytes=0,
            frames=self._kept.frames,
            segments=self._kept.segments,
            actual_s=seconds,
        )
        append_cost(self._archive, cost)
        if self._prefill_s > 0:
            append_cost(
                self._archive,
                replace(cost, path="prefill", frames=0, tokens=self._kept.tokens, actual_s=self._prefill_s),
            )

    def _commit(self, event: WorkerEvent, runner: Runner) -> None:
        task = self._tasks[event.video_id]
        self._lease.require()
        match event:
            case VideoProgress():
                if self._rows[task.video_id].state != RUNNING:
                    self._save(self._ledger_row(task, RUNNING))
                self._observe("progress", {"uri": task.uri, "done_s": event.decoded_s, "of_s": event.duration_s})
            case SegmentStaged():
                rows = read_staged(event.staged_path, self._archive)
                self._store.insert_segment(rows)
                remove_staged(event.staged_path, self._archive)
                self._kept.note(rows)
                self._prefill_s += event.prefill_s
                self._make_room()
                self._observe("segment", {"uri": task.uri, "segment": event.segment_index, "until_s": event.until_s})
            case VideoDone():
                self._publish(self._indexed_row(task, event))
                self._indexed.add(task.video_id)
                self._observe("indexed", {"uri": task.uri})
            case StageFailure():
                self._fail(task, event, runner)

    def _fail(self, task: VideoTask, failure: StageFailure, runner: Runner) -> None:
        outcome = after_failure(failure, task.attempt, self._settings.runner.max_attempts)
        if outcome.retry:
            logger.warning("attempt %d at %r: %s: %s", task.attempt, task.uri, failure.error_type, failure.message)
            again = replace(task, attempt=task.attempt + 1, first_segment=self._num_committed(task.video_id))
            self._tasks[task.video_id] = again
            runner.submit(again)
            return
        logger.warning("%s %r: %s: %s", outcome.state, task.uri, failure.error_type, failure.message)
        self._store.delete_rows(task.video_id)  # what was committed of it must not linger unseen
        self._save(
            replace(
                self._ledger_row(task, outcome.state),
                **_known(failure.facts),
                error_type=failure.error_type,
                error_message=failure.message,
                failed_attempts=task.attempt,
            )
        )
        (self._quarantined if outcome.state == QUARANTINED else self._failed).add(task.video_id)
        self._observe("failed", {"uri": task.uri, "state": outcome.state, "error": failure.message})

    def _save(self, *rows: VideoRow) -> None:
        self._store.upsert_videos(rows)
        self._rows.update((row.video_id, row) for row in rows)

    def _publish(self, row: VideoRow) -> None:
        """Make a video visible and supersede the earlier versions of its object, in one commit."""
        older = [
            other.video_id
            for other in self._rows.values()
            if other.uri == row.uri
            and other.video_id != row.video_id
            and other.superseded_by is None
            and other.state not in (DELETED, DELETING)
        ]
        self._store.publish_video(row, supersede_ids=older)
        self._rows[row.video_id] = row
        for video_id in older:
            self._rows[video_id] = replace(self._rows[video_id], superseded_by=row.video_id)

    def _ledger_row(self, task: VideoTask, state: str) -> VideoRow:
        """A row with what is known before decoding; the rest is empty until the video is indexed."""
        return VideoRow(
            video_id=task.video_id,
            uri=task.uri,
            etag=task.etag,
            key=task.key,
            source=task.source,
            camera=task.camera,
            title=task.title,
            start_time=task.start_time,
            start_time_source="key" if task.start_time is not None else "unknown",
            time_zone=task.time_zone,
            size=task.size,
            state=state,
            sample_fps=self._manifest.recipe.fps,
            fingerprint=self._manifest.recipe.fingerprint,
        )

    def _indexed_row(self, task: VideoTask, done: VideoDone) -> VideoRow:
        segments = self._store.segments(task.video_id)
        return replace(
            self._ledger_row(task, INDEXED),
            **_known(done.facts),
            num_segments=len(segments),
            num_chunks=sum(segment.num_chunks for segment in segments),
            num_frames=sum(segment.num_frames for segment in segments),
            kv_bytes=sum(segment.file_bytes for segment in segments),
            sparse_bytes=sum(segment.sparse_bytes for segment in segments),
        )

    def _report(self, listed: list[Listed], wall_s: float) -> IngestReport:
        done = [self._rows[video_id] for video_id in self._indexed]
        touched = self._indexed | self._failed | self._quarantined
        return IngestReport(
            videos=tuple(video_report(self._rows[item.video_id]) for item in listed),
            indexed=len(self._indexed),
            failed=len(self._failed),
            quarantined=len(self._quarantined),
            skipped=sum(item.video_id not in touched for item in listed),
            wall_s=wall_s,
            video_s=sum(row.duration_s or 0.0 for row in done),
            kv_bytes=sum(row.kv_bytes for row in done),
            sparse_bytes=sum(row.sparse_bytes for row in done),
            notices=(*self._kept.notices(), *self._notices),
        )


_FACTS = frozenset(
    {
        *("start_time", "start_time_source", "duration_s", "fps", "codec", "container", "width", "height", "rotation"),
        *("backend", "decode_verdict", "damage", "bad_packets"),
    }
)


def _known(facts: dict[str, Any]) -> dict[str, Any]:
    """The columns of ``videos`` among what decoding found out."""
    return {name: value for name, value in facts.items() if name in _FACTS}


def video_report(row: VideoRow) -> VideoReport:
    """The report line of one ledger row."""
    return VideoReport(
        uri=row.uri,
        video_id=row.video_id,
        camera=row.camera,
        state=row.state,
        segments=row.num_segments,
        chunks=row.num_chunks,
        duration_s=row.duration_s or 0.0,
        start_time=row.start_time,
        error_type=row.error_type,
        error_message=row.error_message,
    )


def dry_run_report(listed: list[Listed], rows: dict[str, VideoRow]) -> IngestReport:
    """What a run would do, without doing any of it: objects to index are shown as ``discovered``."""
    videos = []
    for item in listed:
        row = rows.get(item.video_id)
        if row is not None and verdict(row) is Verdict.SKIP:
            videos.append(video_report(row))
            continue
        videos.append(
            VideoReport(
                uri=item.media.uri,
                video_id=item.video_id,
                camera=item.camera,
                state=DISCOVERED,
                segments=0,
                chunks=0,
                duration_s=0.0,
                start_time=item.start_time,
            )
        )
    return IngestReport(
        videos=tuple(videos),
        indexed=0,
        failed=0,
        quarantined=0,
        skipped=sum(video.state != DISCOVERED for video in videos),
        wall_s=0.0,
        video_s=0.0,
        kv_bytes=0,
        sparse_bytes=0,
        dry_run=True,
    )
