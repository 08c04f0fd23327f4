"""Sampling: the exact frame for every target, through both decoders, from any starting point, past damage."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from pipeline.errors import UnreadableMedia
from pipeline.frames import Decoder, FrameSampler, SampledFrame
from pipeline.probe import probe
from tests import clips

GetClip = Callable[[str], clips.Clip]
ALL_CLIPS = [*clips.RECIPES, "cut.mp4"]
RATES = [1.0, 7.0, 29.97, 30.0]


def sample(
    path: Path, fps: float, *, first_index: int = 0, decoder: Decoder = "auto", threads: int = 1
) -> tuple[FrameSampler, list[SampledFrame]]:
    sampler = FrameSampler(str(path), probe(str(path)), fps, first_index=first_index, decoder=decoder, threads=threads)
    return sampler, list(sampler)


def numbers(frames: list[SampledFrame]) -> list[int]:
    return clips.read_numbers([frame.rgb_HWC for frame in frames])


@pytest.mark.parametrize("fps", RATES)
@pytest.mark.parametrize("name", ALL_CLIPS)
def test_the_frame_shown_at_each_target_is_taken(clip_factory: GetClip, name: str, fps: float) -> None:
    clip = clip_factory(name)
    sampler, frames = sample(clip.path, fps)
    assert sampler.damage is None
    if name == "mpeg4.avi":
        assert numbers(frames)[:-1] == clip.expected(fps)[: len(frames) - 1]
        return
    if fps != 29.97:
        assert numbers(frames) == clip.expected(fps)
    times = [frame.time_s for frame in frames]
    assert times == sorted(set(times))
    for frame, number in zip(frames, numbers(frames), strict=True):
        assert frame.time_s == pytest.approx(clip.times_s[number - clip.first_number] - clip.times_s[0], abs=0.001)
        assert frame.time_s <= frame.target_s + 0.0005


@pytest.mark.parametrize("threads", [1, 2, 3])
@pytest.mark.parametrize("name", ["h264.mp4", "hevc_closed.mp4", "vp9.webm", "vfr.mp4"])
def test_both_decoders_give_the_same_pixels_and_times(clip_factory: GetClip, name: str, threads: int) -> None:
    path = clip_factory(name).path
    one, by_decord = sample(path, 7.0, decoder="decord")
    two, by_pyav = sample(path, 7.0, decoder="pyav", threads=threads)
    assert (one.backend, two.backend) == ("decord", "pyav")
    assert [f.time_s for f in by_decord] == [f.time_s for f in by_pyav]
    assert [f.index for f in by_decord] == [f.index for f in by_pyav]
    for a, b in zip(by_decord, by_pyav, strict=True):
        np.testing.assert_array_equal(a.rgb_HWC, b.rgb_HWC)


@pytest.mark.parametrize("decoder", ["auto", "pyav"])
@pytest.mark.parametrize(
    "name", ["long.mp4", "opengop.mp4", "hevc.mp4", "vp9.webm", "vfr.mp4", "h264.ts", "mpeg4.avi", "cut.mp4"]
)
def test_starting_in_the_middle_gives_the_same_frames(clip_factory: GetClip, name: str, decoder: Decoder) -> None:
    path = clip_factory(name).path
    _, whole = sample(path, 7.0, decoder=decoder)
    for first_index in range(1, whole[-1].index + 1, 3):
        _, tail = sample(path, 7.0, first_index=first_index, decoder=decoder, threads=2)
        expected = [f for f in whole if f.index >= first_index]
        context, rest = tail[0], tail[1:]
        assert context.is_context
        assert context.index == max(f.index for f in whole if f.index < first_index)
        assert [f.index for f in rest] == [f.index for f in expected]
        assert not any(f.is_context for f in rest)
        for a, b in zip(rest[:2] + rest[-1:], expected[:2] + expected[-1:], strict=True):
            np.testing.assert_array_equal(a.rgb_HWC, b.rgb_HWC)


def test_a_late_start_really_jumps(clip_factory: GetClip) -> None:
    path = clip_factory("long.mp4").path
    sampler, _ = sample(path, 1.0, first_index=10, decoder="pyav")
    assert sampler._num_decoded < 150


@pytest.mark.parametrize("decoder", ["auto", "pyav"])
@pytest.mark.parametrize("clockwise", [90, 180, 270])
def test_turned_pictures_come_out_upright(
    clip_factory: GetClip, tmp_path: Path, clockwise: int, decoder: Decoder
) -> None:
    turned = clips.rotate(clip_factory("h264.mp4").path, tmp_path / "turned.mp4", clockwise)
    _, frames = sample(turned, 1.0, decoder=decoder)
    back = [np.rot90(frame.rgb_HWC, clockwise // 90) for frame in frames]
    assert clips.read_numbers(back) == [0, 30, 60]


def test_a_hole_costs_only_its_frames(clip_factory: GetClip, tmp_path: Path) -> None:
    content = bytearray(clip_factory("faststart.mp4").path.read_bytes())
    middle = len(content) // 2
    content[middle : middle + 4000] = bytes(4000)
    path = tmp_path / "hole.mp4"
    path.write_bytes(content)
    results = [sample(path, 30.0, threads=threads) for threads in (1, 2)]
    sampler, frames = results[0]
    assert sampler.backend == "pyav"
    assert sampler.bad_packets > 0
    assert "between" in (sampler.damage or "")
    seen = numbers(frames)
    assert seen[0] == 0
    assert seen[-1] == 239, "frames after the damage are kept"
    assert len(seen) > 180
    assert [f.time_s for f in results[1][1]] == [f.time_s for f in frames], "whatever the number of threads"


def test_a_hole_in_matroska_is_flagged_and_passed_over(clip_factory: GetClip, tmp_path: Path) -> None:
    content = bytearray(clip_factory("many.mkv").path.read_bytes())
    middle = len(content) // 2
    content[middle : middle + len(content) // 10] = bytes(len(content) // 10)
    path = tmp_path / "hole.mkv"
    path.write_bytes(content)
    sampler, frames = sample(path, 5.0)
    assert sampler.backend == "pyav"
    assert sampler.damage
    assert numbers(frames)[0] == 0
    assert numbers(frames)[-1] > 200


def test_a_file_cut_off_is_read_to_the_cut_and_flagged(clip_factory: GetClip, tmp_path: Path) -> None:
    content = clip_factory("faststart.mp4").path.read_bytes()
    path = tmp_path / "cut.mp4"
    path.write_bytes(content[: len(content) // 2])
    sampler, frames = sample(path, 5.0)
    assert "the file ends at" in (sampler.damage or "")
    assert "of 8.00 s" in (sampler.damage or "")
    assert numbers(frames)[:5] == [0, 6, 12, 18, 24]


def test_decord_that_fails_is_followed_by_pyav(clip_factory: GetClip, monkeypatch: pytest.MonkeyPatch) -> None:
    """decord gives up on a damaged file; the frames it has not delivered come from PyAV, none twice."""
    import decord

    clip = clip_factory("long.mp4")
    real = decord.VideoReader.get_batch
    calls = []

    def failing(reader: decord.VideoReader, indices: list[int]) -> object:
        calls.append(indices)
        if len(calls) == 2:
            raise decord.DECORDError("Check failed: too bad\nstack")
        return real(reader, indices)

    monkeypatch.setattr(decord.VideoReader, "get_batch", failing)
    sampler, frames = sample(clip.path, 2.0)
    assert numbers(frames) == clip.expected(2.0)
    assert sampler.backend == "pyav"
    assert "too bad" in sampler.verdict
    assert "stack" not in sampler.verdict


def test_complaints_of_decords_decoder_count_as_damage(clip_factory: GetClip) -> None:
    clip = clip_factory("long.mp4")
    noise = iter(range(100))
    sampler = FrameSampler(str(clip.path), probe(str(clip.path)), 2.0, decoder_noise=lambda: next(noise))
    assert numbers(list(sampler)) == clip.expected(2.0)
    assert sampler.backend == "pyav"
    assert "reported errors" in sampler.verdict


def test_a_stream_without_one_good_picture(clip_factory: GetClip, tmp_path: Path) -> None:
    content = bytearray(clip_factory("faststart.mp4").path.read_bytes())
    at = content.index(b"mdat") + 4
    content[at:] = bytes(len(content) - at)
    path = tmp_path / "blank.mp4"
    path.write_bytes(content)
    with pytest.raises(UnreadableMedia, match="no picture"):
        sample(path, 1.0)


def test_the_rate_must_be_positive(clip_factory: GetClip) -> None:
    with pytest.raises(ValueError, match="fps"):
        sample(clip_factory("h264.mp4").path, 0.0)
