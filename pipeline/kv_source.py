"""Where a question's KV comes from: the store, or prefilled again from the video.

Both ways end in the same bytes where KV is stored exactly: recomputing runs the stages of ingestion on the segment.
Stored may mean as projected tokens: then the last of those stages, the language model's, is run on them.
A stored chunk is used only if its file is the one that the segment's row names, carries this archive's fingerprint, and
its checksum holds.
"""

from __future__ import annotations

import logging
import time
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, TypeVar

from indexers.errors import CorruptKV, MissingKV
from indexers.folder import Place, as_folder
from indexers.kv_file import DenseKVReader
from indexers.records import SegmentRow, VideoRow
from indexers.token_file import TokensReader
from pipeline.errors import ArchiveError, EvidenceUnavailable, ModelMismatch, StorageError
from pipeline.kept_tokens import kv_from_tokens, wait_for
from pipeline.kv_encoding import decode_chunk
from pipeline.kv_reload import PendingChunk, Reload

if TYPE_CHECKING:
    import torch

    from indexers.sparse import SparseParts
    from pipeline.reader import ArchiveReader
    from pipeline.recipe import Recipe
    from pipeline.segment import SegmentEncoder
    from videoxl2.kv import ChunkKV, KVLevel, PendingKV

logger = logging.getLogger(__name__)

FileT = TypeVar("FileT", DenseKVReader, TokensReader)
_OPEN_ATTEMPTS = 4
"""How often a KV file may change between reading its segment's row and opening it before that is an error."""


@dataclass(slots=True)
class LoadedKV:
    """Chunks by id, at the level that was asked for, with what it cost to get them. A context manager.

    Dense chunks of an opened one are on their way: they can be placed once, before this is closed. ``load_s`` is
    the time to open files and to read sparse KV; ``wait_s`` that which assembly spent waiting for dense KV;
    ``tokens_s`` that of making dense KV from stored tokens, and ``recompute_s`` from videos.
    """

    chunks: dict[str, ChunkKV | PendingKV] = field(default_factory=dict)
    load_s: float = 0.0
    tokens_s: float = 0.0
    recompute_s: float = 0.0
    bytes_read: int = 0
    reload: Reload | None = None

    @property
    def wait_s(self) -> float:
        return 0.0 if self.reload is None else self.reload.wait_s

    def __enter__(self) -> LoadedKV:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def close(self) -> None:
        """End reading and close the files."""
        if self.reload is not None:
            self.reload.close()


class KVSource:
    """Loads chunks by ``reuse`` mode: ``reload``, ``recompute``, or ``auto`` (reload, recompute what is missing)."""

    def __init__(self, reader: ArchiveReader, reuse: str) -> None:
        self._reader = reader
        self._reuse = reuse

    def load(self, wanted: Sequence[tuple[dict[str, Any], KVLevel]], device: str | torch.device = "cpu") -> LoadedKV:
        """KV of every wanted chunk (a ``chunks`` row and a level), in memory; dense KV on ``device``."""
        with self.open(wanted) as loaded:
            pending = {key: chunk for key, chunk in loaded.chunks.items() if isinstance(chunk, PendingChunk)}
            for chunk in pending.values():
                chunk.bind_to_own(device)
            loaded.chunks.update({key: chunk.load() for key, chunk in pending.items()})
        loaded.load_s += loaded.wait_s
        loaded.reload = None
        return loaded

    def open(self, wanted: Sequence[tuple[dict[str, Any], KVLevel]]) -> LoadedKV:
        """The same, but stored dense KV is only announced: it is read where and when a cache is assembled from it.

        What is missing is found here, what is damaged when it is waited for.
        """
        loaded = LoadedKV(reload=Reload(layer_bands=self._reader.settings.query.layer_bands))
        per_segment: dict[str, list[tuple[dict[str, Any], KVLevel]]] = defaultdict(list)
        for row, level in wanted:
            per_segment[row["segment_id"]].append((row, level))
        try:
            for items in per_segment.values():
                self._open_segment(items, loaded)
        except BaseException:
            loaded.close()
            raise
        return loaded

    def _open_segment(self, items: Sequence[tuple[dict[str, Any], KVLevel]], loaded: LoadedKV) -> None:
        if self._reuse == "recompute":
            self._recompute(items, loaded)
            return
        try:
            self._reload(items, loaded)
        except MissingKV as exc:
            if self._reuse == "reload":
                raise StorageError(f"stored KV is not there: {exc}; --reuse auto would recompute it") from exc
            logger.warning("stored KV of segment %s is not there; recomputing it", items[0][0]["segment_id"])
            self._recompute(items, loaded)

    def _reload(self, items: Sequence[tuple[dict[str, Any], KVLevel]], loaded: LoadedKV) -> None:
        from videoxl2.kv import KVLevel

        started = time.perf_counter()
        recipe = self._reader.manifest.recipe
        dense = [row for row, level in items if level is KVLevel.DENSE]
        sparse = [row for row, level in items if level is KVLevel.SPARSE]
        found: dict[str, ChunkKV | PendingKV] = {}
        num_bytes = 0
        tokens_s = 0.0
        file = self._open_file(dense[0]) if dense else None
        if isinstance(file, TokensReader):
            mark = time.perf_counter()
            with file:
                chunks, num_bytes = self._from_tokens(file, dense)
            found.update(chunks)
            tokens_s = time.perf_counter() - mark
        elif file is not None:
            assert loaded.reload is not None
            loaded.reload.add(file)
            for row in dense:
                pending = loaded.reload.chunk(file, row["chunk_index"])
                num_bytes += pending.num_bytes
                found[row["chunk_id"]] = pending
        if sparse:
            parts = self._reader.store.read_sparse([row["chunk_id"] for row in sparse])
            for row in sparse:
                stored = parts.get(row["chunk_id"])
                if stored is None:
                    raise MissingKV(f"sparse_kv of chunk {row['chunk_id']}")
                num_bytes += stored.num_bytes
                found[row["chunk_id"]] = stored_sparse_chunk(stored, row, recipe.compression)
        loaded.chunks.update(found)
        loaded.bytes_read += num_bytes
        loaded.tokens_s += tokens_s
        loaded.load_s += time.perf_counter() - started - tokens_s

    def _from_tokens(
        self, file: TokensReader, rows: Sequence[dict[str, Any]]
    ) -> tuple[dict[str, ChunkKV | PendingKV], int]:
        """Dense KV of chunks of a segment that keeps tokens, by id, and the bytes read for it."""
        last = max(row["chunk_index"] for row in rows)
        chunks, num_bytes = kv_from_tokens(self._reader.model, self._reader.manifest.recipe, file, last + 1)
        for row in rows:
            if chunks[row["chunk_index"]].num_tokens != row["num_tokens"]:
                raise StorageError(f"tokens in {file.path} make another chunk than {row['chunk_id']}")
        wait_for(chunks[-1].kv_LSKMDh)
        return {row["chunk_id"]: chunks[row["chunk_index"]] for row in rows}, num_bytes

    def _open_file(self, row: dict[str, Any]) -> DenseKVReader | TokensReader:
        """The segment's dense KV, or its tokens where it keeps no more or its dense KV is lost.

        A writer may demote the segment between row and file: then the row is read again.
        """
        recipe = self._reader.manifest.recipe
        segment = self._segment(row)
        for attempt in range(_OPEN_ATTEMPTS):
            try:
                if segment.kv_path is not None:
                    return open_dense(self._reader.folder, recipe.fingerprint, segment)
                return open_tokens(self._reader.folder, recipe.fingerprint, segment)
            except CorruptKV as exc:
                newer = self._segment(row)
                is_lost = isinstance(exc, MissingKV) and segment.kv_path is not None
                if attempt == _OPEN_ATTEMPTS - 1:
                    raise
                if (newer.file_paths, newer.kv_digest) != (segment.file_paths, segment.kv_digest):
                    segment = newer
                elif is_lost and segment.tokens_path is not None:
                    logger.warning("dense KV of segment %s is not there; using its tokens", segment.segment_id)
                    return open_tokens(self._reader.folder, recipe.fingerprint, segment)
                else:
                    raise
        raise MissingKV(f"segment {segment.segment_id}")

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


def open_dense(archive: Place, fingerprint: str, segment: SegmentRow) -> DenseKVReader:
    """A segment's KV file, checked against the archive's fingerprint and the segment's row; the caller closes it.

    Raises ``MissingKV``, ``CorruptKV``, and what ``check_owner`` raises.
    """
    if segment.kv_path is None:
        raise MissingKV(f"segment {segment.segment_id}")
    return _owned(DenseKVReader(segment.kv_path, segment.kv_digest, as_folder(archive)), fingerprint, segment)


def open_tokens(archive: Place, fingerprint: str, segment: SegmentRow) -> TokensReader:
    """A segment's file of tokens, checked as ``open_dense`` checks; the caller closes it."""
    if segment.tokens_path is None:
        raise MissingKV(f"segment {segment.segment_id}")
    return _owned(TokensReader(segment.tokens_path, segment.tokens_digest, as_folder(archive)), fingerprint, segment)


def _owned(file: FileT, fingerprint: str, segment: SegmentRow) -> FileT:
    """The file, closed where ``check_owner`` refuses it."""
    try:
        check_owner(file, fingerprint, segment)
    except BaseException:
        file.close()
        raise
    return file


def check_owner(file: DenseKVReader | TokensReader, fingerprint: str, segment: SegmentRow) -> None:
    """A file in the right place with the wrong content must not serve: not another video's, not another model's.

    Raises ``ModelMismatch`` or ``StorageError``, naming the field.
    """
    header = file.header
    kind = "KV file" if isinstance(file, DenseKVReader) else "file of tokens"
    if header.fingerprint != fingerprint:
        raise ModelMismatch(
            f"{kind} {file.path} has fingerprint {header.fingerprint[:12]}, the archive {fingerprint[:12]}"
        )
    for name, found, expected in (
        ("video_id", header.video_id, segment.video_id),
        ("segment_index", header.segment_index, segment.segment_index),
    ):
        if found != expected:
            raise StorageError(f"{kind} {file.path} belongs to another segment: {name} {found}, not {expected}")
    if isinstance(file, DenseKVReader) and file.header.encoding.codec != segment.codec:
        raise StorageError(
            f"KV file {file.path} has codec {file.header.encoding.codec}, the segment's row {segment.codec}"
        )
    for name, found, expected in (
        ("dtype", header.dtype, segment.dtype),
        ("number of chunks", header.num_chunks, segment.num_chunks),
    ):
        if found != expected:
            raise StorageError(f"{kind} {file.path} has {name} {found}, the segment's row {expected}")


def require_fingerprint(segment: SegmentRow, recipe: Recipe) -> None:
    """Raise ``ModelMismatch`` for a segment of another recipe: its rows of sparse KV carry no fingerprint."""
    if segment.fingerprint != recipe.fingerprint:
        raise ModelMismatch(
            f"segment {segment.segment_id} has fingerprint {segment.fingerprint[:12]}, "
            f"the archive {recipe.fingerprint[:12]}"
        )


def read_dense_chunk(file: DenseKVReader, index: int) -> ChunkKV:
    """One chunk of a KV file, decoded on the CPU; raises ``CorruptKV``."""
    from videoxl2.kv import ChunkKV, KVLevel

    kv = decode_chunk(file.read_chunk(index), file.header, index)
    return ChunkKV(kv, file.header.chunk_groups[index], KVLevel.DENSE)


def stored_sparse_chunk(stored: SparseParts, row: dict[str, Any], compression: int) -> ChunkKV:
    """Rows of ``sparse_kv`` as the chunk that its row of ``chunks`` describes."""
    from videoxl2.kv import ChunkKV, KVLevel, kv_from_buffer

    times = row["group_time_tokens"]
    visual = (row["num_tokens"] - sum(times)) // row["num_groups"] // compression
    kv = kv_from_buffer(stored.join(), stored.dtype, stored.shape)
    return ChunkKV(kv, tuple((count, visual) for count in times), KVLevel.SPARSE)


def prefill_segment(reader: ArchiveReader, video_id: str, segment_index: int) -> tuple[ChunkKV, ...]:
    """Dense chunks of one segment from its video, by the stages of ingestion. Raises what ``encode_segment`` raises."""
    return encode_segment(reader, video_id, segment_index).prefill()


def encode_segment(reader: ArchiveReader, video_id: str, segment_index: int) -> SegmentEncoder:
    """The visual tokens of one segment from its video, by the stages of ingestion, ready to be prefilled.

    Raises ``EvidenceUnavailable`` when the video cannot be read any more.
    """
    from pipeline.segment import SegmentEncoder

    video = reader.store.video(video_id)
    if video is None:
        raise EvidenceUnavailable(f"video {video_id} is not in the archive any more")
    encoder = SegmentEncoder(reader.model, reader.manifest.recipe)
    for batch in _segment_batches(reader, video, segment_index):
        encoder.add(batch)
    if encoder.num_frames == 0:
        raise EvidenceUnavailable(f"{video.uri!r} gives no frame for segment {segment_index} any more")
    return encoder


def _segment_batches(reader: ArchiveReader, video: VideoRow, segment_index: int) -> Iterator[Any]:
    from pipeline.decode_worker import DecodeWorker, FrameBatch
    from pipeline.media import fetch_uri, scratch_folder
    from pipeline.stages import decode_request

    try:
        with (
            scratch_folder(video.uri, "vxl-recompute-") as scratch,
            fetch_uri(video.uri, video.etag, reader.settings.s3, scratch) as media,
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
