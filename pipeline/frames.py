"""Decode a video and yield the frames shown at a regular rate, by presentation time, through decord or PyAV.

The only module that knows decord, and the only one that decodes pictures for indexing. Both decoders give the same
pixels and the same times; ``pipeline.probe`` decides which may read a file. Meant to run inside the decoding process
(``pipeline.decode_child``): a decoder may crash or never return.

The sampling rule. Targets lie at ``k / fps`` seconds after the first picture. The frame for target k is the last
decoded one that starts at or before it, and each frame is taken at most once. So a frame is taken if and only if at
least one target falls between its start and the start of the next decoded frame, and its index is the first such k.
Containers round time stamps, so a frame that starts up to half a tick (at most 0.5 ms) after a target counts as
starting at it. The rule is local: a reader that starts in the middle of the file takes the same frames as one that
starts at the beginning.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from fractions import Fraction
from typing import Any, Literal

import av
import av.error
import numpy as np

from pipeline.errors import UnreadableMedia
from pipeline.probe import MediaProbe, counted, open_container, readable_path

logger = logging.getLogger(__name__)

Decoder = Literal["auto", "decord", "pyav"]

_DECORD_BATCH_BYTES = 32 << 20
_DECORD_BATCH_FRAMES = 4
_MAX_DEMUX_ERRORS = 100
_MAX_THREADS = 16
_MAX_SLACK_S = Fraction(1, 2000)


@dataclass(frozen=True, eq=False)
class SampledFrame:
    """One frame of the sampling grid."""

    index: int
    """Which target it answers: the first one."""
    target_s: float
    time_s: float
    """When the frame is really shown, in seconds after the first picture."""
    rgb_HWC: np.ndarray
    """uint8 RGB at full size, upright."""
    is_context: bool = False
    """The last frame before ``first_index``: for comparison only, it was yielded by an earlier run."""


class SamplingGrid:
    """The targets of one file and the arithmetic between them and time stamps; exact, in rational numbers."""

    def __init__(self, probe: MediaProbe, fps: float) -> None:
        if not fps > 0:
            raise ValueError(f"fps must be positive, not {fps}")
        self.start_pts = probe.start_pts
        self.time_base = probe.time_base
        self.fps = Fraction(fps).limit_denominator(100_000)
        self._targets_per_tick = self.time_base * self.fps
        self._slack_ticks = min(Fraction(1, 2), _MAX_SLACK_S / self.time_base)

    def first_target(self, pts: int) -> int:
        """Index of the first target at or after ``pts``."""
        rate, slack = self._targets_per_tick, self._slack_ticks
        ticks_times_d = (pts - self.start_pts) * slack.denominator - slack.numerator
        return max(0, -(-ticks_times_d * rate.numerator // (slack.denominator * rate.denominator)))

    def target_pts(self, index: int) -> int:
        """The last whole time stamp at which a frame counts as starting at or before a target."""
        return self.start_pts + math.floor(index / self._targets_per_tick + self._slack_ticks)

    def target_s(self, index: int) -> float:
        return float(index / self.fps)

    def time_s(self, pts: int) -> float:
        return float((pts - self.start_pts) * self.time_base)

    def segment(self, index: int, segment_s: float | None) -> int:
        """The segment that a target lies in; 0 where the video is one segment."""
        return 0 if segment_s is None else int(index / self.fps // Fraction(segment_s).limit_denominator(100_000))

    def first_index(self, segment: int, segment_s: float | None) -> int:
        """Index of the first target in a segment."""
        if segment_s is None or segment <= 0:
            return 0
        start = segment * Fraction(segment_s).limit_denominator(100_000) * self.fps
        return -(-start.numerator // start.denominator)


class FrameSampler:
    """Iterates over the frames of one file from target ``first_index`` on; afterwards tells what decoding met.

    With ``first_index`` > 0 the frame before it comes first, marked ``is_context``. ``decoder`` "auto" follows the
    probe;
    "decord" and "pyav" insist. A file that decord turns out unable to read goes on with PyAV from the same frame.

    Raises (while iterating):
        UnreadableMedia: no picture of the file could be decoded.
    """

    def __init__(
        self,
        path: str,
        probe: MediaProbe,
        fps: float,
        *,
        uri: str | None = None,
        first_index: int = 0,
        decoder: Decoder = "auto",
        threads: int = 1,
        on_progress: Callable[[], None] | None = None,
        decoder_noise: Callable[[], int] | None = None,
    ) -> None:
        """``decoder_noise`` tells how many bytes of complaints the C libraries have printed; more of them during
        decord's
        work mean damage that decord would pass over in silence."""
        self.path = path
        self.uri = path if uri is None else uri
        self.probe = probe
        self.grid = SamplingGrid(probe, fps)
        self.first_index = first_index
        self.threads = max(1, min(threads, _MAX_THREADS))
        self.backend: Literal["decord", "pyav"] = "pyav"
        self.verdict = probe.verdict
        self._num_bad = 0
        self._use_decord = decoder == "decord" or (decoder == "auto" and probe.decord_ok)
        if decoder != "auto":
            self.verdict = f"{decoder} as set; the probe said {probe.verdict}"
        self._on_progress = on_progress or (lambda: None)
        self._decoder_noise = decoder_noise or (lambda: 0)
        self._last_pts: int | None = None
        self._bad_pts: list[int] = []
        self._num_frames_back = 0
        self._num_corrupt = 0
        self._num_decoded = 0

    def __iter__(self) -> Iterator[SampledFrame]:
        with readable_path(self.path) as name:
            start_index = self.first_index
            if self._use_decord:
                try:
                    for frame in self._decord_frames(name):
                        start_index = max(start_index, frame.index + 1)
                        self._num_decoded += 1
                        yield frame
                    return
                except _DecordRefusedError as refusal:
                    self.verdict = f"PyAV: {refusal}" + (f"; from target {start_index} on" if self._num_decoded else "")
                    logger.debug("%r: %s", self.uri, self.verdict)
            yield from self._pyav_frames(name, start_index, with_context=not self._num_decoded and start_index > 0)
        if self._num_decoded == 0:
            raise UnreadableMedia(self.uri, "no picture of the video stream could be decoded")

    @property
    def bad_packets(self) -> int:
        """Packets that demuxing or decoding found damaged."""
        return max(self._num_bad, self.probe.num_damaged)

    @property
    def decoded_until_s(self) -> float:
        """Media time at which the last decoded picture ends."""
        if self._last_pts is None:
            return 0.0
        return self.grid.time_s(self._last_pts + self.probe.last_duration)

    @property
    def damage(self) -> str | None:
        """What is missing or broken in the file, in words; None where nothing was noticed."""
        found = []
        if self.bad_packets:
            text = counted(self.bad_packets, "damaged packet")
            if self._bad_pts:
                first_s, last_s = (max(0.0, self.grid.time_s(pts)) for pts in (min(self._bad_pts), max(self._bad_pts)))
                text += f" between {first_s:.2f} s and {last_s:.2f} s"
            found.append(text)
        elif self.probe.num_container_errors:
            found.append(counted(self.probe.num_container_errors, "broken place") + " in the container")
        if self._num_corrupt:
            found.append(counted(self._num_corrupt, "picture") + " decoded with errors")
        if self._num_frames_back:
            found.append(counted(self._num_frames_back, "picture") + " left out whose time stamps go back")
        probe = self.probe
        if probe.is_cut_off and probe.declared_s is not None:
            found.append(f"the file ends at {self.decoded_until_s:.2f} s of {probe.declared_s:.2f} s")
        elif probe.duration_s - self.decoded_until_s > max(0.5, 3 / probe.fps if probe.fps else 0.5):
            found.append(f"no picture could be decoded after {self.decoded_until_s:.2f} s of {probe.duration_s:.2f} s")
        return "; ".join(found) or None

    # decord: random access by the index of a picture in display order.

    def _decord_frames(self, name: str) -> Iterator[SampledFrame]:
        reader = _open_decord(name, self.probe, self.threads)
        self.backend = "decord"
        pts = self.probe.pts.tolist()
        wanted = self._wanted(pts)
        frame_bytes = self.probe.width * self.probe.height * 3
        batch = max(1, min(_DECORD_BATCH_FRAMES, _DECORD_BATCH_BYTES // max(1, frame_bytes)))
        noise = self._decoder_noise()
        for at in range(0, len(wanted), batch):
            part = wanted[at : at + batch]
            try:
                rgb_FHWC = reader.get_batch([position for position, _ in part]).asnumpy()
            except Exception as exc:
                self._refuse(f"decord failed ({_one_line(exc)})", exc)
            if self._decoder_noise() != noise:
                self._refuse("decord's decoder reported errors in the stream", None)
            self._on_progress()
            for rgb_HWC, (position, target) in zip(rgb_FHWC, part, strict=True):
                self._last_pts = pts[position]
                yield self._sampled(target, pts[position], rgb_HWC)
        if pts:
            self._last_pts = pts[-1]

    def _refuse(self, reason: str, cause: Exception | None) -> None:
        self.backend = "pyav"
        self._last_pts = None
        raise _DecordRefusedError(reason) from cause

    def _wanted(self, pts: list[int]) -> list[tuple[int, int]]:
        """(position in display order, target) of every frame to take, the context frame included."""
        firsts = [self.grid.first_target(p) for p in pts]
        if pts:
            firsts.append(self.grid.first_target(pts[-1] + self.probe.last_duration))
        taken = [(i, firsts[i]) for i in range(len(pts)) if firsts[i] < firsts[i + 1]]
        first = next((n for n, (_, target) in enumerate(taken) if target >= self.first_index), len(taken))
        return taken[max(0, first - 1) :]

    # PyAV: reads forward and decides frame by frame.

    def _pyav_frames(self, name: str, start_index: int, *, with_context: bool) -> Iterator[SampledFrame]:
        self.backend = "pyav"
        context_pts = self.grid.target_pts(start_index - 1) if start_index else self.probe.start_pts
        seek_pts = self._keyframe_before(context_pts) if start_index else None
        context: tuple[int, Any] | None = None
        shown: Any = None
        for frame in self._pyav_from(name, seek_pts, context_pts):
            if shown is not None:
                target = self.grid.first_target(shown.pts)
                if target < self.grid.first_target(frame.pts):
                    if target < start_index:
                        context = (target, shown)
                    else:
                        if context is not None and with_context:
                            yield self._converted(*context)
                        context = None
                        yield self._converted(target, shown)
            shown = frame
        if shown is None:
            return
        target = self.grid.first_target(shown.pts)
        if target < self.grid.first_target(shown.pts + self.probe.last_duration) and target >= start_index:
            if context is not None and with_context:
                yield self._converted(*context)
            yield self._converted(target, shown)

    def _keyframe_before(self, pts: int) -> int | None:
        """The last keyframe but one at or before ``pts``: its pictures may lean on the keyframe before it. None: the
        start."""
        if not self.probe.is_seekable:
            return None
        before = self.probe.keyframe_pts[self.probe.keyframe_pts <= pts]
        return int(before[-2]) if len(before) > 2 else None

    def _pyav_from(self, name: str, seek_pts: int | None, needed_pts: int) -> Iterator[Any]:
        """Decoded frames in display order from ``seek_pts``, or from the start where the jump went past
        ``needed_pts``."""
        if seek_pts is not None:
            frames = self._pyav_decode(name, seek_pts)
            first = next(frames, None)
            if first is not None and first.pts <= needed_pts:
                yield first
                yield from frames
                return
            frames.close()
            self._last_pts, self._bad_pts, self._num_bad = None, [], 0
        yield from self._pyav_decode(name, None)

    def _pyav_decode(self, name: str, seek_pts: int | None) -> Any:
        with open_container(name, self.uri) as container:
            stream = container.streams[self.probe.stream_index]
            context = stream.codec_context
            context.thread_type = "AUTO"
            # In a damaged file the frames that survive must not depend on how many threads looked at it.
            context.thread_count = 1 if self.probe.num_damaged else self.threads
            floor_pts = self.probe.start_pts
            if seek_pts is not None:
                container.seek(seek_pts, stream=stream, backward=True, any_frame=False)
            is_first_packet = True
            for packet in self._packets(container, stream):
                self._on_progress()
                if is_first_packet and seek_pts is not None and packet.pts is not None:
                    floor_pts = max(floor_pts, packet.pts)
                is_first_packet = False
                try:
                    frames = packet.decode()
                except av.error.EOFError:
                    break
                except av.error.FFmpegError:
                    self._num_bad += 1
                    if packet.pts is not None:
                        self._bad_pts.append(packet.pts)
                    continue
                for frame in frames:
                    if self._accept(frame, floor_pts):
                        yield frame

    def _packets(self, container: Any, stream: Any) -> Iterator[Any]:
        """Packets up to the end of the file, passing over places where the container itself is broken."""
        for _ in range(_MAX_DEMUX_ERRORS):
            try:
                yield from container.demux(stream)
                return
            except av.error.EOFError:
                return
            except av.error.FFmpegError:
                self._num_bad += 1

    def _accept(self, frame: Any, floor_pts: int) -> bool:
        """Give the frame a time stamp if it has none; False for one that is before the start or goes back in time."""
        if self.probe.shows_at_decode_time:
            frame.pts = frame.dts
        if frame.pts is None:
            if self._last_pts is None:
                return False
            frame.pts = self._last_pts + self.probe.last_duration
        if frame.pts < floor_pts:
            return False
        if self._last_pts is not None and frame.pts <= self._last_pts:
            self._num_frames_back += 1
            return False
        self._num_corrupt += bool(frame.is_corrupt)
        self._last_pts = frame.pts
        self._num_decoded += 1
        return True

    def _converted(self, target: int, frame: Any) -> SampledFrame:
        rgb_HWC = frame.to_ndarray(format="rgb24")
        turns = self.probe.rotation // 90
        return self._sampled(target, frame.pts, np.ascontiguousarray(np.rot90(rgb_HWC, turns)) if turns else rgb_HWC)

    def _sampled(self, target: int, pts: int, rgb_HWC: np.ndarray) -> SampledFrame:
        return SampledFrame(
            index=target,
            target_s=self.grid.target_s(target),
            time_s=self.grid.time_s(pts),
            rgb_HWC=rgb_HWC,
            is_context=target < self.first_index,
        )


class _DecordRefusedError(Exception):
    """decord cannot be used for this file after all; the text says why."""


def _open_decord(name: str, probe: MediaProbe, threads: int) -> Any:
    """A decord reader whose picture table equals the probe's.

    Raises:
        _DecordRefusedError: it differs, or decord cannot open the file.
    """
    try:
        import decord
    except ImportError as exc:
        raise _DecordRefusedError("decord is not installed") from exc
    decord.logging.set_level(decord.logging.ERROR)
    try:
        reader = decord.VideoReader(name, ctx=decord.cpu(0), num_threads=threads)
        num_frames = len(reader)
        if num_frames != len(probe.pts):
            raise _DecordRefusedError(f"decord counts {num_frames} pictures where the file has {len(probe.pts)}")
        starts_s = np.asarray(reader.get_frame_timestamp(np.arange(num_frames)))[:, 0].astype(np.float64)
    except _DecordRefusedError:
        raise
    except Exception as exc:
        raise _DecordRefusedError(f"decord cannot open it ({_one_line(exc)})") from exc
    expected_s = (probe.pts - probe.start_pts) * float(probe.time_base)
    half_frame_s = 0.5 / probe.fps if probe.fps > 0 else 0.001
    if not np.all(np.isfinite(starts_s)) or np.any(np.diff(starts_s) <= 0):
        raise _DecordRefusedError("decord's times are not finite and increasing")
    if np.abs(starts_s - expected_s).max(initial=0.0) > half_frame_s:
        raise _DecordRefusedError("decord's times differ from the container's")
    return reader


def _one_line(exc: Exception) -> str:
    lines = [line.strip() for line in str(exc).splitlines() if line.strip()]
    return (lines[0] if lines else type(exc).__name__)[:160]
