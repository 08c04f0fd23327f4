"""Errors of the model package, each with the facts it was raised for.

    ModelError
    ├── CheckpointMismatch    the weights do not fit the architecture in the configuration
    ├── ContextOverflow       more tokens than the model has positions for
    ├── KVLayoutError         a KV tensor whose shape is not what the model or its own description says
    └── FingerprintMismatch   something stored was made by another model or other settings

The facts are the exception's arguments, so every class survives pickling.
"""

from __future__ import annotations

from collections.abc import Sequence

_SHOWN = 5


class ModelError(Exception):
    """Base of everything that ``videoxl2`` raises on purpose."""


class CheckpointMismatch(ModelError):
    """Weights and architecture disagree; lists what is missing, surplus and of another shape.

    ``misshaped`` holds (key, expected shape, found shape).
    """

    def __init__(
        self,
        folder: str,
        missing: Sequence[str] = (),
        surplus: Sequence[str] = (),
        misshaped: Sequence[tuple[str, tuple[int, ...], tuple[int, ...]]] = (),
    ) -> None:
        super().__init__(folder, tuple(missing), tuple(surplus), tuple(misshaped))
        self.folder = folder
        self.missing = tuple(missing)
        self.surplus = tuple(surplus)
        self.misshaped = tuple(misshaped)

    def __str__(self) -> str:
        shapes = [f"{key} is {found}, expected {expected}" for key, expected, found in self.misshaped]
        parts = [
            f"{len(names)} {what}: {', '.join(names[:_SHOWN])}{', ...' if len(names) > _SHOWN else ''}"
            for what, names in (("missing", self.missing), ("surplus", self.surplus), ("misshaped", shapes))
            if names
        ]
        return f"checkpoint {self.folder!r} does not fit its configuration; {'; '.join(parts)}"


class ContextOverflow(ModelError):
    """A sequence of ``needed`` tokens does not fit into ``limit`` positions."""

    def __init__(self, needed: int, limit: int) -> None:
        super().__init__(needed, limit)
        self.needed = needed
        self.limit = limit

    def __str__(self) -> str:
        return f"{self.needed} tokens are needed and the context holds {self.limit}"


class KVLayoutError(ModelError):
    """A KV tensor does not have the shape it should have."""


class FingerprintMismatch(ModelError):
    """``field`` of a fingerprint is ``found`` where ``expected`` is required; nothing stored may be reused."""

    def __init__(self, field: str, expected: str, found: str) -> None:
        super().__init__(field, expected, found)
        self.field = field
        self.expected = expected
        self.found = found

    def __str__(self) -> str:
        return f"fingerprint differs in {self.field!r}: expected {self.expected!r}, found {self.found!r}"
