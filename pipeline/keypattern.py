"""What a key says about its video: camera, title and start time, by a pattern that the user gives.

    gate/2026-03-01/080000.mp4      {camera}/%Y-%m-%d/%H%M%S.mp4
    north/a/clip 7.mkv              **/{title}.mkv
    cam3_20260301T0800Z.mp4         {camera}_{start:%Y%m%dT%H%M%z}.mp4

- ``{camera}``, ``{title}``: some text without ``/``, the shortest that fits. ``*`` or ``{*}``: any text without ``/``.
  ``**``: any text, ``/`` included; ``**/`` also stands for nothing. ``{{ }} %%`` are the characters themselves.
- Time: ``%Y %y %m %b %d %j %H %M %S %f %z %s``, inline or inside ``{start:...}``. One that stands twice must agree with
  itself. A date needs at least ``%H``, and a time needs a date: half a time would have to be made up.
- A pattern with ``(?P<`` in it is a regular expression with groups ``camera``, ``title`` and either ``start`` (ISO
  8601) or ``year month day hour`` and optionally ``minute second``.

A pattern must fit the whole key, or a whole tail of it that begins after a ``/``; the longest that fits counts. Where
clocks are set back, a time that occurs twice is the first; where they are set forward, a time that is skipped is read
by the offset before the change. An impossible date (30 February) is no match.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta, timezone
from zoneinfo import ZoneInfo

from pipeline.errors import ConfigError

_MONTHS = ("jan", "feb", "mar", "apr", "may", "jun", "jul", "aug", "sep", "oct", "nov", "dec")
_DIRECTIVES = {
    "Y": "[0-9]{4}",
    "y": "[0-9]{2}",
    "m": "0[1-9]|1[0-2]",
    "b": "(?i:" + "|".join(_MONTHS) + ")",
    "d": "0[1-9]|[12][0-9]|3[01]",
    "j": "[0-3][0-9]{2}",
    "H": "[01][0-9]|2[0-3]",
    "M": "[0-5][0-9]",
    "S": "[0-5][0-9]",
    "f": "[0-9]{1,6}",
    "z": "Z|[+-][0-9]{2}:?[0-5][0-9]",
    "s": "[0-9]{1,11}",
}
_REGEX_TIMES = {"year": "Y", "month": "m", "day": "d", "hour": "H", "minute": "M", "second": "S"}
_TOKEN = re.compile(r"\{\{|\}\}|\{[^{}]*\}|\*\*/|\*\*|\*|%.|.", re.DOTALL)
_MAX_KEY_CHARACTERS = 4096


@dataclass(frozen=True)
class KeyFacts:
    """What a key told; what it did not tell is None."""

    camera: str | None = None
    title: str | None = None
    start_time: datetime | None = None
    """Aware, UTC."""
    is_match: bool = False
    """The pattern fitted the key."""


@dataclass(frozen=True)
class KeyPattern:
    """A parsed pattern."""

    text: str
    time_zone: ZoneInfo | None
    _expression: re.Pattern[str]

    @classmethod
    def parse(cls, pattern: str, time_zone: ZoneInfo | None = None) -> KeyPattern:
        """Read a pattern. ``time_zone`` is where times without an offset were taken.

        Raises:
            ConfigError: the pattern is malformed, gives half a time, or gives times without an offset and no time zone.
        """
        is_regex = "(?P<" in pattern
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", FutureWarning)
                expression = re.compile(pattern if is_regex else _expression(pattern), re.DOTALL)
        except (re.error, OverflowError, RecursionError) as exc:
            raise ConfigError(f"key pattern {pattern!r} is not a regular expression: {exc}") from exc
        _check_times(pattern, is_regex, set(expression.groupindex), time_zone)
        return cls(pattern, time_zone, expression)

    def match(self, key: str) -> KeyFacts:
        """What ``key`` says; ``KeyFacts()`` where the pattern does not fit.

        Raises:
            ConfigError: a ``start`` group of a regular expression matched a time without an offset and no time zone is
            set.
        """
        for tail in _tails(key):
            found = self._expression.fullmatch(tail)
            if found is None:
                continue
            parts = {name: text for name, text in found.groupdict().items() if text is not None}
            try:
                start_time = self._start_time(parts, key)
            except (ValueError, OverflowError):
                continue
            return KeyFacts(parts.get("camera") or None, parts.get("title") or None, start_time, True)
        return KeyFacts()

    def _start_time(self, parts: Mapping[str, str], key: str) -> datetime | None:
        if "start" in parts:
            moment = datetime.fromisoformat(parts["start"])
        else:
            directives = {_REGEX_TIMES.get(name, name.removeprefix("t_")): text for name, text in parts.items()}
            found = _moment(directives)
            if found is None:
                return None
            moment = found
        if moment.tzinfo is None:
            if self.time_zone is None:
                raise ConfigError(f"the time in key {key!r} has no offset: give --time-zone")
            moment = moment.replace(tzinfo=self.time_zone, fold=0)
        return moment.astimezone(UTC)


def _tails(key: str) -> Iterator[str]:
    """The key, then its tails after each ``/``, longest first."""
    key = key[-_MAX_KEY_CHARACTERS:]
    yield key
    for at, character in enumerate(key):
        if character == "/":
            yield key[at + 1 :]


def _expression(pattern: str) -> str:
    seen: set[str] = set()
    return "".join(_token(token, pattern, seen) for token in _TOKEN.findall(pattern))


def _token(token: str, pattern: str, seen: set[str]) -> str:
    wildcards = {"**/": "(?:.*/)?", "**": ".*", "*": "[^/]*", "{*}": "[^/]*", "{{": r"\{", "}}": r"\}"}
    if token in wildcards:
        return wildcards[token]
    if token in ("{camera}", "{title}"):
        return _once(token[1:-1], "[^/]+?", seen)
    if token.startswith("{start:"):
        return "".join(_token(inner, pattern, seen) for inner in _TOKEN.findall(token[len("{start:") : -1]))
    if token.startswith("%"):
        return _directive(token, pattern, seen)
    if token[0] in "{}":
        raise ConfigError(
            f"key pattern {pattern!r}: {token!r} is not known; use {{camera}}, {{title}}, {{start:...}}, {{*}}, * or **"
        )
    return re.escape(token)


def _directive(token: str, pattern: str, seen: set[str]) -> str:
    if token == "%%":
        return "%"
    if token[1:] not in _DIRECTIVES:
        known = " ".join("%" + name for name in _DIRECTIVES)
        raise ConfigError(f"key pattern {pattern!r}: {token!r} is not known; the time directives are {known}")
    return _once(f"t_{token[1:]}", _DIRECTIVES[token[1:]], seen)


def _once(name: str, expression: str, seen: set[str]) -> str:
    """A group the first time; later the same text again."""
    if name in seen:
        return f"(?P={name})"
    seen.add(name)
    return f"(?P<{name}>{expression})"


def _check_times(pattern: str, is_regex: bool, groups: set[str], time_zone: ZoneInfo | None) -> None:
    if is_regex:
        given = {_REGEX_TIMES[name] for name in groups if name in _REGEX_TIMES}
    else:
        given = {name.removeprefix("t_") for name in groups if name.startswith("t_")}
    if not given or "s" in given:
        return
    has_date = bool(given & {"Y", "y"}) and ("j" in given or bool("d" in given and given & {"m", "b"}))
    if not has_date:
        raise ConfigError(f"key pattern {pattern!r} gives a time without a whole date (year, month, day)")
    if "H" not in given:
        raise ConfigError(
            f"key pattern {pattern!r} gives a date without a time of day: add %H, or write * for the date"
        )
    if "z" not in given and time_zone is None:
        raise ConfigError(f"key pattern {pattern!r} gives times without an offset: give --time-zone")


def _moment(parts: Mapping[str, str]) -> datetime | None:
    """The time that directives name, naive where none gives an offset; None without any.

    Raises:
        ValueError: no such date.
    """
    fraction = timedelta(microseconds=int(parts["f"].ljust(6, "0"))) if "f" in parts else timedelta()
    if "s" in parts:
        return datetime.fromtimestamp(int(parts["s"]), UTC) + fraction
    if "H" not in parts:
        return None
    year_text = parts["Y"] if "Y" in parts else parts["y"]
    year = int(year_text)
    if len(year_text) == 2:
        year += 2000 if year < 69 else 1900
    clock = (int(parts["H"]), int(parts.get("M", 0)), int(parts.get("S", 0)))
    if "j" in parts:
        moment = datetime(year, 1, 1, *clock) + timedelta(days=int(parts["j"]) - 1)
        if moment.year != year or parts["j"] == "000":
            raise ValueError(f"year {year} has no day {parts['j']}")
    else:
        month = int(parts["m"]) if "m" in parts else _MONTHS.index(parts["b"].lower()) + 1
        moment = datetime(year, month, int(parts["d"]), *clock)
    return (moment + fraction).replace(tzinfo=_offset(parts["z"]) if "z" in parts else None)


def _offset(text: str) -> timezone:
    if text == "Z":
        return UTC
    hours, minutes = int(text[1:3]), int(text[-2:])
    return timezone((-1 if text[0] == "-" else 1) * timedelta(hours=hours, minutes=minutes))
