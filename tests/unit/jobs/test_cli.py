"""The command line: its words are frozen, it answers help and searches without loading what they do not need."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import typer

from jobs.cli import app, main
from pipeline.archive import SearchQuery
from pipeline.config import IngestSettings, load_settings
from pipeline.errors import ConfigError, ModelMismatch, UsageError
from tests.unit.pipeline.samples import make_archive
from tests.vxl import call

HEAVY = {"torch", "lancedb", "ray", "transformers", "boto3", "botocore", "decord", "av", "moto"}

EVERY = ["--archive", "--json", "--config"]
RANGE = ["--after", "--before", "--time-zone"]
COMMANDS = {
    "ingest": [
        "source",
        *("--key-pattern", "--time-zone", "--model", "--fps", "--segment-s"),
        *("--runner", "--workers", "--wait", "--dry-run"),
        *EVERY,
    ],
    "search": ["text", "--camera", "--video", *RANGE, "--time-range", "--limit", *EVERY],
    "ask": ["question", "--camera", "--video", *RANGE, "--reuse", "--max-new-tokens", *EVERY],
    "anomalies": ["--camera", *RANGE, "--max-per-day", "--html", *EVERY],
    "videos": EVERY,
    "status": EVERY,
    "retry": ["uri", "--wait", *EVERY],
    "delete": ["uri", "--wait", *EVERY],
    "compact": ["--wait", *EVERY],
    "doctor": EVERY,
    "parity": ["folder", "--json"],
    "bench": [
        *("subject", "more", "--frames", "--hours", "--model", "--device", "--mode"),
        *("--attention", "--decoding", "--json"),
    ],
    "demo": ["folder", "--source", "--minutes"],
    "train": [
        *("--stage", "--folder", "--device", "--seed", "--steps", "--minutes"),
        *("--clips", "--clip-minutes", "--events-per-minute", "--workers", "--processes", "--config", "--start"),
        *("--rate", "--unfreeze", "--json"),
    ],
    "evaluate benchmark": [
        *("name", "data_folder", "--model", "--device", "--limit", "--mode", "--subtitles", "--frames"),
        *("--results", "--skip-missing", "--skip-invalid", "--json"),
    ],
    "evaluate clips": ["folder", "--model", "--archive", "--fps", "--json"],
    "evaluate rendered": [
        *("--seed", "--questions", "--model", "--minutes", "--folder"),
        *("--needle-hours", "--whole-minutes", "--json", "--report"),
    ],
    "kv verify": ["--segments", "--all", "--seed", "--exact", *EVERY],
    "kv stats": ["--price-per-gb-month", *EVERY],
    "kv evict": ["--max-bytes", "--dry-run", "--wait", *EVERY],
    "retention": ["--dry-run", "--wait", *EVERY],
}


def name_of(parameter: Any) -> str:
    return str(parameter.name if parameter.param_type_name == "argument" else parameter.opts[0])


def commands_of(group: Any, prefix: str = "") -> dict[str, Any]:
    """Every command by its words, those of sub-apps as two of them."""
    found: dict[str, Any] = {}
    for name, command in group.commands.items():
        if hasattr(command, "commands"):
            found |= commands_of(command, f"{prefix}{name} ")
        else:
            found[prefix + name] = command
    return found


def test_commands_and_options_are_frozen() -> None:
    """Other programs are written against these words: add to them, and change this table on purpose."""
    group: Any = typer.main.get_command(app)
    found = {name: sorted(name_of(p) for p in command.params) for name, command in commands_of(group).items()}
    assert found == {name: sorted(options) for name, options in COMMANDS.items()}
    assert sorted(name_of(p) for p in group.params) == ["--log-json", "--log-level"]


def test_every_command_and_option_is_explained() -> None:
    group: Any = typer.main.get_command(app)
    assert group.commands["kv"].help
    for name, command in commands_of(group).items():
        assert command.help, name
        assert all(parameter.help for parameter in command.params if name_of(parameter).startswith("--")), name


def modules_after(arguments: list[str]) -> tuple[set[str], subprocess.CompletedProcess[str]]:
    """Top-level modules that a command has loaded when it ends, in a process of its own."""
    code = (
        "import sys\nfrom jobs.cli import main\n"
        "code = main(sys.argv[1:])\n"
        "print(*sorted({name.split('.')[0] for name in sys.modules}), file=sys.stderr)\n"
        "sys.exit(code)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, *arguments], capture_output=True, text=True, timeout=120, env={**os.environ}
    )
    return set(done.stderr.split("\n")[-2].split()), done


@pytest.mark.parametrize("arguments", [["--help"], ["ask", "--help"], ["kv", "--help"], []], ids=" ".join)
def test_help_loads_no_library_of_the_work(arguments: list[str]) -> None:
    modules, done = modules_after(arguments)
    assert done.returncode == 0
    assert "Usage" in done.stdout
    assert not modules & {*HEAVY, "numpy", "pyarrow"}


@pytest.fixture(scope="module")
def archive(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_archive(tmp_path_factory.mktemp("archives") / "made")


@pytest.mark.parametrize("command", ["search", "videos", "status", "anomalies", "kv stats"])
def test_reading_commands_load_neither_torch_nor_ray(archive: Path, command: str) -> None:
    words = ["a red car"] if command == "search" else []
    modules, done = modules_after([*command.split(), *words, "--archive", str(archive), "--json"])
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)
    assert "lancedb" in modules
    assert not modules & (HEAVY - {"lancedb"})


def test_the_number_of_moments_comes_from_the_option_else_from_the_settings(
    archive: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The option's own default hid ``query.limit`` of the settings file."""
    asked: list[int] = []

    def run(query: SearchQuery) -> Any:
        asked.append(query.limit_)
        raise UsageError("seen")

    monkeypatch.setattr(SearchQuery, "run", run)
    config = tmp_path / "vxl.toml"
    config.write_text("[query]\nlimit = 3\n")
    search = ("search", "car", "--archive", archive)
    call(*search)
    call(*search, "--config", config)
    call(*search, "--config", config, "--limit", "7")
    assert asked == [10, 3, 7]


def test_search_options_reach_the_query(archive: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[SearchQuery] = []

    def run(query: SearchQuery) -> Any:
        seen.append(query)
        raise UsageError("seen")

    monkeypatch.setattr(SearchQuery, "run", run)
    call(
        *("search", "car", "--archive", archive, "--camera", "gate", "--camera", "yard", "--video", "a.mp4"),
        *("--after", "2026-03-01", "--before", "2026-03-02", "--time-zone", "UTC", "--time-range", "22:00,06:00"),
    )
    query = seen[0]
    assert (query.text, query.cameras_, query.videos_) == ("car", ("gate", "yard"), ("a.mp4",))
    assert (query.after, query.before, query.zone, query.daily) == (
        "2026-03-01",
        "2026-03-02",
        "UTC",
        ("22:00", "06:00"),
    )


@pytest.mark.parametrize(
    ("error", "code", "words"),
    [
        (UsageError("say what"), 2, "vxl: say what"),
        (ConfigError("a\x1b[2Jb"), 2, "vxl: a\\x1b[2Jb"),
        (ModelMismatch("other fps"), 7, "vxl: other fps"),
    ],
)
def test_an_error_made_on_purpose_is_one_line_and_its_exit_code(
    archive: Path, monkeypatch: pytest.MonkeyPatch, error: Exception, code: int, words: str
) -> None:
    def run(query: SearchQuery) -> Any:
        raise error

    monkeypatch.setattr(SearchQuery, "run", run)
    done = call("search", "car", "--archive", archive, "--json")
    assert (done.code, done.error_line) == (code, words)


def test_a_bug_is_a_traceback_and_exit_code_1(archive: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def run(query: SearchQuery) -> Any:
        raise KeyError("oh")

    monkeypatch.setattr(SearchQuery, "run", run)
    done = call("search", "car", "--archive", archive)
    assert done.code == 1
    assert "Traceback" in done.err and "internal error: KeyError" in done.err


def test_an_interrupted_command_says_so(archive: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def run(query: SearchQuery) -> Any:
        raise KeyboardInterrupt

    monkeypatch.setattr(SearchQuery, "run", run)
    done = call("search", "car", "--archive", archive)
    assert (done.code, done.error_line) == (130, "vxl: stopped")


@pytest.mark.parametrize(
    "arguments",
    [
        ["nothing-like-it"],
        ["search"],
        ["search", "car", "--nothing-like-it"],
        ["--log-level", "LOUD", "status"],
        ["search", "car", "--limit", "many"],
        ["search", "car"],
        ["search", "car", "--archive", ""],
        ["kv"],
        ["kv", "nothing-like-it"],
        ["kv", "stats", "--price-per-gb-month", "much"],
    ],
    ids=" ".join,
)
def test_wrong_usage_is_one_line_and_exit_code_2(arguments: list[str]) -> None:
    done = call(*arguments)
    assert done.code == 2
    assert done.error_line.startswith("vxl: ")


def test_the_time_range_needs_two_ends(archive: Path) -> None:
    done = call("search", "car", "--archive", archive, "--time-range", "22:00", "--time-zone", "UTC")
    assert (done.code, "HH:MM,HH:MM" in done.error_line) == (2, True)


def test_segment_zero_means_one_segment_per_video_and_keeps_the_rest() -> None:
    settings = load_settings(overrides={"ingest.fps": 2.0, "ingest.segment_s": 0.0}, environ={})
    assert (settings.ingest.segment_s, settings.ingest.fps) == (None, 2.0)
    assert settings.ingest.model_fields_set == {"segment_s", "fps"}
    assert IngestSettings().segment_s == 600.0


def test_main_reads_the_process_s_own_arguments(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["vxl", "nothing-like-it"])
    assert main() == 2
