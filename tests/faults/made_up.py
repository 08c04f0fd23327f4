"""A writer that ingests made-up footage: everything from the KV file to the tables is real, decoder and model are not.

Every chunk's KV says whose it is: keys are one number, values its negative, and the number follows from the chunk's id.
int8, int4 and pooling keep such KV exactly, so bytes of two chunks are never mistaken for those of one.
"""

from __future__ import annotations

import os
import signal
import sys
import warnings
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import lancedb  # noqa: F401  a fork server that has imported this module starts writers at once
import numpy as np
import torch
import xxhash

import pipeline.ingest
from indexers.access_log import note_uses
from indexers.folder import Folder, Place, as_folder
from indexers.lease import WriterLease
from indexers.records import make_chunk_id, make_segment_id, make_video_id
from indexers.staging import write_staged
from indexers.store import LanceStore
from indexers.sweep import STAGING_FOLDER, sweep
from pipeline.admin import erase, finish_deletions
from pipeline.config import IngestSettings, Settings, load_settings
from pipeline.ingest import Ingestion, Listed
from pipeline.ingest_run import _create
from pipeline.media import MediaObject
from pipeline.recipe import Manifest, Recipe, make_recipe, read_manifest
from pipeline.runner import SequentialRunner
from pipeline.segment import Segment
from pipeline.tasks import SegmentStaged, VideoDone, VideoProgress, VideoTask, WorkerEvent
from pipeline.tiers import TierKeeper, kv_file_bytes, write_segment
from videoxl2.checkpoint import read_checkpoint_info, resolve_checkpoint
from videoxl2.config import LevelSettings
from videoxl2.kv import ChunkKV, KVLevel

warnings.filterwarnings("ignore", message="lancedb fork support", category=RuntimeWarning)

START = datetime(2026, 3, 1, 8, 0, tzinfo=UTC)
SEGMENT_S, GROUP_S = 24.0, 4.0
NUM_SEGMENTS, GROUPS, CHUNK_GROUPS = 2, 6, 3
TIME_TOKENS, VISUAL_TOKENS, TOKENS_WIDTH = 4, 36, 64
CAP = 2_100_000
"""Bytes: room for some segments as they are, for more as int8 and int4, for the rest as tokens."""
FIRST_DAY = {"a": "1", "b": "1", "c": "1"}
SECOND_DAY = {"a": "2", "b": "1", "e": "1"}
DELETED = "c"


def manifest() -> Manifest:
    """The packaged model, short segments, half precision."""
    ingest = IngestSettings(segment_s=SEGMENT_S, levels=LevelSettings(chunk_groups=CHUNK_GROUPS))
    recipe = make_recipe(read_checkpoint_info(resolve_checkpoint("tiny")), ingest, "float16")
    return Manifest(model="tiny", recipe=recipe)


def settings(cap: int | None = CAP) -> Settings:
    """A byte cap with tokens to fall back to, or neither; everything else by default."""
    return load_settings(overrides={"storage.max_kv_bytes": cap, "storage.keep_tokens": cap is not None}, environ={})


def number_of(chunk_id: str) -> int:
    """What the keys of a chunk are made of: whole numbers up to 2000 are exact in half precision."""
    return 1 + xxhash.xxh3_64_intdigest(chunk_id.encode()) % 2000


def is_of(kv_LSKMDh: torch.Tensor, chunk_id: str) -> bool:
    """Whether this is the KV of that chunk and of no other, keys and values in their places."""
    number = number_of(chunk_id)
    return bool((kv_LSKMDh[:, 0] == number).all() and (kv_LSKMDh[:, 1] == -number).all())


def listing(names: dict[str, str]) -> list[Listed]:
    """What a source would list: object names and their versions."""
    found = []
    for position, (name, etag) in enumerate(names.items()):
        uri = f"file:///footage/{name}.mp4"
        media = MediaObject(uri=uri, key=f"{name}.mp4", etag=etag, size=1000, modified=START)
        found.append(
            Listed(
                media=media,
                source="file:///footage",
                video_id=make_video_id(uri, etag),
                camera="gate",
                title=name,
                start_time=START + timedelta(hours=position),
                time_zone="UTC",
            )
        )
    return found


def made_up_tokens(chunk_id: str) -> torch.Tensor:
    """Projected tokens [groups, tokens, width] of a chunk: its number throughout."""
    return torch.full((CHUNK_GROUPS, VISUAL_TOKENS, TOKENS_WIDTH), number_of(chunk_id), dtype=torch.float16)


def made_up_segment(recipe: Recipe, task: VideoTask, index: int) -> Segment:
    """A segment as prefill would leave it, a pure function of its id."""
    segment_id = make_segment_id(task.video_id, index)
    language = recipe.architecture["language"]
    chunks = []
    for chunk in range(GROUPS // CHUNK_GROUPS):
        groups = ((TIME_TOKENS, VISUAL_TOKENS),) * CHUNK_GROUPS
        shape = (language["num_layers"], 2, language["num_kv_heads"], sum(map(sum, groups)), language["head_dim"])
        kv_LSKMDh = torch.full(shape, number_of(make_chunk_id(segment_id, chunk)), dtype=torch.float16)
        kv_LSKMDh[:, 1].neg_()
        chunks.append(ChunkKV(kv_LSKMDh, groups, KVLevel.DENSE))
    rng = np.random.default_rng([int(task.video_id[:8], 16), index])
    vectors_GE = rng.standard_normal((GROUPS, recipe.embedding_dim)).astype(np.float32)
    return Segment(
        recipe=recipe,
        task=task,
        origin=task.start_time,
        segment_index=index,
        num_frames=GROUPS * recipe.frames_per_group,
        end_s=(index + 1) * SEGMENT_S,
        chunks=tuple(chunks),
        prefill_s=0.0,
        visual_GPD=torch.cat([made_up_tokens(make_chunk_id(segment_id, chunk)) for chunk in range(len(chunks))]),
        group_times_s=tuple(index * SEGMENT_S + group * GROUP_S for group in range(GROUPS)),
        vectors_GE=vectors_GE / np.linalg.norm(vectors_GE, axis=1, keepdims=True),
        motion_G=rng.random(GROUPS),
        thumbnails=tuple(rng.bytes(40) for _ in range(GROUPS)),
    )


class MadeUpIndexer:
    """Stands for ``VideoIndexer``: the same events, the same files, no video."""

    def __init__(self, archive: Folder, manifest: Manifest, settings: Settings) -> None:
        self._archive = archive
        self._recipe = manifest.recipe
        self._settings = settings

    def setup(self) -> None:
        """Nothing to start."""

    def teardown(self) -> None:
        """Nothing to end."""

    def index(self, task: VideoTask) -> Iterator[WorkerEvent]:
        duration_s = NUM_SEGMENTS * SEGMENT_S
        yield VideoProgress(video_id=task.video_id, decoded_s=0.0, duration_s=duration_s)
        for index in range(task.first_segment, NUM_SEGMENTS):
            segment = made_up_segment(self._recipe, task, index)
            rows = write_segment(self._archive, segment, "exact", self._settings.storage)
            path = write_staged(STAGING_FOLDER, rows, self._archive)
            yield SegmentStaged(
                video_id=task.video_id,
                segment_index=index,
                staged_path=str(path),
                num_chunks=len(segment.chunks),
                num_frames=segment.num_frames,
                prefill_s=segment.prefill_s,
                until_s=segment.end_s,
            )
        yield VideoDone(video_id=task.video_id, num_segments=NUM_SEGMENTS, facts={"duration_s": duration_s})


def ingest(place: Place, listed: Sequence[Listed], chosen: Settings | None = None) -> None:
    """One run of ingestion over an archive, which is made if it is not there."""
    made_of = manifest()
    archive = as_folder(place)
    if read_manifest(archive) is None:
        _create(archive, made_of, 10.0)
    before = pipeline.ingest.make_runner
    pipeline.ingest.make_runner = lambda *parts: SequentialRunner(MadeUpIndexer(*parts))  # type: ignore[arg-type]
    try:
        Ingestion(archive, made_of, chosen or settings(), lambda phase, facts: None).run(list(listed), 10.0)
    finally:
        pipeline.ingest.make_runner = before


def two_days(folder: Path) -> None:
    """What is done to an archive: ingestion under a cap, a deletion, a replaced object and new ones, compaction.

    Doing it again from the start, wherever it stopped, completes it.
    """
    second = listing(SECOND_DAY)
    begun = (folder / "archive.json").is_file() and LanceStore.open(folder).video(second[0].video_id) is not None
    if not begun:
        ingest(folder, listing(FIRST_DAY))
        with WriterLease(folder, 10.0) as lease:
            store = LanceStore.open(folder)
            finish_deletions(store)
            erase(store, [row for row in store.videos() if row.title == DELETED and row.state == "indexed"])
            sweep(folder, store, lease)
            note_uses(folder, [make_segment_id(second[1].video_id, 0)], now=1000.0)
    ingest(folder, second)


def run(folder: Path, die_at: int | None, report: Path | None) -> None:
    """The writer's process: in a process group of its own, it may kill itself before one of its file operations.

    ``die_at`` counts what Python does to files of the archive from 1 on; ``report`` is told how many there were.
    """
    os.setpgid(0, 0)
    torch.set_num_threads(1)
    counted = 0

    def count(event: str, arguments: tuple[Any, ...]) -> None:
        nonlocal counted
        if event not in ("open", "os.rename", "os.remove", "os.mkdir", "os.rmdir", "os.truncate"):
            return
        is_read = event == "open" and not (arguments[2] & (os.O_WRONLY | os.O_RDWR))
        if is_read or not str(arguments[0]).startswith(str(folder)):
            return
        counted += 1
        if counted == die_at:
            os.killpg(0, signal.SIGKILL)

    sys.addaudithook(count)
    two_days(folder)
    if report is not None:
        report.write_text(str(counted))


def churn(folder: Path, rounds: int) -> None:
    """Everything that changes an archive under its readers: new and replaced videos, demotion, compaction, deletion."""
    torch.set_num_threads(1)
    for number in range(rounds):
        ingest(folder, listing({"a": str(number + 2), f"new {number}": "1"}), settings(cap=None))
        with WriterLease(folder, 10.0) as lease:
            store = LanceStore.open(folder)
            keeper = TierKeeper(folder, store, ())
            full = kv_file_bytes(folder)
            for share in (0.7, 0.4, 0.2):  # int8, then int4, then none of the coldest
                keeper.make_room(2 * full, 2 * full - int(share * full))
                store.compact(full=True)
            erase(store, [row for row in store.videos() if row.title == f"new {number - 1}"])
            sweep(folder, store, lease)
