"""Records made by hand, so that no test here renders, indexes or asks."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from jobs.evaluation.records import COLUMNS, AskedNeedle, AskedQuestion, AskedSearch, Question, Run, Search

EXPECTED = {
    "choice": ("B", "A"),
    "exists": ("yes", "no"),
    "colour": ("red", "blue"),
    "count": ("2", "3"),
    "where": ("left", "right"),
    "order": ("a dog running", "a car driving"),
    "when": ("100 to 110 seconds", "10 to 20 seconds"),
}
OPTIONS = ("one", "two", "three", "four")


def question(kind: str, number: int = 0, **changes: Any) -> Question:
    made = Question(
        item_id=f"q-{kind}-{number}",
        video="gate-1/x.mp4",
        camera_kind="gate",
        video_s=600.0,
        kind=kind,
        question=f"{kind}?",
        expected=EXPECTED[kind][0],
        options=OPTIONS if kind == "choice" else (),
        interval=(100.0, 110.0),
        action="run",
    )
    return replace(made, **changes)


def asked(kind: str, right: set[str], number: int = 0, **changes: Any) -> AskedQuestion:
    """A question that the columns in ``right`` answer rightly and all others wrongly."""
    made = AskedQuestion(
        question=question(kind, number),
        answers={name: EXPECTED[kind][name not in right] for name in COLUMNS},
        kv_bytes_read=30,
        dense_bytes=100,
        num_segments=1,
    )
    return replace(made, **changes)


def search(number_of_attributes: int, rank: int | None, number: int = 0) -> AskedSearch:
    right, wrong = ("v", 10.0, 20.0), ("v", 400.0, 410.0)
    found = (wrong,) * 9 if rank is None else (*((wrong,) * (rank - 1)), right)
    return AskedSearch(
        Search(f"s{number}", "x", number_of_attributes, (right,), ()), found, {"recall1": 0.1, "recall5": 0.4}
    )


def needle(hours: float, depth: float, *, dense: bool, right: bool) -> AskedNeedle:
    return AskedNeedle(
        item_id=f"n{hours}{depth}",
        video=f"v{hours}",
        hours=hours,
        depth=depth,
        kind="dog",
        question="?",
        expected="C",
        options=OPTIONS,
        answer="C" if right else "D",
        is_dense=dense,
        is_in_context=True,
        is_in_top5=dense,
        dense_share=0.2,
    )


def make_run(right: set[str] | None = None, **changes: Any) -> Run:
    """One question of every kind, answered rightly by the columns in ``right`` (None: by all)."""
    names = set(COLUMNS) if right is None else right
    made = Run(
        seeds=(1,),
        model="tiny",
        video_hours=1.0,
        num_videos=1,
        questions=tuple(asked(kind, names) for kind in EXPECTED),
        searches=(search(1, 1), search(2, 1)),
        needles=(needle(1.0, 0.5, dense=bool(names), right=bool(names)),),
        conditions={"weights of the model": "abc", "query.limit": 10},
    )
    return replace(made, **changes)
