"""The pure parts of asking: sizes, headers, order, and what is refused before any model is loaded."""

from __future__ import annotations

from datetime import timedelta
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from indexers.scope import EVERYTHING
from indexers.testing import make_video
from pipeline.ask import (
    _HEADER_ROOM,
    REUSE_MODES,
    PlannedChunk,
    _reading_order,
    ask,
    best_that_fit,
    context_pieces,
    sparse_tokens,
)
from pipeline.config import Settings
from pipeline.errors import UsageError
from pipeline.kv_source import LoadedKV
from pipeline.reader import Filters, Resolved
from pipeline.results import Coverage
from tests.unit.pipeline.samples import START
from videoxl2.decode import HeaderIds
from videoxl2.kv import ChunkKV, KVLevel, sparsify


@pytest.mark.parametrize("compression", [1, 3, 4, 36, 40])
@pytest.mark.parametrize("times", [[3], [3, 4, 5, 5, 6, 6]])
def test_the_planned_size_of_sparse_kv_is_its_real_size(times: list[int], compression: int) -> None:
    chunk = ChunkKV(torch.zeros(1, 2, 1, sum(times) + 36 * len(times), 2), tuple((t, 36) for t in times), KVLevel.DENSE)
    row = {"num_tokens": chunk.num_tokens, "num_groups": chunk.num_groups, "group_time_tokens": times}
    assert sparse_tokens(row, compression) == sparsify(chunk, compression).num_tokens


def row(video: str, start_s: float, video_start_h: float | None) -> dict[str, Any]:
    start = None if video_start_h is None else START + timedelta(hours=video_start_h, seconds=start_s)
    return {
        "video_id": video * 32,
        "uri": f"file:///{video}.mp4",
        "start_s": start_s,
        "start_time": start,
        "chunk_id": f"{video}{start_s:g}",
    }


def test_videos_come_by_wall_clock_each_one_s_chunks_together_and_in_order() -> None:
    """Two cameras record at the same time: their chunks must not be interleaved, or every piece needs a header."""
    rows = [row("b", at, 1.0) for at in (48.0, 0.1, 24.3)] + [row("a", at, 1.0) for at in (24.3, 48.0, 0.1)]
    rows += [row("c", 0.0, 0.5), row("e", 0.0, None), row("d", 2.0, None), row("d", 1.0, None)]
    ordered = sorted(rows, key=_reading_order)
    videos = "".join(r["video_id"][0] for r in ordered)
    assert videos == "ddecaaabbb"
    assert [r["start_s"] for r in ordered] == [1.0, 2.0, 0.0, 0.0, 0.1, 24.3, 48.0, 0.1, 24.3, 48.0]


def test_two_versions_of_one_address_stay_apart() -> None:
    first, second = row("a", 5.0, None), row("a", 1.0, None) | {"video_id": "0" * 32}
    third = row("a", 9.0, None) | {"video_id": "0" * 32}
    assert [r["video_id"][0] for r in sorted([first, second, third], key=_reading_order)] == ["0", "0", "a"]


def planned(chunk_row: dict[str, Any]) -> PlannedChunk:
    return PlannedChunk(row=chunk_row, score=0.0, level=KVLevel.DENSE, best_group_id="g")


def pieces_of(rows: list[dict[str, Any]]) -> list[str]:
    """What goes before the model, as letters: a chunk's id, or "H" for a header."""
    loaded = LoadedKV(chunks={r["chunk_id"]: r["chunk_id"] for r in rows})  # type: ignore[misc]
    videos = {r["video_id"]: make_video(r["uri"], video_id=r["video_id"]) for r in rows}
    tokenizer = SimpleNamespace(encode=lambda text: list(range(1000)))
    pieces = context_pieces([planned(r) for r in rows], loaded, videos, tokenizer)
    assert all(len(piece.ids) <= _HEADER_ROOM for piece in pieces if isinstance(piece, HeaderIds))
    return ["H" if isinstance(piece, HeaderIds) else str(piece) for piece in pieces]


def test_one_video_needs_no_header() -> None:
    assert pieces_of([row("a", 0.0, 0.0), row("a", 24.0, 0.0)]) == ["a0", "a24"]


def test_each_of_several_videos_gets_one_header_before_its_chunks() -> None:
    rows = [row("a", 0.0, 0.0), row("a", 24.0, 0.0), row("b", 0.0, 1.0), row("b", 24.0, 1.0)]
    assert pieces_of(rows) == ["H", "a0", "a24", "H", "b0", "b24"]


class Reader:
    """Resolves to an empty scope, and fails when anything else is asked of it."""

    settings = Settings()
    notices = ("a notice",)

    def resolve(self, filters: Filters) -> Resolved:
        return Resolved(scope=EVERYTHING, coverage=Coverage(videos=0, hours=0.0))


@pytest.mark.parametrize(
    ("question", "options", "words"),
    [
        (" \n", {}, "question is empty"),
        ("what?", {"reuse": "sometimes"}, ", ".join(REUSE_MODES)),
        ("what?", {"max_new_tokens": 0}, "--max-new-tokens 0"),
    ],
)
def test_a_wrong_question_is_refused(question: str, options: dict[str, Any], words: str) -> None:
    with pytest.raises(UsageError, match=words):
        ask(Reader(), question, Filters(), **options)  # type: ignore[arg-type]


def test_nothing_indexed_is_an_abstention_and_needs_no_model() -> None:
    answer = ask(Reader(), "what?", Filters())  # type: ignore[arg-type]
    assert answer.abstained is True
    assert (answer.answer, answer.citations, answer.coverage.videos) == ("", (), 0)
    assert answer.notices == ("a notice",)


def test_a_segment_that_does_not_fit_gives_its_best_chunks_in_order() -> None:
    rows = [
        {"chunk_id": name, "num_tokens": 39, "num_groups": 1, "group_time_tokens": [3]} for name in ("a", "b", "c", "d")
    ]
    scores = [0.1, 0.9, 0.2, 0.5]  # 3 + 36 // 4 = 12 tokens each as sparse KV
    assert [row["chunk_id"] for row in best_that_fit(rows, scores, 4, 48)] == ["a", "b", "c", "d"]
    assert [row["chunk_id"] for row in best_that_fit(rows, scores, 4, 35)] == ["b", "d"]
    assert best_that_fit(rows, scores, 4, 11) == []
