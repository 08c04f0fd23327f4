"""Needles: a long quiet camera in which ten things happen once each, at chosen depths, to be found again.

Owns where the needles lie and that each is the only thing of its kind: nothing but people who walk past happens
between them, and nobody wears the shirts by which needles are told. The scene is made of the episodes of ordinary
footage, so that needles look like everything else.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from fractions import Fraction

import numpy as np

from videoxl2.training.claims import PALETTES, PERSON_ACTIONS, Claim
from videoxl2.training.conditions import random_conditions
from videoxl2.training.episodes import (
    SHIRTS,
    Cast,
    Episode,
    dog,
    drive,
    drop_bag,
    fall,
    loiter,
    meet,
    pass_by,
    ride,
    run_through,
    stop,
)
from videoxl2.training.facts import Facts, script_facts
from videoxl2.training.places import random_place
from videoxl2.training.queries import query_text
from videoxl2.training.scene import Action, Actor, Bag, Colour, Opening, Person, Scene, SceneryKind
from videoxl2.training.splits import Split
from videoxl2.training.wording import LETTERS, NOUNS, PATTERNS, colour_of, noun_phrase, verb_phrase

NEEDLE_CAMERAS: tuple[SceneryKind, ...] = ("street", "gate")
"""Kinds of camera where all ten needles can happen, and where no cars stand about."""

DEPTHS = tuple(round(0.05 + 0.1 * index, 2) for index in range(10))
"""Where needles lie, as shares of the video's length."""

WALKERS_PER_MINUTE = 0.4
_MOST_WALKERS = 140
_TRIES = 120
_LEAST_SHOWN_S = 3.0
_PROBE_AFTER_S = 10.0
_FIRST_DAY = datetime(2026, 10, 5)
_WHO_WALKS = ("walk",)


@dataclass(frozen=True, slots=True)
class _Kind:
    """One kind of needle: its episode, what is claimed, and by what it is asked: who does it, what is done, colour."""

    name: str
    episode: Episode
    noun: str
    action: str | None
    asked: str


_KINDS: tuple[_Kind, ...] = (
    _Kind("run", run_through, "person", "run", "who"),
    _Kind("fall", fall, "person", "fall", "who"),
    _Kind("loiter", loiter, "person", "loiter", "who"),
    _Kind("drop", drop_bag, "person", "drop", "who"),
    _Kind("stop", stop, "person", "stop", "what"),
    _Kind("meet", meet, "person", "meet", "what"),
    _Kind("car", drive, "car", None, "colour"),
    _Kind("van", drive, "van", None, "colour"),
    _Kind("bicycle", ride, "bicycle", None, "colour"),
    _Kind("dog", dog, "dog", None, "colour"),
)


@dataclass(frozen=True)
class Needle:
    """One thing that happens once: when, and the question with four options about it.

    ``claim`` is true during ``[start_s, end_s)`` and at no other time of the video; ``query`` is the text to search for
    it. ``answer`` is a letter of ``options``.
    """

    name: str
    depth: float
    claim: Claim
    query: str
    start_s: float
    end_s: float
    question: str
    options: tuple[str, ...]
    answer: str


@dataclass(frozen=True)
class Haystack:
    """A scene and its needles, in order of depth."""

    scene: Scene
    needles: tuple[Needle, ...]


@dataclass(frozen=True)
class _Placed:
    """A needle's part of the scene."""

    kind: _Kind
    depth: float
    actors: tuple[Actor, ...]
    actions: tuple[Action, ...]
    openings: tuple[Opening, ...]
    door_times: dict[str, list[tuple[float, float]]]


def plan_haystack(
    seed: int,
    duration_s: float,
    depths: Sequence[float] = DEPTHS,
    split: Split = "test",
    *,
    size: tuple[int, int] = (480, 270),
    fps: Fraction = Fraction(5),
) -> Haystack:
    """A quiet scene of ``duration_s`` seconds with a needle at each depth; the same arguments give the same scene.

    The kinds of needle are dealt to the depths by seed, each kind at most once. Raises ValueError for more depths than
    kinds, or for a video too short to hold them, one after another and in plain sight.
    """
    if not 0 < len(depths) <= len(_KINDS) or any(not 0 < depth < 1 for depth in depths):
        raise ValueError(f"needs one to {len(_KINDS)} depths between 0 and 1, not {list(depths)}")
    rng = np.random.default_rng([seed, 91])
    camera_kind = NEEDLE_CAMERAS[int(rng.integers(len(NEEDLE_CAMERAS)))]
    start = _FIRST_DAY + timedelta(days=int(rng.integers(0, 100)), hours=int(rng.integers(7, 15)))
    place = random_place(camera_kind, split, int(rng.integers(1 << 20)))
    conditions = replace(random_conditions(camera_kind, start, rng), weather="clear")
    cast = Cast(place, split, duration_s, False, rng)
    order = rng.permutation(len(_KINDS)).tolist()
    placed: list[_Placed] = []
    taken: set[str] = set()
    for number, depth in enumerate(depths):
        part = _place(cast, _KINDS[order[number]], depth, 1000 * (number + 1), taken)
        taken |= {actor.shirt for actor in part.actors if isinstance(actor, Person)}
        placed.append(part)
    for part in placed:
        cast.actors += part.actors
        cast.actions += part.actions
        cast.openings += part.openings
        for door, times in part.door_times.items():
            cast.door_times.setdefault(door, []).extend(times)
    _walkers(cast, {shirt for part in placed for shirt in _telling_shirts(part)})
    cast.close_doors()
    scene = Scene(
        place.camera(f"needles-{camera_kind}", *size, fps),
        start,
        duration_s,
        int(rng.integers(2**31)),
        tuple(cast.actors),
        tuple(sorted(cast.actions, key=lambda action: action.start_s)),
        tuple(cast.openings),
        place,
        conditions,
    )
    facts = script_facts(scene)
    return Haystack(scene, tuple(_needle(part, facts, rng) for part in placed))


def seen_needles(haystack: Haystack, facts: Facts) -> list[Needle]:
    """The needles that the rendered pixels (``facts``) show without doubt, with the interval in which they do."""
    seen: list[Needle] = []
    for needle in haystack.needles:
        spans = needle.claim.intervals(facts)
        if spans and not needle.claim.doubtful_intervals(facts):
            seen.append(replace(needle, start_s=spans[0][0], end_s=spans[-1][1]))
    return seen


def _place(main: Cast, kind: _Kind, depth: float, first_id: int, taken: set[str]) -> _Placed:
    """The needle's episode with its own actors, moved so that its middle lies at the depth."""
    target_s = depth * main.duration_s
    for _ in range(_TRIES):
        seed = int(main.rng.integers(1 << 30))
        probe = _play(main, kind, 0.0, seed, first_id)
        if probe is None or not _is_plain(main, kind, probe):
            continue
        low, high = _span(kind, probe)
        part = _play(main, kind, max(0.0, target_s - (low + high) / 2), seed, first_id)
        if part is None or not _fits(kind, part, taken, main.duration_s):
            continue
        return _Placed(kind, depth, tuple(part.actors), tuple(part.actions), tuple(part.openings), part.door_times)
    raise ValueError(f"a video of {main.duration_s:g} s is too short for a needle of kind {kind.name!r} at {depth:g}")


def _is_plain(main: Cast, kind: _Kind, cast: Cast) -> bool:
    """Whether the needle is in the picture long enough to be sampled a few times, by its episode's script alone."""
    _, high = _span(kind, cast)
    camera = main.place.camera("probe", 480, 270, Fraction(5))
    actions = tuple(action for action in cast.actions if action.actor_id in {actor.actor_id for actor in cast.actors})
    facts = script_facts(Scene(camera, _FIRST_DAY, high + _PROBE_AFTER_S, 0, tuple(cast.actors), actions))
    claim = Claim(kind.noun, action=kind.action)
    shown = sum(end - start for item in claim.objects(facts) for start, end in item.visible)
    return shown >= _LEAST_SHOWN_S and claim.is_true(facts)


def _play(main: Cast, kind: _Kind, t: float, seed: int, first_id: int) -> Cast | None:
    """The episode alone, from ``t`` on; None where it did not take place."""
    cast = Cast(main.place, main.split, main.duration_s, main.is_dark, np.random.default_rng(seed), _number=first_id)
    kind.episode(cast, t)
    return cast if cast.actors else None


def _span(kind: _Kind, cast: Cast) -> tuple[float, float]:
    """When the needle itself happens in an episode."""
    if kind.action is not None:
        spans = [(a.start_s, a.end_s) for a in cast.actions if a.kind == kind.action]
    else:
        spans = [
            (a.track.start_s, a.track.end_s) for a in cast.actors if not isinstance(a, Bag) and a.kind == kind.noun
        ]
    return (min(low for low, _ in spans), max(high for _, high in spans)) if spans else (0.0, 0.0)


def _fits(kind: _Kind, cast: Cast, taken: set[str], duration_s: float) -> bool:
    """Whether the episode is this needle and nothing that another needle or question could be taken for."""
    people = [actor for actor in cast.actors if isinstance(actor, Person)]
    things = [actor.kind for actor in cast.actors if not isinstance(actor, Person)]
    if any(action.end_s > duration_s - 0.5 for action in cast.actions):
        return False
    if any(action.kind in ("pick", "wrong_way") for action in cast.actions) or kind.noun not in (
        {"person"} if people else set(things)
    ):
        return False
    if {person.shirt for person in people} & taken or len({person.shirt for person in people}) < len(people):
        return False
    allowed = {"drop": ["bag"]}.get(kind.name, [] if kind.noun == "person" else [kind.noun])
    return things == allowed


def _telling_shirts(part: _Placed) -> set[str]:
    """Shirts that nobody else may wear, since a question tells its person by them."""
    return {actor.shirt for actor in part.actors if isinstance(actor, Person)} if part.kind.asked == "what" else set()


def _walkers(cast: Cast, kept: set[str]) -> None:
    """People who walk past now and then, none in a shirt that is kept for a needle."""
    number = min(_MOST_WALKERS, round(cast.duration_s / 60.0 * WALKERS_PER_MINUTE))
    for t in np.sort(cast.rng.uniform(0.0, max(cast.duration_s - 40.0, 1.0), number)).tolist():
        before = len(cast.actors), len(cast.actions), {name: len(times) for name, times in cast.door_times.items()}
        end_s = pass_by(cast, t)
        added = cast.actors[before[0] :]
        is_kept = any(isinstance(actor, Person) and actor.shirt in kept for actor in added)
        if is_kept or end_s > cast.duration_s or any(isinstance(actor, Bag) for actor in added):
            del cast.actors[before[0] :], cast.actions[before[1] :]
            cast.door_times = {
                n: times[: before[2].get(n, 0)] for n, times in cast.door_times.items() if n in before[2]
            }


def _needle(part: _Placed, facts: Facts, rng: np.random.Generator) -> Needle:
    """The question about a placed needle. Raises ValueError where the script itself leaves doubt about it."""
    kind = part.kind
    claim = Claim(kind.noun, action=kind.action)
    if kind.asked == "what":
        shown = next(action for action in part.actions if action.kind == kind.action)
        who = next(actor for actor in part.actors if actor.actor_id == shown.actor_id)
        claim = Claim("person", who.attributes["shirt"], None, kind.action)
    spans = claim.intervals(facts)
    if not spans or claim.doubtful_intervals(facts):
        raise ValueError(f"the needle {kind.name!r} at {part.depth:g} of the video is not plain to see")
    item = facts.object(claim.events(facts)[0].object_id) if kind.action is not None else claim.objects(facts)[0]
    colour = colour_of(item)
    assert colour is not None  # people, vehicles and dogs all have one
    question, right, wrong = _ASKED[kind.asked](kind, claim, colour)
    others = [wrong[index] for index in rng.permutation(len(wrong)).tolist()][:3]
    place = int(rng.integers(len(LETTERS)))
    options = (*others[:place], right, *others[place:])
    lines = [f"{letter}. {option}" for letter, option in zip(LETTERS, options, strict=True)]
    full = Claim(kind.noun, colour, None, kind.action)
    return Needle(
        name=kind.name,
        depth=part.depth,
        claim=claim,
        query=query_text(full),
        start_s=spans[0][0],
        end_s=spans[-1][1],
        question="\n".join([question, *lines]),
        options=options,
        answer=LETTERS[place],
    )


_Asked = tuple[str, str, list[str]]


def _ask_who(kind: _Kind, claim: Claim, colour: str) -> _Asked:
    assert kind.action is not None
    question = _first("who_does", verb=verb_phrase(kind.action, "third"))
    wrong = [noun_phrase("person", other) for other in SHIRTS if other != colour]
    return question, noun_phrase("person", colour), wrong


def _ask_what(kind: _Kind, claim: Claim, colour: str) -> _Asked:
    assert kind.action is not None
    question = _first("what_does", who=noun_phrase("person", colour, None, "the"))
    wrong = [verb_phrase(a, "third") for a in PERSON_ACTIONS if a not in (kind.action, "walk", "stop")]
    return question, verb_phrase(kind.action, "third"), wrong


def _ask_colour(kind: _Kind, claim: Claim, colour: str) -> _Asked:
    noun = NOUNS[kind.noun][0]
    thing = f"shirt of the {noun}" if kind.noun in ("person", "bicycle") else noun
    palette: Sequence[Colour] = PALETTES[kind.noun]
    wrong = [other for other in palette if other != colour]
    return _first("colour_thing", noun=thing), colour, wrong + [c for c in _SPARE if c not in palette][: 3 - len(wrong)]


_SPARE = ("grey", "yellow", "red")
_ASKED: dict[str, Callable[[_Kind, Claim, str], _Asked]] = {"who": _ask_who, "what": _ask_what, "colour": _ask_colour}


def _first(pattern: str, **words: str) -> str:
    text = PATTERNS[pattern][0].format(**words)
    return text[0].upper() + text[1:]
