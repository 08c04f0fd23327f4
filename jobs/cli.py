"""The command ``vxl``: options in, one SDK call, result out, exit code. Nothing heavy is imported before it is needed.

Exit codes: 0 ok, 1 internal error or damage found, 2 usage, 3 some videos failed or could not be verified, 5 nothing
indexed in the range asked about, 7 archive of another model, setting or schema.
"""

from __future__ import annotations

import os
import sys
from typing import Annotated, Any, Optional

import typer

from jobs.evaluate import evaluate_app
from jobs.output import Output, claimed_stdout, configure_logging

INTERRUPTED = 130

app = typer.Typer(
    name="vxl",
    help="A video archive you can ask: index footage once, search and question it later from stored KV.",
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)

kv_app = typer.Typer(help="Stored KV: what it takes on disk, and whether it is right.")
app.add_typer(kv_app, name="kv")
app.add_typer(evaluate_app, name="evaluate")

# Options that every command has, written once. typer reads Optional, not X | None, for repeated options.
ArchiveOption = Annotated[
    Optional[str],  # noqa: UP045
    typer.Option("--archive", metavar="FOLDER", help="Address of the archive. [env: VXL_ARCHIVE]", show_default=False),
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print one JSON document on standard output.")]
ConfigOption = Annotated[
    Optional[str],  # noqa: UP045
    typer.Option("--config", metavar="FILE", help="Settings file (TOML). [env: VXL_CONFIG]"),
]
CameraOption = Annotated[
    Optional[list[str]],  # noqa: UP045
    typer.Option("--camera", metavar="C", help="Only this camera; may be repeated."),
]
AfterOption = Annotated[
    Optional[str],  # noqa: UP045
    typer.Option("--after", metavar="T", help="Only footage from this ISO 8601 time on."),
]
BeforeOption = Annotated[
    Optional[str],  # noqa: UP045
    typer.Option("--before", metavar="T", help="Only footage before this ISO 8601 time."),
]
ZoneOption = Annotated[
    Optional[str],  # noqa: UP045
    typer.Option("--time-zone", metavar="Z", help="IANA zone of times without offset, for example Europe/Berlin."),
]


def open_archive(archive: str | None, config: str | None, overrides: dict[str, Any] | None = None) -> Any:
    """The SDK's ``Archive`` for a command's options. Raises ``UsageError`` when no archive is named."""
    from pipeline.archive import Archive
    from pipeline.config import load_settings
    from pipeline.errors import UsageError

    settings = load_settings(config, overrides={"archive": archive, **(overrides or {})})
    if not settings.archive:
        raise UsageError("no archive named: give --archive FOLDER or set VXL_ARCHIVE")
    return Archive(settings.archive, settings=settings)


@app.callback()
def options(
    log_level: Annotated[str, typer.Option(help="DEBUG, INFO, WARNING or ERROR.")] = "WARNING",
    log_json: Annotated[bool, typer.Option(help="Log JSON lines instead of text.")] = False,
) -> None:
    """Options before the command."""
    if log_level.upper() not in {"DEBUG", "INFO", "WARNING", "ERROR"}:
        raise typer.BadParameter(f"{log_level!r} is not a log level", param_hint="--log-level")
    configure_logging(log_level.upper(), log_json)


@app.command()
def ingest(
    source: Annotated[list[str], typer.Argument(metavar="SOURCE...", help="s3://bucket/prefix, a folder or a file.")],
    archive: ArchiveOption = None,
    key_pattern: Annotated[
        Optional[str],  # noqa: UP045
        typer.Option(metavar="P", help="How keys name camera and start, e.g. '{camera}/%Y-%m-%d/%H%M%S.mp4'."),
    ] = None,
    time_zone: ZoneOption = None,
    model: Annotated[Optional[str], typer.Option(metavar="M", help="tiny, a checkpoint folder or a Hub id.")] = None,  # noqa: UP045
    fps: Annotated[Optional[float], typer.Option(help="Frames sampled per second. [default: 1]")] = None,  # noqa: UP045
    segment_s: Annotated[
        Optional[float],  # noqa: UP045
        typer.Option(help="Seconds per segment; 0 = one segment per video. [default: 600]"),
    ] = None,
    runner: Annotated[Optional[str], typer.Option(metavar="local|ray", help="Where stages run.")] = None,  # noqa: UP045
    workers: Annotated[Optional[int], typer.Option(metavar="N", help="Ray actors.")] = None,  # noqa: UP045
    wait: Annotated[float, typer.Option(metavar="S", help="Seconds to wait for another writer.")] = 0.0,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say what would be done; write nothing.")] = False,
    as_json: JsonOption = False,
    config: ConfigOption = None,
) -> int:
    """Index what the sources hold and the archive lacks."""
    from jobs.ingest import run

    overrides = {
        "model": model,
        "ingest.fps": fps,
        "ingest.segment_s": segment_s,
        "runner.kind": runner,
        "runner.workers": workers,
    }
    with claimed_stdout(as_json) as out:
        opened = open_archive(archive, config, overrides)
        return run(opened, source, out, key_pattern=key_pattern, time_zone=time_zone, dry_run=dry_run, wait_s=wait)


@app.command()
def search(
    text: Annotated[str, typer.Argument(metavar="TEXT", help="What to look for.")],
    archive: ArchiveOption = None,
    camera: CameraOption = None,
    after: AfterOption = None,
    before: BeforeOption = None,
    time_range: Annotated[
        Optional[str],  # noqa: UP045
        typer.Option(metavar="HH:MM,HH:MM", help="Only this local time of day."),
    ] = None,
    time_zone: ZoneOption = None,
    video: Annotated[
        Optional[list[str]],  # noqa: UP045
        typer.Option("--video", metavar="URI", help="Only this video; may be repeated."),
    ] = None,
    limit: Annotated[Optional[int], typer.Option(metavar="N", help="At most this many moments. [default: 10]")] = None,  # noqa: UP045
    as_json: JsonOption = False,
    config: ConfigOption = None,
) -> int:
    """Find moments that look like a text."""
    from jobs.query import run_search

    with claimed_stdout(as_json) as out:
        query = open_archive(archive, config).search(text).cameras(*(camera or [])).between(after, before)
        if limit is not None:
            query = query.limit(limit)
        for uri in video or []:
            query = query.where(video=uri)
        if time_zone:
            query = query.time_zone(time_zone)
        if time_range:
            query = query.time_range(*_pair(time_range))
        return run_search(query, out, time_zone)


def _pair(time_range: str) -> tuple[str, str]:
    first, comma, second = time_range.partition(",")
    if not comma:
        from pipeline.errors import UsageError

        raise UsageError(f"--time-range: {time_range!r} is not HH:MM,HH:MM")
    return first, second


@app.command()
def ask(
    question: Annotated[str, typer.Argument(metavar="QUESTION", help="The question.")],
    archive: ArchiveOption = None,
    camera: CameraOption = None,
    video: Annotated[
        Optional[list[str]],  # noqa: UP045
        typer.Option("--video", metavar="URI", help="Only this video; may be repeated."),
    ] = None,
    after: AfterOption = None,
    before: BeforeOption = None,
    time_zone: ZoneOption = None,
    reuse: Annotated[str, typer.Option(metavar="auto|reload|recompute", help="Where KV comes from.")] = "auto",
    max_new_tokens: Annotated[Optional[int], typer.Option(metavar="N", help="Longest answer in tokens.")] = None,  # noqa: UP045
    as_json: JsonOption = False,
    config: ConfigOption = None,
) -> int:
    """Answer a question from stored KV, with evidence."""
    from jobs.query import run_ask

    with claimed_stdout(as_json) as out:
        opened = open_archive(archive, config)
        return run_ask(
            opened,
            question,
            out,
            time_zone=time_zone,
            cameras=camera or [],
            videos=video or [],
            after=after,
            before=before,
            reuse=reuse,
            max_new_tokens=max_new_tokens,
        )


@app.command()
def anomalies(
    archive: ArchiveOption = None,
    camera: CameraOption = None,
    after: AfterOption = None,
    before: BeforeOption = None,
    time_zone: ZoneOption = None,
    max_per_day: Annotated[
        Optional[int],  # noqa: UP045
        typer.Option(metavar="N", help="Most events per camera and day. [default: 10]"),
    ] = None,
    html: Annotated[Optional[str], typer.Option(metavar="FILE", help="Also write a report page.")] = None,  # noqa: UP045
    as_json: JsonOption = False,
    config: ConfigOption = None,
) -> int:
    """Find what is unusual for each camera."""
    from jobs.anomaly_scan import run

    with claimed_stdout(as_json) as out:
        opened = open_archive(archive, config)
        return run(
            opened,
            out,
            html=html,
            time_zone=time_zone,
            cameras=camera or [],
            after=after,
            before=before,
            max_per_day=max_per_day,
        )


@app.command()
def videos(archive: ArchiveOption = None, as_json: JsonOption = False, config: ConfigOption = None) -> int:
    """List every video the archive knows, with its state."""
    from jobs.admin import run_videos

    with claimed_stdout(as_json) as out:
        return run_videos(open_archive(archive, config), out)


@app.command()
def status(archive: ArchiveOption = None, as_json: JsonOption = False, config: ConfigOption = None) -> int:
    """Counts by state, hours, bytes, and who is writing."""
    from jobs.admin import run_status

    with claimed_stdout(as_json) as out:
        return run_status(open_archive(archive, config), out)


UriArgument = Annotated[Optional[list[str]], typer.Argument(metavar="[URI]...", help="Videos.")]  # noqa: UP045
WaitOption = Annotated[float, typer.Option(metavar="S", help="Seconds to wait for another writer.")]


@app.command()
def retry(
    uri: UriArgument = None,
    archive: ArchiveOption = None,
    wait: WaitOption = 0.0,
    as_json: JsonOption = False,
    config: ConfigOption = None,
) -> int:
    """Put failed and quarantined videos back in line for the next ingest (all, or those named)."""
    from jobs.admin import run_change

    with claimed_stdout(as_json) as out:
        return run_change("retry", open_archive(archive, config), uri or [], wait, out)


@app.command()
def delete(
    uri: Annotated[list[str], typer.Argument(metavar="URI...", help="Videos to delete.")],
    archive: ArchiveOption = None,
    wait: WaitOption = 0.0,
    as_json: JsonOption = False,
    config: ConfigOption = None,
) -> int:
    """Delete videos with all their rows and KV."""
    from jobs.admin import run_change

    with claimed_stdout(as_json) as out:
        return run_change("delete", open_archive(archive, config), uri, wait, out)


@app.command()
def compact(
    archive: ArchiveOption = None, wait: WaitOption = 0.0, as_json: JsonOption = False, config: ConfigOption = None
) -> int:
    """Compact the tables and remove what nothing refers to."""
    from jobs.admin import run_compact

    with claimed_stdout(as_json) as out:
        return run_compact(open_archive(archive, config), wait, out)


@kv_app.command("verify")
def kv_verify(
    segments: Annotated[
        Optional[int],  # noqa: UP045
        typer.Option("--segments", metavar="N", help="Segments to draw. [default: 16]"),
    ] = None,
    all_segments: Annotated[bool, typer.Option("--all", help="Every segment instead of a sample.")] = False,
    seed: Annotated[int, typer.Option(metavar="N", help="Which sample is drawn.")] = 0,
    exact: Annotated[
        bool, typer.Option("--exact", help="Demand equal bytes: same device and threads as when indexing.")
    ] = False,
    archive: ArchiveOption = None,
    as_json: JsonOption = False,
    config: ConfigOption = None,
) -> int:
    """Prefill segments again from their videos and compare with the stored KV; writes a certificate."""
    from jobs.kv import run_verify

    with claimed_stdout(as_json) as out:
        opened = open_archive(archive, config)
        return run_verify(opened, out, segments=segments, all_segments=all_segments, seed=seed, exact=exact)


@kv_app.command("stats")
def kv_stats(
    price_per_gb_month: Annotated[
        Optional[float],  # noqa: UP045
        typer.Option("--price-per-gb-month", metavar="P", help="Price of 10^9 bytes stored for a month."),
    ] = None,
    archive: ArchiveOption = None,
    as_json: JsonOption = False,
    config: ConfigOption = None,
) -> int:
    """Bytes on disk per camera and camera-hour, by tier and codec, beside the source video; their cost at a price."""
    from jobs.kv import run_stats

    with claimed_stdout(as_json) as out:
        return run_stats(open_archive(archive, config), out, price_per_gb_month)


@kv_app.command("evict")
def kv_evict(
    max_bytes: Annotated[
        Optional[int],  # noqa: UP045
        typer.Option("--max-bytes", metavar="N", help="Cap for this run. [default: storage.max_kv_bytes]"),
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say what would be demoted; change nothing.")] = False,
    archive: ArchiveOption = None,
    wait: WaitOption = 0.0,
    as_json: JsonOption = False,
    config: ConfigOption = None,
) -> int:
    """Demote the coldest dense KV (int8, int4, tokens, then sparse only) until it fits under the byte cap."""
    from jobs.retention import run_evict

    with claimed_stdout(as_json) as out:
        return run_evict(open_archive(archive, config), out, max_bytes=max_bytes, dry_run=dry_run, wait_s=wait)


@app.command()
def retention(
    archive: ArchiveOption = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say what would be freed; change nothing.")] = False,
    wait: WaitOption = 0.0,
    as_json: JsonOption = False,
    config: ConfigOption = None,
) -> int:
    """Demote and expire old footage by the retention rules of the settings file."""
    from jobs.retention import run_retention

    with claimed_stdout(as_json) as out:
        return run_retention(open_archive(archive, config), out, dry_run=dry_run, wait_s=wait)


@app.command()
def doctor(archive: ArchiveOption = None, as_json: JsonOption = False, config: ConfigOption = None) -> int:
    """Check this machine and, where one is named, the archive."""
    from jobs.admin import run_doctor

    with claimed_stdout(as_json) as out:
        return run_doctor(archive, config, out)


@app.command()
def demo(
    folder: Annotated[str, typer.Argument(help="Working folder of the demo; it must be new or an earlier demo's.")] = (
        "vxl-demo"
    ),
    source: Annotated[
        Optional[str],  # noqa: UP045
        typer.Option(metavar="FOLDER|S3-URI", help="Index this footage instead of rendering some."),
    ] = None,
    minutes: Annotated[float, typer.Option(min=0.5, max=60, help="Minutes of footage to render in all.")] = 3.0,
) -> int:
    """Render camera footage, index it from S3 through Ray, then search, ask and scan it from new processes."""
    from jobs.demo import run

    with claimed_stdout(False) as out:
        return run(folder, source, minutes, out)


@app.command()
def parity(
    folder: Annotated[str, typer.Argument(help="Folder of recorded tensors (config.json, weights, tensors).")],
    as_json: JsonOption = False,
) -> int:
    """Compute a recording of the published model again and report the largest difference of each stage."""
    from jobs.parity import run

    with claimed_stdout(as_json) as out:
        return run(folder, out)


@app.command()
def bench(
    subject: Annotated[str, typer.Argument(help="What to measure: prefill or reuse.")],
    more: Annotated[Optional[list[int]], typer.Argument(metavar="[N]...", help="More numbers of frames.")] = None,  # noqa: UP045
    frames: Annotated[
        Optional[list[int]],  # noqa: UP045
        typer.Option("--frames", metavar="N", help="Frames of a video; several may follow."),
    ] = None,
    hours: Annotated[
        Optional[list[float]],  # noqa: UP045
        typer.Option("--hours", metavar="H", help="reuse: hours of footage, may be repeated. [default: 0.1667 and 1]"),
    ] = None,
    model: Annotated[
        Optional[str],  # noqa: UP045
        typer.Option(
            metavar="M",
            help="prefill: a checkpoint, random:8b or random:0.5b. [default: tiny] "
            "reuse: tiny or large. [default: both]",
        ),
    ] = None,
    device: Annotated[Optional[str], typer.Option(metavar="D", help="cpu, cuda, ... [default: a GPU if any]")] = None,  # noqa: UP045
    mode: Annotated[str, typer.Option(metavar="chunked|bounded|plain|masked", help="How to prefill.")] = "chunked",
    decoding: Annotated[
        str, typer.Option(metavar="eager|fixed|compile|graph", help="prefill: how tokens after the first are made.")
    ] = "eager",
    attention: Annotated[
        str, typer.Option(metavar="auto|sdpa|flash|flex|plain", help="prefill: the attention kernels.")
    ] = "auto",
    as_json: JsonOption = False,
) -> int:
    """Measure on this machine: stages of prefill, or answering from stored KV beside going back to the video."""
    from jobs.bench import run

    with claimed_stdout(as_json) as out:
        lengths = [*(frames or []), *(more or [])]
        return run(subject, lengths, hours or [], model, device, mode, out, decoding=decoding, attention=attention)


@app.command()
def train(
    stage: Annotated[
        str,
        typer.Option(metavar="S", help="footage, perception, search, features, pretraining, instruction or export."),
    ],
    folder: Annotated[str, typer.Option(metavar="RUN", help="Folder of the run; every stage of it is given the same.")],
    device: Annotated[Optional[str], typer.Option(metavar="D", help="cpu, cuda, ... [default: a GPU if any]")] = None,  # noqa: UP045
    seed: Annotated[int, typer.Option(min=0, metavar="N", help="Seed of clips, starting weights and samples.")] = 0,
    steps: Annotated[Optional[int], typer.Option(min=1, metavar="N", help="Steps of a training stage.")] = None,  # noqa: UP045
    minutes: Annotated[
        Optional[float],  # noqa: UP045
        typer.Option(min=0.01, metavar="M", help="End a training stage after so much time, all its runs together."),
    ] = None,
    clips: Annotated[
        Optional[int],  # noqa: UP045
        typer.Option(min=1, metavar="N", help="footage, features: training clips. [default: 8000; all]"),
    ] = None,
    clip_minutes: Annotated[
        int, typer.Option(min=1, max=30, metavar="M", help="footage: minutes of each clip that is recorded now.")
    ] = 1,
    events_per_minute: Annotated[
        Optional[float],  # noqa: UP045
        typer.Option(min=0.1, max=60.0, metavar="E", help="footage: how much happens. [default: 0.5 to 6, by seed]"),
    ] = None,
    workers: Annotated[int, typer.Option(min=1, metavar="N", help="Processes that render, threads that read.")] = 1,
    processes: Annotated[int, typer.Option(min=1, metavar="N", help="Processes that share a training stage.")] = 1,
    config: Annotated[
        Optional[str],  # noqa: UP045
        typer.Option(metavar="FILE", help="config.json of another shape of model, when the run begins."),
    ] = None,
    start: Annotated[
        Optional[str],  # noqa: UP045
        typer.Option(metavar="MODEL", help="Go on from these weights, not from random ones, when the run begins."),
    ] = None,
    rate: Annotated[
        Optional[float],  # noqa: UP045
        typer.Option(min=1e-6, max=1.0, metavar="R", help="Highest learning rate of a training stage."),
    ] = None,
    unfreeze: Annotated[
        Optional[str],  # noqa: UP045
        typer.Option(metavar="PARTS", help="instruction: train these from pixels: vision,dts,projector,language."),
    ] = None,
    as_json: JsonOption = False,
) -> int:
    """Train the model on rendered footage, one stage per command; the same command continues a stage."""
    from jobs.train import run

    with claimed_stdout(as_json) as out:
        return run(
            stage,
            folder,
            out,
            device=device,
            seed=seed,
            steps=steps,
            minutes=minutes,
            clips=clips,
            clip_minutes=clip_minutes,
            events_per_minute=events_per_minute,
            workers=workers,
            processes=processes,
            config=config,
            start=start,
            rate=rate,
            unfreeze=unfreeze,
        )


def main(arguments: list[str] | None = None) -> int:
    """Entry point of ``vxl``; the exit code. ``vxl`` alone prints the help."""
    from typer.exceptions import TyperException

    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("LANCE_LOG", "error")
    # torch's threads spin while they wait, which starves the decoder beside them; read when torch is first imported.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    if not (sys.argv[1:] if arguments is None else arguments):
        arguments = ["--help"]
    try:
        code = app(arguments, standalone_mode=False)
        if code == INTERRUPTED:  # typer turns an interrupt into this code and says nothing
            print("vxl: stopped", file=sys.stderr)
    except typer.Exit as exc:
        code = exc.exit_code
    except TyperException as exc:
        print(f"vxl: {exc.format_message()} (vxl COMMAND --help shows the options)", file=sys.stderr)
        code = exc.exit_code
    except (typer.Abort, KeyboardInterrupt):
        print("vxl: stopped", file=sys.stderr)
        code = INTERRUPTED
    except Exception as exc:
        code = report_error(exc)
    return code if isinstance(code, int) else 0


def report_error(error: Exception) -> int:
    """One line for an error made on purpose, a traceback for a bug; the exit code."""
    from pipeline.errors import ArchiveError

    if isinstance(error, ArchiveError):
        from jobs.output import printable

        print(f"vxl: {printable(str(error))}", file=sys.stderr)
        return error.exit_code
    import traceback

    traceback.print_exception(error, file=sys.stderr)
    print(f"vxl: internal error: {type(error).__name__}: {error}", file=sys.stderr)
    return 1


__all__ = ["Output", "app", "main"]

if __name__ == "__main__":
    sys.exit(main())
