"""Questions with answers from facts, and how far one gets without looking.

Owns which questions are asked. Everything asked follows from ``Facts`` without doubt; wrong options and absent things
are drawn so that the text alone gives little away: a colour is swapped for another of the same palette, an action or
kind is asked for as often where it is as where it is not.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal, TypeVar, cast

import numpy as np

from videoxl2.training.claims import PALETTES, PERSON_ACTIONS, Claim, prevalence, window_bucket
from videoxl2.training.facts import EventFact, Facts, Interval, ObjectFact
from videoxl2.training.scene import COLOURS, SceneryKind
from videoxl2.training.splits import Split
from videoxl2.training.wording import (
    CLOCK_HINT,
    LETTERS,
    NOTHING,
    NOUNS,
    PATTERNS,
    SECONDS_HINT,
    VERBS,
    article,
    colour_of,
    event_sentence,
    noun_phrase,
    object_phrase,
    sentence,
    span_words,
    verb_phrase,
)

QuestionKind = Literal["colour", "count", "when", "where", "order", "exists", "describe", "events", "choice", "what"]
KINDS: tuple[QuestionKind, ...] = (
    "colour",
    "count",
    "when",
    "where",
    "order",
    "exists",
    "describe",
    "events",
    "choice",
    "what",
)

_MAX_COUNT = 6
_EMPTY_ASKED = 0.12
_MAX_TOLD_EVENTS = 6
_ORDER_GAP_S = 3.0
# Sides and depths that everybody would name alike: columns and lower edges as shares of the picture.
_SIDES: tuple[tuple[str, float, float], ...] = (("left", 0.0, 0.34), ("middle", 0.38, 0.62), ("right", 0.66, 1.0))
_NEAR_BOTTOM, _FAR_BOTTOM = 0.76, 0.6
_RESTING = ("stop", "fall", "drop", "pick", "meet", "smoke", "open")
_MINOR = ("enter", "leave")
_COUNTED = ("person", "car", "van", "bicycle", "dog", "bag")

T = TypeVar("T")


@dataclass(frozen=True)
class QA:
    """A question and its answer. ``options`` are the four texts of a multiple choice, whose answer is a letter.

    ``interval`` is the stretch in which the answer can be seen (None: the whole); ``evidence_ids`` name the objects and
    events that it follows from.
    """

    kind: QuestionKind
    question: str
    answer: str
    options: tuple[str, ...]
    interval: Interval | None
    evidence_ids: tuple[str, ...]

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


def questions_of(facts: Facts, seed: int, split: Split = "train", per_kind: int = 2) -> list[QA]:
    """Up to ``per_kind`` different questions of each kind that the facts answer."""
    asker = _Asker(facts, np.random.default_rng([seed, 41]), split)
    result: list[QA] = []
    for kind in KINDS:
        asked: set[str] = set()
        lead = 0  # how many more questions have been answered with yes than with no
        for _ in range(per_kind * 3):
            made = _MAKERS[kind](asker)
            if made is None or made.question in asked:
                continue
            step = {"yes": 1, "no": -1}.get(made.answer, 0)
            if lead * step <= 0:
                lead += step
                asked.add(made.question)
                result.append(made)
            if len(asked) == per_kind:
                break
    return result


def blind_baseline(questions: Sequence[QA]) -> dict[str, float]:
    """Share answered rightly, by kind, by who never looks but knows the commonest answer of each kind."""
    answers: dict[str, Counter[str]] = {}
    for item in questions:
        answers.setdefault(item.kind, Counter())[item.answer] += 1
    return {kind: max(count.values()) / count.total() for kind, count in sorted(answers.items())}


def text_baseline(questions: Sequence[QA], known: Sequence[QA]) -> dict[str, float]:
    """The same for who knows, from other questions, the commonest answer to each wording without its colours."""
    memory: dict[tuple[str, str], Counter[str]] = {}
    by_kind: dict[str, Counter[str]] = {}
    for item in known:
        memory.setdefault((item.kind, _stem(item)), Counter())[item.answer] += 1
        by_kind.setdefault(item.kind, Counter())[item.answer] += 1
    right: Counter[str] = Counter()
    total: Counter[str] = Counter()
    for item in questions:
        best = memory.get((item.kind, _stem(item)), by_kind.get(item.kind, Counter())).most_common(1)
        right[item.kind] += bool(best) and best[0][0] == item.answer
        total[item.kind] += 1
    return {kind: right[kind] / total[kind] for kind in sorted(total)}


def _stem(item: QA) -> str:
    text = item.question.split("\n")[0]
    return " ".join("#" if word.strip("?.,") in COLOURS or word[0].isdigit() else word for word in text.split())


class _Asker:
    """The facts with what every kind of question needs: random choices, and phrases that point at one thing only."""

    def __init__(self, facts: Facts, rng: np.random.Generator, split: Split) -> None:
        self.facts = facts
        self.rng = rng
        self.split = split
        self.all_objects = (*facts.objects, *facts.doubtful_objects)
        self.main_events = [event for event in facts.events if event.kind not in _MINOR]
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


def _first_made(asker: _Asker, makers: Sequence[Callable[[_Asker], QA | None]]) -> QA | None:
    """A question of one of the makers, in random order: of the first that has one."""
    return next((made for maker in asker.shuffled(makers) if (made := maker(asker)) is not None), None)


def _who_does(asker: _Asker, event: EventFact) -> str:
    return object_phrase(asker.facts.object(event.object_id))


# --- colour, count, when, where -----------------------------------------------------------------------------------


def _colour(asker: _Asker) -> QA | None:
    candidates: list[Callable[[], QA | None]] = []
    facts = asker.facts

    def by_action(event: EventFact, item: ObjectFact) -> QA | None:
        if not asker.is_only(event, Claim(item.kind, action=event.kind)):
            return None
        verb, span = verb_phrase(event.kind, "third"), (event.start_s, event.end_s)
        ids = (event.event_id, item.object_id)
        if item.kind != "person":
            colour = colour_of(item)
            if colour is None:
                return None
            question = asker.pattern("colour_verb", noun=NOUNS[item.kind][0], verb=verb)
            return QA("colour", question, colour, (), span, ids)
        part = asker.one(("shirt", "trousers"))
        return QA("colour", asker.pattern(f"{part}_verb", verb=verb), item.attributes[part], (), span, ids)

    def by_kind(item: ObjectFact) -> QA | None:
        colour = colour_of(item)
        if colour is None or sum(other.kind == item.kind for other in asker.all_objects) != 1:
            return None
        noun = NOUNS[item.kind][0]
        thing = f"shirt of the {noun}" if item.kind in ("person", "bicycle") else noun
        question = asker.pattern("colour_thing", noun=thing)
        return QA("colour", question, colour, (), item.visible[0], (item.object_id,))

    def trousers(item: ObjectFact) -> QA | None:
        shirts = [o for o in asker.all_objects if o.kind == "person" and colour_of(o) == colour_of(item)]
        if len(shirts) != 1:
            return None
        question = asker.pattern("trousers_of", who=object_phrase(item, "the"))
        return QA("colour", question, item.attributes["trousers"], (), item.visible[0], (item.object_id,))

    for event in asker.main_events:
        item = facts.object(event.object_id)
        if event.kind != "meet":
            candidates.append(lambda event=event, item=item: by_action(event, item))  # type: ignore[misc]
    for item in facts.objects:
        candidates.append(lambda item=item: by_kind(item))  # type: ignore[misc]
        if item.kind == "person":
            candidates.append(lambda item=item: trousers(item))  # type: ignore[misc]
    for candidate in asker.shuffled(candidates):
        made = candidate()
        if made is not None:
            return made
    return None


def _count(asker: _Asker) -> QA | None:
    facts = asker.facts
    ways: list[tuple[str, str, int, tuple[str, ...], Interval | None]] = []
    for kind in _COUNTED:
        claim = Claim(kind)
        if claim.doubtful_intervals(facts):
            continue
        found = claim.objects(facts)
        question = asker.pattern("count", nouns=NOUNS[kind][1])
        if found or asker.coin(0.3):
            ways.append(("all", question, len(found), tuple(item.object_id for item in found), None))
    people = Claim("person")
    if not people.doubtful_intervals(facts):
        shirts = [colour_of(item) for item in people.objects(facts)]
        for colour in sorted({c for c in shirts if c is not None}):
            ids = tuple(item.object_id for item in people.objects(facts) if colour_of(item) == colour)
            ways.append(
                (
                    "colour",
                    asker.pattern("count_colour", a=article(colour), colour=colour),
                    len(ids),
                    ids,
                    None,
                )
            )
        for action in ("run", "fall", "stop"):
            claim = Claim("person", action=action)
            if not claim.doubtful_intervals(facts) and claim.events(facts):
                actors = {event.object_id for event in claim.events(facts)}
                ids = tuple(sorted(actors))
                ways.append(
                    ("verb", asker.pattern("count_verb", verb=verb_phrase(action, "base")), len(actors), ids, None)
                )
    at = _count_at(asker)
    if at is not None:
        ways += [("at", *at)] * 3
    ways = [way for way in ways if way[2] <= _MAX_COUNT]
    if not ways:
        return None
    # Each number as likely as any other that can be asked for, else the answer would mostly be one.
    number = asker.one(sorted({way[2] for way in ways}))
    _, question, count, ids, span = asker.one([way for way in ways if way[2] == number])
    return QA("count", question, str(count), (), span, ids)


def _count_at(asker: _Asker) -> tuple[str, int, tuple[str, ...], Interval] | None:
    """How many of a kind are in the picture at a moment; faint or half-hidden ones make the moment unfit."""
    facts = asker.facts
    times = sorted({s.time_s for item in facts.objects for s in item.sightings})
    if not times:
        return None
    t = asker.one(times)
    kind = asker.one(("person", "person", "car"))
    here = {
        item.object_id: sighting.area
        for item in asker.all_objects
        if item.kind == kind
        for sighting in item.sightings
        if abs(sighting.time_s - t) < 1e-6
    }
    if any(area < 6e-4 for area in here.values()):
        return None
    question = asker.pattern("count_at", nouns=NOUNS[kind][1], time=f"{round(t)} seconds")
    if abs(t - round(t)) > 1e-6:
        return None
    return question, len(here), tuple(sorted(here)), (t, min(t + 1.0, facts.end_s))


def _when(asker: _Asker) -> QA | None:
    facts = asker.facts
    as_clock = asker.coin(0.35)
    hint = CLOCK_HINT if as_clock else SECONDS_HINT
    events = [e for e in asker.only_events() if e.end_s - e.start_s < 0.7 * (facts.end_s - facts.start_s)]
    if events and asker.coin(0.75):
        event = asker.rare_first(events)
        span = (event.start_s, event.end_s)
        ids = (event.event_id, event.object_id)
        question = asker.pattern("when", who=_who_does(asker, event), verb=_base_of(event))
        if event.kind == "open":
            question = asker.pattern("when", who="a door", verb=VERBS["open"].base)
        return QA("when", f"{question} {hint}", span_words(*span, as_clock), (), span, ids)
    single = [item for item in facts.objects if len(item.visible) == 1 and item.moves and item.kind != "door"]
    for item in asker.shuffled(single):
        who, span = asker.the(item), item.visible[0]
        if who is not None and span[1] - span[0] < 0.8 * (facts.end_s - facts.start_s):
            question = asker.pattern("when_visible", who=who)
            return QA("when", f"{question} {hint}", span_words(*span, as_clock), (), span, (item.object_id,))
    return None


def _base_of(event: EventFact) -> str:
    return verb_phrase(event.kind, "base")


def side_of(item: ObjectFact, span: Interval) -> str | None:
    """Left, middle or right if the object stays there during the interval."""
    places = [s.x for s in item.sightings if span[0] - 1e-6 <= s.time_s < span[1]]
    for name, low, high in _SIDES:
        if places and all(low <= x <= high for x in places):
            return name
    return None


def depth_of(item: ObjectFact, span: Interval) -> str | None:
    """Near or far if it is plain from the lower edge during the whole interval."""
    bottoms = [s.bottom for s in item.sightings if span[0] - 1e-6 <= s.time_s < span[1]]
    if bottoms and min(bottoms) >= _NEAR_BOTTOM:
        return "near"
    return "far" if bottoms and max(bottoms) <= _FAR_BOTTOM else None


def _where(asker: _Asker) -> QA | None:
    facts = asker.facts
    found: list[QA] = []
    for event in asker.only_events(_RESTING):
        item, span = facts.object(event.object_id), (event.start_s, event.end_s)
        side = side_of(item, span)
        if side is not None and item.kind not in ("smoke", "door"):
            question = asker.pattern("where_verb", who=_who_does(asker, event), verb=_base_of(event))
            found.append(QA("where", question, side, (), span, (event.event_id, item.object_id)))
    for item in facts.objects:
        whole = (item.visible[0][0], item.visible[-1][1])
        who = asker.the(item)
        if who is None or item.kind == "door":  # shut doors are doors too
            continue
        side, depth = side_of(item, whole), depth_of(item, whole)
        if side is not None:
            found.append(QA("where", asker.pattern("where", who=who), side, (), whole, (item.object_id,)))
        if depth is not None:
            found.append(QA("where", asker.pattern("where_depth", who=who), depth, (), whole, (item.object_id,)))
    if not found:
        return None
    answer = asker.one(sorted({item.answer for item in found}))
    return asker.one([item for item in found if item.answer == answer])


# --- order and existence ------------------------------------------------------------------------------------------


def _order(asker: _Asker) -> QA | None:
    events = asker.only_events()
    pairs = [(a, b) for a in events for b in events if b.start_s - a.start_s >= _ORDER_GAP_S]
    if not pairs:
        return None
    first, second = asker.one(pairs)
    texts = [event_sentence(asker.facts, event, "ing") for event in (first, second)]
    if texts[0] == texts[1]:
        return None
    span = (min(first.start_s, second.start_s), max(first.end_s, second.end_s))
    ids = (first.event_id, second.event_id)
    is_swapped = asker.coin()
    a, b = texts[::-1] if is_swapped else texts
    if asker.coin():
        return QA("order", asker.pattern("order_first", a=a, b=b), texts[0], (), span, ids)
    return QA("order", asker.pattern("order_yes", a=a, b=b), "no" if is_swapped else "yes", (), span, ids)


def _exists(asker: _Asker) -> QA | None:
    # In an empty picture the answer can only be no: asking there as often as elsewhere would give that away.
    if not asker.main_events and not asker.coin(_EMPTY_ASKED):
        return None
    makers = [_exists_swapped_colour, _exists_by_prevalence, _exists_swapped_colour, _exists_by_prevalence]
    makers.append(_exists_swapped_action)
    return _first_made(asker, makers)


def _other_colour(asker: _Asker, claim: Claim) -> Claim | None:
    """The claim with another colour of the palette in which it is false for certain."""
    options = [Claim(claim.kind, c, claim.trousers, claim.action) for c in PALETTES[claim.kind] if c != claim.colour]
    options = [o for o in options if o.is_false(asker.facts) and o.is_allowed(asker.split)]
    return asker.one(options) if options else None


def _exists_swapped_colour(asker: _Asker) -> QA | None:
    """A thing or deed that is there, or the same in another colour."""
    claims = [asker.claim_of(item) for item in asker.facts.objects if item.kind in PALETTES]
    claims += [
        asker.claim_of(asker.facts.object(event.object_id), event.kind)
        for event in asker.main_events
        if asker.facts.object(event.object_id).kind in PALETTES
    ]
    if not claims:
        return None
    claim = asker.one(claims)
    other = _other_colour(asker, claim)
    if other is None or claim.colour is None:
        return None
    return _exists_question(asker, claim if asker.coin() else other)


def _exists_swapped_action(asker: _Asker) -> QA | None:
    """Somebody does what he does, or one of the others' deeds."""
    events = [e for e in asker.main_events if asker.facts.object(e.object_id).kind == "person"]
    if not events:
        return None
    event = asker.rare_first(events)
    claim = asker.claim_of(asker.facts.object(event.object_id), event.kind)
    others = [Claim(claim.kind, claim.colour, None, action) for action in PERSON_ACTIONS]
    others = [c for c in others if c.is_false(asker.facts) and c.is_allowed(asker.split)]
    if not others:
        return None
    return _exists_question(asker, claim if asker.coin() else asker.one(others))


def _exists_by_prevalence(asker: _Asker) -> QA | None:
    """An action or kind of thing; each is asked for as often where it is as where it is not."""
    facts = asker.facts
    length = facts.end_s - facts.start_s
    kind = cast(SceneryKind, facts.camera_kind)
    common = prevalence(kind, asker.split, *window_bucket(length, len(asker.main_events)))
    options: list[tuple[Claim, float]] = []
    for name, (there, absent) in common.items():
        if name in PERSON_ACTIONS:
            claim = Claim("person", action=name)
        elif name in ("car", "van", "bicycle", "dog", "bag"):
            claim = Claim(name)
        elif name in ("open", "smoke", "wrong_way"):
            claim = Claim({"open": "door", "smoke": "smoke", "wrong_way": "car"}[name], action=name)
        else:
            continue
        if _is_true(facts, claim):
            options.append((claim, min(1.0, absent / there)))
        elif _is_false(facts, claim):
            options.append((claim, min(1.0, there / absent)))
    wanted = asker.coin()
    options = [(claim, weight) for claim, weight in options if _is_true(facts, claim) == wanted]
    if not options:
        return None
    weights = np.asarray([weight for _, weight in options])
    return _exists_question(asker, options[int(asker.rng.choice(len(options), p=weights / weights.sum()))][0])


def _variants(claim: Claim) -> list[Claim]:
    """Vans may drive the wrong way as cars do; the question asks for both."""
    return [claim, Claim("van", action="wrong_way")] if claim.action == "wrong_way" and not claim.colour else [claim]


def _is_true(facts: Facts, claim: Claim) -> bool:
    return any(variant.is_true(facts) for variant in _variants(claim))


def _is_false(facts: Facts, claim: Claim) -> bool:
    return all(variant.is_false(facts) for variant in _variants(claim))


def _exists_question(asker: _Asker, claim: Claim) -> QA:
    facts, action = asker.facts, claim.action
    is_general = action == "wrong_way" and claim.colour is None
    variants = _variants(claim)
    if action is None:
        question = asker.pattern("exists_object", what=noun_phrase(claim.kind, claim.colour, claim.trousers))
    elif action in ("smoke", "open"):
        question = asker.pattern(f"exists_{action}")
    elif is_general:
        question = asker.pattern("exists_traffic", verb=verb_phrase(action, "base"))
    elif claim.colour is None:
        question = asker.pattern("exists_action", verb=verb_phrase(action, "base"), ing=verb_phrase(action, "ing"))
    else:
        who = noun_phrase(claim.kind, claim.colour, claim.trousers)
        verbs = {form: verb_phrase(action, form) for form in ("base", "ing")}
        question = asker.pattern("exists_event", who=who, verb=verbs["base"], ing=verbs["ing"])
    spans = [span for variant in variants for span in variant.intervals(facts)]
    if action is None:
        ids = tuple(item.object_id for item in claim.objects(facts))
    else:
        ids = tuple(event.event_id for variant in variants for event in variant.events(facts))
    return QA("exists", question, "yes" if spans else "no", (), spans[0] if spans else None, ids)


# --- longer answers -----------------------------------------------------------------------------------------------


def told_events(facts: Facts) -> list[EventFact]:
    """What a summary mentions: main events in order, at most a handful, the unusual ones before the usual."""
    main = [event for event in facts.events if event.kind not in _MINOR]
    ranked = sorted(main, key=lambda event: (not event.is_anomaly, event.kind in ("walk", "drive"), event.start_s))
    return sorted(ranked[:_MAX_TOLD_EVENTS], key=lambda event: (event.start_s, event.event_id))


def _describe(asker: _Asker) -> QA | None:
    if asker.facts.doubtful_events and not asker.main_events:
        return None
    told = told_events(asker.facts)
    answer = " ".join(sentence(event_sentence(asker.facts, event)) for event in told) or NOTHING
    return QA("describe", asker.pattern("describe"), answer, (), None, tuple(event.event_id for event in told))


def _events(asker: _Asker) -> QA | None:
    told = told_events(asker.facts)
    if asker.facts.doubtful_events and not told:
        return None
    as_clock = asker.coin(0.35)
    hint = CLOCK_HINT if as_clock else SECONDS_HINT
    lines = [
        sentence(f"{span_words(event.start_s, event.end_s, as_clock)}: {event_sentence(asker.facts, event)}")
        for event in told
    ]
    answer = " ".join(lines) or NOTHING
    return QA("events", f"{asker.pattern('events')} {hint}", answer, (), None, tuple(e.event_id for e in told))


# --- what happens, in the model's own words -----------------------------------------------------------------------


def _what(asker: _Asker) -> QA | None:
    """An open question: what somebody or something does, or who does it."""
    return _first_made(asker, [_what_does, _who_did])


def _what_does(asker: _Asker) -> QA | None:
    """Of what does one thing only, so that nothing else would be right."""
    facts = asker.facts
    seen = (*asker.main_events, *facts.doubtful_events)
    roles = Counter(role for event in seen for role in (event.object_id, event.target_id) if role)
    named = {
        event: who
        for event in asker.main_events
        if roles[event.object_id] == 1 and (who := asker.the(facts.object(event.object_id))) is not None
    }
    if not named:
        return None
    event = asker.rare_first(list(named))
    question = asker.pattern("what_does", who=named[event])
    span, ids = (event.start_s, event.end_s), (event.event_id, event.object_id)
    return QA("what", question, verb_phrase(event.kind, "third"), (), span, ids)


def _who_did(asker: _Asker) -> QA | None:
    """What one person only does, whatever the others look like; two meet."""
    events = [
        event
        for event in asker.only_events(PERSON_ACTIONS)
        if event.kind != "meet" and asker.is_only(event, Claim("person", action=event.kind))
    ]
    if not events:
        return None
    event = asker.rare_first(events)
    question = asker.pattern("who_does", verb=verb_phrase(event.kind, "third"))
    span, ids = (event.start_s, event.end_s), (event.event_id, event.object_id)
    return QA("what", question, object_phrase(asker.facts.object(event.object_id)), (), span, ids)


# --- multiple choice ----------------------------------------------------------------------------------------------


def _with_options(
    asker: _Asker, question: str, right: str, wrong: Sequence[str], span: Interval | None, ids: tuple[str, ...]
) -> QA | None:
    """The question with four lettered options, the right one in a random place; None without three wrong ones."""
    others = asker.shuffled(sorted(set(wrong) - {right}))[:3]
    if len(others) < 3:
        return None
    place = int(asker.rng.integers(4))
    options = [*others[:place], right, *others[place:]]
    lines = [f"{letter}. {option}" for letter, option in zip(LETTERS, options, strict=True)]
    return QA("choice", "\n".join([question, *lines]), LETTERS[place], tuple(options), span, ids)


def _choice(asker: _Asker) -> QA | None:
    return _first_made(asker, [_choice_open, _choice_do, _choice_who, _choice_which, _choice_when, _choice_which])


def _choice_open(asker: _Asker) -> QA | None:
    """A question about a colour or a number, with options."""
    made = asker.one((_colour, _count))(asker)
    if made is None:
        return None
    if made.kind == "count":
        number = int(made.answer)
        low = max(0, number - int(asker.rng.integers(4)))
        wrong = [str(low + i) for i in range(4)]
        return _with_options(asker, made.question, made.answer, wrong, made.interval, made.evidence_ids)
    item = next(asker.facts.object(i) for i in made.evidence_ids if not i.startswith("event-"))
    is_trousers = "trousers" in made.question
    palette = ("blue", "black", "grey", "brown", "white", "green") if is_trousers else PALETTES[item.kind]
    return _with_options(asker, made.question, made.answer, list(palette), made.interval, made.evidence_ids)


def _choice_do(asker: _Asker) -> QA | None:
    people = [item for item in asker.facts.objects if item.kind == "person"]
    for item in asker.shuffled(people):
        mine = [e for e in asker.main_events if e.object_id == item.object_id]
        who = asker.the(item)
        if not mine or who is None:
            continue
        event = asker.rare_first(mine)
        wrong = [
            verb_phrase(action, "third")
            for action in PERSON_ACTIONS
            if Claim("person", colour_of(item), item.attributes["trousers"], action).is_false(asker.facts)
            # Who does something else also walks there.
            and action != "walk"
        ]
        right = verb_phrase(event.kind, "third")
        ids = (event.event_id, item.object_id)
        return _with_options(
            asker, asker.pattern("what_does", who=who), right, wrong, (event.start_s, event.end_s), ids
        )
    return None


def _choice_who(asker: _Asker) -> QA | None:
    """Who does it: people in four shirts, those in the picture among them."""
    made = _who_did(asker)
    if made is None:
        return None
    shirts = [noun_phrase("person", colour) for colour in PALETTES["person"]]
    return _with_options(asker, made.question, made.answer, shirts, made.interval, made.evidence_ids)


def _choice_which(asker: _Asker) -> QA | None:
    """One thing that happens, and three that differ in colour or action."""
    events = [e for e in asker.main_events if asker.facts.object(e.object_id).kind in PALETTES and e.kind != "meet"]
    if not events:
        return None
    event = asker.rare_first(events)
    claim = asker.claim_of(asker.facts.object(event.object_id), event.kind)
    actions = PERSON_ACTIONS if claim.kind == "person" else (event.kind,)
    wrong: list[str] = []
    for action in actions:
        for colour in PALETTES[claim.kind]:
            other = Claim(claim.kind, colour, None, action)
            if action != "meet" and other.is_false(asker.facts) and other.is_allowed(asker.split):
                wrong.append(f"{noun_phrase(other.kind, colour)} {verb_phrase(action, 'third')}")
    right = f"{noun_phrase(claim.kind, claim.colour)} {verb_phrase(event.kind, 'third')}"
    span, ids = (event.start_s, event.end_s), (event.event_id, event.object_id)
    return _with_options(asker, asker.pattern("choice_which"), right, wrong, span, ids)


def _choice_when(asker: _Asker) -> QA | None:
    """Four times of one length that do not overlap."""
    facts, events = asker.facts, asker.only_events()
    events = [e for e in events if e.end_s - e.start_s < 0.2 * (facts.end_s - facts.start_s)]
    if not events:
        return None
    event = asker.rare_first(events)
    length = max(1.0, event.end_s - event.start_s)
    taken = [event.start_s]
    for _ in range(60):
        start = float(asker.rng.uniform(facts.start_s, facts.end_s - length))
        if all(abs(start - other) >= length + 1.0 for other in taken):
            taken.append(start)
        if len(taken) == 4:
            break
    wrong = [span_words(start, start + length) for start in taken[1:]]
    question = asker.pattern("when", who=_who_does(asker, event), verb=_base_of(event))
    right = span_words(event.start_s, event.start_s + length)
    ids = (event.event_id, event.object_id)
    return _with_options(asker, question, right, wrong, (event.start_s, event.end_s), ids)


_MAKERS: dict[QuestionKind, Callable[[_Asker], QA | None]] = {
    "colour": _colour,
    "count": _count,
    "when": _when,
    "where": _where,
    "order": _order,
    "exists": _exists,
    "describe": _describe,
    "events": _events,
    "choice": _choice,
    "what": _what,
}
