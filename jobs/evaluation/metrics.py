"""From records to figures: every metric of ``vxl evaluate rendered``, computed from a ``Run`` alone. Pure.

``docs/evaluation.md`` defines each of them in words; keep the two together.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from jobs.evaluation import among, twice
from jobs.evaluation.answers import CHECKABLE, is_right, time_error_s
from jobs.evaluation.curve import curve
from jobs.evaluation.needle import is_answered
from jobs.evaluation.plan import first_right
from jobs.evaluation.records import COLUMNS, AskedNeedle, AskedQuestion, AskedSearch, AskedTwice, Run
from jobs.evaluation.statistics import NOTHING, Estimate, median_of, paired_difference, share
from videoxl2.training.qa import QA, blind_baseline

METRICS = (
    "search_single_recall5",
    "search_double_recall5",
    "multiple_choice",
    "exists",
    "when_median_error_s",
    "needle_retrieval",
    "needle_answer",
    "plain",
    "chunked",
    "dense",
    "bilevel",
    "bilevel_bytes_share",
    "int8",
    "int4",
    "sparse_only",
    "recompute_hits",
    "blind",
    "majority",
)
"""The keys of ``metrics``: none is ever missing; one that could not be measured is None, and a note says why."""

COMPARED = (
    ("chunked", "plain"),
    ("bilevel", "dense"),
    ("int8", "dense"),
    ("int4", "dense"),
    ("sparse_only", "dense"),
    ("recompute_hits", "bilevel"),
    ("bilevel", "blind"),
)
"""Pairs of columns whose difference is reported, the first less the second, over the same questions."""

_DIGITS = 4
_CHUNK_S = 24.0


def document(run: Run) -> dict[str, Any]:
    """The one document of the command: seed, counts, metrics, and beside them intervals and breakdowns."""
    estimates = metric_estimates(run)
    metrics = {name: estimates[name].value for name in METRICS}
    notes = list(run.notes)
    unexplained = [name for name, value in metrics.items() if value is None and not any(name in note for note in notes)]
    if unexplained:
        notes.append(f"{', '.join(unexplained)}: this run has no item of the kind")
    checkable = [item for item in run.questions if item.question.kind in CHECKABLE]
    return rounded(
        {
            "seed": run.seeds[0] if len(run.seeds) == 1 else list(run.seeds),
            "model": run.model,
            "counts": counts(run),
            "metrics": metrics,
            "intervals": {name: estimates[name].to_dict() for name in METRICS},
            "baselines": baselines(run),
            "differences": {
                f"{ours}_minus_{theirs}": paired_difference(
                    outcomes(checkable, ours), outcomes(checkable, theirs)
                ).to_dict()
                for ours, theirs in COMPARED
            },
            "bilevel_curve": curve(checkable),
            "segments_vs_whole": segments_vs_whole(run),
            "among_videos": among.figures_among(run.questions),
            "by_kind": by_kind(run),
            "by_minutes": _grouped(checkable, lambda item: _length_name(item.question.video_s)),
            "by_action": _grouped(checkable, lambda item: item.question.action or "(no action)"),
            "by_novelty": _grouped(
                [item for item in checkable if item.question.never_shown is not None],
                lambda item: "never shown in training" if item.question.never_shown else "other",
            ),
            "by_camera_kind": _grouped(checkable, lambda item: item.question.camera_kind),
            "search": search_figures(run.searches),
            "when": when_figures(run),
            "needles": needle_figures(run.needles),
            "timings": dict(run.timings),
            "notes": notes,
        }
    )


def metric_estimates(run: Run) -> dict[str, Estimate]:
    """Each of ``METRICS`` with its interval; byte shares have none."""
    checkable = [item for item in run.questions if item.question.kind in CHECKABLE]
    found = {name: share(outcomes(checkable, name)) for name in COLUMNS}
    for name, number in (("search_single_recall5", 1), ("search_double_recall5", 2)):
        found[name] = recall(run.searches, number, 5)
    for name, kind in (("multiple_choice", "choice"), ("exists", "exists")):
        found[name] = share(outcomes([item for item in checkable if item.question.kind == kind], "bilevel"))
    found["when_median_error_s"] = median_of(time_errors(run, "bilevel"))
    found["needle_retrieval"] = share([needle.is_dense for needle in run.needles])
    found["needle_answer"] = share([is_answered(needle) for needle in run.needles])
    bytes_share = bytes_read_share(checkable)
    found["bilevel_bytes_share"] = Estimate(bytes_share, None, None, len(checkable))
    found["majority"] = majority(checkable)
    return found


def counts(run: Run) -> dict[str, Any]:
    """How much there was: videos, hours, questions by kind, searches, needles."""
    kinds = sorted({item.question.kind for item in run.questions})
    return {
        "videos": run.num_videos,
        "hours": run.video_hours,
        "questions": len(run.questions),
        "by_kind": {kind: sum(item.question.kind == kind for item in run.questions) for kind in kinds},
        "exists_yes": sum(i.question.kind == "exists" and i.question.expected == "yes" for i in run.questions),
        "checkable": sum(item.question.kind in CHECKABLE for item in run.questions),
        **({"questions_asked_twice": len(run.twice)} if run.twice else {}),
        "searches": len(run.searches),
        "searches_single": sum(item.search.num_attributes == 1 for item in run.searches),
        "searches_double": sum(item.search.num_attributes == 2 for item in run.searches),
        "needles": len(run.needles),
    }


def outcomes(items: Iterable[AskedQuestion], column: str) -> list[bool]:
    """Right or wrong of each checkable question in a column."""
    return [
        is_right(item.question.kind, item.answers[column], item.question.expected, item.question.options)
        for item in items
    ]


def bytes_read_share(items: Sequence[AskedQuestion]) -> float | None:
    """Bytes of KV that ``ask`` read for the questions, of those that all their dense KV would have taken."""
    dense = sum(item.dense_bytes for item in items)
    return sum(item.kv_bytes_read for item in items) / dense if dense else None


def majority(items: Sequence[AskedQuestion]) -> Estimate:
    """The share that the commonest answer of each kind gets right; the commonest is taken from these very questions."""
    shares = blind_baseline([_qa(item) for item in items])
    right = sum(round(value * sum(i.question.kind == kind for i in items)) for kind, value in shares.items())
    return share([True] * right + [False] * (len(items) - right))


def _qa(item: AskedQuestion) -> QA:
    question = item.question
    return QA(question.kind, question.question, question.expected, question.options, None, ())  # type: ignore[arg-type]


def baselines(run: Run) -> dict[str, Any]:
    """What guessing gives, beside the metrics: from wording alone, by chance, and blind rankings."""
    checkable = [item for item in run.questions if item.question.kind in CHECKABLE]
    shares = blind_baseline([_qa(item) for item in checkable])
    single = [item for item in run.searches if item.search.num_attributes == 1]
    double = [item for item in run.searches if item.search.num_attributes == 2]
    when = [item for item in run.questions if item.question.kind == "when" and item.question.interval is not None]
    return {
        "wording": share([item.question.is_guessed for item in checkable]).to_dict(),
        "multiple_choice": {
            "majority": shares.get("choice"),
            "wording": share([i.question.is_guessed for i in checkable if i.question.kind == "choice"]).value,
            "blind": share(outcomes([i for i in checkable if i.question.kind == "choice"], "blind")).value,
            "chance": 0.25,
        },
        "exists": {
            "majority": shares.get("exists"),
            "wording": share([i.question.is_guessed for i in checkable if i.question.kind == "exists"]).value,
            "blind": share(outcomes([i for i in checkable if i.question.kind == "exists"], "blind")).value,
            "chance": 0.5,
        },
        "search_single_recall5": _mean([item.chance["recall5"] for item in single]),
        "search_double_recall5": _mean([item.chance["recall5"] for item in double]),
        "when_median_error_s": median_of(
            [
                time_error_s(f"{i.question.video_s / 2:.1f}", i.question.interval or (0, 0), i.question.video_s)
                for i in when
            ]
        ).value,
        "needle_retrieval": _mean([needle.dense_share for needle in run.needles]),
        "needle_answer": 0.25 if run.needles else None,
    }


def time_errors(run: Run, column: str) -> list[float]:
    """Error in seconds of every question for a time, in a column."""
    return [
        time_error_s(item.answers[column], item.question.interval, item.question.video_s)
        for item in run.questions
        if item.question.kind == "when" and item.question.interval is not None
    ]


def when_figures(run: Run) -> dict[str, Any]:
    """Errors of time answers: the share within one chunk, and the median of every column."""
    errors = time_errors(run, "bilevel")
    return {
        "within_one_chunk": share([error <= _CHUNK_S for error in errors]).to_dict(),
        "chunk_s": _CHUNK_S,
        "median_error_s_by_column": {name: median_of(time_errors(run, name)).value for name in COLUMNS},
    }


def by_kind(run: Run) -> dict[str, Any]:
    """Accuracy of each checkable kind in every column, and what its majority and its wording give away."""
    found: dict[str, Any] = {}
    for kind in CHECKABLE:
        items = [item for item in run.questions if item.question.kind == kind]
        if items:
            found[kind] = {
                "n": len(items),
                **{name: share(outcomes(items, name)).value for name in COLUMNS},
                "majority": majority(items).value,
                "wording": share([item.question.is_guessed for item in items]).value,
            }
    return found


def _grouped(items: Sequence[AskedQuestion], name_of: Callable[[AskedQuestion], str]) -> dict[str, Any]:
    """Accuracy of ``ask`` and of dense KV, and the share of bytes read, by a property of the question."""
    groups: dict[str, list[AskedQuestion]] = {}
    for item in items:
        groups.setdefault(name_of(item), []).append(item)
    return {
        name: {
            "bilevel": share(outcomes(group, "bilevel")).to_dict(),
            "dense": share(outcomes(group, "dense")).value,
            "plain": share(outcomes(group, "plain")).value,
            "bytes_share": bytes_read_share(group),
        }
        for name, group in sorted(groups.items())
    }


def _length_name(video_s: float) -> str:
    return f"{video_s / 60:04.1f}"


def segments_vs_whole(run: Run) -> dict[str, Any]:
    """Stored segments against one prefill of the whole video, all dense: questions about videos of several segments.

    Long videos that were indexed twice count with those of the archive; ``long_videos`` has them alone, by way of
    asking, where there are any.
    """
    items = [
        AskedTwice(
            item.question, {"dense": item.answers["dense"]}, {"dense": item.answers["chunked"]}, item.num_segments
        )
        for item in run.questions
    ]
    found = twice.compare([*items, *run.twice], "dense")
    if run.twice:
        found["long_videos"] = {way: twice.compare(run.twice, way) for way in twice.WAYS}
    return found


def recall(searches: Sequence[AskedSearch], num_attributes: int, depth: int) -> Estimate:
    """The share of searches with a right moment among the best ``depth``, doubtful moments left out."""
    ranks = [first_right(item.search, item.found) for item in searches if item.search.num_attributes == num_attributes]
    return share([rank is not None and rank <= depth for rank in ranks])


def search_figures(searches: Sequence[AskedSearch]) -> dict[str, Any]:
    """Recall at 1 and 5 and the mean reciprocal rank, with what a blind ranking gives, by number of attributes."""
    found: dict[str, Any] = {}
    for name, number in (("single", 1), ("double", 2)):
        items = [item for item in searches if item.search.num_attributes == number]
        ranks = [first_right(item.search, item.found) for item in items]
        found[name] = {
            "recall1": recall(searches, number, 1).to_dict(),
            "recall5": recall(searches, number, 5).to_dict(),
            "mean_reciprocal_rank": _mean([0.0 if rank is None else 1 / rank for rank in ranks]),
            "chance_recall1": _mean([item.chance["recall1"] for item in items]),
            "chance_recall5": _mean([item.chance["recall5"] for item in items]),
        }
    return found


def needle_figures(needles: Sequence[AskedNeedle]) -> dict[str, Any]:
    """Retrieval and answers by length and depth (the heat map), by length, by depth and by kind of needle."""

    def figures(items: Sequence[AskedNeedle]) -> dict[str, Any]:
        return {
            "n": len(items),
            "retrieval": share([item.is_dense for item in items]).value,
            "answer": share([is_answered(item) for item in items]).value,
            "in_context": share([item.is_in_context for item in items]).value,
            "search_top5": share([item.is_in_top5 for item in items]).value,
            "chance_retrieval": _mean([item.dense_share for item in items]),
        }

    lengths, depths = sorted({item.hours for item in needles}), sorted({item.depth for item in needles})
    cells = [
        {"hours": hours, "depth": depth, **figures([n for n in needles if (n.hours, n.depth) == (hours, depth)])}
        for hours in lengths
        for depth in depths
    ]
    return {
        "cells": [cell for cell in cells if cell["n"]],
        "by_hours": {f"{hours:.2f}": figures([n for n in needles if n.hours == hours]) for hours in lengths},
        "by_depth": {f"{depth:.2f}": figures([n for n in needles if n.depth == depth]) for depth in depths},
        "by_kind": {
            kind: figures([n for n in needles if n.kind == kind]) for kind in sorted({n.kind for n in needles})
        },
        "search_top5": share([needle.is_in_top5 for needle in needles]).to_dict(),
    }


def _mean(values: Sequence[float]) -> float | None:
    return sum(values) / len(values) if values else None


def rounded(value: Any) -> Any:
    """The same document with figures of four digits after the point."""
    if isinstance(value, float):
        return round(value, _DIGITS)
    if isinstance(value, Mapping):
        return {key: rounded(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [rounded(item) for item in value]
    return value


__all__ = ["COMPARED", "METRICS", "NOTHING", "document", "metric_estimates", "rounded"]
