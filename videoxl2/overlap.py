"""Vision of the next frames beside the language model's work on those before: a schedule of streams.

``run_ahead`` makes items (decoded, resized frames) in a thread of its own while earlier ones are used. ``SideStream``
is vision's own stream on a GPU: the language model's stream waits for an event of it, not the host. ``VisionAhead``
gives prefill the visual tokens that it asks for, group by group, with vision a batch ahead. Without a GPU the same
steps run one after the other.

Shapes: g frame groups of a batch, P visual tokens per group, D text width.
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Generator, Iterable, Iterator
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

import torch
from torch import Tensor

from videoxl2.upload import Cuda, streams_of

Item = TypeVar("Item")

BATCHES_AHEAD = 2
"""Batches of frames that may be decoded, and batches that vision may be, ahead of where they are used."""


@dataclass(frozen=True)
class _Raised:
    problem: BaseException


class _End:
    """After the last item."""


def run_ahead(items: Iterable[Item], depth: int = BATCHES_AHEAD) -> Generator[Item, None, None]:
    """The same items in order, made by a thread of their own, at most ``depth`` of them before they are asked for.

    What making an item raises is raised here, in its place. A caller that stops early closes the iterator, which ends
    the thread after the item it is making.
    """
    made: queue.Queue[Any] = queue.Queue(maxsize=depth)
    stopped = threading.Event()

    def hand_over(item: Any) -> None:
        while not stopped.is_set():
            try:
                made.put(item, timeout=0.1)
                return
            except queue.Full:
                continue

    def make() -> None:
        try:
            for item in items:
                hand_over(item)
                if stopped.is_set():
                    return
            hand_over(_End())
        except BaseException as problem:  # raised where the items are used
            hand_over(_Raised(problem))

    maker = threading.Thread(target=make, name="videoxl2-ahead", daemon=True)
    maker.start()
    try:
        while not isinstance(item := made.get(), _End):
            if isinstance(item, _Raised):
                raise item.problem
            yield item
    finally:
        stopped.set()
        maker.join()


@dataclass(frozen=True, eq=False)
class Queued:
    """A tensor that a side stream makes, and the event after which it is there."""

    tensor: Tensor
    ready: Any


class SideStream:
    """A queue of work beside that of the thread which makes it; it begins after what that thread has queued."""

    def __init__(self, device: torch.device, cuda: Cuda | None = None) -> None:
        self._device, self._cuda = device, cuda or streams_of(device)
        self._stream = self._cuda.new_stream(device)
        begin = self._cuda.mark(device)
        with self._cuda.on(self._stream):  # the caller's stream may still be writing weights, for example
            self._cuda.after(begin, device)

    def queue(self, make: Callable[[], Tensor]) -> Queued:
        """Let ``make`` queue its work here; what it returns is not there yet."""
        with self._cuda.on(self._stream):
            tensor = make()
            return Queued(tensor, self._cuda.mark(self._device))

    def take(self, queued: Queued) -> Tensor:
        """The tensor, for work that the caller queues from here on."""
        self._cuda.after(queued.ready, self._device)
        self._cuda.lend(queued.tensor, self._device)
        return queued.tensor


class VisionAhead(Generic[Item]):
    """Visual tokens [P, D] of each group, asked for in rising order, as ``prefill.VisualTokens``.

    ``batches`` are frames of ``batch_groups`` groups each (the last of fewer), ``encode`` makes tokens [g, P, D] of
    one. Before the first tokens of a batch are handed out, vision of the next is queued, in a stream beside the
    caller's. Not more than ``BATCHES_AHEAD`` batches wait on the device: when the host is further ahead of the device
    than that, it waits here. What has been handed out is let go when the next batch is reached.
    """

    def __init__(
        self,
        batches: Iterator[Item],
        encode: Callable[[Item], Tensor],
        batch_groups: int,
        device: torch.device,
        cuda: Cuda | None = None,
    ) -> None:
        self._batches, self._encode, self._batch_groups, self._device = batches, encode, batch_groups, device
        self._cuda = cuda or streams_of(device)
        self._side = SideStream(device, self._cuda)
        self._num_queued = 0
        self._waiting: dict[int, Queued] = {}
        self._reached: dict[int, Any] = {}
        self._current: tuple[int, Tensor] | None = None

    def __getitem__(self, group: int) -> Tensor:
        """The tokens of a group, for work that the caller queues from here on."""
        batch, place = divmod(group, self._batch_groups)
        if self._current is None or self._current[0] != batch:
            self._current = (batch, self._take(batch))
        return self._current[1][place]

    def _take(self, batch: int) -> Tensor:
        if self._current is not None and batch < self._current[0]:
            raise ValueError("visual tokens that arrive are asked for in rising order")
        while self._num_queued <= batch + 1 and self._queue_next():
            pass
        queued = self._waiting.pop(batch)
        for passed in [number for number in self._waiting if number < batch]:
            del self._waiting[passed]
        self._reached[batch] = self._cuda.mark(self._device)  # all that came before has been queued
        return self._side.take(queued)

    def _queue_next(self) -> bool:
        """Queue vision of one more batch; False where there is none."""
        frames = next(self._batches, None)
        if frames is None:
            return False
        too_far = self._num_queued - BATCHES_AHEAD
        for passed in [number for number in self._reached if number <= too_far]:
            self._cuda.wait(self._reached.pop(passed))
        self._waiting[self._num_queued] = self._side.queue(lambda: self._encode(frames))
        self._num_queued += 1
        return True
