"""Captions of a clip: what is seen and what happens, each with its interval.

Owns sentences only; ``facts`` says what is true. They train the dual encoder and the first stages of the model.
"""

from __future__ import annotations

from videoxl2.training.facts import Facts
from videoxl2.training.wording import event_sentence, object_phrase, sentence

Caption = tuple[str, float, float]


def captions_of(facts: Facts) -> list[Caption]:
    """One caption per object and event ``(text, start_s, end_s)``, in order of time; none for what is doubtful."""
    found: list[Caption] = []
    for item in facts.objects:
        if item.kind in ("door", "smoke"):
            continue
        for start, end in item.visible:
            found.append((object_phrase(item, with_trousers=True), start, end))
    for event in facts.events:
        for form in ("third", "ing"):
            found.append((event_sentence(facts, event, form), event.start_s, event.end_s))
    return sorted(found, key=lambda caption: (caption[1], caption[2], caption[0]))


def frame_caption(facts: Facts, t: float) -> str:
    """What one picture shows: the events and things at ``t``, or that nothing is there."""
    acting = [
        event for event in facts.events if event.start_s <= t < event.end_s and event.kind not in ("enter", "leave")
    ]
    named = {event.object_id for event in acting} | {event.target_id for event in acting}
    words = [event_sentence(facts, event, "ing") for event in acting]
    for item in facts.objects:
        if item.object_id not in named and any(start <= t < end for start, end in item.visible):
            words.append("an open door" if item.kind == "door" else object_phrase(item))
    return sentence(", ".join(words)) if words else "The picture is empty."
