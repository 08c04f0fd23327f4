"""Ask: retrieve chunks, choose a level for each, reload their KV (or recompute it), assemble, answer, cite.

The video file is touched only in recompute mode. One setting serves every question: segments are chosen by the
similarity of question and frame groups (``question_hits``); of their chunks the most relevant (``query.relevance``)
are dense, as ``ingest.levels`` says, and the rest is sparse.
"""

from __future__ import annotations

import itertools
import logging
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING, Any

from indexers.errors import StoreError
from indexers.records import VideoRow, make_group_id, rows_of
from pipeline.chunk_scores import score_chunks
from pipeline.errors import ConfigError, EvidenceUnavailable, StorageError, UsageError
from pipeline.evidence import evidence_for
from pipeline.kv_source import LoadedKV
from pipeline.planner import ReusePlan
from pipeline.query import interval_fields
from pipeline.question_hits import question_hits
from pipeline.reader import ArchiveReader, Filters, Resolved
from pipeline.results import Answer, Citation, Context, Coverage, Timings
from videoxl2.headers import header_text
from videoxl2.options import MOST_OPTIONS

if TYPE_CHECKING:
    from videoxl2.decode import Piece, TokenStep
    from videoxl2.kv import KVLevel

logger = logging.getLogger(__name__)

REUSE_MODES = ("auto", "reload", "recompute")


@dataclass(frozen=True, slots=True, kw_only=True)
class PlannedChunk:
    """One chunk of the context: its row, its relevance, its most relevant frame group, and the level of its KV.

    ``rank`` is ``named_first.Named.rank``: what the question names comes before what is only similar.
    """

    row: dict[str, Any]
    score: float
    level: KVLevel
    best_group_id: str
    rank: int = 0


def ask(
    reader: ArchiveReader,
    question: str,
    filters: Filters,
    *,
    reuse: str = "auto",
    max_new_tokens: int | None = None,
    on_text: Callable[[str], None] | None = None,
) -> Answer:
    """Answer ``question`` from the footage in scope. See ``Archive.ask``."""
    if not question.strip():
        raise UsageError("the question is empty")
    if reuse not in REUSE_MODES:
        raise UsageError(f"--reuse {reuse!r} is not one of {', '.join(REUSE_MODES)}")
    limit = reader.settings.query.max_new_tokens if max_new_tokens is None else max_new_tokens
    if limit < 1:
        raise UsageError(f"--max-new-tokens {limit} must be at least 1")
    about = reader.resolve(filters)
    if about.coverage.is_empty:
        return _abstain(question, about.coverage, reader.notices)
    model = reader.model
    prefix_ids, suffix_ids = model.tokenizer.prompt_parts(question)

    started = time.perf_counter()
    budget = min(reader.settings.query.max_context_tokens, model.spec.language.max_positions)
    budget -= len(prefix_ids) + len(suffix_ids) + limit
    plan = plan_context(reader, question, about, budget, reuse=reuse)
    if not plan:
        return _abstain(question, about.coverage, reader.notices)
    way = ReusePlan(reader, plan, reuse)
    retrieve_s = time.perf_counter() - started

    videos = {video.video_id: video for video in reader.videos()}
    while True:
        try:
            begun = _begin_answer(way, videos, question, limit)
            break
        except (StoreError, StorageError, EvidenceUnavailable) as exc:
            if not way.is_outdated:  # each time round something was demoted, and that comes to an end
                raise
            logger.warning("KV was demoted before it was read; beginning again from what is there now: %s", exc)
            way = ReusePlan(reader, plan, reuse)
    plan = way.chunks
    loaded, first_token_at = begun.loaded, begun.first_token_at
    token_ids: list[int] = []
    text = ""
    for step in begun.steps:
        token_ids.append(step.token_id)
        if on_text is not None:
            longer = model.tokenizer.decode(token_ids)
            if not longer.endswith("�"):
                on_text(longer[len(text) :])
                text = longer
    ended = time.perf_counter()
    way.record(loaded.load_s + loaded.wait_s, loaded.recompute_s, loaded.tokens_s)
    return Answer(
        question=question,
        answer=model.tokenizer.decode(token_ids).strip(),
        abstained=False,
        citations=_citations(reader, plan, videos),
        timings=Timings(
            retrieve_s=retrieve_s,
            load_s=loaded.load_s + loaded.wait_s,
            recompute_s=loaded.recompute_s + loaded.tokens_s,
            prefill_s=first_token_at - begun.opened_at - loaded.wait_s,
            first_token_s=first_token_at - started,
            decode_s=ended - first_token_at,
        ),
        context=Context(
            dense_chunks=sum(chunk.level.value == "dense" for chunk in plan),
            sparse_chunks=sum(chunk.level.value == "sparse" for chunk in plan),
            tokens=begun.context_tokens + len(suffix_ids),
            kv_bytes_read=loaded.bytes_read,
        ),
        coverage=about.coverage,
        token_ids=tuple(token_ids),
        notices=reader.notices,
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class _Begun:
    """An answer whose first token is there, so that all KV has arrived and was found whole."""

    loaded: LoadedKV
    steps: Iterator[TokenStep]
    context_tokens: int
    opened_at: float
    first_token_at: float


def _begin_answer(way: ReusePlan, videos: dict[str, VideoRow], question: str, limit: int) -> _Begun:
    """Reload, assemble and prefill, all at once. Raises what loading raises; on S3 also for files demoted meanwhile."""
    from videoxl2.decode import generate
    from videoxl2.option_orders import generate_in_orders

    model = way.reader.model
    suffix_ids, eos_ids = model.tokenizer.prompt_parts(question)[1], model.tokenizer.eos_ids
    with way.open() as loaded:
        opened_at = time.perf_counter()
        pieces = context_pieces(way.chunks, loaded, videos, model.tokenizer)
        assembly = model.begin_assembly(pieces, room=limit + MOST_OPTIONS * len(suffix_ids))
        if way.reader.settings.query.option_orders:
            steps = generate_in_orders(model, assembly, question, limit, eos_ids)
        else:
            steps = generate(model, assembly, suffix_ids, limit, eos_ids)
        first = [step for step in (next(steps, None),) if step is not None]
    return _Begun(
        loaded=loaded,
        steps=itertools.chain(first, steps),
        context_tokens=assembly.length,
        opened_at=opened_at,
        first_token_at=time.perf_counter(),
    )


def plan_context(
    reader: ArchiveReader, question: str, about: Resolved, budget: int, *, reuse: str = "auto"
) -> list[PlannedChunk]:
    """The chunks of the context in reading order, with levels, within ``budget`` tokens.

    The segments of the chunks most similar to the question are taken, best first; of a segment that does not fit as
    sparse KV, its best chunks. Part of the budget is kept free for those chunks that ``LevelSettings`` then makes
    dense, by the relevance that ``query.relevance`` names; ``reuse`` says where that reads sparse KV, if it needs any.
    What the question names, cameras or times, comes before all else.
    """
    from videoxl2.decode import select_levels

    hits = question_hits(reader, question, about)
    ranked = hits.best_segments(reader.settings.query.max_segments)
    compression = reader.manifest.recipe.compression
    sizes = reader.settings.ingest.levels
    chosen: list[dict[str, Any]] = []
    used = 0
    # A chunk without a hit is at most as similar as the least similar hit.
    least = min(hits.chunks.values(), default=-1.0)
    segments: dict[str, list[dict[str, Any]]] = {name: [] for name in ranked}
    for row in rows_of(reader.store.chunks(segment_ids=list(segments))):
        segments[row["segment_id"]].append(row)
    most_dense = sizes.num_best(sum(map(len, segments.values()))) + 2
    for rows in filter(None, segments.values()):
        gain = max(row["num_tokens"] - sparse_tokens(row, compression) for row in rows)
        kept_for_dense = min(budget // 2, most_dense * gain)
        wanted = hits.named.lifted(rows, [hits.chunks.get(row["chunk_id"], least) for row in rows])
        taken = best_that_fit(rows, wanted, compression, budget - kept_for_dense - used - _HEADER_ROOM)
        chosen.extend(taken)
        used += sum(sparse_tokens(row, compression) for row in taken) + (_HEADER_ROOM if taken else 0)
    if ranked and not chosen:
        raise ConfigError("query.max_context_tokens leaves no room for a single chunk of footage; raise it")
    headers = _HEADER_ROOM * len({row["segment_id"] for row in chosen})
    chosen.sort(key=_reading_order)
    similarities = [hits.chunks.get(row["chunk_id"], least) for row in chosen]
    kind = reader.settings.query.relevance
    scores = score_chunks(reader, question, chosen, similarities, kind=kind, reuse=reuse)
    levels = select_levels(
        hits.named.lifted(chosen, scores),
        reader.settings.ingest.levels,
        dense_tokens=[row["num_tokens"] for row in chosen],
        sparse_tokens=[sparse_tokens(row, compression) for row in chosen],
        max_tokens=budget - headers,
    )
    return [
        PlannedChunk(
            row=row,
            score=score,
            level=level,
            best_group_id=hits.best_groups.get(row["chunk_id"])
            or _middle_group_id(row, reader.manifest.recipe.chunk_groups),
            rank=hits.named.rank(row),
        )
        for row, score, level in zip(chosen, scores, levels, strict=True)
    ]


def best_that_fit(
    rows: Sequence[dict[str, Any]], scores: Sequence[float], compression: int, room: int
) -> list[dict[str, Any]]:
    """All rows where their sparse KV fits into ``room`` tokens, else the best-scoring that do, in their order."""
    taken: set[int] = set()
    for number in sorted(range(len(rows)), key=lambda number: (-scores[number], rows[number]["chunk_id"])):
        room -= sparse_tokens(rows[number], compression)
        if room < 0:
            break
        taken.add(number)
    return [row for number, row in enumerate(rows) if number in taken]


def _middle_group_id(row: dict[str, Any], chunk_groups: int) -> str:
    return make_group_id(row["segment_id"], row["chunk_index"] * chunk_groups + row["num_groups"] // 2)


_HEADER_ROOM = 64
"""Tokens kept free for the text header of a piece."""


def sparse_tokens(row: dict[str, Any], compression: int) -> int:
    """Tokens of a chunk as sparse KV: timestamps whole, every group's visual tokens pooled."""
    time_tokens = sum(row["group_time_tokens"])
    visual_per_group = (row["num_tokens"] - time_tokens) // row["num_groups"]
    return int(time_tokens + row["num_groups"] * (visual_per_group // compression))


def _reading_order(row: dict[str, Any]) -> tuple[str, str, str, float]:
    """Videos by wall-clock start (unknown first), each one's chunks together and in order."""
    start = row["start_time"]
    video_start = "" if start is None else (start - timedelta(seconds=row["start_s"])).isoformat()
    return (video_start, row["uri"], row["video_id"], row["start_s"])


def context_pieces(
    plan: Sequence[PlannedChunk], loaded: LoadedKV, videos: dict[str, VideoRow], tokenizer: Any
) -> list[Piece]:
    """KV in reading order; a text header goes before each video's stretch when there are several videos."""
    from videoxl2.decode import HeaderIds

    needs_headers = len({chunk.row["video_id"] for chunk in plan}) > 1
    pieces: list[Piece] = []
    previous: str | None = None
    for chunk in plan:
        if needs_headers and chunk.row["video_id"] != previous:
            previous = chunk.row["video_id"]
            video = videos[previous]
            text = header_text(video.camera, video.title, video.start_time)
            pieces.append(HeaderIds(tuple(tokenizer.encode(text)[:_HEADER_ROOM])))
        pieces.append(loaded.chunks[chunk.row["chunk_id"]])
    return pieces


def _citations(
    reader: ArchiveReader, plan: Sequence[PlannedChunk], videos: dict[str, VideoRow]
) -> tuple[Citation, ...]:
    """The most relevant chunks of the context, best first, and before them those that the question names."""
    best = sorted(plan, key=lambda chunk: (-chunk.rank, -chunk.score, chunk.row["chunk_id"]))
    citations = []
    for chunk in best[: reader.settings.query.max_citations]:
        video, row = videos[chunk.row["video_id"]], chunk.row
        citations.append(
            Citation(
                level=chunk.level.value,
                score=chunk.score,
                **interval_fields(video, row["start_s"], row["end_s"]),
                evidence=evidence_for(reader, video, chunk.best_group_id, row["start_s"], row["end_s"]),
            )
        )
    return tuple(citations)


def _abstain(question: str, coverage: Coverage, notices: tuple[str, ...]) -> Answer:
    return Answer(
        question=question,
        answer="",
        abstained=True,
        citations=(),
        timings=Timings(),
        context=Context(),
        coverage=coverage,
        notices=notices,
    )
