"""The command ``vxl evaluate clips``: real clips with known contents, indexed, searched and asked; beside guessing.

Every search is run over all clips and within its own; each ranking is compared with random orders of the very same
moments. Every question is asked of its clip, and beside it of the same model without video.
"""

from __future__ import annotations

import random
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING, Any

from jobs.evaluation.clip_truth import (
    ClipQuestion,
    ClipSearch,
    ClipTruth,
    commonest_answers,
    is_accepted,
    is_exact,
    read_truth,
)
from jobs.evaluation.statistics import NOTHING, Estimate, paired_difference, share
from jobs.output import Output

if TYPE_CHECKING:
    from pipeline.archive import Archive
    from pipeline.results import IngestReport

PARTIAL = 3
"""Exit code when a clip could not be indexed."""

RANDOM_SEEDS = 1000
MOST_MOMENTS = 1000
"""Moments asked for, so that every stretch of a folder of clips is ranked."""

SCOPES = ("all_clips", "own_clip")
_RESAMPLES = 2000
_ANSWER_TOKENS = 48


@dataclass(frozen=True, slots=True)
class Ranking:
    """Where the right moments of one search came: their ranks, best first, among ``num_moments``."""

    right_ranks: tuple[int, ...]
    num_moments: int

    @property
    def reciprocal(self) -> float:
        """1 over the rank of the first right moment; 0 where there is none."""
        return 1.0 / self.right_ranks[0] if self.right_ranks else 0.0

    def is_within(self, limit: int) -> bool:
        """A right moment is among the first ``limit``."""
        return bool(self.right_ranks) and self.right_ranks[0] <= limit


def run_clips(
    out: Output,
    *,
    folder: str,
    model: str = "tiny",
    device: str | None = None,
    archive: str | None = None,
    fps: float | None = None,
) -> int:
    """Index the clips of ``folder`` (into ``archive``, else one that is removed), measure, print; 0 or 3.

    Raises ``AnnotationError`` for a folder that cannot be used and what the SDK raises, before any work.
    """
    truth = read_truth(Path(folder))
    from pipeline.archive import Archive
    from pipeline.config import load_settings

    with tempfile.TemporaryDirectory(prefix="vxl-clips-") as temporary:
        address = archive or str(Path(temporary) / "clips.vxl")
        overrides = {"archive": address, "model": model, "device": device, "ingest.fps": fps}
        settings = load_settings(overrides=overrides)
        document = measure(Archive(address, settings=settings), truth)
    if out.as_json:
        out.document(document)
    else:
        _print(document, out)
    return PARTIAL if document["failed"] else 0


def measure(archive: Archive, truth: ClipTruth) -> dict[str, Any]:
    """Index the clips, run every row, and report. Rows of a clip that could not be indexed count as wrong."""
    started = time.perf_counter()
    report = archive.ingest(*(truth.path_of(file) for file in truth.files))
    failed = _failed(report, truth)
    rankings = {scope: [_rank(archive, truth, row, scope, failed) for row in truth.searches] for scope in SCOPES}
    replies = [_ask(archive, truth, row, failed) for row in truth.questions]
    blind = _ask_blind(archive, truth.questions)
    commonest = commonest_answers(truth.questions)
    return {
        "model": archive.settings.model,
        "counts": {
            "clips": len(truth.files),
            "seconds": round(sum(video.duration_s for video in report.videos), 3),
            "search": len(truth.searches),
            "qa": len(truth.questions),
            "negative": truth.num_negative,
        },
        "search": {scope: _search_figures(found) for scope, found in rankings.items()},
        "questions": _question_figures(truth.questions, replies, blind, commonest),
        "rows": [
            *(_search_row(row, number, rankings) for number, row in enumerate(truth.searches)),
            *(
                _question_row(row, reply, without, usual)
                for row, reply, without, usual in zip(truth.questions, replies, blind, commonest, strict=True)
            ),
        ],
        "failed": failed,
        "wall_s": round(time.perf_counter() - started, 3),
        "notices": list(report.notices),
    }


def _failed(report: IngestReport, truth: ClipTruth) -> dict[str, str]:
    """Name and reason of every clip that is not indexed."""
    from pipeline.media import normalise_uri

    indexed = {video.uri for video in report.videos if video.state == "indexed"}
    reasons = {video.uri: video.error_message or video.state for video in report.videos}
    uris = {file: normalise_uri(str(truth.path_of(file))) for file in truth.files}
    return {file: reasons.get(uri, "not found by the index") for file, uri in uris.items() if uri not in indexed}


def _rank(archive: Archive, truth: ClipTruth, row: ClipSearch, scope: str, failed: dict[str, str]) -> Ranking:
    from jobs.evaluation.plan import is_match
    from pipeline.media import normalise_uri

    if row.file in failed:
        return Ranking((), 1)
    path = str(truth.path_of(row.file))
    query = archive.search(row.query).limit(MOST_MOMENTS)
    moments = (query.where(video=path) if scope == "own_clip" else query).run().moments
    uri = normalise_uri(path)
    right = [
        moment.rank
        for moment in moments
        if any(is_match((moment.uri, moment.start_s, moment.end_s), (uri, *span)) for span in row.spans)
    ]
    return Ranking(tuple(sorted(right)), len(moments))


def _ask(archive: Archive, truth: ClipTruth, row: ClipQuestion, failed: dict[str, str]) -> str:
    if row.file in failed:
        return ""
    return archive.ask(row.question, videos=[str(truth.path_of(row.file))], max_new_tokens=_ANSWER_TOKENS).answer


def _ask_blind(archive: Archive, questions: Sequence[ClipQuestion]) -> list[str]:
    """Replies of the archive's model to the questions alone."""
    from jobs.evaluation.columns import answer_blind
    from pipeline.reader import ArchiveReader

    return answer_blind(ArchiveReader(archive.folder, archive.settings), [row.question for row in questions])


def _search_figures(rankings: Sequence[Ranking]) -> dict[str, Any]:
    """Recall at 1 and 5 and the mean reciprocal rank, and the same of random orders of the same moments.

    ``random`` has the mean over the seeds, and between which values 95 % of the seeds lie.
    """
    by_chance = random_figures(rankings)
    return {
        "recall1": share([ranking.is_within(1) for ranking in rankings]).to_dict(),
        "recall5": share([ranking.is_within(5) for ranking in rankings]).to_dict(),
        "mrr": mean_of([ranking.reciprocal for ranking in rankings]).to_dict(),
        "mean_moments": fmean(ranking.num_moments for ranking in rankings) if rankings else None,
        "random": {name: estimate.to_dict() for name, estimate in by_chance.items()},
    }


def random_figures(rankings: Sequence[Ranking], seeds: int = RANDOM_SEEDS) -> dict[str, Estimate]:
    """What the same moments give in random order: each figure's mean and middle 95 % over ``seeds`` orders."""
    drawn: dict[str, list[float]] = {"recall1": [], "recall5": [], "mrr": []}
    if not rankings:
        return dict.fromkeys(drawn, NOTHING)
    for seed in range(seeds):
        rng = random.Random(seed)
        shuffled = [
            Ranking(tuple(sorted(rng.sample(range(1, row.num_moments + 1), len(row.right_ranks)))), row.num_moments)
            for row in rankings
        ]
        drawn["recall1"].append(fmean(row.is_within(1) for row in shuffled))
        drawn["recall5"].append(fmean(row.is_within(5) for row in shuffled))
        drawn["mrr"].append(fmean(row.reciprocal for row in shuffled))
    return {name: _middle(sorted(values), fmean(values), len(rankings)) for name, values in drawn.items()}


def mean_of(values: Sequence[float], seed: int = 0) -> Estimate:
    """The mean with a percentile bootstrap interval (95 %)."""
    if not values:
        return NOTHING
    rng = random.Random(seed)
    drawn = sorted(fmean(rng.choices(values, k=len(values))) for _ in range(_RESAMPLES))
    return _middle(drawn, fmean(values), len(values))


def _middle(ascending: Sequence[float], value: float, n: int) -> Estimate:
    last = len(ascending) - 1
    return Estimate(value, ascending[round(0.025 * last)], ascending[round(0.975 * last)], n)


def _question_figures(
    questions: Sequence[ClipQuestion], replies: Sequence[str], blind: Sequence[str], commonest: Sequence[str]
) -> dict[str, Any]:
    """Shares of right answers in all and by kind: of the archive, the model without video, the commonest answer."""
    kinds = {"all": list(range(len(questions)))}
    for number, question in enumerate(questions):
        kinds.setdefault(question.kind, []).append(number)

    def right(said: Sequence[str], numbers: Sequence[int]) -> list[bool]:
        return [is_accepted(said[number], questions[number].accepted) for number in numbers]

    figures: dict[str, Any] = {}
    for kind, numbers in kinds.items():
        figures[kind] = {
            "right": share(right(replies, numbers)).to_dict(),
            "exact": share([is_exact(replies[number], questions[number].accepted) for number in numbers]).to_dict(),
            "blind": share(right(blind, numbers)).to_dict(),
            "commonest": share(right(commonest, numbers)).to_dict(),
        }
    every = kinds["all"]
    figures["all"]["less_blind"] = paired_difference(right(replies, every), right(blind, every)).to_dict()
    return figures


def _search_row(row: ClipSearch, number: int, rankings: dict[str, list[Ranking]]) -> dict[str, Any]:
    ranks = {scope: found[number] for scope, found in rankings.items()}
    return {
        "id": row.row_id,
        "type": "search",
        "query": row.query,
        **{
            scope: {
                "rank": ranking.right_ranks[0] if ranking.right_ranks else None,
                "right_moments": len(ranking.right_ranks),
                "moments": ranking.num_moments,
            }
            for scope, ranking in ranks.items()
        },
    }


def _question_row(row: ClipQuestion, reply: str, blind: str, commonest: str) -> dict[str, Any]:
    return {
        "id": row.row_id,
        "type": "qa",
        "kind": row.kind,
        "question": row.question,
        "accepted": list(row.accepted),
        "answer": reply,
        "right": is_accepted(reply, row.accepted),
        "blind": blind,
        "blind_right": is_accepted(blind, row.accepted),
        "commonest": commonest,
    }


def _print(document: dict[str, Any], out: Output) -> None:
    counts = document["counts"]
    out.text(
        f"{counts['clips']} clips, {counts['seconds']:.0f} s; {counts['search']} searches, {counts['qa']} questions, "
        f"{counts['negative']} queries for what never appears (not scored); model {document['model']}",
        *(f"note: {notice}" for notice in document["notices"]),
        *(f"not indexed, its rows count as wrong: {name}: {reason}" for name, reason in document["failed"].items()),
    )
    rows = []
    for scope, figures in document["search"].items():
        name = scope.replace("_", " ")
        rows.append([name, "search", *(_shown(figures[key]) for key in ("recall1", "recall5", "mrr"))])
        rows.append([name, "random order", *(_shown(figures["random"][key]) for key in ("recall1", "recall5", "mrr"))])
    out.table(["moments of", "", "recall@1", "recall@5", "mean reciprocal rank"], rows, right=(2, 3, 4))
    rows = [
        [kind, str(figures["right"]["n"]), *(_shown(figures[key]) for key in ("right", "exact", "blind", "commonest"))]
        for kind, figures in document["questions"].items()
    ]
    out.table(["questions", "n", "right", "exactly", "without video", "commonest answer"], rows, right=(1, 2, 3, 4, 5))
    out.text(
        f"with video less without: {_shown(document['questions']['all']['less_blind'])}",
        "in brackets: 95 % intervals; of random orders, where 95 % of them lie; the commonest answer knows the answers",
    )


def _shown(estimate: dict[str, Any]) -> str:
    if estimate["value"] is None:
        return "-"
    return f"{estimate['value']:.3f} ({estimate['low']:.3f} to {estimate['high']:.3f})"
