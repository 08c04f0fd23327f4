"""What the dual encoder is trained on: texts, and which frame groups each describes.

Owns the choice of texts for a batch of clips and the exact labels of every (text, group) pair: 1 true, 0 false, -1 not
certain (too small, too short, cut off). Because labels are known, no pair in a batch is a false negative.

Shapes: B texts, G frame groups.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from videoxl2.training.claims import PALETTES, PERSON_ACTIONS, Claim
from videoxl2.training.episodes import TROUSERS
from videoxl2.training.facts import EventFact, Facts, Interval, ObjectFact
from videoxl2.training.queries import claims_in, query_text

_MIN_OVERLAP_S = 0.9


@dataclass(frozen=True)
class KnownClaims:
    """Claims that hold in some clip of a batch: those that one of its frame groups shows for certain, and the rest."""

    shown: tuple[Claim, ...]
    elsewhere: tuple[Claim, ...]


def known_claims(facts: Sequence[Facts], spans: Sequence[Sequence[Interval]]) -> KnownClaims:
    """What holds in clips; ``spans[i]`` are the looked-at groups of clip i, timed like ``facts[i]``."""
    true = sorted({claim for one in facts for claim in claims_in(one)}, key=repr)
    if not true:
        return KnownClaims((), ())
    is_shown = (pair_labels(true, facts, spans) == 1).any(axis=1).tolist()
    return KnownClaims(
        tuple(claim for claim, shown in zip(true, is_shown, strict=True) if shown),
        tuple(claim for claim, shown in zip(true, is_shown, strict=True) if not shown),
    )


def batch_claims(known_ones: KnownClaims, num: int, rng: np.random.Generator) -> list[Claim]:
    """``num`` claims: half are shown, an eighth hold at other times of the clips, the rest differ from such in a word.

    Where less is shown, more differ. A long clip tells of much that a window of it does not show: were its claims
    drawn alike, hardly a text would be true of any picture.
    """

    def drawn(claims: Sequence[Claim], most: int) -> list[Claim]:
        return [claims[i] for i in rng.permutation(len(claims))[:most].tolist()]

    chosen = drawn(known_ones.shown, num // 2) + drawn(known_ones.elsewhere, num // 8)
    true = (*known_ones.shown, *known_ones.elsewhere)
    known = set(true)
    while len(chosen) < num:
        changed = vary(true[int(rng.integers(len(true)))], rng) if true else Claim("person", "red")
        # What training must not show would be false whenever it is said (``held_back``).
        if changed.is_allowed("train") and (changed not in known or rng.random() < 0.05):
            known.add(changed)
            chosen.append(changed)
    return chosen


def vary(claim: Claim, rng: np.random.Generator) -> Claim:
    """The claim with another colour, other trousers, another action or another kind."""
    ways: list[Claim] = []
    palette = PALETTES.get(claim.kind, ())
    if claim.colour is not None:
        ways.append(replace(claim, colour=palette[int(rng.integers(len(palette)))]))
    if claim.trousers is not None:
        ways.append(replace(claim, trousers=TROUSERS[int(rng.integers(len(TROUSERS)))]))
    if claim.action is not None and claim.kind == "person":
        ways.append(replace(claim, action=PERSON_ACTIONS[int(rng.integers(len(PERSON_ACTIONS)))]))
    if claim.trousers is None and claim.action is None:
        kind = tuple(PALETTES)[int(rng.integers(len(PALETTES)))]
        colours = PALETTES[kind]
        ways.append(Claim(kind, None if claim.colour is None else colours[int(rng.integers(len(colours)))]))
    if not ways:
        ways.append(Claim("person", action=PERSON_ACTIONS[int(rng.integers(len(PERSON_ACTIONS)))]))
    return ways[int(rng.integers(len(ways)))]


def pair_labels(
    claims: Sequence[Claim], facts: Sequence[Facts], spans: Sequence[Sequence[Interval]]
) -> NDArray[np.int8]:
    """Labels [B, G] of each claim against every group; ``spans[i]`` are clip i's groups, timed like ``facts[i]``."""
    clips = [
        (facts_near(one, (min(low for low, _ in groups), max(high for _, high in groups))), groups)
        for one, groups in zip(facts, spans, strict=True)
        if groups
    ]
    rows = [[label for near, groups in clips for label in _labels(claim, near, groups)] for claim in claims]
    return np.asarray(rows, np.int8)


def _labels(claim: Claim, facts: Facts, spans: Sequence[Interval]) -> Iterator[int]:
    sure, unsure = claim.intervals(facts), claim.doubtful_intervals(facts)
    for span in spans:
        seen = max((_overlap(span, interval) for interval in sure), default=0.0)
        maybe = seen > 0 or any(_overlap(span, interval) > 0 for interval in unsure)
        yield 1 if seen >= _MIN_OVERLAP_S else -1 if maybe else 0


def facts_near(facts: Facts, span: Interval) -> Facts:
    """What bears on ``span``: whoever is seen or does something then, and all that these ever do.

    Claims are true, doubtful or false of the span as they are by all the facts, of which a long clip has many more.
    """
    told = (*facts.events, *facts.doubtful_events)
    busy = {who for event in told if _overlap(span, (event.start_s, event.end_s)) > 0 for who in _actors(event)}

    def objects(items: Sequence[ObjectFact]) -> tuple[ObjectFact, ...]:
        return tuple(item for item in items if item.object_id in known or _is_seen(item, span))

    def events(items: Sequence[EventFact]) -> tuple[EventFact, ...]:
        return tuple(event for event in items if not busy.isdisjoint(_actors(event)))

    kept, doubtful = events(facts.events), events(facts.doubtful_events)
    known = {who for event in (*kept, *doubtful) for who in _actors(event)}
    return replace(
        facts,
        objects=objects(facts.objects),
        events=kept,
        doubtful_objects=objects(facts.doubtful_objects),
        doubtful_events=doubtful,
    )


def _actors(event: EventFact) -> tuple[str, ...]:
    return (event.object_id,) if event.target_id is None else (event.object_id, event.target_id)


def _is_seen(item: ObjectFact, span: Interval) -> bool:
    return any(_overlap(span, visible) > 0 for visible in item.visible)


def texts_of(claims: Sequence[Claim]) -> list[str]:
    """The plain query of each claim."""
    return [query_text(claim) for claim in claims]


def _overlap(a: Interval, b: Interval) -> float:
    return min(a[1], b[1]) - max(a[0], b[0])
