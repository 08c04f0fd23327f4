"""Footage in S3, against a server on loopback."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest

from pipeline.errors import MediaChanged, MediaFetchError, SourceUnavailable
from pipeline.media import fetch_uri, open_source
from pipeline.s3 import S3Settings

pytestmark = pytest.mark.s3

HOSTILE = [
    'a b/it\'s "x".mp4',
    "../../etc/passwd.mp4",
    "/lead//double.mp4",
    "100%25.mp4",
    "ünï ©.mkv",
    "?q=#f&x+y.ts",
    "." * 3 + ".avi",
]


@pytest.fixture
def credentials(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "test")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "test")


@pytest.fixture
def client(s3_endpoint: str, credentials: None) -> Any:
    import boto3

    return boto3.client("s3", endpoint_url=s3_endpoint, region_name="us-east-1")


@pytest.fixture
def bucket(client: Any) -> str:
    name = f"footage-{uuid4().hex[:8]}"
    client.create_bucket(Bucket=name)
    return name


@pytest.fixture
def settings(s3_endpoint: str) -> S3Settings:
    return S3Settings(endpoint_url=s3_endpoint)


def test_keys_of_any_kind_are_listed_raw_and_fetched(
    client: Any, bucket: str, settings: S3Settings, tmp_path: Path
) -> None:
    for key in HOSTILE:
        client.put_object(Bucket=bucket, Key=key, Body=key.encode())
    client.put_object(Bucket=bucket, Key="notes.txt", Body=b"")
    source = open_source(f"s3://{bucket}", settings)
    source.check()
    found = list(source.list())
    assert [media.key for media in found] == sorted(HOSTILE)
    scratch = tmp_path / "scratch"
    for media in found:
        assert media.uri == f"s3://{bucket}/{media.key}"
        with source.fetch(media, scratch) as local:
            path = Path(local.path)
            assert path.read_bytes() == media.key.encode()
            assert path.parent == scratch
            assert path.name.isascii()
        assert list(scratch.iterdir()) == []
    assert [path.name for path in tmp_path.iterdir()] == ["scratch"]


def test_the_endpoint_may_come_from_the_environment(
    client: Any, bucket: str, s3_endpoint: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    client.put_object(Bucket=bucket, Key="a.mp4", Body=b"x")
    monkeypatch.setenv("AWS_ENDPOINT_URL", s3_endpoint)
    (media,) = open_source(f"s3://{bucket}").list()
    assert (media.key, media.size) == ("a.mp4", 1)
    assert media.modified.tzinfo is not None


def test_a_prefix_is_a_folder_or_one_object(client: Any, bucket: str, settings: S3Settings) -> None:
    for key in ["cam1/x.mp4", "cam10/x.mp4", "cam1.mp4"]:
        client.put_object(Bucket=bucket, Key=key, Body=b"x")
    assert [m.key for m in open_source(f"s3://{bucket}/cam1", settings).list()] == ["x.mp4"]
    assert [m.key for m in open_source(f"s3://{bucket}/cam1/", settings).list()] == ["x.mp4"]
    (single,) = open_source(f"s3://{bucket}/cam1.mp4", settings).list()
    assert (single.key, single.uri) == ("cam1.mp4", f"s3://{bucket}/cam1.mp4")
    assert list(open_source(f"s3://{bucket}/none", settings).list()) == []


def test_more_than_one_page_is_listed(client: Any, bucket: str, settings: S3Settings) -> None:
    for number in range(1001):
        client.put_object(Bucket=bucket, Key=f"{number:05d}.mp4", Body=b"")
    keys = [media.key for media in open_source(f"s3://{bucket}", settings).list()]
    assert keys == [f"{number:05d}.mp4" for number in range(1001)]


def test_two_objects_of_one_name_at_once(client: Any, bucket: str, settings: S3Settings, tmp_path: Path) -> None:
    client.put_object(Bucket=bucket, Key="a/clip.mp4", Body=b"first")
    client.put_object(Bucket=bucket, Key="b/clip.mp4", Body=b"second")
    source = open_source(f"s3://{bucket}", settings)
    one, two = source.list()
    with source.fetch(one, tmp_path) as a, source.fetch(two, tmp_path) as b, source.fetch(one, tmp_path) as c:
        assert [Path(x.path).read_bytes() for x in (a, b, c)] == [b"first", b"second", b"first"]


def test_an_object_replaced_or_removed_after_listing(
    client: Any, bucket: str, settings: S3Settings, tmp_path: Path
) -> None:
    client.put_object(Bucket=bucket, Key="a.mp4", Body=b"old")
    source = open_source(f"s3://{bucket}", settings)
    (media,) = source.list()
    client.put_object(Bucket=bucket, Key="a.mp4", Body=b"new")
    with pytest.raises(MediaChanged, match="replaced") as caught, source.fetch(media, tmp_path):
        pass
    assert caught.value.uri == media.uri
    with fetch_uri(media.uri, None, settings, tmp_path) as local:
        assert Path(local.path).read_bytes() == b"new"
    client.delete_object(Bucket=bucket, Key="a.mp4")
    with pytest.raises(MediaChanged, match="not there"), source.fetch(media, tmp_path):
        pass
    assert list(tmp_path.iterdir()) == []


def test_a_missing_bucket(settings: S3Settings, credentials: None) -> None:
    with pytest.raises(SourceUnavailable, match="no bucket 'not-there'"):
        open_source("s3://not-there/x", settings).check()


def test_an_impossible_bucket_name(settings: S3Settings, credentials: None) -> None:
    with pytest.raises(SourceUnavailable) as caught:
        open_source("s3://no bucket!/x", settings).check()
    assert "\n" not in str(caught.value)


def test_no_credentials(settings: S3Settings) -> None:
    with pytest.raises(SourceUnavailable, match="no credentials"):
        open_source("s3://bucket", settings).check()


def test_a_missing_profile(s3_endpoint: str) -> None:
    with pytest.raises(SourceUnavailable, match="profile"):
        open_source("s3://bucket", S3Settings(endpoint_url=s3_endpoint, profile="nobody")).check()


@pytest.mark.parametrize("endpoint", ["http://127.0.0.1:9", "not an address"])
def test_a_wrong_endpoint_is_told_quickly(credentials: None, endpoint: str) -> None:
    begun = time.monotonic()
    with pytest.raises(SourceUnavailable) as caught:
        open_source("s3://bucket", S3Settings(endpoint_url=endpoint)).check()
    assert "\n" not in str(caught.value)
    assert time.monotonic() - begun < 10


class _OneObject(BaseHTTPRequestHandler):
    """A server that holds one object whose key has a newline, which the usual test server cannot route."""

    def do_GET(self) -> None:
        is_listing = "list-type=2" in self.path
        body = b"content"
        if is_listing:
            assert "encoding-type=url" in self.path
            body = (
                b"<ListBucketResult><EncodingType>url</EncodingType><IsTruncated>false</IsTruncated><Contents>"
                b"<Key>a/new%0Aline+%252F.mp4</Key><ETag>&quot;e&quot;</ETag><Size>7</Size>"
                b"<LastModified>2026-03-01T08:00:00Z</LastModified></Contents></ListBucketResult>"
            )
        is_found = is_listing or self.path.partition("?")[0] == "/bucket/a/new%0Aline%20%252F.mp4"
        self.send_response(200 if is_found else 404)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:
        pass


def test_a_key_with_a_newline(credentials: None, tmp_path: Path) -> None:
    with ThreadingHTTPServer(("127.0.0.1", 0), _OneObject) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            settings = S3Settings(endpoint_url=f"http://127.0.0.1:{server.server_port}", attempts=1)
            source = open_source("s3://bucket", settings)
            (media,) = source.list()
            assert media.uri == "s3://bucket/a/new\nline %2F.mp4"
            with source.fetch(media, tmp_path) as local:
                assert Path(local.path).read_bytes() == b"content"
        finally:
            server.shutdown()
            thread.join()


@pytest.fixture
def silent_server() -> Iterator[str]:
    """Takes connections, promises a large object, then closes."""
    server = socket.create_server(("127.0.0.1", 0))
    server.settimeout(0.2)
    done = threading.Event()

    def serve() -> None:
        while not done.is_set():
            try:
                connection, _ = server.accept()
            except TimeoutError:
                continue
            with connection:
                connection.recv(65536)
                connection.sendall(b'HTTP/1.1 200 OK\r\nContent-Length: 100000\r\nETag: "a"\r\n\r\n' + b"x" * 1000)

    thread = threading.Thread(target=serve)
    thread.start()
    yield f"http://127.0.0.1:{server.getsockname()[1]}"
    done.set()
    thread.join()
    server.close()


def test_a_download_that_breaks_off_may_be_tried_again(silent_server: str, credentials: None, tmp_path: Path) -> None:
    settings = S3Settings(endpoint_url=silent_server, attempts=1, read_timeout_s=2)
    with pytest.raises(MediaFetchError) as caught, fetch_uri("s3://bucket/a.mp4", "a", settings, tmp_path):
        pass
    assert caught.value.retryable
    assert list(tmp_path.iterdir()) == []
