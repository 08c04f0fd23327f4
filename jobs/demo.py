"""``vxl demo``: the main job on this machine, each step a command that a person could type.

Footage is rendered (or taken from ``--source``), served by an S3 server on loopback and indexed through Ray actors.
Then the server is stopped, and new processes search, ask and scan: everything they show comes from the archive.
"""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from jobs.demo_server import LoopbackS3
from jobs.output import Output

BUCKET = "vxl-demo"
MARKER = ".vxl-demo"
TIME_ZONE = "Europe/Berlin"
KEY_PATTERN = "{camera}/%Y-%m-%d/%H%M%S.mp4"
SEED = 7

SEARCHES = ("red car", "person with an orange suitcase")
QUESTIONS = ("Does somebody drop a bag at the gate?", "What colour is the car that parks?")


@dataclass(frozen=True, slots=True)
class Plan:
    """What the demo runs on: the source's address, how its keys are read, and the environment that reaches it."""

    source: str
    ingest_options: tuple[str, ...]
    env: Mapping[str, str]


def run(folder: str, source: str | None, minutes: float, out: Output) -> int:
    """Run the demo in ``folder``; exit code of the first command that fails, else 0."""
    root = Path(folder).absolute()
    prepare_folder(root)
    archive, report = root / "archive", root / "report.html"
    started = time.monotonic()
    base = ["--archive", str(archive)]
    with ExitStack() as stack:
        plan = _make_plan(root, source, minutes, stack, out)
        ingest = ["ingest", plan.source, *base, *plan.ingest_options, "--runner", "ray", "--workers", "2"]
        for heading, command in (
            ("Index it through Ray actors", ingest),
            ("The same command again does no work", ingest),
        ):
            out.text("", f"== {heading}")
            if code := _vxl(command, plan.env, out):
                return code
    if source is None or "://" not in source:
        out.text("", "The S3 server is stopped: what follows comes from the archive alone, each from a new process.")
    for heading, command in (
        ("What is in the archive", ["status", *base]),
        *((f"Search {number}", ["search", text, *base, "--limit", "3"]) for number, text in enumerate(SEARCHES, 1)),
        *((f"Question {number}", ["ask", text, *base]) for number, text in enumerate(QUESTIONS, 1)),
        ("Anything unusual?", ["anomalies", *base, "--time-zone", TIME_ZONE]),
    ):
        zone = ["--time-zone", TIME_ZONE] if command[0] in ("search", "ask") else []
        out.text("", f"== {heading}")
        if code := _vxl([*command, *zone], {}, out):
            return code
    _write_report(archive, report)
    out.text("", f"report: {report}", f"the demo took {time.monotonic() - started:.0f} s")
    return 0


def prepare_folder(root: Path) -> None:
    """A new folder, or an earlier demo's, emptied. Raises ``UsageError`` for a folder that holds anything else."""
    from pipeline.errors import UsageError

    if root.is_dir() and any(root.iterdir()):
        if not (root / MARKER).is_file():
            raise UsageError(f"{str(root)!r} is not empty and not an earlier demo; name another folder")
        shutil.rmtree(root)
    root.mkdir(parents=True, exist_ok=True)
    (root / MARKER).touch()


def _make_plan(root: Path, source: str | None, minutes: float, stack: ExitStack, out: Output) -> Plan:
    if source is not None and "://" in source:
        return Plan(source=source, ingest_options=(), env={})
    options: tuple[str, ...] = ()
    if source is None:
        from videoxl2.training.footage import render_footage

        out.text(f"== Render {minutes:g} minutes of camera footage")
        begun = time.monotonic()
        videos = render_footage(root / "footage", seed=SEED, minutes=minutes)
        out.text(*(f"  {video.key}: {video.duration_s:.0f} s" for video in videos))
        out.text(f"rendered and encoded in {time.monotonic() - begun:.1f} s")
        folder, options = root / "footage", ("--key-pattern", KEY_PATTERN, "--time-zone", TIME_ZONE)
    else:
        folder = Path(source)
    server = stack.enter_context(LoopbackS3())
    keys = server.upload_folder(folder, BUCKET, "cameras")
    out.text("", f"== {len(keys)} objects served by an S3 server at {server.endpoint_url}")
    return Plan(source=f"s3://{BUCKET}/cameras", ingest_options=options, env=server.env)


def _vxl(arguments: Sequence[str], env: Mapping[str, str], out: Output) -> int:
    """Run one ``vxl`` command in a new process and show what it prints."""
    out.text(f"$ vxl {shlex.join(arguments)}")
    done = subprocess.run(
        [sys.executable, "-m", "jobs.cli", *arguments],
        env={**os.environ, **env},
        stdout=subprocess.PIPE,
        text=True,
        check=False,
    )
    out.text(*done.stdout.splitlines())
    return done.returncode


def _write_report(archive: Path, path: Path) -> None:
    """The same questions once more through the SDK, on one page."""
    from jobs.report_data import write_report
    from pipeline.archive import Archive

    opened = Archive(archive, time_zone=TIME_ZONE)
    write_report(
        opened,
        path,
        searches=[opened.search(text).limit(3).run() for text in SEARCHES],
        answers=[opened.ask(text) for text in QUESTIONS],
        anomalies=opened.anomalies(),
        time_zone=TIME_ZONE,
        title="vxl demo",
    )
