"""Key patterns: what is understood, what is refused, and that no key can upset them."""

from __future__ import annotations

import re
from datetime import UTC, datetime, timedelta
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.errors import ConfigError
from pipeline.keypattern import KeyFacts, KeyPattern

BERLIN = ZoneInfo("Europe/Berlin")
AT_EIGHT = datetime(2026, 3, 1, 8, 0, tzinfo=UTC)


@pytest.mark.parametrize(
    ("pattern", "key", "camera", "title", "start"),
    [
        ("{camera}/%Y-%m-%d/%H%M%S.mp4", "gate/2026-03-01/080000.mp4", "gate", None, AT_EIGHT),
        ("{camera}/%Y-%m-%d/%H%M%S.mp4", "site/7/gate/2026-03-01/080000.mp4", "gate", None, AT_EIGHT),
        ("{camera}_{start:%Y%m%dT%H%M%z}.mp4", "cam_3_20260301T0900+0100.mp4", "cam_3", None, AT_EIGHT),
        ("{camera}/%s.ts", "gate/1772352000.ts", "gate", None, AT_EIGHT),
        ("%Y/%m/%d/{camera}-%Y%m%d-%H.mkv", "2026/03/01/gate-20260301-08.mkv", "gate", None, AT_EIGHT),
        ("{camera}-%y%b%d-%H%M%S.%f.mp4", "x-26Mar01-080000.5.mp4", "x", None, AT_EIGHT + timedelta(seconds=0.5)),
        ("%Y-%j/%H-%M_*.avi", "2026-060/08-00_final cut.avi", None, None, AT_EIGHT),
        ("**/{title}.mkv", "a/b/clip 7.mkv", None, "clip 7", None),
        ("**/{title}.mkv", "clip 7.mkv", None, "clip 7", None),
        ("{camera}/{*}/{title}.mp4", "north/x/100%%.mp4", "north", "100%%", None),
        ("{{{camera}}}%%.mp4", "{a}%.mp4", "a", None, None),
        (r"(?P<camera>c\d+)-(?P<title>[a-z]+)\.mp4", "d/c12-door.mp4", "c12", "door", None),
        (r"(?P<camera>\w+)/(?P<start>[-0-9T:+Z]+)\.mp4", "g/2026-03-01T08:00:00Z.mp4", "g", None, AT_EIGHT),
        (
            r"(?P<year>\d{4})(?P<month>\d\d)(?P<day>\d\d)_(?P<hour>\d\d)(?P<minute>\d\d)(?P<second>\d\d)\.mp4",
            *("20260301_080000.mp4", None, None, AT_EIGHT),
        ),
    ],
)
def test_matches(pattern: str, key: str, camera: str | None, title: str | None, start: datetime | None) -> None:
    assert KeyPattern.parse(pattern, ZoneInfo("UTC")).match(key) == KeyFacts(camera, title, start, True)


@pytest.mark.parametrize(
    ("pattern", "key"),
    [
        ("{camera}/%Y-%m-%d/%H%M%S.mp4", "gate/2026-03-01/080000.mkv"),
        ("{camera}/%Y-%m-%d/%H%M%S.mp4", "gate/2026-02-30/080000.mp4"),
        ("{camera}/%Y-%m-%d/%H%M%S.mp4", "gate/2026-03-01/250000.mp4"),
        ("{camera}/%Y-%m-%d/%H%M%S.mp4", "gate/٢٠٢٦-03-01/080000.mp4"),
        ("%Y/%Y%m%d%H.mp4", "2025/2026030108.mp4"),
        ("%Y-%j-%H.mp4", "2026-366-08.mp4"),
        ("%Y-%j-%H.mp4", "2026-000-08.mp4"),
        ("{camera}/x.mp4", "/x.mp4"),
        ("a.mp4", "ba.mp4"),
        ("a.b", "axb"),
    ],
)
def test_does_not_match(pattern: str, key: str) -> None:
    assert KeyPattern.parse(pattern, ZoneInfo("UTC")).match(key) == KeyFacts()


@pytest.mark.parametrize(
    ("pattern", "message"),
    [
        ("{camera}/%Y%m%d%H.mp4", "--time-zone"),
        (r"(?P<year>\d+)-(?P<month>\d+)-(?P<day>\d+)-(?P<hour>\d+)", "--time-zone"),
        ("%H%M%S.mp4", "whole date"),
        ("%Y-%m-%d.mp4", "time of day"),
        ("{kamera}/x.mp4", "'{kamera}' is not known"),
        ("{camera", "'{' is not known"),
        ("%Q.mp4", "'%Q' is not known"),
        ("(?P<camera>[", "not a regular expression"),
        ("100%", "not known"),
    ],
)
def test_refused(pattern: str, message: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(message)):
        KeyPattern.parse(pattern)


def test_an_iso_time_without_an_offset_needs_a_zone() -> None:
    pattern = r"(?P<start>.+)\.mp4"
    with pytest.raises(ConfigError, match="--time-zone"):
        KeyPattern.parse(pattern).match("2026-03-01T08:00:00.mp4")
    assert KeyPattern.parse(pattern, BERLIN).match("2026-03-01T09:00:00.mp4").start_time == AT_EIGHT


@pytest.mark.parametrize(
    ("local", "utc"),
    [
        ("20261025_0230", datetime(2026, 10, 25, 0, 30, tzinfo=UTC)),  # occurs twice: the first
        ("20260329_0230", datetime(2026, 3, 29, 1, 30, tzinfo=UTC)),  # skipped: the offset before the change
        ("20260701_1200", datetime(2026, 7, 1, 10, 0, tzinfo=UTC)),
    ],
)
def test_daylight_saving(local: str, utc: datetime) -> None:
    assert KeyPattern.parse("%Y%m%d_%H%M.mp4", BERLIN).match(f"{local}.mp4").start_time == utc


names = st.text(st.characters(exclude_characters="/", exclude_categories=["Cs"]), min_size=1, max_size=20)


@given(camera=names, title=names, start=st.datetimes(datetime(1971, 1, 1), datetime(2099, 1, 1)))
def test_what_is_written_into_a_key_is_read_back(camera: str, title: str, start: datetime) -> None:
    start = start.replace(microsecond=0)
    key = f"{camera}/{start:%Y-%m-%d}/{start:%H%M%S}/{title}.mp4"
    facts = KeyPattern.parse("{camera}/%Y-%m-%d/%H%M%S/{title}.mp4", ZoneInfo("UTC")).match(key)
    assert facts == KeyFacts(camera, title, start.replace(tzinfo=UTC), True)
    with_prefix = KeyPattern.parse("{camera}/{start:%Y-%m-%d/%H%M%S}/*", ZoneInfo("UTC")).match("../a b/" + key)
    assert (with_prefix.camera, with_prefix.start_time) == (camera, start.replace(tzinfo=UTC))


@given(key=st.text(max_size=200))
def test_no_key_upsets_a_pattern(key: str) -> None:
    for pattern in ("{camera}/%Y-%m-%d/%H%M%S.mp4", "**/{title}*{camera}_%s*", "**", r"(?P<camera>.*)(?P<start>.{20})"):
        facts = KeyPattern.parse(pattern, BERLIN).match(key)
        assert facts.start_time is None or facts.start_time.tzinfo is UTC


@given(pattern=st.text(st.sampled_from("{}%*/.aYmdHMScamertil:s(?P<>[]\\"), max_size=30))
def test_a_pattern_is_understood_or_refused(pattern: str) -> None:
    try:
        KeyPattern.parse(pattern, BERLIN).match("gate/2026-03-01/080000.mp4")
    except ConfigError as refusal:
        assert "\n" not in str(refusal)
