"""The command ``vxl parity``: a recording of the published code, computed again stage by stage."""

from __future__ import annotations

from jobs.output import Output
from pipeline.errors import UsageError


def run(folder: str, out: Output) -> int:
    """Compare and print; exit code 0 when every stage holds, else 1. Raises ``UsageError`` for a bad folder."""
    from videoxl2.errors import ModelError
    from videoxl2.parity import compare_recording

    try:
        report = compare_recording(folder)
    except ModelError as unreadable:
        raise UsageError(" ".join(str(unreadable).split())) from unreadable
    if out.as_json:
        out.document(report.to_document())
        return 0 if report.ok else 1
    rows: list[list[str]] = []
    for stage in report.stages:
        difference = "-" if stage.max_abs_diff is None else f"{stage.max_abs_diff:.3g}"
        verdict = "ok" if stage.ok else stage.problem or "differs"
        rows.append([stage.name, difference, f"{stage.tolerance:g}", verdict])
    out.table(["stage", "largest difference", "tolerance", ""], rows, right=(1, 2))
    failed = [stage.name for stage in report.stages if not stage.ok]
    if failed:
        out.text(f"{len(failed)} of {len(report.stages)} stages do not hold: {', '.join(failed)}")
    else:
        out.text(f"all {len(report.stages)} stages hold")
    return 0 if report.ok else 1
