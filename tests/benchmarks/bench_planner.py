"""How far the planner's predictions of reload and recompute are from what an ask then took.

    python -m tests.benchmarks.bench_planner ARCHIVE [--asks 24]

Every fourth ask recomputes, the others are left to the planner. Asks alternate between one segment and as many as the
settings allow, so that rates have to carry from one amount of work to another; first asks, which open and import,
are not counted. Prints the median and the worst factor between prediction and truth for each way, over which range
of work, and exits with 1 where a median is not below 2 (the ceiling is 1) or nothing was predicted. Run it on a machine
that does nothing else: a prediction cannot know who takes the cores next.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
from pathlib import Path

from pipeline import Archive
from pipeline.cost_log import Cost, read_costs

ASKED_FOR = 2.0


def main() -> int:
    parser = argparse.ArgumentParser(description="Accuracy of the planner's predictions.")
    parser.add_argument("archive", type=Path)
    parser.add_argument("--asks", type=int, default=24)
    arguments = parser.parse_args()
    whole = Archive(str(arguments.archive))
    query = whole.settings.query.model_copy(update={"max_segments": 1})
    archives = (whole, whole.under(whole.settings.model_copy(update={"query": query})))
    costs: dict[str, list[Cost]] = {}
    for number in range(arguments.asks + len(archives)):
        before = read_costs(arguments.archive)
        reuse = "recompute" if number % 4 >= 2 and number % 8 >= 4 else "auto"
        archives[number % 2].ask(f"How many people are there after {number} seconds?", reuse=reuse, max_new_tokens=1)
        for cost in added(before, read_costs(arguments.archive)):
            if cost.error is not None and not cost.is_first:
                costs.setdefault(cost.path, []).append(cost)
    result = {path: summary(of) for path, of in costs.items()}
    print(json.dumps({"ceiling": 1.0, "asked_for": ASKED_FOR, **result}, indent=2))
    return 0 if result and all(row["median_factor"] < ASKED_FOR for row in result.values()) else 1


def added(before: list[Cost], after: list[Cost]) -> list[Cost]:
    """What was noted in between, though the log drops its oldest lines now and then."""
    return after[after.index(before[-1]) + 1 :] if before and before[-1] in after else after


def summary(costs: list[Cost]) -> dict[str, float]:
    """The factors of one way, and the least and most work among its asks."""
    factors = [cost.error for cost in costs if cost.error is not None]
    segments = [cost.segments for cost in costs]
    return {
        "asks": len(costs),
        "median_factor": round(statistics.median(factors), 2),
        "worst_factor": round(max(factors), 2),
        "least_segments": min(segments),
        "most_segments": max(segments),
    }


if __name__ == "__main__":
    sys.exit(main())
