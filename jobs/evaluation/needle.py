"""The needle test: ten things that happen once in a long quiet video, each to be retrieved and told.

Owns which videos are made for which lengths, what is asked about them and when a needle counts as found.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from jobs.evaluation.answers import is_right
from jobs.evaluation.plan import is_match
from jobs.evaluation.records import AskedNeedle, Span
from videoxl2.training.needles import Needle, plan_haystack
from videoxl2.training.scene import Scene

DEFAULT_HOURS = (1 / 6, 1.0)
"""Lengths of the default test: ten minutes and one hour."""

SHORT_HOURS = 0.25
SHORT_VIDEOS = 3
"""Videos up to ``SHORT_HOURS`` are cheap, so there are several of each length."""

TOP = 5


@dataclass(frozen=True)
class NeedleVideo:
    """A video of the test: its scene, and after rendering its key and the needles that can be seen in it."""

    hours: float
    scene: Scene
    key: str = ""
    needles: tuple[Needle, ...] = ()

    def item_id(self, number: int) -> str:
        """The id of one of its needles."""
        return f"n:{self.key}:{number}"


def plan_needles(seed: int, hours: Sequence[float]) -> list[NeedleVideo]:
    """The videos for the lengths, several for short ones. Raises ``ValueError`` for a length that is too short."""
    videos: list[NeedleVideo] = []
    for length in hours:
        for _ in range(SHORT_VIDEOS if length <= SHORT_HOURS else 1):
            haystack = plan_haystack(seed * 1000 + len(videos), length * 3600.0)
            videos.append(NeedleVideo(length, haystack.scene, needles=haystack.needles))
    return videos


def needle_tasks(video: NeedleVideo, uri: str) -> list[dict[str, Any]]:
    """What the asking process does for a video: each needle's question, and a search for it; both in this video."""
    tasks: list[dict[str, Any]] = []
    for number, needle in enumerate(video.needles):
        name = video.item_id(number)
        tasks.append({"id": f"{name}:ask", "kind": "ask", "question": needle.question, "videos": [uri]})
        tasks.append(
            {"id": f"{name}:search", "kind": "search", "text": needle.query, "camera": None, "video": uri, "limit": TOP}
        )
    return tasks


def asked_needle(
    video: NeedleVideo, number: int, answer: Mapping[str, Any], found: Mapping[str, Any], num_chunks: int
) -> AskedNeedle:
    """The record of a needle from the dictionaries of ``ask`` (with a citation for every chunk) and ``search``.

    A needle is dense, or in the context, when the chunk that holds its middle is.
    """
    needle = video.needles[number]
    middle_s = (needle.start_s + needle.end_s) / 2
    holding = [cited for cited in answer["citations"] if cited["start_s"] <= middle_s < cited["end_s"]]
    span: Span = (video.key, needle.start_s, needle.end_s)
    moments = [(video.key, moment["start_s"], moment["end_s"]) for moment in found["moments"][:TOP]]
    return AskedNeedle(
        item_id=video.item_id(number),
        video=video.key,
        hours=video.hours,
        depth=needle.depth,
        kind=needle.name,
        question=needle.question,
        expected=needle.answer,
        options=needle.options,
        answer=answer["answer"],
        is_dense=any(cited["level"] == "dense" for cited in holding),
        is_in_context=bool(holding),
        is_in_top5=any(is_match(moment, span) for moment in moments),
        dense_share=answer["context"]["dense_chunks"] / num_chunks,
        first_token_s=answer["timings"]["first_token_s"],
    )


def is_answered(needle: AskedNeedle) -> bool:
    """Whether the answer names the right option."""
    return is_right("choice", needle.answer, needle.expected, needle.options)
