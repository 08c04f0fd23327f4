"""Questions with lettered options, as text: which there are, and the same question with them at other places."""

from __future__ import annotations

import itertools
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from videoxl2.named_times import TimeForm, time_form

MOST_OPTIONS = 8
OPTION_MARK = re.compile(r"^\(?([A-Za-z])[.):]\s+")
"""What stands before an option: ``A. ``, ``(A) ``, ``a) ``, ``A: ``."""

SECONDS_HINT = "Answer in seconds."
CLOCK_HINT = "Answer with minutes and seconds."
"""What asks for a time of one form or the other; the training of ``tiny`` asks so too."""

_HINTS: Mapping[TimeForm, str] = {"seconds": SECONDS_HINT, "clock": CLOCK_HINT}

_NAMES_A_PLACE = re.compile(r"\b(?:above|below|previous|following|preceding)\b|\b[A-Z] (?:and|or|&) [A-Z]\b")


def time_hint(options: Sequence[str]) -> str | None:
    """What asks for an answer of the options' form where all of them are times of one form, else None."""
    forms = {time_form(option) for option in options}
    form = forms.pop() if len(forms) == 1 else None
    return None if form is None else _HINTS[form]


@dataclass(frozen=True, slots=True)
class OptionQuestion:
    """A question whose ``lines`` from ``first`` on are ``options``; ``marks`` and ``letters`` stand before them."""

    lines: tuple[str, ...]
    first: int
    marks: tuple[str, ...]
    letters: tuple[str, ...]
    options: tuple[str, ...]

    @classmethod
    def read(cls, question: str) -> OptionQuestion | None:
        """The options of a question, or None where it has none whose order can be changed.

        They are lines with the letters from A on, one after another, 2 to 8 of them. "All of the above" and "both A
        and B" belong where they stand.
        """
        lines = tuple(question.splitlines())
        found = [(number, mark) for number, line in enumerate(lines) if (mark := OPTION_MARK.match(line.strip()))]
        numbers = [number for number, _ in found]
        letters = tuple(mark.group(1) for _, mark in found)
        expected = [chr(ord("a") + place) for place in range(len(found))]
        if not 2 <= len(found) <= MOST_OPTIONS or [letter.lower() for letter in letters] != expected:
            return None
        if any(after != before + 1 for before, after in itertools.pairwise(numbers)):
            return None
        marks = tuple(mark.group() for _, mark in found)
        options = tuple(lines[number].strip()[mark.end() :].strip() for number, mark in found)
        if not all(options) or any(_NAMES_A_PLACE.search(option) for option in options):
            return None
        return cls(lines, numbers[0], marks, letters, options)

    @property
    def asked_openly(self) -> str | None:
        """The question without its options, as one asks for a time; None unless all options are times of one form."""
        stem = "\n".join(self.lines[: self.first]).rstrip()
        hint = time_hint(self.options)
        return f"{stem} {hint}" if stem and hint else None

    def shifted(self, shift: int) -> str:
        """The question with option ``(place + shift) % O`` at every place; by 0 it is as it was asked."""
        if not shift % len(self.options):
            return "\n".join(self.lines)
        moved = [mark + self.options[(place + shift) % len(self.options)] for place, mark in enumerate(self.marks)]
        return "\n".join((*self.lines[: self.first], *moved, *self.lines[self.first + len(moved) :]))
