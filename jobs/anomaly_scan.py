"""``vxl anomalies``: events as a table, JSON, or a report page."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from jobs.output import Output
from jobs.query import COVERAGE_GAP, media_time, print_coverage, short_uri, wall_clock

if TYPE_CHECKING:
    from pipeline.archive import Archive
    from pipeline.results import AnomalyResult


def run(archive: Archive, out: Output, *, html: str | None, time_zone: str | None, **options: Any) -> int:
    """Scan and print; exit code 5 when nothing in the range is indexed."""
    result = archive.anomalies(time_zone=time_zone, **options)
    if html is not None:
        from jobs.report_data import write_report

        write_report(archive, Path(html), anomalies=result, time_zone=time_zone)
    if out.as_json:
        out.document(result.to_dict())
    else:
        print_events(result, out, time_zone)
        if html is not None:
            out.text(f"report: {html}")
    return COVERAGE_GAP if result.coverage.is_empty else 0


def print_events(result: AnomalyResult, out: Output, time_zone: str | None) -> None:
    """Events by score, then coverage."""
    if result.events:
        out.table(
            ["score", "camera", "when", "in video", "why", "video"],
            [
                [
                    f"{event.score:.1f}",
                    event.camera or "-",
                    wall_clock(event, time_zone),
                    media_time(event),
                    event.reason,
                    short_uri(event.uri),
                ]
                for event in result.events
            ],
            right=(0,),
        )
    else:
        out.text(f"nothing unusual above {result.threshold:.1f} sigma")
    print_coverage(result.coverage, out, time_zone)
    out.text(*(f"note: {notice}" for notice in result.notices))
