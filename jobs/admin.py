"""``vxl videos``, ``status``, ``retry``, ``delete``, ``compact`` and ``doctor``."""

from __future__ import annotations

from typing import TYPE_CHECKING

from jobs.output import Output

if TYPE_CHECKING:
    from pipeline.archive import Archive


def run_videos(archive: Archive, out: Output) -> int:
    """List the ledger."""
    rows = archive.videos()
    if out.as_json:
        out.document({"videos": rows})
        return 0
    if not rows:
        out.text("the archive holds no videos; add some with: vxl ingest SOURCE")
        return 0
    out.table(
        ["state", "camera", "start", "length", "chunks", "decoder", "video"],
        [
            [
                row["state"] + (" (superseded)" if row["superseded_by"] else ""),
                row["camera"] or "-",
                row["start_time"] or "unknown",
                f"{row['duration_s']:.1f} s" if row["duration_s"] is not None else "-",
                str(row["chunks"]),
                row["backend"] or "-",
                row["uri"],
            ]
            for row in rows
        ],
        right=(3, 4),
    )
    for row in rows:
        if row["error"] is not None:
            out.text(f"{row['uri']}: {row['error']['type']}: {row['error']['message']}")
        elif row["damage"]:
            out.text(f"{row['uri']}: damaged: {row['damage']}")
    return 0


def run_status(archive: Archive, out: Output) -> int:
    """Summary of the archive."""
    status = archive.status()
    if out.as_json:
        out.document(status)
        return 0
    states = ", ".join(f"{count} {state}" for state, count in sorted(status["states"].items())) or "no videos"
    recipe = status["recipe"]
    segments = "one segment per video" if recipe["segment_s"] is None else f"segments of {recipe['segment_s']:g} s"
    out.text(
        f"archive {status['archive']}",
        f"model {status['model']} ({recipe['dtype']}), {recipe['fps']:g} frames/s, {segments}, "
        f"fingerprint {status['fingerprint'][:12]}",
        f"{states}; {status['superseded']} superseded",
        f"{status['videos']} videos can be asked: {status['hours']:.2f} hours of {len(status['cameras'])} cameras",
        f"{status['kv_bytes'] / 1e6:.1f} MB dense KV and tokens, {status['sparse_bytes'] / 1e6:.1f} MB sparse KV, "
        f"{status['source_bytes'] / 1e6:.1f} MB of source video",
        f"writer: {status['writer'] or 'none'}",
        *(f"note: {notice}" for notice in status["notices"]),
    )
    return 0


def run_change(action: str, archive: Archive, uris: list[str], wait_s: float, out: Output) -> int:
    """``retry`` or ``delete``: what was changed."""
    changed = getattr(archive, action)(*uris, wait_s=wait_s)
    if out.as_json:
        out.document({"videos": changed, "count": len(changed)})
    else:
        done = {"retry": "back in line for the next ingest", "delete": "deleted"}[action]
        out.text(f"{len(changed)} videos {done}", *(f"  {uri}" for uri in changed))
    return 0


def run_compact(archive: Archive, wait_s: float, out: Output) -> int:
    """Compaction and sweep."""
    report = archive.compact(wait_s)
    if out.as_json:
        out.document(report)
    else:
        out.text(
            f"tables: {report['table_bytes_freed'] / 1e6:.1f} MB freed (old versions stay an hour, for readers); "
            f"{report['files_removed']} leftover files removed ({report['file_bytes_freed'] / 1e6:.1f} MB)"
        )
    return 0


def run_doctor(archive: str | None, config: str | None, out: Output) -> int:
    """Checks; exit code 1 when one found a problem. The archive is optional here."""
    from pipeline.address import open_folder
    from pipeline.config import load_settings
    from pipeline.doctor import doctor

    settings = load_settings(config, overrides={"archive": archive})
    report = doctor(open_folder(settings.archive, settings.s3) if settings.archive else None, settings)
    if out.as_json:
        out.document(report)
    else:
        marks = {"ok": "ok     ", "warning": "warning", "problem": "PROBLEM"}
        out.text(*(f"{marks[check['status']]} {check['name']}: {check['detail']}" for check in report["checks"]))
    return 0 if report["ok"] else 1
