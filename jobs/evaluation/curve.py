"""Bi-level answers at several dense shares: under which settings, what is asked, and what it shows.

The curve asks the same questions of the same archive; only how many of the best chunks are dense differs. First and
last chunks are dense only where they are among the best, so that short videos save bytes as well.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from jobs.evaluation.answers import CHECKABLE, right_answers
from jobs.evaluation.records import AskedQuestion, Question, ShareAnswer
from jobs.evaluation.statistics import paired_difference, share

DENSE_SHARES = (0.1, 0.2, 0.35, 0.5, 1.0)
"""Shares of the chunks looked at that are dense, in rising order; at 1 everything is that fits the context.

The smallest is there because pooled KV alone, with its whole timestamps, takes about a third of the bytes.
"""

_NO_CAP = 1_000_000


def curve_tasks(items: Sequence[Question], uri: str) -> list[dict[str, Any]]:
    """What the asking process does for the questions about the video at ``uri`` that have an answer to be checked."""
    return [
        {
            "id": task_id(item, dense_share),
            "kind": "ask",
            "question": item.question,
            "videos": [uri],
            "levels": {"dense_share": dense_share, "dense_first_last": False, "max_dense_chunks": _NO_CAP},
        }
        for item in items
        if item.kind in CHECKABLE
        for dense_share in DENSE_SHARES
    ]


def task_id(item: Question, dense_share: float) -> str:
    """The id of a question's task at a share."""
    return f"{item.item_id}:{dense_share:g}"


def share_answer(answer: Mapping[str, Any]) -> ShareAnswer:
    """What is kept of the dictionary that ``ask`` gave."""
    return ShareAnswer(answer["answer"], answer["context"]["kv_bytes_read"])


def curve(items: Sequence[AskedQuestion]) -> list[dict[str, Any]]:
    """For each share: accuracy, the paired difference to all dense, and the share of the dense KV's bytes read."""
    rows: list[dict[str, Any]] = []
    for name in sorted({name for item in items for name in item.by_share}, key=float):
        asked = [item for item in items if name in item.by_share]
        questions = [item.question for item in asked]
        right = right_answers(questions, [item.by_share[name].answer for item in asked])
        dense = right_answers(questions, [item.answers["dense"] for item in asked])
        dense_bytes = sum(item.dense_bytes for item in asked)
        rows.append(
            {
                "dense_share": float(name),
                "right": share(right).to_dict(),
                "minus_dense": paired_difference(right, dense).to_dict(),
                "bytes_share": sum(item.by_share[name].kv_bytes_read for item in asked) / dense_bytes
                if dense_bytes
                else None,
            }
        )
    return rows
