"""The commands ``vxl evaluate ...``: options in, one measurement, one document out. ``jobs/cli.py`` hangs them in.

Nothing heavy is imported before a command runs.
"""

from __future__ import annotations

from typing import Annotated, Optional

import typer

from jobs.output import claimed_stdout

evaluate_app = typer.Typer(help="How well the model answers and searches: measured, beside what guessing gives.")

JsonOption = Annotated[bool, typer.Option("--json", help="Print one JSON document on standard output.")]
ModelOption = Annotated[str, typer.Option(metavar="M", help="tiny, a checkpoint folder or a Hub id.")]
ReportOption = Annotated[
    Optional[str],  # noqa: UP045
    typer.Option("--report", metavar="FOLDER", help="Write records, results, a table and pictures into this folder."),
]


@evaluate_app.callback()
def group() -> None:
    """Keeps ``evaluate`` a group of commands, however many there are."""


@evaluate_app.command("rendered")
def rendered(
    seed: Annotated[int, typer.Option(min=0, help="Seed of the test archive; every seed gives another one.")] = 1,
    questions: Annotated[int, typer.Option(min=1, metavar="N", help="Questions to ask; a third as many searches.")] = (
        300
    ),
    model: ModelOption = "tiny",
    minutes: Annotated[
        Optional[float],  # noqa: UP045
        typer.Option(min=0.5, metavar="M", help="Minutes of footage in all. [default: as many as the questions need]"),
    ] = None,
    folder: Annotated[
        Optional[str],  # noqa: UP045
        typer.Option(metavar="KEEP", help="Keep footage, archive and answers in this new folder."),
    ] = None,
    needle_hours: Annotated[
        Optional[list[float]],  # noqa: UP045
        typer.Option(
            metavar="H",
            help="A needle test of this many hours beside the default ones; 0: without the default ones; repeatable.",
        ),
    ] = None,
    whole_minutes: Annotated[
        float,
        typer.Option(
            min=0,
            metavar="M",
            help="Also index this many minutes of long videos twice, in segments and as one, and ask both the same.",
        ),
    ] = 0.0,
    as_json: JsonOption = False,
    report: ReportOption = None,
) -> int:
    """Render an archive that nobody has seen, index it, ask and search it from another process, and count."""
    from jobs.evaluation.command import run_rendered

    with claimed_stdout(as_json) as out:
        return run_rendered(
            out,
            seed=seed,
            num_questions=questions,
            model=model,
            minutes=minutes,
            folder=folder,
            needle_hours=needle_hours or [],
            whole_minutes=whole_minutes,
            report=report,
        )


@evaluate_app.command("benchmark")
def benchmark(
    name: Annotated[
        str,
        typer.Argument(
            metavar="NAME",
            help="mlvu, mlvu-test, videomme, lvbench, longvideobench, longvideobench-test or charades-sta.",
        ),
    ],
    data_folder: Annotated[str, typer.Argument(metavar="DATA_FOLDER", help="Where annotation and videos lie.")],
    model: ModelOption = "tiny",
    device: Annotated[Optional[str], typer.Option(metavar="D", help="cpu, cuda, ... [default: a GPU if any]")] = None,  # noqa: UP045
    limit: Annotated[Optional[int], typer.Option(min=1, metavar="N", help="Only the first N items.")] = None,  # noqa: UP045
    mode: Annotated[str, typer.Option(metavar="plain|chunked|bilevel", help="How the model answers.")] = "chunked",
    subtitles: Annotated[bool, typer.Option("--subtitles", help="Ask with subtitles, where there are any.")] = False,
    frames: Annotated[
        Optional[int],  # noqa: UP045
        typer.Option(min=1, metavar="N", help="Most frames of a video. [default: as published]"),
    ] = None,
    results: Annotated[
        Optional[str],  # noqa: UP045
        typer.Option(metavar="FILE", help="Keep replies here and go on from here. [default: NAME-MODE.results.jsonl]"),
    ] = None,
    skip_missing: Annotated[
        bool, typer.Option("--skip-missing", help="Leave out questions whose video is not there.")
    ] = False,
    skip_invalid: Annotated[
        bool, typer.Option("--skip-invalid", help="Leave out rows that cannot be used, such as times beyond the end.")
    ] = False,
    as_json: JsonOption = False,
) -> int:
    """Run a published benchmark from its own files, with its prompts, answer rules and metrics."""
    from jobs.evaluation.benchmarks.command import run_benchmark

    with claimed_stdout(as_json) as out:
        return run_benchmark(
            out,
            name=name,
            folder=data_folder,
            model=model,
            device=device,
            limit=limit,
            mode=mode,
            subtitles=subtitles,
            frames=frames,
            results=results,
            skip_missing=skip_missing,
            skip_invalid=skip_invalid,
        )


@evaluate_app.command("clips")
def clips(
    folder: Annotated[str, typer.Argument(metavar="FOLDER", help="Clips with manifest.jsonl and truth.jsonl.")],
    model: ModelOption = "tiny",
    archive: Annotated[
        Optional[str],  # noqa: UP045
        typer.Option(metavar="FOLDER", help="Index into this archive and keep it. [default: one that is removed]"),
    ] = None,
    fps: Annotated[Optional[float], typer.Option(help="Frames sampled per second. [default: 1]")] = None,  # noqa: UP045
    as_json: JsonOption = False,
) -> int:
    """Index clips with known contents, search and ask them, and compare with random order and no video."""
    from jobs.evaluation.clips import run_clips

    with claimed_stdout(as_json) as out:
        return run_clips(out, folder=folder, model=model, archive=archive, fps=fps)
