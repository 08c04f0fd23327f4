"""What commands print: one JSON document or text on standard output, everything else on standard error.

Ray's core prints to the driver's standard output whatever it is told. So for the time of a command, file descriptor 1
points at standard error and results go to a private copy of the real one.
"""

from __future__ import annotations

import json
import logging
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from io import TextIOWrapper
from typing import Any


class Output:
    """The command's real standard output."""

    def __init__(self, stream: Any, as_json: bool) -> None:
        self._stream = stream
        self.as_json = as_json

    @property
    def is_terminal(self) -> bool:
        """A person is watching."""
        return bool(self._stream.isatty())

    def document(self, value: dict[str, Any]) -> None:
        """Print the one JSON document."""
        self._stream.write(json.dumps(value, ensure_ascii=False, indent=2 if self.is_terminal else None) + "\n")
        self._stream.flush()

    def text(self, *lines: str) -> None:
        """Print lines as they are; control characters from strangers' names and models are made visible."""
        for line in lines:
            self._stream.write(printable(line) + "\n")
        self._stream.flush()

    def table(self, columns: list[str], rows: list[list[str]], right: tuple[int, ...] = ()) -> None:
        """Print a table that fits the terminal; piped output is not cut."""
        from rich import box
        from rich.console import Console
        from rich.table import Table
        from rich.text import Text

        console = Console(file=self._stream, width=None if self.is_terminal else 200, soft_wrap=not self.is_terminal)
        table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
        for index, name in enumerate(columns):
            table.add_column(name, justify="right" if index in right else "left", overflow="fold")
        for row in rows:
            table.add_row(*(Text(printable(cell)) for cell in row))
        console.print(table)


def printable(text: str) -> str:
    """``text`` with control characters as escapes, so that no name or answer can drive a terminal."""
    return "".join(char if char.isprintable() or char == " " else repr(char)[1:-1] for char in text)


@contextmanager
def claimed_stdout(as_json: bool) -> Iterator[Output]:
    """An ``Output`` on the real standard output, while descriptor 1 leads to standard error."""
    try:
        descriptor = sys.stdout.fileno()
    except (OSError, AttributeError, ValueError):
        yield Output(sys.stdout, as_json)  # captured or closed: nothing to protect
        return
    sys.stdout.flush()
    real = os.dup(descriptor)
    os.dup2(2, descriptor)
    stream = TextIOWrapper(os.fdopen(real, "wb"), encoding="utf-8", errors="backslashreplace")
    try:
        yield Output(stream, as_json)
    finally:
        try:
            stream.flush()
            sys.stdout.flush()  # what others printed meanwhile must not come out behind the document
        finally:
            os.dup2(real, descriptor)
            stream.close()


class JsonLines(logging.Formatter):
    """One JSON object per log line."""

    def format(self, record: logging.LogRecord) -> str:
        line = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname,
            "logger": record.name,
            "message": record.getMessage(),
        }
        if record.exc_info:
            line["error"] = self.formatException(record.exc_info)
        return json.dumps(line, ensure_ascii=False)


def configure_logging(level: str, as_json: bool) -> None:
    """Logs to standard error: short text on a terminal, JSON lines when asked for."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonLines() if as_json else logging.Formatter("%(levelname)s %(name)s: %(message)s"))
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(level)
    for library in ("botocore", "boto3", "urllib3", "s3transfer"):
        logging.getLogger(library).setLevel(max(logging.WARNING, root.level))
    os.environ.setdefault("LANCE_LOG", "error")
