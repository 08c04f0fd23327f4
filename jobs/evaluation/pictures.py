"""Pictures of results, drawn with matplotlib: the needle heat map, the ways to answer, the kinds of question.

The one place that knows matplotlib; it is imported when a picture is drawn.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from jobs.evaluation.records import COLUMNS
from pipeline.errors import ConfigError

HEAT_MAP = "needle_heat_map.png"
WAYS = "ways_to_answer.png"
KINDS = "kinds_of_question.png"
_DPI = 110


def import_matplotlib() -> Any:
    """``matplotlib.figure``; raises ``ConfigError`` that says how to get it."""
    try:
        import matplotlib.figure
    except ImportError as exc:
        raise ConfigError("pictures need matplotlib: pip install 'vxl-archive[train]'") from exc
    return matplotlib.figure


def draw_pictures(folder: Path, results: Mapping[str, Any]) -> list[str]:
    """Write the pictures that the results give; their names. Raises ``ConfigError`` without matplotlib."""
    names: list[str] = []
    if results["needles"]["cells"]:
        _save(heat_map(results["needles"]["cells"]), folder / HEAT_MAP)
        names.append(HEAT_MAP)
    if results["counts"]["checkable"]:
        _save(ways_to_answer(results), folder / WAYS)
        _save(kinds_of_question(results), folder / KINDS)
        names += [WAYS, KINDS]
    return names


def heat_map(cells: list[Mapping[str, Any]]) -> Any:
    """Retrieval and answers by depth (down) and length of the video (across), one square per cell."""
    lengths, depths = sorted({cell["hours"] for cell in cells}), sorted({cell["depth"] for cell in cells})
    drawing = import_matplotlib().Figure(figsize=(3.2 + 2 * 0.9 * len(lengths) + 1.0, 1.6 + 0.36 * len(depths)))
    titles = {"retrieval": "its chunk is dense", "answer": "answered rightly"}
    for axes, (name, title) in zip(drawing.subplots(1, 2), titles.items(), strict=True):
        shown = [[float("nan")] * len(lengths) for _ in depths]
        for cell in cells:
            row, column = depths.index(cell["depth"]), lengths.index(cell["hours"])
            shown[row][column] = cell[name]
            axes.text(column, row, f"{cell[name]:.2f}\nof {cell['n']}", ha="center", va="center", fontsize=7)
        axes.imshow(shown, vmin=0.0, vmax=1.0, cmap="RdYlGn", aspect="auto")
        axes.set_xticks(range(len(lengths)), [_length(hours) for hours in lengths])
        axes.set_yticks(range(len(depths)), [f"{depth:.0%}" for depth in depths])
        axes.set(title=title, xlabel="length of the video", ylabel="depth of the needle")
    drawing.tight_layout()
    return drawing


def _length(hours: float) -> str:
    return f"{hours * 60:.0f} min" if hours < 1 else f"{hours:g} h"


def ways_to_answer(results: Mapping[str, Any]) -> Any:
    """A bar with its interval for every column, and for the commonest answer."""
    names = [*COLUMNS, "majority"]
    rows = [results["intervals"][name] for name in names]
    drawing = import_matplotlib().Figure(figsize=(8.0, 3.6))
    axes = drawing.subplots()
    values = [row["value"] for row in rows]
    errors = [
        [row["value"] - row["low"] for row in rows],
        [row["high"] - row["value"] for row in rows],
    ]
    colours = ["#b0b0b0" if name in ("blind", "majority") else "#3a6ea5" for name in names]
    axes.bar(range(len(names)), values, yerr=errors, capsize=3, color=colours)
    axes.set_xticks(range(len(names)), [name.replace("_", "\n") for name in names], fontsize=8)
    axes.set(ylim=(0.0, 1.0), ylabel="right", title=f"{rows[0]['n']} questions, answered in several ways")
    drawing.tight_layout()
    return drawing


def kinds_of_question(results: Mapping[str, Any]) -> Any:
    """What ``ask`` gets right of each kind, beside the model without video and the commonest answer."""
    kinds = list(results["by_kind"])
    drawing = import_matplotlib().Figure(figsize=(8.0, 3.4))
    axes = drawing.subplots()
    series = (("bilevel", "#3a6ea5"), ("blind", "#b0b0b0"), ("majority", "#d8c48a"))
    for number, (name, colour) in enumerate(series):
        places = [index + (number - 1) * 0.27 for index in range(len(kinds))]
        axes.bar(places, [results["by_kind"][kind][name] for kind in kinds], width=0.25, label=name, color=colour)
    axes.set_xticks(range(len(kinds)), [f"{kind}\n({results['by_kind'][kind]['n']})" for kind in kinds])
    axes.set(ylim=(0.0, 1.0), ylabel="right", title="by kind of question")
    axes.legend()
    drawing.tight_layout()
    return drawing


def _save(drawing: Any, path: Path) -> None:
    drawing.savefig(path, dpi=_DPI, metadata={"Software": None})
