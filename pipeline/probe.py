"""What a video file is, learnt by demuxing it: picture table, rotation, clock, and whether decord may read it.

Owns the decision between the two decoders. Decodes one picture only, for what packets do not tell: the time of the
first picture that can be shown and the rotation. Sampling and decoding live in ``pipeline.frames``.

decord returns wrong frames without an error on open GOPs, edit lists, AVI and late starts, and never returns on
MPEG-TS, so it is cleared by rule: MP4/MOV or Matroska/WebM, a codec it knows, one video stream, first picture at 0,
every packet with a time stamp, none negative, no leading pictures, packets whole, the file not cut off, an even size
(odd ones come out a few levels apart). Everything else goes to PyAV.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import av.container
import av.error
import av.logging
import av.video
import numpy as np

from pipeline.errors import UnreadableMedia

# Containers that hold one recording. Playlists and scripts (hls, dash, concat, sdp) name other files: never opened.
_CONTAINERS = (
    "mov,mp4,m4a,3gp,3g2,mj2,matroska,webm,avi,mpegts,mpeg,mpegvideo,flv,live_flv,ogg,asf,mxf,mxf_d10,dv,"
    "h264,hevc,m4v,ivf,obu,nut,gxf,wtv,rm,gif,mp3,wav,aac,flac"
)
_OPEN_OPTIONS = {"format_whitelist": _CONTAINERS, "protocol_whitelist": "file"}
_DECORD_CONTAINERS = {"mov", "mp4", "matroska", "webm"}
# What decord's own FFmpeg decodes; AV1, among others, it does not.
_DECORD_CODECS = {"h264", "hevc", "vp8", "vp9", "mpeg4", "mpeg2video", "mpeg1video", "mjpeg"}
_MAX_PIXELS = 100_000_000
# Containers without presentation times: the time a packet is decoded at is the time its picture is shown at.
_DECODE_TIME_CONTAINERS = {"avi"}
# Containers whose index lets a reader jump to a keyframe and find the same pictures as when read from the start.
_SEEKABLE_CONTAINERS = {"mov", "mp4", "matroska", "webm"}
_FIRST_PICTURE_MAX_PACKETS = 3000
_FFMPEG_MAX_RATE = 1000


@dataclass(frozen=True, eq=False)
class MediaProbe:
    """What demuxing told about one file. Times called pts are in units of ``time_base``, others in seconds."""

    container: str
    codec: str
    stream_index: int
    width: int
    """Stored width in pixels, before rotation."""
    height: int
    rotation: int
    """Degrees to turn the stored picture counter-clockwise so that it is upright: 0, 90, -90 or 180."""
    sample_aspect: float
    """Width of a stored pixel over its height."""
    time_base: Fraction
    start_pts: int
    """Time stamp of the first picture that can be shown: media time 0."""
    duration_s: float
    """Start of the first picture to the end of the last one that the file holds."""
    declared_s: float | None
    """What the container says the video stream lasts; more than ``duration_s`` in a file that was cut off."""
    fps: float
    num_packets: int
    num_missing_pts: int
    num_negative_pts: int
    num_leading: int
    num_damaged: int
    """Packets whose own length fields contradict their size, or that end before they should."""
    num_container_errors: int
    """Places where the container itself is broken, as its reader reports them."""
    num_video_streams: int
    is_vfr: bool
    creation_time: datetime | None
    """Aware UTC, only where the container makes a credible claim."""
    decord_ok: bool
    verdict: str
    """Why decord may or may not read the file, in words."""
    last_duration: int
    """How long the last picture is shown, in ``time_base`` units."""
    pts: np.ndarray = field(repr=False)
    """Ascending time stamps of the pictures to be shown, int64."""
    keyframe_pts: np.ndarray = field(repr=False)

    @property
    def is_seekable(self) -> bool:
        """A jump to a keyframe is trusted to find the pictures that reading from the start would find."""
        return bool(_SEEKABLE_CONTAINERS & set(self.container.split(","))) and not (
            self.num_missing_pts or self.num_damaged or self.num_container_errors
        )

    @property
    def shows_at_decode_time(self) -> bool:
        """The container has no presentation times (AVI): a frame's ``dts`` is its time."""
        return bool(_DECODE_TIME_CONTAINERS & set(self.container.split(",")))

    @property
    def is_cut_off(self) -> bool:
        """The file ends before the length that its header promises."""
        return _ends_early(self.declared_s, self.duration_s, self.fps)

    @property
    def display_size(self) -> tuple[int, int]:
        """Width and height as a player shows them: square pixels, upright."""
        width, height = max(1, round(self.width * self.sample_aspect)), self.height
        return (height, width) if self.rotation % 180 else (width, height)

    def summary(self) -> dict[str, Any]:
        """Plain values for another process; the tables stay here."""
        width, height = self.display_size
        return {
            "container": self.container,
            "codec": self.codec,
            "width": self.width,
            "height": self.height,
            "display_width": width,
            "display_height": height,
            "rotation": self.rotation,
            "start_pts": self.start_pts,
            "start_s": float(self.start_pts * self.time_base),
            "duration_s": self.duration_s,
            "declared_s": self.declared_s,
            "fps": self.fps,
            "num_packets": self.num_packets,
            "num_damaged": self.num_damaged,
            "num_container_errors": self.num_container_errors,
            "num_video_streams": self.num_video_streams,
            "is_vfr": self.is_vfr,
            "is_cut_off": self.is_cut_off,
            "creation_time": self.creation_time.isoformat() if self.creation_time else None,
            "decord_ok": self.decord_ok,
            "verdict": self.verdict,
        }


def _ends_early(declared_s: float | None, found_s: float, fps: float) -> bool:
    return declared_s is not None and declared_s - found_s > max(0.5, 3.0 / fps if fps > 0 else 0.5)


@contextlib.contextmanager
def readable_path(path: str) -> Iterator[str]:
    """``path`` in a form that both decoders take: a name that is not UTF-8 goes through an open descriptor."""
    path = os.path.abspath(path)  # noqa: PTH100  an absolute path is never mistaken for a protocol
    try:
        path.encode("utf-8")
    except UnicodeEncodeError:
        descriptor = os.open(path, os.O_RDONLY)
        try:
            yield f"/proc/self/fd/{descriptor}"
        finally:
            os.close(descriptor)
    else:
        yield path


def open_container(path: str, uri: str) -> av.container.InputContainer:
    """Open a media file, nothing but a media file.

    Raises:
        UnreadableMedia: empty, not there, cut before its index, or not a known container.
    """
    try:
        size = Path(path).stat().st_size
        if size == 0:
            raise UnreadableMedia(uri, "the file is empty (0 bytes)")
        return av.open(path, mode="r", options=dict(_OPEN_OPTIONS), metadata_errors="replace")
    except (av.error.FFmpegError, OSError, ValueError) as exc:
        raise UnreadableMedia(uri, _why_not_opened(path, exc)) from exc


def video_stream(container: av.container.InputContainer, uri: str) -> av.video.VideoStream:
    """The stream to index: the best one that is a moving picture and not a cover.

    Raises:
        UnreadableMedia: there is none.
    """
    moving = moving_streams(container)
    if not moving:
        what = "only a cover picture" if container.streams.video else "no video stream"
        raise UnreadableMedia(uri, f"{what} in the file")
    best = container.streams.best("video")
    return next((stream for stream in moving if best is not None and stream.index == best.index), moving[0])


def moving_streams(container: av.container.InputContainer) -> list[av.video.VideoStream]:
    """Video streams that are not attached pictures."""
    return [s for s in container.streams.video if not s.disposition & av.stream.Disposition.attached_pic]


def probe(path: str, uri: str | None = None) -> MediaProbe:
    """Demux the file at ``path`` once (0.3 s for 10 minutes of 720p) and decode its first picture.

    Raises:
        UnreadableMedia: the file holds no video that can be decoded; ``uri`` (default: the path) is named in it.
    """
    uri = path if uri is None else uri
    with readable_path(path) as name:
        with open_container(name, uri) as container:
            stream = video_stream(container, uri)
            table = _PacketTable.read(container, stream)
            facts = _stream_facts(container, stream)
        if table.num_packets == 0:
            raise UnreadableMedia(uri, "the video stream holds no pictures")
        if facts["width"] * facts["height"] > _MAX_PIXELS:
            raise UnreadableMedia(uri, f"pictures of {facts['width']}x{facts['height']} are too large to decode")
        start_pts, turn = _first_picture(name, uri, facts["stream_index"])
    rotation = _quarter_turns(turn)
    if start_pts is None:
        start_pts = int(table.pts[0]) if len(table.pts) else 0
    pts = table.pts[table.pts >= start_pts]
    time_base: Fraction = facts["time_base"]
    last_duration, fps, is_vfr = _timing(pts, table.last_duration, time_base, facts["rate"])
    end_pts = (int(pts[-1]) if len(pts) else start_pts) + last_duration
    duration_s = float((end_pts - start_pts) * time_base)
    declared_s = facts["declared_s"]
    if declared_s is not None and facts["declares_end"]:
        declared_s -= float(start_pts * time_base)
    is_cut_off = _ends_early(declared_s, duration_s, fps)
    decord_ok, verdict = _verdict(facts, table, start_pts, turn, is_cut_off)
    return MediaProbe(
        container=facts["container"],
        codec=facts["codec"],
        stream_index=facts["stream_index"],
        width=facts["width"],
        height=facts["height"],
        rotation=rotation,
        sample_aspect=facts["sample_aspect"],
        time_base=time_base,
        start_pts=start_pts,
        duration_s=duration_s,
        declared_s=declared_s,
        fps=fps,
        num_packets=table.num_packets,
        num_missing_pts=table.num_missing_pts,
        num_negative_pts=table.num_negative_pts,
        num_leading=table.num_leading,
        num_damaged=table.num_damaged,
        num_container_errors=table.num_container_errors,
        num_video_streams=facts["num_video_streams"],
        is_vfr=is_vfr,
        creation_time=facts["creation_time"],
        decord_ok=decord_ok,
        verdict=verdict,
        last_duration=last_duration,
        pts=pts,
        keyframe_pts=table.keyframe_pts,
    )


@dataclass(frozen=True, eq=False)
class _PacketTable:
    pts: np.ndarray
    keyframe_pts: np.ndarray
    last_duration: int
    num_packets: int
    num_missing_pts: int
    num_negative_pts: int
    num_leading: int
    num_damaged: int
    num_container_errors: int

    @classmethod
    def read(cls, container: av.container.InputContainer, stream: av.video.VideoStream) -> _PacketTable:
        shown: list[tuple[int, int]] = []
        keyframes: list[int] = []
        missing = negative = leading = damaged = total = 0
        last_key: int | None = None
        length_bytes = _nal_length_bytes(stream)
        at_decode_time = container.format.name in _DECODE_TIME_CONTAINERS
        with _logged_errors() as errors:
            for packet in _demuxed(container, stream, errors):
                if packet.size == 0:
                    continue
                total += 1
                pts = packet.dts if at_decode_time else packet.pts
                if packet.is_corrupt or (length_bytes and not _is_whole(packet, length_bytes)):
                    damaged += 1
                if pts is None:
                    missing += 1
                    continue
                negative += pts < 0
                if packet.is_keyframe:
                    last_key = pts
                    keyframes.append(pts)
                elif last_key is not None and pts < last_key:
                    leading += 1
                if not packet.is_discard:
                    shown.append((pts, packet.duration or 0))
        shown.sort()
        return cls(
            pts=np.unique(np.array([pts for pts, _ in shown], dtype=np.int64)),
            keyframe_pts=np.array(sorted(keyframes), dtype=np.int64),
            last_duration=shown[-1][1] if shown else 0,
            num_packets=total,
            num_missing_pts=missing,
            num_negative_pts=negative,
            num_leading=leading,
            num_damaged=damaged,
            num_container_errors=len(errors),
        )


def _demuxed(
    container: av.container.InputContainer, stream: av.video.VideoStream, errors: list[Any]
) -> Iterator[av.Packet]:
    """The packets up to the end of the file, or to where it cannot be read on: then that is added to ``errors``."""
    try:
        yield from container.demux(stream)
    except av.error.EOFError:
        return
    except av.error.FFmpegError as exc:
        errors.append(exc)


@contextlib.contextmanager
def _logged_errors() -> Iterator[list[Any]]:
    """A list that grows by what FFmpeg reports as an error while the block runs in this thread."""
    level = av.logging.get_level()
    av.logging.set_level(av.logging.ERROR)
    try:
        with av.logging.Capture() as reports:
            yield reports
    finally:
        av.logging.set_level(level)


def _nal_length_bytes(stream: av.video.VideoStream) -> int:
    """Bytes of the length before each unit of an H.264/HEVC stream in MP4 or Matroska form; 0 where there is none."""
    extradata = stream.codec_context.extradata or b""
    if len(extradata) < 7 or extradata[0] != 1:
        return 0
    if stream.codec_context.name == "h264":
        return (extradata[4] & 3) + 1
    if stream.codec_context.name == "hevc" and len(extradata) > 22:
        return (extradata[21] & 3) + 1
    return 0


def _is_whole(packet: av.Packet, length_bytes: int) -> bool:
    """The lengths inside the packet add up to its size and none is zero: a hole or foreign bytes would break that."""
    payload = memoryview(packet)
    at, end = 0, len(payload)
    while at < end:
        length = int.from_bytes(payload[at : at + length_bytes], "big")
        if length == 0:
            return False
        at += length_bytes + length
    return at == end


def _stream_facts(container: av.container.InputContainer, stream: av.video.VideoStream) -> dict[str, Any]:
    context = stream.codec_context
    rate = stream.average_rate or stream.guessed_rate
    aspect = stream.sample_aspect_ratio
    time_base = stream.time_base
    if time_base is None:
        time_base = Fraction(1, 1000)
    return {
        "container": container.format.name,
        "codec": context.codec.canonical_name,
        "stream_index": stream.index,
        "width": context.width,
        "height": context.height,
        "sample_aspect": float(aspect) if aspect else 1.0,
        "time_base": Fraction(time_base),
        "rate": float(rate) if rate and 0 < rate <= _FFMPEG_MAX_RATE else 0.0,
        "declared_s": _declared_s(container, stream, time_base),
        # Matroska tells when the stream ends, not how long it lasts.
        "declares_end": "matroska" in container.format.name,
        "num_video_streams": len(moving_streams(container)),
        "creation_time": credible_time(
            container.metadata.get("com.apple.quicktime.creationdate")
            or container.metadata.get("creation_time")
            or stream.metadata.get("creation_time")
        ),
    }


def _declared_s(
    container: av.container.InputContainer, stream: av.video.VideoStream, time_base: Fraction
) -> float | None:
    """Seconds that the header says the video stream lasts; None where only the whole file's length is known."""
    formats = set(container.format.name.split(","))
    if "mp4" in formats and stream.duration:
        return float(stream.duration * time_base)
    if "matroska" in formats:
        clock = stream.metadata.get("DURATION", "").split(":")
        with contextlib.suppress(ValueError):
            if len(clock) == 3:
                return int(clock[0]) * 3600 + int(clock[1]) * 60 + float(clock[2])
        if len(container.streams) == 1 and container.duration:
            return container.duration / av.time_base
    return None


def _first_picture(name: str, uri: str, stream_index: int) -> tuple[int | None, float]:
    """Time stamp and rotation (degrees) of the first picture that decodes; (None, 0) where none does."""
    with open_container(name, uri) as container:
        stream = container.streams[stream_index]
        stream.codec_context.thread_count = 1
        num_packets = 0
        packets = container.demux(stream)
        while num_packets < _FIRST_PICTURE_MAX_PACKETS:
            num_packets += 1
            try:
                packet = next(packets)
                for frame in packet.decode():
                    assert isinstance(frame, av.VideoFrame)
                    pts = frame.dts if container.format.name in _DECODE_TIME_CONTAINERS else frame.pts
                    if pts is not None:
                        return int(pts), float(frame.rotation)
            except StopIteration:
                break
            except av.error.FFmpegError:
                continue
    return None, 0.0


def _quarter_turns(degrees: float) -> int:
    """The nearest of 0, 90, 180, -90; 0 for a display matrix that turns nothing into a picture."""
    if not abs(degrees) <= 360:
        return 0
    turn = round(degrees / 90) % 4 * 90
    return turn - 360 if turn == 270 else turn


def _timing(pts: np.ndarray, last_duration: int, time_base: Fraction, rate: float) -> tuple[int, float, bool]:
    """How long the last picture lasts, the nominal rate, and whether the steps between pictures vary."""
    steps = np.diff(pts)
    typical = int(np.median(steps)) if len(steps) else 0
    last = last_duration or typical
    if last <= 0:
        last = round(1 / rate / time_base) if rate > 0 else 1
    span_s = float((int(pts[-1]) - int(pts[0]) + last) * time_base) if len(pts) else 0.0
    fps = rate or (len(pts) / span_s if span_s > 0 else 0.0)
    is_vfr = bool(len(steps) and int(steps.max()) - int(steps.min()) > max(2, 0.5 * typical))
    return last, fps, is_vfr


def _verdict(
    facts: dict[str, Any], table: _PacketTable, start_pts: int, turn: float, is_cut_off: bool
) -> tuple[bool, str]:
    """The rule of this module, with every reason against decord named."""
    against = []
    if not _DECORD_CONTAINERS & set(facts["container"].split(",")):
        against.append(f"container {facts['container']} is not MP4/MOV or Matroska/WebM")
    if facts["codec"] not in _DECORD_CODECS:
        against.append(f"codec {facts['codec']} is unknown to decord")
    if facts["num_video_streams"] > 1:
        against.append(f"{facts['num_video_streams']} video streams")
    if start_pts != 0 or (len(table.pts) and table.pts[0] != 0):
        against.append("the first picture is not at 0")
    if table.num_missing_pts:
        against.append(f"{counted(table.num_missing_pts, 'packet')} without a time stamp")
    if table.num_negative_pts:
        against.append(f"{counted(table.num_negative_pts, 'packet')} before 0 (edit list)")
    if len(table.pts) != table.num_packets and not table.num_missing_pts and not table.num_negative_pts:
        against.append("packets that are not shown or share a time stamp")
    if table.num_leading:
        against.append(f"{counted(table.num_leading, 'leading picture')} (open GOP)")
    if table.num_damaged:
        against.append(counted(table.num_damaged, "damaged packet"))
    elif table.num_container_errors:
        against.append(counted(table.num_container_errors, "broken place") + " in the container")
    if is_cut_off:
        against.append("the file is cut off")
    if turn not in (0, 90, -90, 180, -180):
        against.append("a display matrix that is no quarter turn")
    if facts["width"] % 2 or facts["height"] % 2:
        against.append(f"odd picture size {facts['width']}x{facts['height']}")
    if against:
        return False, "PyAV: " + "; ".join(against)
    return True, "decord: cleared by the probe"


def counted(number: int, noun: str) -> str:
    """``1 packet``, ``2 packets``."""
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def credible_time(text: str | None) -> datetime | None:
    """The moment in a container's creation tag as aware UTC, or None where it is absent, zoneless or a clock's reset
    value.

    1904 and 1970 are the zero of the usual clocks, 1980 and 2000 the values that cameras fall back to.
    """
    if not text:
        return None
    try:
        moment = datetime.fromisoformat(text.strip())
    except ValueError:
        return None
    if moment.tzinfo is None:
        return None
    try:
        moment = moment.astimezone(UTC)
    except OverflowError:
        return None
    is_reset = (moment.month, moment.day, moment.year) == (1, 1, 2000) and moment.hour == 0
    return None if moment.year < 1990 or moment.year >= 2100 or is_reset else moment


def _why_not_opened(path: str, exc: Exception) -> str:
    if isinstance(exc, FileNotFoundError):
        return "the file is not there"
    if isinstance(exc, PermissionError):
        return "the file may not be read (permission denied)"
    try:
        with Path(path).open("rb") as file:
            head = file.read(64)
    except OSError as read_error:
        return f"the file cannot be read: {read_error.strerror or read_error}"
    if head[4:8] in (b"ftyp", b"moov", b"mdat", b"wide", b"free"):
        return "an MP4/MOV file without a usable index (moov): it was cut off or never finished"
    if head[:4] == b"\x1aE\xdf\xa3":
        return "a Matroska/WebM file whose header is damaged or cut off"
    if head[:4] == b"RIFF":
        return "an AVI file whose header is damaged or cut off"
    return "not a video file: no known video container in it"
