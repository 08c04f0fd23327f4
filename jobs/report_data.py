"""From results of the SDK to the report page's plain values."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING

from jobs.report import (
    ArchiveSummary,
    MarkKind,
    ReportAnswer,
    ReportCitation,
    ReportData,
    ReportEvent,
    ReportMoment,
    ReportSearch,
    Span,
    Stretch,
    coverage_of_result,
    render_report,
    stretch_of,
    timelines_of,
)

if TYPE_CHECKING:
    from pipeline.archive import Archive
    from pipeline.results import AnomalyResult, Answer, SearchResult


def write_report(
    archive: Archive,
    path: Path,
    *,
    searches: Sequence[SearchResult] = (),
    answers: Sequence[Answer] = (),
    anomalies: AnomalyResult | None = None,
    time_zone: str | None = None,
    title: str = "Archive report",
) -> Path:
    """Write one page with the given results, a timeline of every camera, and what was not indexed."""
    report_searches = tuple(
        ReportSearch(
            query=search.query,
            moments=tuple(
                ReportMoment(rank=moment.rank, score=moment.score, **stretch_of(moment)) for moment in search.moments
            ),
        )
        for search in searches
    )
    report_answers = tuple(
        ReportAnswer(
            question=answer.question,
            answer=answer.answer,
            abstained=answer.abstained,
            citations=tuple(ReportCitation(level=item.level, **stretch_of(item)) for item in answer.citations),
            timings=answer.timings.to_dict(),
            context=answer.context.to_dict(),
        )
        for answer in answers
    )
    events = None
    if anomalies is not None:
        events = tuple(
            ReportEvent(score=event.score, reason=event.reason, **stretch_of(event)) for event in anomalies.events
        )
    stretches: list[tuple[MarkKind, str, Stretch]] = []
    for search in report_searches:
        stretches += [("search", f"#{moment.rank} for: {search.query}", moment) for moment in search.moments]
    for answer in report_answers:
        stretches += [("citation", f"evidence for: {answer.question}", citation) for citation in answer.citations]
    stretches += [("event", event.reason, event) for event in events or ()]
    results: list[SearchResult | Answer | AnomalyResult] = [
        *searches,
        *answers,
        *([anomalies] if anomalies is not None else []),
    ]
    widest = max((result.coverage for result in results), key=lambda coverage: coverage.hours, default=None)
    status = archive.status()
    data = ReportData(
        generated_at=datetime.now(UTC),
        title=title,
        time_zone=time_zone or "UTC",
        archive=ArchiveSummary(
            uri=status["archive"],
            videos=status["videos"],
            hours=status["hours"],
            cameras=tuple(status["cameras"]),
            kv_bytes=status["kv_bytes"],
            sparse_bytes=status["sparse_bytes"],
            model=status["model"],
            model_notice=next(iter(status["notices"]), None),
        ),
        answers=report_answers,
        searches=report_searches,
        events=events,
        timeline=timelines_of(_spans(archive), stretches),
        coverage=None if widest is None else coverage_of_result(widest),
    )
    return render_report(data, path)


def _spans(archive: Archive) -> list[tuple[str, Span]]:
    """Camera (or title) and footage of every video that can be asked."""
    spans = []
    for row in archive.videos():
        if row["state"] != "indexed" or row["superseded_by"] is not None or row["duration_s"] is None:
            continue
        name = row["camera"] or row["title"]
        if row["start_time"] is None:
            spans.append((name, Span(start=0.0, end=row["duration_s"])))
        else:
            start = datetime.fromisoformat(row["start_time"])
            spans.append((name, Span(start=start, end=start + timedelta(seconds=row["duration_s"]))))
    return spans
