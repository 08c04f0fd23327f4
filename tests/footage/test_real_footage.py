"""Every real clip: decoded whole by the decoder the probe chose, with the right length, times and way up."""

from __future__ import annotations

import io
import json
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from pipeline.decode_worker import DecodeRequest, DecodeWorker, Finished, FrameBatch, Probed
from pipeline.frames import FrameSampler
from pipeline.probe import probe

pytestmark = pytest.mark.footage

CLIPS = [
    *("parking_overhead.mp4", "motorway_cfr.mp4", "motorway_vfr.mp4", "avenue_60fps.avi", "courtyard_cyclists.mp4"),
    *("courtyard_cyclists_lowlight.mkv", "bottles_shelf.mp4", "store_aisle_hevc.mp4", "corridor_pair_odd.webm"),
    *(
        "dashcam_day.mp4",
        "juggle_portrait_rot90.mov",
        "blocks_tabletop.mp4",
        "telescope_multistream.mp4",
        "flower.webm",
    ),
    *("aerial_orbit_1fps.mp4", "conveyor_av1.mkv", "keyboard_rot90.mov"),
]
BY_PYAV = {
    "avenue_60fps.avi": "container avi",
    "corridor_pair_odd.webm": "odd picture size",
    "telescope_multistream.mp4": "2 video streams",
    "flower.webm": "not at 0",
    "conveyor_av1.mkv": "av1",
}


@pytest.fixture(scope="module")
def manifest(footage_folder: Path) -> dict[str, dict[str, Any]]:
    lines = (footage_folder / "manifest.jsonl").read_text(encoding="utf-8").splitlines()
    return {entry["file"]: entry for entry in map(json.loads, lines)}


@pytest.fixture(scope="module")
def worker() -> Iterator[DecodeWorker]:
    with DecodeWorker() as shared:
        yield shared


def test_no_clip_is_left_out(manifest: dict[str, dict[str, Any]]) -> None:
    assert set(manifest) == set(CLIPS)


@pytest.mark.parametrize("name", CLIPS)
def test_a_clip_is_indexed(
    worker: DecodeWorker, footage_folder: Path, manifest: dict[str, dict[str, Any]], name: str
) -> None:
    facts = manifest[name]
    request = DecodeRequest(fps=1.0, image_size=96, embed_image_size=96, segment_s=10.0, threads=2)
    first, *batches, last = worker.decode(str(footage_folder / name), name, request)
    assert isinstance(first, Probed)
    assert isinstance(last, Finished)
    frame_s = 1 / facts["fps"]
    assert first.summary["duration_s"] == pytest.approx(facts["picture_span_s"], abs=max(frame_s, 0.1))
    assert first.summary["codec"] == facts["codec"]
    size = (first.summary["display_width"], first.summary["display_height"])
    assert size == (facts["display_width"], facts["display_height"])
    assert first.summary["rotation"] == facts["rotation_deg"]
    assert last.backend == ("pyav" if name in BY_PYAV else "decord"), last.verdict
    assert BY_PYAV.get(name, "cleared") in last.verdict
    assert (last.damage, last.bad_packets) == (None, 0)
    times: list[float] = []
    for batch in batches:
        assert isinstance(batch, FrameBatch)
        times += batch.times_s
        for thumbnail in batch.thumbnails:
            assert thumbnail is not None
            width, height = Image.open(io.BytesIO(thumbnail)).size
            assert max(width, height) == 320
            assert width / height == pytest.approx(size[0] / size[1], rel=0.02)
    assert times == sorted(set(times))
    assert last.num_frames == len(times) == -int(-facts["picture_span_s"] // 1)


@pytest.mark.parametrize("name", CLIPS)
def test_times_are_those_that_ffprobe_reports(footage_folder: Path, name: str) -> None:
    if shutil.which("ffprobe") is None:
        pytest.skip("ffprobe is not installed")
    path = footage_folder / name
    facts = probe(str(path))
    command = ["ffprobe", "-v", "error", "-select_streams", str(facts.stream_index), "-of", "csv=p=0"]
    command += ["-show_entries", "frame=best_effort_timestamp_time", str(path)]
    shown = subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()
    pts_s = np.array([float(line.strip(",")) for line in shown if line.strip(",") not in ("", "N/A")])
    for fps in (1.0, 4.0):
        sampled = list(FrameSampler(str(path), facts, fps, threads=2))
        for frame in sampled:
            at = int(np.searchsorted(pts_s - pts_s[0], frame.index / fps + 1e-6, side="right")) - 1
            assert abs(frame.time_s - (pts_s[at] - pts_s[0])) <= 0.5 / facts.fps, (fps, frame.index)


@pytest.mark.parametrize("name", [name for name in CLIPS if name not in BY_PYAV])
def test_both_decoders_agree(footage_folder: Path, name: str) -> None:
    path = str(footage_folder / name)
    facts = probe(path)
    by_decord = FrameSampler(path, facts, 0.5, decoder="decord")
    by_pyav = FrameSampler(path, facts, 0.5, decoder="pyav", threads=2)
    for a, b in zip(by_decord, by_pyav, strict=True):
        assert a.time_s == b.time_s
        np.testing.assert_array_equal(a.rgb_HWC, b.rgb_HWC)
    assert (by_decord.backend, by_pyav.backend) == ("decord", "pyav")
