"""From main memory to the device that uses the bytes: pinned memory, uploads beside other work, no waiting host.

``put`` is for what is small, ``FrameUploads`` for the pictures of a video, ``Uploads`` for files.

One ``Uploads`` belongs to one reading thread. On a GPU its buffers are pinned and used in turn: while one is uploaded,
by a stream of its own, the next is read into. A buffer is given out again only when its upload has ended. On the CPU
there is one buffer and nothing to upload.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any, Protocol

import torch
from torch import Tensor

_NUM_PINNED = 2
"""Pinned buffers per reading thread: one is filled while the other is uploaded."""

Place = Callable[[Tensor], None]
"""What is done with the bytes (uint8, flat) on the device: they are of no use to it afterwards."""


def put(tensor: Tensor, device: torch.device) -> Tensor:
    """The tensor on the device; on a GPU what comes from main memory is queued, and the host does not wait for it.

    Pinned memory is torch's to keep until the copy has been made, so nothing has to be held.
    """
    if device.type == "cuda" and tensor.device.type == "cpu":
        return tensor.pin_memory().to(device, non_blocking=True)
    return tensor.to(device)


def put_numbers(numbers: Sequence[int], device: torch.device) -> Tensor:
    """Whole numbers (token ids, positions) as a tensor on the device, without waiting; see ``put``."""
    return put(torch.tensor(numbers, dtype=torch.long), device)


class Arrival(Protocol):
    """Work that a device was given."""

    def join(self) -> None:
        """Make the calling thread's later work on the device come after it."""

    def finish(self) -> None:
        """Return when it has ended."""


class Uploads(Protocol):
    """Buffers, and the way from them to one device."""

    def buffer(self, num_bytes: int) -> Tensor:
        """A uint8 tensor [num_bytes] in main memory, to be filled and delivered; the next call ends its life."""

    def deliver(self, raw_B: Tensor, place: Place) -> Arrival | None:
        """Bring the bytes to the device and call ``place`` with them there; None where nothing is left to wait for."""


class HostUploads:
    """The device is the CPU: bytes are used where they were read to, one buffer for all of them."""

    def __init__(self) -> None:
        self._buffer_B = torch.empty(0, dtype=torch.uint8)

    def buffer(self, num_bytes: int) -> Tensor:
        if num_bytes > self._buffer_B.numel():
            self._buffer_B = torch.empty(num_bytes, dtype=torch.uint8)
        return self._buffer_B[:num_bytes]

    def deliver(self, raw_B: Tensor, place: Place) -> Arrival | None:
        place(raw_B)
        return None


class Cuda:
    """The calls to CUDA that uploads are made of, in one place so that a test can stand in for a GPU."""

    def pinned(self, num_bytes: int) -> Tensor:
        """Page-locked main memory, uint8 [num_bytes]."""
        return torch.empty(num_bytes, dtype=torch.uint8, pin_memory=True)

    def pin(self, tensor: Tensor) -> Tensor:
        """What lies in main memory as a copy in page-locked memory, which is torch's to keep until its uploads end."""
        return tensor.pin_memory() if tensor.device.type == "cpu" else tensor

    def is_pinned(self, tensor: Tensor) -> bool:
        """Whether the tensor can be uploaded as it lies."""
        return tensor.is_pinned()

    def new_stream(self, device: torch.device) -> Any:
        """A queue of work that runs beside others."""
        return torch.cuda.Stream(device)

    def on(self, stream: Any) -> AbstractContextManager[Any]:
        """Work of this thread goes into ``stream`` within the context."""
        context: AbstractContextManager[Any] = torch.cuda.stream(stream)
        return context

    def upload(self, raw_B: Tensor, device: torch.device) -> Tensor:
        """A copy on the device, queued and not waited for."""
        return raw_B.to(device, non_blocking=True)

    def lend(self, tensor: Tensor, device: torch.device) -> None:
        """Memory of another stream is used by this thread's: it is given out again only when this use has ended."""
        tensor.record_stream(torch.cuda.current_stream(device))

    def mark(self, device: torch.device) -> Any:
        """An event at the end of what this thread has queued so far."""
        event = torch.cuda.Event()
        event.record(torch.cuda.current_stream(device))
        return event

    def after(self, event: Any, device: torch.device) -> None:
        """Work that this thread queues from here on comes after the event."""
        torch.cuda.current_stream(device).wait_event(event)

    def wait(self, event: Any) -> None:
        """Return when the event has been reached."""
        event.synchronize()


class OneQueue(Cuda):
    """No GPU: there is one queue of work, and everything in it has ended when its call returns."""

    def pinned(self, num_bytes: int) -> Tensor:
        return torch.empty(num_bytes, dtype=torch.uint8)

    def pin(self, tensor: Tensor) -> Tensor:
        return tensor

    def new_stream(self, device: torch.device) -> Any:
        return None

    def on(self, stream: Any) -> AbstractContextManager[Any]:
        return nullcontext()

    def upload(self, raw_B: Tensor, device: torch.device) -> Tensor:
        return raw_B.to(device)

    def lend(self, tensor: Tensor, device: torch.device) -> None:
        pass

    def mark(self, device: torch.device) -> Any:
        return None

    def after(self, event: Any, device: torch.device) -> None:
        pass

    def wait(self, event: Any) -> None:
        pass


def streams_of(device: torch.device) -> Cuda:
    """CUDA's streams for a GPU, one queue for any other device."""
    return Cuda() if device.type == "cuda" else OneQueue()


class CudaArrival:
    """An upload and what was done with its bytes, queued in a stream of its own."""

    def __init__(self, cuda: Cuda, event: Any, device: torch.device) -> None:
        self._cuda, self._event, self._device = cuda, event, device

    def join(self) -> None:
        self._cuda.after(self._event, self._device)

    def finish(self) -> None:
        self._cuda.wait(self._event)


class CudaUploads:
    """Pinned buffers used in turn, and a stream that uploads them and expands them on the device.

    ``ready`` is an event of the thread that owns the destination: before it, the memory may still be in use.
    """

    def __init__(self, device: torch.device, ready: Any, cuda: Cuda) -> None:
        self._device = device
        self._cuda = cuda
        self._stream = cuda.new_stream(device)
        self._buffers: list[Tensor | None] = [None] * _NUM_PINNED
        self._arrivals: list[CudaArrival | None] = [None] * _NUM_PINNED
        self._turn = _NUM_PINNED - 1
        with cuda.on(self._stream):
            cuda.after(ready, device)

    def buffer(self, num_bytes: int) -> Tensor:
        self._turn = (self._turn + 1) % _NUM_PINNED
        arrival, found = self._arrivals[self._turn], self._buffers[self._turn]
        if arrival is not None:
            arrival.finish()
            self._arrivals[self._turn] = None
        if found is None or found.numel() < num_bytes:
            found = self._cuda.pinned(num_bytes)
            self._buffers[self._turn] = found
        return found[:num_bytes]

    def deliver(self, raw_B: Tensor, place: Place) -> Arrival:
        with self._cuda.on(self._stream):
            place(self._cuda.upload(raw_B, self._device))
            arrival = CudaArrival(self._cuda, self._cuda.mark(self._device), self._device)
        self._arrivals[self._turn] = arrival
        return arrival


class FrameUploads:
    """Batches of pictures on their way to the model: while it works on one, the next is uploaded by a stream beside it.

    There are two pinned buffers, used in turn. Before one is filled again the work on its last batch must have ended,
    so that a host that decodes faster than the model computes waits here, and memory does not grow. It belongs to one
    thread. Without a GPU there is nothing to do.
    """

    def __init__(self, device: torch.device, cuda: Cuda | None = None) -> None:
        self._device = device
        self._cuda = cuda if cuda is not None or device.type != "cuda" else Cuda()
        self._stream = None if self._cuda is None else self._cuda.new_stream(device)
        self._buffers: list[Tensor | None] = [None] * _NUM_PINNED
        self._used: list[Any] = [None] * _NUM_PINNED
        self._turn: int | None = None

    def bring(self, frames_u8: Tensor) -> Tensor:
        """The bytes on the device, for work that this thread queues from here on; the caller's may change at once."""
        if self._cuda is None or frames_u8.device.type != "cpu":  # nothing to upload
            return frames_u8.to(self._device)
        if self._cuda.is_pinned(frames_u8):
            return self._send(frames_u8.reshape(-1)).view(frames_u8.shape)
        if self._turn is not None:  # everything queued until now may look at the batch before
            self._used[self._turn] = self._cuda.mark(self._device)
        self._turn = 0 if self._turn is None else (self._turn + 1) % _NUM_PINNED
        if self._used[self._turn] is not None:
            self._cuda.wait(self._used[self._turn])
        buffer, num_bytes = self._buffers[self._turn], frames_u8.numel()
        if buffer is None or buffer.numel() < num_bytes:
            buffer = self._buffers[self._turn] = self._cuda.pinned(num_bytes)
        raw_B = buffer[:num_bytes]
        raw_B.copy_(frames_u8.reshape(-1))
        return self._send(raw_B).view(frames_u8.shape)

    def _send(self, raw_B: Tensor) -> Tensor:
        assert self._cuda is not None
        with self._cuda.on(self._stream):
            on_device_B = self._cuda.upload(raw_B, self._device)
            arrived = self._cuda.mark(self._device)
        self._cuda.after(arrived, self._device)
        self._cuda.lend(on_device_B, self._device)
        return on_device_B
