"""Pictures on their way to a GPU, with a stand-in for the GPU that copies only when somebody waits."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor

from videoxl2.preprocess import frames_to_pixels
from videoxl2.upload import Cuda, FrameUploads, put, put_numbers

CPU = torch.device("cpu")


class FakeCuda(Cuda):
    """Copies are made when the main stream is told to come after them; ``log`` says what happened in which order."""

    def __init__(self) -> None:
        self.log: list[tuple[str, Any]] = []
        self.stream: Any = None
        self.copies: list[tuple[Tensor, Tensor]] = []
        self.num_events = 0

    def pinned(self, num_bytes: int) -> Tensor:
        self.log.append(("pinned", num_bytes))
        return torch.empty(num_bytes, dtype=torch.uint8)

    def new_stream(self, device: torch.device) -> Any:
        return object()

    @contextlib.contextmanager
    def on(self, stream: Any) -> Iterator[None]:
        self.stream = stream
        yield
        self.stream = None

    def upload(self, raw_B: Tensor, device: torch.device) -> Tensor:
        assert self.stream is not None, "an upload in the model's own stream would come after its work"
        self.copies.append((torch.zeros_like(raw_B), raw_B))
        self.log.append(("fill", raw_B.data_ptr()))
        return self.copies[-1][0]

    def lend(self, tensor: Tensor, device: torch.device) -> None:
        assert self.stream is None
        self.log.append(("lend", tensor.data_ptr()))

    def mark(self, device: torch.device) -> Any:
        self.num_events += 1
        if self.stream is None:
            self.log.append(("used", self.num_events))
        return self.num_events

    def after(self, event: Any, device: torch.device) -> None:
        assert self.stream is None
        for target, source in self.copies:
            target.copy_(source)
        self.copies.clear()

    def wait(self, event: Any) -> None:
        self.log.append(("wait", event))


def test_a_buffer_is_filled_again_when_its_last_batch_has_been_used() -> None:
    cuda = FakeCuda()
    uploads = FrameUploads(CPU, cuda)
    frames = torch.arange(24, dtype=torch.uint8).view(2, 2, 2, 3)
    brought: list[Tensor] = []
    for turn in range(4):
        batch = frames + turn
        brought.append(uploads.bring(batch))
        batch.zero_()
    for turn, found in enumerate(brought):
        assert torch.equal(found, frames + turn), "what a caller holds stays what it was"
    pointers = [value for what, value in cuda.log if what == "fill"]
    assert pointers[:2] == pointers[2:] and pointers[0] != pointers[1]
    steps = [what for what, _ in cuda.log]
    first, second, third = (
        ["pinned", "fill", "lend"],
        ["used", "pinned", "fill", "lend"],
        ["used", "wait", "fill", "lend"],
    )
    assert steps == [*first, *second, *third, *third]
    used = [event for what, event in cuda.log if what == "used"]
    waited = [event for what, event in cuda.log if what == "wait"]
    assert waited == used[:2], "batch 2 waits for the use of batch 0, batch 3 for that of batch 1"


def test_a_larger_batch_gets_a_larger_buffer() -> None:
    cuda = FakeCuda()
    uploads = FrameUploads(CPU, cuda)
    for count in (1, 1, 3, 2):
        assert torch.equal(
            uploads.bring(torch.full((count, 2, 2, 3), count, dtype=torch.uint8)).unique(), torch.tensor([count])
        )
    assert [size for what, size in cuda.log if what == "pinned"] == [12, 12, 36, 24]


def test_pixels_are_the_same_whichever_way_they_went() -> None:
    frames = np.random.default_rng(0).integers(0, 256, (3, 9, 7, 3), dtype=np.uint8)
    expected = frames_to_pixels(frames, 16)
    for uploads in (FrameUploads(CPU), FrameUploads(CPU, FakeCuda())):
        assert torch.equal(frames_to_pixels(frames, 16, uploads.bring), expected)


def test_small_things_arrive() -> None:
    assert put_numbers([3, 1], CPU).tolist() == [3, 1] and put_numbers([], CPU).dtype == torch.long
    held = torch.ones(2)
    assert put(held, CPU) is held


def test_pinned_pictures_are_uploaded_from_where_they_lie() -> None:
    class Pinned(FakeCuda):
        def is_pinned(self, tensor: Tensor) -> bool:
            return True

    cuda = Pinned()
    frames = torch.arange(12, dtype=torch.uint8).view(1, 2, 2, 3)
    assert torch.equal(FrameUploads(CPU, cuda).bring(frames), frames)
    assert cuda.log[0] == ("fill", frames.data_ptr()) and not [what for what, _ in cuda.log if what == "pinned"]
