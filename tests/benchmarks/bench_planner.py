"""How far the planner's predictions of reload and recompute are from what an ask then took.

    python -m tests.benchmarks.bench_planner ARCHIVE [--asks 24]

Every fourth ask recomputes, the others are left to the planner; the first ask of the process is not counted. Prints the
median factor between prediction and truth for each way; the ceiling is 1, and less than 2 is asked for. Run it on a
machine that does nothing else: a prediction cannot know who takes the cores next.
"""

from __future__ import annotations

import argparse
import json
import statistics
from pathlib import Path

from pipeline import Archive
from pipeline.cost_log import read_costs


def main() -> None:
    parser = argparse.ArgumentParser(description="Accuracy of the planner's predictions.")
    parser.add_argument("archive", type=Path)
    parser.add_argument("--asks", type=int, default=24)
    arguments = parser.parse_args()
    archive = Archive(str(arguments.archive))
    known = len(read_costs(arguments.archive))
    for number in range(arguments.asks + 1):
        reuse = "recompute" if number % 4 == 3 else "auto"
        archive.ask(f"How many people are there after {number} seconds?", reuse=reuse, max_new_tokens=1)
    errors: dict[str, list[float]] = {}
    for cost in read_costs(arguments.archive)[known + 1 :]:
        if cost.predicted_s:
            factor = cost.actual_s / cost.predicted_s
            errors.setdefault(cost.path, []).append(max(factor, 1 / factor))
    result = {path: {"asks": len(f), "median_factor": round(statistics.median(f), 2)} for path, f in errors.items()}
    print(json.dumps({"ceiling": 1.0, "asked_for": 2.0, **result}, indent=2))


if __name__ == "__main__":
    main()
