"""Training samples of the language stages: a stretch of footage as cached visual tokens, and questions about it.

Owns how stretches are put together. A stretch is one window of a clip or several windows of different clips one after
another, as if a camera had been switched; facts are joined, so that every question is asked about the whole. Long
contexts are made this way from short clips, each time anew.

Archives are asked about more than one segment, and about more than one video. So some stretches are cut into segments
that are prefilled apart, and in others every window is a video with a time and a camera of its own, which is said
before it as ``pipeline.ask`` says it.

Shapes: G frame groups, P visual tokens per group, D text width.
"""

from __future__ import annotations

import itertools
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from videoxl2.headers import header_text
from videoxl2.named_times import names_time
from videoxl2.training.facts import EventFact, Facts, ObjectFact
from videoxl2.training.priors import AnswerPriors
from videoxl2.training.qa import QA, asks_for_trousers, at_place, offers_times
from videoxl2.training.questions import questions_of
from videoxl2.training.recordings import Recording
from videoxl2.training.scene import Scene
from videoxl2.training.token_labels import TokenLabels
from videoxl2.training.wording import AT_CAMERA

GROUP_S = 4.0
_PRIORS_SEED, _PRIORS_PER_KIND = 83, 8
_LONG = ("describe", "events")
_TIMED = ("when", "order", *_LONG)
"""Kinds of question that nobody asks of several videos at once."""
_LEAST_GROUPS, _MOST_VIDEOS = 4, 5
_DATED = 0.8
_FIRST_DAY = datetime(2023, 1, 1)
"""How small segments are and how many there are of them at most; how often a video's start is known, and since when."""
_WANTED: Mapping[str, float] = {
    "choice": 3.0,
    "exists": 3.0,
    "when": 2.5,
    "order": 2.0,
    "count": 1.5,
    "colour": 1.5,
    "what": 1.5,
    "where": 1.5,
}
"""How often each kind is asked where there is a choice; others count 1."""
_TIMES_OFFERED = 3.0
"""How much rather a question with options is asked where these are times."""
_TROUSERS_ASKED = 3.5
"""How much rather one is asked that asks for the colour of trousers, which are learned later than all other colours."""


@dataclass(frozen=True)
class CachedClip:
    """A recorded clip with its visual tokens: group g holds frames [first + 4 g, first + 4 g + 4)."""

    recording: Recording
    scene: Scene
    first_frame: int
    visual_GPD: NDArray[np.float16]

    @property
    def num_groups(self) -> int:
        return len(self.visual_GPD)

    @cached_property
    def labels(self) -> TokenLabels:
        """What each visual token shows."""
        return TokenLabels.of(self.recording, self.first_frame, *self.visual_GPD.shape[:2])

    def facts(self, first_group: int, end_group: int, offset_s: float) -> Facts:
        """What is true of groups [first, end), whose first moment becomes ``offset_s``."""
        frames = (self.first_frame + 4 * first_group, self.first_frame + 4 * end_group)
        return self.recording.facts(self.scene, *frames, offset_s)


@dataclass(frozen=True)
class Cut:
    """A part of a stretch: groups [first, end) of clip number ``clip`` of those it was made from."""

    clip: int
    first: int
    end: int


@dataclass(frozen=True)
class Segment:
    """Frame groups [first, end) of a stretch that are prefilled apart, and the text before them in the context.

    ``facts`` are true of them alone and ``places`` what a question may call their camera, where they are a video among
    others.
    """

    first: int
    end: int
    header: str = ""
    facts: Facts | None = None
    places: tuple[str, ...] = ()


@dataclass(frozen=True)
class Stretch:
    """Visual tokens [G, P, D] of a stretch, the time of each group as its timestamp says it, what is true of it, where
    it was cut from, what its tokens show, where that was asked for, and what was prefilled apart (nothing: no more than
    one segment).

    Where it is of several videos every one has its own time; ``fact_times_s`` are then those of the facts.
    """

    visual_GPD: NDArray[np.float16]
    times_s: tuple[float, ...]
    facts: Facts
    cuts: tuple[Cut, ...] = ()
    labels: TokenLabels | None = None
    segments: tuple[Segment, ...] = ()
    fact_times_s: tuple[float, ...] | None = None

    @property
    def moments_s(self) -> tuple[float, ...]:
        """The time of each group as the facts tell it."""
        return self.times_s if self.fact_times_s is None else self.fact_times_s

    @property
    def is_of_videos(self) -> bool:
        """Whether it is of several videos."""
        return self.fact_times_s is not None

    @property
    def spans(self) -> list[tuple[int, int]]:
        """Frame groups [first, end) of what was prefilled apart."""
        return [(part.first, part.end) for part in self.segments] or [(0, len(self.times_s))]


@dataclass(frozen=True)
class StretchSettings:
    """How long stretches are (in groups) and how they are cut.

    A window is as long as stretch and clip allow in ``whole`` of cases, else it has 2 to ``longest_window`` groups.
    With ``labelled`` it is also told what each token shows. ``segmented`` is the share of stretches that are cut into
    segments, and ``videos`` the share of those whose windows are videos of their own, of which there are several.
    """

    groups: tuple[int, ...]
    longest_window: int = 14
    whole: float = 0.7
    late_start: float = 0.35
    gap: float = 0.15
    labelled: bool = False
    segmented: float = 0.0
    videos: float = 0.0


def random_stretch(clips: Sequence[CachedClip], settings: StretchSettings, rng: np.random.Generator) -> Stretch:
    """A stretch of one of the lengths of ``settings``; clips are taken as often as they are long."""
    wanted = int(settings.groups[int(rng.integers(len(settings.groups)))])
    offset_s = GROUP_S * int(rng.integers(1, 900)) if rng.random() < settings.late_start else 0.0
    drawn = rng.random()
    kind = drawn if wanted >= 2 * _LEAST_GROUPS else 1.0
    is_of_videos = kind < settings.videos
    cuts, times = _random_cuts([clip.num_groups for clip in clips], wanted, offset_s, settings, rng, is_of_videos)
    lengths = [cut.end - cut.first for cut in cuts]
    starts_s = [times[first] for first in itertools.accumulate(lengths[:-1], initial=0)]
    parts = [clips[cut.clip].facts(cut.first, cut.end, start_s) for cut, start_s in zip(cuts, starts_s, strict=True)]
    labels = None
    if settings.labelled:
        labels = TokenLabels.join([clips[cut.clip].labels.part(cut.first, cut.end) for cut in cuts], lengths)
    tokens_GPD = np.concatenate([clips[cut.clip].visual_GPD[cut.first : cut.end] for cut in cuts])
    facts = join_facts(parts)
    if is_of_videos and len(parts) > 1:
        stamps, segments = _as_videos(lengths, tagged_facts(parts), settings, rng)
        return Stretch(tokens_GPD, stamps, facts, tuple(cuts), labels, segments, tuple(times))
    is_segmented = settings.videos <= kind < settings.videos + settings.segmented
    segments = _as_segments(wanted, rng) if is_segmented else ()
    return Stretch(tokens_GPD, tuple(times), facts, tuple(cuts), labels, segments)


def _random_cuts(
    lengths: Sequence[int],
    wanted: int,
    offset_s: float,
    settings: StretchSettings,
    rng: np.random.Generator,
    is_of_videos: bool,
) -> tuple[list[Cut], list[float]]:
    """Cuts of clips of ``lengths`` that have ``wanted`` groups together, and the time of each group.

    Cuts that will be videos are shorter, so that there are several, and leave no rest of fewer than ``_LEAST_GROUPS``.
    """
    longest = max(_LEAST_GROUPS, math.ceil(wanted / int(rng.integers(2, _MOST_VIDEOS + 1)))) if is_of_videos else wanted
    times: list[float] = []
    cuts: list[Cut] = []
    ends = np.cumsum(lengths)
    while len(times) < wanted:
        number = int(np.searchsorted(ends, rng.integers(ends[-1]), side="right"))
        length = min(wanted - len(times), lengths[number], longest)
        if rng.random() >= settings.whole:
            length = min(length, int(rng.integers(2, settings.longest_window + 1)))
        if is_of_videos and wanted - len(times) - length < _LEAST_GROUPS:
            length = min(wanted - len(times), lengths[number])
        first = int(rng.integers(lengths[number] - length + 1))
        start_s = times[-1] + GROUP_S if times else offset_s
        if times and rng.random() < settings.gap:
            start_s += 24.0 * int(rng.integers(1, 6))
        cuts.append(Cut(number, first, first + length))
        times += [start_s + GROUP_S * group for group in range(length)]
    return cuts, times


def _as_segments(num_groups: int, rng: np.random.Generator) -> tuple[Segment, ...]:
    """The groups cut into a few segments of ``_LEAST_GROUPS`` at least."""
    most = min(_MOST_VIDEOS, num_groups // _LEAST_GROUPS)
    inner = np.sort(rng.integers(0, num_groups - most * _LEAST_GROUPS + 1, int(rng.integers(1, most))))
    edges = [0, *(int(at) + _LEAST_GROUPS * (number + 1) for number, at in enumerate(inner)), num_groups]
    return tuple(Segment(first, end) for first, end in itertools.pairwise(edges))


def _as_videos(
    lengths: Sequence[int], parts: Sequence[Facts], settings: StretchSettings, rng: np.random.Generator
) -> tuple[tuple[float, ...], tuple[Segment, ...]]:
    """Timestamps and segments of windows of so many groups that are videos of cameras with different names."""
    stamps: list[float] = []
    segments: list[Segment] = []
    kinds = Counter(part.camera_kind for part in parts)
    numbers = iter(rng.permutation(np.arange(1, len(parts) + 1)).tolist())
    is_numbered = max(kinds.values()) > 1 or rng.random() < 0.5
    day = _FIRST_DAY + timedelta(seconds=int(rng.integers(0, 4 * 365 * 86_400)))
    for length, part in zip(lengths, parts, strict=True):
        kind = part.camera_kind
        name = f"{kind}-{next(numbers)}" if is_numbered else kind
        day += timedelta(seconds=int(rng.integers(60, 7200)))
        places = (f"on camera {name}", *([AT_CAMERA[kind]] if kinds[kind] == 1 else []))
        offset_s = GROUP_S * int(rng.integers(1, 900)) if rng.random() < settings.late_start else 0.0
        header = header_text(name, name, day if rng.random() < _DATED else None)
        segments.append(Segment(len(stamps), len(stamps) + length, header, part, places))
        stamps += [offset_s + GROUP_S * group for group in range(length)]
    return tuple(stamps), tuple(segments)


def join_facts(parts: Sequence[Facts]) -> Facts:
    """Facts of stretches that follow each other; objects of different parts are different objects."""
    if len(parts) == 1:
        return parts[0]
    tagged = tagged_facts(parts)
    events = [event for part in tagged for event in part.events]
    return Facts(
        parts[0].camera_kind,
        parts[0].start_s,
        parts[-1].end_s,
        tuple(item for part in tagged for item in part.objects),
        tuple(sorted(events, key=lambda event: (event.start_s, event.event_id))),
        tuple(item for part in tagged for item in part.doubtful_objects),
        tuple(event for part in tagged for event in part.doubtful_events),
    )


def tagged_facts(parts: Sequence[Facts]) -> list[Facts]:
    """The facts with names of objects and events that no two parts share."""

    def named(number: int, item: ObjectFact) -> ObjectFact:
        return replace(item, object_id=f"{number}/{item.object_id}")

    def told(number: int, event: EventFact) -> EventFact:
        return replace(
            event,
            event_id=f"event-{number}-{event.event_id.removeprefix('event-')}",
            object_id=f"{number}/{event.object_id}",
            target_id=None if event.target_id is None else f"{number}/{event.target_id}",
        )

    return [
        replace(
            part,
            objects=tuple(named(number, item) for item in part.objects),
            events=tuple(told(number, event) for event in part.events),
            doubtful_objects=tuple(named(number, item) for item in part.doubtful_objects),
            doubtful_events=tuple(told(number, event) for event in part.doubtful_events),
        )
        for number, part in enumerate(parts)
    ]


def priors_of(clips: Sequence[CachedClip], settings: StretchSettings, number: int, seed: int) -> AnswerPriors:
    """What wordings give away, from questions about ``number`` random stretches."""
    rng = np.random.default_rng([seed, _PRIORS_SEED])
    items: list[QA] = []
    for _ in range(number):
        facts = random_stretch(clips, settings, rng).facts
        items += questions_of(facts, int(rng.integers(1 << 30)), "train", _PRIORS_PER_KIND)
    return AnswerPriors(items)


def questions_about(
    stretch: Stretch,
    seed: int,
    per_kind: int,
    most: int,
    long_answers: float = 0.3,
    priors: AnswerPriors | None = None,
) -> list[QA]:
    """Up to ``most`` questions of all kinds; those with long answers, which cost most, in ``long_answers`` of cases.

    With ``priors``, questions are rather taken whose answer their wording makes unlikely. About several videos nothing
    is asked in which times matter, and half of the questions are about one of the cameras, which they name.
    """
    rng = np.random.default_rng([seed, 43])
    asked = questions_of(stretch.facts, seed, "train", per_kind)
    place_of: dict[int, str] = {}
    if stretch.is_of_videos:
        for place, part in enumerate(stretch.segments):
            assert part.facts is not None
            local = questions_of(part.facts, seed + place, "train", max(1, per_kind // len(stretch.segments)))
            place_of |= {id(item): str(rng.choice(part.places)) for item in local}
            asked += local
        asked = [item for item in asked if item.kind not in _TIMED and not names_time(item.question)]
    kept = [item for item in asked if item.kind not in _LONG or rng.random() < long_answers / per_kind]
    if priors is not None:
        # What the text tells is left out as often as it tells too much; what it hides is taken all the rather.
        kept = [item for item in kept if rng.random() < priors.weight(item)]
    if not kept:
        return []
    number = Counter(item.kind for item in kept)
    weights = np.asarray([_WANTED.get(item.kind, 1.0) / number[item.kind] for item in kept])
    weights *= [_TIMES_OFFERED if offers_times(item) else 1.0 for item in kept]
    weights *= [_TROUSERS_ASKED if asks_for_trousers(item) else 1.0 for item in kept]
    if priors is not None:
        weights *= [max(1.0, priors.weight(item)) for item in kept]

    def placed(item: QA) -> QA:
        place = place_of.get(id(item))
        return item if place is None else replace(item, question=at_place(item.question, place))

    chosen = rng.choice(len(kept), min(most, len(kept)), replace=False, p=weights / weights.sum())
    return [placed(kept[i]) for i in chosen.tolist()]


def evidence_groups(stretch: Stretch, item: QA) -> NDArray[np.bool_]:
    """Which frame groups [G] show what the answer follows from; none where it follows from nothing to be seen.

    Events say more than the objects that they are of. Long answers have no one place.
    """
    if item.kind in _LONG:
        return np.zeros(len(stretch.times_s), np.bool_)
    facts, ids = stretch.facts, set(item.evidence_ids)
    spans = [(event.start_s, event.end_s) for event in facts.events if event.event_id in ids]
    if not spans and item.interval is not None and item.kind != "exists":
        spans = [item.interval]
    if not spans:
        spans = [span for thing in facts.objects if thing.object_id in ids for span in thing.visible]
    starts_G = np.asarray(stretch.moments_s)
    seen_G = np.zeros(len(starts_G), np.bool_)
    for start_s, end_s in spans:
        seen_G |= (starts_G < end_s) & (starts_G + GROUP_S > start_s)
    return seen_G
