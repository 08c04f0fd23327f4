"""The asking process: results reach whoever waits for them, and its death is one typed error."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from jobs.evaluation import asking
from jobs.evaluation.asking import AskingProcess
from jobs.evaluation.worker import perform
from pipeline import reader
from pipeline.archive import Archive
from pipeline.errors import StageError

TASKS = [{"id": "one", "kind": "search", "text": "x", "camera": None, "video": None, "limit": 3}]


def process(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: str) -> AskingProcess:
    """An asking process that runs ``code`` instead of the worker."""
    real = subprocess.Popen

    def popen(command: list[str], **options: Any) -> Any:
        assert command[1:3] == ["-m", "jobs.evaluation.worker"]
        return real([sys.executable, "-c", code], **options)

    monkeypatch.setattr(asking.subprocess, "Popen", popen)
    return AskingProcess(tmp_path / "archive", TASKS, tmp_path, silence_s=30.0)


def test_results_are_handed_out_by_id(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    code = 'print(\'{"id": "two", "result": {"x": 2}}\'); print(\'{"id": "one", "result": {"x": 1}}\')'
    with process(tmp_path, monkeypatch, code) as asked:
        assert asked.result("one") == {"x": 1} and asked.result("two") == {"x": 2} and asked.result("one") == {"x": 1}
        with pytest.raises(StageError, match="without a result for 'three'"):
            asked.result("three")
    assert [json.loads(line)["id"] for line in (tmp_path / "archive-tasks.jsonl").read_text().splitlines()] == ["one"]


@pytest.mark.parametrize(
    ("code", "said"),
    [
        ("import os, signal; os.kill(os.getpid(), signal.SIGKILL)", "code -9; it wrote nothing"),
        ("raise RuntimeError('the disk is gone')", "RuntimeError: the disk is gone"),
        ("print('hello')", "no result: b'hello"),
    ],
)
def test_a_process_that_breaks_is_a_typed_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: str, said: str
) -> None:
    with process(tmp_path, monkeypatch, code) as asked, pytest.raises(StageError, match=said):
        asked.result("one")


def test_a_process_that_falls_silent_is_a_typed_error_and_is_ended(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with process(tmp_path, monkeypatch, "import time; time.sleep(600)") as asked:
        asked._silence_s = 0.5
        with pytest.raises(StageError, match="no result for"):
            asked.result("one")
    assert asked._process.returncode is not None


class _Query:
    """Records how a search was refined."""

    def __init__(self) -> None:
        self.calls: list[tuple[str, Any]] = []

    def __getattr__(self, name: str) -> Any:
        def call(*given: Any, **named: Any) -> Any:
            self.calls.append((name, given or named))
            return self

        return call

    def to_dict(self) -> dict[str, Any]:
        return {"moments": []}


def test_tasks_reach_the_sdk(monkeypatch: pytest.MonkeyPatch) -> None:
    query = _Query()
    monkeypatch.setattr(Archive, "search", lambda self, text: query)
    archive = Archive("nowhere")
    found = perform(archive, {**TASKS[0], "camera": "gate-1", "video": "file:///v.mp4"})
    assert found == {"moments": []}
    assert query.calls == [
        ("limit", (3,)),
        ("cameras", ("gate-1",)),
        ("where", {"video": "file:///v.mp4"}),
        ("run", {}),
    ]
    said: dict[str, Any] = {}
    answer = type("A", (), {"to_dict": lambda self: {"answer": "B"}})
    monkeypatch.setattr(
        Archive, "ask", lambda self, question, **named: said.update(named, question=question) or answer()
    )
    assert perform(archive, {"id": "q", "kind": "ask", "question": "?", "videos": ["file:///v.mp4"]}) == {"answer": "B"}
    assert said == {"question": "?", "videos": ["file:///v.mp4"], "reuse": "reload"}


def test_levels_of_a_task_change_the_settings_of_that_task_only(monkeypatch: pytest.MonkeyPatch) -> None:
    """The other archive is the same one, opened once."""
    archive = Archive("nowhere")
    manifest = type("M", (), {"recipe": None})()
    monkeypatch.setattr(reader, "read_manifest", lambda folder: manifest)
    asked: list[Archive] = []
    answer = type("A", (), {"to_dict": lambda self: {"answer": "B"}})
    monkeypatch.setattr(Archive, "ask", lambda self, question, **named: asked.append(self) or answer())
    archive._reader().__dict__["model"] = model = object()  # loaded by an earlier question
    task = {"id": "q", "kind": "ask", "question": "?", "videos": ["file:///v.mp4"]}
    perform(archive, {**task, "levels": {"dense_share": 0.5, "dense_first_last": True}})
    perform(archive, task)
    assert [one.settings.ingest.levels.dense_share for one in asked] == [0.5, 0.2]
    assert [one.settings.ingest.levels.dense_first_last for one in asked] == [True, False]
    assert asked[1] is archive and asked[0].settings.query == archive.settings.query
    other = asked[0]._reader()
    assert (
        other.settings is asked[0].settings and other.model is model and archive._reader().settings is archive.settings
    )
