"""A worker's failures: the video's own are events, those of the storage end the run."""

from __future__ import annotations

import errno
from concurrent.futures import Future
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from indexers.errors import DiskFull, StoreUnavailable
from pipeline import stages
from pipeline.config import Settings
from pipeline.decode_worker import Probed
from pipeline.errors import MediaFetchError, StageError, StorageFull, UnreadableMedia
from pipeline.recipe import Manifest
from pipeline.stages import VideoIndexer
from pipeline.tasks import StageFailure, VideoProgress
from tests.unit.pipeline.samples import START, tiny_recipe
from tests.unit.pipeline.test_ledger import TASK
from videoxl2.errors import ModelError


class Raises:
    """Raises at one stage."""

    def __init__(self, stage: str, error: Exception) -> None:
        self._stage, self._error = stage, error

    def at(self, stage: str) -> None:
        if stage == self._stage:
            raise self._error


@pytest.fixture
def worker(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """``worker(stage, error)`` runs one video through a worker that fails there; its events."""

    def run(stage: str, error: Exception) -> list[Any]:
        raises = Raises(stage, error)

        @contextmanager
        def fetch(*arguments: object) -> Any:
            raises.at("fetch")
            yield SimpleNamespace(path=tmp_path / "a.mp4")

        def decode(*arguments: object) -> Any:
            names = ("container", "codec", "width", "height", "rotation", "fps")
            yield Probed(summary={**dict.fromkeys(names), "duration_s": 8.0, "creation_time": START.isoformat()})
            raises.at("decode")
            yield batch

        class Builder:
            def __init__(self, **facts: Any) -> None:
                self.task, self.segment_index, self.num_frames, self.end_s = facts["task"], 0, 4, 8.0

            def add(self, batch: object) -> None:
                raises.at("prefill")

            def finish(self) -> Any:
                return SimpleNamespace(task=self.task, write_kv=lambda archive, codec, **_: raises.at("write"))

        batch = object.__new__(stages.FrameBatch)
        for name, value in {"segment_index": 0, "is_segment_end": True, "times_s": [0.0]}.items():
            object.__setattr__(batch, name, value)
        monkeypatch.setattr(stages, "fetch_uri", fetch)
        monkeypatch.setattr(stages, "SegmentBuilder", Builder)
        indexer = VideoIndexer(tmp_path, Manifest(model="tiny", recipe=tiny_recipe()), Settings())
        indexer._models = Future()
        if stage == "load":
            indexer._models.set_exception(error)
        else:
            indexer._models.set_result(SimpleNamespace(model=None, image_encoder=None))  # type: ignore[arg-type]
        indexer._decoder = SimpleNamespace(decode=decode)  # type: ignore[assignment]
        return list(indexer.index(TASK))

    return run


@pytest.mark.parametrize(
    ("stage", "error"),
    [
        ("fetch", MediaFetchError("file:///a.mp4", "no route")),
        ("fetch", OSError(errno.ENOSPC, "no space for the copy")),
        ("decode", UnreadableMedia("file:///a.mp4", "not a video")),
        ("prefill", RuntimeError("a bug")),
    ],
)
def test_a_failure_of_the_video_is_its_last_event_and_names_the_stage(
    worker: Any, stage: str, error: Exception
) -> None:
    failure = worker(stage, error)[-1]
    assert isinstance(failure, StageFailure)
    assert (failure.stage, failure.error_type) == (stage, type(error).__name__)
    assert failure.retryable == getattr(error, "retryable", False)


def test_what_was_found_out_before_the_failure_is_kept(worker: Any) -> None:
    progress, failure = worker("decode", UnreadableMedia("file:///a.mp4", "x"))
    assert isinstance(progress, VideoProgress)
    assert failure.facts["duration_s"] == 8.0
    assert (failure.facts["start_time"], failure.facts["start_time_source"]) == (START, "container")


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (OSError(errno.ENOSPC, "disk full"), StorageFull),
        (DiskFull("/archive", 5, 1), StorageFull),
        (OSError(errno.EIO, "disk broken"), StageError),
        (StoreUnavailable("/archive", "disk broken"), StageError),
    ],
    ids=["OSError, full", "store, full", "OSError", "store"],
)
def test_a_failure_to_write_ends_the_run_and_blames_no_video(
    worker: Any, error: Exception, expected: type[Exception]
) -> None:
    """A full disk marked video after video as failed, and a failed one is not tried again."""
    words = "disk is full" if expected is StorageFull else "disk broken"
    with pytest.raises(expected, match=f"cannot write to the archive.*{words}"):
        worker("write", error)


def test_a_model_that_cannot_be_loaded_ends_the_run_and_blames_no_video(worker: Any) -> None:
    with pytest.raises(ModelError, match="no weights"):
        worker("load", ModelError("no weights"))
