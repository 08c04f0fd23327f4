"""A question with options over an archive: which one answers it does not depend on the order they are named in."""

from __future__ import annotations

from pathlib import Path

import pytest

from pipeline import Answer, Archive
from pipeline.config import load_settings

OPTIONS = ["a person falls", "a person leaves a bag", "a red car passes", "somebody runs"]


def asked(first: int) -> str:
    options = [*OPTIONS[first:], *OPTIONS[:first]]
    return "\n".join(
        ["Which of these happens?", *(f"{letter}. {o}" for letter, o in zip("ABCD", options, strict=True))]
    )


def option(answer: Answer, first: int) -> str:
    return OPTIONS[("ABCD".index(answer.answer) + first) % 4]


def archive(folder: Path, orders: bool) -> Archive:
    return Archive(folder, settings=load_settings(overrides={"archive": str(folder), "query.option_orders": orders}))


@pytest.mark.parametrize("reuse", ["reload", "recompute"])
def test_every_order_gets_the_same_option(indexed: Path, reuse: str) -> None:
    together, once = archive(indexed, True), archive(indexed, False)
    answers = [together.ask(asked(first), reuse=reuse) for first in range(4)]
    assert len({option(answer, first) for first, answer in enumerate(answers)}) == 1
    singly = [once.ask(asked(first), reuse=reuse) for first in range(4)]
    assert [a.context for a in answers] == [a.context for a in singly], "the same KV is read, once"
    assert [a.citations for a in answers] == [a.citations for a in singly]


def test_a_question_without_options_is_asked_once(indexed: Path) -> None:
    text = "What happens at the gate?"
    together, once = archive(indexed, True).ask(text), archive(indexed, False).ask(text)
    assert together.token_ids == once.token_ids
