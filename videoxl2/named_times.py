"""What a time looks like in a text: "at 17 seconds", "141 to 147 seconds", "from 02:21 to 02:27", "at 1:02:03".

Which times a question names, and whether a text is nothing but a time, as options are and answers to "when".
"""

from __future__ import annotations

import re
from typing import Literal

TimeForm = Literal["seconds", "clock"]

_UNIT = r"(?P<unit>s|secs?|seconds?|min|minutes?)"
_NUMBER = r"\d+(?:\.\d+)?"
_TIME = re.compile(
    r"(?<![\d:])(?:(?P<hours>\d+):)?(?P<minutes>\d+):(?P<seconds>\d\d)(?![\d:])"
    rf"|(?<![\d.:])(?P<number>{_NUMBER})(?=(?:\s*(?:to|and|or|-|–)\s*{_NUMBER})?\s*{_UNIT}\b)"
)
_FORMS: tuple[tuple[TimeForm, re.Pattern[str]], ...] = (
    ("seconds", re.compile(r"(?:\d+ to )?\d+ seconds")),
    ("clock", re.compile(r"(?:\d+:\d\d to )?\d+:\d\d")),
)
_RANGE = re.compile(r"\s*(?:s|secs?|seconds?|min|minutes?)?\s*(?:to|and|until|-|–)\s*")


def times_named(question: str) -> list[tuple[float, int]]:
    """The times that a question names, in seconds, and where in its text each ends."""
    return [(_seconds(match), match.end()) for match in _TIME.finditer(question)]


def spans_named(question: str) -> list[tuple[float, float]]:
    """The spans [start, end] in seconds that a question names; of a time that stands alone both are the same.

    Two times with "to", "until", "and" or a dash between them are one span, unless the second is the earlier.
    """
    spans: list[tuple[float, float]] = []
    open_end: int | None = None
    for match in _TIME.finditer(question):
        at_s = _seconds(match)
        between = "" if open_end is None else question[open_end : match.start()]
        if spans and _RANGE.fullmatch(between) and spans[-1][0] <= at_s:
            spans[-1] = (spans[-1][0], at_s)
            open_end = None
        else:
            spans.append((at_s, at_s))
            open_end = match.end()
    return spans


def time_form(text: str) -> TimeForm | None:
    """How a text that is a time or a span, and nothing else, says it: in seconds or as a clock does; else None."""
    return next((name for name, form in _FORMS if form.fullmatch(text)), None)


def names_time(question: str) -> bool:
    """Whether the question names a time."""
    return _TIME.search(question) is not None


def _seconds(match: re.Match[str]) -> float:
    if match["number"]:
        return float(match["number"]) * (60.0 if match["unit"].startswith("min") else 1.0)
    return 3600.0 * int(match["hours"] or 0) + 60.0 * int(match["minutes"]) + int(match["seconds"])
