"""From an answer's words to right or wrong. Pure; knows the wording of the rendered questions, not the model.

An answer is read generously in form and strictly in content: "B", "(B)", "B. a red car" and the text of option B are
one answer; "grey" and "gray" are one colour. What cannot be read is wrong, never left out.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from jobs.evaluation.records import Question
from videoxl2.training.scene import COLOURS
from videoxl2.training.wording import DEPTHS, LETTERS, SIDES

Interval = tuple[float, float]

CHECKABLE = ("choice", "exists", "colour", "count", "where", "order")
"""Kinds of question whose answer is right or wrong without judgement."""

_NUMBERS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")
_SAME = {"gray": "grey", "centre": "middle", "center": "middle", "no one": "zero", "none": "zero"}
_CLOCK = r"\d+\s*:\s*\d{1,2}(?:\s*:\s*\d{1,2})?"
_TIME = re.compile(rf"(?P<clock>{_CLOCK})|(?P<seconds>\d+(?:\.\d+)?)")


def normalised(text: str) -> str:
    """Lower case, single spaces, no signs at the ends, one spelling."""
    words = re.sub(r"\s+", " ", text.lower()).strip(" .,;:!?\"'()")
    for other, usual in _SAME.items():
        words = re.sub(rf"\b{other}\b", usual, words)
    return words


def read_letter(answer: str, options: Sequence[str] = ()) -> str | None:
    """The option that an answer names: its letter first, else the one option whose text it is or holds."""
    found = re.match(r"\s*(?:answer\s*:?\s*|option\s+)?\(?([A-D])(?:[).:,]|\s*$|(?<=[B-D])\s)", answer, re.IGNORECASE)
    if found:
        return found.group(1).upper()
    said = normalised(answer)
    texts = [normalised(option) for option in options]
    if said and texts.count(said) == 1:
        return LETTERS[texts.index(said)]
    held = [letter for letter, text in zip(LETTERS, texts, strict=False) if _holds(said, text)]
    return held[0] if len(held) == 1 else None


def read_yes_no(answer: str) -> str | None:
    """``yes`` or ``no`` when the answer begins with it."""
    found = re.match(r"(yes|no)\b", normalised(answer))
    return found.group(1) if found else None


def read_count(answer: str) -> int | None:
    """The first number, in digits or as a word up to ten."""
    said = normalised(answer)
    spaced = re.sub(r"(?<=\d) (?=\d)", "", said)
    found = re.search(r"\d+|\b(?:" + "|".join(_NUMBERS) + r")\b", spaced)
    if found is None:
        return None
    word = found.group()
    return int(word) if word.isdigit() else _NUMBERS.index(word)


def read_word(answer: str, words: Sequence[str]) -> str | None:
    """The one of ``words`` that the answer says; None when it says none, or different ones."""
    said = {word for word in words if _holds(normalised(answer), word)}
    return said.pop() if len(said) == 1 else None


def read_times(answer: str) -> Interval | None:
    """Start and end in seconds of the first one or two times: ``12 to 24 seconds``, ``00:12 to 00:24``, ``75 s``.

    One time is an interval of length 0; a second time before the first is left out.
    """
    # Digits may come one by one from a tokenizer that keeps them apart.
    said = re.sub(r"(?<=\d) (?=\d)", "", answer)
    times = [_seconds(found) for found in _TIME.finditer(said)][:2]
    if not times:
        return None
    return (times[0], times[1]) if len(times) == 2 and times[1] >= times[0] else (times[0], times[0])


def _seconds(found: re.Match[str]) -> float:
    if found.group("clock") is None:
        return float(found.group("seconds"))
    parts = [int(part) for part in re.split(r"\s*:\s*", found.group("clock"))]
    return float(sum(part * 60**power for power, part in enumerate(reversed(parts))))


def time_error_s(answer: str, interval: Interval, video_s: float) -> float:
    """Seconds from the middle of the answered interval to the true one; 0 when the middle lies inside it.

    An answer without a time, and any error beyond the video's length, counts as the video's length.
    """
    said = read_times(answer)
    if said is None:
        return video_s
    middle = (said[0] + said[1]) / 2
    return min(video_s, max(0.0, interval[0] - middle, middle - interval[1]))


def right_answers(questions: Sequence[Question], answers: Sequence[str]) -> list[bool]:
    """``is_right`` of each question's answer."""
    return [
        is_right(item.kind, answer, item.expected, item.options)
        for item, answer in zip(questions, answers, strict=True)
    ]


def is_right(kind: str, answer: str, expected: str, options: Sequence[str] = ()) -> bool:
    """Whether an answer to a question of one of the ``CHECKABLE`` kinds is right. Raises ``ValueError`` for others."""
    match kind:
        case "choice":
            return read_letter(answer, options) == expected
        case "exists":
            return read_yes_no(answer) == expected
        case "colour":
            return read_word(answer, tuple(COLOURS)) == expected
        case "count":
            return read_count(answer) == int(expected)
        case "where":
            return read_word(answer, SIDES if expected in SIDES else DEPTHS) == expected
        case "order":
            return read_yes_no(answer) == expected if expected in ("yes", "no") else _is_phrase(answer, expected)
    raise ValueError(f"a question of kind {kind!r} has no answer that can be checked")


def _is_phrase(answer: str, expected: str) -> bool:
    return normalised(answer) == normalised(expected)


def _holds(text: str, words: str) -> bool:
    return bool(words) and re.search(rf"(?<!\w){re.escape(words)}(?!\w)", text) is not None
