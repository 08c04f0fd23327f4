"""Questions with four options, of which the text alone gives little away."""

from __future__ import annotations

from collections.abc import Sequence

from videoxl2.training.asker import Asker, base_of, first_made, who_does
from videoxl2.training.claims import PALETTES, PERSON_ACTIONS, Claim
from videoxl2.training.episodes import TROUSERS
from videoxl2.training.facts import Interval
from videoxl2.training.held_back import answers_alike, deeds_held_back
from videoxl2.training.open_questions import ask_colour, ask_count, ask_who_did
from videoxl2.training.qa import QA
from videoxl2.training.wording import LETTERS, colour_of, noun_phrase, span_words, verb_phrase


def _with_options(
    asker: Asker, question: str, right: str, wrong: Sequence[str], span: Interval | None, ids: tuple[str, ...]
) -> QA | None:
    """The question with four lettered options, the right one in a random place; None without three wrong ones."""
    others = asker.shuffled(sorted(set(wrong) - {right}))[:3]
    if len(others) < 3:
        return None
    place = int(asker.rng.integers(4))
    options = [*others[:place], right, *others[place:]]
    lines = [f"{letter}. {option}" for letter, option in zip(LETTERS, options, strict=True)]
    return QA("choice", "\n".join([question, *lines]), LETTERS[place], tuple(options), span, ids)


def ask_choice(asker: Asker) -> QA | None:
    return first_made(asker, [_choice_open, _choice_do, _choice_who, _choice_which, _choice_when, _choice_which])


def _choice_open(asker: Asker) -> QA | None:
    """A question about a colour or a number, with options."""
    made = asker.one((ask_colour, ask_count))(asker)
    if made is None:
        return None
    if made.kind == "count":
        number = int(made.answer)
        low = max(0, number - int(asker.rng.integers(4)))
        wrong = [str(low + i) for i in range(4)]
        return _with_options(asker, made.question, made.answer, wrong, made.interval, made.evidence_ids)
    item = next(asker.facts.object(i) for i in made.evidence_ids if not i.startswith("event-"))
    is_trousers = "trousers" in made.question
    kept_back = answers_alike(asker.facts, made, asker.split).held_back
    wrong = [colour for colour in (TROUSERS if is_trousers else PALETTES[item.kind]) if colour not in kept_back]
    return _with_options(asker, made.question, made.answer, wrong, made.interval, made.evidence_ids)


def _choice_do(asker: Asker) -> QA | None:
    people = [item for item in asker.facts.objects if item.kind == "person"]
    for item in asker.shuffled(people):
        mine = [e for e in asker.main_events if e.object_id == item.object_id]
        who = asker.the(item)
        if not mine or who is None:
            continue
        event = asker.rare_first(mine)
        kept_back = deeds_held_back(asker.split, item)
        wrong = [
            verb_phrase(action, "third")
            for action in PERSON_ACTIONS
            if Claim("person", colour_of(item), item.attributes["trousers"], action).is_false(asker.facts)
            and action not in kept_back
            # Who does something else also walks there.
            and action != "walk"
        ]
        right = verb_phrase(event.kind, "third")
        ids = (event.event_id, item.object_id)
        return _with_options(
            asker, asker.pattern("what_does", who=who), right, wrong, (event.start_s, event.end_s), ids
        )
    return None


def _choice_who(asker: Asker) -> QA | None:
    """Who does it: people in four shirts, those in the picture among them."""
    made = ask_who_did(asker)
    if made is None:
        return None
    kept_back = answers_alike(asker.facts, made, asker.split).held_back
    shirts = [who for colour in PALETTES["person"] if (who := noun_phrase("person", colour)) not in kept_back]
    return _with_options(asker, made.question, made.answer, shirts, made.interval, made.evidence_ids)


def _choice_which(asker: Asker) -> QA | None:
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


def _choice_when(asker: Asker) -> QA | None:
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
    question = asker.pattern("when", who=who_does(asker, event), verb=base_of(event))
    right = span_words(event.start_s, event.start_s + length)
    ids = (event.event_id, event.object_id)
    return _with_options(asker, question, right, wrong, (event.start_s, event.end_s), ids)
