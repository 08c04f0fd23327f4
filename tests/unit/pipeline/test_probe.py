"""Probing: the facts of a file, which decoder may read it, and bad input refused by name."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

import pytest

from pipeline.errors import UnreadableMedia
from pipeline.probe import credible_time, probe
from tests import clips

GetClip = Callable[[str], clips.Clip]


@pytest.mark.parametrize(
    "name", ["h264.mp4", "h264.mkv", "hevc_closed.mp4", "vp9.webm", "vp8.webm", "vfr.mp4", "audio.mp4"]
)
def test_decord_is_cleared_for_files_it_reads_exactly(clip_factory: GetClip, name: str) -> None:
    facts = probe(str(clip_factory(name).path))
    assert facts.decord_ok, facts.verdict


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("opengop.mp4", "leading pictures"),
        ("hevc.mp4", "leading pictures"),
        ("cut.mp4", "edit list"),
        ("mpeg4.avi", "container avi"),
        ("h264.ts", "container mpegts"),
        ("late.mkv", "not at 0"),
        ("odd.mp4", "odd picture size 161x97"),
        ("two.mp4", "2 video streams"),
    ],
)
def test_decord_is_kept_from_files_it_would_misread(clip_factory: GetClip, name: str, reason: str) -> None:
    facts = probe(str(clip_factory(name).path))
    assert not facts.decord_ok
    assert facts.verdict.startswith("PyAV: ")
    assert reason in facts.verdict


@pytest.mark.parametrize("name", [*clips.RECIPES, "cut.mp4"])
def test_duration_is_the_span_of_the_pictures(clip_factory: GetClip, name: str) -> None:
    clip = clip_factory(name)
    span_s = clip.times_s[-1] - clip.times_s[0] + clip.step_s
    assert probe(str(clip.path)).duration_s == pytest.approx(span_s, abs=clip.step_s + 0.002)


def test_facts_of_a_plain_file(clip_factory: GetClip) -> None:
    facts = probe(str(clip_factory("h264.mp4").path))
    assert (facts.codec, facts.width, facts.height, facts.rotation) == ("h264", 160, 96, 0)
    assert facts.num_packets == len(facts.pts) == 90
    assert facts.fps == pytest.approx(30)
    assert not facts.is_vfr
    assert not facts.is_cut_off
    assert facts.summary()["duration_s"] == pytest.approx(3.0)


def test_a_varying_rate_is_noticed(clip_factory: GetClip) -> None:
    assert probe(str(clip_factory("vfr.mp4").path)).is_vfr


@pytest.mark.parametrize(
    ("clockwise", "rotation", "shown"), [(90, -90, (96, 160)), (180, 180, (160, 96)), (270, 90, (96, 160))]
)
def test_rotation(clip_factory: GetClip, tmp_path: Path, clockwise: int, rotation: int, shown: tuple[int, int]) -> None:
    turned = clips.rotate(clip_factory("h264.mp4").path, tmp_path / "turned.mp4", clockwise)
    facts = probe(str(turned))
    assert facts.rotation == rotation
    assert facts.display_size == shown


def test_a_start_time_in_the_container_is_read(clip_factory: GetClip) -> None:
    assert probe(str(clip_factory("dated.mp4").path)).creation_time == datetime(2024, 2, 29, 23, 30, tzinfo=UTC)
    assert probe(str(clip_factory("h264.mp4").path)).creation_time is None


@pytest.mark.parametrize(
    "text",
    [
        None,
        "",
        "yesterday",
        "1904-01-01T00:00:00Z",
        "1970-01-01T00:00:00Z",
        "1980-01-01T00:00:00Z",
        "2000-01-01T00:00:03Z",
        "2024-01-01T00:00:00",
        "0001-01-01T00:00:00+14:00",
        "2106-02-07T06:28:15Z",
    ],
)
def test_times_that_no_camera_can_mean_are_unknown(text: str | None) -> None:
    assert credible_time(text) is None


def test_a_local_creation_time_becomes_utc() -> None:
    assert credible_time("2024-06-01T01:00:00+0200") == datetime(2024, 5, 31, 23, 0, tzinfo=UTC)


def _write(path: Path, content: bytes) -> Path:
    path.write_bytes(content)
    return path


@pytest.mark.parametrize(
    ("content", "cause"),
    [
        (b"", "empty"),
        (b"This is a shopping list.\n" * 50, "no known video container"),
        (b"#EXTM3U\n#EXTINF:10,\nfile:///etc/passwd\n", "no known video container"),
        (b"ffconcat version 1.0\nfile '/etc/passwd'\n", "no known video container"),
        (bytes(5000), "no known video container"),
    ],
)
def test_files_that_are_no_videos(tmp_path: Path, content: bytes, cause: str) -> None:
    with pytest.raises(UnreadableMedia, match=cause) as caught:
        probe(str(_write(tmp_path / "a.mp4", content)), "s3://bucket/a.mp4")
    assert caught.value.uri == "s3://bucket/a.mp4"
    assert "\n" not in caught.value.cause


def test_an_mp4_cut_before_its_index(clip_factory: GetClip, tmp_path: Path) -> None:
    content = clip_factory("h264.mp4").path.read_bytes()
    with pytest.raises(UnreadableMedia, match="moov"):
        probe(str(_write(tmp_path / "cut.mp4", content[: len(content) // 2])))


def test_a_file_without_pictures(tmp_path: Path) -> None:
    with pytest.raises(UnreadableMedia, match="no video stream"):
        probe(str(clips.make_audio_only(tmp_path / "voice.mp4")))


def test_a_missing_file(tmp_path: Path) -> None:
    with pytest.raises(UnreadableMedia, match="not there"):
        probe(str(tmp_path / "none.mp4"))


def test_a_truncated_faststart_file_is_read_to_the_cut(clip_factory: GetClip, tmp_path: Path) -> None:
    content = clip_factory("faststart.mp4").path.read_bytes()
    facts = probe(str(_write(tmp_path / "cut.mp4", content[: len(content) // 2])))
    assert facts.is_cut_off
    assert facts.declared_s == pytest.approx(8.0)
    assert 1.0 < facts.duration_s < 7.0
    assert not facts.decord_ok


def test_a_hole_is_found_by_demuxing(clip_factory: GetClip, tmp_path: Path) -> None:
    content = bytearray(clip_factory("faststart.mp4").path.read_bytes())
    middle = len(content) // 2
    content[middle : middle + 4000] = bytes(4000)
    facts = probe(str(_write(tmp_path / "hole.mp4", bytes(content))))
    assert facts.num_damaged > 0
    assert not facts.decord_ok


@pytest.mark.parametrize("name", ["a b'\"%20.mp4", "ünï ©.mp4", "new\nline.mp4", "http:x.mp4", "%03d.mp4"])
def test_any_file_name_can_be_read(clip_factory: GetClip, tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    path.write_bytes(clip_factory("h264.mp4").path.read_bytes())
    assert probe(str(path)).num_packets == 90


def test_a_file_name_that_is_not_text_can_be_read(clip_factory: GetClip, tmp_path: Path) -> None:
    path = tmp_path / "caf\udce9.mp4"
    path.write_bytes(clip_factory("h264.mp4").path.read_bytes())
    assert probe(str(path)).num_packets == 90
