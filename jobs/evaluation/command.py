"""``vxl evaluate rendered``: checks the options, runs, prints, writes the report."""

from __future__ import annotations

import tempfile
from contextlib import ExitStack
from pathlib import Path

from jobs.evaluation.metrics import document
from jobs.evaluation.needle import DEFAULT_HOURS
from jobs.evaluation.rendered import RenderedPlan, new_folder, run_plan
from jobs.evaluation.report import check_pictures, print_results, write_report
from jobs.output import Output
from pipeline.errors import UsageError


def run_rendered(
    out: Output,
    *,
    seed: int,
    num_questions: int,
    model: str,
    minutes: float | None,
    folder: str | None,
    needle_hours: list[float],
    whole_minutes: float,
    report: str | None,
) -> int:
    """Run and print; the exit code. Raises ``UsageError`` and ``ConfigError`` before any work."""
    plan = RenderedPlan(seed, num_questions, model, minutes, lengths_of(needle_hours), whole_minutes)
    if report is not None:
        check_pictures()
    with ExitStack() as stack:
        if folder is None:
            work = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="vxl-evaluate-")))
        else:
            work = new_folder(folder)
        run = run_plan(plan, work)
    results = document(run)
    if report is not None:
        write_report(Path(report), run, results)
    if out.as_json:
        out.document(results)
    else:
        print_results(results, out)
    return 0


def lengths_of(needle_hours: list[float]) -> tuple[float, ...]:
    """Lengths of the needle test in hours: the default ones and those named; none at all where 0 is named.

    Raises ``UsageError`` for a negative length.
    """
    if any(hours < 0 for hours in needle_hours):
        raise UsageError(f"--needle-hours {min(needle_hours):g} is negative")
    if 0 in needle_hours:
        return tuple(sorted(hours for hours in set(needle_hours) if hours))
    return tuple(sorted({*DEFAULT_HOURS, *needle_hours}))
