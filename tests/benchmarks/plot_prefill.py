"""Frames against seconds and memory: exact, bounded and masked prefill, each as far as it goes, as a page and a plot.

    OMP_NUM_THREADS=1 python -m tests.benchmarks.plot_prefill --model tiny --out docs/benchmarks/NAME \
        --frames 250 500 1000 2500 5000 10000 --masked-frames 64 128 256 512 [--also random:0.5b 16 32 64]

Every mode of every model is measured by ``vxl bench prefill`` in a process of its own, so that no peak of memory is
that of another. Writes ``NAME.md`` (tables, growth, the commands) and ``NAME.png``; ``--note`` is a sentence for the
page, for example what else ran. ``--save FILE`` keeps what was measured as JSON, and ``--from FILE`` writes both again
without measuring. Needs matplotlib.
"""

from __future__ import annotations

import argparse
import json
import os
import shlex
import subprocess
import sys
from collections.abc import Sequence
from datetime import date
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
LABELS = {"chunked": "exact, block by block", "bounded": "bounded", "masked": "one masked pass"}
MIB = 2**20
COLUMNS = (
    *("mode", "frames", "tokens", "vision s", "DTS s", "language s", "total s", "tokens/s", "GFLOP", "of matrix rate"),
    *("peak MiB", "beyond the KV MiB", "first token s", "decode tokens/s", "of memory rate"),
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="tiny")
    parser.add_argument("--frames", type=int, nargs="+", default=[250, 500, 1000, 2500, 5000, 10000])
    parser.add_argument("--masked-frames", type=int, nargs="*", default=[64, 128, 256, 512])
    parser.add_argument("--also", nargs="+", default=[], metavar=("MODEL", "N"), help="another model and its frames")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--out", required=True, help="path without suffix")
    parser.add_argument("--note", default="")
    parser.add_argument("--save", help="JSON to write")
    parser.add_argument("--from", dest="measured", help="JSON of an earlier run")
    arguments = parser.parse_args()
    if arguments.measured:
        runs = json.loads(Path(arguments.measured).read_text(encoding="utf-8"))
    else:
        runs = [
            measure(arguments.model, mode, arguments.masked_frames if mode == "masked" else arguments.frames, arguments)
            for mode in LABELS
            if mode != "masked" or arguments.masked_frames
        ]
        if arguments.also:
            model, *frames = arguments.also
            runs += [measure(model, mode, list(map(int, frames)), arguments) for mode in ("chunked", "masked")]
    out = Path(arguments.out)
    if arguments.save:
        Path(arguments.save).write_text(json.dumps(runs) + "\n", encoding="utf-8")
    out.with_suffix(".md").write_text(page(runs, out.name, arguments.note), encoding="utf-8")
    draw([run for run in runs if run["model"] == arguments.model], out.with_suffix(".png"))


def measure(model: str, mode: str, frames: Sequence[int], arguments: argparse.Namespace) -> dict[str, Any]:
    """One process of ``vxl bench prefill``: its document, with the command."""
    words = ["bench", "prefill", "--frames", *map(str, frames), "--model", model, "--device", arguments.device]
    words += ["--mode", mode, "--json"]
    print("vxl " + shlex.join(words), file=sys.stderr)
    command = [sys.executable, "-m", "jobs.cli", *words]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True, cwd=ROOT)
    return {**json.loads(done.stdout), "command": "vxl " + shlex.join(words)}


def page(runs: Sequence[dict[str, Any]], name: str, note: str) -> str:
    """The result file."""
    first = runs[0]
    lines = [
        f"# Prefill against length, {date.today():%B %Y}",
        "",
        "From random pixels to complete KV, then a question of 60 tokens and an answer of 16 over all of it, dense. "
        f"{first['dtype']}, {first['device']}, {first['threads']} of {os.cpu_count()} threads. {note}".strip(),
        "",
        "```",
        *(f"OMP_NUM_THREADS={run['threads']} {run['command']}" for run in runs),
        "```",
        "",
        f"![Frames against seconds and memory]({name}.png)",
    ]
    for model in dict.fromkeys(run["model"] for run in runs):
        of_model = [run for run in runs if run["model"] == model]
        sizes = ", ".join(f"{part} {count / 1e6:.1f} M" for part, count in of_model[0]["parameters"].items())
        lines += ["", f"## {model}", "", f"Parameters: {sizes}.", ""]
        lines += ["| " + " | ".join(COLUMNS) + " |", "|" + "---|" * len(COLUMNS)]
        for run in of_model:
            lines += ["| " + " | ".join(row) + " |" for row in rows(run)]
        lines += ["", *rates(of_model), "", *growth(of_model)]
    return "\n".join(lines) + "\n"


def rows(document: dict[str, Any]) -> list[list[str]]:
    matrix, memory = document["matrix_flops_per_s"], document["memory_bytes_per_s"]
    return [
        [
            LABELS[document["mode"]],
            f"{run['frames']:,}",
            f"{run['tokens']:,}",
            *(f"{run[name]:.2f}" for name in ("vision_s", "dts_s", "language_s", "total_s")),
            f"{run['tokens'] / run['total_s']:,.0f}",
            f"{run['flops'] / 1e9:,.0f}",
            f"{run['flops'] / run['total_s'] / matrix:.0%}",
            f"{run['peak_bytes'] / MIB:,.0f}",
            f"{(run['peak_bytes'] - run['kv_bytes']) / MIB:,.0f}",
            f"{run['first_token_s']:.3f}",
            f"{1 / run['decode_s']:,.1f}",
            f"{run['decode_bytes'] / run['decode_s'] / memory:.0%}",
        ]
        for run in document["runs"]
    ]


def rates(documents: Sequence[dict[str, Any]]) -> list[str]:
    """The ceilings, as measured in each process."""
    matrix = [document["matrix_flops_per_s"] / 1e9 for document in documents]
    memory = [document["memory_bytes_per_s"] / 1e9 for document in documents]
    return [
        f"Matrix rate {min(matrix):.0f} to {max(matrix):.0f} GFLOP/s, memory rate (copy, read and written) "
        f"{min(memory):.1f} to {max(memory):.1f} GB/s."
    ]


def growth(documents: Sequence[dict[str, Any]]) -> list[str]:
    """How often the time, the arithmetic and the memory of the longest run are those of a quarter of its length."""
    lines = []
    for document in documents:
        by_frames = {run["frames"]: run for run in document["runs"]}
        long = by_frames[max(by_frames)]
        short = by_frames.get(long["frames"] // 4)
        if short is None:
            continue
        beyond = [run["peak_bytes"] - run["kv_bytes"] for run in (long, short)]
        ratio = {name: long[name] / short[name] for name in ("total_s", "language_s", "flops")}
        lines.append(
            f"- {LABELS[document['mode']]}: from {short['frames']:,} to {long['frames']:,} frames the time grows "
            f"{ratio['total_s']:.2f} times (language {ratio['language_s']:.2f}), the arithmetic {ratio['flops']:.2f} "
            f"times, the peak beyond the KV {beyond[0] / beyond[1]:.2f} times."
        )
    return lines


def draw(documents: Sequence[dict[str, Any]], path: Path) -> None:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, (seconds, memory) = pyplot.subplots(1, 2, figsize=(11, 4.2))
    for document in documents:
        frames = [run["frames"] for run in document["runs"]]
        style = {"marker": "o", "markersize": 4, "label": LABELS[document["mode"]]}
        seconds.plot(frames, [run["total_s"] for run in document["runs"]], **style)
        memory.plot(frames, [run["peak_bytes"] / MIB for run in document["runs"]], **style)
    longest = max(documents, key=lambda document: max(run["frames"] for run in document["runs"]))["runs"]
    memory.plot(
        [run["frames"] for run in longest], [run["kv_bytes"] / MIB for run in longest], "k--", label="the KV itself"
    )
    for axes, label in ((seconds, "seconds, pixels to KV"), (memory, "peak memory, MiB")):
        axes.set(xlabel="frames", ylabel=label, xscale="log", yscale="log")
        axes.grid(True, which="both", alpha=0.25)
        axes.legend()
    figure.suptitle(f"{documents[0]['model']}, {documents[0]['device']}, {documents[0]['threads']} thread(s)")
    figure.tight_layout()
    figure.savefig(path, dpi=110)


if __name__ == "__main__":
    main()
