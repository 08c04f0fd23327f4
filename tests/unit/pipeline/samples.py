"""Small archives and records made by hand, so that no test here decodes a video or runs the model."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from indexers.records import VectorHit, VideoRow
from indexers.store import LanceStore
from indexers.testing import add_video, make_video
from pipeline.config import IngestSettings
from pipeline.recipe import Manifest, Recipe, make_recipe, write_manifest
from videoxl2.checkpoint import read_checkpoint_info, resolve_checkpoint

START = datetime(2026, 3, 1, 8, 0, tzinfo=UTC)


def tiny_recipe(**changes: Any) -> Recipe:
    """The recipe of an archive made by the packaged model; any field may be given."""
    info = read_checkpoint_info(resolve_checkpoint("tiny"))
    recipe = make_recipe(info, IngestSettings(), "float32")
    return recipe.model_copy(update=changes)


def make_archive(folder: Path, videos: Sequence[VideoRow] = (), num_segments: int = 1) -> Path:
    """An archive of the packaged model with made-up rows: indexed videos with segments and KV, others as they are."""
    recipe = tiny_recipe()
    write_manifest(folder, Manifest(model="tiny", recipe=recipe))
    with LanceStore.create(folder, recipe.embedding_dim) as store:
        for video in videos or (make_video("a"), make_video("b", camera="yard")):
            if video.state == "indexed":
                add_video(store, video, num_segments, embedding_dim=recipe.embedding_dim, archive=folder)
            else:
                store.upsert_videos([video])
    return folder


def hit(video: str, index: int, score: float, *, length_s: float = 4.0, gap_s: float = 0.0) -> VectorHit:
    """Frame group ``index`` of a video whose groups follow each other with ``gap_s`` between them."""
    start_s = index * (length_s + gap_s)
    return VectorHit(
        group_id=f"{video}-{index:05d}",
        video_id=video,
        segment_id=f"{video}-0",
        chunk_id=f"{video}-0-{index // 6}",
        group_index=index,
        camera="gate",
        start_s=start_s,
        end_s=start_s + length_s,
        start_time=None,
        end_time=None,
        motion=0.0,
        score=score,
    )
