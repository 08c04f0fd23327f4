"""The report page: escapes strangers' words, loads nothing, says what was not searched, and reads by local time."""

from __future__ import annotations

import io
import re
from datetime import UTC, datetime, timedelta
from html.parser import HTMLParser
from pathlib import Path

import pytest
from PIL import Image

from jobs.report import (
    ArchiveSummary,
    CameraTimeline,
    Mark,
    NotIndexed,
    ReportAnswer,
    ReportCitation,
    ReportCoverage,
    ReportData,
    ReportEvent,
    ReportMoment,
    ReportSearch,
    Span,
    coverage_of_result,
    format_bytes,
    format_hours,
    format_offset,
    render_html,
    render_report,
    stretch_of,
    timelines_of,
)

NOW = datetime(2026, 3, 2, 7, 0, tzinfo=UTC)
START = datetime(2026, 3, 1, 23, 30, tzinfo=UTC)  # 00:30 of the next day in Berlin
NASTY = "<script>alert(\"x\")</script>' onerror='y' & {{ 7*7 }}\nsecond line"


def jpeg() -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (32, 18), (200, 30, 30)).save(buffer, "JPEG")
    return buffer.getvalue()


def citation(**changes: object) -> ReportCitation:
    fields: dict[str, object] = {
        "uri": "s3://cams/gate/a.mp4",
        "title": "a",
        "camera": "gate",
        "start_s": 24.0,
        "end_s": 48.0,
        "start_time": START,
        "end_time": START + timedelta(seconds=24),
        "thumbnail": jpeg(),
        "level": "dense",
    }
    return ReportCitation(**{**fields, **changes})  # type: ignore[arg-type]


class Page(HTMLParser):
    """Collects tags, attributes and visible text; fails on unbalanced tags."""

    VOID = frozenset({"meta", "img", "br", "link"})

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.words: list[str] = []
        self._open: list[str] = []
        self.feed(text)
        self.close()
        assert self._open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in self.VOID:
            self._open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self._open.pop() == tag

    def handle_data(self, data: str) -> None:
        if not self._open or self._open[-1] != "style":
            self.words.append(data)

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.words).split())

    def count(self, tag: str) -> int:
        return sum(name == tag for name, _ in self.tags)


def full_report() -> ReportData:
    answer = ReportAnswer(
        question="What colour is the car?",
        answer="Red.",
        citations=(citation(), citation(level="sparse", thumbnail=None)),
        timings={"first_token_s": 0.118},
        context={"dense_chunks": 2, "kv_bytes_read": 1_840_000},
    )
    film = ReportMoment(
        uri="file:///films/n.mkv", title="Night train", camera=None, start_s=3661.5, end_s=3670.0, rank=1, score=0.5
    )
    event = ReportEvent(
        uri="s3://cams/gate/a.mp4", title="a", camera="gate", start_s=3, end_s=9, score=8.4, reason="Fast movement"
    )
    return ReportData(
        generated_at=NOW,
        time_zone="Europe/Berlin",
        archive=ArchiveSummary(
            uri="/data/archive",
            videos=3,
            hours=0.05,
            cameras=("gate",),
            kv_bytes=48_300_000,
            model_notice="random weights",
        ),
        answers=(answer, ReportAnswer(question="Who opened the safe?", answer="", abstained=True)),
        searches=(ReportSearch(query="red car", moments=(film,)), ReportSearch(query="a lion")),
        events=(event,),
        timeline=timelines_of(
            [
                ("gate", Span(start=START, end=START + timedelta(seconds=60))),
                ("Night train", Span(start=0.0, end=5400.0)),
            ],
            [("citation", "evidence: car", citation()), ("search", "search: red car", film), ("event", "odd", event)],
        ),
        coverage=ReportCoverage(
            videos=3,
            hours=0.05,
            not_indexed=(NotIndexed(name="s3://cams/gate/bad.mp4", reason="cut off", state="failed"),),
        ),
        notices=("A newer version of one video is waiting.",),
    )


def test_page_says_everything_that_was_given() -> None:
    page = Page(render_html(full_report()))
    for words in (
        "What colour is the car?",
        "Red.",
        "Mon 02 Mar 2026,",
        "00:30:00",
        "1:01:01.5",
        "Night train",
        "No answer: nothing that was indexed could support one.",
        "Nothing found in the footage that was searched.",
        "Fast movement",
        "random weights",
        "A newer version of one video is waiting.",
        "Not searched: 1.",
        "s3://cams/gate/bad.mp4",
        "failed : cut off",
        "48.3 MB",
        "1.8 MB",
    ):
        assert words in page.text, words


def test_times_are_local_with_utc_on_hover() -> None:
    page = Page(render_html(full_report()))
    hovers = {attributes.get("title") for tag, attributes in page.tags if tag == "time"}
    assert "2026-03-01 23:30:00 UTC" in hovers
    machine = {attributes.get("datetime") for tag, attributes in page.tags if tag == "time"}
    assert "2026-03-02T00:30:00+01:00" in machine


def test_page_loads_nothing_and_runs_nothing() -> None:
    text = render_html(full_report())
    page = Page(text)
    assert not {"script", "link", "iframe", "object", "embed", "base", "form"} & {tag for tag, _ in page.tags}
    for tag, attributes in page.tags:
        for name, value in attributes.items():
            assert not name.startswith("on"), f"{tag} has {name}"
            if name in ("src", "href", "xlink:href", "action", "poster", "srcset"):
                assert value is not None and (value.startswith("data:image/jpeg;base64,") or value.startswith("#"))
    assert not re.search(r"url\(|@import", text)


def test_page_is_accessible() -> None:
    page = Page(render_html(full_report()))
    images = [attributes for tag, attributes in page.tags if tag == "img"]
    assert len(images) == 1 and images[0]["alt"] == "Evidence: gate at 2026-03-02 00:30:00 CET"
    assert page.count("h1") == 1 and page.count("h2") == 5
    assert ("html", {"lang": "en"}) in page.tags
    pictures = [attributes for tag, attributes in page.tags if tag == "svg" and "aria-hidden" not in attributes]
    assert [svg["aria-label"] for svg in pictures] == [
        "gate: 1 video, 0 search hits, 1 citation, 0 events",
        "Night train: 1 video, 1 search hit, 0 citations, 0 events",
    ]


def test_strangers_words_stay_words() -> None:
    """Camera names, object keys, questions and answers come from outside: none may become markup."""
    hostile = citation(camera=NASTY, uri=NASTY, title=NASTY, level=NASTY)
    moment = ReportMoment(uri=NASTY, title=NASTY, camera=NASTY, start_s=0, end_s=1, thumbnail=jpeg(), rank=1, score=0.1)
    event = ReportEvent(uri=NASTY, title=NASTY, camera=None, start_s=0, end_s=1, score=1, reason=NASTY)
    data = ReportData(
        generated_at=NOW,
        title=NASTY,
        archive=ArchiveSummary(uri=NASTY, model=NASTY, model_notice=NASTY),
        answers=(
            ReportAnswer(question=NASTY, answer=NASTY, citations=(hostile,), timings={NASTY: 1.0}, context={NASTY: 1}),
        ),
        searches=(ReportSearch(query=NASTY, moments=(moment,)),),
        events=(event,),
        timeline=(
            CameraTimeline(
                camera=NASTY,
                videos=(Span(start=0.0, end=9.0),),
                marks=(Mark(start=1.0, end=2.0, kind="search", label=NASTY),),
            ),
        ),
        coverage=ReportCoverage(
            videos=1, hours=1, not_indexed=(NotIndexed(name=NASTY, reason=NASTY, camera=NASTY, state=NASTY),)
        ),
        notices=(NASTY,),
    )
    page = Page(render_html(data))
    assert page.count("script") == 0
    assert not any(name.startswith("on") for _, attributes in page.tags for name in attributes)
    assert page.text.count('<script>alert("x")</script>') >= 15, "shown as text everywhere"
    assert "{{ 7*7 }}" in page.text


def test_events_alone_make_a_page(tmp_path: Path) -> None:
    target = render_report(
        ReportData(generated_at=NOW, title="Unusual events", events=()), tmp_path / "new" / "page.html"
    )
    page = Page(target.read_text(encoding="utf-8"))
    assert page.count("h2") == 1
    assert "Nothing unusual in the footage that was searched." in page.text
    assert [path.name for path in target.parent.iterdir()] == ["page.html"]


def test_unsupported_answer_is_called_so() -> None:
    data = ReportData(generated_at=NOW, answers=(ReportAnswer(question="q", answer="a"),))
    assert "treat this answer as unsupported" in Page(render_html(data)).text


def test_naive_times_and_mixed_clocks_are_refused(tmp_path: Path) -> None:
    naive = START.replace(tzinfo=None)
    with pytest.raises(ValueError, match="time zone"):
        render_html(ReportData(generated_at=naive))
    with pytest.raises(ValueError, match="time zone"):
        render_html(
            ReportData(
                generated_at=NOW,
                answers=(ReportAnswer(question="q", answer="a", citations=(citation(start_time=naive),)),),
            )
        )
    mixed = CameraTimeline(camera="gate", videos=(Span(start=START, end=START), Span(start=0.0, end=1.0)))
    with pytest.raises(ValueError, match="mixes"):
        render_report(ReportData(generated_at=NOW, timeline=(mixed,)), tmp_path / "page.html")
    assert list(tmp_path.iterdir()) == [], "a failed report leaves nothing behind"


def bars(text: str, fill: str) -> list[tuple[float, float]]:
    pattern = rf'<rect x="([\d.]+)" y="[\d.]+" width="([\d.]+)"[^>]*fill="var\(--{fill}\)"'
    return [(float(x), float(width)) for x, width in re.findall(pattern, text)]


def test_timeline_cuts_out_time_without_footage_and_keeps_order() -> None:
    """Two one-minute files half a day apart must not shrink to invisible slivers."""
    later = START + timedelta(hours=12)
    minute = timedelta(seconds=60)
    timeline = CameraTimeline(
        camera="gate",
        videos=(Span(start=later, end=later + minute), Span(start=START, end=START + minute)),
        marks=(
            Mark(start=START + minute / 2, end=START + minute, kind="search", label="first"),
            Mark(start=later, end=later + timedelta(milliseconds=1), kind="event", label="second"),
        ),
    )
    text = render_html(ReportData(generated_at=NOW, timeline=(timeline,)))
    (left, left_width), (right, right_width) = bars(text, "footage")
    assert left == 0 and left_width > 450 and right > left + left_width and right + right_width == pytest.approx(1000)
    ((x, width),) = bars(text, "search")
    assert x == pytest.approx(left_width / 2) and width == pytest.approx(left_width / 2)
    ((x, width),) = bars(text, "event")
    assert x == pytest.approx(right) and width >= 4, "a short event is still visible"


def test_marks_stay_inside_a_long_timeline() -> None:
    days = tuple(Span(start=START + timedelta(days=day), end=START + timedelta(days=day, hours=1)) for day in range(40))
    end = days[-1].end
    assert isinstance(end, datetime)
    mark = Mark(start=end - timedelta(seconds=1), end=end, kind="citation", label="last")
    text = render_html(
        ReportData(generated_at=NOW, timeline=(CameraTimeline(camera="gate", videos=days, marks=(mark,)),))
    )
    ((x, width),) = bars(text, "citation")
    assert 990 < x < x + width <= 1000


def test_results_of_the_sdk_convert() -> None:
    from pipeline.results import Coverage, Moment

    moment = Moment(
        video_id="v",
        uri="u",
        title="t",
        camera="gate",
        start_s=1,
        end_s=2,
        start_time=START,
        end_time=None,
        rank=1,
        score=1,
    )
    assert stretch_of(moment)["thumbnail"] is None, "a result that lost its archive has no picture"
    entry = {
        "uri": None,
        "camera": "gate",
        "state": None,
        "start_time": START.isoformat(),
        "end_time": None,
        "reason": "gap",
    }
    coverage = coverage_of_result(Coverage(videos=1, hours=0.5, not_indexed=(entry,)))
    assert coverage.not_indexed == (NotIndexed(name=None, reason="gap", camera="gate", start_time=START),)


@pytest.mark.parametrize(
    ("value", "text"),
    [(0, "0 B"), (999, "999 B"), (1500, "1.5 kB"), (48_300_000, "48.3 MB"), (7_800_000_000_000, "7.8 TB")],
)
def test_bytes_in_words(value: int, text: str) -> None:
    assert format_bytes(value) == text


@pytest.mark.parametrize(("hours", "text"), [(0.01, "36 s"), (0.05, "3 min"), (3.46, "3.5 h"), (1240, "1,240 h")])
def test_hours_in_words(hours: float, text: str) -> None:
    assert format_hours(hours) == text


@pytest.mark.parametrize(("seconds", "text"), [(0, "0:00"), (59.96, "1:00"), (83.5, "1:23.5"), (3661, "1:01:01")])
def test_offsets_in_words(seconds: float, text: str) -> None:
    assert format_offset(seconds) == text
