"""``to_dict`` is the JSON contract: these keys, these types, nothing dropped."""

from __future__ import annotations

import dataclasses
import json
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from pipeline.errors import EvidenceUnavailable
from pipeline.results import (
    AnomalyResult,
    Answer,
    Citation,
    Context,
    Coverage,
    Event,
    Evidence,
    IngestReport,
    Moment,
    SearchResult,
    Timings,
    VideoReport,
)
from tests.unit.pipeline.samples import START

INTERVAL = {"video_id", "uri", "camera", "start_s", "end_s", "start_time", "end_time"}
AT: dict[str, Any] = {
    "video_id": "a" * 32,
    "uri": "file:///a.mp4",
    "title": "a",
    "camera": "gate",
    "start_s": 1.23456,
    "end_s": 2.0,
    "start_time": START,
    "end_time": START + timedelta(seconds=1),
}
MOMENT = Moment(**AT, rank=1, score=0.12345678)
CITATION = Citation(**AT, level="dense", score=0.5)
EVENT = Event(**AT, event_id="e", score=4.0, reason="more motion")
COVERAGE = Coverage(videos=2, hours=1.23456789, not_indexed=({"uri": "file:///b.mp4", "reason": "failed"},))
VIDEO = VideoReport(uri="u", video_id="v", camera=None, state="indexed", segments=1, chunks=2, duration_s=3.00049)
REPORT = IngestReport(
    videos=(VIDEO,),
    indexed=1,
    failed=2,
    skipped=3,
    quarantined=4,
    wall_s=1.23456,
    video_s=2.0,
    kv_bytes=5,
    sparse_bytes=6,
)
ANSWER = Answer(
    question="q",
    answer="a",
    abstained=False,
    citations=(CITATION,),
    timings=Timings(retrieve_s=0.1),
    context=Context(tokens=3),
    coverage=COVERAGE,
    token_ids=(1, 2),
)
SEARCH = SearchResult(query="q", moments=(MOMENT,), coverage=COVERAGE)
ANOMALIES = AnomalyResult(events=(EVENT,), threshold=3.0, coverage=COVERAGE)

# The contract of design.md 6, and after it what is there besides.
KEYS = [
    (MOMENT, INTERVAL | {"rank", "score"}, {"title"}),
    (CITATION, INTERVAL | {"level"}, {"title", "score"}),
    (EVENT, INTERVAL | {"event_id", "score", "reason"}, {"title"}),
    (COVERAGE, {"videos", "hours", "not_indexed"}, set()),
    (SEARCH, {"query", "moments", "coverage"}, {"notices"}),
    (
        ANSWER,
        {"question", "answer", "abstained", "citations", "timings", "context", "coverage"},
        {"notices"},
    ),
    (
        ANSWER.timings,
        {"retrieve_s", "load_s", "recompute_s", "prefill_s", "first_token_s", "decode_s"},
        set(),
    ),
    (ANSWER.context, {"dense_chunks", "sparse_chunks", "tokens", "kv_bytes_read"}, set()),
    (ANOMALIES, {"events", "threshold", "coverage"}, {"notices"}),
    (VIDEO, {"uri", "video_id", "camera", "state", "segments", "chunks", "duration_s", "error"}, {"start_time"}),
    (REPORT, {"videos", "counts", "wall_s", "video_s", "kv_bytes", "sparse_bytes"}, {"dry_run", "notices"}),
]


@pytest.mark.parametrize(("result", "contract", "besides"), KEYS, ids=lambda value: type(value).__name__)
def test_exactly_these_keys(result: Any, contract: set[str], besides: set[str]) -> None:
    assert result.to_dict().keys() == contract | besides


@pytest.mark.parametrize("result", [SEARCH, ANSWER, ANOMALIES, REPORT], ids=lambda value: type(value).__name__)
def test_documents_are_plain_json(result: Any) -> None:
    document = result.to_dict()
    assert json.loads(json.dumps(document, allow_nan=False)) == document


def test_ingest_counts() -> None:
    assert REPORT.to_dict()["counts"] == {"indexed": 1, "failed": 2, "skipped": 3, "quarantined": 4}


def test_inner_results_are_documents_too() -> None:
    assert SEARCH.to_dict()["moments"] == [MOMENT.to_dict()]
    assert ANSWER.to_dict()["citations"] == [CITATION.to_dict()]
    assert ANOMALIES.to_dict()["events"] == [EVENT.to_dict()]
    assert REPORT.to_dict()["videos"] == [VIDEO.to_dict()]
    for result in (SEARCH, ANSWER, ANOMALIES):
        assert result.to_dict()["coverage"] == COVERAGE.to_dict()
    assert COVERAGE.to_dict()["not_indexed"] == list(COVERAGE.not_indexed)


def test_times_carry_their_offset_and_numbers_are_rounded() -> None:
    document = MOMENT.to_dict()
    assert document["start_time"] == "2026-03-01T08:00:00+00:00"
    assert (document["start_s"], document["score"]) == (1.235, 0.123457)
    unknown = dataclasses.replace(MOMENT, start_time=None, end_time=None, camera=None).to_dict()
    assert (unknown["start_time"], unknown["end_time"], unknown["camera"]) == (None, None, None)


def test_a_failed_video_carries_type_and_message_and_others_null() -> None:
    failed = dataclasses.replace(VIDEO, state="failed", error_type="UnreadableMedia", error_message=None)
    assert VIDEO.to_dict()["error"] is None
    assert failed.to_dict()["error"] == {"type": "UnreadableMedia", "message": ""}


def test_coverage_is_empty_only_without_a_video() -> None:
    assert Coverage(videos=0, hours=0.0).is_empty
    assert not COVERAGE.is_empty


def test_a_notice_is_added_to_a_new_report() -> None:
    noted = REPORT.with_notices(["one"]).with_notices(["two", "three"])
    assert noted.to_dict()["notices"] == ["one", "two", "three"]
    assert REPORT.notices == ()


@pytest.mark.parametrize("result", [row[0] for row in KEYS], ids=lambda value: type(value).__name__)
def test_results_cannot_be_changed(result: Any) -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        setattr(result, dataclasses.fields(result)[0].name, "x")


def test_evidence_is_asked_with_its_padding_and_rate(tmp_path: Path) -> None:
    asked: list[Any] = []

    def thumbnail() -> bytes:
        return b"jpeg"

    def clip(path: Path, pad_s: float) -> Path:
        asked.append((path, pad_s))
        return path

    def frames(fps: float) -> list[Any]:
        asked.append(fps)
        return []

    bound = dataclasses.replace(MOMENT, evidence=Evidence(thumbnail=thumbnail, clip=clip, frames=frames))
    assert bound.thumbnail() == b"jpeg"
    assert bound.clip(str(tmp_path / "a.mp4"), pad_s=1.0) == tmp_path / "a.mp4"
    assert bound.frames(fps=2.0) == []
    assert asked == [(tmp_path / "a.mp4", 1.0), 2.0]
    assert bound == MOMENT  # evidence is a way to reach pictures, not part of the result


def test_a_result_without_its_archive_says_so() -> None:
    for call in (MOMENT.thumbnail, MOMENT.frames, lambda: MOMENT.clip("a.mp4")):
        with pytest.raises(EvidenceUnavailable, match="not bound"):
            call()
