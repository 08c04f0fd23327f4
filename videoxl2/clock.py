"""How long parts of a computation take on the device that does them."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch


class StageClock:
    """Sums the time of stages; on a GPU by events, so that measuring does not make the host wait."""

    def __init__(self, device: torch.device) -> None:
        self._is_cuda = device.type == "cuda"
        self._marks: list[tuple[str, Any, Any]] = []

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        begin = self._mark()
        yield
        self._marks.append((name, begin, self._mark()))

    def seconds(self) -> dict[str, float]:
        """Call after the device has finished."""
        totals: dict[str, float] = {}
        for name, begin, end in self._marks:
            elapsed_s = begin.elapsed_time(end) / 1000 if self._is_cuda else end - begin
            totals[name] = totals.get(name, 0.0) + elapsed_s
        return totals

    def _mark(self) -> Any:
        if not self._is_cuda:
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event
