"""Errors keep their facts, read as one sentence and survive pickling."""

from __future__ import annotations

import pickle

import pytest

from videoxl2.errors import CheckpointMismatch, ContextOverflow, FingerprintMismatch, KVLayoutError, ModelError

ERRORS = [
    CheckpointMismatch("/models/a", ["x.weight"], ["y.weight"], [("z.weight", (2, 3), (3, 2))]),
    ContextOverflow(40000, 32768),
    KVLayoutError("a shape is wrong"),
    FingerprintMismatch("weights", "aa", "bb"),
]


@pytest.mark.parametrize("error", ERRORS, ids=lambda error: type(error).__name__)
def test_survives_pickling(error: ModelError) -> None:
    copy = pickle.loads(pickle.dumps(error))
    assert type(copy) is type(error) and copy.args == error.args and str(copy) == str(error)
    assert isinstance(copy, ModelError)


def test_messages_name_the_facts() -> None:
    assert str(ERRORS[1]) == "40000 tokens are needed and the context holds 32768"
    assert "'weights'" in str(ERRORS[3]) and "'aa'" in str(ERRORS[3]) and "'bb'" in str(ERRORS[3])
    mismatch = str(ERRORS[0])
    assert all(fact in mismatch for fact in ("/models/a", "x.weight", "y.weight", "z.weight", "(2, 3)", "(3, 2)"))


def test_long_lists_are_counted_and_cut() -> None:
    error = CheckpointMismatch("f", [f"key{index}" for index in range(100)])
    assert "100 missing" in str(error) and "key99" not in str(error) and len(error.missing) == 100
