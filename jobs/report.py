"""One self-contained HTML page about an archive: questions, answers, evidence, events, and what was not searched.

Owns the page and its data classes, which hold plain values only, so that the page can be made and tested without an
archive. Everything that came from outside (names, questions, answers, reasons) is escaped by the template. The page
loads nothing from anywhere and needs no script. ``vxl anomalies --html`` fills ``events`` only.

Times are aware datetimes and are shown in ``ReportData.time_zone``, with UTC as hover text; where a video has no
wall-clock start, media offsets are shown instead.
"""

from __future__ import annotations

import base64
import os
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal
from zoneinfo import ZoneInfo

if TYPE_CHECKING:
    from pipeline.results import Coverage, Interval

MarkKind = Literal["search", "citation", "event"]
Moment = datetime | float
_LANES: tuple[MarkKind, ...] = ("search", "citation", "event")


@dataclass(frozen=True, slots=True, kw_only=True)
class ArchiveSummary:
    """The archive in figures. ``model_notice`` is one sentence about the limits of its model, if any."""

    uri: str = ""
    videos: int = 0
    hours: float = 0.0
    cameras: tuple[str, ...] = ()
    kv_bytes: int = 0
    sparse_bytes: int = 0
    model: str = ""
    model_notice: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Stretch:
    """A stretch of one video with a JPEG picture of it; the wall-clock times are aware or None."""

    uri: str
    title: str
    camera: str | None
    start_s: float
    end_s: float
    start_time: datetime | None = None
    end_time: datetime | None = None
    thumbnail: bytes | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class ReportMoment(Stretch):
    """A search hit."""

    rank: int
    score: float


@dataclass(frozen=True, slots=True, kw_only=True)
class ReportCitation(Stretch):
    """Evidence of an answer; ``level`` is ``dense`` or ``sparse``."""

    level: str


@dataclass(frozen=True, slots=True, kw_only=True)
class ReportEvent(Stretch):
    """Something unusual, how far it is from its camera's normal, and why."""

    score: float
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class ReportSearch:
    """One search and its hits, best first."""

    query: str
    moments: tuple[ReportMoment, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class ReportAnswer:
    """One question. ``timings`` are seconds by phase, ``context`` counts by name; both are shown as they come."""

    question: str
    answer: str
    abstained: bool = False
    citations: tuple[ReportCitation, ...] = ()
    timings: dict[str, float] = field(default_factory=dict)
    context: dict[str, int] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Span:
    """Footage on a timeline, by wall clock (aware) or by media seconds."""

    start: Moment
    end: Moment


@dataclass(frozen=True, slots=True, kw_only=True)
class Mark(Span):
    """A result on a timeline; ``label`` is shown on hover and read aloud."""

    kind: MarkKind
    label: str


@dataclass(frozen=True, slots=True, kw_only=True)
class CameraTimeline:
    """One row of the timeline: all times by wall clock, or all by media seconds."""

    camera: str
    videos: tuple[Span, ...]
    marks: tuple[Mark, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class NotIndexed:
    """Footage that was not searched, and why. ``name`` is its URI; None for a stretch that nothing was recorded in."""

    name: str | None
    reason: str
    camera: str | None = None
    state: str | None = None
    start_time: datetime | None = None
    end_time: datetime | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class ReportCoverage:
    """What was searched, and what was not."""

    videos: int
    hours: float
    not_indexed: tuple[NotIndexed, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class ReportData:
    """Everything on the page; empty sections are left out. ``generated_at`` is aware, ``time_zone`` an IANA name."""

    generated_at: datetime
    title: str = "Archive report"
    time_zone: str = "UTC"
    archive: ArchiveSummary | None = None
    answers: tuple[ReportAnswer, ...] = ()
    searches: tuple[ReportSearch, ...] = ()
    events: tuple[ReportEvent, ...] | None = None
    timeline: tuple[CameraTimeline, ...] = ()
    coverage: ReportCoverage | None = None
    notices: tuple[str, ...] = ()


def stretch_of(result: Interval) -> dict[str, Any]:
    """The fields of ``Stretch`` from a moment, citation or event of the SDK; a lost thumbnail becomes None."""
    from pipeline.errors import ArchiveError

    try:
        thumbnail = result.thumbnail()
    except ArchiveError:
        thumbnail = None
    return {
        "uri": result.uri,
        "title": result.title,
        "camera": result.camera,
        "start_s": result.start_s,
        "end_s": result.end_s,
        "start_time": result.start_time,
        "end_time": result.end_time,
        "thumbnail": thumbnail,
    }


def coverage_of_result(coverage: Coverage) -> ReportCoverage:
    """The report's coverage from the SDK's."""

    def moment(text: str | None) -> datetime | None:
        return None if text is None else datetime.fromisoformat(text)

    missing = tuple(
        NotIndexed(
            name=entry.get("uri"),
            reason=str(entry.get("reason") or "not indexed"),
            camera=entry.get("camera"),
            state=entry.get("state"),
            start_time=moment(entry.get("start_time")),
            end_time=moment(entry.get("end_time")),
        )
        for entry in coverage.not_indexed
    )
    return ReportCoverage(videos=coverage.videos, hours=coverage.hours, not_indexed=missing)


def timelines_of(
    videos: Sequence[tuple[str, Span]], stretches: Sequence[tuple[MarkKind, str, Stretch]]
) -> tuple[CameraTimeline, ...]:
    """Timeline rows from ``(camera or title, span)`` of every video and ``(kind, label, stretch)`` of every result.

    A result goes to the row of its camera (its title where it has none) and is placed by the clock that the row uses.
    """
    spans: dict[str, list[Span]] = {}
    for name, span in videos:
        spans.setdefault(name, []).append(span)
    rows = []
    for name, row_spans in spans.items():
        by_clock = isinstance(row_spans[0].start, datetime)
        marks = []
        for kind, label, stretch in stretches:
            if (stretch.camera or stretch.title) != name:
                continue
            start, end = (stretch.start_time, stretch.end_time) if by_clock else (stretch.start_s, stretch.end_s)
            if start is not None and end is not None:
                marks.append(Mark(start=start, end=end, kind=kind, label=label))
        rows.append(CameraTimeline(camera=name, videos=tuple(row_spans), marks=tuple(marks)))
    return tuple(rows)


def render_report(data: ReportData, path: str | Path) -> Path:
    """Write the page to ``path`` (its folder is made) and give the path back.

    Raises ValueError for a naive time or a timeline row that mixes clocks, ZoneInfoNotFoundError for an unknown zone.
    """
    target = Path(path)
    page = render_html(data)
    target.parent.mkdir(parents=True, exist_ok=True)
    handle, unfinished = tempfile.mkstemp(dir=target.parent, prefix=".report-", suffix=".html")
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            file.write(page)
        Path(unfinished).chmod(0o644)
        Path(unfinished).replace(target)
    except BaseException:
        Path(unfinished).unlink(missing_ok=True)
        raise
    return target


def render_html(data: ReportData) -> str:
    """The page as text."""
    from jinja2 import Environment, PackageLoader, StrictUndefined

    clock = _Clock(ZoneInfo(data.time_zone))
    clock.local(data.generated_at)
    environment = Environment(
        loader=PackageLoader("jobs", "templates"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["bytes"] = format_bytes
    environment.filters["hours"] = format_hours
    environment.filters["offset"] = format_offset
    environment.filters["picture"] = _data_uri
    environment.filters["phase"] = _phase_name
    top_event_score = max((abs(event.score) for event in data.events or ()), default=0.0)
    return environment.get_template("report.html.j2").render(
        data=data,
        clock=clock,
        rows=[_row(timeline, clock) for timeline in data.timeline if timeline.videos],
        lanes=_LANES,
        top_event_score=top_event_score,
    )


# --- words and numbers --------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Clock:
    """Local times of the report's zone."""

    zone: ZoneInfo

    def local(self, moment: datetime) -> datetime:
        if moment.tzinfo is None:
            raise ValueError(f"report times must carry a time zone; {moment.isoformat()} has none")
        return moment.astimezone(self.zone)

    def date(self, moment: datetime) -> str:
        return self.local(moment).strftime("%a %d %b %Y")

    def time(self, moment: datetime) -> str:
        return self.local(moment).strftime("%H:%M:%S")

    def full(self, moment: datetime) -> str:
        local = self.local(moment)
        return f"{local:%Y-%m-%d %H:%M:%S} {local.tzname()}"

    def utc(self, moment: datetime) -> str:
        self.local(moment)
        return f"{moment.astimezone(UTC):%Y-%m-%d %H:%M:%S} UTC"

    def iso(self, moment: datetime) -> str:
        return self.local(moment).isoformat()

    def same_day(self, start: datetime, end: datetime) -> bool:
        return self.local(start).date() == self.local(end).date()


def format_bytes(count: int) -> str:
    """Decimal units with three digits at most: ``1.4 MB``."""
    value = float(count)
    for unit in ("B", "kB", "MB", "GB", "TB"):
        if abs(value) < 1000 or unit == "TB":
            return f"{value:.0f} {unit}" if unit == "B" or abs(value) >= 100 else f"{value:.1f} {unit}"
        value /= 1000
    raise AssertionError("unreachable")


def format_hours(hours: float) -> str:
    """``38 s``, ``12 min``, ``3.5 h``, ``1,240 h``: the unit that a person would use."""
    seconds = hours * 3600
    if seconds < 90:
        return f"{seconds:.0f} s"
    if seconds < 5400:
        return f"{seconds / 60:.1f}".removesuffix(".0") + " min"
    return f"{hours:,.0f} h" if hours >= 100 else f"{hours:.1f} h"


def format_offset(seconds: float) -> str:
    """Media time as ``M:SS`` or ``H:MM:SS``, tenths kept when there are any."""
    tenths = round(seconds * 10)
    whole, tenth = divmod(tenths, 10)
    hours, rest = divmod(whole, 3600)
    minutes, second = divmod(rest, 60)
    text = f"{hours}:{minutes:02d}:{second:02d}" if hours else f"{minutes}:{second:02d}"
    return f"{text}.{tenth}" if tenth else text


def _phase_name(name: str) -> str:
    """``first_token_s`` as ``first token``."""
    return name.removesuffix("_s").replace("_", " ")


def _data_uri(jpeg: bytes) -> str:
    return "data:image/jpeg;base64," + base64.b64encode(jpeg).decode("ascii")


# --- timelines ----------------------------------------------------------------------------------------------------

_WIDTH = 1000.0
_GAP = 16.0
_MIN_MARK = 4.0
_MAX_PIECES = 12
_TICKS = (1, 2, 5, 10, 15, 30, 60, 120, 300, 600, 900, 1800, 3600, 7200, 10800, 21600, 43200, 86400, 172800, 604800)


@dataclass(frozen=True, slots=True)
class _Bar:
    x: float
    width: float
    title: str
    kind: str = ""


@dataclass(frozen=True, slots=True)
class _Tick:
    x: float
    label: str
    anchor: str


@dataclass(frozen=True, slots=True)
class _Row:
    """A timeline row in picture units: ``_WIDTH`` across."""

    camera: str
    days: str
    summary: str
    footage: list[_Bar]
    marks: list[_Bar]
    ticks: list[_Tick]
    breaks: list[float]


class _Axis:
    """Maps time to the picture: long stretches without footage are cut out, so short recordings stay readable."""

    def __init__(self, spans: list[tuple[float, float]]) -> None:
        merged: list[list[float]] = []
        total = spans[-1][1] - spans[0][0]
        for start, end in spans:
            if merged and start - merged[-1][1] <= 0.02 * total:
                merged[-1][1] = max(merged[-1][1], end)
            else:
                merged.append([start, end])
        if len(merged) > _MAX_PIECES:
            merged = [[merged[0][0], merged[-1][1]]]
        covered = sum(end - start for start, end in merged) or 1.0
        usable = _WIDTH - _GAP * (len(merged) - 1)
        self.pieces: list[tuple[float, float, float, float]] = []
        x = 0.0
        for start, end in merged:
            width = usable * (end - start) / covered
            self.pieces.append((start, end, x, width))
            x += width + _GAP

    def __call__(self, t: float) -> float:
        for start, end, x, width in self.pieces:
            if t <= end:
                return x + width * max(0.0, t - start) / max(end - start, 1e-9)
        return _WIDTH

    @property
    def breaks(self) -> list[float]:
        return [x - _GAP / 2 for _, _, x, _ in self.pieces[1:]]


def _row(timeline: CameraTimeline, clock: _Clock) -> _Row:
    by_clock = isinstance(timeline.videos[0].start, datetime)

    def number(moment: Moment) -> float:
        if isinstance(moment, datetime) is not by_clock:
            raise ValueError(f"timeline of {timeline.camera!r} mixes wall-clock times and media offsets")
        return clock.local(moment).timestamp() if isinstance(moment, datetime) else float(moment)

    def words(start: Moment, end: Moment) -> str:
        if isinstance(start, datetime) and isinstance(end, datetime):
            return f"{clock.full(start)} to {clock.full(end)} ({clock.utc(start)})"
        return f"{format_offset(number(start))} to {format_offset(number(end))}"

    ordered = sorted(timeline.videos, key=lambda span: number(span.start))
    axis = _Axis([(number(span.start), max(number(span.end), number(span.start))) for span in ordered])

    def bar(span: Span, title: str, kind: str, at_least: float) -> _Bar:
        left, right = axis(number(span.start)), axis(number(span.end))
        width = max(right - left, at_least)
        return _Bar(round(min(left, _WIDTH - width), 2), round(width, 2), title, kind)

    footage = [bar(span, f"footage {words(span.start, span.end)}", "footage", 1.0) for span in ordered]
    marks = [
        bar(mark, f"{mark.label} · {words(mark.start, mark.end)}", mark.kind, _MIN_MARK) for mark in timeline.marks
    ]
    first, last = ordered[0].start, max((span.end for span in ordered), key=number)
    if isinstance(first, datetime) and isinstance(last, datetime):
        days = clock.date(first) if clock.same_day(first, last) else f"{clock.date(first)} to {clock.date(last)}"
    else:
        days = "media time"
    counts = {kind: sum(mark.kind == kind for mark in timeline.marks) for kind in _LANES}
    plural = {"search": "search hits", "citation": "citations", "event": "events"}
    listed = ", ".join(f"{count} {plural[kind] if count != 1 else plural[kind][:-1]}" for kind, count in counts.items())
    summary = f"{timeline.camera}: {len(ordered)} {'video' if len(ordered) == 1 else 'videos'}, {listed}"
    return _Row(timeline.camera, days, summary, footage, marks, _ticks(axis, clock if by_clock else None), axis.breaks)


def _ticks(axis: _Axis, clock: _Clock | None) -> list[_Tick]:
    """Round times along the axis, and both ends of every piece that is wide enough to write them."""
    covered = sum(end - start for start, end, _, _ in axis.pieces)
    step = next((tick for tick in _TICKS if covered / tick <= 8), _TICKS[-1])
    ticks: list[_Tick] = []
    for start, end, x, width in axis.pieces:
        shift = datetime.fromtimestamp(start, clock.zone).utcoffset() if clock else None
        offset = shift.total_seconds() if shift else 0.0
        moment = -(-(start + offset) // step) * step - offset
        while moment <= end + 1e-6:
            place = x + width * (moment - start) / max(end - start, 1e-9)
            is_first_of_piece = moment - step < start
            if ticks and is_first_of_piece and place - ticks[-1].x <= 70:
                ticks.pop()  # where a piece begins matters more than where the one before it ended
            if not ticks or place - ticks[-1].x > 70:
                anchor = "start" if place < 30 else "end" if place > _WIDTH - 30 else "middle"
                ticks.append(_Tick(round(place, 2), _tick_label(moment, step, clock), anchor))
            moment += step
    return ticks


def _tick_label(moment: float, step: int, clock: _Clock | None) -> str:
    if clock is None:
        return format_offset(moment)
    local = datetime.fromtimestamp(moment, clock.zone)
    if step >= 86400:
        return local.strftime("%d %b")
    return local.strftime("%H:%M" if step >= 60 else "%H:%M:%S")
