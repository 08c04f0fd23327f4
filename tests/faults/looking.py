"""A reader that asks for chunks of made-up footage again and again and says what it was given."""

from __future__ import annotations

import json
import random
from collections import Counter
from collections.abc import Callable
from pathlib import Path

from indexers.errors import StoreError
from indexers.folder import Place
from pipeline import ArchiveError
from pipeline.config import load_settings
from pipeline.kv_source import KVSource
from pipeline.reader import ArchiveReader
from tests.faults.made_up import is_of
from videoxl2.kv import KVLevel

MIXED = "mixed"


def look(reader: ArchiveReader, chance: random.Random) -> Counter[str]:
    """Chunks of one segment by the way that questions take, each at the best level that its segment keeps.

    Counts what came: ``dense``, ``sparse``, ``MIXED`` for KV that is not that of the chunk it was asked for, or the
    name of a typed error. Any other error is raised.
    """
    try:
        videos = reader.store.visible_videos()
        segments = reader.store.segments(chance.choice(videos).video_id) if videos else []
        if not segments:
            return Counter(nothing=1)
        segment = chance.choice(segments)
        rows = reader.store.chunks(segment_ids=[segment.segment_id]).to_pylist()
        dense = [KVLevel.SPARSE] if segment.kv_path is None else [KVLevel.DENSE, KVLevel.DENSE, KVLevel.SPARSE]
        loaded = KVSource(reader, "reload").load([(row, chance.choice(dense)) for row in rows])
    except (ArchiveError, StoreError) as exc:
        return Counter({type(exc).__name__: 1})
    return Counter(
        str(chunk.level) if is_of(chunk.kv_LSKMDh, chunk_id) else MIXED  # type: ignore[union-attr]
        for chunk_id, chunk in loaded.chunks.items()
    )


def look_until(folder: Place, seed: int, is_over: Callable[[], bool]) -> Counter[str]:
    """Look, and look once more when it is over."""
    reader = ArchiveReader(folder, load_settings(environ={}))
    chance = random.Random(seed)
    seen: Counter[str] = Counter()
    while not is_over():
        seen += look(reader, chance)
    return seen + look(reader, chance)


def run(folder: Path, seed: int, over: Path, report: Path) -> None:
    """A reader's process: it looks until the file ``over`` appears."""
    report.write_text(json.dumps(look_until(folder, seed, over.exists)))
