"""The decoding process: what it delivers, and that a crash, a hang or a bad file costs one video only."""

from __future__ import annotations

import io
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import av
import numpy as np
import pytest
from PIL import Image

from pipeline.decode_protocol import Message, decode, encode
from pipeline.decode_worker import DecodeRequest, DecodeSettings, DecodeWorker, Finished, FrameBatch, Probed
from pipeline.errors import DecoderCrashed, DecoderTimeout, UnreadableMedia
from tests import clips

GetClip = Callable[[str], clips.Clip]


def request_for(
    fps: float = 4.0, segment_s: float | None = 3.0, first_segment: int = 0, **more: object
) -> DecodeRequest:
    values = {"image_size": 80, "embed_image_size": 80, "thumbnail_px": 64, "threads": 2, **more}
    return DecodeRequest(fps=fps, segment_s=segment_s, first_segment=first_segment, **values)  # type: ignore[arg-type]


def run(
    worker: DecodeWorker, path: Path, request: DecodeRequest, uri: str = "file:///clip"
) -> tuple[Probed, list[FrameBatch], Finished]:
    first, *batches, last = worker.decode(str(path), uri, request)
    assert isinstance(first, Probed)
    assert isinstance(last, Finished)
    assert all(isinstance(batch, FrameBatch) for batch in batches)
    return first, batches, last  # type: ignore[return-value]


@pytest.fixture(scope="module")
def worker() -> Iterator[DecodeWorker]:
    with DecodeWorker(DecodeSettings(batch_frames=9)) as shared:
        yield shared


@pytest.fixture
def long_clip(clip_factory: GetClip) -> Path:
    """12 s at 30/s: segments of 3 s hold 12 frames at 4/s."""
    return clip_factory("long.mp4").path


def test_batches_follow_the_segments(worker: DecodeWorker, long_clip: Path) -> None:
    probed, batches, finished = run(worker, long_clip, request_for())
    assert probed.summary["duration_s"] == pytest.approx(12.0)
    assert [(b.segment_index, b.first_frame_index_in_segment, len(b.times_s), b.is_segment_end) for b in batches] == [
        (segment, first, count, is_end)
        for segment in range(4)
        for first, count, is_end in [(0, 8, False), (8, 4, True)]
    ]
    times = [t for b in batches for t in b.times_s]
    assert times == pytest.approx([k / 4 for k in range(48)], abs=1 / 30)
    seen = [n for b in batches for n in clips.read_numbers(list(b.pixels_u8_FHWC))]
    assert seen == [n * 30 // 4 for n in range(48)]
    assert (finished.num_frames, finished.backend, finished.bad_packets, finished.damage) == (48, "decord", 0, None)
    assert finished.decoded_until_s == pytest.approx(12.0)


def test_pictures_of_a_batch(worker: DecodeWorker, long_clip: Path) -> None:
    _, batches, _ = run(worker, long_clip, request_for(embed_image_size=32))
    batch = batches[0]
    assert batch.pixels_u8_FHWC.shape == (8, 80, 80, 3)
    assert batch.embed_u8_FHWC is not None
    assert batch.embed_u8_FHWC.shape == (8, 32, 32, 3)
    assert len(batch.thumbnails) == 2
    for group, thumbnail in enumerate(batch.thumbnails):
        assert thumbnail is not None
        picture = Image.open(io.BytesIO(thumbnail))
        assert picture.size == (64, 38)
        assert clips.read_number(np.asarray(picture)) == clips.read_number(batch.pixels_u8_FHWC[group * 4 + 2])
    assert batch.motion[0] == 0.0
    assert all(0.0 < moved < 1.0 for moved in batch.motion[1:])


def test_without_segments_the_video_is_one(worker: DecodeWorker, long_clip: Path) -> None:
    _, batches, _ = run(worker, long_clip, request_for(fps=1.0, segment_s=None))
    assert [(b.segment_index, len(b.times_s), b.is_segment_end) for b in batches] == [(0, 8, False), (0, 4, True)]


def test_a_last_group_may_be_short(worker: DecodeWorker, clip_factory: GetClip) -> None:
    _, batches, _ = run(worker, clip_factory("h264.mp4").path, request_for(fps=3.0, segment_s=None))
    assert [len(b.times_s) for b in batches] == [8, 1]
    assert [len(b.thumbnails) for b in batches] == [2, 1]
    assert all(b.thumbnails[-1] for b in batches)


@pytest.mark.parametrize("decoder", ["decord", "pyav"])
@pytest.mark.parametrize("segment_s", [3.0, 2.3])
def test_a_resumed_segment_equals_the_first_run(
    worker: DecodeWorker, long_clip: Path, segment_s: float, decoder: str
) -> None:
    _, whole, _ = run(worker, long_clip, request_for(fps=7.0, segment_s=segment_s, decoder=decoder))
    for first_segment in (1, 3):
        _, resumed, finished = run(
            worker, long_clip, request_for(fps=7.0, segment_s=segment_s, first_segment=first_segment, decoder=decoder)
        )
        expected = [b for b in whole if b.segment_index >= first_segment]
        assert len(resumed) == len(expected)
        for a, b in zip(resumed, expected, strict=True):
            assert (a.segment_index, a.first_frame_index_in_segment, a.is_segment_end) == (
                *(b.segment_index, b.first_frame_index_in_segment),
                b.is_segment_end,
            )
            assert (a.times_s, a.motion, a.thumbnails) == (b.times_s, b.motion, b.thumbnails)
            np.testing.assert_array_equal(a.pixels_u8_FHWC, b.pixels_u8_FHWC)
        assert finished.num_frames == sum(len(b.times_s) for b in expected)


def test_a_segment_after_the_end_gives_no_frames(worker: DecodeWorker, long_clip: Path) -> None:
    _, batches, finished = run(worker, long_clip, request_for(first_segment=9))
    assert (batches, finished.num_frames) == ([], 0)


def test_a_bad_file_is_named_and_the_next_one_is_decoded(worker: DecodeWorker, long_clip: Path, tmp_path: Path) -> None:
    bad = tmp_path / "bad.mp4"
    bad.write_text("no video")
    with pytest.raises(UnreadableMedia, match="no known video container") as caught:
        list(worker.decode(str(bad), "s3://b/bad.mp4", request_for()))
    assert caught.value.uri == "s3://b/bad.mp4"
    assert run(worker, long_clip, request_for())[2].num_frames == 48


def test_damage_that_decord_passes_over_is_flagged(worker: DecodeWorker, long_clip: Path, tmp_path: Path) -> None:
    """Flipped bits inside whole packets: no structure is broken, only the decoder can tell."""
    content = bytearray(long_clip.read_bytes())
    with av.open(str(long_clip)) as container:
        packets = [(packet.pos or 0, packet.size) for packet in container.demux(video=0) if packet.size > 200]
    for pos, size in packets[len(packets) // 3 : len(packets) // 2]:
        for at in range(pos + 60, pos + size - 20, 9):
            content[at] ^= 0xFF
    path = tmp_path / "flipped.mp4"
    path.write_bytes(content)
    _, batches, finished = run(worker, path, request_for())
    assert finished.backend == "pyav"
    assert "reported errors" in finished.verdict
    assert finished.damage
    assert batches[-1].times_s[-1] > 11


def test_an_iteration_given_up_leaves_the_worker_usable(worker: DecodeWorker, long_clip: Path) -> None:
    events = worker.decode(str(long_clip), "file:///x", request_for())
    next(events)
    next(events)
    events.close()  # type: ignore[attr-defined]
    assert run(worker, long_clip, request_for())[2].num_frames == 48


def test_a_crash_costs_one_file(long_clip: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VXL_FAULT", "crash:poison")
    with DecodeWorker() as own:
        with pytest.raises(DecoderCrashed, match="SIGSEGV") as caught:
            list(own.decode(str(long_clip), "s3://b/poison.mp4", request_for()))
        assert caught.value.uri == "s3://b/poison.mp4"
        assert run(own, long_clip, request_for(), "s3://b/good.mp4")[2].num_frames == 48


def test_a_crash_that_happens_once(long_clip: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VXL_FAULT", f"crash-once:poison:{tmp_path / 'flag'}")
    with DecodeWorker() as own:
        with pytest.raises(DecoderCrashed):
            list(own.decode(str(long_clip), "s3://b/poison.mp4", request_for()))
        assert run(own, long_clip, request_for(), "s3://b/poison.mp4")[2].num_frames == 48


def test_a_hang_is_ended_in_time(long_clip: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VXL_FAULT", "hang:poison")
    with DecodeWorker(DecodeSettings(stall_timeout_s=3.0)) as own:
        begun = time.monotonic()
        with pytest.raises(DecoderTimeout, match="no progress for 3 s"):
            list(own.decode(str(long_clip), "s3://b/poison.mp4", request_for()))
        assert time.monotonic() - begun < 10
        assert run(own, long_clip, request_for(), "s3://b/good.mp4")[2].num_frames == 48


def test_a_file_has_a_time_budget(long_clip: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VXL_FAULT", "hang:poison")
    settings = DecodeSettings(stall_timeout_s=60.0, min_budget_s=1.0, budget_per_media_s=0.01)
    with DecodeWorker(settings) as own, pytest.raises(DecoderTimeout, match="budget of 1 s"):
        list(own.decode(str(long_clip), "s3://b/poison.mp4", request_for()))


def test_time_of_the_caller_counts_against_no_limit(long_clip: Path) -> None:
    with DecodeWorker(DecodeSettings(stall_timeout_s=4.0, batch_frames=4)) as own:
        num_frames = 0
        for event in own.decode(str(long_clip), "file:///x", request_for(fps=30.0)):
            if isinstance(event, FrameBatch):
                if num_frames == 0:
                    time.sleep(4.5)
                num_frames += len(event.times_s)
    assert num_frames == 360


def test_it_works_from_any_thread(worker: DecodeWorker, long_clip: Path) -> None:
    with ThreadPoolExecutor(1) as pool:
        assert pool.submit(run, worker, long_clip, request_for()).result()[2].num_frames == 48


def test_the_child_loads_no_model_code() -> None:
    heavy = ("torch", "ray", "lancedb", "boto3", "pydantic")
    code = f"import sys, pipeline.decode_child; print([name for name in {heavy} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


@pytest.mark.skipif(sys.platform != "linux", reason="the kernel's help is needed")
def test_the_child_dies_with_its_parent(long_clip: Path) -> None:
    code = (
        "import sys\n"
        "from pipeline.decode_worker import DecodeRequest, DecodeWorker\n"
        "worker = DecodeWorker()\n"
        "request = DecodeRequest(fps=1, image_size=32, embed_image_size=32, segment_s=None)\n"
        "for event in worker.decode(sys.argv[1], 'poison', request):\n"
        "    print(worker._child._process.pid, flush=True)\n"
    )
    environment = {**os.environ, "VXL_FAULT": "hang:poison"}
    with subprocess.Popen(
        [sys.executable, "-c", code, str(long_clip)], stdout=subprocess.PIPE, text=True, env=environment
    ) as parent:
        assert parent.stdout is not None
        child = int(parent.stdout.readline())
        parent.send_signal(signal.SIGKILL)
    deadline = time.monotonic() + 5
    while Path(f"/proc/{child}").exists() and "State:\tZ" not in Path(f"/proc/{child}/status").read_text():
        assert time.monotonic() < deadline, "the decoding process outlived its parent"
        time.sleep(0.05)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"fps": 0.0}, "fps"),
        ({"segment_s": 0.0}, "segment_s"),
        ({"segment_s": None, "first_segment": 1}, "no segment 1"),
        ({"frames_per_group": 0}, "frames_per_group"),
    ],
)
def test_requests_that_make_no_sense(change: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        request_for(**change)  # type: ignore[arg-type]


def test_messages_survive_the_pipe() -> None:
    picture = np.arange(24, dtype=np.uint8).reshape(2, 4, 3)[:, ::2]
    stream = io.BytesIO(b"".join(encode(Message({"kind": "x", "text": "caf\udce9 \n"}, [picture, b"", b"jpeg"]))))
    message = decode(lambda count: memoryview(stream.read(count)))
    assert message.fields == {"kind": "x", "text": "caf\udce9 \n"}
    assert [bytes(block) for block in message.blocks] == [picture.tobytes(), b"", b"jpeg"]
