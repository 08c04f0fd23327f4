"""Where a question's KV comes from: the store, or prefilled again from the video.

Both ways end in the same bytes: recomputing runs the very stages of ingestion on the segment. A stored chunk is used
only if its file carries this archive's fingerprint and its checksum holds.
"""

from __future__ import annotations

import logging
import tempfile
import time
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from indexers.errors import MissingKV
from indexers.kv_file import DenseKVReader
from indexers.records import SegmentRow, VideoRow
from pipeline.errors import ArchiveError, EvidenceUnavailable, ModelMismatch, StorageError

if TYPE_CHECKING:
    from indexers.sparse import SparseParts
    from pipeline.reader import ArchiveReader
    from videoxl2.kv import ChunkKV, KVLevel

logger = logging.getLogger(__name__)


@dataclass(slots=True)
class LoadedKV:
    """Chunks by id, at the level that was asked for, with what it cost to get them."""

    chunks: dict[str, ChunkKV] = field(default_factory=dict)
    load_s: float = 0.0
    recompute_s: float = 0.0
    bytes_read: int = 0


class KVSource:
    """Loads chunks by ``reuse`` mode: ``reload``, ``recompute``, or ``auto`` (reload, recompute what is missing)."""

    def __init__(self, reader: ArchiveReader, reuse: str) -> None:
        self._reader = reader
        self._reuse = reuse

    def load(self, wanted: Sequence[tuple[dict[str, Any], KVLevel]]) -> LoadedKV:
        """KV of every wanted chunk (a ``chunks`` row and a level)."""
        loaded = LoadedKV()
        per_segment: dict[str, list[tuple[dict[str, Any], KVLevel]]] = defaultdict(list)
        for row, level in wanted:
            per_segment[row["segment_id"]].append((row, level))
        for items in per_segment.values():
            if self._reuse == "recompute":
                self._recompute(items, loaded)
                continue
            try:
                self._reload(items, loaded)
            except MissingKV as exc:
                if self._reuse == "reload":
                    raise StorageError(f"stored KV is not there: {exc}; --reuse auto would recompute it") from exc
                logger.warning("stored KV of segment %s is not there; recomputing it", items[0][0]["segment_id"])
                self._recompute(items, loaded)
        return loaded

    def _reload(self, items: Sequence[tuple[dict[str, Any], KVLevel]], loaded: LoadedKV) -> None:
        from videoxl2.kv import KVLevel

        started = time.perf_counter()
        recipe = self._reader.manifest.recipe
        dense = [row for row, level in items if level is KVLevel.DENSE]
        sparse = [row for row, level in items if level is KVLevel.SPARSE]
        if dense:
            segment = self._segment(dense[0])
            if segment.kv_path is None:
                raise MissingKV(f"segment {segment.segment_id}")
            with DenseKVReader(self._reader.folder / segment.kv_path, segment.kv_digest) as file:
                check_owner(file, recipe.fingerprint, dense[0]["video_id"], dense[0]["segment_index"])
                for row in dense:
                    chunk = read_dense_chunk(file, row["chunk_index"])
                    loaded.bytes_read += chunk.num_bytes
                    loaded.chunks[row["chunk_id"]] = chunk
        if sparse:
            parts = self._reader.store.read_sparse([row["chunk_id"] for row in sparse])
            for row in sparse:
                stored = parts.get(row["chunk_id"])
                if stored is None:
                    raise MissingKV(f"sparse_kv of chunk {row['chunk_id']}")
                loaded.bytes_read += stored.num_bytes
                loaded.chunks[row["chunk_id"]] = stored_sparse_chunk(stored, row, recipe.compression)
        loaded.load_s += time.perf_counter() - started

    def _segment(self, row: dict[str, Any]) -> SegmentRow:
        for segment in self._reader.store.segments(row["video_id"]):
            if segment.segment_id == row["segment_id"]:
                return segment
        raise StorageError(f"segment {row['segment_id']} is not in the archive any more")

    def _recompute(self, items: Sequence[tuple[dict[str, Any], KVLevel]], loaded: LoadedKV) -> None:
        from videoxl2.kv import KVLevel, sparsify

        started = time.perf_counter()
        first = items[0][0]
        chunks = prefill_segment(self._reader, first["video_id"], first["segment_index"])
        for row, level in items:
            chunk = chunks[row["chunk_index"]]
            if level is KVLevel.SPARSE:
                chunk = sparsify(chunk, self._reader.manifest.recipe.compression)
            loaded.chunks[row["chunk_id"]] = chunk
        loaded.recompute_s += time.perf_counter() - started


def check_owner(file: DenseKVReader, fingerprint: str, video_id: str, segment_index: int) -> None:
    """A file in the right place with the wrong content must not serve: not another video's, not another model's.

    Raises ``ModelMismatch`` or ``StorageError``.
    """
    header = file.header
    if header.fingerprint != fingerprint:
        raise ModelMismatch(
            f"KV file {file.path} has fingerprint {header.fingerprint[:12]}, the archive {fingerprint[:12]}"
        )
    if (header.video_id, header.segment_index) != (video_id, segment_index):
        raise StorageError(f"KV file {file.path} belongs to another segment: {header.video_id}")


def read_dense_chunk(file: DenseKVReader, index: int) -> ChunkKV:
    """One chunk of a KV file, over the bytes that were read; raises ``CorruptKV``."""
    from videoxl2.kv import ChunkKV, KVLevel, kv_from_buffer

    kv = kv_from_buffer(file.read_chunk(index), file.header.dtype, file.header.chunk_shape(index))
    return ChunkKV(kv, file.header.chunk_groups[index], KVLevel.DENSE)


def stored_sparse_chunk(stored: SparseParts, row: dict[str, Any], compression: int) -> ChunkKV:
    """Rows of ``sparse_kv`` as the chunk that its row of ``chunks`` describes."""
    from videoxl2.kv import ChunkKV, KVLevel, kv_from_buffer

    times = row["group_time_tokens"]
    visual = (row["num_tokens"] - sum(times)) // row["num_groups"] // compression
    kv = kv_from_buffer(stored.join(), stored.dtype, stored.shape)
    return ChunkKV(kv, tuple((count, visual) for count in times), KVLevel.SPARSE)


def prefill_segment(reader: ArchiveReader, video_id: str, segment_index: int) -> tuple[ChunkKV, ...]:
    """Dense chunks of one segment from its video, by the stages of ingestion.

    Raises ``EvidenceUnavailable`` when the video cannot be read any more.
    """
    from pipeline.segment import SegmentEncoder

    video = reader.store.video(video_id)
    if video is None:
        raise EvidenceUnavailable(f"video {video_id} is not in the archive any more")
    encoder = SegmentEncoder(reader.model, reader.manifest.recipe)
    for batch in _segment_batches(reader, video, segment_index):
        encoder.add_visual(batch)
    if encoder.num_frames == 0:
        raise EvidenceUnavailable(f"{video.uri!r} gives no frame for segment {segment_index} any more")
    return encoder.prefill()


def _segment_batches(reader: ArchiveReader, video: VideoRow, segment_index: int) -> Iterator[Any]:
    from pipeline.decode_worker import DecodeWorker, FrameBatch
    from pipeline.media import fetch_uri
    from pipeline.stages import decode_request

    with tempfile.TemporaryDirectory(prefix="vxl-recompute-") as scratch:
        try:
            with (
                fetch_uri(video.uri, video.etag, reader.settings.s3, Path(scratch)) as media,
                DecodeWorker(reader.settings.decode) as decoder,
            ):
                request = decode_request(reader.manifest.recipe, first_segment=segment_index)
                for event in decoder.decode(str(media.path), video.uri, request):
                    if not isinstance(event, FrameBatch):
                        continue
                    if event.segment_index > segment_index:
                        return
                    yield event
        except ArchiveError as exc:
            raise EvidenceUnavailable(f"KV cannot be recomputed: {exc}") from exc
