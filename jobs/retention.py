"""``vxl retention`` and ``vxl kv evict``: what was given up to age and to the byte cap."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from jobs.kv import without_tokens
from jobs.output import Output

if TYPE_CHECKING:
    from pipeline.archive import Archive

EXIT_DOES_NOT_FIT = 1


def run_retention(archive: Archive, out: Output, *, dry_run: bool, wait_s: float) -> int:
    """Carry out the rules and print what became of what."""
    report = archive.retention(dry_run=dry_run, wait_s=wait_s)
    if out.as_json:
        out.document(report)
        return 0
    _print_steps(report["demoted"], out)
    would = "would free" if dry_run else "freed"
    out.text(
        *(f"{'would expire' if dry_run else 'expired'}: {video['uri']}" for video in report["expired"]),
        f"{len(report['demoted'])} segments keep less, {len(report['expired'])} videos expire; {would} "
        f"{report['freed_bytes'] / 1e6:.2f} MB of KV",
    )
    if report["without_tokens"]:
        out.text(without_tokens(report["without_tokens"]))
    if report["unknown_age"]:
        out.text(f"{report['unknown_age']} videos have no start time, so no age: they are kept")
    return 0


def run_evict(archive: Archive, out: Output, *, max_bytes: int | None, dry_run: bool, wait_s: float) -> int:
    """Bring dense KV and tokens under the cap; 1 where pinned segments alone take more."""
    report = archive.kv.evict(max_bytes=max_bytes, dry_run=dry_run, wait_s=wait_s)
    code = 0 if report["fits"] else EXIT_DOES_NOT_FIT
    if out.as_json:
        out.document(report)
        return code
    _print_steps(report["demoted"], out)
    out.text(
        f"dense KV and tokens: {report['bytes_before'] / 1e6:.2f} MB before, {report['bytes_after'] / 1e6:.2f} MB "
        f"{'afterwards (estimated; nothing was changed)' if dry_run else 'now'}; the cap is "
        f"{report['max_bytes'] / 1e6:.2f} MB"
    )
    if code:
        out.text("it does not fit: what is left is pinned; take pins away, or raise the cap")
    return code


def _print_steps(steps: list[dict[str, Any]], out: Output) -> None:
    if steps:
        out.table(
            ["from", "to", "freed", "segment", "camera", "video"],
            [
                [
                    step["before"],
                    step["after"],
                    f"{step['freed'] / 1e6:.2f} MB",
                    step["segment_id"],
                    step["camera"] or "-",
                    step["uri"],
                ]
                for step in steps
            ],
            right=(2,),
        )
