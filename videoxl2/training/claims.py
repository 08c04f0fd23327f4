"""Claims about a clip ("a person in a red shirt runs") and what in the facts makes them true.

Owns the three-valued reading of facts: a claim has witnesses, is doubtful, or is false for certain. Also owns how
common an action or a kind of object is, so that questions about rare things are not mostly answered "no".
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from videoxl2.training.episodes import BAGS, COATS, PAINTS, SHIRTS
from videoxl2.training.facts import EventFact, Facts, Interval, ObjectFact
from videoxl2.training.random_scenes import random_scene
from videoxl2.training.scene import Colour, SceneryKind
from videoxl2.training.splits import Split, is_allowed
from videoxl2.training.wording import colour_of

PALETTES: Mapping[str, tuple[Colour, ...]] = {
    "person": SHIRTS,
    "bicycle": SHIRTS,
    "car": PAINTS,
    "van": PAINTS,
    "bag": BAGS,
    "dog": COATS,
}
PERSON_ACTIONS = ("walk", "run", "stop", "loiter", "fall", "drop", "pick", "meet")
_SCENES_SAMPLED = 60
_WINDOWS_PER_SCENE = 4
_PLAIN_S = 1.5
# Who does one of these also does the first for a moment, so that the first is then neither asserted nor denied.
_IMPLIED_BY: Mapping[str, tuple[str, ...]] = {
    "walk": ("stop", "loiter", "fall", "drop", "pick", "meet", "enter", "leave"),
    "stop": ("loiter", "fall", "drop", "pick", "meet"),
    "drive": ("wrong_way", "park", "enter", "leave"),
}


@dataclass(frozen=True)
class Claim:
    """Something is there (``action`` None) or does something. None leaves an attribute open."""

    kind: str
    colour: str | None = None
    trousers: str | None = None
    action: str | None = None

    def fits(self, item: ObjectFact) -> bool:
        return (
            item.kind == self.kind
            and self.colour in (None, colour_of(item))
            and self.trousers in (None, item.attributes.get("trousers"))
        )

    def objects(self, facts: Facts) -> list[ObjectFact]:
        """Clear objects that fit, whatever they do."""
        return [item for item in facts.objects if self.fits(item)]

    def events(self, facts: Facts) -> list[EventFact]:
        """Told events of the action by an object that fits; a meeting is one of both who meet."""
        if self.action is None:
            return []
        return [event for event in facts.events if self._is_by(facts, event)]

    def _is_by(self, facts: Facts, event: EventFact, action: str | None = None) -> bool:
        """Whether the event is the action (the claim's by default) of an object that fits."""
        if event.kind != (action or self.action):
            return False
        actors = [event.object_id, event.target_id] if event.kind == "meet" else [event.object_id]
        return any(self.fits(facts.by_id[actor]) for actor in actors if actor is not None and actor in facts.by_id)

    def intervals(self, facts: Facts) -> tuple[Interval, ...]:
        """When it is true."""
        if self.action is None:
            return tuple(sorted(span for item in self.objects(facts) for span in item.visible))
        return tuple(sorted((event.start_s, event.end_s) for event in self.events(facts)))

    def doubtful_intervals(self, facts: Facts) -> tuple[Interval, ...]:
        """When it may be true."""
        if self.action is None:
            return tuple(sorted(s for item in facts.doubtful_objects if self.fits(item) for s in item.visible))
        found = [event for event in facts.doubtful_events if self._is_by(facts, event)]
        mine = {event.object_id for event in self.events(facts)}
        for event in (*facts.events, *facts.doubtful_events):
            if event.kind in _IMPLIED_BY.get(self.action, ()):
                found += [event] if self._is_by(facts, event, event.kind) and event.object_id not in mine else []
        return tuple(sorted((event.start_s, event.end_s) for event in found))

    def is_true(self, facts: Facts) -> bool:
        return bool(self.objects(facts) if self.action is None else self.events(facts))

    def is_false(self, facts: Facts) -> bool:
        """Nothing makes it true and nothing might."""
        return not self.is_true(facts) and not self.doubtful_intervals(facts)

    def is_allowed(self, split: Split) -> bool:
        """Whether the split may use the words together at all."""
        if self.colour is None:
            return True
        by_action = self.action is None or is_allowed(split, self.kind, self.colour, self.action)
        by_clothes = self.trousers is None or is_allowed(split, "shirt", self.colour, "trousers", self.trousers)
        return by_action and by_clothes


@lru_cache(maxsize=256)
def prevalence(
    kind: SceneryKind, split: Split, window_s: float, events_per_minute: float
) -> Mapping[str, tuple[float, float]]:
    """In what share of windows of a camera kind each action or kind of object occurs, and certainly does not.

    Only what can occur at all is listed.
    """
    rng = np.random.default_rng([int(window_s), 31])
    true: dict[str, int] = {}
    unsure: dict[str, int] = {}
    duration_s = max(60.0, 2 * window_s)
    for number in range(_SCENES_SAMPLED):
        scene = random_scene(kind, 900_000 + number, duration_s, split, events_per_minute=events_per_minute)
        kinds = {actor.actor_id: actor.kind for actor in scene.actors}
        for start in rng.uniform(0.0, duration_s - window_s, _WINDOWS_PER_SCENE).tolist():
            overlap = {id(a): min(a.end_s, start + window_s) - max(a.start_s, start) for a in scene.actions}
            here = [action for action in scene.actions if overlap[id(action)] > 0]
            plain = [action for action in here if overlap[id(action)] > _PLAIN_S]
            names = {action.kind for action in plain} | {kinds[action.actor_id] for action in plain}
            names |= {kinds[a.object_id] for a in plain if a.object_id is not None}
            doubt = {action.kind for action in here} | {kinds[action.actor_id] for action in here}
            doubt |= {name for name, others in _IMPLIED_BY.items() if names & set(others)}
            for name in names:
                true[name] = true.get(name, 0) + 1
            for name in doubt - names:
                unsure[name] = unsure.get(name, 0) + 1
    total = _SCENES_SAMPLED * _WINDOWS_PER_SCENE
    return {
        name: (max(count / total, 0.02), max((total - count - unsure.get(name, 0)) / total, 0.02))
        for name, count in sorted(true.items())
    }


def window_bucket(window_s: float, num_actions: int) -> tuple[float, float]:
    """The window length and event rate, rounded so that few prevalence tables are needed."""
    length = float(2 ** round(np.log2(max(4.0, min(window_s, 1024.0)))))
    rate = max(num_actions, 1) / max(window_s / 60.0, 0.1)
    return length, float(2 ** round(np.log2(max(0.5, min(rate, 8.0)))))
