"""Questions answered by a word, a number, a time or sentences: each maker asks one that the facts answer, if any."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable

from videoxl2.options import CLOCK_HINT, SECONDS_HINT
from videoxl2.training.asker import MINOR_ACTIONS, Asker, base_of, first_made, who_does
from videoxl2.training.claims import PERSON_ACTIONS, Claim
from videoxl2.training.facts import EventFact, Facts, Interval, ObjectFact
from videoxl2.training.qa import QA
from videoxl2.training.wording import (
    NOTHING,
    NOUNS,
    VERBS,
    article,
    colour_of,
    event_sentence,
    object_phrase,
    sentence,
    span_words,
    verb_phrase,
)

_MAX_COUNT = 6
_MAX_TOLD_EVENTS = 6
_ORDER_GAP_S = 3.0
# Sides and depths that everybody would name alike: columns and lower edges as shares of the picture.
_SIDES: tuple[tuple[str, float, float], ...] = (("left", 0.0, 0.34), ("middle", 0.38, 0.62), ("right", 0.66, 1.0))
_NEAR_BOTTOM, _FAR_BOTTOM = 0.76, 0.6
_RESTING = ("stop", "fall", "drop", "pick", "meet", "smoke", "open")
_COUNTED = ("person", "car", "van", "bicycle", "dog", "bag")


def ask_colour(asker: Asker) -> QA | None:
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


def ask_count(asker: Asker) -> QA | None:
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


def _count_at(asker: Asker) -> tuple[str, int, tuple[str, ...], Interval] | None:
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


def ask_when(asker: Asker) -> QA | None:
    facts = asker.facts
    as_clock = asker.coin(0.35)
    hint = CLOCK_HINT if as_clock else SECONDS_HINT
    events = [e for e in asker.only_events() if e.end_s - e.start_s < 0.7 * (facts.end_s - facts.start_s)]
    if events and asker.coin(0.75):
        event = asker.rare_first(events)
        span = (event.start_s, event.end_s)
        ids = (event.event_id, event.object_id)
        question = asker.pattern("when", who=who_does(asker, event), verb=base_of(event))
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


def ask_where(asker: Asker) -> QA | None:
    facts = asker.facts
    found: list[QA] = []
    for event in asker.only_events(_RESTING):
        item, span = facts.object(event.object_id), (event.start_s, event.end_s)
        side = side_of(item, span)
        if side is not None and item.kind not in ("smoke", "door"):
            question = asker.pattern("where_verb", who=who_does(asker, event), verb=base_of(event))
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


def ask_order(asker: Asker) -> QA | None:
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


def told_events(facts: Facts) -> list[EventFact]:
    """What a summary mentions: main events in order, at most a handful, the unusual ones before the usual."""
    main = [event for event in facts.events if event.kind not in MINOR_ACTIONS]
    ranked = sorted(main, key=lambda event: (not event.is_anomaly, event.kind in ("walk", "drive"), event.start_s))
    return sorted(ranked[:_MAX_TOLD_EVENTS], key=lambda event: (event.start_s, event.event_id))


def ask_describe(asker: Asker) -> QA | None:
    if asker.facts.doubtful_events and not asker.main_events:
        return None
    told = told_events(asker.facts)
    answer = " ".join(sentence(event_sentence(asker.facts, event)) for event in told) or NOTHING
    return QA("describe", asker.pattern("describe"), answer, (), None, tuple(event.event_id for event in told))


def ask_events(asker: Asker) -> QA | None:
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


def ask_what(asker: Asker) -> QA | None:
    """An open question: what somebody or something does, or who does it."""
    return first_made(asker, [_what_does, ask_who_did])


def _what_does(asker: Asker) -> QA | None:
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


def ask_who_did(asker: Asker) -> QA | None:
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
