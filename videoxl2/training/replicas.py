"""Several processes train one model: each takes its own batches, and their gradients are averaged (data parallelism).

Outside a group (``torch.distributed`` not initialised) there is one replica and nothing is exchanged.
"""

from __future__ import annotations

import os
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, distributed, multiprocessing

from videoxl2.training.errors import TrainingError

_END_S = 30.0


@contextmanager
def group(processes: int, target: Callable[..., object], *arguments: Any) -> Iterator[None]:
    """Inside, this process is replica 0 of ``processes``; each of the others runs ``target(*arguments)`` meanwhile.

    ``target`` and its arguments are pickled. All processes share the cores. Raises ``TrainingError`` when another
    replica fails; they end with this one, however it ends.
    """
    if processes == 1:
        yield
        return
    threads = torch.get_num_threads()
    with tempfile.TemporaryDirectory() as folder:
        meeting = f"file://{Path(folder) / 'meeting'}"
        started = multiprocessing.start_processes(
            _replica, (processes, meeting, target, arguments), processes - 1, join=False, start_method="spawn"
        )
        try:
            with _member(0, processes, meeting):
                yield
            if failure := _failure(started):
                raise TrainingError(failure)
        except RuntimeError as broken:  # a connection that another replica no longer holds
            if failure := _failure(started):
                raise TrainingError(failure) from broken
            raise
        finally:
            torch.set_num_threads(threads)
            for process in started.processes:
                process.kill()
                process.join()


def _failure(started: Any) -> str | None:
    """Why another replica did not end well, None where all did; waits for them."""
    deadline = time.monotonic() + _END_S
    try:
        while not started.join(max(0.0, deadline - time.monotonic())):
            if time.monotonic() >= deadline:
                return f"a replica did not end within {_END_S:.0f} s of the others"
    except (multiprocessing.ProcessRaisedException, multiprocessing.ProcessExitedException) as failed:
        return f"a replica failed, and training ended with it: {failed}"
    return None


def _replica(index: int, processes: int, meeting: str, target: Callable[..., object], arguments: Sequence[Any]) -> None:
    with _member(index + 1, processes, meeting):
        target(*arguments)
    # It has nothing to hand over: the end is not left to the threads of the connection, which may abort the process.
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0)


@contextmanager
def _member(number: int, processes: int, meeting: str) -> Iterator[None]:
    torch.set_num_threads(max(1, (os.cpu_count() or 1) // processes))
    backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() and distributed.is_nccl_available() else "gloo"
    distributed.init_process_group(backend, init_method=meeting, rank=number, world_size=processes)
    try:
        yield
        slowest(0.0)  # nobody takes its connections down while another still uses them
    finally:
        distributed.destroy_process_group()


def is_shared() -> bool:
    """Whether this process is one of several replicas."""
    return distributed.is_available() and distributed.is_initialized() and distributed.get_world_size() > 1


def rank() -> int:
    """The number of this replica; 0 writes state, log and validation."""
    return distributed.get_rank() if is_shared() else 0


def count() -> int:
    """How many replicas there are."""
    return distributed.get_world_size() if is_shared() else 1


def batch_number(step: int) -> int:
    """Which batch of the common order this replica takes at a step: no two replicas ever take the same one."""
    return step * count() + rank()


def average(values: Sequence[Tensor]) -> None:
    """Put into each tensor the mean of what the replicas hold there. All tensors have one dtype and device."""
    if not is_shared() or not values:
        return
    flat = torch.cat([value.reshape(-1) for value in values])
    distributed.all_reduce(flat)
    flat /= count()
    for value, mean in zip(values, flat.split([value.numel() for value in values]), strict=True):
        value.copy_(mean.reshape(value.shape))


def average_gradients(parameters: Sequence[torch.nn.Parameter]) -> None:
    """Average the gradients over the replicas; a parameter without one counts as zero."""
    if not is_shared():
        return
    for parameter in parameters:
        if parameter.grad is None:
            parameter.grad = torch.zeros_like(parameter)
    average([parameter.grad for parameter in parameters if parameter.grad is not None])


def slowest(value: float) -> float:
    """The largest of the replicas' values, so that all take one decision where clocks differ."""
    return _reduced(value, distributed.ReduceOp.MAX)


def total(value: float) -> float:
    """The sum of the replicas' values."""
    return _reduced(value, distributed.ReduceOp.SUM)


def _reduced(value: float, how: Any) -> float:
    if not is_shared():
        return value
    held = torch.tensor(value, dtype=torch.float64)
    distributed.all_reduce(held, op=how)
    return float(held)
