"""An archive on S3 through the command line: indexed by one process, asked by another, damage named."""

from __future__ import annotations

import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import boto3
import pytest

from indexers.errors import LeaseLost
from indexers.lease import WriterLease
from indexers.store import LanceStore
from indexers.sweep import find_orphans, missing_kv
from pipeline.s3 import S3Settings
from pipeline.s3_folder import S3Folder
from tests.vxl import call, spawn, start

pytestmark = pytest.mark.s3

ARCHIVE = "s3://archive-under-test/my archives/gate 1"
PREFIX = "my archives/gate 1/"


@pytest.fixture(scope="module")
def environment(s3_endpoint: str) -> dict[str, str]:
    return {
        "AWS_ACCESS_KEY_ID": "test",
        "AWS_SECRET_ACCESS_KEY": "test",
        "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_ENDPOINT_URL": s3_endpoint,
    }


@pytest.fixture(autouse=True)
def in_environment(environment: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in environment.items():
        monkeypatch.setenv(name, value)


@pytest.fixture(scope="module")
def client(environment: dict[str, str]) -> Any:
    return boto3.client(
        "s3",
        endpoint_url=environment["AWS_ENDPOINT_URL"],
        region_name="us-east-1",
        aws_access_key_id="test",
        aws_secret_access_key="test",
    )


@pytest.fixture(scope="module")
def indexed(client: Any, environment: dict[str, str], long_clip: Path, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """What indexing forty seconds into an archive on S3 reported; the footage stays."""
    client.create_bucket(Bucket="archive-under-test")
    footage = tmp_path_factory.mktemp("footage")
    (footage / "gate").mkdir()
    shutil.copy(long_clip, footage / "gate" / "it's a.mp4")
    done = spawn(
        *("ingest", footage, "--archive", ARCHIVE, "--json", "--segment-s", "10"),
        *("--key-pattern", "{camera}/{title}.mp4"),
        env=environment,
    )
    assert done.code == 0, done.err
    return done.json, footage


def objects(client: Any, below: str = "") -> dict[str, int]:
    listed = client.list_objects_v2(Bucket="archive-under-test", Prefix=PREFIX + below).get("Contents", ())
    return {entry["Key"]: entry["Size"] for entry in listed}


def test_what_is_indexed_lies_on_s3_and_is_asked_from_another_process(client: Any, indexed: Any) -> None:
    report, footage = indexed
    assert report["counts"]["indexed"] == 1 and report["videos"][0]["segments"] == 4
    files = objects(client, "kv/")
    assert len(files) == 4 and sum(files.values()) == report["kv_bytes"]
    assert objects(client, "staging/") == {}

    answers = {
        reuse: call("ask", "What happens?", "--archive", ARCHIVE, "--json", "--reuse", reuse, "--max-new-tokens", "4")
        for reuse in ("reload", "recompute")
    }
    for done in answers.values():
        assert done.code == 0, done.err
    reloaded, recomputed = (answers[reuse].json for reuse in ("reload", "recompute"))
    assert reloaded["answer"] == recomputed["answer"]
    assert reloaded["citations"] == recomputed["citations"]
    assert reloaded["context"]["kv_bytes_read"] > 0 and reloaded["timings"]["recompute_s"] == 0

    found = call("search", "a person", "--archive", ARCHIVE, "--json").json
    assert {moment["camera"] for moment in found["moments"]} == {"gate"}
    again = call("ingest", footage, "--archive", ARCHIVE, "--json")
    assert again.json["counts"] == {"indexed": 0, "failed": 0, "skipped": 1, "quarantined": 0}
    assert objects(client, "kv/") == files


def test_looking_after_it(client: Any, indexed: Any) -> None:
    stats = call("kv", "stats", "--archive", ARCHIVE, "--json").json
    assert stats["archive"] == ARCHIVE
    assert stats["total"]["dense_bytes"] == sum(objects(client, "kv/").values()) == indexed[0]["kv_bytes"]
    assert stats["missing_kv_files"] == 0
    status = call("status", "--archive", ARCHIVE, "--json").json
    assert (status["videos"], status["writer"]) == (1, None)
    verified = call("kv", "verify", "--archive", ARCHIVE, "--segments", "1", "--json")
    assert verified.code == 0, verified.out
    assert PREFIX + verified.json["certificate"] in objects(client, "kv/certificates/")


def test_a_bucket_that_is_not_there_is_said_in_one_line(indexed: Any) -> None:
    for command in (["ingest", indexed[1]], ["ask", "x"]):
        done = call(*command, "--archive", "s3://there-is-no-such-bucket/a")
        assert done.code == 2 and "no bucket" in done.error_line


@pytest.fixture
def damaged(client: Any, indexed: Any) -> Iterator[str]:
    """The key of the second segment's file, with one bit of it wrong for as long as the test lasts."""
    key = sorted(key for key in objects(client, "kv/") if key.endswith(".vxlkv"))[1]  # certificates lie there too
    place = {"Bucket": "archive-under-test", "Key": key}
    whole = client.get_object(**place)["Body"].read()
    body = bytearray(whole)
    body[len(body) // 2] ^= 1
    client.put_object(**place, Body=bytes(body))
    yield key
    client.put_object(**place, Body=whole)


def test_a_flipped_bit_is_an_error_that_names_the_segment(damaged: str, tmp_path: Path) -> None:
    assert damaged.endswith("/00001.vxlkv")
    settings = tmp_path / "vxl.toml"
    settings.write_text("[ingest.levels]\ndense_share = 1.0\n")  # all files are read, whatever the weights choose
    asked = ("ask", "What happens?", "--archive", ARCHIVE, "--reuse", "reload", "--max-new-tokens", "1")
    done = call(*asked, "--config", settings)
    assert done.code == 1
    assert damaged in done.error_line and "checksum differs" in done.error_line
    verified = call("kv", "verify", "--archive", ARCHIVE, "--all", "--json")
    assert verified.code == 1
    (failed,) = [segment for segment in verified.json["segments"] if not segment["ok"]]
    assert failed["segment_id"].endswith("-00001") and "checksum differs" in failed["error"]


def test_a_killed_ingest_leaves_only_what_the_next_one_removes(
    client: Any, indexed: Any, environment: dict[str, str], tmp_path: Path
) -> None:
    archive = "s3://archive-under-test/killed"
    settings = tmp_path / "vxl.toml"
    settings.write_text("[s3]\nlease_s = 2.0\n")
    command = ("ingest", indexed[1], "--archive", archive, "--segment-s", "10", "--config", settings, "--json")

    def kv_files() -> set[str]:
        listed = client.list_objects_v2(Bucket="archive-under-test", Prefix="killed/kv/").get("Contents", ())
        return {entry["Key"].removeprefix("killed/") for entry in listed}

    with start(*command, env=environment) as process:
        while not kv_files():
            assert process.poll() is None, process.communicate()
            time.sleep(0.02)
        process.kill()
    orphan = f"kv/aa/{'a' * 32}/00000.vxlkv"
    client.put_object(Bucket="archive-under-test", Key=f"killed/{orphan}", Body=b"of an attempt that nobody knows")
    upload = {"Bucket": "archive-under-test", "Key": f"killed/kv/aa/{'a' * 32}/00001.vxlkv"}
    client.create_multipart_upload(**upload)

    done = call(*command, "--wait", "60")
    assert done.code == 0, done.err
    with LanceStore.open(S3Folder(archive, S3Settings())) as store:
        segments = store.segments_of()
        assert len(segments) == 4 and missing_kv(store) == []
        assert {segment.kv_path for segment in segments} == kv_files()
        assert find_orphans(store.folder, store) == []
    assert "Uploads" not in client.list_multipart_uploads(Bucket="archive-under-test", Prefix="killed/")
    verified = call("kv", "verify", "--archive", archive, "--all", "--json")
    assert verified.json["counts"]["verified"] == 4, verified.out


def test_a_writer_that_lost_its_lease_commits_nothing_more(
    indexed: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    archive = tmp_path / "archive"
    command = ("ingest", indexed[1], "--archive", archive, "--segment-s", "10", "--json")
    calls: list[int] = []

    def lost(self: WriterLease) -> None:
        calls.append(1)
        if len(calls) > 4:
            raise LeaseLost(self.folder.address(), "it could not be renewed for 61 s")

    with monkeypatch.context() as patch:
        patch.setattr(WriterLease, "require", lost)
        done = call(*command)
    assert done.code == 1 and "the writer lease" in done.err and not done.out
    with LanceStore.open(archive) as store:
        counts = store.row_counts()
        assert counts["segments"] < 4 and {row.state for row in store.videos()} == {"running"}
    assert call(*command).json["counts"]["indexed"] == 1


def test_tokens_on_s3_stand_in_for_kv_that_is_lost(client: Any, long_clip: Path, tmp_path: Path, indexed: Any) -> None:
    archive, below = "s3://archive-under-test/with tokens", "with tokens/kv/"
    settings = tmp_path / "vxl.toml"
    settings.write_text("[storage]\nkeep_tokens = true\n[ingest.levels]\ndense_share = 1.0\n")  # all files are read
    done = call("ingest", long_clip, "--archive", archive, "--config", settings, "--segment-s", "20", "--json")
    assert done.code == 0, done.err

    def names() -> list[str]:
        listed = client.list_objects_v2(Bucket="archive-under-test", Prefix=below).get("Contents", ())
        return sorted(entry["Key"] for entry in listed)

    files = names()
    assert [name.rpartition(".")[2] for name in files] == ["vxlkv", "vxltok"] * 2
    verified = call("kv", "verify", "--archive", archive, "--segments", "1", "--json")
    assert verified.code == 0, verified.out
    assert verified.json["segments"][0]["max_visual_error"] == 0
    options = ("--archive", archive, "--config", settings, "--reuse", "reload", "--json", "--max-new-tokens", "4")
    question = ("ask", "What happens?", *options)
    before = call(*question).json

    for name in files:
        if name.endswith(".vxlkv"):
            client.delete_object(Bucket="archive-under-test", Key=name)
    doctor = call("doctor", "--archive", archive)
    assert doctor.code == 1 and ".vxlkv" in doctor.out
    after = call(*question)
    assert after.code == 0, after.err
    assert (after.json["answer"], after.json["citations"]) == (before["answer"], before["citations"])
    assert 0 < after.json["context"]["kv_bytes_read"] < before["context"]["kv_bytes_read"]

    client.delete_object(Bucket="archive-under-test", Key=files[1])
    lost = call(*question)
    assert lost.code == 1 and files[1] in lost.err and "is not there" in lost.err


def test_demotion_comes_last_and_what_is_left_can_be_asked(client: Any, indexed: Any, tmp_path: Path) -> None:
    """It takes KV away that the tests above count."""
    full = sum(objects(client, "kv/").values()) - sum(objects(client, "kv/certificates/").values())
    question = ("ask", "What happens?", "--archive", ARCHIVE, "--reuse", "reload", "--json", "--max-new-tokens", "1")
    before = len(objects(client, "uses/"))
    assert call(*question).code == 0 and len(objects(client, "uses/")) == before + 1
    done = call("kv", "evict", "--archive", ARCHIVE, "--max-bytes", str(full // 2), "--json")
    assert done.code == 0, done.err
    assert done.json["demoted"] and 0 < done.json["bytes_after"] <= full // 2
    assert objects(client, "uses/") == {}
    again = call(*question)
    assert again.code == 0 and again.json["citations"], again.err
