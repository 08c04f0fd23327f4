"""Vision a batch ahead of the language model: order, waiting and bounds, with a stand-in for a GPU's streams."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch

from tests.unit.videoxl2.fake_streams import FakeStreams
from videoxl2 import chat, overlap
from videoxl2.config import PrefillSettings
from videoxl2.errors import ContextOverflow
from videoxl2.model import VideoXL2
from videoxl2.overlap import VisionAhead, run_ahead

CPU = torch.device("cpu")


def test_vision_is_a_batch_ahead_and_bounded() -> None:
    streams = FakeStreams()
    values = torch.arange(11.0)[:, None, None].expand(11, 2, 3)
    batches = iter([values[first : first + 2] for first in range(0, 11, 2)])
    numbers = iter(range(6))
    tokens = VisionAhead(batches, lambda batch: streams.deferred(next(numbers), batch), 2, CPU, streams)
    for group in range(11):
        assert torch.equal(tokens[group], values[group]), "never read before its event"
        streams.log.append(("language", group))
    visions = [name for what, name in streams.log if what == "vision"]
    assert visions == list(range(6))
    for batch in range(5):
        assert streams.log.index(("vision", batch + 1)) < streams.log.index(("language", 2 * batch))
        if batch < 4:
            assert streams.log.index(("vision", batch + 2)) > streams.log.index(("language", 2 * batch + 1))
    used = [event for what, event in streams.log if what == "used"][1:]  # the first is before all work
    waits = [event for what, event in streams.log if what == "host waits"]
    assert waits == used[:4], "batch n + 2 is queued when the device has reached batch n"
    assert len([what for what, _ in streams.log if what == "lend"]) == 6, "once per batch, not per group"


def test_tokens_are_asked_for_in_rising_order() -> None:
    tokens = VisionAhead(iter(torch.zeros(3, 1, 1, 1)), lambda batch: batch, 1, CPU)
    assert tokens[2].shape == (1, 1)
    with pytest.raises(ValueError, match="rising order"):
        _ = tokens[0]


@pytest.mark.parametrize("mode", ["chunked", "bounded", "plain"])
@pytest.mark.parametrize("num_frames", [1, 3, 4, 30])
def test_the_schedule_with_streams_gives_what_one_queue_gives(
    tiny_model: VideoXL2, monkeypatch: pytest.MonkeyPatch, mode: str, num_frames: int
) -> None:
    """Whole videos through ``index``: with side streams whose work is done late, and without."""
    monkeypatch.setattr(chat, "_BATCH_GROUPS", 2)
    frames = np.random.default_rng(0).integers(0, 256, (num_frames, 40, 50, 3), dtype=np.uint8)
    times = [float(frame) for frame in range(num_frames)]
    settings = PrefillSettings.model_validate({"mode": mode, "block_groups": 1, "previous_blocks": 1})
    plain = tiny_model.index(frames, times, settings, 2)
    streams = FakeStreams()
    real = VisionAhead

    def with_streams(batches: Any, encode: Any, size: int, device: torch.device) -> VisionAhead[Any]:
        numbers = iter(range(100))
        return real(batches, lambda batch: streams.deferred(next(numbers), encode(batch)), size, device, streams)

    monkeypatch.setattr(chat, "VisionAhead", with_streams)
    found = tiny_model.index(frames, times, settings, 2)
    assert len(found.chunks) == len(plain.chunks) == -(-num_frames // 8)
    for ours, theirs in zip(found.chunks, plain.chunks, strict=True):
        assert torch.equal(ours.kv_LSKMDh, theirs.kv_LSKMDh)
    assert sum(what == "vision" for what, _ in streams.log) == -(-num_frames // 8)


class Decoder:
    """Frames that are decoded when a slice of them is taken; notes where."""

    def __init__(self, num_frames: int) -> None:
        self.num_frames = num_frames
        self.threads: list[str] = []

    def __len__(self) -> int:
        return self.num_frames

    def __getitem__(self, frames: slice) -> np.ndarray:
        self.threads.append(threading.current_thread().name)
        count = len(range(*frames.indices(self.num_frames)))
        return np.full((count, 20, 20, 3), frames.start % 251, dtype=np.uint8)


def test_frames_are_decoded_in_a_thread_and_only_as_far_as_needed(tiny_model: VideoXL2) -> None:
    decoder = Decoder(200)
    result = tiny_model.index(decoder, [float(frame) for frame in range(200)])
    assert len(result.times) == 50 and len(decoder.threads) == -(-50 // 16)
    assert set(decoder.threads) == {"videoxl2-ahead"}
    untouched = Decoder(200)
    with pytest.raises(ContextOverflow):
        tiny_model.index(untouched, [0.0] * 200, PrefillSettings(max_tokens=50))
    assert untouched.threads == []


def test_a_decoder_that_fails_is_raised_and_leaves_no_thread(tiny_model: VideoXL2) -> None:
    class Broken(Decoder):
        def __getitem__(self, frames: slice) -> np.ndarray:
            if frames.start:
                raise OSError("the file ends here")
            return super().__getitem__(frames)

    with pytest.raises(OSError, match="ends here"):
        tiny_model.index(Broken(200), [0.0] * 200)
    assert not [thread for thread in threading.enumerate() if thread.name == "videoxl2-ahead"]


def test_a_decoder_that_gives_fewer_frames_is_named(tiny_model: VideoXL2) -> None:
    class Short(Decoder):
        def __getitem__(self, frames: slice) -> np.ndarray:
            return super().__getitem__(frames)[:5]

    with pytest.raises(ValueError, match="5 frames were given for those from 0 on, of 40"):
        tiny_model.index(Short(40), [0.0] * 40)


def test_items_are_made_ahead_and_not_further() -> None:
    made: list[int] = []

    def items() -> Iterator[int]:
        for item in range(10):
            made.append(item)
            yield item

    ahead = run_ahead(items(), 2)
    assert made == [], "nothing is made before the first is asked for"
    assert next(ahead) == 0
    deadline = time.monotonic() + 5
    while len(made) < 4 and time.monotonic() < deadline:
        time.sleep(0.01)
    time.sleep(0.05)
    assert made == [0, 1, 2, 3], "one in use, two made, one that waits for room"
    ahead.close()
    assert len(made) == 4 and list(run_ahead(iter(range(5)))) == [0, 1, 2, 3, 4]
    assert overlap.BATCHES_AHEAD == 2
