"""The process that asks: opens an archive that another process made, answers one task after another.

    python -m jobs.evaluation.worker ARCHIVE TASKS

``TASKS`` is a file of JSON lines: ``{"id", "kind": "ask", "question", "videos"}`` or ``{"id", "kind": "search", "text",
"camera", "video", "limit"}``. ``levels`` in a task changes those settings of ``ingest.levels`` for it. For each task a
JSON line is printed: ``{"id", "result"}`` with the SDK's own dictionary. Nothing is caught: an error ends the process
with a traceback, and the parent says so.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jobs.output import claimed_stdout

if TYPE_CHECKING:
    from pipeline.config import Settings

ALL_CHUNKS = 1_000_000
"""Citations asked for: every chunk of the context, so that its level and rank are known."""


def main(folder: str, tasks: str) -> int:
    """Answer every task of the file; the exit code."""
    import torch

    from pipeline.archive import Archive
    from pipeline.config import load_settings

    torch.set_num_threads(max(1, torch.get_num_threads() // 2))  # the parent computes as well
    with claimed_stdout(True) as out:
        settings = load_settings(overrides={"archive": folder, "query.max_citations": ALL_CHUNKS})
        archive = Archive(folder, settings=settings)
        for line in Path(tasks).read_text(encoding="utf-8").splitlines():
            task = json.loads(line)
            out.document({"id": task["id"], "result": perform(archive, task)})
    return 0


def perform(archive: Any, task: dict[str, Any]) -> dict[str, Any]:
    """One task by the SDK, with its default settings but for the task's levels. Raises ``ArchiveError`` as it does."""
    if task.get("levels"):
        archive = archive.under(with_levels(archive.settings, task["levels"]))
    if task["kind"] == "ask":
        answer: dict[str, Any] = archive.ask(task["question"], videos=task["videos"], reuse="reload").to_dict()
        return answer
    query = archive.search(task["text"]).limit(task["limit"])
    if task["camera"] is not None:
        query = query.cameras(task["camera"])
    if task["video"] is not None:
        query = query.where(video=task["video"])
    found: dict[str, Any] = query.run().to_dict()
    return found


def with_levels(settings: Settings, changes: Mapping[str, Any]) -> Settings:
    """The settings with some of ``ingest.levels`` changed."""
    levels = settings.ingest.levels.model_copy(update=dict(changes))
    return settings.model_copy(update={"ingest": settings.ingest.model_copy(update={"levels": levels})})


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
