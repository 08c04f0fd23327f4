"""Reload or recompute: what either would cost for a question, which is taken under ``auto``, and how wrong that was.

Both costs are predicted from measurements of this machine on this archive (``cost_log``): reloading from bytes, by the
rate of the asks that read about as much; recomputing from frames, by the rate of those that prefilled segments about as
long. The first ask of a process also opens tables and imports, so it is predicted from first asks, and the others from
others. Before there are any, one chunk is read to see how long that takes, and the rate of recomputing is ingestion's,
where it ran here. What cannot be predicted is not chosen: KV that is stored is then reloaded.
"""

from __future__ import annotations

import logging
import math
import statistics
import time
import weakref
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from indexers.access_log import note_uses
from indexers.errors import StoreError
from indexers.folder import Place
from indexers.kv_file import DenseKVReader
from pipeline.cost_log import Cost, CostPath, append_cost, host_name, read_costs
from pipeline.errors import EvidenceUnavailable

if TYPE_CHECKING:
    from pipeline.ask import PlannedChunk
    from pipeline.kv_source import LoadedKV
    from pipeline.reader import ArchiveReader

logger = logging.getLogger(__name__)

NEAREST = 5
"""So many measurements of the most similar amount of work make a prediction, by their median."""
_LATEST = 64


@dataclass(frozen=True, slots=True)
class Forecast:
    """Predicted seconds of both ways, ``None`` where nothing is known, and the way that ``auto`` takes."""

    reload_s: float | None
    recompute_s: float | None

    @property
    def choice(self) -> str:
        """``recompute`` where it is predicted to be faster, else ``auto``: reload, and recompute what is lost."""
        if self.reload_s is not None and self.recompute_s is not None and self.recompute_s < self.reload_s:
            return "recompute"
        return "auto"


def forecast(
    costs: Sequence[Cost],
    num_bytes: int,
    frames: int,
    segments: int,
    probe: Callable[[], float | None],
    is_first: bool = False,
) -> Forecast:
    """Predict both ways from measurements of one machine; ``is_first``: this is its process's first ask.

    ``probe`` gives the seconds of this reload where nothing like it was measured yet.
    """
    alike = [cost for cost in costs if cost.is_first == is_first]
    reload_rate = _nearest_rate(alike, "reload", num_bytes, lambda cost: cost.bytes, lambda cost: cost.bytes)
    reload_s = probe() if reload_rate is None else reload_rate * num_bytes

    def length(cost: Cost) -> float:
        return cost.frames / max(cost.segments, 1)

    frame_rate = None
    for path in ("recompute", "ingest"):
        if frame_rate is None:
            frame_rate = _nearest_rate(costs, path, frames / max(segments, 1), length, lambda cost: cost.frames)
    return Forecast(
        reload_s=reload_s,
        recompute_s=None if frame_rate is None else frame_rate * frames,
    )


def _nearest_rate(
    costs: Sequence[Cost],
    path: str,
    size: float,
    size_of: Callable[[Cost], float],
    amount_of: Callable[[Cost], float],
) -> float | None:
    """Median seconds per unit of the measurements most like ``size``, the latest first among equals."""
    usable = [cost for cost in costs if cost.path == path and amount_of(cost) > 0 and size_of(cost) > 0][-_LATEST:]
    usable.reverse()
    usable.sort(key=lambda cost: abs(math.log(size_of(cost) / max(size, 1e-9))))
    rates = [cost.actual_s / amount_of(cost) for cost in usable[:NEAREST]]
    return statistics.median(rates) if rates else None


class ReusePlan:
    """One question's chunks, the way to their KV, and afterwards the measurement of it.

    ``chunks`` are those of the plan; a dense one whose dense KV the archive has given up (by cap, retention or motion)
    is sparse here, unless everything is recomputed because the caller said so.
    """

    def __init__(self, reader: ArchiveReader, plan: Sequence[PlannedChunk], reuse: str) -> None:
        self._reader = reader
        self._reuse = reuse
        video_ids = {chunk.row["video_id"] for chunk in plan}
        self._segments = {segment.segment_id: segment for segment in reader.store.segments_of(video_ids)}
        self.chunks = list(plan) if reuse == "recompute" else [self._as_stored(chunk) for chunk in plan]
        self._bytes, self._frames = self._work()
        self._device = str(reader.model.device)
        self._costs = [
            cost for cost in read_costs(reader.folder) if (cost.host, cost.device) == (host_name(), self._device)
        ]
        self._used = {chunk.row["segment_id"] for chunk in plan}
        self._is_first = reader not in _asked
        _asked.add(reader)
        self.forecast = forecast(self._costs, self._bytes, self._frames, len(self._used), self._probe, self._is_first)

    def open(self) -> LoadedKV:
        """The KV by the caller's way; under ``auto`` by the cheaper one, or reloaded where the video is gone."""
        from pipeline.kv_source import KVSource

        wanted = [(chunk.row, chunk.level) for chunk in self.chunks]
        mode = self.forecast.choice if self._reuse == "auto" else self._reuse
        if mode == "recompute" and self._reuse == "auto":
            try:
                return KVSource(self._reader, mode).open(wanted)
            except EvidenceUnavailable as exc:
                logger.warning("reloading what would have been recomputed faster: %s", exc)
                mode = "auto"
        return KVSource(self._reader, mode).open(wanted)

    def record(self, load_s: float, recompute_s: float) -> None:
        """Note what it took, and that these segments were used. A mixture of both ways teaches nothing."""
        note_uses(self._reader.folder, sorted(self._used))
        if (load_s > 0) == (recompute_s > 0):
            return
        path: CostPath = "reload" if load_s > 0 else "recompute"
        cost = Cost(
            host=host_name(),
            device=self._device,
            path=path,
            bytes=self._bytes,
            frames=self._frames,
            segments=len(self._used),
            is_first=self._is_first,
            actual_s=load_s + recompute_s,
            predicted_reload_s=self.forecast.reload_s,
            predicted_recompute_s=self.forecast.recompute_s,
        )
        append_cost(self._reader.folder, cost)

    def _as_stored(self, chunk: PlannedChunk) -> PlannedChunk:
        from videoxl2.kv import KVLevel

        segment = self._segments.get(chunk.row["segment_id"])
        if chunk.level is not KVLevel.DENSE or segment is None:
            return chunk
        if segment.kv_path is not None and chunk.row["kv_length"] > 0:
            return chunk
        return replace(chunk, level=KVLevel.SPARSE)

    def _work(self) -> tuple[int, int]:
        """Bytes that a reload reads, and frames of the segments that a recomputation prefills."""
        from videoxl2.kv import KVLevel

        num_bytes = 0.0
        for chunk in self.chunks:
            segment = self._segments.get(chunk.row["segment_id"])
            if segment is None or not segment.num_tokens:
                continue
            whole = segment.kv_bytes if chunk.level is KVLevel.DENSE else segment.sparse_bytes
            num_bytes += whole * chunk.row["num_tokens"] / segment.num_tokens
        used = {chunk.row["segment_id"] for chunk in self.chunks}
        frames = sum(segment.num_frames for key, segment in self._segments.items() if key in used)
        return round(num_bytes), frames

    def _probe(self) -> float | None:
        """Seconds of this reload, from reading one dense and one sparse chunk of it; ``None`` where that fails."""
        from videoxl2.kv import KVLevel

        dense = [chunk for chunk in self.chunks if chunk.level is KVLevel.DENSE]
        sparse = [chunk for chunk in self.chunks if chunk.level is not KVLevel.DENSE]
        reads = len({chunk.row["segment_id"] for chunk in sparse})
        total = 0.0
        try:
            for _ in range(2):  # the first time imports and opens; the second is what counts
                total = 0.0
                if dense:
                    total += self._seconds(lambda: self._read_dense(dense[0])) * len(dense)
                if sparse:
                    total += self._seconds(lambda: self._read_sparse(sparse[0])) * reads
        except StoreError:
            return None  # whoever reads it in earnest says what is wrong
        return total or None

    def _read_dense(self, chunk: PlannedChunk) -> None:
        segment = self._segments[chunk.row["segment_id"]]
        if segment.kv_path is not None:
            with DenseKVReader(segment.kv_path, folder=self._reader.folder) as file:
                file.read_chunk(chunk.row["chunk_index"])

    def _read_sparse(self, chunk: PlannedChunk) -> None:
        self._reader.store.read_sparse([chunk.row["chunk_id"]])

    @staticmethod
    def _seconds(call: Callable[[], object]) -> float:
        started = time.perf_counter()
        call()
        return time.perf_counter() - started


_asked: weakref.WeakSet[ArchiveReader] = weakref.WeakSet()
"""Archives that this process has asked something."""


def planner_accuracy(folder: Place) -> dict[str, Any]:
    """How many asks were predicted and by what factor the prediction was wrong at the median, by the way taken."""
    found: dict[str, Any] = {}
    costs = read_costs(folder)
    for path in ("reload", "recompute"):
        errors = [cost.error for cost in costs if cost.path == path and cost.error is not None]
        found[path] = {"asks": len(errors), "median_error": statistics.median(errors) if errors else None}
    return found
