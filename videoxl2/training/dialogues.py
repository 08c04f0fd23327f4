"""Training samples of the language stages: a stretch of footage as cached visual tokens, and questions about it.

Owns how stretches are put together. A stretch is one window of a clip or several windows of different clips one after
another, as if a camera had been switched; facts are joined, so that every question is asked about the whole. Long
contexts are made this way from short clips, each time anew.

Shapes: G frame groups, P visual tokens per group, D text width.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from videoxl2.training.facts import EventFact, Facts, ObjectFact
from videoxl2.training.priors import AnswerPriors
from videoxl2.training.qa import QA, offers_times
from videoxl2.training.questions import questions_of
from videoxl2.training.recordings import Recording
from videoxl2.training.scene import Scene
from videoxl2.training.token_labels import TokenLabels

GROUP_S = 4.0
_PRIORS_SEED, _PRIORS_PER_KIND = 83, 8
_LONG = ("describe", "events")
_WANTED: Mapping[str, float] = {"choice": 3.0, "exists": 3.0, "when": 3.0, "colour": 1.5, "what": 1.5}
"""How often each kind is asked where there is a choice; others count 1."""
_TIMES_OFFERED = 3.0
"""How much rather a question with options is asked where these are times."""


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
class Stretch:
    """Visual tokens [G, P, D] of a stretch, the time of each group, what is true of it, where it was cut from, and what
    its tokens show, where that was asked for."""

    visual_GPD: NDArray[np.float16]
    times_s: tuple[float, ...]
    facts: Facts
    cuts: tuple[Cut, ...] = ()
    labels: TokenLabels | None = None


@dataclass(frozen=True)
class StretchSettings:
    """How long stretches are (in groups) and how they are cut.

    A window is as long as stretch and clip allow in ``whole`` of cases, else it has 2 to ``longest_window`` groups.
    With ``labelled`` it is also told what each token shows.
    """

    groups: tuple[int, ...]
    longest_window: int = 14
    whole: float = 0.7
    late_start: float = 0.35
    gap: float = 0.15
    labelled: bool = False


def random_stretch(clips: Sequence[CachedClip], settings: StretchSettings, rng: np.random.Generator) -> Stretch:
    """A stretch of one of the lengths of ``settings``; clips are taken as often as they are long."""
    wanted = int(settings.groups[int(rng.integers(len(settings.groups)))])
    offset_s = GROUP_S * int(rng.integers(1, 900)) if rng.random() < settings.late_start else 0.0
    visual: list[NDArray[np.float16]] = []
    times: list[float] = []
    parts: list[Facts] = []
    cuts: list[Cut] = []
    ends = np.cumsum([clip.num_groups for clip in clips])
    while len(times) < wanted:
        number = int(np.searchsorted(ends, rng.integers(ends[-1]), side="right"))
        clip = clips[number]
        length = min(wanted - len(times), clip.num_groups)
        if rng.random() >= settings.whole:
            length = min(length, int(rng.integers(2, settings.longest_window + 1)))
        first = int(rng.integers(clip.num_groups - length + 1))
        start_s = times[-1] + GROUP_S if times else offset_s
        if times and rng.random() < settings.gap:
            start_s += 24.0 * int(rng.integers(1, 6))
        cuts.append(Cut(number, first, first + length))
        visual.append(clip.visual_GPD[first : first + length])
        parts.append(clip.facts(first, first + length, start_s))
        times += [start_s + GROUP_S * group for group in range(length)]
    labels = None
    if settings.labelled:
        shown = [clips[cut.clip].labels.part(cut.first, cut.end) for cut in cuts]
        labels = TokenLabels.join(shown, [cut.end - cut.first for cut in cuts])
    return Stretch(np.concatenate(visual), tuple(times), join_facts(parts), tuple(cuts), labels)


def join_facts(parts: Sequence[Facts]) -> Facts:
    """Facts of stretches that follow each other; objects of different parts are different objects."""
    if len(parts) == 1:
        return parts[0]
    objects: list[ObjectFact] = []
    faint: list[ObjectFact] = []
    events: list[EventFact] = []
    unsure: list[EventFact] = []
    for number, part in enumerate(parts):
        tag = f"{number}/"
        objects += [replace(item, object_id=tag + item.object_id) for item in part.objects]
        faint += [replace(item, object_id=tag + item.object_id) for item in part.doubtful_objects]
        for source, target in ((part.events, events), (part.doubtful_events, unsure)):
            target += [
                replace(
                    event,
                    event_id=f"event-{number}-{event.event_id.removeprefix('event-')}",
                    object_id=tag + event.object_id,
                    target_id=None if event.target_id is None else tag + event.target_id,
                )
                for event in source
            ]
    order = sorted(events, key=lambda event: (event.start_s, event.event_id))
    return Facts(
        parts[0].camera_kind,
        parts[0].start_s,
        parts[-1].end_s,
        tuple(objects),
        tuple(order),
        tuple(faint),
        tuple(unsure),
    )


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

    With ``priors``, questions are rather taken whose answer their wording makes unlikely.
    """
    rng = np.random.default_rng([seed, 43])
    asked = questions_of(stretch.facts, seed, "train", per_kind)
    kept = [item for item in asked if item.kind not in _LONG or rng.random() < long_answers / per_kind]
    if priors is not None:
        # What the text tells is left out as often as it tells too much; what it hides is taken all the rather.
        kept = [item for item in kept if rng.random() < priors.weight(item)]
    if not kept:
        return []
    number = Counter(item.kind for item in kept)
    weights = np.asarray([_WANTED.get(item.kind, 1.0) / number[item.kind] for item in kept])
    weights *= [_TIMES_OFFERED if offers_times(item) else 1.0 for item in kept]
    if priors is not None:
        weights *= [max(1.0, priors.weight(item)) for item in kept]
    chosen = rng.choice(len(kept), min(most, len(kept)), replace=False, p=weights / weights.sum())
    return [kept[i] for i in chosen.tolist()]


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
    starts_G = np.asarray(stretch.times_s)
    seen_G = np.zeros(len(starts_G), np.bool_)
    for start_s, end_s in spans:
        seen_G |= (starts_G < end_s) & (starts_G + GROUP_S > start_s)
    return seen_G
