"""What training must not show, and what it therefore must not deny either.

One combination of words in ten is kept for the test and one for validation (``splits``): nobody in training wears brown
trousers under a red shirt. Who is asked for the trousers of people in red shirts a thousand times, and never hears
"brown", learns that it never is, as surely as anything that the pictures tell: a decoder trained so named the trousers
in 0.88 of 34 pairs that it had seen and in none of 19 that it had not, though a linear reading of its visual
tokens had six in ten of these right. Nothing in training may be learned about what was kept back. So wrong options
never name it, and where a loss weighs all answers or labels against each other it is silent about these.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass

from videoxl2.training.claims import PALETTES, PERSON_ACTIONS
from videoxl2.training.episodes import TROUSERS
from videoxl2.training.facts import Facts, ObjectFact
from videoxl2.training.qa import QA, asks_for_trousers
from videoxl2.training.scene import Colour
from videoxl2.training.splits import Split, is_allowed
from videoxl2.training.wording import colour_of, noun_phrase, object_phrase, verb_phrase

DEEDS: Mapping[str, Sequence[str]] = {
    "person": PERSON_ACTIONS,
    "car": ("wrong_way", "park"),
    "van": ("wrong_way", "park"),
    "bicycle": ("ride",),
    "dog": ("run",),
    "bag": ("drop", "pick"),
}
"""What each kind may be kept from doing in some colours; a bag is dropped and picked up."""


def deeds_of(facts: Facts, item: ObjectFact) -> set[str]:
    """What the thing is known to do, or may do; of a bag, what is done to it."""
    events = (*facts.events, *facts.doubtful_events)
    return {
        event.kind
        for event in events
        if event.object_id == item.object_id or (item.kind == "bag" and event.target_id == item.object_id)
    }


def trousers_held_back(split: Split, shirt: str) -> list[Colour]:
    """Colours of trousers that ``split`` may not show under the shirt."""
    return [colour for colour in TROUSERS if not is_allowed(split, "shirt", shirt, "trousers", colour)]


def colours_held_back(split: Split, item: ObjectFact, deeds: Collection[str]) -> list[Colour]:
    """Colours, of a shirt or of the thing, in which ``split`` may not show something like it that does these."""
    below = item.attributes.get("trousers") if item.kind == "person" else None
    return [
        colour
        for colour in PALETTES.get(item.kind, ())
        if not all(is_allowed(split, item.kind, colour, deed) for deed in deeds)
        or (below is not None and not is_allowed(split, "shirt", colour, "trousers", below))
    ]


def deeds_held_back(split: Split, item: ObjectFact) -> list[str]:
    """What ``split`` may not show in the thing's colour."""
    colour = colour_of(item)
    deeds = DEEDS.get(item.kind, ()) if colour is not None else ()
    return [deed for deed in deeds if not is_allowed(split, item.kind, str(colour), deed)]


@dataclass(frozen=True)
class AnswersAlike:
    """Answers of a question's form: those that a split may show, and those that it must not."""

    shown: tuple[str, ...] = ()
    held_back: tuple[str, ...] = ()


def answers_alike(facts: Facts, item: QA, split: Split = "train") -> AnswersAlike:
    """What might be answered to a question that asks for a colour or for who does what; nothing for all others."""
    thing = next((facts.by_id[name] for name in item.evidence_ids if name in facts.by_id), None)
    if thing is None or item.kind not in ("colour", "what"):
        return AnswersAlike()
    if asks_for_trousers(item):
        return _parted(TROUSERS, trousers_held_back(split, thing.attributes.get("shirt", "none")), str)
    colours, held_back = PALETTES.get(thing.kind, ()), colours_held_back(split, thing, deeds_of(facts, thing))
    if item.kind == "colour":
        return _parted(colours, held_back, str)
    if item.answer == object_phrase(thing):
        return _parted(colours, held_back, lambda colour: noun_phrase(thing.kind, colour))
    return _parted(DEEDS.get(thing.kind, ()), deeds_held_back(split, thing), lambda deed: verb_phrase(deed, "third"))


def names_held_back(facts: Facts, item: QA, split: Split = "train") -> bool:
    """Whether the answer follows from a deed in a colour, or trousers under a shirt, that ``split`` must not show."""
    events = [event for event in (*facts.events, *facts.doubtful_events) if event.event_id in item.evidence_ids]
    things = [facts.by_id[name] for name in item.evidence_ids if name in facts.by_id]
    actors = [(facts.by_id[event.object_id], event.kind) for event in events if event.object_id in facts.by_id]
    by_deed = any(deed in deeds_held_back(split, thing) for thing, deed in actors)
    by_clothes = any(
        thing.attributes.get("trousers") in trousers_held_back(split, thing.attributes.get("shirt", "none"))
        for thing in things
    )
    return by_deed or ("trousers" in item.question and by_clothes)


def _parted(values: Sequence[str], held_back: Collection[str], words: Callable[[str], str]) -> AnswersAlike:
    return AnswersAlike(
        tuple(words(value) for value in values if value not in held_back),
        tuple(words(value) for value in values if value in held_back),
    )
