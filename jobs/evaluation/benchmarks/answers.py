"""From a reply to an option's letter or an interval, by the rule that each benchmark publishes.

The rules are lenient in different ways and some are odd (the article "a" can be read as option A): they are kept, since
the published numbers were made with them.
"""

from __future__ import annotations

import random
import re
from collections.abc import Sequence

_PREFIXES = (
    "The best answer is",
    "The correct answer is",
    "The answer is",
    "The answer",
    "The best option is",
    "The correct option is",
    "Best answer:",
    "Best option:",
)
_GLUED_PREFIXES = (*_PREFIXES[:4], "The best option isThe correct option is", "Best answer:Best option:")
"""The Video-MME rule lacks two commas, so its last four phrases stand as two that no reply contains."""

_PUNCTUATION = ';/[]"{}()=+\\_-><@`,?!'
_GROUPED_DIGITS = re.compile(r"\d,\d")
_STOP = re.compile(r"(?!<=\d)\.(?!\d)")
_LETTER_DOT = re.compile(r"([A-E])\.\s*.+", re.IGNORECASE)
_LONE_LETTER = re.compile(r"\b([A-E])\b", re.IGNORECASE)


def letter_before_bracket(reply: str) -> str:
    """MLVU: the character before the first ``)``, else the whole reply without surrounding space."""
    reply = reply.strip()
    at = reply.find(")")
    return reply if at < 0 else reply[max(0, at - 1) : at]


def first_letter(reply: str, letters: str = "ABCD") -> str:
    """Video-MME: the first of ``letters`` behind the usual phrases; empty where there is none."""
    return _first_of(reply, letters, _GLUED_PREFIXES)


def first_letter_or_guess(reply: str, letters: Sequence[str], seed: str) -> str:
    """LongVideoBench: the first letter A to E behind the usual phrases, else a guess among ``letters``.

    The published rule guesses anew each time; here the guess depends on ``seed`` only.
    """
    return _first_of(reply, "ABCDE", _PREFIXES) or random.Random(seed).choice(list(letters))


def _first_of(reply: str, letters: str, prefixes: Sequence[str]) -> str:
    reply = reply.strip()
    for prefix in prefixes:
        reply = reply.replace(prefix, "")
    found = re.search(f"[{letters}]", reply)
    return found[0] if found else ""


def lone_letter(reply: str) -> str:
    """LVBench: the letter of a reply like ``B. text``; else the first letter A to E that stands alone, in any case.

    Punctuation is taken out before, and a reply without such a letter comes back as plain lower-case text.
    """
    if found := _LETTER_DOT.fullmatch(reply.strip()):
        return found[1].upper()
    text = " ".join(reply.replace("\n", " ").replace("\t", " ").split(" ")).strip()
    text = _without_punctuation(text).strip("'").strip('"').strip(")").strip("(").strip().lower()
    found = _LONE_LETTER.search(text)
    return found[1].upper() if found else text


def _without_punctuation(text: str) -> str:
    """Marks become a space, or nothing where one stands next to a space or digits are grouped; then full stops go."""
    is_grouped = _GROUPED_DIGITS.search(text) is not None
    out = text
    for mark in _PUNCTUATION:
        touches_space = mark + " " in text or " " + mark in text
        out = out.replace(mark, "" if touches_space or is_grouped else " ")
    return _STOP.sub("", out)


_EXAMPLE = "a specific example is : 20.8 - 30.0 seconds"
_SPAN = re.compile(r"(\d+\.*\d*)\s*-\s*(\d+\.*\d*)")
_NUMBER = re.compile(r"\b(\d+\.\d+\b|\b\d+)\b")
_CLOCK = re.compile(r"\b(\d{1,2}):(\d{2}):(\d{2})\b")
_TIME_WORDS = ("start", "end", "happen")


def interval_in(reply: str) -> tuple[float, float] | None:
    """Charades-STA: the first stretch of time that a reply names, in seconds, earlier end first.

    In this order: ``24.3 - 30.4`` or ``24.3 to 30.4``; the first numbers of two sentences that speak of start, end or
    happening; the same with ``hh:mm:ss``. None where no rule finds one.
    """
    text = reply.lower().replace(_EXAMPLE, "").replace("to", "-")
    for found in _SPAN.finditer(text):
        try:
            return _ordered(float(found[1]), float(found[2]))
        except ValueError:  # several full stops in a row
            continue
    sentences = [part for part in re.split(r"[!?\n]", text) if any(word in part for word in _TIME_WORDS)]
    numbers = [float(number[1]) for part in sentences if (number := _NUMBER.search(part))]
    if len(numbers) >= 2:
        return _ordered(numbers[0], numbers[1])
    clocks = [clock.groups() for part in sentences if (clock := _CLOCK.search(part))]
    times = [3600.0 * int(hours) + 60 * int(minutes) + int(seconds) for hours, minutes, seconds in clocks]
    return _ordered(times[0], times[1]) if len(times) >= 2 else None


def _ordered(one: float, other: float) -> tuple[float, float]:
    return min(one, other), max(one, other)


def interval_iou(one: tuple[float, float], other: tuple[float, float]) -> float:
    """Intersection over union of two intervals; 0 where both are empty."""
    union = max(one[1], other[1]) - min(one[0], other[0])
    shared = min(one[1], other[1]) - max(one[0], other[0])
    return max(0.0, shared) / union if union > 0 else 0.0
