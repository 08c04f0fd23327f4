"""Questions about one of several videos: which are asked so, of which videos, and what that shows.

An archive is asked as a whole. So some questions are asked again of the video that they are about and two of other
cameras at once, and name the place of theirs: "Does somebody run at the gate?". Nothing is asked so in which times
matter, since every video has its own.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from jobs.evaluation.answers import CHECKABLE, right_answers
from jobs.evaluation.records import AskedQuestion, Question
from jobs.evaluation.statistics import paired_difference, share
from videoxl2.named_times import names_time
from videoxl2.training.qa import at_place
from videoxl2.training.wording import AT_CAMERA

OTHERS = 2
"""How many videos of other kinds of camera a question is asked of beside its own."""

_EVERY = 3
_SEED = 67


def tasks_among(
    items: Sequence[Question], camera_kinds: Mapping[str, str], uris: Mapping[str, str], seed: int
) -> list[dict[str, Any]]:
    """What the asking process does for every third of the questions that can be asked so.

    ``camera_kinds`` and ``uris`` are those of each video. Where fewer than two other kinds of camera are there, as many
    as there are take part, and where there is none nothing is asked.
    """
    asked = [
        item for item in items if item.kind in CHECKABLE and item.kind != "order" and not names_time(item.question)
    ]
    tasks = []
    for number, item in enumerate(asked[::_EVERY]):
        rng = np.random.default_rng([seed, _SEED, number])
        kinds = sorted(set(camera_kinds.values()) - {item.camera_kind})
        chosen = rng.permutation(kinds).tolist()[:OTHERS]
        others = [str(rng.choice(sorted(key for key, kind in camera_kinds.items() if kind == name))) for name in chosen]
        if others:
            tasks.append(
                {
                    "id": task_id(item),
                    "kind": "ask",
                    "question": at_place(item.question, AT_CAMERA[item.camera_kind]),
                    "videos": [uris[key] for key in (item.video, *others)],
                }
            )
    return tasks


def task_id(item: Question) -> str:
    """The id of a question's task."""
    return f"{item.item_id}:among"


def figures_among(items: Sequence[AskedQuestion]) -> dict[str, Any]:
    """Share right of the questions that were asked so, of the same asked of their own video, and the difference."""
    asked = [item for item in items if item.among_answer is not None]
    questions = [item.question for item in asked]
    among = right_answers(questions, [item.among_answer or "" for item in asked])
    alone = right_answers(questions, [item.answers["bilevel"] for item in asked])
    return {
        "right": share(among).to_dict(),
        "alone": share(alone).to_dict(),
        "difference": paired_difference(among, alone).to_dict(),
    }
