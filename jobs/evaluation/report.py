"""Results for people: a table on the terminal, and a folder with ``results.json``, ``results.md`` and pictures.

    python -m jobs.evaluation.report RUN.json... --folder FOLDER [--document docs/evaluation.md]

pools the runs that ``--report`` left (``run.json``), writes the folder anew, and fills the results section of a
document. Runs of different weights or settings are refused by name.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from jobs.evaluation.metrics import document
from jobs.evaluation.pictures import draw_pictures, import_matplotlib
from jobs.evaluation.records import COLUMNS, Run, pooled, run_from_dict
from jobs.evaluation.targets import TARGETS, Target
from jobs.output import Output
from pipeline.errors import ConfigError, UsageError

RUN_NAME = "run.json"
RESULTS_NAME = "results.json"
TABLE_NAME = "results.md"
_SECTION = re.compile(r"(<!-- results: [^\n]*-->\n).*?(<!-- end of results -->)", re.DOTALL)
_VERDICT = {True: "met", False: "missed", None: "not measured"}


def check_pictures() -> None:
    """Raise ``ConfigError`` now rather than after half an hour when pictures cannot be drawn."""
    import_matplotlib()


def write_report(folder: Path, run: Run, results: Mapping[str, Any]) -> None:
    """Write the run's records, its results, a table and pictures; earlier ones are replaced.

    Raises ``ConfigError`` where the folder cannot be written or matplotlib is missing.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / RUN_NAME).write_text(json.dumps(run.to_dict(), ensure_ascii=False) + "\n", encoding="utf-8")
        (folder / RESULTS_NAME).write_text(json.dumps(results, ensure_ascii=False, indent=1) + "\n", encoding="utf-8")
        pictures = draw_pictures(folder, results)
        (folder / TABLE_NAME).write_text(to_markdown(results, pictures), encoding="utf-8")
    except OSError as exc:
        raise ConfigError(f"cannot write the report to {str(folder)!r}: {exc.strerror or exc}") from exc


def to_markdown(results: Mapping[str, Any], pictures: Sequence[str] = (), prefix: str = "") -> str:
    """The results as Markdown tables with the pictures; ``prefix`` goes before the pictures' names."""
    counts = results["counts"]
    seeds = results["seed"] if isinstance(results["seed"], list) else [results["seed"]]
    lines = [
        f"Model `{results['model']}`, seed {', '.join(map(str, seeds))}: {counts['questions']} questions, "
        f"{counts['searches']} searches and {counts['needles']} needles over {counts['videos']} videos, "
        f"{counts['hours']:.1f} hours.",
        "",
        "| what | measured | 95 % interval | guessing | target | |",
        "|---|---|---|---|---|---|",
        *(_target_row(target, results) for target in TARGETS),
        "",
        "| way to answer | right | 95 % interval |",
        "|---|---|---|",
        *(_column_row(name, results) for name in (*COLUMNS, "majority")),
        "",
        "| kind | n | " + " | ".join(_SHOWN) + " | blind | majority | wording |",
        "|---|---|" + "---|" * (len(_SHOWN) + 3),
        *(
            f"| {kind} | {row['n']} | "
            + " | ".join(figure(row[name]) for name in (*_SHOWN, "blind", "majority", "wording"))
            + " |"
            for kind, row in results["by_kind"].items()
        ),
        "",
        "| minutes | n | right | all dense | bytes read of dense KV |",
        "|---|---|---|---|---|",
        *(
            f"| {float(name):g} | {row['bilevel']['n']} | {figure(row['bilevel']['value'])} | {figure(row['dense'])} "
            f"| {figure(row['bytes_share'])} |"
            for name, row in results["by_minutes"].items()
        ),
        "",
    ]
    if results["by_novelty"]:
        lines += [
            "| what the answer shows | n | plain | all dense | right |",
            "|---|---|---|---|---|",
            *(
                f"| {name} | {row['bilevel']['n']} | {figure(row['plain'])} | {figure(row['dense'])} "
                f"| {figure(row['bilevel']['value'])} |"
                for name, row in results["by_novelty"].items()
            ),
            "",
        ]
    long_videos = results["segments_vs_whole"].get("long_videos", {})
    if long_videos:
        lines += [
            "| long videos, asked with | n | in segments | as one | less | 95 % interval |",
            "|---|---|---|---|---|---|",
            *(
                f"| {way} | {row['segments']['n']} | {figure(row['segments']['value'])} "
                f"| {figure(row['whole_video']['value'])} | {figure(row['difference']['value'])} "
                f"| {figure(row['difference']['low'])} to {figure(row['difference']['high'])} |"
                for way, row in long_videos.items()
            ),
            "",
        ]
    among = results["among_videos"]
    if among["right"]["n"]:
        lines += [
            "| naming a camera | n | of three videos at once | of its video alone | less | 95 % interval |",
            "|---|---|---|---|---|---|",
            f"| `ask` | {among['right']['n']} | {figure(among['right']['value'])} | {figure(among['alone']['value'])} "
            f"| {figure(among['difference']['value'])} "
            f"| {figure(among['difference']['low'])} to {figure(among['difference']['high'])} |",
            "",
        ]
    if results["bilevel_curve"]:
        lines += [
            "| bi-level, share of chunks dense | n | right | less all dense | 95 % interval | bytes read of dense KV |",
            "|---|---|---|---|---|---|",
            *(
                f"| {row['dense_share']:g} | {row['right']['n']} | {figure(row['right']['value'])} "
                f"| {figure(row['minus_dense']['value'])} "
                f"| {figure(row['minus_dense']['low'])} to {figure(row['minus_dense']['high'])} "
                f"| {figure(row['bytes_share'])} |"
                for row in results["bilevel_curve"]
            ),
            "",
        ]
    if results["needles"]["by_hours"]:
        lines += [
            "| needle, hours | n | its chunk dense | by chance | in a top-5 moment | answered |",
            "|---|---|---|---|---|---|",
            *(
                f"| {hours} | {row['n']} | {figure(row['retrieval'])} | {figure(row['chance_retrieval'])} "
                f"| {figure(row['search_top5'])} | {figure(row['answer'])} |"
                for hours, row in results["needles"]["by_hours"].items()
            ),
            "",
        ]
    lines += [f"![{Path(name).stem.replace('_', ' ')}]({prefix}{name})" for name in pictures]
    lines += ["", *(f"- {note}" for note in results["notes"])] if results["notes"] else []
    return "\n".join(lines).rstrip() + "\n"


_SHOWN = ("plain", "dense", "bilevel", "recompute_hits")


def _target_row(target: Target, results: Mapping[str, Any]) -> str:
    interval = target.interval(results)
    between = "-" if interval is None else f"{figure(interval[0])} to {figure(interval[1])}"
    sign = "<=" if target.is_most else ">="
    return (
        f"| {target.name} | {figure(target.value(results))} | {between} | {figure(target.guess(results))} "
        f"| {sign} {target.bound:g} | {_VERDICT[target.is_met(results)]} |"
    )


def _column_row(name: str, results: Mapping[str, Any]) -> str:
    row = results["intervals"][name]
    between = "-" if row["low"] is None else f"{figure(row['low'])} to {figure(row['high'])}"
    return f"| {name} | {figure(row['value'])} | {between} |"


def figure(value: float | None) -> str:
    """A figure of three digits after the point, or a dash."""
    return "-" if value is None else f"{value:.3f}"


def print_results(results: Mapping[str, Any], out: Output) -> None:
    """Targets, columns and notes on the terminal."""
    counts = results["counts"]
    out.text(
        f"model {results['model']}, seed {results['seed']}: {counts['questions']} questions, {counts['searches']} "
        f"searches, {counts['needles']} needles over {counts['videos']} videos, {counts['hours']:.2f} hours"
    )
    rows = []
    for target in TARGETS:
        interval = target.interval(results)
        rows.append(
            [
                target.name,
                figure(target.value(results)),
                "-" if interval is None else f"{figure(interval[0])}..{figure(interval[1])}",
                figure(target.guess(results)),
                f"{'<=' if target.is_most else '>='} {target.bound:g}",
                _VERDICT[target.is_met(results)],
            ]
        )
    out.table(["what", "measured", "95 %", "guessing", "target", "verdict"], rows, right=(1, 2, 3))
    columns = [
        [name, figure(row["value"]), "-" if row["low"] is None else f"{figure(row['low'])}..{figure(row['high'])}"]
        for name in (*COLUMNS, "majority")
        for row in [results["intervals"][name]]
    ]
    out.table(["the same questions, answered by", "right", "95 %"], columns, right=(1, 2))
    out.text(*(f"note: {note}" for note in results["notes"]))


def fill_section(path: Path, text: str) -> None:
    """Replace what lies between the result marks of a document. Raises ``UsageError`` where it has none."""
    found = path.read_text(encoding="utf-8") if path.is_file() else ""
    if not _SECTION.search(found):
        raise UsageError(f"{str(path)!r} has no section between '<!-- results: ... -->' and '<!-- end of results -->'")
    path.write_text(_SECTION.sub(lambda match: match.group(1) + text + match.group(2), found), encoding="utf-8")


def read_run(path: Path) -> Run:
    """A run that was written. Raises ``UsageError`` for a file that holds none."""
    try:
        return run_from_dict(json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError, KeyError, TypeError) as exc:
        raise UsageError(f"{str(path)!r} is no record of a run: {exc}") from exc


def main(arguments: Sequence[str] | None = None) -> int:
    """Pool runs and write one report; see the head of this module."""
    parser = argparse.ArgumentParser(prog="python -m jobs.evaluation.report", description="Pool runs into one report.")
    parser.add_argument("runs", nargs="+", type=Path, metavar="RUN.json")
    parser.add_argument("--folder", type=Path, required=True, help="where the report is written")
    parser.add_argument("--document", type=Path, help="a document whose results section is filled")
    given = parser.parse_args(arguments)
    try:
        run = pooled([read_run(path) for path in given.runs], [repr(str(path)) for path in given.runs])
        results = document(run)
        write_report(given.folder, run, results)
        if given.document is not None:
            prefix = os.path.relpath(given.folder, given.document.parent) + "/"
            fill_section(given.document, to_markdown(results, draw_pictures(given.folder, results), prefix))
    except (UsageError, ConfigError, ValueError) as exc:
        print(f"report: {exc}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
