"""Clips with known contents: ``manifest.jsonl`` lists files, ``truth.jsonl`` what is in them. Read, check and match.

A truth row is ``{"id", "file", "type"}`` with, for ``search``, ``query``, ``intervals`` of ``{start_s, end_s}`` and
``tolerance_s``; for ``qa``, ``question``, ``answer`` and ``accept``, other words for the same; for ``negative``, a
``query`` for what never appears.
"""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from jobs.evaluation.benchmarks.loading import TIME_TOLERANCE_S, InvalidItems, MissingVideos
from jobs.evaluation.benchmarks.rows import AnnotationError, Row, RowError, read_rows
from pipeline.errors import UnreadableMedia

_NUMBERS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve")
_SAME = {"gray": "grey", "color": "colour", **{word: str(number) for number, word in enumerate(_NUMBERS)}}
_ARTICLES = {"a", "an", "the"}
_TOKEN = re.compile(r"(?<![^\W_])\d+(?:\.\d+)?(?![^\W_])|[^\W_]+")
_NUMBER = re.compile(r"\d+(?:\.\d+)?")
_SPLIT_DIGITS = re.compile(r"(?<=\d) (?=\d)")
_VERBS = {"is", "are", "was", "were", "does", "do", "did", "has", "have", "can"}


@dataclass(frozen=True, slots=True)
class ClipSearch:
    """A query about one clip. ``spans`` are the true stretches in seconds, widened by their tolerance."""

    row_id: str
    file: str
    query: str
    spans: tuple[tuple[float, float], ...]


@dataclass(frozen=True, slots=True)
class ClipQuestion:
    """A question about one clip, with every wording of its answer that is right."""

    row_id: str
    file: str
    question: str
    accepted: tuple[str, ...]

    @property
    def kind(self) -> str:
        """The type of question, by its wording: how many, colour, yes or no, one of two, or its first word."""
        words = self.question.lower().rstrip("?!. ").split() or [""]
        if words[:2] == ["how", "many"]:
            return "how many"
        if len(words) > 1 and words[0] in ("what", "which") and words[1] in ("colour", "color"):
            return "colour"
        if words[0] in _VERBS:
            return "one of two" if "or" in words else "yes or no"
        return words[0] if words[0] in ("what", "where", "when", "who", "how") else "other"


@dataclass(frozen=True, slots=True)
class ClipTruth:
    """Everything that is asked about a folder of clips, in the order of the truth file.

    ``files`` are the manifest's names, relative to the folder.
    """

    folder: Path
    files: tuple[str, ...]
    searches: tuple[ClipSearch, ...]
    questions: tuple[ClipQuestion, ...]
    num_negative: int

    def path_of(self, file: str) -> Path:
        """Where a clip lies."""
        return self.folder / file


def read_truth(folder: Path) -> ClipTruth:
    """Read and check both files.

    Raises ``MissingVideos`` for clips that are not there, ``InvalidItems`` for rows of another form, of a clip that the
    manifest lacks, with an id that came before or a time beyond the end of the clip, ``AnnotationError`` for files that
    cannot be read.
    """
    for name in ("manifest.jsonl", "truth.jsonl"):
        if not (folder / name).is_file():
            raise AnnotationError(
                f"{str(folder)!r} holds no {name}; a folder of clips has manifest.jsonl and truth.jsonl"
            )
    invalid: list[str] = []
    names: list[str] = []
    for row in read_rows(folder / "manifest.jsonl", folder):
        try:
            names.append(row.text("file"))
        except RowError as error:
            invalid.append(str(error))
    if missing := [name for name in names if not (folder / name).is_file()]:
        raise MissingVideos(missing, len(missing))
    lengths = {name: _length_s(folder / name) for name in names}
    searches: list[ClipSearch] = []
    questions: list[ClipQuestion] = []
    seen: set[str] = set()
    num_negative = 0
    for row in read_rows(folder / "truth.jsonl", folder):
        try:
            row_id, file = row.text("id"), row.text("file")
            if row_id in seen:
                raise row.error(f"the id {row_id!r} was used before")
            if file not in lengths:
                raise row.error(f"the clip {file!r} is not in manifest.jsonl")
            seen.add(row_id)
            match row.text("type"):
                case "search":
                    searches.append(ClipSearch(row_id, file, row.text("query"), _spans(row, lengths[file])))
                case "qa":
                    accepted = (row.text("answer"), *(row.texts("accept") if row.has("accept") else ()))
                    questions.append(ClipQuestion(row_id, file, row.text("question"), accepted))
                case "negative":
                    row.text("query")
                    num_negative += 1
                case other:
                    raise row.error(f"the type {other!r} is none of search, qa, negative")
        except RowError as error:
            invalid.append(str(error))
    if invalid:
        raise InvalidItems(invalid)
    if not names or not (searches or questions):
        raise AnnotationError(f"{str(folder)!r} holds no clip or no row to ask")
    return ClipTruth(folder, tuple(names), tuple(searches), tuple(questions), num_negative)


def _length_s(path: Path) -> float | None:
    """Seconds; None for a clip that cannot be read, which the index will report."""
    from pipeline.probe import probe

    try:
        return probe(str(path)).duration_s
    except UnreadableMedia:
        return None


def _spans(row: Row, length_s: float | None) -> tuple[tuple[float, float], ...]:
    tolerance_s = row.number("tolerance_s") if row.has("tolerance_s") else 0.0
    spans = []
    for interval in row.rows("intervals"):
        start_s, end_s = interval.number("start_s"), interval.number("end_s")
        if not 0 <= start_s < end_s:
            raise interval.error(f"{start_s:g} to {end_s:g} s is no stretch of time")
        if length_s is not None and end_s > length_s + tolerance_s + TIME_TOLERANCE_S:
            raise interval.error(
                f"{start_s:g} to {end_s:g} s is beyond the end of the clip, which lasts {length_s:.2f} s"
            )
        spans.append((max(0.0, start_s - tolerance_s), end_s + tolerance_s))
    if not spans:
        raise row.error("a search needs at least one interval")
    return tuple(spans)


def words_of(text: str) -> list[str]:
    """Words and numbers in lower case, without articles, one spelling each, number words as digits.

    Digits that a tokenizer has set apart belong together.
    """
    words = []
    for word in _TOKEN.findall(_SPLIT_DIGITS.sub("", text.lower())):
        word = _SAME.get(word, word)
        words.append(f"{float(word):.6g}" if _is_number(word) else word)
    return [word for word in words if word not in _ARTICLES] or words


def _is_number(word: str) -> bool:
    return word.isascii() and _NUMBER.fullmatch(word) is not None


def is_accepted(reply: str, accepted: Sequence[str]) -> bool:
    """Whether a reply says one of the accepted answers.

    An answer that is a number must be the first number of the reply, ``yes`` or ``no`` its first word; any other must
    occur in it, word for word. An empty reply says nothing.
    """
    said = words_of(reply)
    numbers = [word for word in said if _is_number(word)]
    for answer in accepted:
        wanted = words_of(answer)
        if not wanted or not said:
            continue
        if len(wanted) == 1 and _is_number(wanted[0]):
            if numbers[:1] == wanted:
                return True
        elif wanted in (["yes"], ["no"]):
            if said[0] == wanted[0]:
                return True
        elif any(said[at : at + len(wanted)] == wanted for at in range(len(said))):
            return True
    return False


def is_exact(reply: str, accepted: Sequence[str]) -> bool:
    """Whether a reply is one of the accepted answers and nothing more."""
    said = words_of(reply)
    return bool(said) and any(said == words_of(answer) for answer in accepted)


def commonest_answers(questions: Sequence[ClipQuestion]) -> list[str]:
    """For each question the commonest answer among all of its kind, itself included; of equal ones the first.

    It has seen the answers, so it is the most that a constant answer per kind can reach.
    """
    said: dict[str, Counter[str]] = defaultdict(Counter)
    for question in questions:
        said[question.kind][question.accepted[0].lower()] += 1
    return [said[question.kind].most_common(1)[0][0] for question in questions]
