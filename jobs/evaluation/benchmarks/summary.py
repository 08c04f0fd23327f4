"""From scores to a report: accuracy in all and by each of the benchmark's groupings, or IoU of stretches of time."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from statistics import fmean
from typing import Any

from jobs.evaluation.benchmarks.items import Benchmark, Item, Score
from jobs.evaluation.statistics import share

IOU_THRESHOLDS = (0.3, 0.5, 0.7)


def summarise(benchmark: Benchmark, scored: Sequence[tuple[Item, Score]]) -> dict[str, Any]:
    """``metrics`` over all items whose answer is known, and ``by``: grouping, value, metrics.

    Accuracy (1 of n counts the same for every item) comes with its Wilson interval, with ``macro_accuracy``, the mean
    over the values of the main grouping, and with ``chance``, what blind guessing would get. Grounding has ``miou`` and
    the share of items whose IoU reaches each of 0.3, 0.5 and 0.7.
    """
    known = [(item, score.value) for item, score in scored if score.value is not None]
    measure = _grounding if benchmark.metric == "grounding" else _accuracy
    groups: dict[str, dict[str, list[tuple[Item, float]]]] = defaultdict(lambda: defaultdict(list))
    for item, value in known:
        for grouping, names in item.categories.items():
            for name in names:
                groups[grouping][name].append((item, value))
    by = {grouping: {name: measure(rows) for name, rows in values.items()} for grouping, values in groups.items()}
    metrics = measure(known)
    if benchmark.metric == "accuracy" and by:
        main = next(iter(by.values()))
        metrics["macro_accuracy"] = fmean(values["accuracy"]["value"] for values in main.values())
    return {"metrics": metrics, "by": by}


def _accuracy(rows: Sequence[tuple[Item, float]]) -> dict[str, Any]:
    chance = fmean(1 / len(item.options) for item, _ in rows) if rows else None
    return {"accuracy": share([value == 1.0 for _, value in rows]).to_dict(), "chance": chance}


def _grounding(rows: Sequence[tuple[Item, float]]) -> dict[str, Any]:
    values = [value for _, value in rows]
    shares = {f"r1_iou_{limit}": share([value >= limit for value in values]).to_dict() for limit in IOU_THRESHOLDS}
    return {"miou": fmean(values) if values else None, **shares}


def table_rows(summary: Mapping[str, Any]) -> list[list[str]]:
    """Grouping, value, number of items, and each metric in percent with its interval."""
    rows = [["all", "", *_cells(summary["metrics"])]]
    for grouping, values in summary["by"].items():
        rows += [[grouping, name, *_cells(metrics)] for name, metrics in sorted(values.items())]
    return rows


def table_columns(benchmark: Benchmark) -> list[str]:
    """The headings that go with ``table_rows``."""
    if benchmark.metric == "grounding":
        return ["group", "", "n", "mIoU", *(f"R@1 IoU {limit}" for limit in IOU_THRESHOLDS)]
    return ["group", "", "n", "accuracy", "95 %", "chance"]


def _cells(metrics: Mapping[str, Any]) -> list[str]:
    if "miou" in metrics:
        shares = [metrics[f"r1_iou_{limit}"] for limit in IOU_THRESHOLDS]
        return [str(shares[0]["n"]), _percent(metrics["miou"]), *map(_with_interval, shares)]
    accuracy = metrics["accuracy"]
    interval = "-" if accuracy["value"] is None else f"{100 * accuracy['low']:.1f} to {100 * accuracy['high']:.1f}"
    return [str(accuracy["n"]), _percent(accuracy["value"]), interval, _percent(metrics["chance"])]


def _percent(value: float | None) -> str:
    return "-" if value is None else f"{100 * value:.1f}"


def _with_interval(estimate: Mapping[str, Any]) -> str:
    if estimate["value"] is None:
        return "-"
    return f"{100 * estimate['value']:.1f} ({100 * estimate['low']:.1f} to {100 * estimate['high']:.1f})"
