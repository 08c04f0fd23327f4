"""Dense KV on S3 under a cap and by age, against a server on loopback: shared room, kills, pins, readers."""

from __future__ import annotations

import multiprocessing
import os
import pickle
import random
import signal
import threading
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest

from indexers import access_log
from indexers.access_log import age_name, last_uses, note_uses, shorten_access_log
from indexers.errors import DiskFull, LeaseLost, StoreUnavailable
from indexers.folder import LocalFolder, Name
from indexers.lease import LOCK_NAME, WriterLease
from indexers.room import ROOM_NAME
from indexers.store import TABLES_FOLDER, LanceStore
from indexers.sweep import find_orphans, missing_kv, sweep
from indexers.testing import START, make_video
from pipeline import tiers
from pipeline.config import RetentionRule, load_settings
from pipeline.kv_stats import kv_stats
from pipeline.reader import ArchiveReader
from pipeline.retention import evict, run_retention
from pipeline.s3 import S3Settings
from pipeline.s3_folder import S3Folder
from pipeline.tiers import Tier, TierKeeper, kv_file_bytes, room_for, tier_of
from tests.faults import looking, made_up
from tests.unit.pipeline.test_tiers import check_files, make_tiered

pytestmark = pytest.mark.s3

OLD = make_video("old", start_time=START - timedelta(days=100), camera="yard")
NEW = make_video("new")
PINNED = make_video("pinned", camera="vault")
NOW = START + timedelta(days=10)


@pytest.fixture(autouse=True)
def credentials(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "test")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "test")


class TablesElsewhere(S3Folder):
    """An archive on S3 whose tables lie in a local folder, since the test's server takes its time over theirs."""

    def __init__(self, uri: str, settings: S3Settings, local: Path) -> None:
        super().__init__(uri, settings)
        self._local = local

    def entries(self, name: Name = "") -> Sequence[str]:
        return LocalFolder(self._local).entries(name) if name == TABLES_FOLDER else super().entries(name)

    def tables(self, name: Name) -> tuple[str, Mapping[str, str]]:
        return LocalFolder(self._local).tables(name)


@pytest.fixture
def folder(s3_endpoint: str, tmp_path: Path) -> S3Folder:
    """An empty prefix in a bucket of its own."""
    uri = f"s3://demotion-{uuid4().hex[:8]}/my archive"
    made = TablesElsewhere(uri, S3Settings(endpoint_url=s3_endpoint), tmp_path)
    made.client.create_bucket(Bucket=made.bucket)
    return made


@pytest.fixture
def archive(folder: S3Folder) -> S3Folder:
    """Three videos of one segment each, one of them pinned by the tests that want it."""
    return make_tiered(folder, [OLD, NEW, PINNED], 1)


def reader_of(folder: S3Folder, **storage: Any) -> ArchiveReader:
    chosen = {f"storage.{name}": value for name, value in storage.items()}
    return ArchiveReader(folder, load_settings(overrides=chosen, environ={}))


def tiers_of(folder: S3Folder) -> dict[str, Tier]:
    """By video, of archives with one segment each."""
    return {segment.video_id: tier_of(segment) for segment in LanceStore.open(folder).segments_of()}


def put(folder: S3Folder, name: str, num_bytes: int) -> None:
    with folder.create(name) as new:
        new.file.write(bytes(num_bytes))
        new.commit()


def test_room_is_given_once(folder: S3Folder) -> None:
    other = pickle.loads(pickle.dumps(folder))
    put(folder, "kv/00/a/00000.vxlkv", 20)
    with room_for(folder, "a", 60, 100) as first:
        assert first
        with room_for(other, "b", 21, 100) as second, room_for(other, "c", 20, 100) as third:
            assert (second, third) == (False, True)
        with room_for(other, "a", 80, 100) as again:
            assert again, "the same segment, written again after its writer died"
    with room_for(other, "b", 80, 100) as whole:
        assert whole and kv_file_bytes(folder) == 20, "what keeps the room is no KV"
    held = room_for(other, "dead", 100, 120)
    assert held.__enter__()
    with room_for(folder, "b", 1, 120) as refused:
        assert not refused
    folder.room(ROOM_NAME).forget()
    with room_for(folder, "b", 100, 120) as free:
        assert free
    put(folder, ROOM_NAME, 5)
    with pytest.raises(StoreUnavailable, match="not what this program wrote"), room_for(folder, "b", 1, 120):
        pass


def test_the_cap_holds_for_many_that_write_at_once(folder: S3Folder, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each measures, is interrupted, reserves and uploads; whoever was overtaken in between measures again."""
    one_at_a_time, chance = threading.Lock(), random.Random(1)
    original = folder.client.put_object
    sizes: list[int] = []

    def careful(**arguments: Any) -> Any:
        time.sleep(chance.uniform(0, 0.01))
        with one_at_a_time:  # the test's server checks and writes in two steps, Amazon in one
            return original(**arguments)

    monkeypatch.setattr(folder.client, "put_object", careful)
    monkeypatch.setattr("pipeline.s3_room._PAUSE_S", 0.01)

    def write(number: int) -> bool:
        """Refused while another's file and reservation are both counted, a worker asks again."""
        while kv_file_bytes(folder) + 100 <= 450:
            with room_for(folder, str(number), 100, 450) as has_room:
                if has_room:
                    put(folder, f"kv/00/a/{number:05d}.vxlkv", 100)
                    sizes.append(kv_file_bytes(folder))
                    return True
        return False

    with ThreadPoolExecutor(5) as pool:
        written = sum(pool.map(write, range(8)))
    assert written == 4 and kv_file_bytes(folder) == max(sizes) == 400


def test_a_reader_leaves_notes_that_the_writer_folds(folder: S3Folder, monkeypatch: pytest.MonkeyPatch) -> None:
    assert last_uses(folder) == {}
    assert note_uses(folder, ["a", "b"], now=100) and note_uses(folder, ["a"], now=300)
    assert last_uses(folder) == {"a": 300, "b": 100} and len(folder.entries("uses")) == 2
    with WriterLease(folder) as lease:
        assert access_log.note_age(folder, "a", "int8", 50)
        shorten_access_log(folder, ["a"], lease)
    assert folder.entries("uses") == [] and last_uses(folder) == {"a": 300, age_name("a", "int8"): 50}
    monkeypatch.setattr(access_log, "MOST_NOTES", 1)
    assert [note_uses(folder, ["b"], now=now) for now in (400, 500)] == [True, False]

    def refuse(**_: Any) -> Any:
        raise PermissionError("AccessDenied")

    monkeypatch.setattr(access_log, "MOST_NOTES", 10)
    monkeypatch.setattr(folder.client, "put_object", refuse)
    assert not note_uses(folder, ["b"]), "a reader that may not write goes without"


def test_the_coldest_go_first_step_by_step_and_pins_stay(archive: S3Folder) -> None:
    old, new, _ = (video.video_id for video in (OLD, NEW, PINNED))
    full = kv_file_bytes(archive)
    with LanceStore.open(archive) as store, WriterLease(archive) as lease:
        keeper = TierKeeper(archive, store, ("vault",), lease)
        note_uses(archive, [f"{old}-00000"], now=4_000_000_000)
        assert [item.segment.video_id for item in keeper.candidates()] == [new, old]
        ages = {item.segment.segment_id: item.last_use for item in keeper.candidates()}
        (step,) = keeper.make_room(2 * full, full + 1000)
        assert (step.segment_id, step.before, step.after) == (f"{new}-00000", Tier.EXACT, Tier.INT8)
        assert step.freed == full - kv_file_bytes(archive)
        again = TierKeeper(archive, store, ("vault",), lease)
        assert {item.segment.segment_id: item.last_use for item in again.candidates()} == ages
        check_files(archive, store)
        again.make_room(2 * full, 2 * full)
        check_files(archive, store)
    assert tiers_of(archive) == {old: Tier.NONE, new: Tier.NONE, PINNED.video_id: Tier.EXACT}


def test_retention_demotes_expires_and_says_so_beforehand(archive: S3Folder) -> None:
    rules = (RetentionRule(after_days=1, keep="int4"), RetentionRule(after_days=30, keep="nothing"))
    reader = reader_of(archive, retention=rules, pins=("vault",))
    assert kv_stats(reader)["retention"]["frees_bytes"] == run_retention(reader, dry_run=True)["freed_bytes"] > 0
    planned = run_retention(reader, dry_run=True, now=NOW)
    done = run_retention(reader, now=NOW)
    assert [step["segment_id"] for step in done["demoted"]] == [f"{NEW.video_id}-00000"]
    assert done["demoted"][0]["after"] == planned["demoted"][0]["after"] == "int4"
    assert done["expired"] == planned["expired"] and done["expired"][0]["uri"] == OLD.uri
    assert tiers_of(archive) == {NEW.video_id: Tier.INT4, PINNED.video_id: Tier.EXACT}
    check_files(archive, reader.store)


def test_what_takes_the_writer_s_place_or_its_room_changes_nothing(
    archive: S3Folder, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = {found.name for found in archive.list("kv")}
    with LanceStore.open(archive) as store, WriterLease(archive) as lease:
        keeper = TierKeeper(archive, store, (), lease)
        item = keeper.candidates()[0]

        def full(*_: Any) -> Any:
            raise DiskFull(archive.address(), 1, None)

        with monkeypatch.context() as patch:
            patch.setattr(tiers, "reencode_segment", full)
            with pytest.raises(DiskFull):  # the temporary folder's: giving up KV would not empty it
                keeper.make_room(4 * kv_file_bytes(archive), 3 * kv_file_bytes(archive) + 1)
        assert keeper.demote(item, Tier.INT8, kv_file_bytes(archive)) is None
        assert lease._lock is not None
        monkeypatch.setattr(lease._lock, "has_lost", lambda: "it could not be renewed for 61 s")
        for tier in (Tier.INT8, Tier.NONE):
            with pytest.raises(LeaseLost):
                keeper.demote(item, tier, None)
    assert set(tiers_of(archive).values()) == {Tier.EXACT}
    assert {found.name for found in archive.list("kv")} - {ROOM_NAME} == before


def dies(environ: dict[str, str], folder: S3Folder, operation: str, name_part: str) -> None:
    """A demotion that is killed when it is about to send its first request of that kind for such a name.

    ``environ`` holds the credentials: the server that forks may be older than this test.
    """
    os.environ.update(environ)

    def watch(params: dict[str, Any], model: Any, **_: Any) -> None:
        if model.name == operation and name_part in params["url_path"]:
            os.kill(os.getpid(), signal.SIGKILL)

    folder.client.meta.events.register("before-call.s3", watch)
    full = kv_file_bytes(folder)
    with WriterLease(folder) as lease, LanceStore.open(folder) as store:
        TierKeeper(folder, store, ("vault",), lease).make_room(2 * full, full + 1000)


KILLS = [
    ("PutObject", ".int8.vxlkv"),  # before the new file is there
    ("PutObject", "uses/"),  # after it, before the row
    ("DeleteObject", "00000.vxlkv"),  # after the row, before the old file is gone
]


def test_killed_at_any_moment_of_a_demotion(archive: S3Folder) -> None:
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["tests.integration.test_s3_demotion"])
    full = kv_file_bytes(archive)
    for operation, name_part in KILLS:
        process = context.Process(target=dies, args=(dict(os.environ), archive, operation, name_part))
        process.start()
        process.join()
        assert process.exitcode == -signal.SIGKILL, (operation, name_part)
        archive.remove(LOCK_NAME)  # its lease has ended
        with LanceStore.open(archive) as store:
            assert missing_kv(store) == []
            assert len(find_orphans(archive, store)) <= 1
        assert kv_file_bytes(archive) <= 2 * full
    with LanceStore.open(archive) as store, WriterLease(archive) as lease:
        assert [tier_of(segment) for segment in store.segments_of()].count(Tier.INT8) == 1
        sweep(archive, store, lease)
        assert find_orphans(archive, store) == []
    done = evict(reader_of(archive, pins=("vault",)), max_bytes=full // 2)
    assert done["fits"] and done["bytes_after"] <= full // 2
    check_files(archive, LanceStore.open(archive))


@contextmanager
def watched(folder: S3Folder) -> Iterator[list[int]]:
    """Bytes under the cap after every request of the block that adds an object."""
    seen = [0]
    other = pickle.loads(pickle.dumps(folder))

    def look(**_: Any) -> None:
        seen.append(kv_file_bytes(other))

    folder.client.meta.events.register("after-call.s3.PutObject", look)
    try:
        yield seen
    finally:
        folder.client.meta.events.unregister("after-call.s3.PutObject", look)


def test_the_cap_holds_while_ten_times_too_much_is_ingested(folder: S3Folder) -> None:
    segments = 5
    free = 254_000  # bytes of one made-up segment as it is
    cap = segments * 2 * free // 10
    listed = made_up.listing({str(number): "1" for number in range(segments)})
    with watched(folder) as seen:
        made_up.ingest(folder, listed, made_up.settings(cap))
    assert 0 < max(seen) <= cap and 0 < kv_file_bytes(folder) <= cap
    with LanceStore.open(folder) as store:
        found = [tier_of(segment) for segment in store.segments_of()]
        assert len(found) == 2 * segments == 2 * len(store.visible_videos())
        assert set(found) & {Tier.TOKENS, Tier.NONE}
        assert missing_kv(store) == [] and find_orphans(folder, store) == []


def test_two_readers_during_an_eviction_get_whole_chunks_or_a_typed_error(folder: S3Folder) -> None:
    made_up.ingest(folder, made_up.listing({"a": "1"}), made_up.settings(cap=None))
    begun, over = threading.Barrier(3), threading.Event()

    def read(seed: int) -> Counter[str]:
        reader, chance = reader_of(pickle.loads(pickle.dumps(folder))), random.Random(seed)
        seen = sum((looking.look(reader, chance) for _ in range(3)), Counter())
        begun.wait(60)
        while not over.is_set():
            seen += looking.look(reader, chance)
        return seen + looking.look(reader, chance)

    with ThreadPoolExecutor(2) as pool:
        readers = [pool.submit(read, seed) for seed in (1, 2)]
        begun.wait(60)
        full = kv_file_bytes(folder)
        with LanceStore.open(folder) as store, WriterLease(folder) as lease:
            for share in (0.6, 0.3, 0.0):  # int8, int4, none
                TierKeeper(folder, store, (), lease).make_room(2 * full, 2 * full - round(share * full))
        over.set()
        seen: Counter[str] = sum((reader.result() for reader in readers), Counter())
    assert seen[looking.MIXED] == 0 and seen["dense"] > 0 and seen["sparse"] > 0, seen
    assert set(seen) <= {"dense", "sparse", "StorageError", "MissingKV"}, seen
    assert kv_file_bytes(folder) == 0 and set(tiers_of(folder).values()) == {Tier.NONE}
