"""Addresses and names of an archive on S3: what strangers write never leads elsewhere, or is refused at once."""

from __future__ import annotations

import pytest

from pipeline.address import open_folder
from pipeline.archive import Archive
from pipeline.config import Settings
from pipeline.errors import ConfigError
from pipeline.s3 import S3Settings
from pipeline.s3_folder import S3Folder, parse_archive_uri


@pytest.mark.parametrize(
    ("uri", "bucket", "prefix"),
    [
        ("s3://bucket", "bucket", ""),
        ("s3://bucket/", "bucket", ""),
        ("s3://bucket/a/b", "bucket", "a/b"),
        ("s3://bucket/a/b/", "bucket", "a/b"),
        ("s3://bucket/my archive/Überwachung/it's a=1,b+c@(x)", "bucket", "my archive/Überwachung/it's a=1,b+c@(x)"),
    ],
)
def test_an_address_is_a_bucket_and_a_prefix(uri: str, bucket: str, prefix: str) -> None:
    assert parse_archive_uri(uri) == (bucket, prefix)
    folder = open_folder(uri, S3Settings())
    assert isinstance(folder, S3Folder)
    assert folder.address() == uri.rstrip("/")
    assert folder.key("kv/x") == (f"{prefix}/kv/x" if prefix else "kv/x")
    assert folder == S3Folder(uri, S3Settings()) != S3Folder("s3://other", S3Settings())


@pytest.mark.parametrize(
    "uri",
    [
        *("s3://", "s3:///a", "s3://b//a", "s3://b/a//c", "s3://b/../a", "s3://b/a/.", "s3://b/a/.."),
        *("s3://b/100%25", "s3://b/q?x", "s3://b/q#y", "s3://b/a\\b", "s3://b/new\nline", "s3://b/a*", "s3://b/ a"),
        *("s3://b/{x}", "s3://b/tab\t", 's3://b/"a"', "s3://b/a/\x00"),
    ],
)
def test_an_address_that_two_libraries_would_read_differently_is_refused(uri: str) -> None:
    with pytest.raises(ConfigError, match="archive's address"):
        Archive(uri, settings=Settings())


@pytest.mark.parametrize("name", ["../other/archive.json", "kv/../../x", "/etc/passwd", ".."])
def test_a_name_never_leads_out_of_the_archive(name: str) -> None:
    with pytest.raises(ValueError, match="not a name in an archive"):
        S3Folder("s3://bucket/a", S3Settings()).key(name)


@pytest.mark.parametrize("name", ['a b/it\'s "x"', "100%25", "ünï\n", "?q=#f&x+y", "...", "a/./b"])
def test_names_are_taken_as_they_are(name: str) -> None:
    key = S3Folder("s3://bucket/a", S3Settings()).key(name)
    assert key == "a/" + name.replace("/./", "/")


def test_options_of_the_tables_are_those_of_the_files(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "key")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
    monkeypatch.setenv("AWS_SESSION_TOKEN", "token")
    own = S3Settings(endpoint_url="http://127.0.0.1:9", region="eu-west-1", attempts=2)
    address, options = S3Folder("s3://bucket/a", own).tables("tables")
    assert address == "s3://bucket/a/tables"
    assert dict(options) == {
        "aws_endpoint": "http://127.0.0.1:9",
        "allow_http": "true",
        "aws_region": "eu-west-1",
        "aws_access_key_id": "key",
        "aws_secret_access_key": "secret",
        "aws_session_token": "token",
        "connect_timeout": "5s",
        "client_max_retries": "2",
    }
    _, options = S3Folder("s3://bucket/a", S3Settings(region="eu-west-1")).tables("tables")
    assert "aws_endpoint" not in options and options["allow_http"] == "false"


def test_missing_credentials_are_said(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(OSError, match="no credentials found"):
        S3Folder("s3://bucket/a", S3Settings(endpoint_url="http://127.0.0.1:9")).tables("tables")
