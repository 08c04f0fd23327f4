"""Reload or recompute: what either would cost for a question, which is taken under ``auto``, and how wrong that was.

Costs are predicted from measurements of this machine on this archive (``cost_log``): reloading from bytes, by the rate
of the asks that read about as much; recomputing from frames, by the rate of those that prefilled segments about as
long. Where a segment keeps projected tokens only, reloading it also means a pass of the language model over them, which
is predicted from tokens, by the rate of the asks that did the same. The first ask of a process also opens tables and
imports, so its reading is predicted from first asks, and that of others from others. Before there are any, one chunk is
read to see how long that takes, and the rates of recomputing and of the language model are ingestion's, where it ran
here. What cannot be predicted is not chosen: KV that is stored is then reloaded.
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
from pipeline.kv_source import require_fingerprint
from pipeline.tiers import Tier, tier_of

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
    """Predicted seconds of both ways, ``None`` where nothing is known, and the way that ``auto`` takes.

    Using what is stored takes ``reload_s`` for reading and ``tokens_s`` for the language model's pass over tokens.
    """

    reload_s: float | None
    recompute_s: float | None
    tokens_s: float | None = 0.0

    @property
    def stored_s(self) -> float | None:
        """What using what is stored takes."""
        return None if self.reload_s is None or self.tokens_s is None else self.reload_s + self.tokens_s

    @property
    def choice(self) -> str:
        """``recompute`` where it is predicted to be faster, else ``auto``: reload, and recompute what is lost."""
        if self.stored_s is not None and self.recompute_s is not None and self.recompute_s < self.stored_s:
            return "recompute"
        return "auto"


def forecast(
    costs: Sequence[Cost],
    num_bytes: int,
    frames: int,
    segments: int,
    probe: Callable[[], float | None],
    is_first: bool = False,
    *,
    tokens: int = 0,
    token_segments: int = 0,
) -> Forecast:
    """Predict both ways from measurements of one machine; ``is_first``: this is its process's first ask.

    ``probe`` gives the seconds of this reload where nothing like it was measured yet. ``tokens`` is what the language
    model is given of ``token_segments`` segments that keep tokens only.
    """
    alike = [cost for cost in costs if cost.is_first == is_first]
    reload_rate = _nearest_rate(alike, "reload", num_bytes, lambda cost: cost.bytes, lambda cost: cost.bytes)
    reload_s = (probe() if reload_rate is None else reload_rate * num_bytes) if num_bytes else 0.0

    def length(cost: Cost) -> float:
        return cost.frames / max(cost.segments, 1)

    frame_rate = None
    for path in ("recompute", "ingest"):
        if frame_rate is None:
            frame_rate = _nearest_rate(costs, path, frames / max(segments, 1), length, lambda cost: cost.frames)
    token_rate = None
    for path in ("tokens", "prefill"):
        if token_rate is None:
            token_rate = _nearest_rate(
                costs,
                path,
                tokens / max(token_segments, 1),
                lambda cost: cost.tokens / max(cost.segments, 1),
                lambda cost: cost.tokens,
            )
    return Forecast(
        reload_s=reload_s,
        recompute_s=None if frame_rate is None else frame_rate * frames,
        tokens_s=0.0 if not tokens else None if token_rate is None else token_rate * tokens,
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

    ``chunks`` are those of the plan; a dense one whose dense KV and tokens the archive has given up (by cap, retention
    or motion) is sparse here, unless everything is recomputed because the caller said so.
    """

    def __init__(self, reader: ArchiveReader, plan: Sequence[PlannedChunk], reuse: str) -> None:
        self.reader = reader
        self._reuse = reuse
        video_ids = {chunk.row["video_id"] for chunk in plan}
        self._segments = {segment.segment_id: segment for segment in reader.store.segments_of(video_ids)}
        if reuse != "recompute":
            for segment in self._segments.values():
                require_fingerprint(segment, reader.manifest.recipe)
        self.chunks = list(plan) if reuse == "recompute" else [self._as_stored(chunk) for chunk in plan]
        self._bytes, self._frames = self._work()
        self._tokens = self._tokens_by_segment()
        self._device = str(reader.model.device)
        self._costs = [
            cost for cost in read_costs(reader.folder) if (cost.host, cost.device) == (host_name(), self._device)
        ]
        self._used = {chunk.row["segment_id"] for chunk in plan}
        self._is_first = reader not in _asked
        _asked.add(reader)
        self.forecast = forecast(
            self._costs,
            self._bytes,
            self._frames,
            len(self._used),
            self._probe,
            self._is_first,
            tokens=sum(self._tokens.values()),
            token_segments=len(self._tokens),
        )

    def open(self) -> LoadedKV:
        """The KV by the caller's way; under ``auto`` by the cheaper one, or reloaded where the video is gone."""
        from pipeline.kv_source import KVSource

        wanted = [(chunk.row, chunk.level) for chunk in self.chunks]
        mode = self.forecast.choice if self._reuse == "auto" else self._reuse
        if mode == "recompute" and self._reuse == "auto":
            try:
                return KVSource(self.reader, mode).open(wanted)
            except EvidenceUnavailable as exc:
                logger.warning("reloading what would have been recomputed faster: %s", exc)
                mode = "auto"
        return KVSource(self.reader, mode).open(wanted)

    @property
    def is_outdated(self) -> bool:
        """Whether a writer changed, since this was planned, what the archive keeps of its segments."""
        video_ids = {chunk.row["video_id"] for chunk in self.chunks}
        now = {segment.segment_id: segment.file_paths for segment in self.reader.store.segments_of(video_ids)}
        return any(now.get(name) != segment.file_paths for name, segment in self._segments.items())

    def record(self, load_s: float, recompute_s: float, tokens_s: float = 0.0) -> None:
        """Note what it took, and that these segments were used. A mixture with recomputing teaches nothing.

        Reading and the language model's pass over stored tokens were measured apart, so they are two measurements. A
        pass that was not planned, since dense KV was lost or demoted meanwhile, is none.
        """
        note_uses(self.reader.folder, sorted(self._used))
        if (load_s > 0 or tokens_s > 0) == (recompute_s > 0):
            return
        if tokens_s > 0 and self._tokens:
            self._note("tokens", tokens_s, segments=len(self._tokens), tokens=sum(self._tokens.values()))
        if load_s > 0 or recompute_s > 0:
            self._note("reload" if load_s > 0 else "recompute", load_s + recompute_s, segments=len(self._used))

    def _note(self, path: CostPath, actual_s: float, *, segments: int, tokens: int = 0) -> None:
        cost = Cost(
            host=host_name(),
            device=self._device,
            path=path,
            bytes=self._bytes,
            frames=self._frames,
            segments=segments,
            tokens=tokens,
            is_first=self._is_first,
            actual_s=actual_s,
            predicted_reload_s=self.forecast.reload_s,
            predicted_tokens_s=self.forecast.tokens_s,
            predicted_recompute_s=self.forecast.recompute_s,
        )
        append_cost(self.reader.folder, cost)

    def _as_stored(self, chunk: PlannedChunk) -> PlannedChunk:
        from videoxl2.kv import KVLevel

        segment = self._segments.get(chunk.row["segment_id"])
        if chunk.level is not KVLevel.DENSE or segment is None:
            return chunk
        if segment.file_paths and chunk.row["kv_length"] > 0:
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

    def _tokens_by_segment(self) -> dict[str, int]:
        """What the language model is given of each segment that keeps tokens only: all up to the last dense chunk."""
        from videoxl2.kv import KVLevel

        found: dict[str, int] = {}
        for chunk in self.chunks:
            segment = self._segments.get(chunk.row["segment_id"])
            if chunk.level is not KVLevel.DENSE or segment is None or tier_of(segment) is not Tier.TOKENS:
                continue
            upto = segment.num_tokens * (chunk.row["chunk_index"] + 1) // segment.num_chunks
            found[segment.segment_id] = max(found.get(segment.segment_id, 0), upto)
        return found

    def _probe(self) -> float | None:
        """Seconds of this reload, from reading one dense and one sparse chunk of it; ``None`` where that fails."""
        from videoxl2.kv import KVLevel

        in_files = {key for key, segment in self._segments.items() if segment.kv_path is not None}
        dense = [chunk for chunk in self.chunks if chunk.level is KVLevel.DENSE and chunk.row["segment_id"] in in_files]
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
            with DenseKVReader(segment.kv_path, folder=self.reader.folder) as file:
                file.read_chunk(chunk.row["chunk_index"])

    def _read_sparse(self, chunk: PlannedChunk) -> None:
        self.reader.store.read_sparse([chunk.row["chunk_id"]])

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
    for path in ("reload", "tokens", "recompute"):
        errors = [cost.error for cost in costs if cost.path == path and cost.error is not None]
        found[path] = {"asks": len(errors), "median_error": statistics.median(errors) if errors else None}
    return found
