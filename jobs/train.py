"""The command ``vxl train``: one stage of training, with a bar on a terminal and a report at the end."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jobs.output import Output
from pipeline.errors import StageError, UsageError

if TYPE_CHECKING:
    from videoxl2.training.stages import StageReport


def run(
    stage: str,
    folder: str,
    out: Output,
    *,
    device: str | None,
    seed: int,
    steps: int | None,
    minutes: float | None,
    clips: int | None,
    clip_minutes: int,
    events_per_minute: float | None,
    workers: int,
    processes: int,
    config: str | None,
    start: str | None,
    rate: float | None,
    unfreeze: str | None,
) -> int:
    """Run a stage and print its report; the exit code.

    Raises ``UsageError`` for what cannot be run as asked, and ``StageError`` when training diverges.
    """
    from videoxl2.errors import ModelError
    from videoxl2.training.stages import StageOptions, run_stage

    options = StageOptions(
        device=device,
        seed=seed,
        steps=steps,
        minutes=minutes,
        clips=clips,
        clip_minutes=clip_minutes,
        events_per_minute=events_per_minute,
        workers=workers,
        processes=processes,
        config=None if config is None else Path(config),
        start=start,
        rate=rate,
        unfreeze=() if unfreeze is None else tuple(name.strip() for name in unfreeze.split(",")),
    )
    try:
        with progress(out, stage) as observe:
            report = run_stage(stage, Path(folder), options, observe)
    except ModelError as unfit:
        raise UsageError(" ".join(str(unfit).split())) from unfit
    except FloatingPointError as diverged:
        raise StageError(f"train {stage}", f"{diverged}; what was saved last is still in {folder}") from diverged
    if out.as_json:
        out.document(report.to_document())
    else:
        print_report(report, out)
    return 0


@contextmanager
def progress(out: Output, stage: str) -> Iterator[Callable[[int, int, float | None], None]]:
    """A bar on a terminal; silent when piped."""
    if not (out.is_terminal and sys.stderr.isatty() and not out.as_json):
        yield lambda done, total, loss: None
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (BarColumn(), MofNCompleteColumn(), TimeRemainingColumn(), TextColumn("{task.fields[loss]}"))
    bars = Progress(TextColumn("{task.description}"), *columns, console=Console(stderr=True), transient=True)
    with bars:
        task = bars.add_task(stage, total=None, loss="")

        def observe(done: int, total: int, loss: float | None) -> None:
            bars.update(task, completed=done, total=total, loss="" if loss is None else f"loss {loss:.3f}")

        yield observe


def print_report(report: StageReport, out: Output) -> None:
    """What the stage did, one fact per line, then where it lies."""
    out.text(f"stage {report.stage} of the run in {report.folder}")
    for name, value in report.facts.items():
        out.text(f"  {name.replace('_', ' ')}: {_words(value)}")
    out.text(f"  files: {', '.join(report.files)}")
    out.text(*(f"note: {notice}" for notice in report.notices))


def _words(value: Any) -> str:
    if value is None:
        return "-"
    if isinstance(value, dict):
        return ", ".join(f"{name} {_words(inner)}" for name, inner in value.items()) or "-"
    if isinstance(value, float):
        return f"{value:,.4g}" if abs(value) < 100 else f"{value:,.0f}"
    return f"{value:,}" if isinstance(value, int) else str(value)
