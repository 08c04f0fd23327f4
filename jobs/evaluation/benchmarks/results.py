"""The file of a run: JSON lines, the first says what was run, each other one is an item's reply, as it came.

A run that is started again with the same file goes on where it stopped. Replies are kept as text and scored when they
are read, so that a file stays good when answers are published later.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, TextIO

from pipeline.errors import StorageError, UsageError

_FORMAT = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class RunFacts:
    """What replies depend on, apart from the items: two runs with equal facts may share a file."""

    benchmark: str
    mode: str
    weights_digest: str
    max_frames: int
    subtitles: bool
    dtype: str


class ResultsFile:
    """Replies by item id, kept in a file. Use as a context; ``add`` and ``fail`` write a line at once.

    Entering raises ``UsageError`` where the file is another run's or no such file at all, ``StorageError`` where it
    cannot be written. A last line that a crash cut short is removed; failures are tried again.
    """

    def __init__(self, path: Path, facts: RunFacts) -> None:
        self.path = path
        self.replies: dict[str, str] = {}
        self.failures: dict[str, str] = {}
        self._header = {"format": _FORMAT, **asdict(facts)}
        self._stream: TextIO | None = None

    def __enter__(self) -> ResultsFile:
        try:
            kept = self._read()
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._stream = self.path.open("r+" if kept else "w", encoding="utf-8")
        except OSError as exc:
            raise StorageError(f"cannot keep results in {self.path.name!r}: {exc.strerror or exc}") from exc
        if kept:
            self._stream.seek(kept)
            self._stream.truncate()
        else:
            self._write(self._header)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._stream is not None:
            self._stream.close()

    def add(self, item_id: str, reply: str, **facts: Any) -> None:
        """Keep a reply, with further facts for who reads the file."""
        self.replies[item_id] = reply
        self.failures.pop(item_id, None)
        self._write({"id": item_id, "reply": reply, **facts})

    def fail(self, item_id: str, error: str) -> None:
        """Keep that an item could not be asked, and why."""
        self.failures[item_id] = error
        self._write({"id": item_id, "error": error})

    def _write(self, line: dict[str, Any]) -> None:
        assert self._stream is not None
        self._stream.write(json.dumps(line, ensure_ascii=False) + "\n")
        self._stream.flush()

    def _read(self) -> int:
        """Take over what the file holds; the number of its bytes that are whole lines."""
        if not self.path.exists():
            return 0
        content = self.path.read_bytes()
        kept = content.rfind(b"\n") + 1
        lines = content[:kept].split(b"\n")[:-1]
        for number, line in enumerate(lines, start=1):
            try:
                entry = json.loads(line)
                if number == 1:
                    self._check_header(entry)
                elif "error" not in entry:
                    self.replies[str(entry["id"])] = str(entry["reply"])
            except (ValueError, KeyError, TypeError) as exc:
                raise UsageError(
                    f"{self.path.name!r}, line {number} is no line of a results file; name another with --results"
                ) from exc
        return kept

    def _check_header(self, found: dict[str, Any]) -> None:
        for name, ours in self._header.items():
            if found[name] != ours:
                raise UsageError(
                    f"{self.path.name!r} holds a run with {name} {found[name]!r}, this one has {ours!r}; "
                    "name another file with --results"
                )
