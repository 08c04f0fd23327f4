"""The ledger: what is to be done for each listed object, decided from its row alone. Pure functions."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from indexers.records import DELETED, DELETING, EXPIRED, FAILED, INDEXED, QUARANTINED, QUEUED, VideoRow
from pipeline.tasks import StageFailure


class Verdict(StrEnum):
    """What ingestion does with an object that a source lists."""

    INDEX = "index"
    """new, interrupted, or failed for a reason that may be gone"""
    RESTORE = "restore"
    """an indexed version that a newer one had superseded is the current object again"""
    SKIP = "skip"
    """indexed already, or known to be unreadable in this very version"""


_GIVEN_UP = {QUARANTINED, EXPIRED, DELETING, DELETED}
_RETRYABLE_ERRORS = {"MediaFetchError", "MediaChanged", "ScratchFull"}


def verdict(row: VideoRow | None) -> Verdict:
    """What to do for an object whose ledger row is ``row`` (``None``: never seen)."""
    if row is None:
        return Verdict.INDEX
    if row.state == INDEXED:
        return Verdict.SKIP if row.superseded_by is None else Verdict.RESTORE
    if row.state in _GIVEN_UP:
        return Verdict.SKIP
    if row.state == FAILED:
        return Verdict.INDEX if row.error_type in _RETRYABLE_ERRORS else Verdict.SKIP
    return Verdict.INDEX


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a failure means: try again, or the final state of the video."""

    retry: bool
    state: str


def after_failure(failure: StageFailure, attempt: int, max_attempts: int) -> Outcome:
    """Retryable failures are tried ``max_attempts`` times; a dead or hung decoder or worker then quarantines."""
    if failure.retryable and attempt < max_attempts:
        return Outcome(retry=True, state=QUEUED)
    return Outcome(retry=False, state=QUARANTINED if failure.quarantines else FAILED)
