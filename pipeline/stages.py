"""The stages of indexing one video, run by one worker: fetch, decode, encode and prefill, stage.

A worker owns a model and a decoding process. For every segment it writes the dense KV file to its final place, then
stages the segment's rows; both are durable before the event that announces them. It never touches the tables: one
committer does (``ingest``). Frames and KV stay inside the worker.
"""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING, Any

from indexers.disk import unavailable
from indexers.errors import DiskFull, StoreUnavailable
from indexers.folder import Place, as_folder
from indexers.staging import write_staged
from indexers.sweep import STAGING_FOLDER
from pipeline.config import Settings
from pipeline.decode_worker import DecodeRequest, DecodeWorker, Finished, FrameBatch, Probed
from pipeline.errors import ArchiveError, MediaError, ModelMismatch, StageError, StorageFull
from pipeline.media import fetch_uri, scratch_folder
from pipeline.recipe import Manifest, Recipe, require_checkpoint
from pipeline.segment import SegmentBuilder
from pipeline.tasks import SegmentStaged, StageFailure, VideoDone, VideoProgress, VideoTask, WorkerEvent
from pipeline.tiers import write_segment

if TYPE_CHECKING:
    from videoxl2.dual_encoder import ImageEncoder
    from videoxl2.model import VideoXL2

logger = logging.getLogger(__name__)

_PROGRESS_EVERY_S = 0.5
_ROOM_WAIT_S = 30.0
"""How long a worker beside the committer waits for it to make room under the byte cap."""


@dataclass(frozen=True, slots=True)
class Models:
    """What a worker computes with."""

    model: VideoXL2
    image_encoder: ImageEncoder


class VideoIndexer:
    """One worker. The constructor stores plain values; ``setup`` starts what it needs where the work is done."""

    def __init__(self, archive: Place, manifest: Manifest, settings: Settings) -> None:
        self._archive = as_folder(archive)
        self._manifest = manifest
        self._settings = settings
        self._models: Future[Models] | None = None
        self._decoder: DecodeWorker | None = None

    def setup(self) -> None:
        """Start the decoding process, and loading the model beside it: the first video decodes meanwhile."""
        self._decoder = DecodeWorker(self._settings.decode)
        loader = ThreadPoolExecutor(1, thread_name_prefix="vxl-load")
        self._models = loader.submit(load_models, self._manifest, self._settings)
        loader.shutdown(wait=False)

    def wait_until_ready(self) -> None:
        """Wait for the model. Raises ``ModelError`` or ``StageError`` when it cannot be loaded."""
        assert self._models is not None
        self._models.result()

    def teardown(self) -> None:
        """End the decoding process; safe after a half-done ``setup``."""
        if self._decoder is not None:
            self._decoder.close()
        self._decoder = self._models = None

    def index(self, task: VideoTask) -> Iterator[WorkerEvent]:
        """Events of one attempt, ending with ``VideoDone`` or ``StageFailure``.

        Only a failure to write to the archive (``StorageFull``, or storage gone) or to load the model raises: that is
        no fault of the video and ends the run.
        """
        facts: dict[str, Any] = {}
        stage = _Stage("fetch")
        try:
            yield from self._index(task, facts, stage)
        except StageError:
            raise
        except _LoadFailedError as exc:
            raise exc.error from exc
        except (OSError, StoreUnavailable) as exc:
            if stage.name == "write":
                raise self._write_error(exc) from exc
            yield StageFailure.from_error(task, stage.name, exc, facts)
        except Exception as exc:  # a video that breaks the model's code must not stop the others
            if not isinstance(exc, ArchiveError):
                logger.exception("stage %s failed on %r", stage.name, task.uri)
            yield StageFailure.from_error(task, stage.name, exc, facts)

    def _index(self, task: VideoTask, facts: dict[str, Any], stage: _Stage) -> Iterator[WorkerEvent]:
        assert self._decoder is not None
        recipe = self._manifest.recipe
        # A resumed video is decoded from its start, so that what is found out about it does not depend on the crash.
        request = decode_request(recipe)
        builder: SegmentBuilder | None = None
        num_segments = task.first_segment
        last_progress = 0.0
        with (
            scratch_folder(task.uri, "vxl-fetch-") as scratch,
            fetch_uri(task.uri, task.etag, self._settings.s3, scratch) as media,
        ):
            stage.name = "decode"
            for event in self._decoder.decode(str(media.path), task.uri, request):
                match event:
                    case Probed():
                        facts.update(_probed_facts(task, event.summary))
                        yield VideoProgress(video_id=task.video_id, decoded_s=0.0, duration_s=facts["duration_s"])
                    case FrameBatch() if event.segment_index < task.first_segment:
                        continue
                    case FrameBatch():
                        stage.name = "prefill"
                        if builder is None:
                            models = self._loaded()
                            builder = SegmentBuilder(
                                model=models.model,
                                image_encoder=models.image_encoder,
                                recipe=recipe,
                                task=task,
                                facts=facts,
                                segment_index=event.segment_index,
                            )
                        builder.add(event)
                        if event.is_segment_end:
                            yield self._stage_segment(builder, stage)
                            num_segments, builder = builder.segment_index + 1, None
                        elif time.monotonic() - last_progress > _PROGRESS_EVERY_S:
                            last_progress = time.monotonic()
                            yield VideoProgress(
                                video_id=task.video_id, decoded_s=event.times_s[-1], duration_s=facts["duration_s"]
                            )
                        stage.name = "decode"
                    case Finished():
                        facts.update(
                            backend=event.backend,
                            decode_verdict=event.verdict,
                            bad_packets=event.bad_packets,
                            damage=event.damage,
                        )
        if num_segments == 0:
            raise MediaError(task.uri, "decoding gave no frame")
        yield VideoDone(video_id=task.video_id, num_segments=num_segments, facts=facts)

    def _write_error(self, error: OSError | StoreUnavailable) -> ArchiveError:
        found = unavailable(self._archive, "", error) if isinstance(error, OSError) else error
        if isinstance(found, DiskFull):
            return StorageFull(found.where, found.cause)
        return StageError("write", f"cannot write to the archive: {error}")

    def _loaded(self) -> Models:
        assert self._models is not None
        try:
            return self._models.result()
        except Exception as exc:
            raise _LoadFailedError(exc) from exc

    def _stage_segment(self, builder: SegmentBuilder, stage: _Stage) -> SegmentStaged:
        segment = builder.finish()
        stage.name = "write"
        wait_s = 0.0 if self._settings.runner.kind == "local" else _ROOM_WAIT_S
        rows = write_segment(self._archive, segment, self._settings.ingest.codec, self._settings.storage, wait_s)
        path = write_staged(STAGING_FOLDER, rows, self._archive)
        return SegmentStaged(
            video_id=builder.task.video_id,
            segment_index=builder.segment_index,
            staged_path=str(path),
            num_chunks=rows.chunks.num_rows,
            num_frames=builder.num_frames,
            prefill_s=segment.prefill_s,
            until_s=builder.end_s,
        )


class _Stage:
    """The name of the stage that is running, for the failure record."""

    def __init__(self, name: str) -> None:
        self.name = name


class _LoadFailedError(Exception):
    """The model could not be loaded; carries the error out of the handling of a video's own failures."""

    def __init__(self, error: Exception) -> None:
        super().__init__(str(error))
        self.error = error


def load_models(manifest: Manifest, settings: Settings) -> Models:
    """The archive's model and image encoder on the worker's device.

    Raises ``ModelError``, or ``StageError`` where the checkpoint is not the one that the run was started with.
    """
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # idle torch threads must not spin beside the decoder
    import torch

    from videoxl2.dual_encoder import ImageEncoder
    from videoxl2.model import VideoXL2

    if settings.runner.torch_threads:
        torch.set_num_threads(settings.runner.torch_threads)
    recipe, name = manifest.recipe, manifest.model
    dtype = getattr(torch, recipe.dtype)
    model = VideoXL2.from_pretrained(name, device=settings.device, dtype=dtype)
    try:
        require_checkpoint(manifest, model.info, "of this run")
    except ModelMismatch as exc:
        raise StageError("setup", f"model {name!r} is another here than where the run was started: {exc}") from exc
    image_encoder = ImageEncoder.from_pretrained(name, device=settings.device, dtype=dtype)
    if image_encoder.image_size != recipe.embed_image_size:
        raise StageError(
            "setup", f"the image encoder takes {image_encoder.image_size} px, not {recipe.embed_image_size}"
        )
    return Models(model, image_encoder)


def decode_request(recipe: Recipe, *, first_segment: int = 0) -> DecodeRequest:
    """What the decoding process is asked for under a recipe."""
    return DecodeRequest(
        fps=recipe.fps,
        image_size=recipe.image_size,
        embed_image_size=recipe.embed_image_size,
        segment_s=recipe.segment_s,
        first_segment=first_segment,
        frames_per_group=recipe.frames_per_group,
    )


def _probed_facts(task: VideoTask, summary: dict[str, Any]) -> dict[str, Any]:
    """Columns of the ``videos`` row from the probe; the start is the key's, else the container's, else unknown."""
    facts = {name: summary[name] for name in ("container", "codec", "width", "height", "rotation", "duration_s", "fps")}
    created = summary["creation_time"]
    if task.start_time is not None:
        return {**facts, "start_time": task.start_time, "start_time_source": "key"}
    if created is not None:
        return {**facts, "start_time": datetime.fromisoformat(created), "start_time_source": "container"}
    return {**facts, "start_time": None, "start_time_source": "unknown"}
