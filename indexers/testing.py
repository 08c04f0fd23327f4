"""Made-up rows and a store that dies on purpose, for tests of this package and of those above it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

import numpy as np
import pyarrow as pa

from indexers.folder import Place, as_folder
from indexers.kv_file import DenseKVHeader, WrittenKV, write_dense_kv
from indexers.records import (
    CHUNKS_SCHEMA,
    INDEXED,
    SPARSE_SCHEMA,
    SegmentRows,
    VideoRow,
    embeddings_schema,
    kv_path,
    make_chunk_id,
    make_group_id,
    make_segment_id,
    make_video_id,
    to_table,
    tokens_path,
)
from indexers.sparse import sparse_rows
from indexers.store import LanceStore
from indexers.token_file import TokensHeader, write_tokens

EMBEDDING_DIM = 8
GROUP_S = 4.0
START = datetime(2026, 3, 1, 8, 0, tzinfo=UTC)


class SimulatedCrash(BaseException):
    """Stands for the death of the process: not an ``Exception``, so nothing may catch it and go on."""


class CrashingStore(LanceStore):
    """Dies at the ``crash_at``-th commit (from 0), before it is made or right after; a read never crashes it."""

    crash_at: int = -1
    crash_after: bool = False
    num_commits: int = 0

    def _merge(self, name: str, rows: pa.Table, *, update: bool = False) -> None:
        if rows.num_rows:
            self._commit(lambda: super(CrashingStore, self)._merge(name, rows, update=update))

    def _delete(self, name: str, where: Any) -> int:
        return int(self._commit(lambda: super(CrashingStore, self)._delete(name, where)))

    def _commit(self, make: Any) -> Any:
        is_last = self.num_commits == self.crash_at
        self.num_commits += 1
        if is_last and not self.crash_after:
            raise SimulatedCrash
        result = make()
        if is_last:
            raise SimulatedCrash
        return result


@dataclass(frozen=True)
class SegmentShape:
    """How much a made-up segment holds."""

    num_chunks: int = 2
    groups_per_chunk: int = 3
    visual_tokens: int = 4
    layers: int = 2
    kv_heads: int = 1
    head_dim: int = 4
    sparse_row_bytes: int = 512
    width: int = 0
    """Values of a projected token; 0 keeps no tokens."""


def make_video(name: str = "a", **changes: Any) -> VideoRow:
    """A visible video; any field may be given."""
    uri = changes.pop("uri", f"file:///footage/{name}.mp4")
    etag = changes.pop("etag", "1")
    values: dict[str, Any] = {
        "video_id": make_video_id(uri, etag),
        "uri": uri,
        "etag": etag,
        "key": f"{name}.mp4",
        "source": "file:///footage",
        "camera": "gate",
        "start_time": START,
        "start_time_source": "key",
        "duration_s": 24.0,
        "size": 1000,
        "state": INDEXED,
        "fingerprint": "f" * 32,
    }
    return VideoRow(**{**values, **changes})


def make_segment(
    video: VideoRow,
    segment_index: int = 0,
    *,
    shape: SegmentShape | None = None,
    vectors: Sequence[Sequence[float]] | None = None,
    archive: Place | None = None,
    embedding_dim: int = EMBEDDING_DIM,
) -> SegmentRows:
    """Rows of one segment, a pure function of the arguments. With ``archive`` its files are written there as well."""
    shape = shape or SegmentShape()
    rng = np.random.default_rng([int(video.video_id[:8], 16), segment_index])
    segment_id = make_segment_id(video.video_id, segment_index)
    chunk_s = shape.groups_per_chunk * GROUP_S
    segment_s = shape.num_chunks * chunk_s
    group_tokens = [2 + shape.visual_tokens] * shape.groups_per_chunk
    chunk_tokens = sum(group_tokens)
    kv_shape = (shape.layers, 2, shape.kv_heads, chunk_tokens, shape.head_dim)
    fingerprint = video.fingerprint or "f" * 32
    header = DenseKVHeader(
        video_id=video.video_id,
        segment_index=segment_index,
        fingerprint=fingerprint,
        dtype="float16",
        layers=shape.layers,
        kv_heads=shape.kv_heads,
        head_dim=shape.head_dim,
        chunk_groups=(((2, shape.visual_tokens),) * shape.groups_per_chunk,) * shape.num_chunks,
    )
    payloads = [rng.standard_normal(kv_shape).astype(np.float16) for _ in range(shape.num_chunks)]
    relative = kv_path(video.video_id, segment_index)
    written = None
    if archive is not None:
        written = write_dense_kv(relative, header, [payload.data for payload in payloads], as_folder(archive))

    tokens = _write_tokens(archive, video, segment_index, shape) if archive is not None and shape.width else None

    chunks: list[Mapping[str, Any]] = []
    embeddings: list[Mapping[str, Any]] = []
    sparse: list[Mapping[str, Any]] = []
    for chunk, payload in enumerate(payloads):
        chunk_id = make_chunk_id(segment_id, chunk)
        start_s = segment_index * segment_s + chunk * chunk_s
        chunks.append(
            {
                "chunk_id": chunk_id,
                "video_id": video.video_id,
                "segment_id": segment_id,
                "segment_index": segment_index,
                "chunk_index": chunk,
                "camera": video.camera,
                "uri": video.uri,
                **_times(video, start_s, start_s + chunk_s),
                "num_groups": shape.groups_per_chunk,
                "num_tokens": chunk_tokens,
                "group_time_tokens": [2] * shape.groups_per_chunk,
                "motion": float(rng.random()),
                "novelty": None,
                "thumbnail": rng.bytes(20),
                "kv_offset": written[chunk].offset if written else 0,
                "kv_length": payload.nbytes,
            }
        )
        sparse += sparse_rows(
            payload.view(np.uint8),
            chunk_id=chunk_id,
            segment_id=segment_id,
            video_id=video.video_id,
            dtype="float16",
            shape=kv_shape,
            group_tokens=group_tokens,
            compression=4,
            max_bytes=shape.sparse_row_bytes,
        )
        for group in range(shape.groups_per_chunk):
            index = chunk * shape.groups_per_chunk + group
            vector = rng.standard_normal(embedding_dim) if vectors is None else np.asarray(vectors[index], dtype=float)
            group_start_s = start_s + group * GROUP_S
            embeddings.append(
                {
                    "group_id": make_group_id(segment_id, index),
                    "video_id": video.video_id,
                    "segment_id": segment_id,
                    "chunk_id": chunk_id,
                    "group_index": index,
                    "camera": video.camera,
                    **_times(video, group_start_s, group_start_s + GROUP_S),
                    "vector": (vector / np.linalg.norm(vector)).astype(np.float32),
                    "motion": float(rng.random()),
                    "thumbnail": rng.bytes(40),
                }
            )
    segment = {
        "segment_id": segment_id,
        "video_id": video.video_id,
        "segment_index": segment_index,
        "start_s": segment_index * segment_s,
        "end_s": (segment_index + 1) * segment_s,
        "num_chunks": shape.num_chunks,
        "num_groups": shape.num_chunks * shape.groups_per_chunk,
        "num_frames": shape.num_chunks * shape.groups_per_chunk * 4,
        "num_tokens": shape.num_chunks * chunk_tokens,
        "state": INDEXED,
        "kv_path": written.name if written else relative,
        "kv_bytes": written.num_bytes if written else 0,
        "sparse_bytes": sum(len(row["kv"]) for row in sparse),
        "kv_digest": written.digest if written else None,
        "tokens_path": tokens.name if tokens else None,
        "tokens_bytes": tokens.num_bytes if tokens else 0,
        "tokens_digest": tokens.digest if tokens else None,
        "tier": "dense",
        "codec": "exact",
        "dtype": "float16",
        "fingerprint": fingerprint,
    }
    return SegmentRows(
        segment,
        to_table(chunks, CHUNKS_SCHEMA),
        to_table(embeddings, embeddings_schema(embedding_dim)),
        to_table(sparse, SPARSE_SCHEMA),
    )


def _write_tokens(archive: Place, video: VideoRow, segment_index: int, shape: SegmentShape) -> WrittenKV:
    rng = np.random.default_rng([int(video.video_id[:8], 16), segment_index, 1])
    chunk_s = shape.groups_per_chunk * GROUP_S
    first_s = segment_index * shape.num_chunks * chunk_s
    header = TokensHeader(
        video_id=video.video_id,
        segment_index=segment_index,
        fingerprint=video.fingerprint or "f" * 32,
        dtype="float16",
        tokens_per_group=shape.visual_tokens,
        width=shape.width,
        chunk_times_s=tuple(
            tuple(first_s + chunk * chunk_s + group * GROUP_S for group in range(shape.groups_per_chunk))
            for chunk in range(shape.num_chunks)
        ),
    )
    payloads = [rng.standard_normal(header.chunk_shape(n)).astype(np.float16).data for n in range(shape.num_chunks)]
    return write_tokens(tokens_path(video.video_id, segment_index), header, payloads, as_folder(archive))


def add_video(store: LanceStore, video: VideoRow, num_segments: int = 1, **segment: Any) -> None:
    """Insert and publish a made-up video as ingestion does."""
    for segment_index in range(num_segments):
        store.insert_segment(make_segment(video, segment_index, **segment))
    store.publish_video(video)


def _times(video: VideoRow, start_s: float, end_s: float) -> dict[str, Any]:
    base = video.start_time
    return {
        "start_s": start_s,
        "end_s": end_s,
        "start_time": None if base is None else base + timedelta(seconds=start_s),
        "end_time": None if base is None else base + timedelta(seconds=end_s),
    }
