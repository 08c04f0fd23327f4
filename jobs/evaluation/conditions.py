"""What a run was made with, as far as figures depend on it: weights, recipe of the archive, settings of questions.

Runs are pooled only where all of this is the same.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pipeline.reader import ArchiveReader

RULES = 4
"""Number of the rules by which footage, questions and figures are made; raised when figures stop being comparable."""


def conditions_of(reader: ArchiveReader) -> dict[str, Any]:
    """Names and values, JSON-ready, of an archive that was made for a run and of the settings it is asked under."""
    settings, recipe = reader.settings, reader.manifest.recipe
    return {
        "rules of the evaluation": RULES,
        "weights of the model": recipe.weights_digest,
        "weights of the search encoder": recipe.encoder_digest,
        **{f"ingest.{name}": value for name, value in recipe.model_dump(mode="json").items() if name in _RECIPE},
        "fingerprint": recipe.fingerprint,
        "ingest.codec": settings.ingest.codec,
        **{f"ingest.levels.{name}": value for name, value in settings.ingest.levels.model_dump(mode="json").items()},
        **{f"query.{name}": value for name, value in settings.query.model_dump(mode="json").items()},
    }


_RECIPE = ("fps", "segment_s", "prefill", "dtype")
"""Fields of the recipe that are told by name; any other shows in the fingerprint."""


def check_equal(runs: Sequence[tuple[str, Mapping[str, Any]]]) -> None:
    """Raise ``ValueError`` naming two of the runs (name and conditions) and what they differ in.

    A run without conditions, from before they were recorded, can be told alone and not be pooled.
    """
    (first, ours), *others = runs
    for name, theirs in others:
        for unknown in (label for label, found in ((first, ours), (name, theirs)) if not found):
            raise ValueError(f"{unknown} does not say what it was made with, so it cannot be pooled; run it again")
        for field in (*ours, *(field for field in theirs if field not in ours)):
            if ours.get(field) != theirs.get(field):
                raise ValueError(
                    f"{first} and {name} differ in {field}: {ours.get(field)!r} and {theirs.get(field)!r}; "
                    "only runs of the same weights and settings can be pooled"
                )
