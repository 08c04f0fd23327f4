"""An archive's files on S3, against a server on loopback: range reads, uploads that replace nothing, and the lease."""

from __future__ import annotations

import errno
import io
import os
import pickle
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from uuid import uuid4

import numpy as np
import pytest

from indexers.errors import ArchiveLocked, CorruptKV, DiskFull, LeaseLost, MissingKV, StoreUnavailable
from indexers.kv_file import DenseKVHeader, DenseKVReader, write_dense_kv
from indexers.lease import WriterLease, is_lease_held, lease_holder
from indexers.staging import read_staged, remove_staged, write_staged
from indexers.store import LanceStore
from indexers.sweep import find_orphans, sweep
from indexers.testing import EMBEDDING_DIM, add_video, make_segment, make_video
from indexers.token_file import TokensHeader, TokensReader, write_tokens
from pipeline.kv_reload import Reload
from pipeline.s3 import S3Settings
from pipeline.s3_folder import S3File, S3Folder

pytestmark = pytest.mark.s3

HEADER = DenseKVHeader(
    video_id="0" * 32,
    segment_index=3,
    fingerprint="f",
    dtype="float32",
    layers=2,
    kv_heads=2,
    head_dim=8,
    chunk_groups=tuple(((2, 100 + i),) for i in range(6)),
)
FILE = "kv/00/a/00003.vxlkv"
TOKENS = TokensHeader(
    video_id="0" * 32,
    segment_index=3,
    fingerprint="f",
    dtype="float32",
    tokens_per_group=3,
    width=50,
    chunk_times_s=((0.0, 4.0), (8.0,)),
)
TOKENS_FILE = "kv/00/a/00003.vxltok"


def payloads(seed: int = 0) -> list[bytes]:
    generator = np.random.default_rng(seed)
    return [generator.bytes(HEADER.chunk_bytes(i)) for i in range(HEADER.num_chunks)]


def token_payloads(seed: int = 0) -> list[bytes]:
    generator = np.random.default_rng(seed)
    return [generator.bytes(TOKENS.chunk_bytes(i)) for i in range(TOKENS.num_chunks)]


@pytest.fixture
def client(s3_endpoint: str, monkeypatch: pytest.MonkeyPatch) -> Any:
    import boto3

    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "test")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "test")
    return boto3.client("s3", endpoint_url=s3_endpoint, region_name="us-east-1")


@pytest.fixture
def folder(client: Any, s3_endpoint: str) -> S3Folder:
    bucket = f"archives-{uuid4().hex[:8]}"
    client.create_bucket(Bucket=bucket)
    settings = S3Settings(endpoint_url=s3_endpoint, part_bytes=5 * 2**20, lease_s=2.0)
    return S3Folder(f"s3://{bucket}/my archive/é=1", settings)


class Requests:
    """The ranges that a client asks for."""

    def __init__(self, folder: S3Folder, monkeypatch: pytest.MonkeyPatch) -> None:
        self.ranges: list[str] = []
        original = folder.client.get_object

        def noted(**arguments: Any) -> Any:
            self.ranges.append(arguments.get("Range", "all"))
            return original(**arguments)

        monkeypatch.setattr(folder.client, "get_object", noted)


def keys(client: Any, folder: S3Folder) -> list[str]:
    return [entry["Key"] for entry in client.list_objects_v2(Bucket=folder.bucket).get("Contents", ())]


def test_files_are_written_listed_read_and_removed(client: Any, folder: S3Folder) -> None:
    content = np.random.default_rng(1).bytes(200_000)
    with folder.create("kv/aa/one.vxlkv", write_once=True) as new:
        new.file.write(content)
        assert list(folder.list("kv")) == []
        new.commit()
    assert keys(client, folder) == ["my archive/é=1/kv/aa/one.vxlkv"]
    (found,) = folder.list("kv")
    assert (found.name, found.num_bytes, found.is_unfinished) == ("kv/aa/one.vxlkv", len(content), False)
    assert abs(found.modified - time.time()) < 3600
    assert folder.entries() == ["kv"] and folder.entries("kv") == ["aa"] and folder.entries("none") == []
    assert folder.size("kv/aa/one.vxlkv") == len(content) and folder.size("kv/aa") is None
    assert folder.read_bytes("kv/aa/one.vxlkv") == content
    file = folder.open("kv/aa/one.vxlkv")
    assert file.read(0, 32) == content[:32]
    assert file.read(65_000, 2_000) == content[65_000:67_000]
    assert file.read(199_990, 100) == content[-10:]
    with folder.local_copy("kv/aa/one.vxlkv") as path:
        assert path.read_bytes() == content
    assert not path.exists()
    assert pickle.loads(pickle.dumps(folder)).size("kv/aa/one.vxlkv") == len(content)
    with folder.create("kv/aa/none") as new:
        new.file.write(b"given up")
    assert folder.remove_tree("kv") == len(content)
    assert keys(client, folder) == []
    folder.remove("kv/aa/one.vxlkv")
    for read in (folder.read_bytes, folder.open):
        with pytest.raises(FileNotFoundError):
            read("kv/aa/one.vxlkv")


def test_an_empty_file_reads_as_one(folder: S3Folder) -> None:
    with folder.create("empty") as new:
        new.commit()
    file = folder.open("empty")
    assert (file.num_bytes, file.read(0, 10)) == (0, b"")


@pytest.mark.parametrize("num_bytes", [1000, 11 * 2**20], ids=["whole", "in parts"])
def test_nothing_is_replaced_by_other_bytes(client: Any, folder: S3Folder, num_bytes: int) -> None:
    names = []
    for seed in (0, 0, 1):
        with folder.create("kv/x.vxlkv", write_once=True) as new:
            new.file.write(np.random.default_rng(seed).bytes(num_bytes))
            new.commit()
        names.append(new.name)
    assert names[0] == names[1] == "kv/x.vxlkv" != names[2] and names[2].endswith(".vxlkv")
    for name, seed in ((names[0], 0), (names[2], 1)):
        assert folder.read_bytes(name) == np.random.default_rng(seed).bytes(num_bytes)
    assert len(keys(client, folder)) == 2
    assert [found for found in folder.list("kv") if found.is_unfinished] == []


def test_an_object_that_appears_during_the_upload_is_not_replaced(
    client: Any, folder: S3Folder, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The look before the upload sees nothing; the condition of the upload itself holds it back."""
    original = folder.client.put_object
    key = folder.key("kv/x.vxlkv")

    def late(**arguments: Any) -> Any:
        monkeypatch.undo()
        client.put_object(Bucket=folder.bucket, Key=key, Body=b"another's")
        return original(**arguments)

    monkeypatch.setattr(folder.client, "put_object", late)
    with folder.create("kv/x.vxlkv", write_once=True) as new:
        new.file.write(b"ours")
        new.commit()
    assert folder.read_bytes("kv/x.vxlkv") == b"another's"
    assert new.name != "kv/x.vxlkv" and folder.read_bytes(new.name) == b"ours"


def test_an_upload_that_fails_leaves_nothing(client: Any, folder: S3Folder, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(**_: Any) -> Any:
        raise OSError("the connection was reset")

    monkeypatch.setattr(folder.client, "upload_part", broken)
    with pytest.raises(StoreUnavailable, match="connection was reset") as caught:
        big = replace(HEADER, chunk_groups=(((2, 60_000),),))
        write_dense_kv(FILE, big, [bytes(big.chunk_bytes(0))], folder)
    assert folder.address(FILE) in str(caught.value)
    assert list(folder.list("")) == []


def test_a_kv_file_is_read_by_ranges_and_checked(
    client: Any, folder: S3Folder, monkeypatch: pytest.MonkeyPatch
) -> None:
    written = write_dense_kv(FILE, HEADER, payloads(), folder)
    assert written.name == FILE
    requests = Requests(folder, monkeypatch)
    with DenseKVReader(FILE, written.digest, folder) as reader:
        assert len(requests.ranges) == 1, "a header takes one request"
        assert bytes(reader.read_chunk(4)) == payloads()[4]
        first = written[4].offset
        last = first + -(-written[4].length // 4096) * 4096 - 1
        assert requests.ranges[1:] == [f"bytes={first}-{last}"]
        body = bytearray(folder.read_bytes(FILE))
        body[written[2].offset + 7] ^= 1
        client.put_object(Bucket=folder.bucket, Key=folder.key(FILE), Body=bytes(body))
        with pytest.raises(StoreUnavailable, match="replaced while it was read"):
            reader.read_chunk(1)
    with DenseKVReader(FILE, written.digest, folder) as reader:
        with pytest.raises(CorruptKV, match="chunk 2: checksum differs") as caught:
            reader.verify()
        assert caught.value.path == folder.address(FILE)
        folder.remove(FILE)
        with pytest.raises(MissingKV):
            reader.read_chunk(1)
    with pytest.raises(MissingKV):
        DenseKVReader(FILE, written.digest, folder)


def test_a_cut_file_is_found_on_opening(client: Any, folder: S3Folder) -> None:
    write_dense_kv(FILE, HEADER, payloads(), folder)
    client.put_object(Bucket=folder.bucket, Key=folder.key(FILE), Body=folder.read_bytes(FILE)[:-4096])
    with pytest.raises(CorruptKV, match="its header says"):
        DenseKVReader(FILE, None, folder)


@pytest.mark.parametrize("span_bytes", [1, 2**30], ids=["one by one", "neighbours together"])
def test_chunks_are_reloaded_into_their_places_with_few_requests(
    folder: S3Folder, monkeypatch: pytest.MonkeyPatch, span_bytes: int
) -> None:
    write_dense_kv(FILE, HEADER, payloads(), folder)
    requests = Requests(folder, monkeypatch)
    wanted = [5, 0, 1, 2]
    with Reload(span_bytes=span_bytes) as reload:
        file = reload.add(DenseKVReader(FILE, None, folder))
        pieces = [reload.chunk(file, index) for index in wanted]
        for piece in pieces:
            piece.bind_to_own()
        found = [piece.load().kv_LSKMDh.numpy().tobytes() for piece in pieces]
    assert found == [payloads()[index] for index in wanted]
    assert len(requests.ranges) == 1 + (4 if span_bytes == 1 else 2)


def test_first_layers_of_all_chunks_are_requested_first(folder: S3Folder, monkeypatch: pytest.MonkeyPatch) -> None:
    written = write_dense_kv(FILE, HEADER, payloads(), folder)
    requests = Requests(folder, monkeypatch)
    monkeypatch.setattr(S3File, "least_read_bytes", 1)
    wanted = [5, 0, 1, 2]
    with Reload(layer_bands=2, reads_in_flight=1) as reload:
        file = reload.add(DenseKVReader(FILE, None, folder))
        pieces = [reload.chunk(file, index) for index in wanted]
        for piece in pieces:
            piece.bind_to_own()
        found = [piece.load().kv_LSKMDh.numpy().tobytes() for piece in pieces]
    assert found == [payloads()[index] for index in wanted]
    starts = [
        f"bytes={written[index].offset + band.sections.start * written[index].section_bytes}-"
        for number in range(2)
        for index, band in ((index, piece.bands[number]) for index, piece in zip(wanted, pieces, strict=True))
    ]
    assert [f"{asked.partition('-')[0]}-" for asked in requests.ranges[1:]] == starts


def test_damage_in_a_run_does_not_touch_its_neighbours(client: Any, folder: S3Folder) -> None:
    written = write_dense_kv(FILE, HEADER, payloads(), folder)
    body = bytearray(folder.read_bytes(FILE))
    body[written[1].offset] ^= 128
    client.put_object(Bucket=folder.bucket, Key=folder.key(FILE), Body=bytes(body))
    with Reload() as reload:
        file = reload.add(DenseKVReader(FILE, written.digest, folder))
        pieces = [reload.chunk(file, index) for index in range(3)]
        for piece in pieces:
            piece.bind_to_own()
        for index in (0, 2):
            assert pieces[index].load().kv_LSKMDh.numpy().tobytes() == payloads()[index]
        with pytest.raises(CorruptKV, match="chunk 1"):
            pieces[1].load()


def test_tokens_are_files_like_any_other(client: Any, folder: S3Folder) -> None:
    written = write_tokens(TOKENS_FILE, TOKENS, token_payloads(), folder)
    assert written.name == TOKENS_FILE and folder.size(TOKENS_FILE) == written.num_bytes
    with TokensReader(TOKENS_FILE, written.digest, folder) as file:
        assert file.header == TOKENS
        assert [bytes(file.read_chunk(chunk)) for chunk in range(2)] == token_payloads()
    other = write_tokens(TOKENS_FILE, TOKENS, token_payloads(1), folder)
    assert other.name != TOKENS_FILE
    for name, digest, seed in ((TOKENS_FILE, written.digest, 0), (other.name, other.digest, 1)):
        with TokensReader(name, digest, folder) as file:
            assert bytes(file.read_chunk(1)) == token_payloads(seed)[1]
    client.delete_object(Bucket=folder.bucket, Key=folder.key(TOKENS_FILE))
    with pytest.raises(MissingKV):
        TokensReader(TOKENS_FILE, written.digest, folder)


def test_a_full_temporary_folder_is_a_full_disk(folder: S3Folder, monkeypatch: pytest.MonkeyPatch) -> None:
    class Full(io.BytesIO):
        def write(self, content: Any) -> int:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr("pipeline.s3_folder.tempfile.TemporaryFile", lambda **_: Full())
    for write in (
        lambda: write_tokens(TOKENS_FILE, TOKENS, token_payloads(), folder),
        lambda: write_staged("staging", make_segment(make_video("a.mp4"), 0), folder),
    ):
        with pytest.raises(DiskFull, match=r"temporary folder \(TMPDIR\) is full") as caught:
            write()
        assert caught.value.needed and caught.value.free is None and folder.bucket in caught.value.where


class _BreaksOff(BaseHTTPRequestHandler):
    """Serves one object by range and ends every answer after 3000 bytes, though it promised more."""

    content = np.random.default_rng(3).bytes(20_000)
    requests: list[str]

    def do_GET(self) -> None:
        self.requests.append(self.headers["Range"])
        first, last = map(int, self.headers["Range"].removeprefix("bytes=").split("-"))
        body = self.content[first : last + 1]
        self.send_response(206)
        self.send_header("Content-Length", str(len(body)))
        self.send_header("Content-Range", f"bytes {first}-{first + len(body) - 1}/{len(self.content)}")
        self.send_header("ETag", '"e"')
        self.end_headers()
        self.wfile.write(body if first == 0 else body[:3000])
        self.close_connection = True

    def log_message(self, format: str, *args: object) -> None:
        pass


@pytest.fixture
def breaking(monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[S3Folder, list[str]]]:
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "test")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "test")
    monkeypatch.setattr("pipeline.s3_folder._HEAD_BYTES", 100)
    _BreaksOff.requests = []
    with ThreadingHTTPServer(("127.0.0.1", 0), _BreaksOff) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        settings = S3Settings(endpoint_url=f"http://127.0.0.1:{server.server_port}", attempts=3)
        yield S3Folder("s3://bucket/a", settings), _BreaksOff.requests
        server.shutdown()
        thread.join()


def test_a_read_that_breaks_off_goes_on_where_it_stopped(breaking: tuple[S3Folder, list[str]]) -> None:
    folder, requests = breaking
    file = folder.open("x")
    room = bytearray(8_000)
    with file.open_range(1_000, 8_000) as found:
        views = [memoryview(room)[:10], memoryview(room)[10:5_000], memoryview(room)[5_000:]]
        assert found.read_into(views, 1_000) == 8_000
    assert bytes(room) == _BreaksOff.content[1_000:9_000]
    assert [one.split("-")[0] for one in requests[1:]] == ["bytes=1000", "bytes=4000", "bytes=7000"]


def test_a_server_that_is_gone_is_unavailable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "test")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "test")
    folder = S3Folder("s3://bucket/a", S3Settings(endpoint_url="http://127.0.0.1:9", attempts=1))
    with pytest.raises(StoreUnavailable, match="does not answer"):
        DenseKVReader(FILE, None, folder)
    with pytest.raises(StoreUnavailable, match="does not answer"):
        WriterLease(folder).acquire()


def test_tables_staged_rows_and_the_sweep(client: Any, folder: S3Folder) -> None:
    with LanceStore.create(folder, EMBEDDING_DIM) as store, WriterLease(folder) as lease:
        video = make_video("ü 'x'.mp4")
        add_video(store, video)
        staged = make_segment(make_video("later.mp4"), 0)
        path = write_staged("staging", staged, folder)
        back = read_staged(path, folder)
        assert back.segment == staged.segment and back.sparse.equals(staged.sparse)
        remove_staged(path, folder)
        remove_staged(path, folder)
        write_dense_kv(FILE, HEADER, payloads(), folder)
        write_tokens(TOKENS_FILE, TOKENS, token_payloads(), folder)
        upload = client.create_multipart_upload(Bucket=folder.bucket, Key=folder.key("kv/00/a/9.vxlkv"))
        client.upload_part(
            Bucket=folder.bucket,
            Key=folder.key("kv/00/a/9.vxlkv"),
            UploadId=upload["UploadId"],
            PartNumber=1,
            Body=b"x" * 77,
        )
        found = {orphan.path: (orphan.num_bytes, orphan.reason) for orphan in find_orphans(folder, store)}
        assert found["kv/00/a/9.vxlkv"] == (77, "unfinished file")
        assert found[FILE][1] == found[TOKENS_FILE][1] == "no segment refers to it"
        assert set(found) == {"kv/00/a/9.vxlkv", FILE, TOKENS_FILE}
        assert len(sweep(folder, store, lease).removed) == 3
        assert find_orphans(folder, store) == []
    with pickle.loads(pickle.dumps(store)) as again:
        assert [row.video_id for row in again.visible_videos()] == [video.video_id]
        assert again.row_counts()["segments"] == 1
        assert again.read_sparse(again.chunks(columns=["chunk_id"])["chunk_id"].to_pylist())
        again.compact(full=True)
        again.delete_video(video.video_id)
        assert again.row_counts()["chunks"] == 0
    with pytest.raises(StoreUnavailable, match="tables are missing"):
        LanceStore.open(S3Folder(f"s3://{folder.bucket}/elsewhere", folder.settings))


def test_renewed_credentials_reach_the_tables(folder: S3Folder, monkeypatch: pytest.MonkeyPatch) -> None:
    with LanceStore.create(folder, EMBEDDING_DIM) as store:
        connection = store._connect()
        assert store._connect() is connection
        options = dict(folder.tables("tables")[1])
        renewed = {**options, "aws_access_key_id": "renewed"}
        monkeypatch.setattr(folder, "tables", lambda name: (folder.address(name), renewed))
        assert store._connect() is not connection
        assert store.row_counts()["videos"] == 0


def test_only_one_process_holds_the_lease(folder: S3Folder) -> None:
    assert not is_lease_held(folder) and lease_holder(folder) is None
    with WriterLease(folder) as lease:
        assert is_lease_held(folder)
        with pytest.raises(ArchiveLocked, match="process "):
            WriterLease(folder).acquire()
        time.sleep(5)  # longer than a lease is good for: it is renewed
        lease.require()
        with pytest.raises(ArchiveLocked):
            WriterLease(folder).acquire()
    assert not is_lease_held(folder) and lease_holder(folder) is None
    with WriterLease(folder):
        pass


def test_a_lease_that_is_not_renewed_is_taken_over_and_its_holder_is_told(
    folder: S3Folder, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What a paused machine, a dead one, or a broken connection looks like to the others."""
    begun = time.monotonic()
    first = WriterLease(folder).acquire()
    lock = first._lock
    monkeypatch.setattr(lock, "_write", lambda *_: (_ for _ in ()).throw(OSError("no route")))
    second = WriterLease(folder).acquire(wait_s=30)
    assert time.monotonic() - begun > 2.0
    with pytest.raises(LeaseLost, match="could not be renewed"):
        first.require()
    monkeypatch.undo()
    time.sleep(1.5)
    with pytest.raises(LeaseLost):
        first.require()
    first.release()
    second.require()
    assert is_lease_held(folder)
    second.release()


def test_of_many_that_want_the_lease_one_gets_it(folder: S3Folder, monkeypatch: pytest.MonkeyPatch) -> None:
    start, one_at_a_time = threading.Barrier(6), threading.Lock()
    original = folder.client.put_object

    def put(**arguments: Any) -> Any:
        with one_at_a_time:  # the test's server checks and writes in two steps, Amazon in one
            return original(**arguments)

    monkeypatch.setattr(folder.client, "put_object", put)

    def take(_: int) -> WriterLease | None:
        start.wait()
        try:
            return WriterLease(folder).acquire()
        except ArchiveLocked:
            return None

    with ThreadPoolExecutor(6) as pool:
        taken = [lease for lease in pool.map(take, range(6)) if lease is not None]
    (only,) = taken
    only.require()
    only.release()


def test_a_server_without_conditional_writes_is_refused(folder: S3Folder, monkeypatch: pytest.MonkeyPatch) -> None:
    original = folder.client.put_object

    def careless(**arguments: Any) -> Any:
        return original(**{name: value for name, value in arguments.items() if not name.startswith("If")})

    monkeypatch.setattr(folder.client, "put_object", careless)
    with pytest.raises(StoreUnavailable, match="ignores conditional writes"):
        WriterLease(folder).acquire()


def test_a_write_whose_answer_was_lost_is_recognised(folder: S3Folder, monkeypatch: pytest.MonkeyPatch) -> None:
    """boto3 tries again by itself; the second try is refused because the first one arrived."""
    original = folder.client.put_object

    def twice(**arguments: Any) -> Any:
        original(**arguments)
        return original(**arguments)

    monkeypatch.setattr(folder.client, "put_object", twice)
    with WriterLease(folder) as lease:
        lease.require()
        assert is_lease_held(folder)
