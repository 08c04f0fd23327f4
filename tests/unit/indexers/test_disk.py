"""A full disk is told from other failures, whoever noticed it, and leaves nothing half-written."""

from __future__ import annotations

import errno
import os
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from indexers.access_log import last_uses, note_uses, shorten_access_log
from indexers.container import DurableFile
from indexers.disk import COMMIT_BYTES, is_full, require_room, unavailable
from indexers.errors import DiskFull, StoreError, StoreUnavailable
from indexers.fingerprint import table_fingerprint
from indexers.folder import LocalFolder
from indexers.lease import WriterLease
from indexers.store import LanceStore, _translated
from indexers.testing import EMBEDDING_DIM, add_video, make_segment, make_video


def no_space() -> OSError:
    return OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (no_space(), True),
        (OSError(errno.EDQUOT, os.strerror(errno.EDQUOT)), True),
        (RuntimeError("lance error: LanceError(IO): No space left on device (os error 28), blob.rs:1005:9"), True),
        (OSError(errno.EACCES, "Permission denied"), False),
        (ValueError("Invalid input"), False),
    ],
)
def test_a_full_disk_is_known_by_number_or_words(error: Exception, expected: bool) -> None:
    assert is_full(error) is expected


def test_the_error_says_what_is_needed_and_what_is_there(tmp_path: Path) -> None:
    folder = LocalFolder(tmp_path)
    full = unavailable(folder, "x", no_space(), 5_000_000)
    assert isinstance(full, DiskFull) and not full.retryable and full.where == str(tmp_path / "x")
    assert "5.00 MB are needed" in str(full) and "MB are free" in str(full) and (full.free or 0) > 0
    other = unavailable(folder, "x", OSError(errno.EIO, "Input/output error"))
    assert type(other) is StoreUnavailable and other.retryable


def test_where_room_is_not_known_only_a_failure_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As on S3: files are made in this machine's temporary folder, and that can be full."""
    monkeypatch.setattr(LocalFolder, "free_bytes", lambda folder, name="": None)
    folder = LocalFolder(tmp_path)
    require_room(folder, 1 << 60)
    with pytest.raises(StoreError, match="cut short") as caught, _translated("chunks", folder, 1 << 60):
        raise RuntimeError("cut short")
    assert not isinstance(caught.value, DiskFull)
    full = unavailable(folder, "x", no_space(), 5_000_000)
    assert isinstance(full, DiskFull) and full.free is None
    assert str(full).endswith("the temporary folder (TMPDIR) is full: 5.00 MB are needed")
    assert pickle.loads(pickle.dumps(full)).free is None


def test_room_is_asked_for_before_anything_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = LanceStore.create(tmp_path, EMBEDDING_DIM)
    rows = make_segment(make_video("a"), archive=tmp_path)
    needed = sum(table.nbytes for table in (rows.chunks, rows.sparse, rows.embeddings)) + COMMIT_BYTES
    before = table_fingerprint(store)
    monkeypatch.setattr(LocalFolder, "free_bytes", lambda folder, name="": needed - 1)
    with pytest.raises(DiskFull) as caught:
        store.insert_segment(rows)
    assert (caught.value.needed, caught.value.free) == (needed, needed - 1)
    assert table_fingerprint(store) == before and store.partial_segments() == []
    monkeypatch.setattr(LocalFolder, "free_bytes", lambda folder, name="": needed)
    assert store.insert_segment(rows)


def test_compaction_asks_for_room_to_write_a_table_anew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = LanceStore.create(tmp_path, EMBEDDING_DIM)
    for name in "abc":
        add_video(store, make_video(name), archive=tmp_path)
    before = table_fingerprint(store)
    files = sorted(path for path in (tmp_path / "tables").rglob("*") if path.is_file())
    with monkeypatch.context() as patched, pytest.raises(DiskFull):
        patched.setattr(LocalFolder, "free_bytes", lambda folder, name="": COMMIT_BYTES)
        store.compact(full=True)
    assert sorted(path for path in (tmp_path / "tables").rglob("*") if path.is_file()) == files
    store.compact(full=True)
    assert table_fingerprint(store) == before


def test_free_bytes_of_what_is_not_there_yet(tmp_path: Path) -> None:
    folder = LocalFolder(tmp_path / "not" / "yet")
    require_room(folder, 1)
    with pytest.raises(DiskFull):
        require_room(folder, 1 << 60)


def test_a_write_that_fails_without_room_failed_for_that_reason(tmp_path: Path) -> None:
    """LanceDB says of a blob that was cut short that its range is wrong."""
    hidden = "Invalid input, Packed blob range [0, 300000) exceeds blob object size 192512"
    with pytest.raises(DiskFull), _translated("sparse_kv", LocalFolder(tmp_path), 1 << 60):
        raise ValueError(hidden)
    folder = LocalFolder(tmp_path)
    for needed in (None, 1):
        with pytest.raises(Exception, match="Packed blob range") as caught, _translated("sparse_kv", folder, needed):
            raise ValueError(hidden)
        assert not isinstance(caught.value, DiskFull)


def test_an_unfinished_file_goes_although_its_buffer_cannot_be_written(tmp_path: Path) -> None:
    durable = DurableFile(tmp_path / "x")

    class Full:
        """A file whose last bytes find no room when it is closed."""

        def close(self) -> None:
            durable_file.close()
            raise no_space()

    durable_file, durable.file = durable.file, Full()  # type: ignore[assignment]
    with pytest.raises(OSError, match="No space"):
        durable.discard()
    assert list(tmp_path.iterdir()) == []


def test_the_lease_and_the_access_log_do_without_room(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever makes room has to hold the lease first."""

    def refuse(*arguments: Any) -> int:
        raise no_space()

    store = LanceStore.create(tmp_path, EMBEDDING_DIM)
    add_video(store, make_video("a"), archive=tmp_path)
    note_uses(tmp_path, ["x", "y"], now=5.0)
    monkeypatch.setattr(os, "pwrite", refuse)
    monkeypatch.setattr(os, "fsync", refuse)
    with WriterLease(tmp_path) as lease:
        assert lease.is_held
        shorten_access_log(tmp_path, ["x"], lease)
    assert last_uses(tmp_path) == {"x": 5.0, "y": 5.0}
    assert not list(tmp_path.glob(".*.tmp"))
    assert len(store.search_vectors(np.ones(EMBEDDING_DIM))) > 0
