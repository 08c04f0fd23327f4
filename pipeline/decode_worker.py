"""The parent's side of decoding: one long-lived child process, asked for one video at a time, ended when it hangs.

Owns the child's life and every time limit. Works from threads and from inside a Ray actor: the child is started with
``subprocess``, never forked from a process that has threads, and needs no ``__main__`` guard. After a crash, a hang,
or an iteration that was given up halfway, the next request starts a new child.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import select
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from types import TracebackType
from typing import IO, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from pipeline.decode_protocol import (
    DecodeEvent,
    DecodeRequest,
    Finished,
    FrameBatch,
    Message,
    Probed,
    batch_from,
    decode,
    encode,
)
from pipeline.errors import DecoderCrashed, DecoderTimeout, MediaError, UnreadableMedia

__all__ = ["DecodeEvent", "DecodeRequest", "DecodeSettings", "DecodeWorker", "Finished", "FrameBatch", "Probed"]

_PIPE_BYTES = 1 << 20
_STDERR_TAIL_BYTES = 2000


class DecodeSettings(BaseModel):
    """How videos are decoded."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    decoder: Literal["auto", "decord", "pyav"] = Field(
        default="auto",
        description="auto: decord where the demux probe clears the file, PyAV elsewhere; or one of them always",
    )
    threads: int | None = Field(
        default=None, ge=1, description="decoding threads per video; null: one per processor core"
    )
    batch_frames: int = Field(
        default=32, ge=1, description="sampled frames per batch, rounded down to whole frame groups"
    )
    stall_timeout_s: float = Field(
        default=60.0, gt=0, description="seconds without progress after which decoding is ended"
    )
    min_budget_s: float = Field(
        default=60.0, gt=0, description="least time in seconds that one file may take to decode"
    )
    budget_per_media_s: float = Field(
        default=4.0, gt=0, description="decoding seconds allowed per second of video, where that exceeds min_budget_s"
    )


class DecodeWorker:
    """Decodes videos in a child process. One request at a time; use one worker per concurrent video."""

    def __init__(self, settings: DecodeSettings | None = None) -> None:
        self.settings = settings or DecodeSettings()
        self._child: _Child | None = None

    def __enter__(self) -> DecodeWorker:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """End the child. The worker may be used again."""
        if self._child is not None:
            self._child.close()
            self._child = None

    def decode(self, path: str, uri: str, request: DecodeRequest) -> Iterator[DecodeEvent]:
        """Probed, then FrameBatch in order, then Finished.

        Time that the caller spends between two events counts against no limit.

        Raises:
            UnreadableMedia: the file is not a video that can be decoded.
            DecoderCrashed: the child died.
            DecoderTimeout: no progress for ``stall_timeout_s``, or the file's time budget is spent. The child was
            ended.
        """
        child = self._ready_child()
        is_done = False
        try:
            child.send(self._request_message(path, uri, request))
            clock = _Clock(self.settings)
            while not is_done:
                message = child.receive(clock)
                kind = message.fields["kind"]
                if kind == "alive":
                    continue
                is_done = kind in ("finished", "failed")
                if kind == "failed":
                    raise _error_of(message, uri)
                if kind == "probed":
                    clock.allow(message.fields["summary"]["duration_s"])
                yield _event_of(message)
        except _ChildDiedError as death:
            raise DecoderCrashed(uri, f"the decoding process died: {death}") from None
        except _TimeUpError as limit:
            raise DecoderTimeout(uri, f"{limit}; the decoding process was ended") from None
        finally:
            if not is_done:
                self.close()

    def _request_message(self, path: str, uri: str, request: DecodeRequest) -> Message:
        return Message(
            {
                "path": path,
                "uri": uri,
                "request": asdict(request),
                "decoder": request.decoder or self.settings.decoder,
                "threads": request.threads or self.settings.threads or _num_cores(),
                "batch_frames": self.settings.batch_frames,
            }
        )

    def _ready_child(self) -> _Child:
        if self._child is not None and not self._child.is_alive():
            self.close()
        if self._child is None:
            self._child = _Child()
        return self._child


class _ChildDiedError(Exception):
    pass


class _TimeUpError(Exception):
    pass


class _Clock:
    """Counts the seconds spent waiting for the child."""

    def __init__(self, settings: DecodeSettings) -> None:
        self._settings = settings
        self._budget_s = settings.min_budget_s
        self._waited_s = 0.0

    def allow(self, media_s: float) -> None:
        self._budget_s = max(self._settings.min_budget_s, self._settings.budget_per_media_s * media_s)

    def wait(self, poll: Any, since: float) -> None:
        """Wait for the child to say more. ``since`` (monotonic): when the wait for this message began.

        Raises:
            _TimeUpError
        """
        begun = time.monotonic()
        left_s = min(since + self._settings.stall_timeout_s - begun, self._budget_s - self._waited_s)
        is_ready = left_s > 0 and poll.poll(left_s * 1000)
        self._waited_s += time.monotonic() - begun
        if is_ready:
            return
        if self._waited_s >= self._budget_s:
            raise _TimeUpError(f"decoding took more than its budget of {self._budget_s:.0f} s")
        raise _TimeUpError(f"decoding made no progress for {self._settings.stall_timeout_s:.0f} s")


class _Child:
    """One running ``pipeline.decode_child`` with its two pipes and its stderr, which is a file without a name."""

    def __init__(self) -> None:
        self._stderr: IO[bytes] = tempfile.TemporaryFile()  # noqa: SIM115  closed in close()
        fcntl.fcntl(self._stderr, fcntl.F_SETFL, fcntl.fcntl(self._stderr, fcntl.F_GETFL) | os.O_APPEND)
        request_end, self._request_fd = os.pipe()
        self._event_fd, event_end = os.pipe()
        with contextlib.suppress(OSError, AttributeError):
            fcntl.fcntl(self._event_fd, fcntl.F_SETPIPE_SZ, _PIPE_BYTES)
        package_root = str(Path(__file__).resolve().parent.parent)
        environment = dict(os.environ)
        environment["PYTHONPATH"] = os.pathsep.join(filter(None, [package_root, environment.get("PYTHONPATH")]))
        try:
            self._process = subprocess.Popen(
                # -P: a file in the current folder is never taken for a library.
                [
                    sys.executable,
                    "-P",
                    "-m",
                    "pipeline.decode_child",
                    str(request_end),
                    str(event_end),
                    str(os.getpid()),
                ],
                stdin=subprocess.DEVNULL,
                stdout=self._stderr,
                stderr=self._stderr,
                pass_fds=(request_end, event_end),
                env=environment,
            )
        finally:
            os.close(request_end)
            os.close(event_end)
        self._poll = select.poll()
        self._poll.register(self._event_fd, select.POLLIN)

    def is_alive(self) -> bool:
        return self._process.poll() is None

    def send(self, message: Message) -> None:
        try:
            for view in encode(message):
                while view.nbytes:
                    view = view[os.write(self._request_fd, view) :]
        except BrokenPipeError:
            raise _ChildDiedError(self._last_words()) from None

    def receive(self, clock: _Clock) -> Message:
        since = time.monotonic()

        def read_exactly(count: int) -> memoryview:
            buffer = memoryview(bytearray(count))
            at = 0
            while at < count:
                clock.wait(self._poll, since)
                num_read = os.readv(self._event_fd, [buffer[at:]])
                if num_read == 0:
                    raise _ChildDiedError(self._last_words())
                at += num_read
            return buffer

        return decode(read_exactly)

    def _last_words(self) -> str:
        try:
            code = self._process.wait(timeout=5)
        except subprocess.TimeoutExpired:
            code = None
        if code is None:
            how = "it closed its pipe"
        elif code < 0:
            how = f"signal {_signal_name(-code)}"
        else:
            how = f"exit code {code}"
        size = os.fstat(self._stderr.fileno()).st_size
        tail = os.pread(self._stderr.fileno(), _STDERR_TAIL_BYTES, max(0, size - _STDERR_TAIL_BYTES))
        lines = [line.strip() for line in tail.decode("utf-8", "replace").splitlines() if line.strip()]
        return f"{how}; it last said {lines[-1]!r}" if lines else how

    def close(self) -> None:
        self._process.kill()
        self._process.wait()
        os.close(self._request_fd)
        os.close(self._event_fd)
        self._stderr.close()


def _event_of(message: Message) -> DecodeEvent:
    fields = dict(message.fields)
    kind = fields.pop("kind")
    if kind == "probed":
        return Probed(fields["summary"])
    if kind == "batch":
        return batch_from(message)
    return Finished(**fields)


def _error_of(message: Message, uri: str) -> MediaError:
    assert message.fields["error"] == "UnreadableMedia", message.fields
    return UnreadableMedia(uri, message.fields["cause"])


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return str(number)


def _num_cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
