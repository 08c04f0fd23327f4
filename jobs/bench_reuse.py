"""``vxl bench reuse``: what answering from stored KV is worth, six ways side by side on one archive, in one run.

The archive is made by ingestion itself. Every way gets the same questions and is timed from the question to the
choice of its first token, with model and decoding process warm. ``cold`` means that the kernel was told to forget the
archive's and the footage's files before the question. Agreement is with the answer to the same question when all
chunks in scope are dense: the share of its tokens that a way would have chosen too, each after the reference's own.
"""

from __future__ import annotations

import math
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jobs.bench_material import MadeFile, describe, make_footage, make_large_checkpoint
from jobs.output import Output
from pipeline.errors import UsageError

if TYPE_CHECKING:
    import numpy as np

    from pipeline.ask import PlannedChunk
    from pipeline.kv_source import LoadedKV
    from pipeline.reader import ArchiveReader
    from videoxl2.decode import Piece

MODELS = ("tiny", "large")
QUESTIONS = (
    "When does the red block cross the picture?",
    "Is there anything unusual?",
    "What happens at the gate?",
)
UNIFORM = "uniform frames + prefill"
RIVAL = "search + re-prefill of hits"
TEXT = "captions or text"
SPARSE = "sparse KV only"
RELOAD = "sparse + dense reload"
ORACLE = "oracle chunks"
ALL_DENSE = "all dense (reference)"
NO_TEXT = "not available: an archive stores no captions or other text of its footage"
TEN_MINUTES_H = 1 / 6


@dataclass(frozen=True, kw_only=True)
class ReuseBench:
    """What is measured. The defaults keep a whole run within 20 minutes on two free cores.

    Footage comes in files of ``file_s`` seconds, sampled at ``fps``; a file is one segment. Ways that read KV answer
    every question, those that prefill video one cold and another one warm.
    """

    models: tuple[str, ...] = MODELS
    hours: tuple[float, ...] = (TEN_MINUTES_H, 1.0)
    fps: float = 0.5
    file_s: float = 600.0
    questions: tuple[str, ...] = QUESTIONS
    answer_tokens: int = 16


@dataclass(kw_only=True)
class Row:
    """One way for one model and length. Times in seconds, medians over questions; ``None``: not measured."""

    model: str
    hours: float
    way: str
    note: str | None = None
    dense_chunks: int | None = None
    sparse_chunks: int | None = None
    context_tokens: int | None = None
    cold_first_token_s: float | None = None
    warm_first_token_s: float | None = None
    load_s: float | None = None
    decode_s: float | None = None
    compute_s: float | None = None
    kv_bytes_read: int | None = None
    video_bytes: int | None = None
    top1_agreement: float | None = None
    same_answers: float | None = None


@dataclass
class _Shot:
    """One answer of one way. ``decode_s`` and ``compute_s`` are of the video; the rest is retrieval and question."""

    first_token_s: float
    agreement: float
    load_s: float = 0.0
    decode_s: float = 0.0
    compute_s: float = 0.0
    kv_bytes: int = 0
    video_bytes: int = 0
    dense: int = 0
    sparse: int = 0
    tokens: int = 0


@dataclass
class _Context:
    """Pieces ready to be assembled, what it cost to get them, and what still reads while they are assembled."""

    pieces: Sequence[Piece]
    shot: dict[str, Any] = field(default_factory=dict)
    loaded: LoadedKV | None = None


def run(models: Sequence[str], hours: Sequence[float], out: Output) -> int:
    """Measure and print; the exit code. Raises ``UsageError`` for an unknown model or a length that cannot be."""
    unknown = [name for name in models if name not in MODELS]
    if unknown:
        raise UsageError(f"--model: {unknown[0]!r} is none of {', '.join(MODELS)}")
    bench = ReuseBench(models=tuple(models) or MODELS)
    if hours:
        bench = replace(bench, hours=tuple(sorted(set(hours))))
    if any(not TEN_MINUTES_H <= length <= 24 for length in bench.hours):
        raise UsageError("--hours: give lengths from 0.1667 (10 minutes) to 24")

    def report(line: str) -> None:
        if out.is_terminal:
            print(line, file=sys.stderr)

    with tempfile.TemporaryDirectory(prefix="vxl-bench-reuse-") as folder:
        document = measure(Path(folder), bench, report)
    if out.as_json:
        out.document(document)
    else:
        _print(document, out)
    return 0


def measure(folder: Path, bench: ReuseBench, report: Callable[[str], object] = lambda line: None) -> dict[str, Any]:
    """Make footage and archives below ``folder``, measure every model and length; the document of ``--json``."""
    import torch

    num_files = max(1, round(max(bench.hours) * 3600 / bench.file_s))
    report(f"making {num_files} files of {bench.file_s:g} s")
    footage = make_footage(folder / "footage", num_files, bench.file_s)
    rows: list[Row] = []
    indexed = []
    for name in bench.models:
        report(f"indexing with {name}")
        runner = _ModelRun(folder, bench, name, footage, report)
        indexed.append(runner.facts)
        for hours in bench.hours:
            rows += runner.rows(hours)
        runner.close()
    return {
        **_headline(rows, bench),
        "threads": torch.get_num_threads(),
        "fps": bench.fps,
        "segment_s": bench.file_s,
        "questions": list(bench.questions),
        "answer_tokens": bench.answer_tokens,
        "models": indexed,
        "rows": [asdict(row) for row in rows],
    }


def _headline(rows: Sequence[Row], bench: ReuseBench) -> dict[str, Any]:
    """Reload against re-prefill of the same chunks: for the larger model and the length nearest to an hour, warm."""
    model = bench.models[-1] if "large" not in bench.models else "large"
    hours = min(bench.hours, key=lambda length: abs(length - 1.0))
    chosen = {row.way: row for row in rows if (row.model, row.hours) == (model, hours)}
    reload, again = chosen[RELOAD], chosen[RIVAL]
    assert reload.warm_first_token_s and again.warm_first_token_s and reload.kv_bytes_read
    assert again.decode_s is not None and again.compute_s is not None
    return {
        "model": model,
        "hours": hours,
        "recompute_first_token_s": again.warm_first_token_s,
        "reload_first_token_s": reload.warm_first_token_s,
        "recompute_to_reload": again.warm_first_token_s / reload.warm_first_token_s,
        "without_decoding": (again.warm_first_token_s - again.decode_s) / reload.warm_first_token_s,
        "break_even_bytes_per_s": reload.kv_bytes_read / (again.decode_s + again.compute_s),
    }


class _ModelRun:
    """One archive of one model, and the ways to answer from it or from its videos."""

    def __init__(
        self, folder: Path, bench: ReuseBench, name: str, footage: Sequence[MadeFile], report: Callable[[str], object]
    ) -> None:
        from pipeline.archive import Archive
        from pipeline.config import load_settings
        from pipeline.decode_worker import DecodeWorker

        self._bench, self._name, self._footage, self._report = bench, name, footage, report
        self._folder = folder / name
        model = str(make_large_checkpoint(folder / "checkpoint")) if name == "large" else name
        overrides = {"model": model, "ingest.fps": bench.fps, "ingest.segment_s": bench.file_s}
        self._archive = Archive(self._folder, settings=load_settings(overrides=overrides, environ={}))
        source = folder / "footage"
        report_ = self._archive.ingest(source, key_pattern="{camera}/%Y-%m-%d/%H%M%S.mp4", time_zone="UTC")
        assert report_.indexed == len(footage), report_
        self._reader: ArchiveReader = self._archive._reader()
        self._decoder = DecodeWorker(self._reader.settings.decode)
        self.facts = {
            "model": name,
            "shape": describe(self._reader.model.spec),
            "parameters": sum(weight.numel() for weight in self._reader.model.parameters()),
            "dtype": self._reader.manifest.recipe.dtype,
            "hours": report_.video_s / 3600,
            "index_s": report_.wall_s,
            "kv_bytes": report_.kv_bytes,
            "sparse_bytes": report_.sparse_bytes,
        }

    def close(self) -> None:
        """End the decoding process and let the model go."""
        self._decoder.close()
        self._archive._opened = None

    def rows(self, hours: float) -> list[Row]:
        """Every way over the first ``hours`` of the footage."""
        from pipeline.reader import make_filters

        self._report(f"{self._name}: {hours:g} h")
        files = self._footage[: max(1, round(hours * 3600 / self._bench.file_s))]
        self._about = self._reader.resolve(make_filters(videos=[str(file.path) for file in files]))
        self._files = {video.video_id: file for video in self._reader.videos() for file in files if _is_of(video, file)}
        self._answers: dict[str, list[int]] = {}
        reference = self._way(ALL_DENSE, hours, self._all_dense, self._bench.questions)
        first, *others = self._bench.questions
        video_questions = [first, others[0] if others else first]
        return [
            self._way(UNIFORM, hours, self._uniform, video_questions),
            self._way(RIVAL, hours, self._re_prefill, video_questions),
            Row(model=self._name, hours=hours, way=TEXT, note=NO_TEXT),
            self._way(SPARSE, hours, self._sparse, self._bench.questions),
            self._way(RELOAD, hours, self._reload, self._bench.questions),
            self._way(ORACLE, hours, self._oracle, self._bench.questions),
            reference,
        ]

    def _way(self, way: str, hours: float, context: Callable[[str], _Context], questions: Sequence[str]) -> Row:
        """Ways that read KV: every question cold, then warm. Ways that prefill video: the first cold, the next warm."""
        self._report(f"{self._name}: {hours:g} h: {way}")
        reads_video = way in (UNIFORM, RIVAL)
        shots: dict[bool, list[_Shot]] = {True: [], False: []}
        for is_cold in (True, False):
            for number, question in enumerate(questions):
                if reads_video and (number == 0) != is_cold:
                    continue
                if is_cold:
                    forget_files([self._folder, *(file.path for file in self._files.values())])
                shots[is_cold].append(self._shot(question, context))
        cold, warm = shots[True], shots[False]
        answered = cold + warm if reads_video else warm

        def median(name: str, of: Sequence[_Shot] = warm) -> float:
            return float(statistics.median(getattr(shot, name) for shot in of))

        return Row(
            model=self._name,
            hours=hours,
            way=way,
            dense_chunks=round(median("dense")),
            sparse_chunks=round(median("sparse")),
            context_tokens=round(median("tokens")),
            cold_first_token_s=median("first_token_s", cold),
            warm_first_token_s=median("first_token_s"),
            load_s=median("load_s"),
            decode_s=median("decode_s"),
            compute_s=median("compute_s"),
            kv_bytes_read=round(median("kv_bytes")),
            video_bytes=round(median("video_bytes")),
            top1_agreement=statistics.mean(shot.agreement for shot in answered),
            same_answers=statistics.mean(float(shot.agreement == 1.0) for shot in answered),
        )

    def _shot(self, question: str, context: Callable[[str], _Context]) -> _Shot:
        import torch

        model = self._reader.model
        decoder = model.language
        _, suffix_ids = model.tokenizer.prompt_parts(question)
        started = time.perf_counter()
        made = context(question)
        with torch.no_grad():
            with made.loaded or nullcontext():
                cache = model.begin_assembly(made.pieces, max_tokens=_NO_LIMIT)
                tokens = cache.length + len(suffix_ids)
                chosen = [int(decoder.logits(cache.extend(suffix_ids)[-1]).argmax())]
            first_token_s = time.perf_counter() - started
            if made.loaded is not None:
                made.shot["load_s"] = made.loaded.load_s + made.loaded.wait_s
            wanted = self._answers.get(question)
            if wanted is None:
                while len(chosen) < self._bench.answer_tokens:
                    chosen.append(int(decoder.logits(cache.extend(chosen[-1:])[-1]).argmax()))
                wanted = self._answers[question] = chosen
            else:
                chosen += decoder.logits(cache.extend(wanted[:-1])).argmax(-1).tolist()
        agreement = sum(ours == theirs for ours, theirs in zip(chosen, wanted, strict=True)) / len(wanted)
        return _Shot(first_token_s=first_token_s, agreement=agreement, tokens=tokens, **made.shot)

    # Ways that read KV

    def _plan(self, question: str) -> list[PlannedChunk]:
        from pipeline.ask import plan_context

        model = self._reader.model
        prefix_ids, suffix_ids = model.tokenizer.prompt_parts(question)
        budget = min(self._reader.settings.query.max_context_tokens, model.spec.language.max_positions)
        budget -= len(prefix_ids) + len(suffix_ids) + self._bench.answer_tokens
        return plan_context(self._reader, question, self._about, budget)

    def _load(self, plan: Sequence[PlannedChunk]) -> _Context:
        from pipeline.ask import context_pieces
        from pipeline.kv_source import KVSource
        from videoxl2.kv import KVLevel

        loaded = KVSource(self._reader, "reload").open([(chunk.row, chunk.level) for chunk in plan])
        videos = {video.video_id: video for video in self._reader.videos()}
        num_dense = sum(chunk.level is KVLevel.DENSE for chunk in plan)
        return _Context(
            context_pieces(plan, loaded, videos, self._reader.model.tokenizer),
            {"kv_bytes": loaded.bytes_read, "dense": num_dense, "sparse": len(plan) - num_dense},
            loaded,
        )

    def _reload(self, question: str) -> _Context:
        return self._load(self._plan(question))

    def _sparse(self, question: str) -> _Context:
        from videoxl2.kv import KVLevel

        return self._load([replace(chunk, level=KVLevel.SPARSE) for chunk in self._plan(question)])

    def _oracle(self, question: str) -> _Context:
        chunks = [
            chunk
            for chunk in self._all_chunks()
            if chunk.row["start_s"] < self._files[chunk.row["video_id"]].event_s[1]
            and chunk.row["end_s"] > self._files[chunk.row["video_id"]].event_s[0]
        ]
        return self._load(chunks)

    def _all_dense(self, question: str) -> _Context:
        return self._load(self._all_chunks())

    def _all_chunks(self) -> list[PlannedChunk]:
        """Every chunk in scope, dense, in reading order."""
        from indexers.records import rows_of
        from pipeline.ask import PlannedChunk
        from videoxl2.kv import KVLevel

        rows = rows_of(self._reader.store.chunks(video_ids=list(self._files)))
        rows.sort(key=lambda row: (row["uri"], row["start_s"]))
        return [PlannedChunk(row=row, score=0.0, level=KVLevel.DENSE, best_group_id="") for row in rows]

    # Ways that go back to the video

    def _re_prefill(self, question: str) -> _Context:
        """The very chunks that the reload takes dense, decoded and prefilled as one short video."""
        from videoxl2.kv import KVLevel

        spans: dict[str, list[tuple[float, float]]] = {}
        for chunk in self._plan(question):
            if chunk.level is KVLevel.DENSE:
                spans.setdefault(chunk.row["video_id"], []).append((chunk.row["start_s"], chunk.row["end_s"]))
        wanted = [
            (self._files[video_id], self._bench.fps, [time_s for span in found for time_s in span])
            for video_id, found in spans.items()
        ]
        return self._prefill(wanted)

    def _uniform(self, question: str) -> _Context:
        """As many frames as the reload's dense chunks hold, spread evenly over all files."""
        recipe = self._reader.manifest.recipe
        levels = self._reader.settings.ingest.levels
        total_s = sum(file.duration_s for file in self._files.values())
        chunk_frames = recipe.chunk_groups * recipe.frames_per_group
        all_frames = round(total_s * self._bench.fps)
        num_frames = min((levels.num_best(math.ceil(all_frames / chunk_frames)) + 2) * chunk_frames, all_frames)
        return self._prefill([(file, num_frames / total_s, [0.0, file.duration_s]) for file in self._files.values()])

    def _prefill(self, wanted: Sequence[tuple[MadeFile, float, list[float]]]) -> _Context:
        """Decode files at a rate, keep the frames between pairs of times, prefill them as one video."""
        import numpy as np
        import torch

        from videoxl2.preprocess import frames_to_pixels

        model, recipe = self._reader.model, self._reader.manifest.recipe
        started = time.perf_counter()
        pictures, times_s, origin_s = [], [], 0.0
        for file, fps, edges in wanted:
            spans = list(zip(edges[::2], edges[1::2], strict=True))
            for shown_s, picture in self._frames(file, fps):
                if any(first <= shown_s + 1e-6 < last for first, last in spans):
                    pictures.append(picture)
                    times_s.append(origin_s + shown_s)
            origin_s += file.duration_s
        decode_s = time.perf_counter() - started
        with torch.no_grad():
            visual_GPD = model.encode_frames(frames_to_pixels(np.stack(pictures), model.spec.vision.image_size))
            settings = recipe.prefill.model_copy(update={"max_tokens": _NO_LIMIT})
            group_times_s = times_s[:: model.spec.frames_per_group]
            made = model.prefill(visual_GPD, group_times_s, settings, recipe.chunk_groups)
        compute_s = time.perf_counter() - started - decode_s
        facts = {"decode_s": decode_s, "compute_s": compute_s, "dense": len(made.chunks)}
        return _Context(list(made.chunks), {**facts, "video_bytes": sum(f.path.stat().st_size for f, _, _ in wanted)})

    def _frames(self, file: MadeFile, fps: float) -> Iterator[tuple[float, np.ndarray]]:
        from pipeline.decode_worker import DecodeRequest, FrameBatch

        recipe = self._reader.manifest.recipe
        size = recipe.image_size
        request = DecodeRequest(
            fps=fps,
            image_size=size,
            embed_image_size=size,
            segment_s=None,
            frames_per_group=recipe.frames_per_group,
        )
        for event in self._decoder.decode(str(file.path), file.path.as_uri(), request):
            if isinstance(event, FrameBatch):
                yield from zip(event.times_s, event.pixels_u8_FHWC, strict=True)


_NO_LIMIT = 1 << 31
"""The reference may be longer than the model's positions: it is there to be compared with, not to be good."""


def _is_of(video: Any, file: MadeFile) -> bool:
    return bool(video.uri == file.path.as_uri())


def forget_files(paths: Sequence[Path]) -> None:
    """Ask the kernel to drop what it caches of these files and of all files in these folders."""
    for path in paths:
        for file in [path] if path.is_file() else [found for found in path.rglob("*") if found.is_file()]:
            descriptor = os.open(file, os.O_RDONLY)
            try:
                os.fsync(descriptor)  # pages that are not on the disk yet cannot be dropped
                os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
            finally:
                os.close(descriptor)


def _print(document: dict[str, Any], out: Output) -> None:
    out.text(
        f"{document['fps']:g} frames/s, segments of {document['segment_s']:g} s, {document['threads']} threads, "
        f"{len(document['questions'])} questions, agreement over {document['answer_tokens']} tokens of each answer"
    )
    for facts in document["models"]:
        out.text(
            "",
            f"{facts['model']}: {facts['parameters'] / 1e6:,.0f} million parameters ({facts['dtype']}); "
            f"{facts['shape']}",
            f"indexing {facts['hours']:.2f} h took {facts['index_s']:,.0f} s; "
            f"{facts['kv_bytes'] / 1e6:,.0f} MB dense KV, {facts['sparse_bytes'] / 1e6:,.0f} MB sparse KV",
        )
        of_model = [row for row in document["rows"] if row["model"] == facts["model"]]
        for hours in dict.fromkeys(row["hours"] for row in of_model):
            out.text("", f"{facts['model']}, {_length(hours)} of footage; seconds to the first token")
            out.table(
                ["way", "dense", "sparse", "tokens", "cold", "warm", "decoding", "prefill", "KV read", "top-1", "same"],
                [_cells(row) for row in of_model if row["hours"] == hours],
                right=tuple(range(1, 11)),
            )
    out.text(
        "",
        f"{document['model']}, {_length(document['hours'])}, warm: re-prefilling the chunks from video "
        f"{document['recompute_first_token_s']:.2f} s, reloading them {document['reload_first_token_s']:.2f} s: "
        f"{document['recompute_to_reload']:.1f} times ({document['without_decoding']:.1f} without decoding)",
        f"break-even: reading KV at {document['break_even_bytes_per_s'] / 1e6:,.1f} MB/s takes as long as "
        "decoding and prefilling; any faster store wins",
        f"{TEXT}: {NO_TEXT}",
    )


def _cells(row: dict[str, Any]) -> list[str]:
    if row["note"] is not None:
        return [row["way"], *["-"] * 3, "not available", *["-"] * 6]

    def seconds(name: str) -> str:
        return f"{row[name]:.3f}" if row[name] else "-"

    return [
        row["way"],
        f"{row['dense_chunks']}",
        f"{row['sparse_chunks']}",
        f"{row['context_tokens']:,}",
        seconds("cold_first_token_s"),
        seconds("warm_first_token_s"),
        seconds("decode_s"),
        seconds("compute_s"),
        f"{row['kv_bytes_read'] / 1e6:,.1f} MB" if row["kv_bytes_read"] else "-",
        f"{row['top1_agreement']:.0%}",
        f"{row['same_answers']:.0%}",
    ]


def _length(hours: float) -> str:
    return f"{hours * 60:.0f} min" if hours < 1 else f"{hours:g} h"
