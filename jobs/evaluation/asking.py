"""Asking from another process: starts ``jobs.evaluation.worker``, hands out its results as they come."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

from pipeline.errors import StageError

_SHOWN_LINES = 6


class AskingProcess:
    """A process that performs tasks on an archive, in their order, while this one does something else.

    ``result`` waits for one of them. A process that dies, says something else than results or falls silent for
    ``silence_s`` is a ``StageError`` with the end of what it wrote. Leaving the context ends the process.
    """

    def __init__(
        self, archive: Path, tasks: Sequence[Mapping[str, Any]], work: Path, *, silence_s: float = 900.0
    ) -> None:
        path = work / f"{archive.name}-tasks.jsonl"
        path.write_text("".join(json.dumps(task, ensure_ascii=False) + "\n" for task in tasks), encoding="utf-8")
        self._log = work / f"{archive.name}-worker.log"
        self._silence_s = silence_s
        self._results: dict[str, dict[str, Any]] = {}
        self._broken: str | None = None
        self._is_done = False
        self._changed = threading.Condition()
        with self._log.open("wb") as log:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "jobs.evaluation.worker", str(archive), str(path)],
                stdout=subprocess.PIPE,
                stderr=log,
                stdin=subprocess.DEVNULL,
            )
        self._reader = threading.Thread(target=self._read, name="vxl-evaluation-worker", daemon=True)
        self._reader.start()

    def __enter__(self) -> AskingProcess:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._process.poll() is None:
            self._process.kill()
        self._process.wait()
        self._reader.join()

    def result(self, task_id: str) -> dict[str, Any]:
        """What came of a task; waits for it. Raises ``StageError`` where it will never come."""
        with self._changed:
            heard = len(self._results), time.monotonic()
            while task_id not in self._results:
                if self._broken is not None or self._is_done:
                    raise StageError("evaluation worker", self._broken or f"ended without a result for {task_id!r}")
                self._changed.wait(timeout=1.0)
                if len(self._results) != heard[0]:
                    heard = len(self._results), time.monotonic()
                elif time.monotonic() - heard[1] > self._silence_s:
                    raise StageError(
                        "evaluation worker", f"no result for {self._silence_s:.0f} s; {self._last_words()}"
                    )
            return self._results[task_id]

    def _read(self) -> None:
        assert self._process.stdout is not None
        problem: str | None = None
        with self._process.stdout as lines:
            for line in lines:
                try:
                    document = json.loads(line)
                    found = document["id"], document["result"]
                except (ValueError, KeyError, TypeError):
                    problem = f"printed something that is no result: {line[:80]!r}"
                    continue
                with self._changed:
                    self._results[found[0]] = found[1]
                    self._changed.notify_all()
        code = self._process.wait()
        with self._changed:
            if code != 0:
                self._broken = f"ended with code {code}; {self._last_words()}"
            elif problem is not None:
                self._broken = problem
            self._is_done = True
            self._changed.notify_all()

    def _last_words(self) -> str:
        text = self._log.read_text(encoding="utf-8", errors="replace").strip()
        return "it wrote: " + " | ".join(text.splitlines()[-_SHOWN_LINES:]) if text else "it wrote nothing"
