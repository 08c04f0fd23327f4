"""A stand-in for a GPU's streams, for tests of who waits for whom."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from videoxl2.upload import OneQueue

Step = tuple[str, Any]


class FakeStreams(OneQueue):
    """Work given to a side stream is done when the main stream is told to come after its event, not before.

    ``log`` holds what happened in which order; events of the main stream are numbered by ``("used", n)``.
    """

    def __init__(self) -> None:
        self.log: list[Step] = []
        self.side: Any = None
        self.unfinished: dict[Any, tuple[Tensor, Tensor]] = {}
        self.num_marks = 0

    def new_stream(self, device: torch.device) -> Any:
        return "side"

    @contextlib.contextmanager
    def on(self, stream: Any) -> Iterator[None]:
        self.side, before = stream, self.side
        yield
        self.side = before

    def deferred(self, name: Any, value: Tensor) -> Tensor:
        """A tensor that gets its value when its event is waited for."""
        assert self.side == "side", "vision belongs to its own stream"
        place = torch.full_like(value, float("nan"))
        self.unfinished["next"] = (place, value)
        self.log.append(("vision", name))
        return place

    def mark(self, device: torch.device) -> Any:
        self.num_marks += 1
        if self.side:
            self.unfinished[self.num_marks] = self.unfinished.pop("next")
        else:
            self.log.append(("used", self.num_marks))
        return self.num_marks

    def after(self, event: Any, device: torch.device) -> None:
        if event in self.unfinished:
            assert self.side is None
            place, value = self.unfinished.pop(event)
            place.copy_(value)

    def lend(self, tensor: Tensor, device: torch.device) -> None:
        assert self.side is None and not tensor.isnan().any(), "lent to the main stream after its event"
        self.log.append(("lend", tuple(tensor.shape)))

    def wait(self, event: Any) -> None:
        self.log.append(("host waits", event))
