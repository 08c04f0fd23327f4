"""What one run leaves behind, item by item: every question, search and needle with what was answered.

Everything reported is computed from these records, so that several runs can be pooled and counted anew.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from jobs.evaluation.conditions import check_equal

Span = tuple[str, float, float]
"""A stretch of a video: its key, and start and end in seconds."""

COLUMNS = ("plain", "chunked", "dense", "bilevel", "int8", "int4", "sparse_only", "recompute_hits", "blind")
"""Ways to answer that are compared over the same questions."""


@dataclass(frozen=True, slots=True)
class Question:
    """One question about one video. ``interval`` is where its answer is seen, ``action`` what it is about.

    ``is_guessed``: who knows many questions of other videos, but sees no video, answers it rightly from its wording.
    ``never_shown``: its answer follows from a combination of words that training must not show (None: not recorded).
    """

    item_id: str
    video: str
    camera_kind: str
    video_s: float
    kind: str
    question: str
    expected: str
    options: tuple[str, ...]
    interval: tuple[float, float] | None
    action: str | None = None
    is_guessed: bool = False
    never_shown: bool | None = None


@dataclass(frozen=True, slots=True)
class ShareAnswer:
    """What ``ask`` says with a share of the chunks dense, and the bytes of KV that it read for that."""

    answer: str
    kv_bytes_read: int


@dataclass(frozen=True, slots=True)
class AskedQuestion:
    """A question with its answers by column, and what ``ask`` read: bytes of KV of all that the video has stored.

    ``by_share`` has the answers of the bi-level curve by dense share, ``among_answer`` what is answered over several
    videos at once, where they were asked for.
    """

    question: Question
    answers: Mapping[str, str]
    kv_bytes_read: int
    dense_bytes: int
    num_segments: int
    first_token_s: float = 0.0
    by_share: Mapping[str, ShareAnswer] = field(default_factory=dict)
    among_answer: str | None = None

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


@dataclass(frozen=True, slots=True)
class Search:
    """One query with the moments that are right, those that may be, and the camera it is restricted to, if any."""

    item_id: str
    text: str
    num_attributes: int
    right: tuple[Span, ...]
    doubtful: tuple[Span, ...]
    camera: str | None = None


@dataclass(frozen=True, slots=True)
class AskedSearch:
    """A query with the moments found, best first. ``chance`` holds the recall of blind guessing at 1 and 5."""

    search: Search
    found: tuple[Span, ...]
    chance: Mapping[str, float]

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


@dataclass(frozen=True, slots=True)
class AskedNeedle:
    """One needle: where it lay, whether its chunk was dense or its moment found, and what was answered.

    ``dense_share`` is the share of the video's chunks that were dense: what blind choice of chunks would find.
    """

    item_id: str
    video: str
    hours: float
    depth: float
    kind: str
    question: str
    expected: str
    options: tuple[str, ...]
    answer: str
    is_dense: bool
    is_in_context: bool
    is_in_top5: bool
    dense_share: float
    first_token_s: float = 0.0

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


@dataclass(frozen=True, slots=True)
class AskedTwice:
    """A question about a long video that is indexed twice: in segments, and as one. Answers by way of asking.

    The ways are ``dense`` (all stored KV) and ``ask`` (with its default levels).
    """

    question: Question
    segments: Mapping[str, str]
    whole: Mapping[str, str]
    num_segments: int

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


@dataclass(frozen=True, slots=True)
class Run:
    """The records of one run of ``vxl evaluate rendered``, or of several pooled.

    ``conditions`` say what it was made with (``conditions.py``).
    """

    seeds: tuple[int, ...]
    model: str
    video_hours: float
    num_videos: int
    questions: tuple[AskedQuestion, ...]
    searches: tuple[AskedSearch, ...]
    needles: tuple[AskedNeedle, ...]
    timings: Mapping[str, float] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    conditions: Mapping[str, Any] = field(default_factory=dict)
    twice: tuple[AskedTwice, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


def run_from_dict(values: Mapping[str, Any]) -> Run:
    """The run that ``Run.to_dict`` wrote, after JSON. Raises ``KeyError`` or ``TypeError`` for another document."""

    def spans(items: Any) -> tuple[Span, ...]:
        return tuple((str(key), float(low), float(high)) for key, low, high in items)

    def question(item: Mapping[str, Any]) -> Question:
        interval = item["interval"]
        pair = None if interval is None else (float(interval[0]), float(interval[1]))
        return Question(**{**item, "options": tuple(item["options"]), "interval": pair})

    def asked(item: Mapping[str, Any]) -> AskedQuestion:
        by_share = {name: ShareAnswer(**answer) for name, answer in item.get("by_share", {}).items()}
        return AskedQuestion(**{**item, "question": question(item["question"]), "by_share": by_share})

    def search(item: Mapping[str, Any]) -> Search:
        return Search(**{**item, "right": spans(item["right"]), "doubtful": spans(item["doubtful"])})

    return Run(
        seeds=tuple(values["seeds"]),
        model=values["model"],
        video_hours=values["video_hours"],
        num_videos=values["num_videos"],
        questions=tuple(asked(item) for item in values["questions"]),
        searches=tuple(
            AskedSearch(**{**item, "search": search(item["search"]), "found": spans(item["found"])})
            for item in values["searches"]
        ),
        needles=tuple(AskedNeedle(**{**item, "options": tuple(item["options"])}) for item in values["needles"]),
        timings=dict(values["timings"]),
        notes=tuple(values["notes"]),
        conditions=dict(values.get("conditions", {})),
        twice=tuple(AskedTwice(**{**item, "question": question(item["question"])}) for item in values.get("twice", ())),
    )


def pooled(runs: Sequence[Run], names: Sequence[str] = ()) -> Run:
    """Several runs as one: counts and hours add up, and every figure is computed anew from all items.

    Raises ``ValueError`` for none, for runs that share a seed, and for runs of different weights or settings; these are
    named by ``names``, or else by their seeds.
    """
    seeds = [seed for run in runs for seed in run.seeds]
    if not runs or len(set(seeds)) != len(seeds):
        raise ValueError(f"only runs of different seeds can be pooled, not of {seeds}")
    labels = names or [f"the run of seed {', '.join(map(str, run.seeds))}" for run in runs]
    check_equal([(label, run.conditions) for label, run in zip(labels, runs, strict=True)])
    timed = {name for run in runs for name in run.timings}
    return Run(
        seeds=tuple(seeds),
        model=", ".join(dict.fromkeys(run.model for run in runs)),
        video_hours=sum(run.video_hours for run in runs),
        num_videos=sum(run.num_videos for run in runs),
        questions=tuple(item for run in runs for item in run.questions),
        searches=tuple(item for run in runs for item in run.searches),
        needles=tuple(item for run in runs for item in run.needles),
        timings={name: sum(run.timings.get(name, 0.0) for run in runs) for name in sorted(timed)},
        notes=tuple(dict.fromkeys(note for run in runs for note in run.notes)),
        conditions=runs[0].conditions,
        twice=tuple(item for run in runs for item in run.twice),
    )
