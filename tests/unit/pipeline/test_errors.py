"""Errors: the tree is the one its docstring draws, with those exit codes, and each survives pickling."""

from __future__ import annotations

import inspect
import pickle
import re

import pytest

from pipeline import errors
from pipeline.errors import ArchiveError

CLASSES = [kind for _, kind in inspect.getmembers(errors, inspect.isclass) if issubclass(kind, ArchiveError)]
_LINE = re.compile(r"^    (?P<branch>[│├└─ ]*)(?P<name>[A-Z]\w+)(?P<retryable>\*?)(?:\s.*?)?(?:exit (?P<exit>\d))?$")


def make(kind: type[ArchiveError]) -> ArchiveError:
    parameters = [name for name in inspect.signature(kind.__init__).parameters if name != "self"]
    return kind(*(f"the {name}\nof 'x'" for name in parameters))


def drawn() -> dict[str, tuple[str | None, bool, int]]:
    """Each class of the docstring's tree: parent, whether it is retryable, exit code."""
    found: dict[str, tuple[str | None, bool, int]] = {}
    path: list[str] = []
    assert errors.__doc__ is not None
    for line in errors.__doc__.splitlines():
        match = _LINE.match(line)
        if match is None:
            continue
        depth = len(match["branch"]) // 4
        path = [*path[:depth], match["name"]]
        found[match["name"]] = (path[-2] if depth else None, bool(match["retryable"]), int(match["exit"] or 1))
    return found


def test_the_docstring_draws_every_class_with_its_parent_and_exit_code() -> None:
    real = {
        kind.__name__: (
            None if kind is ArchiveError else kind.__mro__[1].__name__,
            kind.retryable,
            kind.exit_code,
        )
        for kind in CLASSES
    }
    assert drawn() == real
    assert len(real) == 18


@pytest.mark.parametrize("kind", CLASSES, ids=lambda kind: kind.__name__)
def test_every_class_survives_pickling_with_its_facts(kind: type[ArchiveError]) -> None:
    error = make(kind)
    copy = pickle.loads(pickle.dumps(error))
    assert type(copy) is kind
    assert str(copy) == str(error) == copy.message
    assert vars(copy) == vars(error)


@pytest.mark.parametrize("kind", CLASSES, ids=lambda kind: kind.__name__)
def test_every_fact_is_an_attribute_and_in_the_message(kind: type[ArchiveError]) -> None:
    error = make(kind)
    for name in set(inspect.signature(kind.__init__).parameters) - {"self"}:
        assert getattr(error, name).startswith(f"the {name}") or name == "message"
        assert f"the {name}" in str(error)
    assert kind.__doc__
