"""Cameras that a question names, as text: "at gate 3", "on camera shop-2", "in the shop".

Names are compared word by word, without regard to case, to what stands between words and to zeros before a number, so
that ``Gate_03`` is "gate 3". A kind of place ("the gate") names all cameras of it (``gate-1``, ``gate-2``), unless one
of them is named in full.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Collection
from dataclasses import dataclass, field

_WORD = re.compile(r"[^\W\d_]+|\d+")
_NUMBER_NEXT = re.compile(r"[\s_#-]*\d+(?![\d:])")
"""After a word: a number that belongs to it, as in neither "at the gate? 2 people" nor "at the gate 02:21"."""
_CAMERA = "camera"
_TELLING_LETTERS = 3
"""A name with no word of so many letters ("3", "a") is one only after "camera": "3 people" names none."""

Words = tuple[str, ...]


def cameras_named(question: str, cameras: Collection[str]) -> frozenset[str]:
    """Which of ``cameras`` the question names; in a text that names several, the longer name counts where two fit."""
    text = _Text.read(question)
    by_name: dict[Words, list[str]] = {}
    for camera in cameras:
        by_name.setdefault(words_of(camera), []).append(camera)
    named: set[str] = set()
    for name in _longest_first(by_name):
        if text.take(name):
            named.update(by_name[name])
    by_kind: dict[Words, list[str]] = {}
    for name, found in by_name.items():
        if (kind := _kind(name)) not in ((), (_CAMERA,), name):
            by_kind.setdefault(kind, []).extend(found)
    for kind in _longest_first(by_kind):
        if not named.intersection(by_kind[kind]) and text.take(kind, is_kind=True):
            named.update(by_kind[kind])
    return frozenset(named)


def words_of(text: str) -> Words:
    """The words and numbers of a text, as they are compared."""
    return tuple(_CAMERA if word == "cam" else word.lstrip("0") or "0" for word in _WORD.findall(_plain(text)))


def _plain(text: str) -> str:
    return unicodedata.normalize("NFKC", text).casefold()


@dataclass
class _Text:
    """The words of a question, which of them a number follows at once, and which names have been found at."""

    words: Words
    is_numbered: tuple[bool, ...]
    taken: set[int] = field(default_factory=set)

    @classmethod
    def read(cls, question: str) -> _Text:
        plain = _plain(question)
        numbered = (_NUMBER_NEXT.match(plain, match.end()) is not None for match in _WORD.finditer(plain))
        return cls(words_of(question), tuple(numbered))

    def take(self, name: Words, *, is_kind: bool = False) -> bool:
        """Whether the name stands somewhere at places not yet taken, which then are."""
        is_telling = any(len(word) >= _TELLING_LETTERS and not word.isdecimal() for word in name)
        is_found = False
        for first in range(len(self.words) - len(name) + 1):
            places = range(first, first + len(name))
            if not _same(name, self.words[first : places.stop], is_kind) or not self.taken.isdisjoint(places):
                continue
            if (
                self.is_numbered[places.stop - 1] and not name[-1].isdecimal()
            ):  # "gate 3" is not the camera "gate", nor one of its kind
                continue
            if not is_telling and (first == 0 or self.words[first - 1] != _CAMERA):
                continue
            self.taken.update(places)
            is_found = True
        return is_found


def _longest_first(names: Collection[Words]) -> list[Words]:
    return sorted((name for name in names if name), key=lambda name: (-len(name), name))


def _kind(name: Words) -> Words:
    """The words of a name without the numbers that it ends with."""
    length = len(name)
    while length and name[length - 1].isdecimal():
        length -= 1
    return name[:length]


def _same(name: Words, words: Words, is_kind: bool) -> bool:
    if name[:-1] != words[:-1]:
        return False
    return words[-1] == name[-1] or (is_kind and words[-1] == f"{name[-1]}s")
