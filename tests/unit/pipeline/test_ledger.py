"""What ingestion does with an object, state by state, and what a failure turns a video into."""

from __future__ import annotations

import pytest

from indexers.records import VIDEO_STATES
from indexers.testing import make_video
from pipeline import errors
from pipeline.ledger import _RETRYABLE_ERRORS, Outcome, Verdict, after_failure, verdict
from pipeline.tasks import StageFailure, VideoTask

TASK = VideoTask(
    video_id="a" * 32,
    uri="file:///a.mp4",
    key="a.mp4",
    etag="1",
    size=1,
    source="file:///",
    camera=None,
    title="a",
    start_time=None,
    time_zone=None,
)

VERDICTS = {
    "discovered": Verdict.INDEX,
    "queued": Verdict.INDEX,
    "running": Verdict.INDEX,
    "indexed": Verdict.SKIP,
    "failed": Verdict.SKIP,
    "quarantined": Verdict.SKIP,
    "expired": Verdict.SKIP,
    "deleted": Verdict.SKIP,
    "deleting": Verdict.SKIP,
}


def test_an_object_never_seen_is_indexed() -> None:
    assert verdict(None) is Verdict.INDEX


@pytest.mark.parametrize("state", VIDEO_STATES)
def test_the_verdict_of_every_state(state: str) -> None:
    assert verdict(make_video(state=state)) is VERDICTS[state]


def test_a_superseded_version_that_is_current_again_is_restored() -> None:
    assert verdict(make_video(superseded_by="b" * 32)) is Verdict.RESTORE


@pytest.mark.parametrize("state", sorted(set(VIDEO_STATES) - {"indexed"}))
def test_only_an_indexed_version_can_be_restored(state: str) -> None:
    assert verdict(make_video(state=state, superseded_by="b" * 32)) is VERDICTS[state]


@pytest.mark.parametrize(
    ("error_type", "expected"),
    [
        ("MediaFetchError", Verdict.INDEX),
        ("MediaChanged", Verdict.INDEX),
        ("UnreadableMedia", Verdict.SKIP),
        ("StageError", Verdict.SKIP),
        ("ValueError", Verdict.SKIP),
        (None, Verdict.SKIP),
    ],
)
def test_a_failed_video_is_tried_again_only_where_the_reason_may_be_gone(
    error_type: str | None, expected: Verdict
) -> None:
    assert verdict(make_video(state="failed", error_type=error_type)) is expected


def test_the_retryable_names_are_names_of_errors() -> None:
    assert all(issubclass(getattr(errors, name), errors.MediaError) for name in _RETRYABLE_ERRORS)


FAILED, QUARANTINED, AGAIN = Outcome(False, "failed"), Outcome(False, "quarantined"), Outcome(True, "queued")


@pytest.mark.parametrize(
    ("error", "first", "last"),
    [
        (errors.UnreadableMedia("u", "c"), FAILED, FAILED),
        (errors.MediaChanged("u", "c"), FAILED, FAILED),
        (errors.MediaFetchError("u", "c"), AGAIN, FAILED),
        (errors.DecoderCrashed("u", "c"), AGAIN, QUARANTINED),
        (errors.DecoderTimeout("u", "c"), AGAIN, QUARANTINED),
        (errors.WorkerLost("gone"), AGAIN, QUARANTINED),
        (errors.StageError("prefill", "c"), FAILED, FAILED),
        (RuntimeError("bug"), FAILED, FAILED),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, Exception) else "",
)
def test_a_failure_is_tried_again_up_to_the_limit(error: Exception, first: Outcome, last: Outcome) -> None:
    failure = StageFailure.from_error(TASK, "decode", error)
    assert after_failure(failure, attempt=1, max_attempts=3) == first
    assert after_failure(failure, attempt=2, max_attempts=3) == first
    assert after_failure(failure, attempt=3, max_attempts=3) == last
    assert after_failure(failure, attempt=1, max_attempts=1) == last


def test_a_failure_keeps_type_and_cause_and_never_an_empty_message() -> None:
    media = StageFailure.from_error(TASK, "fetch", errors.MediaFetchError("s3://b/a.mp4", "no route"))
    assert (media.error_type, media.message, media.uri) == ("MediaFetchError", "no route", TASK.uri)
    assert StageFailure.from_error(TASK, "decode", MemoryError()).message == "MemoryError"
