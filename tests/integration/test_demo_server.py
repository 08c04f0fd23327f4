"""The demo's S3 server: fill a bucket, read it back through boto3, stop it."""

from __future__ import annotations

import builtins
import logging
import socket
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest

from jobs.demo_server import LoopbackS3
from pipeline.errors import ConfigError, UsageError

pytestmark = pytest.mark.s3


def test_a_folder_becomes_a_bucket(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import boto3

    names = ["gate/2026-03-01/080000.mp4", "gate/odd name+%.mp4", "labels.jsonl"]
    for name in names:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(name.encode() * 100)
    (tmp_path / ".hidden").write_bytes(b"no")
    level = logging.getLogger("werkzeug").level
    with LoopbackS3() as server:
        address = urlsplit(server.endpoint_url)
        assert address.hostname == "127.0.0.1" and address.port
        keys = server.upload_folder(tmp_path, "footage", "/cams/")
        assert keys == sorted(f"cams/{name}" for name in names)
        for name, value in server.env.items():
            monkeypatch.setenv(name, value)
        client = boto3.client("s3")  # nothing but the environment, as another process would
        listed = client.list_objects_v2(Bucket="footage", Prefix="cams/gate/")["Contents"]
        assert [item["Key"] for item in listed] == keys[:2]
        body = client.get_object(Bucket="footage", Key=keys[1])["Body"].read()
        assert body == names[1].encode() * 100
        assert server.upload_folder(tmp_path / "gate" / "2026-03-01", "footage") == ["080000.mp4"], "same bucket again"
    with pytest.raises(RuntimeError, match="not running"):
        _ = server.endpoint_url
    with socket.socket() as probe:
        assert probe.connect_ex(("127.0.0.1", address.port)) != 0, "the port is free again"
    assert logging.getLogger("werkzeug").level == level


def test_requests_are_not_logged(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "a.mp4").write_bytes(b"x")
    with LoopbackS3() as server:
        server.upload_folder(tmp_path, "footage")
    captured = capfd.readouterr()
    assert captured.out == "" and captured.err == ""


def test_a_missing_folder_is_the_callers_mistake(tmp_path: Path) -> None:
    with LoopbackS3() as server, pytest.raises(UsageError, match="no such folder"):
        server.upload_folder(tmp_path / "nowhere", "footage")


def test_without_moto_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    real_import = builtins.__import__

    def no_moto(name: str, *rest: Any, **named: Any) -> Any:
        if name.startswith("moto"):
            raise ImportError(name)
        return real_import(name, *rest, **named)

    monkeypatch.setattr(builtins, "__import__", no_moto)
    with pytest.raises(ConfigError, match=r"vxl-archive\[demo\]"), LoopbackS3():
        pass
