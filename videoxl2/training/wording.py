"""The closed vocabulary of captions, questions and answers, and the phrases made of it.

Owns every word that the rendered data may contain: nouns, colours, verbs and question patterns are listed here and
nowhere else, so that a tokenizer trained on ``training_sentences`` knows them all.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from videoxl2.training.facts import EventFact, Facts, ObjectFact

NOUNS: Mapping[str, tuple[str, str]] = {
    "person": ("person", "people"),
    "car": ("car", "cars"),
    "van": ("van", "vans"),
    "bicycle": ("cyclist", "cyclists"),
    "dog": ("dog", "dogs"),
    "bag": ("bag", "bags"),
    "smoke": ("smoke", "smoke"),
    "door": ("door", "doors"),
}


@dataclass(frozen=True)
class Verb:
    """One action in the forms that sentences need: "falls down", "falling down", "fall down"."""

    third: str
    ing: str
    base: str


VERBS: Mapping[str, Verb] = {
    "enter": Verb("comes in", "coming in", "come in"),
    "leave": Verb("goes away", "going away", "go away"),
    "walk": Verb("walks", "walking", "walk"),
    "run": Verb("runs", "running", "run"),
    "stop": Verb("stops and waits", "standing and waiting", "stop and wait"),
    "loiter": Verb("loiters", "loitering", "loiter"),
    "fall": Verb("falls down", "falling down", "fall down"),
    "drop": Verb("drops", "dropping", "drop"),
    "pick": Verb("picks up", "picking up", "pick up"),
    "meet": Verb("meets", "meeting", "meet"),
    "drive": Verb("drives", "driving", "drive"),
    "wrong_way": Verb("drives the wrong way", "driving the wrong way", "drive the wrong way"),
    "park": Verb("parks", "parking", "park"),
    "ride": Verb("rides past", "riding past", "ride past"),
    "open": Verb("is left open", "left open", "stay open"),
    "smoke": Verb("rises", "rising", "rise"),
}
ACTIONS: tuple[str, ...] = tuple(VERBS)
TARGET_NOUN: Mapping[str, str] = {"drop": "a bag", "pick": "a bag", "meet": "another person"}
SIDES = ("left", "middle", "right")
DEPTHS = ("near", "far")
AT_CAMERA: Mapping[str, str] = {
    "corridor": "in the corridor",
    "parking": "in the car park",
    "street": "in the street",
    "shop": "in the shop",
    "gate": "at the gate",
}
"""How a question names the place of one camera among several; the tokenizer spells these."""
LETTERS = ("A", "B", "C", "D")
NOTHING = "Nothing happens."


def article(word: str) -> str:
    return "an" if word[0] in "aeiou" else "a"


def colour_of(item: ObjectFact) -> str | None:
    """The colour by which an object is told: of the shirt or of the thing itself."""
    return item.attributes.get("shirt", item.attributes.get("colour"))


def noun_phrase(kind: str, colour: str | None, trousers: str | None = None, determiner: str | None = None) -> str:
    """ "a red car", "the person in a blue shirt and black trousers", "smoke"."""
    if kind == "smoke":
        return "smoke" if determiner is None else f"{determiner} smoke"
    noun = NOUNS[kind][0]
    if kind in ("person", "bicycle"):
        front = determiner or article(noun)
        clothes = [f"{article(colour)} {colour} shirt"] if colour else []
        clothes += [f"{trousers} trousers"] if trousers else []
        return f"{front} {noun} in {' and '.join(clothes)}" if clothes else f"{front} {noun}"
    words = f"{colour} {noun}" if colour else noun
    return f"{determiner or article(words)} {words}"


def object_phrase(item: ObjectFact, determiner: str | None = None, with_trousers: bool = False) -> str:
    trousers = item.attributes.get("trousers") if with_trousers else None
    return noun_phrase(item.kind, colour_of(item), trousers, determiner)


def verb_phrase(kind: str, form: str, target: str | None = None) -> str:
    """The verb in a form ("third", "ing" or "base") with its object, which is general unless ``target`` is given."""
    words = {"third": VERBS[kind].third, "ing": VERBS[kind].ing, "base": VERBS[kind].base}[form]
    needed = target or TARGET_NOUN.get(kind)
    return f"{words} {needed}" if needed else words


def event_sentence(facts: Facts, event: EventFact, form: str = "third") -> str:
    """ "a person in a red shirt drops a green bag"."""
    target = object_phrase(facts.object(event.target_id)) if event.target_id else None
    return f"{object_phrase(facts.object(event.object_id))} {verb_phrase(event.kind, form, target)}"


def clock(t: float) -> str:
    """Minutes and seconds, ``mm:ss``, rounded."""
    seconds = round(t)
    return f"{seconds // 60:02d}:{seconds % 60:02d}"


def span_words(start_s: float, end_s: float, as_clock: bool = False) -> str:
    if as_clock:
        return f"{clock(start_s)} to {clock(end_s)}"
    return f"{round(start_s)} to {round(end_s)} seconds"


def sentence(words: str) -> str:
    return words[0].upper() + words[1:] + "."


# Question patterns by kind; each is chosen by seed.
PATTERNS: Mapping[str, tuple[str, ...]] = {
    "colour_verb": ("What colour is the {noun} that {verb}?", "The {noun} that {verb}: what colour is it?"),
    "shirt_verb": ("What colour is the shirt of the person who {verb}?", "Who {verb}: what colour is the shirt?"),
    "trousers_verb": ("What colour are the trousers of the person who {verb}?",),
    "colour_thing": ("What colour is the {noun}?", "Which colour does the {noun} have?"),
    "trousers_of": ("What colour are the trousers of {who}?",),
    "count": ("How many {nouns} are there?", "How many {nouns} can be seen?", "Count the {nouns}."),
    "count_colour": ("How many people wear {a} {colour} shirt?",),
    "count_verb": ("How many people {verb}?",),
    "count_at": ("How many {nouns} are in the picture at {time}?",),
    "when": ("When does {who} {verb}?", "At what time does {who} {verb}?"),
    "when_visible": ("When is {who} in the picture?", "When can {who} be seen?"),
    "where": (
        "Where in the picture is {who}: left, middle or right?",
        "Is {who} at the left, in the middle or at the right?",
    ),
    "where_depth": ("Is {who} near or far?",),
    "where_verb": ("Where does {who} {verb}: left, middle or right?",),
    "order_first": ("Which comes first: {a}, or {b}?",),
    "order_yes": ("Does this happen before {b}: {a}?",),
    "exists_object": ("Is there {what}?", "Can {what} be seen?"),
    "exists_event": ("Does {who} {verb}?", "Is there {who} {ing}?"),
    "exists_action": ("Does somebody {verb}?", "Is somebody {ing}?"),
    "exists_traffic": ("Does a car or a van {verb}?",),
    "exists_open": ("Is a door left open?",),
    "exists_smoke": ("Is there smoke?",),
    "describe": ("Describe what happens.", "What happens in the video?"),
    "events": ("List the events with their times.", "Which events happen, and when?"),
    "what_does": ("What does {who} do?",),
    "who_does": ("Who {verb}?",),
    "choice_which": ("Which of these happens?", "What can be seen in the video?"),
}
