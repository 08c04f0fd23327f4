"""The command ``vxl evaluate benchmark``: load and check, ask, report."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

from jobs.evaluation.benchmarks.items import MODES, Benchmark
from jobs.evaluation.benchmarks.loading import Loaded, load
from jobs.evaluation.benchmarks.registry import find_benchmark
from jobs.evaluation.benchmarks.results import ResultsFile, RunFacts
from jobs.evaluation.benchmarks.summary import summarise, table_columns, table_rows
from jobs.output import Output
from pipeline.errors import ConfigError, UsageError

PARTIAL = 3
"""Exit code when some items could not be asked."""


def run_benchmark(
    out: Output,
    *,
    name: str,
    folder: str,
    model: str = "tiny",
    device: str | None = None,
    limit: int | None = None,
    mode: str = "chunked",
    subtitles: bool = False,
    frames: int | None = None,
    results: str | None = None,
    skip_missing: bool = False,
    skip_invalid: bool = False,
) -> int:
    """Run one benchmark and print its metrics; 0, or 3 where some items could not be asked.

    Raises, before any question: ``UsageError`` for a name, mode or number that cannot be and for a results file of
    another run, ``AnnotationError`` for data that cannot be used, ``ConfigError`` for a model that is not here.
    """
    benchmark = find_benchmark(name)
    if mode not in MODES:
        raise UsageError(f"--mode: {mode!r} is none of {', '.join(MODES)}")
    if frames is not None and frames < 1:
        raise UsageError(f"--frames {frames} must be at least 1")
    if subtitles and benchmark.prompt_with_subtitles is None:
        raise UsageError(f"{benchmark.title} has no subtitles; leave --subtitles out")
    loaded = load(
        benchmark,
        Path(folder),
        subtitles=subtitles,
        limit=limit,
        skip_missing=skip_missing,
        skip_invalid=skip_invalid,
    )
    from jobs.evaluation.benchmarks.runner import Asker, run, scored
    from videoxl2.checkpoint import weights_notice
    from videoxl2.errors import ModelError
    from videoxl2.model import VideoXL2

    try:
        opened = VideoXL2.from_pretrained(model, device=device)
    except ModelError as absent:
        raise ConfigError(" ".join(str(absent).split())) from absent
    max_frames = frames or benchmark.plan.max_frames
    facts = RunFacts(
        benchmark=benchmark.name,
        mode=mode,
        weights_digest=opened.info.weights_digest,
        max_frames=max_frames,
        subtitles=subtitles,
        dtype=str(opened.dtype).removeprefix("torch."),
    )
    started = time.perf_counter()
    path = Path(results or f"{benchmark.name}-{mode}{'-subtitles' if subtitles else ''}.results.jsonl")
    with ResultsFile(path, facts) as kept:
        ask = Asker(opened, benchmark, mode, max_frames=max_frames, subtitles=subtitles)
        run(benchmark, loaded.items, ask, kept)
        summary = summarise(benchmark, scored(benchmark, loaded.items, kept))
    failed = {item.item_id: kept.failures[item.item_id] for item in loaded.items if item.item_id in kept.failures}
    document = {
        "benchmark": benchmark.name,
        "mode": mode,
        "model": model,
        "weights_digest": facts.weights_digest,
        "device": str(opened.device),
        "dtype": facts.dtype,
        "max_frames": max_frames,
        "subtitles": subtitles,
        "counts": _counts(loaded, len(failed)),
        **summary,
        "missing": list(loaded.missing),
        "invalid": list(loaded.invalid),
        "failed": failed,
        "results": str(path),
        "wall_s": round(time.perf_counter() - started, 3),
        "notices": [notice for notice in (weights_notice(opened.info),) if notice is not None],
    }
    if out.as_json:
        out.document(document)
    else:
        _print(benchmark, document, out)
    return PARTIAL if failed else 0


def _counts(loaded: Loaded, num_failed: int) -> dict[str, int]:
    return {
        "items": len(loaded.items),
        "videos": len({item.video for item in loaded.items}),
        "without_answer": sum(item.answer is None and item.interval is None for item in loaded.items),
        "failed": num_failed,
        "missing_items": loaded.num_missing_items,
        "missing_videos": len(loaded.missing),
        "invalid_items": len(loaded.invalid),
    }


def _print(benchmark: Benchmark, document: dict[str, Any], out: Output) -> None:
    counts = document["counts"]
    out.text(
        f"{benchmark.title}, mode {document['mode']}, at most {document['max_frames']} frames, "
        f"model {document['model']} ({document['dtype']}): {counts['items']} items of {counts['videos']} videos",
        *(f"note: {notice}" for notice in document["notices"]),
    )
    columns = table_columns(benchmark)
    out.table(columns, table_rows(document), right=tuple(range(2, len(columns))))
    if "macro_accuracy" in document["metrics"]:
        out.text(f"mean over the groups of the first kind: {100 * document['metrics']['macro_accuracy']:.1f}")
    if counts["without_answer"]:
        out.text(f"{counts['without_answer']} items have no published answer: replies are in the results file")
    for what, listed in (("missing videos", document["missing"]), ("rows left out", document["invalid"])):
        if listed:
            out.text(f"{len(listed)} {what}: {'; '.join(listed[:5])}{'; ...' if len(listed) > 5 else ''}")
    for item_id, error in list(document["failed"].items())[:5]:
        out.text(f"not asked: {item_id}: {error}")
    if counts["failed"]:
        out.text(f"{counts['failed']} items could not be asked; the same command tries them again")
    out.text(f"replies: {document['results']}")
