"""Rows of annotation files (JSON, JSON lines, Parquet, text), and typed access that says where a row is wrong.

Knows file syntax, no benchmark. A file that cannot be read at all is an ``AnnotationError``; a row that does not say
what it should is a ``RowError``, which loaders collect, so that everything wrong is known before any work.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline.errors import UsageError


class AnnotationError(UsageError):
    """An annotation file that is absent or cannot be read as what it should be; the message names it."""


class RowError(Exception):
    """One row is not what its format says: ``source`` is file and row, ``cause`` what is wrong with it."""

    def __init__(self, source: str, cause: str) -> None:
        super().__init__(source, cause)
        self.source = source
        self.cause = cause

    def __str__(self) -> str:
        return f"{self.source}: {self.cause}"


@dataclass(frozen=True, slots=True)
class Row:
    """One annotation. ``source`` names file and row in messages. Accessors raise ``RowError``."""

    values: Mapping[str, Any]
    source: str

    def error(self, cause: str) -> RowError:
        """The error of this row."""
        return RowError(self.source, cause)

    def has(self, name: str) -> bool:
        """The field is there and not null."""
        return self.values.get(name) is not None

    def text(self, name: str) -> str:
        """A text that is not blank; numbers count as their text, since ids are written both ways."""
        value = self.values.get(name)
        if isinstance(value, int) and not isinstance(value, bool):
            value = str(value)
        if not isinstance(value, str) or not value.strip():
            raise self.error(f"{name!r} should be a text, it is {_shown(value)}")
        return value

    def number(self, name: str) -> float:
        """A finite number."""
        value = self.values.get(name)
        if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
            raise self.error(f"{name!r} should be a number, it is {_shown(value)}")
        return float(value)

    def texts(self, name: str) -> tuple[str, ...]:
        """A list of texts, numbers in it as their text; it may be empty."""
        value = self.values.get(name)
        if not isinstance(value, list | tuple) or not all(isinstance(one, str | int | float) for one in value):
            raise self.error(f"{name!r} should be a list of texts, it is {_shown(value)}")
        return tuple(str(one) for one in value)

    def rows(self, name: str) -> list[Row]:
        """A list of objects inside this one."""
        value = self.values.get(name)
        if not isinstance(value, list) or not all(isinstance(one, dict) for one in value):
            raise self.error(f"{name!r} should be a list of objects, it is {_shown(value)}")
        return [Row(one, f"{self.source}, {name} {at}") for at, one in enumerate(value, start=1)]


def _shown(value: Any) -> str:
    if value is None:
        return "missing"
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."


def read_rows(path: Path, folder: Path) -> list[Row]:
    """The rows of a JSON list, of JSON lines or of a Parquet file, by the file's ending.

    ``folder`` is what sources are named relative to. Raises ``AnnotationError``.
    """
    name = path.relative_to(folder).as_posix() if path.is_relative_to(folder) else path.name
    match path.suffix:
        case ".jsonl":
            return list(_json_lines(path, name))
        case ".parquet":
            return _numbered(_parquet(path, name), name, "row")
        case _:
            return _numbered(_json(path, name), name, "item")


def read_lines(path: Path, folder: Path) -> Iterator[tuple[str, str]]:
    """Lines of a text file that are not blank, each with its source. Raises ``AnnotationError``."""
    name = path.relative_to(folder).as_posix() if path.is_relative_to(folder) else path.name
    for number, line in enumerate(read_text(path, name).splitlines(), start=1):
        if line.strip():
            yield line.strip(), f"{name}, line {number}"


def read_text(path: Path, name: str) -> str:
    """The text of a UTF-8 file. Raises ``AnnotationError``."""
    try:
        return path.read_text(encoding="utf-8-sig")
    except OSError as exc:
        raise AnnotationError(f"cannot read {name}: {exc.strerror or exc}") from exc
    except UnicodeDecodeError as exc:
        raise AnnotationError(f"{name} is not UTF-8 text (byte {exc.start})") from exc


def _numbered(values: list[Any], name: str, noun: str) -> list[Row]:
    rows = []
    for number, value in enumerate(values, start=1):
        if not isinstance(value, dict):
            raise AnnotationError(f"{name}, {noun} {number}: an object is expected, it is {_shown(value)}")
        rows.append(Row(value, f"{name}, {noun} {number}"))
    return rows


def _json(path: Path, name: str) -> list[Any]:
    try:
        content = json.loads(read_text(path, name))
    except ValueError as exc:
        raise AnnotationError(f"{name} is not JSON: {exc}") from exc
    if isinstance(content, dict) and isinstance(content.get("annotations"), list):
        return list(content["annotations"])  # the captioning form that some copies of Charades-STA have
    if not isinstance(content, list):
        raise AnnotationError(f"{name} should hold a list of items")
    return content


def _json_lines(path: Path, name: str) -> Iterator[Row]:
    for number, line in enumerate(read_text(path, name).splitlines(), start=1):
        if not line.strip():
            continue
        try:
            value = json.loads(line)
        except ValueError as exc:
            raise AnnotationError(f"{name}, line {number} is not JSON: {exc}") from exc
        if not isinstance(value, dict):
            raise AnnotationError(f"{name}, line {number}: an object is expected, it is {_shown(value)}")
        yield Row(value, f"{name}, line {number}")


def _parquet(path: Path, name: str) -> list[Any]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        return list(pq.read_table(path).to_pylist())
    except (OSError, pa.ArrowException) as exc:
        raise AnnotationError(f"{name} is not a Parquet file that can be read: {exc}") from exc
