"""What is asked: which files are rendered for a number of questions, which questions and searches are chosen.

Owns the mixture. Everything follows from the seed; nothing here renders, reads a video or runs a model.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import count

import numpy as np

from jobs.evaluation.balance import take_choices, take_evenly
from jobs.evaluation.records import Question, Search, Span
from jobs.evaluation.statistics import chance_of_a_hit
from videoxl2.training.archive_footage import plan_archive
from videoxl2.training.facts import Facts, script_facts
from videoxl2.training.held_back import names_held_back
from videoxl2.training.priors import OptionBalance
from videoxl2.training.qa import QA, QuestionKind, text_baseline
from videoxl2.training.queries import search_queries
from videoxl2.training.questions import questions_of
from videoxl2.training.random_scenes import CAMERA_KINDS, random_scene
from videoxl2.training.scene import Scene, SceneryKind

SHARES: Mapping[QuestionKind, float] = {
    "choice": 0.25,
    "exists": 0.25,
    "when": 0.15,
    "colour": 0.12,
    "count": 0.08,
    "where": 0.08,
    "order": 0.07,
}
"""Share of each kind among the questions of a run; what a kind cannot fill goes to the others in this order."""

FILE_MINUTES = (1.0, 2.0, 1.0, 5.0, 2.0, 1.0, 10.0)
"""Lengths of files, over and over; kinds of camera rotate beside them, so that every kind gets every length."""

LONG_MINUTES = 30.0
"""Length of the one file that is longer than a segment."""

_MINUTES_PER_QUESTION = 110.0 / 300.0
_LONG_FROM_MINUTES = 60.0
_MOST_PER_KIND = 20
_KNOWN_SCENES = 60
_KNOWN_SCENE_S = 120.0
_GRID_S = 24.0
_MIN_IOU = 0.3
_LONGEST_MOMENT_S = 60.0


@dataclass(frozen=True, slots=True)
class PlannedFile:
    """A file to render: a scene of its own camera."""

    scene: Scene
    minutes: float


def plan_files(seed: int, num_questions: int, minutes: float | None = None) -> list[PlannedFile]:
    """The files of a test archive: ``minutes`` in all, or as many as the questions need, one long file beside them.

    Every camera has a place, a picture size and a frame rate of its own. The long file is left out below an hour.
    """
    total = max(_MINUTES_PER_QUESTION * num_questions, 1.0) if minutes is None else minutes
    wanted: list[tuple[SceneryKind, float]] = []
    left = total
    for number in count():
        if left < 1 / 60:
            break
        length = min(FILE_MINUTES[number % len(FILE_MINUTES)], left)
        wanted.append((CAMERA_KINDS[number % len(CAMERA_KINDS)], length))
        left = round(left - length, 6)
    if total >= _LONG_FROM_MINUTES:
        wanted.append((CAMERA_KINDS[seed % len(CAMERA_KINDS)], LONG_MINUTES))
    return plan_scenes(wanted, seed)


def plan_scenes(wanted: Sequence[tuple[SceneryKind, float]], seed: int, first: int = 0) -> list[PlannedFile]:
    """A file for each kind of camera and number of minutes; ``first`` is the number of the first file of this seed."""
    files: list[PlannedFile] = []
    for number, (kind, length) in enumerate(wanted, start=first):
        (scene,) = plan_archive(seed * 1000 + number, length / 60.0, (kind,), "test", file_minutes=length)
        camera = replace(scene.camera, name=f"{kind}-{number + 1}")
        files.append(PlannedFile(replace(scene, camera=camera), length))
    return files


def choose_questions(videos: Mapping[str, Facts], seed: int, num_questions: int) -> tuple[list[Question], list[str]]:
    """``num_questions`` about the videos (key to facts) in the shares of ``SHARES``, and notes where that fails.

    Half of the questions for existence have the answer yes, and other answers are as evenly spread as the videos allow
    (``balance.py``). Long videos get more questions than short ones. Fewer are returned only when the videos give no
    more that the text alone does not answer.
    """
    candidates = _candidates(videos, seed)
    taken: dict[str, list[tuple[str, QA]]] = {}
    notes: list[str] = []
    room = num_questions
    for kind, number in _numbers(num_questions).items():
        taken[kind] = _take(kind, candidates[kind], min(number, room))
        room -= len(taken[kind])
        if len(taken[kind]) < number:
            notes.append(
                f"{len(taken[kind])} questions of kind {kind!r} instead of {number}: the footage gives no more"
            )
    for kind in SHARES:
        if room <= 0:
            break
        more = _take(kind, candidates[kind], len(taken[kind]) + room)
        room -= len(more) - len(taken[kind])
        taken[kind] = more
    known = known_questions(seed)
    options = OptionBalance()
    for item in known:
        if item.options:
            options.add(item)
    chosen = [
        _question(f"q{number:04d}", key, item, videos[key], known, options)
        for number, (key, item) in enumerate(pair for kind in SHARES for pair in taken[kind])
    ]
    return chosen, notes


def _numbers(num_questions: int) -> dict[QuestionKind, int]:
    """How many of each kind: shares rounded down, the rest to the kinds that lost most, at least one while it lasts."""
    exact = {kind: share * num_questions for kind, share in SHARES.items()}
    numbers = {kind: int(value) for kind, value in exact.items()}
    order = sorted(SHARES, key=lambda kind: (numbers[kind] > 0, numbers[kind] - exact[kind]))
    for kind in order[: num_questions - sum(numbers.values())]:
        numbers[kind] += 1
    return numbers


def _candidates(videos: Mapping[str, Facts], seed: int) -> dict[QuestionKind, list[tuple[str, QA]]]:
    """Questions by kind, spread over the videos: a video comes up as often as its length deserves."""
    ranked: dict[QuestionKind, list[tuple[float, str, int, QA]]] = {kind: [] for kind in SHARES}
    for number, (key, facts) in enumerate(videos.items()):
        minutes = (facts.end_s - facts.start_s) / 60.0
        weight = 1.0 + minutes / 4.0
        seen: dict[str, int] = {}
        per_kind = min(_MOST_PER_KIND, 3 + round(minutes))
        for item in questions_of(facts, seed * 1009 + number, "test", per_kind):
            if item.kind in ranked:
                index = seen[item.kind] = seen.get(item.kind, -1) + 1
                ranked[item.kind].append(((index + 0.5) / weight, key, index, item))
    return {
        kind: [(key, item) for _, key, _, item in sorted(rows, key=lambda row: row[:3])]
        for kind, rows in ranked.items()
    }


def _take(kind: str, candidates: Sequence[tuple[str, QA]], number: int) -> list[tuple[str, QA]]:
    if kind == "choice":
        return take_choices(candidates, number)
    if kind == "when":  # every answer is another
        return list(candidates[:number])
    if kind == "exists":
        answers = Counter(item.answer for _, item in candidates)
        number = min(number, 2 * min(answers["yes"], answers["no"]) + 1)
    return take_evenly(candidates, number)


def _question(item_id: str, key: str, item: QA, facts: Facts, known: Sequence[QA], options: OptionBalance) -> Question:
    events = {event.event_id: event.kind for event in (*facts.events, *facts.doubtful_events)}
    actions = [events[name] for name in item.evidence_ids if name in events]
    same = [other for other in known if other.kind == item.kind]
    return Question(
        item_id=item_id,
        video=key,
        camera_kind=facts.camera_kind,
        video_s=facts.end_s - facts.start_s,
        kind=item.kind,
        question=item.question,
        expected=item.answer,
        options=item.options,
        interval=item.interval,
        action=actions[0] if actions else None,
        never_shown=names_held_back(facts, item),
        is_guessed=(
            options.guess(item) == item.answer if item.options else text_baseline([item], same)[item.kind] == 1.0
        ),
    )


def known_questions(seed: int) -> list[QA]:
    """Questions about training scenes, which nobody rendered: what may be known of answers without a video."""
    found: list[QA] = []
    for number in range(_KNOWN_SCENES):
        kind = CAMERA_KINDS[number % len(CAMERA_KINDS)]
        scene = random_scene(kind, seed * 977 + number, _KNOWN_SCENE_S, "train")
        found += questions_of(script_facts(scene), number, "train", 6)
    return found


def choose_searches(videos: Mapping[str, Facts], cameras: Mapping[str, str], seed: int, number: int) -> list[Search]:
    """``number`` searches, half with one attribute: over everything as far as rare moments go, then camera by camera.

    ``cameras`` gives the camera of each video.
    """
    found: dict[int, list[Search]] = {1: [], 2: []}
    asked: set[tuple[str, str | None]] = set()
    wanted = {1: number - number // 2, 2: number // 2}
    for camera, seed_of_scope in _scopes(cameras, seed):
        scope = {key: facts for key, facts in videos.items() if camera is None or cameras[key] == camera}
        queries = search_queries(scope, seed_of_scope, 4 * number)
        if camera is not None:  # not all of a camera's claims: every camera gets its turn
            queries = queries[: max(2, math.ceil(2 * number / len(set(cameras.values()))))]
        for query in queries:
            rows = found[query.num_attributes]
            if len(rows) < wanted[query.num_attributes] and (query.text, camera) not in asked:
                asked.add((query.text, camera))
                rows.append(
                    Search("", query.text, query.num_attributes, tuple(query.intervals), tuple(query.doubtful), camera)
                )
    both = [*found[1], *found[2]]
    return [replace(search, item_id=f"s{index:04d}") for index, search in enumerate(both)]


def _scopes(cameras: Mapping[str, str], seed: int) -> Iterator[tuple[str | None, int]]:
    yield None, seed
    names = sorted(set(cameras.values()))
    order = np.random.default_rng([seed, 59]).permutation(len(names)).tolist()
    for round_number in (1, 2):
        for index in order:
            yield names[index], seed + 7919 * round_number + index


def is_match(found: Span, right: Span) -> bool:
    """Whether a moment found is the right one: IoU of at least 0.3, or inside the true interval, or its middle is.

    The true interval's middle inside the moment counts too. Moments longer than 60 s are right by IoU or when they lie
    wholly inside the true interval: an answer that is mostly something else is none.
    """
    (key, low, high), (true_key, true_low, true_high) = found, right
    if key != true_key:
        return False
    shared = min(high, true_high) - max(low, true_low)
    whole = max(high, true_high) - min(low, true_low)
    if whole > 0 and shared / whole >= _MIN_IOU:
        return True
    if high - low > _LONGEST_MOMENT_S:
        return true_low <= low and high <= true_high
    return true_low <= (low + high) / 2 < true_high or low <= (true_low + true_high) / 2 < high


def first_right(search: Search, found: Sequence[Span]) -> int | None:
    """Rank, from 1, of the first right moment; moments that only may be right are left out of the ranking."""
    rank = 0
    for moment in found:
        if any(is_match(moment, span) for span in search.right):
            return rank + 1
        if not any(is_match(moment, span) for span in search.doubtful):
            rank += 1
    return None


def chance_of(search: Search, videos: Mapping[str, Facts], cameras: Mapping[str, str]) -> dict[str, float]:
    """Recall of a blind ranking: moments of 24 s, drawn in random order from the footage in scope."""
    num_right = num_items = 0
    for key, facts in videos.items():
        if search.camera is not None and cameras[key] != search.camera:
            continue
        for low in np.arange(facts.start_s, facts.end_s, _GRID_S).tolist():
            moment = (key, low, min(low + _GRID_S, facts.end_s))
            if any(is_match(moment, span) for span in search.right):
                num_right, num_items = num_right + 1, num_items + 1
            elif not any(is_match(moment, span) for span in search.doubtful):
                num_items += 1
    return {"recall1": chance_of_a_hit(num_items, num_right, 1), "recall5": chance_of_a_hit(num_items, num_right, 5)}
