"""``vxl ingest``: progress on a terminal, the report at the end."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from jobs.output import Output, printable

if TYPE_CHECKING:
    from pipeline.archive import Archive
    from pipeline.results import IngestReport

PARTIAL_FAILURE = 3


def run(
    archive: Archive,
    sources: list[str],
    out: Output,
    *,
    key_pattern: str | None,
    time_zone: str | None,
    dry_run: bool,
    wait_s: float,
) -> int:
    """Ingest and print the report; exit code 3 when a video failed in this run."""
    with progress(out) as observe:
        report = archive.ingest(
            *sources,
            key_pattern=key_pattern,
            time_zone=time_zone,
            dry_run=dry_run,
            wait_s=wait_s,
            observe=observe,
        )
    if out.as_json:
        out.document(report.to_dict())
    else:
        print_report(report, out)
    return PARTIAL_FAILURE if report.failed or report.quarantined else 0


class progress:
    """A bar per running video on a terminal; silent when piped."""

    def __init__(self, out: Output) -> None:
        import sys

        self._is_shown = out.is_terminal and sys.stderr.isatty() and not out.as_json
        self._progress: Any = None
        self._bars: dict[str, Any] = {}
        self._total: Any = None

    def __enter__(self) -> Callable[[str, dict[str, Any]], None]:
        if self._is_shown:
            from rich.console import Console
            from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

            self._progress = Progress(
                TextColumn("{task.description}"),
                BarColumn(),
                MofNCompleteColumn(),
                TimeElapsedColumn(),
                console=Console(stderr=True),
                transient=True,
            )
            self._progress.start()
        return self._observe

    def __exit__(self, *error: object) -> None:
        if self._progress is not None:
            self._progress.stop()

    def _observe(self, phase: str, facts: dict[str, Any]) -> None:
        if self._progress is None:
            return
        match phase:
            case "planned":
                self._total = self._progress.add_task("videos", total=facts["todo"])
            case "progress":
                name = printable(facts["uri"].rsplit("/", 1)[-1])[-32:].replace("[", r"\[")
                bar = self._bars.get(facts["uri"])
                if bar is None:
                    bar = self._bars[facts["uri"]] = self._progress.add_task(name, total=round(facts["of_s"]))
                self._progress.update(bar, completed=round(facts["done_s"]))
            case "indexed" | "failed":
                bar = self._bars.pop(facts["uri"], None)
                if bar is not None:
                    self._progress.remove_task(bar)
                self._progress.advance(self._total)


def print_report(report: IngestReport, out: Output) -> None:
    """The report as a person wants to read it: what was done, what went wrong, what to do next."""
    from pipeline.times import iso

    if report.dry_run:
        todo = [video for video in report.videos if video.state == "discovered"]
        out.text(f"would index {len(todo)} videos, {report.skipped} need no work")
        out.text(
            *(
                f"  {video.uri}: camera {video.camera or 'unknown'}, start {iso(video.start_time) or 'not in the key'}"
                for video in todo
            ),
            *(f"note: {notice}" for notice in report.notices),
        )
        return
    if not report.videos:
        out.text("the sources hold no video files")
        return
    if not (report.indexed or report.failed or report.quarantined):
        out.text(f"nothing to do: all {report.skipped} videos are known to the archive")
    else:
        rate = report.video_s / report.wall_s if report.wall_s else 0.0
        out.text(
            f"indexed {report.indexed} videos, {report.video_s:.0f} s of footage in {report.wall_s:.1f} s "
            f"({rate:.1f}x real time); {report.skipped} needed no work",
            f"stored {report.kv_bytes / 1e6:.1f} MB of dense KV and tokens, "
            f"{report.sparse_bytes / 1e6:.1f} MB of sparse KV",
        )
    bad = [video for video in report.videos if video.error_type is not None]
    if bad:
        out.text(f"{len(bad)} videos are not indexed:")
        out.text(*(f"  {video.state}: {video.uri}: {video.error_type}: {video.error_message}" for video in bad))
        out.text("try them again with: vxl retry, then vxl ingest")
    out.text(*(f"note: {notice}" for notice in report.notices))
