"""One segment: decoded frames in, prefilled KV and table rows out. The units and times of the archive are made here."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any

import numpy as np

from indexers.config import StoreSettings
from indexers.folder import Place, as_folder
from indexers.kv_file import EXACT, DenseKVHeader, WrittenKV, write_dense_kv
from indexers.records import (
    CHUNKS_SCHEMA,
    SPARSE_SCHEMA,
    SegmentRows,
    embeddings_schema,
    kv_path,
    make_chunk_id,
    make_group_id,
    make_segment_id,
    to_table,
)
from indexers.sparse import sparse_rows
from pipeline.decode_worker import FrameBatch
from pipeline.kept_tokens import keep_tokens, prefill_settings, wait_for
from pipeline.kv_encoding import NO_DENSE, TOKENS, encode_chunk, encoding_of
from pipeline.recipe import Recipe
from pipeline.tasks import VideoTask
from videoxl2.preprocess import frames_to_pixels

if TYPE_CHECKING:
    from torch import Tensor

    from videoxl2.dual_encoder import ImageEncoder
    from videoxl2.kv import ChunkKV
    from videoxl2.model import VideoXL2

logger = logging.getLogger(__name__)


class SegmentEncoder:
    """Visual tokens and KV of a segment, batch by batch. Recomputing at query time uses this alone.

    Batches hold whole frame groups except the last, so encoding batch by batch equals encoding all at once. The
    language model takes every batch as it comes, in passes that do not depend on how a segment falls into batches; on a
    GPU vision of the next one runs beside it, in a stream of its own.
    """

    def __init__(self, model: VideoXL2, recipe: Recipe, *, expected_s: float = 0.0) -> None:
        """``expected_s`` is how long the segment will be, where that is known; nothing depends on it but copies."""
        from videoxl2.clock import StageClock
        from videoxl2.overlap import SideStream
        from videoxl2.upload import FrameUploads

        self._model = model
        self._visual: list[Tensor] = []
        self._uploads = FrameUploads(model.device)
        self._side = SideStream(model.device)
        self._clock = StageClock(model.device)
        self._arriving = model.begin_prefill(
            prefill_settings(recipe),
            recipe.chunk_groups,
            expected_groups=math.ceil(expected_s * recipe.fps / recipe.frames_per_group),
        )
        self.times_s: list[float] = []

    @property
    def num_frames(self) -> int:
        """Frames taken so far."""
        return len(self.times_s)

    @property
    def group_times_s(self) -> list[float]:
        """Media time of each frame group: that of its first frame."""
        return self.times_s[:: self._model.spec.frames_per_group]

    def add(
        self,
        batch: FrameBatch,
        on_features: Callable[[Tensor], None] | None = None,
        beside: Callable[[], None] | None = None,
    ) -> None:
        """Take one batch of frames; ``on_features`` gets the tower's features on the way, ``beside`` is more vision.

        Raises ``ContextOverflow`` where the segment is longer than the model can read.
        """

        def encode() -> Tensor:
            pixels_F3SS = self.pixels(batch.pixels_u8_FHWC, self._model.spec.vision.image_size)
            tokens_GPD = self._model.encode_frames(pixels_F3SS, on_features=on_features)
            if beside is not None:
                beside()
            return tokens_GPD

        tokens_GPD = self._side.take(self._side.queue(encode))
        self._visual.append(tokens_GPD)
        self.times_s.extend(batch.times_s)
        with self._clock.stage("language"):
            self._arriving.add(tokens_GPD, batch.times_s[:: self._model.spec.frames_per_group])

    def pixels(self, frames_u8_FHWC: np.ndarray, image_size: int) -> Tensor:
        """Pixels of frames on the model's device; uploaded while the model works on the batch before."""
        return frames_to_pixels(frames_u8_FHWC, image_size, self._uploads.bring)

    @property
    def visual_GPD(self) -> Tensor:
        """The segment's visual tokens [groups, tokens, width] so far."""
        import torch

        if len(self._visual) > 1:
            self._visual = [torch.cat(self._visual)]
        return self._visual[0]

    def prefill(self) -> tuple[ChunkKV, ...]:
        """Dense KV of the segment's chunks, when all frames have come; timestamps carry the time in the video."""
        with self._clock.stage("language"):
            result = self._arriving.finish()
        return tuple(result.chunks)

    def language_s(self) -> float:
        """What the language model has taken, in seconds; asked for when the device has computed its last chunk."""
        return self._clock.seconds()["language"]


class SegmentBuilder:
    """Everything of a segment that is stored: KV, one vector per frame group, motion, thumbnails."""

    def __init__(
        self,
        *,
        model: VideoXL2,
        image_encoder: ImageEncoder,
        recipe: Recipe,
        task: VideoTask,
        facts: dict[str, Any],
        segment_index: int,
    ) -> None:
        self._encoder = SegmentEncoder(model, recipe, expected_s=_expected_s(recipe, facts, segment_index))
        self._model = model
        self._image_encoder = image_encoder
        self._reads_tokens = image_encoder.token_width is not None
        self._is_shared = not self._reads_tokens and image_encoder.has_tower(model.vision)
        self._recipe = recipe
        self._facts = facts
        self.task = task
        self.segment_index = segment_index
        self._vectors: list[Tensor] = []
        self._motion: list[float] = []
        self._thumbnails: list[bytes | None] = []

    @property
    def num_frames(self) -> int:
        """Frames taken so far."""
        return self._encoder.num_frames

    @property
    def end_s(self) -> float:
        """End of the segment in media seconds: its boundary, or the end of the video."""
        after_last = self._encoder.times_s[-1] + 1e-3
        duration_s = max(float(self._facts["duration_s"]), after_last)
        if self._recipe.segment_s is None:
            return duration_s
        return max(min((self.segment_index + 1) * self._recipe.segment_s, duration_s), after_last)

    def add(self, batch: FrameBatch) -> None:
        """Take one batch of frames, with the vision part and with the image encoder: one tower if they share it.

        An image encoder that reads visual tokens has no pass of its own. Raises ``ContextOverflow`` where the segment
        is longer than the model can read.
        """
        if self._reads_tokens:
            self._encoder.add(batch)
        elif self._is_shared and batch.embed_u8_FHWC is None:
            self._encoder.add(
                batch, on_features=lambda features: self._keep(self._image_encoder.embed_features(features))
            )
        else:
            frames = batch.pixels_u8_FHWC if batch.embed_u8_FHWC is None else batch.embed_u8_FHWC
            side = self._image_encoder.image_size
            self._encoder.add(
                batch, beside=lambda: self._keep(self._image_encoder.embed(self._encoder.pixels(frames, side)))
            )
        self._motion.extend(batch.motion)
        self._thumbnails.extend(batch.thumbnails)

    def _keep(self, vectors_FE: Tensor) -> None:
        """Left where they are: fetching them now would make the host wait for every batch."""
        self._vectors.append(vectors_FE.float())

    def finish(self) -> Segment:
        """End the segment's prefill and reduce frames to frame groups."""
        size = self._model.spec.frames_per_group
        chunks = self._encoder.prefill()
        wait_for(chunks[-1].kv_LSKMDh)
        starts = range(0, self.num_frames, size)
        return Segment(
            recipe=self._recipe,
            task=self.task,
            origin=self._facts.get("start_time"),
            segment_index=self.segment_index,
            num_frames=self.num_frames,
            end_s=self.end_s,
            chunks=chunks,
            prefill_s=self._encoder.language_s(),
            visual_GPD=self._encoder.visual_GPD,
            group_times_s=tuple(self._encoder.group_times_s),
            vectors_GE=self._group_vectors(),
            motion_G=np.array([np.mean(self._motion[i : i + size]) for i in starts]),
            thumbnails=tuple(self._thumbnails),
        )

    def _group_vectors(self) -> np.ndarray:
        """One unit vector [G, E] per frame group: of its visual tokens, or the mean of its frames'."""
        if self._reads_tokens:
            return self._image_encoder.embed_groups(self._encoder.visual_GPD).cpu().numpy()
        size = self._model.spec.frames_per_group
        vectors_FE = np.concatenate([vectors.cpu().numpy() for vectors in self._vectors])
        groups = [vectors_FE[first : first + size] for first in range(0, self.num_frames, size)]
        return np.stack([_unit(frames_FE.mean(axis=0)) for frames_FE in groups]).astype(np.float32)


@dataclass(frozen=True, kw_only=True, eq=False)
class Segment:
    """A prefilled segment: KV per chunk, and per frame group its time, unit vector, motion and thumbnail.

    ``origin`` is the wall-clock time (UTC) of media time 0, where known; ``prefill_s`` what the language model took.
    """

    recipe: Recipe
    task: VideoTask
    origin: datetime | None
    segment_index: int
    num_frames: int
    end_s: float
    chunks: tuple[ChunkKV, ...]
    prefill_s: float
    visual_GPD: Tensor
    group_times_s: tuple[float, ...]
    vectors_GE: np.ndarray
    motion_G: np.ndarray
    thumbnails: tuple[bytes | None, ...]

    @property
    def segment_id(self) -> str:
        """Key of the segment's row."""
        return make_segment_id(self.task.video_id, self.segment_index)

    def write_kv(
        self,
        archive: Place,
        codec: str = EXACT,
        keep: Sequence[bool] | None = None,
        *,
        dense: bool = True,
        tokens: bool = False,
    ) -> SegmentRows:
        """Write the segment's files to their places, durably, and return the rows that refer to them.

        ``dense`` and ``tokens`` say which files there are: dense KV, and projected tokens to make it of. ``keep`` says
        which chunks can be used dense (all by default); the others keep sparse KV only, and where that is all there is
        no file.

        Sparse KV is pooled from the values as they were computed, whatever the codec. A segment with values that int8
        and int4 cannot hold (not finite, or huge) is stored exactly, with a warning; its row says so.
        """
        from videoxl2.errors import KVLayoutError

        keep = [True] * len(self.chunks) if keep is None else keep
        kept_tokens = self._write_tokens(archive) if tokens and any(keep) else None
        try:
            kept_kv = self._write_dense(archive, codec, keep) if dense and any(keep) else None
        except KVLayoutError as exc:
            logger.warning("segment %s is stored exactly: %s", self.segment_id, exc)
            codec = EXACT
            kept_kv = self._write_dense(archive, codec, keep)
        places = _places(kept_kv or kept_tokens, keep)
        sparse = [row for number, chunk in enumerate(self.chunks) for row in self._sparse_rows(number, chunk)]
        return SegmentRows(
            segment=self._segment_row(codec, kept_kv, kept_tokens, sparse),
            chunks=to_table([self._chunk_row(number, place) for number, place in enumerate(places)], CHUNKS_SCHEMA),
            embeddings=to_table(
                [self._embedding_row(group) for group in range(len(self.group_times_s))],
                embeddings_schema(self.vectors_GE.shape[1]),
            ),
            sparse=to_table(sparse, SPARSE_SCHEMA),
        )

    def _write_dense(self, archive: Place, codec: str, keep: Sequence[bool]) -> WrittenKV:
        """What was written, and under which name. Raises ``KVLayoutError`` for values out of range."""
        layers, _, kv_heads, _, head_dim = self.chunks[0].kv_LSKMDh.shape
        header = DenseKVHeader(
            video_id=self.task.video_id,
            segment_index=self.segment_index,
            fingerprint=self.recipe.fingerprint,
            dtype=self.recipe.dtype,
            layers=layers,
            kv_heads=kv_heads,
            head_dim=head_dim,
            chunk_groups=tuple(chunk.groups if kept else () for chunk, kept in zip(self.chunks, keep, strict=True)),
            encoding=encoding_of(codec),
        )
        payloads = (
            encode_chunk(chunk.kv_LSKMDh, header) if kept else b""
            for chunk, kept in zip(self.chunks, keep, strict=True)
        )
        path = kv_path(self.task.video_id, self.segment_index, codec)
        return write_dense_kv(path, header, payloads, as_folder(archive))

    def _write_tokens(self, archive: Place) -> WrittenKV:
        """What was written, and under which name."""
        return keep_tokens(
            archive, self.recipe, self.task.video_id, self.segment_index, self.visual_GPD, self.group_times_s
        )

    def _segment_row(
        self, codec: str, dense: WrittenKV | None, tokens: WrittenKV | None, sparse: Sequence[dict[str, Any]]
    ) -> dict[str, Any]:
        return {
            "segment_id": self.segment_id,
            "video_id": self.task.video_id,
            "segment_index": self.segment_index,
            "start_s": self.group_times_s[0],
            "end_s": self.end_s,
            "num_chunks": len(self.chunks),
            "num_groups": len(self.group_times_s),
            "num_frames": self.num_frames,
            "num_tokens": sum(chunk.num_tokens for chunk in self.chunks),
            "state": "indexed",
            "kv_path": None if dense is None else dense.name,
            "kv_bytes": 0 if dense is None else dense.num_bytes,
            "sparse_bytes": sum(len(row["kv"]) for row in sparse),
            "kv_digest": None if dense is None else dense.digest,
            "tokens_path": None if tokens is None else tokens.name,
            "tokens_bytes": 0 if tokens is None else tokens.num_bytes,
            "tokens_digest": None if tokens is None else tokens.digest,
            "tier": "dense" if dense is not None else NO_DENSE if tokens is None else TOKENS,
            "codec": NO_DENSE if dense is None else codec,
            "dtype": self.recipe.dtype,
            "fingerprint": self.recipe.fingerprint,
        }

    def _chunk_row(self, number: int, place: tuple[int, int]) -> dict[str, Any]:
        first = number * self.recipe.chunk_groups
        last = first + self.chunks[number].num_groups
        appearance_E = _unit(self.vectors_GE[first:last].mean(axis=0))
        usual_E = _unit(self.vectors_GE.mean(axis=0))
        return {
            "chunk_id": make_chunk_id(self.segment_id, number),
            "video_id": self.task.video_id,
            "segment_id": self.segment_id,
            "segment_index": self.segment_index,
            "chunk_index": number,
            "camera": self.task.camera,
            "uri": self.task.uri,
            **self._times(first, last),
            "num_groups": last - first,
            "num_tokens": self.chunks[number].num_tokens,
            "group_time_tokens": [time_tokens for time_tokens, _ in self.chunks[number].groups],
            "motion": float(self.motion_G[first:last].mean()),
            "novelty": float(max(0.0, 1.0 - appearance_E @ usual_E)),
            "thumbnail": self.thumbnails[(first + last - 1) // 2],
            "kv_offset": place[0],
            "kv_length": place[1],
        }

    def _embedding_row(self, group: int) -> dict[str, Any]:
        return {
            "group_id": make_group_id(self.segment_id, group),
            "video_id": self.task.video_id,
            "segment_id": self.segment_id,
            "chunk_id": make_chunk_id(self.segment_id, group // self.recipe.chunk_groups),
            "group_index": group,
            "camera": self.task.camera,
            **self._times(group, group + 1),
            "vector": self.vectors_GE[group],
            "motion": float(self.motion_G[group]),
            "thumbnail": self.thumbnails[group],
        }

    def _sparse_rows(self, number: int, chunk: ChunkKV) -> list[dict[str, Any]]:
        from videoxl2.kv import kv_to_numpy, sparsify

        pooled = sparsify(chunk, self.recipe.compression)
        return sparse_rows(
            kv_to_numpy(pooled.kv_LSKMDh),
            chunk_id=make_chunk_id(self.segment_id, number),
            segment_id=self.segment_id,
            video_id=self.task.video_id,
            dtype=self.recipe.dtype,
            shape=tuple(pooled.kv_LSKMDh.shape),
            group_tokens=[time_tokens + visual_tokens for time_tokens, visual_tokens in pooled.groups],
            compression=self.recipe.compression,
            max_bytes=StoreSettings().sparse_row_bytes,
        )

    def _times(self, first_group: int, last_group: int) -> dict[str, Any]:
        """Half-open interval of groups ``[first, last)`` in media seconds and, where known, wall-clock time."""
        start_s = self.group_times_s[first_group]
        is_last = last_group >= len(self.group_times_s)
        end_s = self.end_s if is_last else self.group_times_s[last_group]
        return {
            "start_s": start_s,
            "end_s": end_s,
            "start_time": None if self.origin is None else self.origin + timedelta(seconds=start_s),
            "end_time": None if self.origin is None else self.origin + timedelta(seconds=end_s),
        }


def _expected_s(recipe: Recipe, facts: dict[str, Any], segment_index: int) -> float:
    """How long a segment should be by what the probe says of the video."""
    if recipe.segment_s is None:
        return max(0.0, float(facts["duration_s"]))
    return min(max(0.0, float(facts["duration_s"]) - segment_index * recipe.segment_s), recipe.segment_s)


def _places(written: WrittenKV | None, keep: Sequence[bool]) -> list[tuple[int, int]]:
    """Offset and length of each chunk in the file that was written first; zeros where it cannot be used dense."""
    if written is None:
        return [(0, 0)] * len(keep)
    return [(entry.offset, entry.length if kept else 0) for entry, kept in zip(written, keep, strict=True)]


def _unit(vector_E: np.ndarray) -> np.ndarray:
    norm = float(np.linalg.norm(vector_E))
    return vector_E / norm if norm > 0 else vector_E
