"""Whether something is there or happens, asked as often where it is as where it is not."""

from __future__ import annotations

from typing import cast

import numpy as np

from videoxl2.training.asker import Asker, first_made
from videoxl2.training.claims import PALETTES, PERSON_ACTIONS, Claim, prevalence, window_bucket
from videoxl2.training.facts import Facts
from videoxl2.training.qa import QA
from videoxl2.training.scene import SceneryKind
from videoxl2.training.wording import noun_phrase, verb_phrase

_EMPTY_ASKED = 0.12


def ask_exists(asker: Asker) -> QA | None:
    # In an empty picture the answer can only be no: asking there as often as elsewhere would give that away.
    if not asker.main_events and not asker.coin(_EMPTY_ASKED):
        return None
    makers = [_exists_swapped_colour, _exists_by_prevalence, _exists_swapped_colour, _exists_by_prevalence]
    makers.append(_exists_swapped_action)
    return first_made(asker, makers)


def _other_colour(asker: Asker, claim: Claim) -> Claim | None:
    """The claim with another colour of the palette in which it is false for certain."""
    options = [Claim(claim.kind, c, claim.trousers, claim.action) for c in PALETTES[claim.kind] if c != claim.colour]
    options = [o for o in options if o.is_false(asker.facts) and o.is_allowed(asker.split)]
    return asker.one(options) if options else None


def _exists_swapped_colour(asker: Asker) -> QA | None:
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


def _exists_swapped_action(asker: Asker) -> QA | None:
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


def _exists_by_prevalence(asker: Asker) -> QA | None:
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


def _exists_question(asker: Asker, claim: Claim) -> QA:
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
