"""What motion gating saves in dense KV, and what it costs in answers: rendered footage, indexed with and without it.

    python -m tests.benchmarks.bench_motion_gate [--minutes 20] [--questions 120] [--needle-hours 0.1667] \
        [--thresholds 0.001,0.004] [--seed 1] [--model tiny] [--folder KEEP] [--json] [--out FILE]

The same files go into one archive without gating and into one for each threshold (``storage.static_motion``). Each
archive is then asked and searched from another process, as an archive is used:

- saving: bytes of dense KV files without gating less those with it, as a share of the former. Sparse KV stays;
- recall@5 of searches with one and with two attributes. Gating touches no search vector, so this must not change;
- accuracy of multiple-choice and yes/no questions with the default settings of ``vxl ask``;
- lost: of the chunks in which something happens (an event of the scene, the evidence of a question, a needle), the
  share whose dense KV is gone. Random gating of as many chunks would lose ``static`` of them.

Needles lie in quiet footage, ten minutes of it three times by default: where gating saves most and can cost most.
``--out`` writes the figures as a Markdown table. At its default size it takes a few minutes on two cores.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jobs.evaluation.answers import is_right
from jobs.evaluation.asking import AskingProcess
from jobs.evaluation.metrics import recall, rounded
from jobs.evaluation.needle import NeedleVideo, asked_needle, is_answered, needle_tasks, plan_needles
from jobs.evaluation.plan import choose_questions, choose_searches, plan_files
from jobs.evaluation.records import AskedSearch, Question, Search, Span
from jobs.evaluation.rendered import SEARCH_LIMIT, index, new_folder, open_reader, render, render_needles
from jobs.evaluation.statistics import Estimate, share
from pipeline.tiers import kv_file_bytes
from videoxl2.training.facts import Facts

KINDS = ("choice", "exists")
OFF = "off"
READ_AS = (
    "Shares with the size of their sample in brackets. The last three columns: of the chunks in which something "
    "happens, the share that kept no dense KV."
)


@dataclass(frozen=True, slots=True)
class StoredChunk:
    """A chunk of the archive: where it lies, its motion, and whether its dense KV was kept."""

    span: Span
    motion: float
    is_dense: bool


@dataclass(frozen=True, slots=True)
class Happenings:
    """Stretches of video in which something happens, by where that is known from."""

    events: tuple[Span, ...]
    evidence: tuple[Span, ...]
    needles: tuple[Span, ...]


@dataclass(frozen=True, slots=True)
class Measured:
    """One archive: what it stores and how it answered. ``right`` has the outcomes of each kind of question."""

    threshold: float | None
    kv_bytes: int
    sparse_bytes: int
    chunks: tuple[StoredChunk, ...]
    searches: tuple[AskedSearch, ...]
    right: Mapping[str, tuple[bool, ...]]
    needles_right: tuple[bool, ...]


def true_chunks(chunks: Iterable[StoredChunk], spans: Iterable[Span]) -> list[StoredChunk]:
    """The chunks that share time with one of the stretches."""
    by_video: dict[str, list[tuple[float, float]]] = {}
    for key, low, high in spans:
        by_video.setdefault(key, []).append((low, high))
    return [
        chunk
        for chunk in chunks
        if any(low < chunk.span[2] and high > chunk.span[1] for low, high in by_video.get(chunk.span[0], ()))
    ]


def lost_share(chunks: Sequence[StoredChunk], spans: Iterable[Span]) -> Estimate:
    """Of the chunks in which something happens, the share whose dense KV is gone."""
    return share([not chunk.is_dense for chunk in true_chunks(chunks, spans)])


def saving(kv_bytes: int, without: int) -> float | None:
    """The share of dense KV's bytes that gating saved; None where there were none to save."""
    return 1.0 - kv_bytes / without if without else None


def row_of(measured: Measured, base: Measured, happenings: Happenings) -> dict[str, Any]:
    """The figures of one archive beside the one without gating."""
    figures = {
        "search_single_recall5": recall(measured.searches, 1, 5),
        "search_double_recall5": recall(measured.searches, 2, 5),
        "multiple_choice": share(measured.right["choice"]),
        "exists": share(measured.right["exists"]),
        "needle_answer": share(measured.needles_right),
        "lost_events": lost_share(measured.chunks, happenings.events),
        "lost_evidence": lost_share(measured.chunks, happenings.evidence),
        "lost_needles": lost_share(measured.chunks, happenings.needles),
        "static": share([not chunk.is_dense for chunk in measured.chunks]),
    }
    return {
        "static_motion": measured.threshold,
        "kv_bytes": measured.kv_bytes,
        "sparse_bytes": measured.sparse_bytes,
        "kv_saving": saving(measured.kv_bytes, base.kv_bytes),
        **{name: estimate.to_dict() for name, estimate in figures.items()},
    }


def table(document: Mapping[str, Any]) -> str:
    """The rows as Markdown, each share with the size of its sample in brackets."""
    columns = {
        "search, 1 attribute, recall@5": "search_single_recall5",
        "search, 2 attributes, recall@5": "search_double_recall5",
        "multiple choice": "multiple_choice",
        "exists": "exists",
        "needle answered": "needle_answer",
        "chunks without dense KV": "static",
        "with events, without it": "lost_events",
        "with evidence, without it": "lost_evidence",
        "with needles, without it": "lost_needles",
    }
    lines = [
        f"| static_motion | dense KV, MB | saved | {' | '.join(columns)} |",
        f"|{'---|' * (3 + len(columns))}",
    ]
    for row in document["rows"]:
        name = OFF if row["static_motion"] is None else f"{row['static_motion']:g}"
        cells = [name, f"{row['kv_bytes'] / 1e6:.1f}", _share(row["kv_saving"])]
        cells += [f"{_share(row[key]['value'])} ({row[key]['n']})" for key in columns.values()]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def _share(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"


def happenings_of(
    facts: Mapping[str, Facts], questions: Sequence[Question], needles: Sequence[NeedleVideo]
) -> Happenings:
    """Where something happens, in the clock of each file."""
    return Happenings(
        events=tuple((key, event.start_s, event.end_s) for key, known in facts.items() for event in known.events),
        evidence=tuple((item.video, *item.interval) for item in questions if item.interval is not None),
        needles=tuple((video.key, needle.start_s, needle.end_s) for video in needles for needle in video.needles),
    )


@dataclass(frozen=True, slots=True)
class Indexed:
    """An archive of one folder of footage, the keys of its videos by address and the other way round."""

    folder: Path
    keys: Mapping[str, str]
    uris: Mapping[str, str]
    chunks: tuple[StoredChunk, ...]
    kv_bytes: int
    sparse_bytes: int


def indexed(footage: Path, archive: Path, model: str, threshold: float | None) -> Indexed:
    """Index a folder of footage under one threshold."""
    index(footage, archive, model, {"storage.static_motion": threshold})
    reader, videos = open_reader(archive)
    keys = {video.uri: key for key, video in videos.items()}
    rows = reader.store.chunks(video_ids=[video.video_id for video in videos.values()]).to_pylist()
    return Indexed(
        folder=archive,
        keys=keys,
        uris={key: uri for uri, key in keys.items()},
        chunks=tuple(
            StoredChunk((keys[row["uri"]], row["start_s"], row["end_s"]), row["motion"], row["kv_length"] > 0)
            for row in rows
        ),
        kv_bytes=kv_file_bytes(archive),
        sparse_bytes=sum(video.sparse_bytes for video in videos.values()),
    )


def ask_busy(
    archive: Indexed, work: Path, questions: Sequence[Question], searches: Sequence[Search]
) -> tuple[dict[str, tuple[bool, ...]], tuple[AskedSearch, ...]]:
    """Outcomes of the questions by kind, and what the searches found."""
    asks = [{"id": q.item_id, "kind": "ask", "question": q.question, "video": archive.uris[q.video]} for q in questions]
    finds = [
        {"id": s.item_id, "kind": "search", "text": s.text, "camera": s.camera, "video": None, "limit": SEARCH_LIMIT}
        for s in searches
    ]
    right: dict[str, list[bool]] = {kind: [] for kind in KINDS}
    found = []
    with AskingProcess(archive.folder, [*asks, *finds], work) as process:
        for item in questions:
            answer = process.result(item.item_id)["answer"]
            right[item.kind].append(is_right(item.kind, answer, item.expected, item.options))
        for search in searches:
            moments = process.result(search.item_id)["moments"]
            spans: tuple[Span, ...] = tuple((archive.keys[m["uri"]], m["start_s"], m["end_s"]) for m in moments)
            found.append(AskedSearch(search, spans, {}))
    return {kind: tuple(outcomes) for kind, outcomes in right.items()}, tuple(found)


def ask_needles(archive: Indexed, work: Path, needles: Sequence[NeedleVideo]) -> tuple[bool, ...]:
    """Whether each needle's question is answered."""
    right = []
    tasks = [task for video in needles for task in needle_tasks(video, archive.uris[video.key])]
    with AskingProcess(archive.folder, tasks, work) as process:
        for video in needles:
            num_chunks = sum(chunk.span[0] == video.key for chunk in archive.chunks)
            for number in range(len(video.needles)):
                name = video.item_id(number)
                results = process.result(f"{name}:ask"), process.result(f"{name}:search")
                right.append(is_answered(asked_needle(video, number, *results, num_chunks)))
    return tuple(right)


def measure(
    work: Path,
    threshold: float | None,
    model: str,
    questions: Sequence[Question],
    searches: Sequence[Search],
    needles: Sequence[NeedleVideo],
) -> Measured:
    """Index all footage under one threshold, then ask everything of the archives from another process."""
    name = OFF if threshold is None else format(threshold, "g")
    busy = indexed(work / "busy", work / f"busy-{name}", model, threshold)
    right, found = ask_busy(busy, work, questions, searches)
    archives, needles_right = [busy], tuple[bool, ...]()
    if needles:
        quiet = indexed(work / "quiet", work / f"quiet-{name}", model, threshold)
        needles_right = ask_needles(quiet, work, needles)
        archives.append(quiet)
    return Measured(
        threshold=threshold,
        kv_bytes=sum(archive.kv_bytes for archive in archives),
        sparse_bytes=sum(archive.sparse_bytes for archive in archives),
        chunks=tuple(chunk for archive in archives for chunk in archive.chunks),
        searches=found,
        right=right,
        needles_right=needles_right,
    )


def run(arguments: argparse.Namespace, work: Path) -> dict[str, Any]:
    """Render, index and ask; the figures of every threshold beside those without gating."""
    notes: list[str] = []
    files = plan_files(arguments.seed, arguments.questions, arguments.minutes)
    facts = render(work / "busy", [file.scene for file in files])
    planned = plan_needles(arguments.seed, arguments.needle_hours)
    needles = render_needles(work / "quiet", planned, notes) if planned else []
    chosen, missing = choose_questions(facts, arguments.seed, arguments.questions)
    questions = [item for item in chosen if item.kind in KINDS]
    cameras = {key: key.split("/")[0] for key in facts}
    searches = choose_searches(facts, cameras, arguments.seed, max(2, arguments.questions // 3))
    happenings = happenings_of(facts, questions, needles)
    measured = [
        measure(work, threshold, arguments.model, questions, searches, needles)
        for threshold in (None, *arguments.thresholds)
    ]
    return rounded(
        {
            "seed": arguments.seed,
            "model": arguments.model,
            "hours": (sum(known.end_s for known in facts.values()) + sum(v.hours * 3600.0 for v in needles)) / 3600.0,
            "chunks": len(measured[0].chunks),
            "questions": {kind: sum(item.kind == kind for item in questions) for kind in KINDS},
            "searches": len(searches),
            "needles": len(happenings.needles),
            "rows": [row_of(one, measured[0], happenings) for one in measured],
            "notes": [*notes, *missing],
        }
    )


def parse(words: Sequence[str] | None = None) -> argparse.Namespace:
    """The options; lists are separated by commas, an empty one is none."""

    def numbers(text: str) -> tuple[float, ...]:
        return tuple(float(part) for part in text.split(",") if part.strip())

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=20.0, help="footage in which much happens")
    parser.add_argument("--questions", type=int, default=120, help="drawn; those with options and yes or no are asked")
    parser.add_argument("--needle-hours", type=numbers, default=(1 / 6,), help="lengths of quiet videos with needles")
    parser.add_argument("--thresholds", type=numbers, default=(0.001, 0.004), help="values of storage.static_motion")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--model", default="tiny")
    parser.add_argument("--folder", help="keep footage and archives in this new folder")
    parser.add_argument("--json", action="store_true", help="print one JSON document")
    parser.add_argument("--out", type=Path, metavar="FILE", help="write the table into this Markdown file")
    return parser.parse_args(words)


def main(words: Sequence[str] | None = None) -> None:
    arguments = parse(words)
    with ExitStack() as stack:
        if arguments.folder is None:
            work = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="vxl-motion-gate-")))
        else:
            work = new_folder(arguments.folder)
        document = run(arguments, work)
    size = (
        f"{document['hours']:.2f} h of rendered footage (seed {document['seed']}), model {document['model']}, "
        f"{document['chunks']} chunks, {document['searches']} searches, {document['needles']} needles."
    )
    if arguments.out is not None:
        given = " ".join(sys.argv[1:] if words is None else words)
        head = f"# Motion gating\n\n    python -m tests.benchmarks.bench_motion_gate {given}\n\n{size} {READ_AS}"
        arguments.out.write_text(f"{head}\n\n{table(document)}", encoding="utf-8")
    print(json.dumps(document, indent=2) if arguments.json else f"{size}\n\n{table(document)}")


if __name__ == "__main__":
    main()
