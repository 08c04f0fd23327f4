"""Where the time of ``vxl search`` goes, process start and imports included.

    python tests/benchmarks/bench_search.py ARCHIVE [--rounds 7]

The ceiling is a new Python process that only imports lancedb: no search of a LanceDB table can start sooner.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
TARGET_S = 2.0
PARTS = """
import time; a = time.perf_counter()
import lancedb; b = time.perf_counter()
import sys
from pipeline.archive import Archive; c = time.perf_counter()
archive = Archive(sys.argv[1]); reader = archive._reader(); reader.videos(); d = time.perf_counter()
reader.notices; encoder = reader.text_encoder; encoder.embed(["a red car"]); e = time.perf_counter()
archive.search("a red car").run(); f = time.perf_counter()
import json
names = ["import_lancedb", "import_sdk", "open", "text_encoder", "search"]
times = [a, b, c, d, e, f]
print(json.dumps({name: after - before for name, before, after in zip(names, times, times[1:])}))
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("archive")
    parser.add_argument("--rounds", type=int, default=7)
    arguments = parser.parse_args()
    python = [sys.executable]
    commands = {
        "python alone": [*python, "-c", "pass"],
        "import lancedb (ceiling)": [*python, "-c", "import lancedb"],
        "vxl --help": [*python, "-m", "jobs.cli", "--help"],
        "vxl search": [*python, "-m", "jobs.cli", "search", "a red car", "--archive", arguments.archive],
    }
    times: dict[str, list[float]] = {name: [] for name in commands}
    for _ in range(arguments.rounds):
        for name, command in commands.items():
            times[name].append(wall_s(command))
    for name, values in times.items():
        print(f"{name:<26} median {statistics.median(values):.2f} s  ({min(values):.2f} to {max(values):.2f})")
    done = subprocess.run(
        [*python, "-c", PARTS, arguments.archive], check=True, capture_output=True, text=True, cwd=ROOT
    )
    parts = json.loads(done.stdout)
    print("inside one search: " + ", ".join(f"{name} {value:.2f} s" for name, value in parts.items()))
    print(f"target: vxl search at most {TARGET_S:g} s")
    print(json.dumps({"benchmark": "search_start", "cores": os.cpu_count(), "times_s": times, "parts_s": parts}))


def wall_s(command: list[str]) -> float:
    started = time.perf_counter()
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, cwd=ROOT)
    return time.perf_counter() - started


if __name__ == "__main__":
    main()
