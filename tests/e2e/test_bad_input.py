"""Bad files and bad circumstances: each costs itself only, is named with its cause, and never stops the others."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from tests.clips import RECIPES, make, make_audio_only
from tests.vxl import call, spawn
from videoxl2.training import make_random_checkpoint


def by_name(report: dict[str, object]) -> dict[str, dict[str, object]]:
    return {video["uri"].rsplit("/", 1)[-1]: video for video in report["videos"]}  # type: ignore[attr-defined]


def test_bad_files_fail_alone(tmp_path: Path, clip: Path) -> None:
    footage = tmp_path / "footage"
    footage.mkdir()
    good = clip.read_bytes()
    (footage / "a_zero.mp4").touch()
    (footage / "b_text.mp4").write_text("this is no video\n" * 100)
    (footage / "c_truncated.mp4").write_bytes(good[: len(good) // 2])  # the index lies at the end, and is gone
    make_audio_only(footage / "d_sound.mp4")
    shutil.copy(clip, footage / "e_good.mp4")
    faststart = make(RECIPES["faststart.mp4"], tmp_path).path.read_bytes()
    (footage / "f_cut.mp4").write_bytes(faststart[: len(faststart) * 2 // 3])
    hole = bytearray(faststart)
    middle = len(hole) // 2
    hole[middle : middle + 3000] = bytes(3000)
    (footage / "g_hole.mp4").write_bytes(hole)
    archive = tmp_path / "archive"

    done = call("ingest", footage, "--archive", archive, "--json")

    assert done.code == 3, done.err
    videos = by_name(done.json)
    assert done.json["counts"] == {"indexed": 3, "failed": 4, "skipped": 0, "quarantined": 0}
    for name in ("a_zero.mp4", "b_text.mp4", "c_truncated.mp4", "d_sound.mp4"):
        assert videos[name]["state"] == "failed"
        error = videos[name]["error"]
        assert isinstance(error, dict)
        assert error["type"] == "UnreadableMedia"
        assert error["message"]
    assert videos["e_good.mp4"]["state"] == "indexed"
    rows = by_name(call("videos", "--archive", archive, "--json").json)
    for name in ("f_cut.mp4", "g_hole.mp4"):
        assert rows[name]["state"] == "indexed"
        assert rows[name]["damage"], name
    assert rows["e_good.mp4"]["damage"] is None
    coverage = call("search", "x", "--archive", archive, "--json").json["coverage"]
    assert coverage["videos"] == 3
    named = {gap["uri"].rsplit("/", 1)[-1]: gap["reason"] for gap in coverage["not_indexed"]}
    assert named.keys() == {name for name in videos if name != "e_good.mp4"}

    again = call("ingest", footage, "--archive", archive, "--json")
    assert again.code == 0  # known to be bad in this very version: not tried again, not hidden either
    assert again.json["counts"] == {"indexed": 0, "failed": 0, "skipped": 7, "quarantined": 0}
    assert by_name(again.json)["a_zero.mp4"]["error"]


def test_retry_puts_failed_videos_back_in_line(tmp_path: Path, clip: Path) -> None:
    footage, archive = tmp_path / "footage", tmp_path / "archive"
    footage.mkdir()
    (footage / "bad.mp4").touch()
    assert call("ingest", footage, "--archive", archive).code == 3
    assert call("retry", "--archive", archive, "--json").json["count"] == 1
    assert call("ingest", footage, "--archive", archive, "--json").json["counts"]["failed"] == 1


@pytest.mark.parametrize(("fault", "error"), [("crash", "DecoderCrashed"), ("hang", "DecoderTimeout")])
def test_a_decoder_that_dies_or_hangs_quarantines_the_video(
    tmp_path: Path, clip: Path, fault: str, error: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    footage, archive = tmp_path / "footage", tmp_path / "archive"
    footage.mkdir()
    for name in ("a.mp4", "poison.mp4", "z.mp4"):
        shutil.copy(clip, footage / name)
    settings = tmp_path / "vxl.toml"
    settings.write_text("[decode]\nstall_timeout_s = 1.5\n")
    monkeypatch.setenv("VXL_FAULT", f"{fault}:poison")

    done = call("ingest", footage, "--archive", archive, "--json", "--config", settings)

    assert done.code == 3
    videos = by_name(done.json)
    assert done.json["counts"] == {"indexed": 2, "failed": 0, "skipped": 0, "quarantined": 1}
    assert videos["poison.mp4"]["state"] == "quarantined"
    assert videos["poison.mp4"]["error"]["type"] == error  # type: ignore[index]
    rows = by_name(call("videos", "--archive", archive, "--json").json)
    assert rows["poison.mp4"]["failed_attempts"] == 2

    monkeypatch.delenv("VXL_FAULT")
    assert call("ingest", footage, "--archive", archive, "--json").json["counts"]["skipped"] == 3
    assert call("retry", "--archive", archive).code == 0
    assert call("ingest", footage, "--archive", archive, "--json").json["counts"]["indexed"] == 1


def test_a_decoder_that_dies_once_is_tried_again(tmp_path: Path, clip: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    footage, archive = tmp_path / "footage", tmp_path / "archive"
    footage.mkdir()
    shutil.copy(clip, footage / "a.mp4")
    monkeypatch.setenv("VXL_FAULT", f"crash-once:a.mp4:{tmp_path / 'flag'}")
    assert call("ingest", footage, "--archive", archive, "--json").json["counts"]["indexed"] == 1
    assert (tmp_path / "flag").exists()


def test_archive_of_another_setting_or_model_is_refused(tmp_path: Path, indexed: Path, cameras: Path) -> None:
    for options, name in ((["--fps", "2"], "fps"), (["--segment-s", "20"], "segment_s")):
        done = call("ingest", cameras, "--archive", indexed, *options)
        assert done.code == 7
        assert name in done.error_line
    make_random_checkpoint.make_random_checkpoint(tmp_path / "other", seed=99)
    done = call("ingest", cameras, "--archive", indexed, "--model", tmp_path / "other")
    assert done.code == 7
    assert "weights_digest" in done.error_line


def test_weights_that_changed_under_an_archive_are_refused(tmp_path: Path, clip: Path) -> None:
    model, archive = tmp_path / "model", tmp_path / "archive"
    make_random_checkpoint.make_random_checkpoint(model, seed=1)
    assert call("ingest", clip, "--archive", archive, "--model", model).code == 0
    assert call("ask", "x", "--archive", archive, "--max-new-tokens", "1").code == 0
    shutil.rmtree(model)
    make_random_checkpoint.make_random_checkpoint(model, seed=2)
    for command in (["search", "x"], ["ask", "x"]):
        done = call(*command, "--archive", archive)
        assert done.code == 7
        assert "other weights" in done.error_line


def test_archive_of_another_schema_is_refused(tmp_path: Path, clip: Path) -> None:
    archive = tmp_path / "archive"
    assert call("ingest", clip, "--archive", archive).code == 0
    manifest = json.loads((archive / "archive.json").read_text())
    manifest["recipe"]["schema_version"] = 999
    (archive / "archive.json").write_text(json.dumps(manifest))
    for command in (["search", "x"], ["ingest", str(clip)], ["status"]):
        done = call(*command, "--archive", archive)
        assert done.code == 7
        assert "schema version 999" in done.error_line


def test_model_that_does_not_exist(tmp_path: Path, clip: Path) -> None:
    done = call("ingest", clip, "--archive", tmp_path / "archive", "--model", "no-such/model")
    assert done.code == 2
    assert "no-such/model" in done.error_line
    assert not (tmp_path / "archive").exists()


def test_sources_that_cannot_be_read(tmp_path: Path) -> None:
    done = call("ingest", tmp_path / "none", "--archive", tmp_path / "archive")
    assert done.code == 2
    assert "no such folder" in done.error_line
    assert not (tmp_path / "archive").exists()


def test_a_folder_that_holds_other_things_does_not_become_an_archive(tmp_path: Path, clip: Path) -> None:
    (tmp_path / "letters.txt").write_text("keep me")
    done = call("ingest", clip, "--archive", tmp_path)
    assert done.code == 2
    assert "not empty" in done.error_line


@pytest.mark.parametrize(
    ("text", "words"),
    [("fps = 1\n", "fps"), ("[ingest]\nfps = 0\n", "ingest.fps"), ("[ingest", "TOML")],
)
def test_settings_files_that_are_wrong(tmp_path: Path, clip: Path, text: str, words: str) -> None:
    (tmp_path / "vxl.toml").write_text(text)
    done = call("ingest", clip, "--archive", tmp_path / "archive", "--config", tmp_path / "vxl.toml")
    assert done.code == 2
    assert words in done.error_line


def test_key_pattern_without_zone_is_refused(tmp_path: Path, clip: Path) -> None:
    done = call("ingest", clip, "--archive", tmp_path / "archive", "--key-pattern", "{camera}/%Y%m%d%H%M%S.mp4")
    assert done.code == 2
    assert "--time-zone" in done.error_line


def test_corrupt_kv_is_refused_and_named(tmp_path: Path, clip: Path) -> None:
    archive = tmp_path / "archive"
    assert call("ingest", clip, "--archive", archive).code == 0
    (file,) = archive.glob("kv/*/*/*.vxlkv")
    content = bytearray(file.read_bytes())
    content[-5000] ^= 1
    file.write_bytes(content)
    done = call("ask", "x", "--archive", archive)
    assert done.code == 1
    assert file.name in done.error_line
    file.unlink()
    assert call("ask", "x", "--archive", archive, "--reuse", "reload").code == 1
    assert call("ask", "x", "--archive", archive, "--reuse", "auto").code == 0


def test_errors_of_a_new_process_are_one_line_too(tmp_path: Path) -> None:
    done = spawn("search", "x", "--archive", tmp_path / "none")
    assert done.code == 2
    assert "there is no archive" in done.error_line
