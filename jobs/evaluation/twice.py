"""Long videos indexed twice, in segments and as one, and asked the same: what the cuts between segments cost.

Owns which videos are made for a number of minutes, what is asked about them, and the figures. The chunks of both
archives are the same stretches of time where a segment holds whole chunks, and their pictures are; so the same chunks
are dense, and only what their KV has seen before differs.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from jobs.evaluation.answers import CHECKABLE, right_answers
from jobs.evaluation.plan import PlannedFile, choose_questions, plan_scenes
from jobs.evaluation.records import AskedTwice, Question
from jobs.evaluation.statistics import paired_difference, share
from videoxl2.training.facts import Facts
from videoxl2.training.random_scenes import CAMERA_KINDS

WAYS = ("dense", "ask")
LONGEST_MINUTES = 60.0
QUESTIONS_PER_MINUTE = 2.0

_SEED_STEP = 500
"""Between the seeds of these files and of the short ones of the same run."""


def plan_long_files(seed: int, minutes: float) -> list[PlannedFile]:
    """As few files of equal length as ``minutes`` give without one above an hour: of 30 to 60 minutes from 30 on."""
    number = math.ceil(minutes / LONGEST_MINUTES)
    kinds = [CAMERA_KINDS[(seed + index) % len(CAMERA_KINDS)] for index in range(number)]
    return plan_scenes([(kind, minutes / number) for kind in kinds], seed, first=_SEED_STEP)


def choose_long_questions(videos: Mapping[str, Facts], seed: int, minutes: float) -> tuple[list[Question], list[str]]:
    """Two questions per minute, in the same mixture as those about the short videos, and notes."""
    chosen, notes = choose_questions(videos, seed, max(1, round(QUESTIONS_PER_MINUTE * minutes)))
    return [replace(item, item_id=f"w{item.item_id}") for item in chosen], [f"long videos: {note}" for note in notes]


def compare(items: Sequence[AskedTwice], way: str) -> dict[str, Any]:
    """Accuracy in segments and whole, and the paired difference, over questions about videos of several segments."""
    items = [item for item in items if item.question.kind in CHECKABLE and item.num_segments > 1]
    questions = [item.question for item in items]
    segments = right_answers(questions, [item.segments[way] for item in items])
    whole = right_answers(questions, [item.whole[way] for item in items])
    return {
        "segments": share(segments).to_dict(),
        "whole_video": share(whole).to_dict(),
        "difference": paired_difference(segments, whole).to_dict(),
    }
