"""``vxl search`` and ``vxl ask``: results as a person reads them, or as JSON."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from jobs.output import Output

if TYPE_CHECKING:
    from pipeline.archive import Archive, SearchQuery
    from pipeline.results import Answer, Coverage, Interval, SearchResult

COVERAGE_GAP = 5
SHOWN_GAPS = 8


def run_search(query: SearchQuery, out: Output, time_zone: str | None) -> int:
    """Search and print; exit code 5 when nothing in the range is indexed."""
    result = query.run()
    if out.as_json:
        out.document(result.to_dict())
    else:
        print_search(result, out, time_zone)
    return COVERAGE_GAP if result.coverage.is_empty else 0


def run_ask(archive: Archive, question: str, out: Output, *, time_zone: str | None, **options: Any) -> int:
    """Ask and print; exit code 5 when nothing in the range is indexed."""
    answer = archive.ask(question, time_zone=time_zone, **options)
    if out.as_json:
        out.document(answer.to_dict())
    else:
        print_answer(answer, out, time_zone)
    return COVERAGE_GAP if answer.coverage.is_empty else 0


def print_search(result: SearchResult, out: Output, time_zone: str | None) -> None:
    """Moments as a table, then coverage and notices."""
    out.text(f"search: {result.query}")
    if result.moments:
        out.table(
            ["#", "score", "camera", "when", "in video", "video"],
            [
                [
                    str(moment.rank),
                    f"{moment.score:.3f}",
                    moment.camera or "-",
                    wall_clock(moment, time_zone),
                    media_time(moment),
                    short_uri(moment.uri),
                ]
                for moment in result.moments
            ],
            right=(0, 1),
        )
    else:
        out.text("no moments")
    print_coverage(result.coverage, out, time_zone)
    out.text(*(f"note: {notice}" for notice in result.notices))


def print_answer(answer: Answer, out: Output, time_zone: str | None) -> None:
    """The answer, its evidence, what it cost and what was not looked at."""
    out.text(f"question: {answer.question}")
    out.text("answer: (none: nothing indexed to answer from)" if answer.abstained else f"answer: {answer.answer}")
    if answer.citations:
        out.text("evidence:")
        out.table(
            ["", "camera", "when", "in video", "KV", "video"],
            [
                [
                    f"[{number}]",
                    citation.camera or "-",
                    wall_clock(citation, time_zone),
                    media_time(citation),
                    citation.level,
                    short_uri(citation.uri),
                ]
                for number, citation in enumerate(answer.citations, start=1)
            ],
        )
    if not answer.abstained:
        timings, context = answer.timings, answer.context
        out.text(
            f"{context.dense_chunks} dense and {context.sparse_chunks} sparse chunks, {context.tokens} tokens, "
            f"{context.kv_bytes_read / 1e6:.1f} MB of KV read; first token after {timings.first_token_s:.2f} s"
        )
    print_coverage(answer.coverage, out, time_zone)
    out.text(*(f"note: {notice}" for notice in answer.notices))


def print_coverage(coverage: Coverage, out: Output, time_zone: str | None) -> None:
    """What was looked at, and what was not: never let a gap read as "nothing happened"."""
    out.text(f"looked at {coverage.videos} videos, {coverage.hours:.2f} hours")
    if not coverage.not_indexed:
        return
    out.text("NOT looked at:")
    for gap in coverage.not_indexed[:SHOWN_GAPS]:
        name = gap["uri"] or (f"camera {gap['camera']}" if gap["camera"] is not None else "any camera")
        start, end = local_time(gap["start_time"], time_zone), local_time(gap["end_time"], time_zone)
        out.text(f"  {name}{f' {start} to {end}' if gap['uri'] is None else ''}: {gap['reason']}")
    if len(coverage.not_indexed) > SHOWN_GAPS:
        out.text(f"  and {len(coverage.not_indexed) - SHOWN_GAPS} more (--json lists all)")


def wall_clock(interval: Interval, time_zone: str | None) -> str:
    """Local date and time of the start, with its offset; says so where the start is unknown."""
    return "(start unknown)" if interval.start_time is None else local_time(interval.start_time, time_zone)


def local_time(moment: datetime | str | None, time_zone: str | None) -> str:
    """A time (ISO 8601 text or datetime, in UTC) in the zone that was asked for; ``...`` for an open end."""
    if moment is None:
        return "..."
    from pipeline.times import parse_time_zone

    parsed = datetime.fromisoformat(moment) if isinstance(moment, str) else moment
    return parsed.astimezone(parse_time_zone(time_zone) or UTC).strftime("%Y-%m-%d %H:%M:%S %Z")


def short_uri(uri: str) -> str:
    """The last three parts of a URI: enough to tell cameras and days apart in a table."""
    parts = uri.rsplit("/", 3)
    return uri if len(parts) < 4 else "…/" + "/".join(parts[1:])


def media_time(interval: Interval) -> str:
    """Start to end in the video."""
    from pipeline.times import format_offset

    return f"{format_offset(interval.start_s)}-{format_offset(interval.end_s)}"
