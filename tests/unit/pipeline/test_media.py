"""Local footage and addresses; S3 is in tests/integration/test_s3_media.py."""

from __future__ import annotations

import os
import pickle
from pathlib import Path

import pytest

from pipeline.errors import ConfigError, MediaChanged, MediaFetchError, SourceUnavailable
from pipeline.media import fetch_uri, normalise_uri, open_source
from pipeline.s3 import S3Settings

HOSTILE = [
    "a b.mp4",
    'it\'s "x".mp4',
    "ünï/©.mkv",
    "..mp4",
    "...avi",
    "new\nline.mov",
    "100%.mp4",
    "%2e%2e.mp4",
    "#?&+.ts",
]


def put(root: Path, key: str, content: bytes = b"x") -> Path:
    path = root / key
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    return path


def test_a_folder_is_listed_with_its_subfolders_in_key_order(tmp_path: Path) -> None:
    for key in ["b/2.MP4", "a/1.mkv", "top.mov", "a/notes.txt", "b/2.mp4.part"]:
        put(tmp_path, key)
    found = list(open_source(str(tmp_path)).list())
    assert [media.key for media in found] == ["a/1.mkv", "b/2.MP4", "top.mov"]
    assert found[0].uri == f"file://{tmp_path}/a/1.mkv"
    assert found[0].size == 1
    assert found[0].modified.tzinfo is not None


@pytest.mark.parametrize("key", HOSTILE)
def test_any_key_is_listed_raw_and_read_back(tmp_path: Path, key: str) -> None:
    put(tmp_path, key, key.encode())
    source = open_source(str(tmp_path))
    (media,) = source.list()
    assert media.key == key
    assert media.uri == f"file://{tmp_path}/{key}"
    with source.fetch(media, tmp_path / "scratch") as local, fetch_uri(media.uri, media.etag, None, tmp_path) as same:
        assert Path(local.path).read_bytes() == key.encode()
        assert same == local
    assert not (tmp_path / "scratch").exists()


def test_two_files_of_one_name_stay_two(tmp_path: Path) -> None:
    put(tmp_path, "a/clip.mp4", b"1")
    put(tmp_path, "b/clip.mp4", b"22")
    found = list(open_source(str(tmp_path)).list())
    assert len({media.uri for media in found}) == 2
    assert [media.size for media in found] == [1, 2]


def test_a_single_file_is_a_source_whatever_it_is_called(tmp_path: Path) -> None:
    path = put(tmp_path, "recording")
    (media,) = open_source(str(path)).list()
    assert (media.key, media.uri) == ("recording", f"file://{path}")


def test_links_out_of_the_folder_are_not_followed(tmp_path: Path) -> None:
    inside, outside = tmp_path / "in", tmp_path / "out"
    put(outside, "secret.mp4")
    put(inside, "a/real.mp4")
    (inside / "leak.mp4").symlink_to(outside / "secret.mp4")
    (inside / "alias.mp4").symlink_to(inside / "a" / "real.mp4")
    (inside / "folder").symlink_to(outside)
    (inside / "loop").symlink_to(inside)
    (inside / "dangling.mp4").symlink_to(inside / "none.mp4")
    os.mkfifo(inside / "pipe.mp4")
    assert [media.key for media in open_source(str(inside)).list()] == ["a/real.mp4", "alias.mp4"]


def test_a_name_that_is_not_text_is_listed_and_found_again(tmp_path: Path) -> None:
    (tmp_path / "caf\udce9.mp4").write_bytes(b"x")
    put(tmp_path, "good.mp4")
    source = open_source(str(tmp_path))
    odd, good = source.list()
    assert odd.uri.encode("utf-8").endswith(b"caf\\xe9.mp4")
    with source.fetch(odd, tmp_path) as media:
        assert Path(media.path).read_bytes() == b"x"
    with source.fetch(good, tmp_path):
        pass


def test_a_file_that_is_really_called_so_comes_first(tmp_path: Path) -> None:
    (tmp_path / "caf\udce9.mp4").write_bytes(b"bytes")
    (tmp_path / "caf\\xe9.mp4").write_bytes(b"text")
    with fetch_uri(f"file://{tmp_path}/caf\\xe9.mp4", None, None, tmp_path) as media:
        assert Path(media.path).read_bytes() == b"text"


def test_a_missing_folder_is_found_before_any_work(tmp_path: Path) -> None:
    with pytest.raises(SourceUnavailable, match="no such folder"):
        open_source(str(tmp_path / "none")).check()
    open_source(str(tmp_path)).check()


def test_a_file_changed_after_listing_is_refused(tmp_path: Path) -> None:
    path = put(tmp_path, "a.mp4")
    source = open_source(str(tmp_path))
    (media,) = source.list()
    path.write_bytes(b"longer")
    with pytest.raises(MediaChanged, match="changed"), source.fetch(media, tmp_path):
        pass
    path.unlink()
    with pytest.raises(MediaChanged, match="not there"), source.fetch(media, tmp_path):
        pass


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_a_file_that_may_not_be_read(tmp_path: Path) -> None:
    put(tmp_path, "a.mp4").chmod(0)
    source = open_source(str(tmp_path))
    with pytest.raises(MediaFetchError, match="Permission denied"), source.fetch(next(source.list()), tmp_path):
        pass


def test_addresses(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert normalise_uri("clips/a b.mp4") == f"file://{tmp_path}/clips/a b.mp4"
    assert normalise_uri("/x/../y.mp4") == "file:///y.mp4"
    assert normalise_uri("file:///x/%20.mp4") == "file:///x/%20.mp4"
    assert normalise_uri("s3://bucket/a b/../%41?.mp4") == "s3://bucket/a b/../%41?.mp4"


@pytest.mark.parametrize("address", ["", "https://x/y.mp4", "s3://", "file://relative"])
def test_addresses_that_cannot_be_used(address: str) -> None:
    with pytest.raises(ConfigError):
        open_source(address)


def test_sources_travel_to_other_processes() -> None:
    source = open_source("s3://bucket/prefix", S3Settings(region="eu-west-1"))
    assert pickle.loads(pickle.dumps(source)).uri == "s3://bucket/prefix"
