"""Makes small videos whose frames carry their own number, so that a test can tell exactly which frame it was given."""

from __future__ import annotations

import struct
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np

SIZE = (160, 96)
_NUM_BITS = 10
_TIME_BASE = Fraction(1, 90_000)


@dataclass(frozen=True)
class Clip:
    """A clip that was made: frame n is shown from ``times_s[n]`` on."""

    path: Path
    times_s: list[float]
    step_s: float
    """How long the last frame lasts."""
    first_number: int = 0
    """Number in the first frame that is shown."""

    def expected(self, fps: float) -> list[int]:
        """Numbers of the frames shown at k / fps after the first one, each at most once."""
        times = np.array([Fraction(t).limit_denominator(90_000) for t in self.times_s])
        end = times[-1] + Fraction(self.step_s).limit_denominator(90_000)
        numbers: list[int] = []
        k = 0
        rate = Fraction(fps).limit_denominator(1000)
        while k / rate + times[0] < end:
            shown = int(np.searchsorted(times, k / rate + times[0], side="right")) - 1 + self.first_number
            if not numbers or numbers[-1] != shown:
                numbers.append(shown)
            k += 1
        return numbers


@dataclass(frozen=True)
class Recipe:
    """How to make a clip."""

    name: str
    codec: str = "libx264"
    num_frames: int = 90
    fps: int = 30
    size: tuple[int, int] = SIZE
    options: dict[str, str] = field(default_factory=dict)
    time_of: Callable[[int], Fraction] | None = None
    metadata: dict[str, str] = field(default_factory=dict)
    num_streams: int = 1
    with_audio: bool = False
    format_options: dict[str, str] = field(default_factory=dict)


_X264 = {"preset": "veryfast", "crf": "20", "g": "30", "bf": "2", "x264-params": "scenecut=0"}
_X265 = "log-level=none:keyint=30:min-keyint=30:bframes=3:scenecut=0"


def _uneven(n: int) -> Fraction:
    """10 frames at 30/s, then 10 at 10/s, and so on."""
    return Fraction((n // 20) * 40 + (n % 20 if n % 20 < 10 else 10 + (n % 20 - 10) * 3), 30)


RECIPES: dict[str, Recipe] = {
    recipe.name: recipe
    for recipe in (
        Recipe("h264.mp4", options=_X264),
        Recipe("h264.mkv", options=_X264),
        Recipe("many.mkv", options=_X264, num_frames=240, format_options={"cluster_time_limit": "500"}),
        Recipe("faststart.mp4", options=_X264, num_frames=240, format_options={"movflags": "faststart"}),
        Recipe("opengop.mp4", options={**_X264, "x264-params": "open-gop=1:scenecut=0"}, num_frames=150),
        Recipe("hevc.mp4", "libx265", options={"preset": "ultrafast", "x265-params": _X265}, num_frames=150),
        Recipe("hevc_closed.mp4", "libx265", options={"preset": "ultrafast", "x265-params": _X265 + ":open-gop=0"}),
        Recipe("vp9.webm", "libvpx-vp9", options={"deadline": "realtime", "cpu-used": "8", "g": "30"}),
        Recipe("vp8.webm", "libvpx", options={"deadline": "realtime", "cpu-used": "8", "g": "30"}),
        Recipe("mpeg4.avi", "mpeg4", options={"g": "30", "bf": "2", "b": "2M"}),
        Recipe("h264.ts", options=_X264, num_frames=150),
        Recipe("vfr.mp4", options=_X264, time_of=_uneven),
        Recipe("late.mkv", options={**_X264, "bf": "0"}, time_of=lambda n: Fraction(n + 45, 30)),
        Recipe("odd.mp4", options={**_X264, "pix_fmt": "yuv444p"}, size=(161, 97)),
        Recipe("audio.mp4", options=_X264, with_audio=True),
        Recipe("two.mp4", options=_X264, num_streams=2),
        Recipe("dated.mp4", options=_X264, num_frames=10, metadata={"creation_time": "2024-02-29T23:30:00Z"}),
        Recipe("long.mp4", options=_X264, num_frames=360),
    )
}


def make(recipe: Recipe, folder: Path) -> Clip:
    """Encode a clip into ``folder``."""
    path = folder / recipe.name
    time_of = recipe.time_of or (lambda n: Fraction(n, recipe.fps))
    width, height = recipe.size
    with av.open(str(path), "w", options=recipe.format_options) as container:
        container.metadata.update(recipe.metadata)
        streams = []
        for _ in range(recipe.num_streams):
            stream: Any = container.add_stream(recipe.codec, rate=recipe.fps)
            stream.width, stream.height = width, height
            options = dict(recipe.options)
            stream.pix_fmt = options.pop("pix_fmt", "yuv420p")
            stream.options = options
            if recipe.time_of is not None:
                stream.codec_context.time_base = _TIME_BASE
            streams.append(stream)
        if recipe.with_audio:
            _add_audio(container, recipe.num_frames / recipe.fps)
        for number in range(recipe.num_frames):
            frame = av.VideoFrame.from_ndarray(picture(number, recipe.size), format="rgb24")
            time_base = _TIME_BASE if recipe.time_of is not None else Fraction(1, recipe.fps)
            frame.pts, frame.time_base = int(time_of(number) / time_base), time_base
            for stream in streams:
                container.mux(stream.encode(frame))
        for stream in streams:
            container.mux(stream.encode(None))
    times_s = [float(time_of(number)) for number in range(recipe.num_frames)]
    return Clip(path, times_s, 1 / recipe.fps)


def _add_audio(container: av.container.OutputContainer, seconds: float) -> None:
    stream = container.add_stream("aac", rate=8000)
    for at in range(0, int(seconds * 8000), 1024):
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), format="fltp", layout="mono")
        frame.sample_rate, frame.pts, frame.time_base = 8000, at, Fraction(1, 8000)
        container.mux(stream.encode(frame))
    container.mux(stream.encode(None))


def make_audio_only(path: Path) -> Path:
    with av.open(str(path), "w") as container:
        _add_audio(container, 1.0)
    return path


def make_cut(source: Clip, path: Path, first_shown: int) -> Clip:
    """``source`` from frame ``first_shown`` on without re-encoding: the frames before it, back to the keyframe, stay in
    the file at negative times and an edit list hides them."""
    offset_s = Fraction(source.times_s[first_shown]).limit_denominator(90_000)
    with av.open(str(source.path)) as old, av.open(str(path), "w", options={"avoid_negative_ts": "disabled"}) as new:
        stream: Any = old.streams.video[0]
        copy = new.add_stream_from_template(stream)
        shift = int(offset_s / stream.time_base)
        packets: list[Any] = [packet for packet in old.demux(stream) if packet.size]
        start = max(i for i, p in enumerate(packets) if p.is_keyframe and p.pts <= shift)
        for packet in packets[start:]:
            packet.pts -= shift
            packet.dts -= shift
            packet.stream = copy
            new.mux(packet)
    times_s = [t - source.times_s[first_shown] for t in source.times_s[first_shown:]]
    return Clip(path, times_s, source.step_s, first_shown)


def rotate(source: Path, path: Path, clockwise: int) -> Path:
    """A copy of an MP4 that asks the player to turn the picture clockwise by 90, 180 or 270 degrees."""
    one, minus = 0x10000, 0xFFFF0000
    a, b, c, d = {90: (0, one, minus, 0), 180: (minus, 0, 0, minus), 270: (0, minus, one, 0)}[clockwise]
    content = bytearray(source.read_bytes())
    at = content.index(b"tkhd") + 4 + 40
    content[at : at + 36] = struct.pack(">9I", a, b, 0, c, d, 0, 0, 0, 0x40000000)
    path.write_bytes(content)
    return path


def picture(number: int, size: tuple[int, int] = SIZE) -> np.ndarray:
    """RGB picture of a frame: its number as black and white bars in the upper half, a moving slope in the lower."""
    width, height = size
    rgb = np.zeros((height, width, 3), np.uint8)
    for bit in range(_NUM_BITS):
        left, right = bit * width // _NUM_BITS, (bit + 1) * width // _NUM_BITS
        rgb[: height // 2, left:right] = 235 if number >> bit & 1 else 16
    rgb[height // 2 :, :, 0] = (np.arange(width) * 255 // width)[None]
    rgb[height // 2 :, :, 1] = 40 + number * 7 % 160
    return rgb


def read_number(rgb: np.ndarray) -> int:
    """The number in a picture, of any size."""
    height, width = rgb.shape[:2]
    number = 0
    for bit in range(_NUM_BITS):
        left, right = bit * width // _NUM_BITS, (bit + 1) * width // _NUM_BITS
        margin = max(1, (right - left) // 4)
        number |= int(rgb[height // 8 : height * 3 // 8, left + margin : right - margin].mean() > 125) << bit
    return number


def read_numbers(pictures: Sequence[np.ndarray]) -> list[int]:
    return [read_number(rgb) for rgb in pictures]
