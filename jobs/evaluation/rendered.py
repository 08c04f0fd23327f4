"""One run of ``vxl evaluate rendered``: render, index, ask from another process, ask in other ways, keep everything.

Owns the order of things. The footage, the archive and the tasks lie in one working folder; nothing is kept in memory
but one video at a time and the records.
"""

from __future__ import annotations

import logging
import os
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jobs.evaluation import among
from jobs.evaluation.answers import CHECKABLE
from jobs.evaluation.asking import AskingProcess
from jobs.evaluation.columns import (
    answer_blind,
    answer_columns,
    answer_from_hits,
    ask_all,
    encode_video,
    stored_dense,
)
from jobs.evaluation.conditions import conditions_of
from jobs.evaluation.curve import DENSE_SHARES, curve_tasks, share_answer, task_id
from jobs.evaluation.needle import NeedleVideo, asked_needle, needle_tasks, plan_needles
from jobs.evaluation.plan import chance_of, choose_questions, choose_searches, plan_files
from jobs.evaluation.records import (
    AskedNeedle,
    AskedQuestion,
    AskedSearch,
    AskedTwice,
    Question,
    Run,
    Search,
    ShareAnswer,
    Span,
)
from jobs.evaluation.twice import choose_long_questions, plan_long_files
from pipeline.errors import ConfigError, StageError, UsageError
from videoxl2.processes import process_pool

if TYPE_CHECKING:
    from indexers.records import VideoRow
    from pipeline.reader import ArchiveReader
    from videoxl2.config import LevelSettings
    from videoxl2.training.facts import Facts
    from videoxl2.training.scene import Scene

logger = logging.getLogger(__name__)

KEY_PATTERN = "{camera}/%Y-%m-%d/%H%M%S.mp4"
TIME_ZONE = "UTC"
SEARCH_LIMIT = 20
"""Moments fetched per search, so that five are left when doubtful ones are taken out."""

_MINUTES_PER_PROCESS = 4.0


@dataclass(frozen=True, slots=True)
class RenderedPlan:
    """What a run is made of; see ``vxl evaluate rendered --help``. ``minutes`` None: as many as the questions need.

    ``whole_minutes`` of long videos are indexed twice, in segments and as one; 0: none are.
    """

    seed: int
    num_questions: int
    model: str = "tiny"
    minutes: float | None = None
    needle_hours: tuple[float, ...] = ()
    whole_minutes: float = 0.0


@dataclass(slots=True)
class _Clock:
    """Seconds of wall time and of this process's and its children's processor time, by stage."""

    seconds: dict[str, float] = field(default_factory=dict)

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        logger.info("%s ...", name)
        if sys.stderr.isatty():
            print(f"{name} ...", file=sys.stderr)
        wall, cpu = time.perf_counter(), _cpu_s()
        try:
            yield
        finally:
            for suffix, spent in (("wall_s", time.perf_counter() - wall), ("cpu_s", _cpu_s() - cpu)):
                key = f"{name}_{suffix}"
                self.seconds[key] = round(self.seconds.get(key, 0.0) + spent, 2)


def _cpu_s() -> float:
    """Processor seconds of this process and of its children that have ended."""
    times = os.times()
    return times.user + times.system + times.children_user + times.children_system


def run_plan(plan: RenderedPlan, work: Path) -> Run:
    """Carry out a run in the empty folder ``work``.

    Raises ``ConfigError`` for a model that cannot be loaded, ``StageError`` where a file cannot be indexed or the
    asking process dies.
    """
    from pipeline.archive import translated

    return translated(_run_plan)(plan, work)


def _run_plan(plan: RenderedPlan, work: Path) -> Run:
    started, cpu = time.perf_counter(), _cpu_s()
    clock, notes = _Clock(), list[str]()
    files = plan_files(plan.seed, plan.num_questions, plan.minutes)
    try:
        haystacks = plan_needles(plan.seed, plan.needle_hours)
    except ValueError as exc:
        raise UsageError(f"--needle-hours: {exc}") from exc
    with clock.stage("render"):
        facts = render(work / "footage", [file.scene for file in files])
    with clock.stage("plan"):
        cameras = {key: key.split("/")[0] for key in facts}
        questions, missing = choose_questions(facts, plan.seed, plan.num_questions)
        searches = choose_searches(facts, cameras, plan.seed, max(2, plan.num_questions // 3))
        notes += missing
        wanted = max(2, plan.num_questions // 3)
        if len(searches) < wanted:
            notes.append(f"{len(searches)} searches instead of {wanted}: the footage gives no more rare moments")
    with clock.stage("index"):
        index(work / "footage", work / "archive", plan.model)
    asked, found = _ask_archive(work, clock, facts, cameras, questions, searches, plan.seed)
    needles = _needle_test(haystacks, plan.model, work, clock, notes) if haystacks else []
    if not haystacks:
        notes.append("needle_retrieval, needle_answer: the needle test was switched off")
    long_hours, twice = _long_test(plan, work, clock, notes) if plan.whole_minutes else ([], [])
    clock.seconds |= {
        "total_wall_s": round(time.perf_counter() - started, 2),
        "total_cpu_s": round(_cpu_s() - cpu, 2),
    }
    return Run(
        seeds=(plan.seed,),
        model=plan.model,
        video_hours=sum(_hours(known) for known in facts.values()) + sum(plan_hours(needles)) + sum(long_hours),
        num_videos=len(facts) + len({needle.video for needle in needles}) + len(long_hours),
        questions=tuple(asked),
        searches=tuple(found),
        needles=tuple(needles),
        timings=clock.seconds,
        notes=tuple(notes),
        conditions=conditions_of(open_reader(work / "archive")[0]),
        twice=tuple(twice),
    )


def _hours(facts: Facts) -> float:
    return (facts.end_s - facts.start_s) / 3600.0


def plan_hours(needles: Sequence[AskedNeedle]) -> list[float]:
    """The length in hours of each video of the needle test."""
    return list({needle.video: needle.hours for needle in needles}.values())


def render(folder: Path, scenes: Sequence[Scene], workers: int | None = None) -> dict[str, Facts]:
    """Write the files of the scenes below ``folder``; what is true of each, by key, in the order of the scenes.

    ``workers`` None: as many processes as there are processors, for footage that is worth starting them.
    """
    from videoxl2.training.archive_footage import render_file

    minutes = sum(scene.duration_s for scene in scenes) / 60.0
    if workers is None:
        workers = max(1, min(len(os.sched_getaffinity(0)), int(minutes / _MINUTES_PER_PROCESS)))
    # Long files first, so that no process is left alone with one at the end.
    order = sorted(range(len(scenes)), key=lambda index: -scenes[index].duration_s)
    found: dict[int, tuple[str, Facts]] = {}
    if workers == 1:
        made = (render_file(folder, scenes[index]) for index in order)
        found = {index: (video.key, known) for index, (video, known) in zip(order, made, strict=True)}
    else:
        with process_pool(workers) as pool:
            parts = pool.map(render_file, [folder] * len(order), [scenes[index] for index in order])
            found = {index: (video.key, known) for index, (video, known) in zip(order, parts, strict=True)}
    facts = dict(found[index] for index in range(len(scenes)))
    if len(facts) != len(scenes):
        raise StageError("render", "two files of the archive have the same name")
    return facts


def index(footage: Path, folder: Path, model: str, changes: Mapping[str, Any] | None = None) -> None:
    """Make an archive of the footage with the sequential runner and default settings but for ``changes``.

    Raises ``StageError`` unless every file was indexed.
    """
    from pipeline.archive import Archive
    from pipeline.config import load_settings

    overrides = {"archive": str(folder), "model": model, "runner.kind": "local", **(changes or {})}
    archive = Archive(folder, settings=load_settings(overrides=overrides))
    report = archive.ingest(footage, key_pattern=KEY_PATTERN, time_zone=TIME_ZONE)
    bad = [f"{video.uri}: {video.error_type}: {video.error_message}" for video in report.videos if video.error_type]
    if bad or report.failed or report.quarantined:
        raise StageError("index", f"{len(bad)} of {len(report.videos)} rendered files were not indexed; {bad[:1]}")


def open_reader(folder: Path) -> tuple[ArchiveReader, dict[str, VideoRow]]:
    """The archive for use in this process, and its videos by key."""
    from pipeline.config import load_settings
    from pipeline.reader import ArchiveReader

    reader = ArchiveReader(folder, load_settings(overrides={"archive": str(folder)}))
    return reader, {"/".join(video.uri.split("/")[-3:]): video for video in reader.store.visible_videos()}


def _ask_archive(
    work: Path,
    clock: _Clock,
    facts: Mapping[str, Facts],
    cameras: Mapping[str, str],
    questions: Sequence[Question],
    searches: Sequence[Search],
    seed: int,
) -> tuple[list[AskedQuestion], list[AskedSearch]]:
    """Questions and searches by the other process; the columns of comparison here, meanwhile."""
    from pipeline.decode_worker import DecodeWorker

    reader, videos = open_reader(work / "archive")
    uris = {key: videos[key].uri for key in facts}
    keys = {uri: key for key, uri in uris.items()}
    by_video = {key: [item for item in questions if item.video == key] for key in facts}
    tasks: list[dict[str, Any]] = [
        {"id": item.item_id, "kind": "ask", "question": item.question, "videos": [uris[key]]}
        for key, items in by_video.items()
        for item in items
    ]
    tasks += [
        {
            "id": item.item_id,
            "kind": "search",
            "text": item.text,
            "camera": item.camera,
            "video": None,
            "limit": SEARCH_LIMIT,
        }
        for item in searches
    ]
    kinds = {key: known.camera_kind for key, known in facts.items()}
    tasks_among = among.tasks_among(questions, kinds, uris, seed)
    tasks += tasks_among
    # Last, since the columns below are computed meanwhile and wait for the answers above.
    tasks += [task for key, items in by_video.items() for task in curve_tasks(items, uris[key])]
    asked: list[AskedQuestion] = []
    with (
        clock.stage("ask"),
        half_the_processors(),
        AskingProcess(work / "archive", tasks, work) as process,
        DecodeWorker(reader.settings.decode) as decoder,
    ):
        blind = dict(
            zip(
                (item.item_id for item in questions), answer_blind(reader, [q.question for q in questions]), strict=True
            )
        )
        for key, items in by_video.items():
            if not items:
                continue
            encoded = encode_video(reader, decoder, work / "footage" / key)
            texts = [item.question for item in items]
            columns = answer_columns(reader, videos[key], encoded, texts)
            results = [process.result(item.item_id) for item in items]
            levels = reader.settings.ingest.levels
            from_hits = answer_from_hits(reader, encoded, [best_hits(result, key, levels) for result in results], texts)
            for number, (item, result) in enumerate(zip(items, results, strict=True)):
                answers = {name: column[number] for name, column in columns.answers.items()}
                answers |= {"bilevel": result["answer"], "blind": blind[item.item_id]}
                answers["recompute_hits"] = from_hits[number]
                asked.append(
                    AskedQuestion(
                        question=item,
                        answers=answers,
                        kv_bytes_read=result["context"]["kv_bytes_read"],
                        dense_bytes=columns.dense_bytes,
                        num_segments=columns.num_segments,
                        first_token_s=result["timings"]["first_token_s"],
                    )
                )
        found = []
        for search in searches:
            moments = process.result(search.item_id)["moments"]
            spans: tuple[Span, ...] = tuple((keys[m["uri"]], m["start_s"], m["end_s"]) for m in moments)
            found.append(AskedSearch(search, spans, chance_of(search, facts, cameras)))
        answers_among = {task["id"]: process.result(task["id"])["answer"] for task in tasks_among}
        asked = [
            replace(
                item,
                by_share=_share_answers(process, item.question),
                among_answer=answers_among.get(among.task_id(item.question)),
            )
            for item in asked
        ]
    return sorted(asked, key=lambda item: item.question.item_id), found


def _share_answers(process: AskingProcess, item: Question) -> dict[str, ShareAnswer]:
    if item.kind not in CHECKABLE:
        return {}
    return {f"{part:g}": share_answer(process.result(task_id(item, part))) for part in DENSE_SHARES}


def best_hits(answer: Mapping[str, Any], key: str, levels: LevelSettings) -> list[Span]:
    """The chunks most similar to the question, as many as ``ask`` would at most take dense for their score."""
    number = levels.num_best(len(answer["citations"]))
    cited = sorted(answer["citations"], key=lambda item: -item["score"])[:number]
    return [(key, item["start_s"], item["end_s"]) for item in cited]


@contextmanager
def half_the_processors() -> Iterator[None]:
    """Leave half of the processors to the asking process: two models with all threads each only wait for each other."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(max(1, before // 2))
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _needle_test(
    planned: Sequence[NeedleVideo], model: str, work: Path, clock: _Clock, notes: list[str]
) -> list[AskedNeedle]:
    footage, archive = work / "needle-footage", work / "needle-archive"
    with clock.stage("needle_render"):
        videos = render_needles(footage, planned, notes)
    with clock.stage("needle_index"):
        index(footage, archive, model)
    reader, rows = open_reader(archive)
    tasks = [task for video in videos for task in needle_tasks(video, rows[video.key].uri)]
    asked: list[AskedNeedle] = []
    with clock.stage("needle_ask"), AskingProcess(archive, tasks, work) as process:
        for video in videos:
            num_chunks = reader.store.chunks(video_ids=[rows[video.key].video_id], columns=["chunk_id"]).num_rows
            for number in range(len(video.needles)):
                name = video.item_id(number)
                results = process.result(f"{name}:ask"), process.result(f"{name}:search")
                asked.append(asked_needle(video, number, *results, num_chunks))
    return asked


def _long_test(plan: RenderedPlan, work: Path, clock: _Clock, notes: list[str]) -> tuple[list[float], list[AskedTwice]]:
    """Long videos indexed in segments and as one, and the same questions asked of both; hours of each, and answers."""
    footage = work / "long-footage"
    with clock.stage("long_render"):
        files = plan_long_files(plan.seed, plan.whole_minutes)
        facts = render(footage, [file.scene for file in files])
        questions, missing = choose_long_questions(facts, plan.seed, plan.whole_minutes)
        notes += missing
    answers: dict[str, dict[str, dict[str, str]]] = {}
    segments: dict[str, int] = {}
    for name, changes in (("whole", {"ingest.segment_s": 0}), ("segments", {})):
        archive = work / f"long-archive-{name}"
        with clock.stage(f"long_index_{name}"):
            index(footage, archive, plan.model, changes)
        with clock.stage(f"long_ask_{name}"):
            answers[name], segments = _ask_long(archive, work, facts, questions)
    if max(segments.values()) < 2:
        notes.append(f"segments_vs_whole: --whole-minutes {plan.whole_minutes:g} gives no video of several segments")
    asked = [
        AskedTwice(item, answers["segments"][item.item_id], answers["whole"][item.item_id], segments[item.video])
        for item in questions
    ]
    return [_hours(known) for known in facts.values()], asked


def _ask_long(
    archive: Path, work: Path, facts: Mapping[str, Facts], questions: Sequence[Question]
) -> tuple[dict[str, dict[str, str]], dict[str, int]]:
    """Answers by question and way, and the number of segments of each video in this archive."""
    reader, videos = open_reader(archive)
    tasks = [
        {"id": item.item_id, "kind": "ask", "question": item.question, "videos": [videos[item.video].uri]}
        for item in questions
    ]
    found: dict[str, dict[str, str]] = {}
    segments: dict[str, int] = {}
    with half_the_processors(), AskingProcess(archive, tasks, work) as process:
        for key in facts:
            items = [item for item in questions if item.video == key]
            stored = stored_dense(reader, videos[key])
            segments[key] = stored.num_segments
            dense = ask_all(reader, stored.chunks, [item.question for item in items]) if items else []
            for item, answer in zip(items, dense, strict=True):
                found[item.item_id] = {"dense": answer, "ask": process.result(item.item_id)["answer"]}
    return found, segments


def render_needles(footage: Path, planned: Sequence[NeedleVideo], notes: list[str]) -> list[NeedleVideo]:
    """Render the videos of the needle test; needles that something hides are left out and noted."""
    from videoxl2.training.needles import Haystack, seen_needles

    scenes = [
        replace(video.scene, camera=replace(video.scene.camera, name=f"{video.scene.camera.name}-{number + 1}"))
        for number, video in enumerate(planned)
    ]
    facts = render(footage, scenes)
    videos: list[NeedleVideo] = []
    for video, (key, known) in zip(planned, facts.items(), strict=True):
        seen = seen_needles(Haystack(video.scene, video.needles), known)
        if len(seen) < len(video.needles):
            notes.append(f"{len(video.needles) - len(seen)} of {len(video.needles)} needles cannot be seen in {key}")
        videos.append(replace(video, key=key, needles=tuple(seen)))
    return videos


def new_folder(path: str) -> Path:
    """A folder that is empty or does not exist yet, made. Raises ``UsageError`` or ``ConfigError``."""
    folder = Path(path).expanduser().absolute()
    try:
        if folder.is_dir() and any(folder.iterdir()):
            raise UsageError(f"--folder {str(folder)!r} is not empty; name a new one")
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as exc:
        raise ConfigError(f"cannot make the folder {str(folder)!r}: {exc.strerror}") from exc
    return folder
