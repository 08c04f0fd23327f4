"""The decoding process: reads requests from a pipe, writes events to another, one video at a time.

Started by ``pipeline.decode_worker`` as ``python -m pipeline.decode_child``. A crash or a hang in a C library ends
with this process. Imports no torch and no settings. Decoding runs ahead of the parent by at most two batches.

VXL_FAULT makes it fail on purpose, for tests of the recovery: ``crash:TEXT``, ``hang:TEXT`` or
``crash-once:TEXT:FLAGFILE``, several separated by ``;``, applied to videos whose URI holds TEXT, once the video has
been probed.
"""

from __future__ import annotations

import os
import queue
import signal
import sys
import threading
import time
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import numpy as np

from pipeline import pictures
from pipeline.decode_protocol import DecodeRequest, FrameBatch, Message, batch_message, decode, encode
from pipeline.errors import MediaError
from pipeline.frames import FrameSampler, SampledFrame
from pipeline.probe import MediaProbe, probe
from videoxl2.processes import end_with_parent

_BATCHES_AHEAD = 2
_SIGN_OF_LIFE_S = 1.0
_MAX_NOISE_BYTES = 4 << 20


def main() -> None:
    request_fd, event_fd, parent_pid = (int(text) for text in sys.argv[1:4])
    _leave_no_core()
    end_with_parent(parent_pid)
    while True:
        try:
            message = decode(lambda count: _read_exactly(request_fd, count))
        except EOFError:
            return
        _serve(message.fields, event_fd)


def _leave_no_core() -> None:
    """A library that crashes on a bad file leaves no dump of this process."""
    if sys.platform == "linux":
        import resource

        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


def _serve(fields: dict[str, Any], event_fd: int) -> None:
    uri = fields["uri"]
    with _EventWriter(event_fd) as events:
        try:
            _decode_video(fields["path"], uri, DecodeRequest(**fields["request"]), fields, events)
        except MediaError as exc:
            events.put(Message({"kind": "failed", "error": type(exc).__name__, "cause": exc.cause}))
        except Exception as exc:
            # Anything else a decoder raises is this file's failure, not the process's.
            cause = f"decoding failed with {type(exc).__name__}: {exc}"
            events.put(Message({"kind": "failed", "error": "UnreadableMedia", "cause": cause}))
    _trim_noise()


def _decode_video(path: str, uri: str, request: DecodeRequest, fields: dict[str, Any], events: _EventWriter) -> None:
    facts = probe(path, uri)
    events.put(Message({"kind": "probed", "summary": facts.summary()}))
    _inject_fault(uri)
    sampler = FrameSampler(
        path,
        facts,
        request.fps,
        uri=uri,
        decoder=fields["decoder"],
        threads=fields["threads"],
        on_progress=events.sign_of_life,
        decoder_noise=_noise_bytes,
    )
    sampler.first_index = sampler.grid.first_index(request.first_segment, request.segment_s)
    num_frames = 0
    with ThreadPoolExecutor(fields["threads"]) as pool:
        for batch in assemble_batches(_with_pictures(sampler, facts, request, pool), request, fields["batch_frames"]):
            num_frames += len(batch.times_s)
            events.put(batch_message(batch))
    events.put(
        Message(
            {
                "kind": "finished",
                "num_frames": num_frames,
                "backend": sampler.backend,
                "verdict": sampler.verdict,
                "bad_packets": sampler.bad_packets,
                "decoded_until_s": sampler.decoded_until_s,
                "damage": sampler.damage,
            }
        )
    )


class PlacedFrame:
    """A sampled frame without its full-size picture, with its place in the segments."""

    __slots__ = ("is_context", "pictures", "position", "segment", "time_s")

    def __init__(
        self, segment: int, position: int, time_s: float, is_context: bool, made: pictures.FramePictures
    ) -> None:
        self.segment = segment
        self.position = position
        self.time_s = time_s
        self.is_context = is_context
        self.pictures = made


def _with_pictures(
    sampler: FrameSampler, facts: MediaProbe, request: DecodeRequest, pool: ThreadPoolExecutor
) -> Iterator[PlacedFrame]:
    """Resize in ``pool`` while decoding goes on; order is kept, and only a few full-size frames are held."""
    thumbnail_size = pictures.thumbnail_size(facts.display_size, request.thumbnail_px)
    embed_size = None if request.embed_image_size == request.image_size else request.embed_image_size
    pending: deque[tuple[int, int, SampledFrame, Future[pictures.FramePictures]]] = deque()
    segment, position = -1, 0

    def oldest() -> PlacedFrame:
        at_segment, at_position, frame, made = pending.popleft()
        return PlacedFrame(at_segment, at_position, frame.time_s, frame.is_context, made.result())

    for frame in sampler:
        frame_segment = sampler.grid.segment(frame.index, request.segment_s)
        position = 0 if frame_segment != segment else position + 1
        segment = -1 if frame.is_context else frame_segment
        wants_thumbnail = position % request.frames_per_group in (0, request.frames_per_group // 2)
        made = pool.submit(
            pictures.make_pictures,
            frame.rgb_HWC,
            image_size=request.image_size,
            embed_size=embed_size,
            thumbnail_size=thumbnail_size if wants_thumbnail else None,
        )
        pending.append((frame_segment, position, frame, made))
        if len(pending) > 4:
            yield oldest()
    while pending:
        yield oldest()


def assemble_batches(frames: Iterable[PlacedFrame], request: DecodeRequest, batch_frames: int) -> Iterator[FrameBatch]:
    """Cut the frames into batches of whole groups that never cross a segment; context frames only feed ``motion``."""
    size = max(1, batch_frames // request.frames_per_group) * request.frames_per_group
    held: list[tuple[PlacedFrame, float]] = []
    previous: np.ndarray | None = None
    for frame in frames:
        moved = pictures.motion(frame.pictures.luma_HW, previous)
        previous = frame.pictures.luma_HW
        if frame.is_context:
            continue
        is_new_segment = bool(held) and frame.segment != held[0][0].segment
        if is_new_segment or len(held) == size:
            yield _batch(held, request.frames_per_group, is_segment_end=is_new_segment)
            held = []
        held.append((frame, moved))
    if held:
        yield _batch(held, request.frames_per_group, is_segment_end=True)


def _batch(held: list[tuple[PlacedFrame, float]], group: int, *, is_segment_end: bool) -> FrameBatch:
    frames = [frame for frame, _ in held]
    embeds = [frame.pictures.embed_HWC for frame in frames if frame.pictures.embed_HWC is not None]
    return FrameBatch(
        segment_index=frames[0].segment,
        first_frame_index_in_segment=frames[0].position,
        pixels_u8_FHWC=np.stack([frame.pictures.image_HWC for frame in frames]),
        embed_u8_FHWC=np.stack(embeds) if embeds else None,
        times_s=[frame.time_s for frame in frames],
        motion=[moved for _, moved in held],
        thumbnails=[_thumbnail(frames[at : at + group], group) for at in range(0, len(frames), group)],
        is_segment_end=is_segment_end,
    )


def _thumbnail(frames: list[PlacedFrame], group: int) -> bytes | None:
    middle = group // 2
    small = frames[middle if middle < len(frames) else 0].pictures.small
    return None if small is None else pictures.jpeg(small)


class _EventWriter:
    """Writes messages from its own thread, so that decoding runs on while the parent is busy, two batches at most."""

    def __init__(self, event_fd: int) -> None:
        self._fd = event_fd
        self._queue: queue.Queue[Message | None] = queue.Queue(maxsize=_BATCHES_AHEAD)
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._last_sign = time.monotonic()

    def __enter__(self) -> _EventWriter:
        self._thread.start()
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._queue.put(None)
        self._thread.join()

    def put(self, message: Message) -> None:
        self._queue.put(message)
        self._last_sign = time.monotonic()

    def sign_of_life(self) -> None:
        """Tell the parent, now and then, that packets are still moving; skipped while it has events to read."""
        if time.monotonic() - self._last_sign >= _SIGN_OF_LIFE_S and self._queue.empty():
            self.put(Message({"kind": "alive"}))

    def _run(self) -> None:
        while (message := self._queue.get()) is not None:
            try:
                for view in encode(message):
                    _write_all(self._fd, view)
            except BrokenPipeError:
                os._exit(0)


def _inject_fault(uri: str) -> None:
    for fault in filter(None, os.environ.get("VXL_FAULT", "").split(";")):
        kind, _, rest = fault.partition(":")
        text, flag_file = rest, ""
        if kind == "crash-once":
            text, _, flag_file = rest.rpartition(":")
        if text not in uri:
            continue
        if flag_file:
            try:
                os.close(os.open(flag_file, os.O_CREAT | os.O_EXCL))
            except FileExistsError:
                continue
        # Leave the writer time to hand over what was already said.
        time.sleep(0.2)
        if kind.startswith("crash"):
            os.kill(os.getpid(), signal.SIGSEGV)
        while kind == "hang":
            time.sleep(3600)


def _noise_bytes() -> int:
    """How much the C libraries have printed so far: stderr is a file that the parent made."""
    try:
        return os.fstat(2).st_size
    except OSError:
        return 0


def _trim_noise() -> None:
    if _noise_bytes() > _MAX_NOISE_BYTES:
        os.ftruncate(2, 0)


def _read_exactly(fd: int, count: int) -> memoryview:
    parts = bytearray()
    while len(parts) < count:
        part = os.read(fd, count - len(parts))
        if not part:
            raise EOFError
        parts += part
    return memoryview(parts)


def _write_all(fd: int, view: memoryview) -> None:
    while view.nbytes:
        view = view[os.write(fd, view) :]


if __name__ == "__main__":
    main()
