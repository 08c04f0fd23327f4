"""Uses are noted by readers without a table, read back leniently, and shortened by the writer only."""

from __future__ import annotations

from pathlib import Path

import pytest

from indexers import access_log
from indexers.access_log import ACCESS_LOG, last_uses, note_uses, shorten_access_log
from indexers.lease import WriterLease


def test_the_latest_use_counts(tmp_path: Path) -> None:
    assert last_uses(tmp_path) == {}
    assert note_uses(tmp_path, ["a", "b"], now=100)
    assert note_uses(tmp_path, ["a"], now=300.4)
    assert note_uses(tmp_path, ["b"], now=50)
    assert last_uses(tmp_path) == {"a": 300, "b": 100}


def test_damaged_lines_are_skipped(tmp_path: Path) -> None:
    (tmp_path / ACCESS_LOG).write_bytes(b"\xff\xfe 1\nnot a time a\n7 \n12 a\n99")
    assert last_uses(tmp_path) == {"a": 12}


def test_a_reader_that_cannot_write_goes_without(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert not note_uses(tmp_path / "absent", ["a"])
    (tmp_path / ACCESS_LOG).mkdir()
    assert not note_uses(tmp_path, ["a"])
    assert last_uses(tmp_path) == {}


def test_the_file_is_bounded_and_the_writer_shortens_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(access_log, "LARGEST_BYTES", 1000)
    noted = [note_uses(tmp_path, [f"segment-{number % 3}"], now=number) for number in range(200)]
    assert not all(noted)
    assert (tmp_path / ACCESS_LOG).stat().st_size < 1100
    uses = last_uses(tmp_path)
    with WriterLease(tmp_path) as lease:
        shorten_access_log(tmp_path, ["segment-0", "segment-1"], lease)
    assert last_uses(tmp_path) == {name: uses[name] for name in ("segment-0", "segment-1")}
    assert note_uses(tmp_path, ["segment-2"])
    with pytest.raises(ValueError, match="lease"):
        shorten_access_log(tmp_path, [], lease)
