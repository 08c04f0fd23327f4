"""Keys and values: the record that is stored per chunk, its sparse form, its bytes, and the working cache.

A ``ChunkKV`` holds keys before rotation, so that it can be placed at any position; a ``KVCache`` holds rotated keys
and is used for one sequence. Files and tables belong to the indexers.

Shapes: L layers, S = 2 (key, value), K KV heads, M tokens, Dh head width.
"""

from __future__ import annotations

import ctypes
import enum
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from videoxl2.config import LanguageSpec
from videoxl2.errors import ContextOverflow, KVLayoutError
from videoxl2.layout import plan_chunks


class KVLevel(enum.StrEnum):
    """How much of a chunk's KV is kept."""

    DENSE = "dense"
    SPARSE = "sparse"


@dataclass(frozen=True, eq=False)
class ChunkKV:
    """KV of consecutive frame groups.

    ``kv_LSKMDh`` is [layers, (key before rotation, value), KV heads, tokens, head width]; ``groups`` gives each
    group's (timestamp tokens, visual tokens) in order. Treat the tensor as read-only: it may be a view of a file.
    """

    kv_LSKMDh: Tensor
    groups: tuple[tuple[int, int], ...]
    level: KVLevel

    def __post_init__(self) -> None:
        shape = tuple(self.kv_LSKMDh.shape)
        if len(shape) != 5 or shape[1] != 2:
            raise KVLayoutError(f"a chunk's KV is [layers, 2, KV heads, tokens, head width], got {list(shape)}")
        if shape[3] != self.num_tokens:
            raise KVLayoutError(f"the KV holds {shape[3]} tokens and its groups add up to {self.num_tokens}")

    @property
    def num_tokens(self) -> int:
        return sum(num_time + num_visual for num_time, num_visual in self.groups)

    @property
    def num_groups(self) -> int:
        return len(self.groups)

    @property
    def num_bytes(self) -> int:
        return self.kv_LSKMDh.numel() * self.kv_LSKMDh.element_size()

    def take_groups(self, first: int, end: int) -> ChunkKV:
        """The groups [first, end) as a view."""
        sizes = [sum(group) for group in self.groups]
        start, stop = sum(sizes[:first]), sum(sizes[:end])
        return ChunkKV(self.kv_LSKMDh[:, :, :, start:stop], self.groups[first:end], self.level)


class PendingKV(Protocol):
    """KV of consecutive frame groups that is still being read: it arrives in its place, first layers first.

    ``bind`` says where to, ``start`` begins, ``wait`` ends with values in place, or raises. ``bind`` and ``start`` are
    called once, in this order, ``wait`` until every layer was waited for; pieces that come from one reader are all
    bound before the first is started.
    """

    @property
    def shape(self) -> tuple[int, int, int, int, int]:
        """[layers, 2, KV heads, tokens, head width]."""

    def bind(self, slot_LSKMDh: Tensor) -> None:
        """Name the place, a view of this piece's shape on any device; nothing else may touch it until ``wait``."""

    def start(self) -> None:
        """Begin to fill it, in the order in which pieces were bound."""

    def wait(self, layer: int) -> int:
        """Return when a layer's keys before rotation and values are in place, and hold what was stored.

        That is for work that the caller queues from here on. The answer is the end of the layers that came with it.
        """


def join_chunks(parts: Sequence[ChunkKV]) -> ChunkKV:
    """Consecutive parts of one level as one chunk; ``KVLayoutError`` when their levels differ."""
    if len({part.level for part in parts}) != 1:
        raise KVLayoutError("only parts of one level can be joined")
    kv_LSKMDh = torch.cat([part.kv_LSKMDh for part in parts], dim=3)
    return ChunkKV(kv_LSKMDh, tuple(group for part in parts for group in part.groups), parts[0].level)


def sparsify(chunk: ChunkKV, compression: int) -> ChunkKV:
    """The sparse form of a dense chunk (``reference`` 5.2): timestamps whole, visual tokens mean-pooled.

    ``compression`` consecutive visual tokens of one group become one, keys before rotation and values alike; a
    remainder that does not fill a run is dropped.
    """
    if chunk.level is not KVLevel.DENSE:
        raise KVLayoutError("only dense KV can be made sparse")
    if compression < 1:
        raise ValueError(f"compression must be at least 1, got {compression}")
    pieces: list[Tensor] = []
    groups: list[tuple[int, int]] = []
    position = 0
    for num_time, num_visual in chunk.groups:
        kept = num_visual // compression
        visual_start = position + num_time
        pieces.append(chunk.kv_LSKMDh[:, :, :, position:visual_start])
        visual = chunk.kv_LSKMDh[:, :, :, visual_start : visual_start + kept * compression]
        pieces.append(visual.unflatten(3, (kept, compression)).mean(dim=4))
        groups.append((num_time, kept))
        position = visual_start + num_visual
    return ChunkKV(torch.cat(pieces, dim=3), tuple(groups), KVLevel.SPARSE)


def rechunk(chunks: Sequence[ChunkKV], chunk_groups: int) -> list[ChunkKV]:
    """The same groups in chunks of ``chunk_groups`` (the last may be shorter); views where nothing has to be joined."""
    total = sum(chunk.num_groups for chunk in chunks)
    wanted = [end - first for first, end in plan_chunks(total, chunk_groups)]
    if [chunk.num_groups for chunk in chunks] == wanted:
        return list(chunks)
    whole = join_chunks(chunks)
    return [whole.take_groups(*span) for span in plan_chunks(total, chunk_groups)]


def kv_to_numpy(kv: Tensor) -> np.ndarray:
    """The tensor's bytes in C order as a flat uint8 array, bfloat16 included; a view where the tensor allows it."""
    return kv.detach().cpu().contiguous().flatten().view(torch.uint8).numpy()


def kv_from_buffer(buffer: Any, dtype: str, shape: Sequence[int], device: str | torch.device = "cpu") -> Tensor:
    """A tensor over the bytes of ``buffer`` (bytes, memoryview, mmap or array), without a copy on the CPU.

    ``dtype`` is torch's name, such as ``bfloat16``. The tensor keeps the buffer alive; where the buffer is read-only
    it must not be written to. Raises ``KVLayoutError`` when the number of bytes does not fit dtype and shape.
    """
    torch_dtype = getattr(torch, dtype, None)
    if not isinstance(torch_dtype, torch.dtype):
        raise KVLayoutError(f"{dtype!r} is not a dtype")
    raw = np.frombuffer(buffer, dtype=np.uint8)
    expected = int(np.prod(shape, dtype=np.int64)) * torch_dtype.itemsize
    if raw.size != expected:
        raise KVLayoutError(f"{raw.size} bytes do not hold {dtype} {list(shape)} ({expected} bytes)")
    if raw.size == 0:
        return torch.empty(tuple(shape), dtype=torch_dtype, device=device)
    # torch warns about read-only memory; a ctypes array over the same address says nothing and keeps its owner alive.
    alias = (ctypes.c_uint8 * raw.size).from_address(raw.ctypes.data)
    alias.owner = raw  # type: ignore[attr-defined]
    flat = torch.frombuffer(alias, dtype=torch.uint8)
    return flat.view(torch_dtype).view(tuple(shape)).to(device)


class KVCache:
    """Rotated keys and values of one sequence, allocated ahead and grown by doubling.

    Writing happens layer by layer at explicit positions; ``length`` moves when all layers are written. Setting
    ``length`` back forgets the tail, so that another question can follow the same video.
    """

    def __init__(
        self,
        spec: LanguageSpec,
        capacity: int,
        *,
        limit: int | None = None,
        device: torch.device | str = "cpu",
        dtype: torch.dtype = torch.float32,
    ) -> None:
        """``limit`` is the longest sequence in tokens; None takes the model's position limit."""
        self.limit = limit if limit is not None else spec.max_positions
        self._length = 0
        self._check_limit(capacity)
        shape = (spec.num_layers, 2, spec.num_kv_heads, max(capacity, 1), spec.head_dim)
        self._kv_LSKMDh = torch.empty(shape, device=device, dtype=dtype)

    @property
    def length(self) -> int:
        """Tokens held."""
        return self._length

    @length.setter
    def length(self, length: int) -> None:
        if not 0 <= length <= self._length:
            raise ValueError(f"the cache holds {self._length} tokens and cannot be set back to {length}")
        self._length = length

    def advance(self, length: int) -> None:
        """Count tokens up to ``length`` as held, after every layer of them has been written."""
        if not self._length <= length <= self.capacity:
            raise ValueError(f"length {length} is outside {self._length}..{self.capacity}")
        self._length = length

    @property
    def capacity(self) -> int:
        """Tokens that fit before the cache has to grow."""
        return self._kv_LSKMDh.shape[3]

    @property
    def device(self) -> torch.device:
        return self._kv_LSKMDh.device

    @property
    def dtype(self) -> torch.dtype:
        return self._kv_LSKMDh.dtype

    def reserve(self, num_tokens: int, *, longest: int | None = None) -> None:
        """Make room for ``num_tokens`` in all; ``ContextOverflow`` beyond the limit.

        Where several sequences share the cache's beginning, ``longest`` is the length of the longest of them.
        """
        self._check_limit(num_tokens if longest is None else longest)
        if num_tokens > self.capacity:
            old = self._kv_LSKMDh
            capacity = max(num_tokens, min(2 * self.capacity, self.limit))
            self._kv_LSKMDh = old.new_empty((*old.shape[:3], capacity, old.shape[4]))
            self._kv_LSKMDh[:, :, :, : self._length] = old[:, :, :, : self._length]

    def write(self, layer: int, start: int, keys_KTDh: Tensor, values_KTDh: Tensor) -> None:
        """Put rotated keys and values of one layer at positions from ``start``; ``reserve`` must have made room."""
        end = start + keys_KTDh.shape[1]
        self._kv_LSKMDh[layer, 0, :, start:end] = keys_KTDh
        self._kv_LSKMDh[layer, 1, :, start:end] = values_KTDh

    def write_all(self, start: int, keys_LKTDh: Tensor, values_LKTDh: Tensor) -> None:
        """Put rotated keys and values of every layer at positions from ``start``."""
        end = start + keys_LKTDh.shape[2]
        self._kv_LSKMDh[:, 0, :, start:end] = keys_LKTDh
        self._kv_LSKMDh[:, 1, :, start:end] = values_LKTDh

    def slot(self, start: int, end: int) -> Tensor:
        """The place of positions [start, end), a view [L, S, K, end - start, Dh]; ``reserve`` must have made room."""
        return self._kv_LSKMDh[:, :, :, start:end]

    def keys(self, layer: int, end: int) -> Tensor:
        """Rotated keys [K, end, Dh] of one layer, a view."""
        return self._kv_LSKMDh[layer, 0, :, :end]

    def values(self, layer: int, end: int) -> Tensor:
        """Values [K, end, Dh] of one layer, a view."""
        return self._kv_LSKMDh[layer, 1, :, :end]

    def _check_limit(self, num_tokens: int) -> None:
        if num_tokens > self.limit:
            raise ContextOverflow(num_tokens, self.limit)
