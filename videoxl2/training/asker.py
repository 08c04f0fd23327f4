"""What every kind of question needs: facts, random choices, and phrases that point at one thing only."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeVar

import numpy as np

from videoxl2.training.claims import Claim
from videoxl2.training.facts import EventFact, Facts, ObjectFact
from videoxl2.training.qa import QA
from videoxl2.training.splits import Split
from videoxl2.training.wording import PATTERNS, colour_of, object_phrase, verb_phrase

MINOR_ACTIONS = ("enter", "leave")
"""What is no news: everybody comes and goes."""

T = TypeVar("T")


class Asker:
    """The facts with what every kind of question needs: random choices, and phrases that point at one thing only."""

    def __init__(self, facts: Facts, rng: np.random.Generator, split: Split) -> None:
        self.facts = facts
        self.rng = rng
        self.split = split
        self.all_objects = (*facts.objects, *facts.doubtful_objects)
        self.main_events = [event for event in facts.events if event.kind not in MINOR_ACTIONS]
        self._told_apart: list[EventFact] | None = None

    def one(self, options: Sequence[T]) -> T:
        return options[int(self.rng.integers(len(options)))]

    def shuffled(self, options: Sequence[T]) -> list[T]:
        return [options[i] for i in self.rng.permutation(len(options)).tolist()]

    def coin(self, probability: float = 0.5) -> bool:
        return bool(self.rng.random() < probability)

    def pattern(self, name: str, **words: str) -> str:
        text = self.one(PATTERNS[name]).format(**words)
        return text[0].upper() + text[1:]

    def claim_of(self, item: ObjectFact, action: str | None = None) -> Claim:
        return Claim(item.kind, colour_of(item), None, action)

    def the(self, item: ObjectFact) -> str | None:
        """A phrase that only this object answers to, as short as possible; None if there is none."""
        same = [other for other in self.all_objects if other.kind == item.kind]
        if len(same) == 1 and self.coin():
            return object_phrase(ObjectFact(item.object_id, item.kind, {}, (), (), False), "the")
        if sum(colour_of(other) == colour_of(item) for other in same) == 1:
            return object_phrase(item, "the")
        if item.kind == "person" and sum(other.attributes == item.attributes for other in same) == 1:
            return object_phrase(item, "the", with_trousers=True)
        return None

    def is_only(self, event: EventFact, claim: Claim) -> bool:
        """The claim is made true by this event and nothing else."""
        return claim.events(self.facts) == [event] and not claim.doubtful_intervals(self.facts)

    def only_events(self, kinds: Sequence[str] | None = None) -> list[EventFact]:
        """Events told apart by who (kind and colour) does what."""
        if self._told_apart is None:
            self._told_apart = [
                event
                for event in self.main_events
                if self.is_only(event, self.claim_of(self.facts.object(event.object_id), event.kind))
            ]
        return [event for event in self._told_apart if kinds is None or event.kind in kinds]

    def rare_first(self, events: Sequence[EventFact]) -> EventFact:
        """One of the events, each kind of action as likely as any other."""
        kind = self.one(sorted({event.kind for event in events}))
        return self.one([event for event in events if event.kind == kind])


def first_made(asker: Asker, makers: Sequence[Callable[[Asker], QA | None]]) -> QA | None:
    """A question of one of the makers, in random order: of the first that has one."""
    return next((made for maker in asker.shuffled(makers) if (made := maker(asker)) is not None), None)


def who_does(asker: Asker, event: EventFact) -> str:
    return object_phrase(asker.facts.object(event.object_id))


def base_of(event: EventFact) -> str:
    return verb_phrase(event.kind, "base")
