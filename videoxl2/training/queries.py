"""Search queries with the moments that answer them, over one clip or many videos.

Owns which queries are asked: one attribute or action ("a red car", "a person falling down") or two ("a person in a red
shirt running", "a person in a red shirt and blue trousers").
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal

import numpy as np

from videoxl2.training.claims import PALETTES, Claim
from videoxl2.training.facts import Facts
from videoxl2.training.wording import colour_of, noun_phrase, verb_phrase

Moment = tuple[str, float, float]
# A query is worth asking when its moments are few and short against the footage.
_MAX_MOMENTS = 12
_MAX_COVERAGE = 0.3
_SKIPPED_ACTIONS = frozenset({"enter", "leave"})


@dataclass(frozen=True)
class SearchQuery:
    """A text and every moment ``(video key, start_s, end_s)`` that it describes.

    ``doubtful`` are moments that may fit (too small, cut off): neither right nor wrong as an answer.
    """

    text: str
    num_attributes: Literal[1, 2]
    intervals: tuple[Moment, ...]
    doubtful: tuple[Moment, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


def query_text(claim: Claim) -> str:
    """The query that asks for a claim."""
    if claim.action in ("smoke", "open"):
        return "smoke" if claim.action == "smoke" else "a door left open"
    who = noun_phrase(claim.kind, claim.colour, claim.trousers)
    return who if claim.action is None else f"{who} {verb_phrase(claim.action, 'ing')}"


def num_attributes(claim: Claim) -> Literal[1, 2]:
    """How many things must be right at once; the kind alone counts as one."""
    given = sum(value is not None for value in (claim.colour, claim.trousers, claim.action))
    return 2 if given >= 2 else 1


def claims_in(facts: Facts) -> set[Claim]:
    """Every claim about one thing that holds here and can be searched for."""
    claims: set[Claim] = set()
    for item in facts.objects:
        colour = colour_of(item)
        if item.kind in PALETTES:
            claims |= {Claim(item.kind), Claim(item.kind, colour)}
        if item.kind == "person":
            claims.add(Claim(item.kind, colour, item.attributes["trousers"]))
    for event in facts.events:
        if event.kind in _SKIPPED_ACTIONS:
            continue
        item = facts.object(event.object_id)
        claims.add(Claim(item.kind, action=event.kind))
        if item.kind in PALETTES:
            claims.add(Claim(item.kind, colour_of(item), None, event.kind))
    return claims


def search_queries(videos: Mapping[str, Facts], seed: int, num_queries: int) -> list[SearchQuery]:
    """Up to ``num_queries`` queries, half of them with two attributes, whose moments are rare in ``videos``.

    ``videos`` maps the key of each video to its facts.
    """
    total_s = sum(facts.end_s - facts.start_s for facts in videos.values())
    claims = sorted({claim for facts in videos.values() for claim in claims_in(facts)}, key=repr)
    rng = np.random.default_rng([seed, 53])
    by_number: dict[int, list[SearchQuery]] = {1: [], 2: []}
    for index in rng.permutation(len(claims)).tolist():
        claim = claims[index]
        if len(by_number[num_attributes(claim)]) >= (num_queries + 1) // 2:
            continue
        moments = tuple((key, low, high) for key, facts in videos.items() for low, high in claim.intervals(facts))
        length_s = sum(high - low for _, low, high in moments)
        if not moments or len(moments) > _MAX_MOMENTS or length_s > _MAX_COVERAGE * total_s:
            continue
        unsure = tuple((key, *span) for key, facts in videos.items() for span in claim.doubtful_intervals(facts))
        query = SearchQuery(query_text(claim), num_attributes(claim), moments, unsure)
        by_number[query.num_attributes].append(query)
    mixed = [query for pair in zip(by_number[1], by_number[2], strict=False) for query in pair]
    rest = by_number[1][len(by_number[2]) :] + by_number[2][len(by_number[1]) :]
    return (mixed + rest)[:num_queries]
