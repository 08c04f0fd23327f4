"""Frames of a video by the published rule: by number and average rate, decoded in one pass with jumps where they help.

The archive samples by presentation time instead (``pipeline.frames``). Numbers count the pictures in the order in which
they are shown; times are number over average rate, as the published evaluation has them.

Shapes: F frames, S side of the model's square picture.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.errors import UnreadableMedia
from pipeline.probe import MediaProbe, open_container, probe, readable_path
from videoxl2.chat import VideoFrames
from videoxl2.preprocess import resize_u8
from videoxl2.sampling import published_frame_indices


def sample_video(path: Path, max_frames: int, image_size: int, *, drop_remainder: bool) -> VideoFrames:
    """At most ``max_frames`` frames at 1 to 4 per second, resized to the model's side as the model itself would.

    ``drop_remainder`` leaves out frames behind the last whole group of four (mode ``plain``, as published), unless
    there is no whole group. Raises ``UnreadableMedia``.
    """
    facts = probe(str(path))
    if not len(facts.pts) or facts.fps <= 0:
        raise UnreadableMedia(str(path), "no pictures with times can be counted in it")
    indices, times_s = published_frame_indices(len(facts.pts), facts.fps, max_frames, drop_remainder=drop_remainder)
    if not indices:
        indices, times_s = published_frame_indices(len(facts.pts), facts.fps, max_frames)
    frames = np.stack(list(_pictures(path, facts, [int(facts.pts[index]) for index in indices], image_size)))
    return VideoFrames(frames, times_s)


def _pictures(path: Path, facts: MediaProbe, wanted_pts: list[int], image_size: int) -> Iterator[np.ndarray]:
    """The picture shown at each of the ascending time stamps, uint8 [S, S, 3], upright.

    Where damage has taken a picture, the last one before it stands in.
    """
    turns = facts.rotation // 90
    decoder = _ForwardDecoder(path, facts)
    with readable_path(str(path)) as name, open_container(name, str(path)) as container:
        decoder.open(container)
        for pts in wanted_pts:
            rgb = decoder.shown_at(pts).to_ndarray(format="rgb24")
            yield resize_u8(np.ascontiguousarray(np.rot90(rgb, turns)) if turns else rgb, image_size)


class _ForwardDecoder:
    """Reads forward, one picture ahead, and jumps to a keyframe when the next picture lies behind one."""

    def __init__(self, path: Path, facts: MediaProbe) -> None:
        self._path, self._facts = path, facts
        self._container: Any = None
        self._frames: Iterator[tuple[int, Any]] = iter(())
        self._shown: tuple[int, Any] | None = None
        self._next: tuple[int, Any] | None = None

    def open(self, container: Any) -> None:
        """Start at the beginning of an opened container."""
        self._container = container
        stream = container.streams[self._facts.stream_index]
        stream.codec_context.thread_type = "AUTO"
        self._restart()

    def shown_at(self, pts: int) -> Any:
        """The last decoded frame that starts at or before ``pts``; the first one where none does."""
        self._jump(pts)
        while self._next is not None and (self._shown is None or self._next[0] <= pts):
            self._shown, self._next = self._next, next(self._frames, None)
        if self._shown is None:
            raise UnreadableMedia(str(self._path), "no picture of the video stream could be decoded")
        return self._shown[1]

    def _restart(self) -> None:
        self._frames = self._decoded()
        self._next = next(self._frames, None)

    def _jump(self, pts: int) -> None:
        """Seek to the last keyframe but one before ``pts``: its pictures may lean on the keyframe before theirs."""
        if not self._facts.is_seekable or self._next is None:
            return
        before = self._facts.keyframe_pts[self._facts.keyframe_pts <= pts]
        if len(before) < 3 or before[-2] <= self._next[0]:
            return
        stream = self._container.streams[self._facts.stream_index]
        self._container.seek(int(before[-2]), stream=stream, backward=True, any_frame=False)
        self._restart()

    def _decoded(self) -> Iterator[tuple[int, Any]]:
        """Frames with ascending time stamps from where the container stands; damaged packets are passed over."""
        import av.error

        last: int | None = None
        packets = self._container.demux(self._container.streams[self._facts.stream_index])
        while True:
            try:
                packet = next(packets)
                frames = packet.decode()
            except (StopIteration, av.error.EOFError):
                return
            except av.error.FFmpegError:
                continue
            for frame in frames:
                pts = frame.dts if self._facts.shows_at_decode_time else frame.pts
                if pts is None or pts < self._facts.start_pts or (last is not None and pts <= last):
                    continue
                last = pts
                yield pts, frame
