"""Where stages run: in this process, or in Ray actors. Same stages, same events; the only file that knows Ray.

A runner takes video tasks and gives worker events. It decides nothing about retries: a lost worker becomes a
``StageFailure`` like any other and ingestion decides. Ray details that cost others dearly are fixed here: requests are
checked against the cluster before they are made (an impossible one waits for ever), every wait has a time limit, an
actor holds one task at a time (a crash fails all that are queued), and Ray itself never retries.
"""

from __future__ import annotations

import logging
import os
import time
import warnings
from collections import deque
from collections.abc import Iterator
from typing import Any, Protocol

from indexers.folder import Folder
from pipeline.address import open_folder
from pipeline.config import RunnerSettings, Settings
from pipeline.errors import ArchiveError, ConfigError, StageError, WorkerLost
from pipeline.recipe import Manifest
from pipeline.stages import VideoIndexer
from pipeline.tasks import StageFailure, VideoTask, WorkerEvent

logger = logging.getLogger(__name__)

_WAIT_SLICE_S = 5.0
_FETCH_TIMEOUT_S = 60.0
_RESTART_PAUSE_S = 0.2


class Runner(Protocol):
    """Runs video tasks and hands back their events, in order per video."""

    def start(self) -> None:
        """Bring workers up. Raises ``ConfigError`` for resources that do not exist, ``ModelError`` for a bad model."""

    def submit(self, task: VideoTask) -> None:
        """Queue a task."""

    def next_event(self) -> WorkerEvent | None:
        """The next event of any task; ``None`` when every submitted task has ended."""

    def close(self) -> None:
        """Stop workers, finished or not."""


class SequentialRunner:
    """One worker in this process. Decoding still runs in its own, killable, process."""

    def __init__(self, indexer: VideoIndexer) -> None:
        self._indexer = indexer
        self._queue: deque[VideoTask] = deque()
        self._events: Iterator[WorkerEvent] | None = None

    def start(self) -> None:
        self._indexer.setup()

    def submit(self, task: VideoTask) -> None:
        self._queue.append(task)

    def next_event(self) -> WorkerEvent | None:
        while True:
            if self._events is None:
                if not self._queue:
                    return None
                self._events = self._indexer.index(self._queue.popleft())
            event = next(self._events, None)
            if event is not None:
                return event
            self._events = None

    def close(self) -> None:
        self._events = None
        self._indexer.teardown()


class _RayWorker:
    """The class behind a Ray actor: a ``VideoIndexer`` and nothing else."""

    def __init__(self, archive: str, manifest: dict[str, Any], settings: dict[str, Any]) -> None:
        loaded = Settings.model_validate(settings)
        self._indexer = VideoIndexer(open_folder(archive, loaded.s3), Manifest.model_validate(manifest), loaded)
        self._is_ready = False

    def ready(self) -> int:
        """Load the model if that has not happened; the process id."""
        if not self._is_ready:
            self._indexer.setup()
            self._indexer.wait_until_ready()
            self._is_ready = True
        return os.getpid()

    def index(self, task: VideoTask) -> Iterator[WorkerEvent]:
        self.ready()
        yield from self._indexer.index(task)


class RayRunner:
    """Ray actors, pinned to GPUs where the settings or the cluster say so."""

    def __init__(self, archive: Folder, manifest: Manifest, settings: Settings) -> None:
        self._settings = settings.runner
        self._arguments = (archive.address(), manifest.model_dump(mode="json"), settings.model_dump(mode="json"))
        self._queue: deque[VideoTask] = deque()
        self._idle: list[Any] = []
        self._running: dict[Any, tuple[Any, VideoTask, float]] = {}
        self._owns_ray = False

    def start(self) -> None:
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
        os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
        try:
            import ray
        except ImportError as exc:
            raise ConfigError("the ray runner needs the package 'ray': pip install 'ray>=2.50'") from exc

        if not ray.is_initialized():
            # "local": without an address Ray joins whatever cluster it finds on this machine.
            local = {
                "address": "local",
                "num_cpus": max(os.cpu_count() or 1, 2),
                "include_dashboard": False,
                "object_store_memory": 2**28,
            }
            options = {"address": self._settings.ray_address} if self._settings.ray_address else local
            try:
                with warnings.catch_warnings():
                    # Ray forks only to start its own programs at once; the tables' library warns of any fork.
                    warnings.filterwarnings("ignore", message="lancedb fork support", category=RuntimeWarning)
                    ray.init(log_to_driver=False, logging_level=logging.ERROR, **options)
            except ConnectionError as exc:
                raise ConfigError(f"no Ray cluster at {self._settings.ray_address!r}: {exc}") from exc
            self._owns_ray = True
        resources = actor_resources(self._settings, ray.cluster_resources())
        logger.info("starting %d ray actors with %s", self._settings.workers, resources)
        actor_class = ray.remote(**resources)(_RayWorker)
        actors = [actor_class.remote(*self._arguments) for _ in range(self._settings.workers)]
        self._await_ready(actors)
        self._idle = actors

    def _await_ready(self, actors: list[Any]) -> None:
        """Wait until every actor has loaded its model; one that dies meanwhile is started again by Ray.

        Raises the worker's own error for a model that cannot be loaded, ``StageError`` when time runs out.
        """
        import ray

        deadline = time.monotonic() + self._settings.start_timeout_s
        pending = [(actor, actor.ready.remote()) for actor in actors]
        while pending:
            actor, reference = pending.pop()
            try:
                ray.get(reference, timeout=max(deadline - time.monotonic(), 1.0))
            except ray.exceptions.GetTimeoutError as exc:
                raise StageError("start", f"a worker was not ready in {self._settings.start_timeout_s:g} s") from exc
            except ray.exceptions.RayTaskError as exc:
                raise exc.cause if isinstance(exc.cause, Exception) else StageError("start", str(exc)) from exc
            except ray.exceptions.ActorDiedError as exc:
                raise StageError("start", f"a worker cannot be started again: {exc}") from exc
            except ray.exceptions.RayActorError as exc:
                if time.monotonic() > deadline:
                    raise StageError("start", f"a worker died while it loaded the model: {exc}") from exc
                time.sleep(_RESTART_PAUSE_S)
                pending.append((actor, actor.ready.remote()))

    def submit(self, task: VideoTask) -> None:
        self._queue.append(task)

    def next_event(self) -> WorkerEvent | None:
        import ray

        while True:
            while self._idle and self._queue:
                actor, task = self._idle.pop(), self._queue.popleft()
                stream = actor.index.options(num_returns="streaming").remote(task)
                self._running[stream] = (actor, task, time.monotonic())
            if not self._running:
                return None
            ready, _ = ray.wait(list(self._running), num_returns=1, timeout=_WAIT_SLICE_S)
            event = self._take(ready[0]) if ready else self._expire_silent()
            if event is not None:
                return event

    def _take(self, stream: Any) -> WorkerEvent | None:
        """The next event of a stream that is ready, or ``None`` at its end."""
        import ray

        actor, task, _ = self._running.pop(stream)
        try:
            event = ray.get(next(stream), timeout=_FETCH_TIMEOUT_S)
        except StopIteration:
            self._idle.append(actor)
            return None
        except ray.exceptions.RayTaskError as exc:
            self._idle.append(actor)
            if isinstance(exc.cause, ArchiveError):
                raise exc.cause from exc
            raise StageError("worker", str(exc.cause or exc)) from exc
        except (ray.exceptions.RayActorError, ray.exceptions.GetTimeoutError, ray.exceptions.ObjectLostError) as exc:
            return self._lost(actor, task, f"the worker process died ({type(exc).__name__})")
        self._running[stream] = (actor, task, time.monotonic())
        return event

    def _expire_silent(self) -> WorkerEvent | None:
        """Replace the first actor that has given no sign for too long."""
        import ray

        for stream, (actor, task, last) in list(self._running.items()):
            if time.monotonic() - last > self._settings.silence_timeout_s:
                del self._running[stream]
                ray.kill(actor, no_restart=False)
                return self._lost(actor, task, f"the worker gave no sign for {self._settings.silence_timeout_s:g} s")
        return None

    def _lost(self, actor: Any, task: VideoTask, cause: str) -> StageFailure:
        """Wait for Ray to restart the actor, then report the task that was lost with it."""
        self._await_ready([actor])
        self._idle.append(actor)
        return StageFailure.from_error(task, "worker", WorkerLost(f"{cause} while it indexed {task.uri!r}"))

    def close(self) -> None:
        try:
            import ray
        except ImportError:
            return
        if not ray.is_initialized():
            return
        for actor in [*self._idle, *(running[0] for running in self._running.values())]:
            ray.kill(actor, no_restart=True)
        self._idle, self._running = [], {}
        if self._owns_ray:
            ray.shutdown()


def actor_resources(settings: RunnerSettings, cluster: dict[str, float]) -> dict[str, Any]:
    """Options of one actor, checked against what the cluster has for all of them together.

    Raises ``ConfigError`` naming the resource, how much is asked for and how much there is.
    """
    has_gpu = cluster.get("GPU", 0.0) > 0
    num_gpus = settings.num_gpus if settings.num_gpus is not None else (1.0 if has_gpu else 0.0)
    if settings.accelerator_type and num_gpus == 0:
        raise ConfigError(
            f"accelerator_type={settings.accelerator_type!r} pins nothing without a GPU: set num_gpus, "
            f"or run where the cluster has GPUs (it has {cluster.get('GPU', 0):g})"
        )
    wanted = {"CPU": settings.num_cpus * settings.workers, "GPU": num_gpus * settings.workers}
    for name, amount in wanted.items():
        if amount > cluster.get(name, 0.0) + 1e-9:
            raise ConfigError(
                f"{settings.workers} workers ask for {amount:g} {name}, the Ray cluster has {cluster.get(name, 0):g}; "
                "lower --workers or the share per worker, or add nodes"
            )
    if settings.accelerator_type and f"accelerator_type:{settings.accelerator_type}" not in cluster:
        present = sorted(name.split(":", 1)[1] for name in cluster if name.startswith("accelerator_type:"))
        raise ConfigError(
            f"the Ray cluster has no {settings.accelerator_type!r}; it has {present or 'no accelerators'}"
        )
    options: dict[str, Any] = {
        "num_cpus": settings.num_cpus,
        "num_gpus": num_gpus,
        "max_restarts": -1,
        "max_task_retries": 0,
        "max_concurrency": 1,
    }
    if settings.accelerator_type:
        options["accelerator_type"] = settings.accelerator_type
    return options


def make_runner(archive: Folder, manifest: Manifest, settings: Settings) -> Runner:
    """The runner that ``settings.runner.kind`` names."""
    if settings.runner.kind == "ray":
        return RayRunner(archive, manifest, settings)
    return SequentialRunner(VideoIndexer(archive, manifest, settings))
