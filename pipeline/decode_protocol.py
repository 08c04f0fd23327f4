"""What the decoding process and its parent say to each other: requests, events, and how they travel through a pipe.

A message is a fixed header (two lengths), a JSON object of plain values, then raw bytes (pictures, thumbnails). Knows
nothing of decoding and nothing of processes.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np

HEADER = struct.Struct("<II")
MAX_JSON_BYTES = 64 << 20
MAX_PAYLOAD_BYTES = 2 << 30


@dataclass(frozen=True, kw_only=True)
class DecodeRequest:
    """How to sample one video."""

    fps: float
    image_size: int
    """Side of the model's square input in pixels."""
    embed_image_size: int
    """Side of the dual encoder's square input; equal to ``image_size``: no second array is made."""
    segment_s: float | None
    """Length of a segment in media seconds; None: the whole video is segment 0."""
    first_segment: int = 0
    """Frames of earlier segments are neither sent nor, where the container allows jumping, decoded."""
    thumbnail_px: int = 320
    """Longer side of a thumbnail."""
    frames_per_group: int = 4
    threads: int | None = None
    """Decoding threads; None: as the settings say."""
    decoder: Literal["auto", "decord", "pyav"] | None = None
    """None: as the settings say. "pyav" is what to ask for after decord crashed on a file."""

    def __post_init__(self) -> None:
        if not self.fps > 0:
            raise ValueError(f"fps must be positive, not {self.fps}")
        if self.segment_s is not None and not self.segment_s > 0:
            raise ValueError(f"segment_s must be positive or None, not {self.segment_s}")
        for name in ("image_size", "embed_image_size", "thumbnail_px", "frames_per_group"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, not {getattr(self, name)}")
        if self.first_segment < 0 or (self.segment_s is None and self.first_segment > 0):
            raise ValueError(f"there is no segment {self.first_segment} with segment_s={self.segment_s}")


@dataclass(frozen=True)
class Probed:
    """First event of every readable video: plain values about the file (``MediaProbe.summary``)."""

    summary: dict[str, Any]


@dataclass(frozen=True, eq=False)
class FrameBatch:
    """Consecutive sampled frames of one segment: whole frame groups, except at the end of the segment."""

    segment_index: int
    first_frame_index_in_segment: int
    pixels_u8_FHWC: np.ndarray
    """uint8 RGB, F x image_size x image_size x 3."""
    embed_u8_FHWC: np.ndarray | None
    """The same at ``embed_image_size``; None where both sizes are equal."""
    times_s: list[float]
    """When each frame is shown, in seconds after the first picture of the video."""
    motion: list[float]
    """Mean absolute luma difference to the sampled frame before, at 64x36, 0..1; 0.0 for the first of the video."""
    thumbnails: list[bytes | None]
    """One JPEG per frame group, of its middle frame (of its first where the group ends before that)."""
    is_segment_end: bool


@dataclass(frozen=True)
class Finished:
    """Last event of a video. Counts cover this request: with ``first_segment`` > 0 only what was decoded for it."""

    num_frames: int
    backend: str
    """"decord" or "pyav": which one delivered the last frames."""
    verdict: str
    """Why that one."""
    bad_packets: int
    decoded_until_s: float
    damage: str | None


DecodeEvent = Probed | FrameBatch | Finished


@dataclass
class Message:
    """A JSON object and the byte blocks that belong to it."""

    fields: dict[str, Any]
    blocks: Sequence[Any] = field(default_factory=tuple)


def encode(message: Message) -> list[memoryview]:
    """The message as buffers to be written one after the other; pictures are not copied."""
    views = [
        np.ascontiguousarray(block).reshape(-1).data if isinstance(block, np.ndarray) else memoryview(block)
        for block in message.blocks
    ]
    text = json.dumps({**message.fields, "lengths": [view.nbytes for view in views]}).encode("ascii")
    return [memoryview(HEADER.pack(len(text), sum(view.nbytes for view in views)) + text), *views]


def decode(read_exactly: Callable[[int], memoryview]) -> Message:
    """Read one message. ``read_exactly(n)`` returns n bytes or raises.

    Raises:
        ValueError: the bytes are not a message.
    """
    num_json, num_payload = HEADER.unpack(read_exactly(HEADER.size))
    if num_json > MAX_JSON_BYTES or num_payload > MAX_PAYLOAD_BYTES:
        raise ValueError(f"a message of {num_json} + {num_payload} bytes")
    fields = json.loads(bytes(read_exactly(num_json)))
    payload = read_exactly(num_payload)
    blocks, at = [], 0
    for length in fields.pop("lengths"):
        blocks.append(payload[at : at + length])
        at += length
    return Message(fields, blocks)


def batch_message(batch: FrameBatch) -> Message:
    """A FrameBatch on its way to the parent."""
    blocks: list[Any] = [batch.pixels_u8_FHWC]
    if batch.embed_u8_FHWC is not None:
        blocks.append(batch.embed_u8_FHWC)
    blocks += [thumbnail or b"" for thumbnail in batch.thumbnails]
    return Message(
        {
            "kind": "batch",
            "segment_index": batch.segment_index,
            "first_frame_index_in_segment": batch.first_frame_index_in_segment,
            "shape": list(batch.pixels_u8_FHWC.shape),
            "embed_shape": None if batch.embed_u8_FHWC is None else list(batch.embed_u8_FHWC.shape),
            "times_s": batch.times_s,
            "motion": batch.motion,
            "is_segment_end": batch.is_segment_end,
        },
        blocks,
    )


def batch_from(message: Message) -> FrameBatch:
    """The FrameBatch in a message; its arrays own the message's buffer."""
    fields, blocks = message.fields, list(message.blocks)
    pixels = np.frombuffer(blocks.pop(0), dtype=np.uint8).reshape(fields["shape"])
    embed = None
    if fields["embed_shape"] is not None:
        embed = np.frombuffer(blocks.pop(0), dtype=np.uint8).reshape(fields["embed_shape"])
    return FrameBatch(
        segment_index=fields["segment_index"],
        first_frame_index_in_segment=fields["first_frame_index_in_segment"],
        pixels_u8_FHWC=pixels,
        embed_u8_FHWC=embed,
        times_s=fields["times_s"],
        motion=fields["motion"],
        thumbnails=[bytes(block) or None for block in blocks],
        is_segment_end=fields["is_segment_end"],
    )
