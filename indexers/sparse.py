"""Sparse KV of a chunk as table rows of one to four megabytes, and back.

L layers, K KV heads, M tokens, B bytes of one head's vector (head_dim times the item size). Splits and joins along
tokens at frame-group borders; what the bytes mean, and how they were pooled, is the model's business.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import xxhash

from indexers.errors import CorruptKV
from indexers.kv_file import ITEM_BYTES
from indexers.records import SPARSE_KV, make_sparse_row_id


@dataclass(frozen=True, slots=True)
class SparsePart:
    """One row of ``sparse_kv``: the tokens of consecutive frame groups of a chunk. ``kv_u8`` has ``shape`` in bytes."""

    row_id: str
    part: int
    num_parts: int
    first_group: int
    num_groups: int
    compression: int
    dtype: str
    shape: tuple[int, ...]
    kv_u8: np.ndarray


@dataclass(frozen=True, slots=True)
class SparseParts:
    """All rows of one chunk, in order and complete."""

    chunk_id: str
    parts: tuple[SparsePart, ...]

    @property
    def num_groups(self) -> int:
        return sum(part.num_groups for part in self.parts)

    @property
    def num_bytes(self) -> int:
        return sum(part.kv_u8.nbytes for part in self.parts)

    @property
    def dtype(self) -> str:
        return self.parts[0].dtype

    @property
    def compression(self) -> int:
        return self.parts[0].compression

    @property
    def shape(self) -> tuple[int, ...]:
        """``[layers, 2 (K, V), kv_heads, tokens of all parts, head_dim]``."""
        layers, two, heads, _, width = self.parts[0].shape
        return (layers, two, heads, sum(part.shape[3] for part in self.parts), width)

    def join(self) -> np.ndarray:
        """One contiguous uint8 array of all tokens; read it as ``dtype`` with ``shape``. One part is not copied."""
        if len(self.parts) == 1:
            return self.parts[0].kv_u8
        item = ITEM_BYTES[self.dtype]
        views = [part.kv_u8.reshape(*part.shape[:4], part.shape[4] * item) for part in self.parts]
        return np.concatenate(views, axis=3).reshape(-1)


def plan_parts(group_bytes: Sequence[int], max_bytes: int) -> list[tuple[int, int]]:
    """``(first_group, num_groups)`` of each row: as many groups as fit in ``max_bytes``, at least one."""
    parts: list[tuple[int, int]] = []
    first, total = 0, 0
    for group, size in enumerate(group_bytes):
        if group > first and total + size > max_bytes:
            parts.append((first, group - first))
            first, total = group, 0
        total += size
    if group_bytes:
        parts.append((first, len(group_bytes) - first))
    return parts


def sparse_rows(
    kv_u8: np.ndarray,
    *,
    chunk_id: str,
    segment_id: str,
    video_id: str,
    dtype: str,
    shape: Sequence[int],
    group_tokens: Sequence[int],
    compression: int,
    max_bytes: int,
) -> list[dict[str, Any]]:
    """Rows of ``sparse_kv`` for one chunk.

    ``kv_u8``: the bytes of ``[L, 2, K, M, head_dim]`` (any contiguous uint8 array); ``shape``: that shape in items;
    ``group_tokens``: the tokens of each frame group, which must sum to ``M`` (``ValueError``).
    """
    layers, two, heads, tokens, width = shape
    if sum(group_tokens) != tokens:
        raise ValueError(f"chunk {chunk_id}: groups have {sum(group_tokens)} tokens, the array has {tokens}")
    token_bytes = layers * two * heads * width * ITEM_BYTES[dtype]
    kv_L2KMB = np.ascontiguousarray(kv_u8).view(np.uint8).reshape(layers, two, heads, tokens, -1)
    plan = plan_parts([count * token_bytes for count in group_tokens], max_bytes)
    borders = np.concatenate([[0], np.cumsum(group_tokens)])
    rows = []
    for part, (first, count) in enumerate(plan):
        piece = np.ascontiguousarray(kv_L2KMB[:, :, :, borders[first] : borders[first + count]])
        rows.append(
            {
                "row_id": make_sparse_row_id(chunk_id, part),
                "chunk_id": chunk_id,
                "segment_id": segment_id,
                "video_id": video_id,
                "part": part,
                "num_parts": len(plan),
                "first_group": first,
                "num_groups": count,
                "compression": compression,
                "dtype": dtype,
                "shape": [layers, two, heads, piece.shape[3], width],
                "digest": xxhash.xxh3_128_hexdigest(piece.data),
                "kv": piece.reshape(-1).data,
            }
        )
    return rows


def checked_parts(chunk_id: str, rows: Sequence[dict[str, Any]]) -> SparseParts:
    """The rows of one chunk, verified. Raises ``CorruptKV`` for a bad digest, a wrong length or a missing part."""
    ordered = sorted(rows, key=lambda row: row["part"])
    if [row["part"] for row in ordered] != list(range(ordered[0]["num_parts"])):
        found = [row["part"] for row in ordered]
        raise CorruptKV(SPARSE_KV, chunk_id, f"parts {found} are stored, {ordered[0]['num_parts']} belong to it")
    parts = []
    for row in ordered:
        kv_u8 = np.frombuffer(row["kv"], dtype=np.uint8)
        if xxhash.xxh3_128_hexdigest(kv_u8.data) != row["digest"]:
            raise CorruptKV(SPARSE_KV, chunk_id, f"checksum of part {row['part']} differs")
        shape = tuple(row["shape"])
        if kv_u8.nbytes != int(np.prod(shape)) * ITEM_BYTES[row["dtype"]]:
            raise CorruptKV(SPARSE_KV, chunk_id, f"part {row['part']} has {kv_u8.nbytes} bytes, its shape is {shape}")
        parts.append(
            SparsePart(
                row["row_id"],
                row["part"],
                row["num_parts"],
                row["first_group"],
                row["num_groups"],
                row["compression"],
                row["dtype"],
                shape,
                kv_u8,
            )
        )
    return SparseParts(chunk_id, tuple(parts))
