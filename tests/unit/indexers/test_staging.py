"""Staged segments: what a worker wrote is what the committer reads, or a refusal."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest

from indexers.errors import CorruptStaging, DiskFull
from indexers.staging import read_staged, remove_staged, staged_path, write_staged
from indexers.testing import make_segment, make_video


def test_rows_survive_staging(tmp_path: Path) -> None:
    rows = make_segment(make_video("ü 'x'.mp4"), 2)
    path = write_staged(tmp_path / "staging", rows)
    assert path == staged_path(tmp_path / "staging", rows.segment_id)
    back = read_staged(path)
    assert back.segment == rows.segment
    for name in ("chunks", "embeddings", "sparse"):
        assert getattr(back, name).equals(getattr(rows, name))
    assert list(path.parent.iterdir()) == [path]


def test_an_empty_segment_survives_too(tmp_path: Path) -> None:
    rows = make_segment(make_video())
    empty = type(rows)(rows.segment, rows.chunks[:0], rows.embeddings[:0], rows.sparse[:0])
    assert read_staged(write_staged(tmp_path, empty)).chunks.num_rows == 0


def test_the_same_rows_give_the_same_file_and_a_second_attempt_replaces_the_first(tmp_path: Path) -> None:
    rows = make_segment(make_video())
    first = write_staged(tmp_path, rows).read_bytes()
    assert write_staged(tmp_path, rows).read_bytes() == first
    assert len(list(tmp_path.iterdir())) == 1


def test_damage_anywhere_is_found(tmp_path: Path) -> None:
    path = write_staged(tmp_path, make_segment(make_video()))
    whole = path.read_bytes()
    for position in np.random.default_rng(0).integers(0, len(whole), size=200):
        damaged = bytearray(whole)
        damaged[position] ^= 1 << int(position % 8)
        path.write_bytes(damaged)
        with pytest.raises(CorruptStaging, match=path.name):
            read_staged(path)
    for size in (0, 10, 4096, len(whole) - 1):
        path.write_bytes(whole[:size])
        with pytest.raises(CorruptStaging):
            read_staged(path)


def test_removal_is_repeatable_and_a_missing_file_is_reported(tmp_path: Path) -> None:
    path = write_staged(tmp_path, make_segment(make_video()))
    remove_staged(path)
    remove_staged(path)
    with pytest.raises(CorruptStaging):
        read_staged(path)


def test_a_disk_that_refuses_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(DiskFull, match="MB are needed"):
        write_staged(tmp_path, make_segment(make_video()))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("segment_id", ["../x", "a/b", ".hidden"])
def test_a_segment_id_cannot_leave_the_staging_folder(tmp_path: Path, segment_id: str) -> None:
    with pytest.raises(ValueError, match="not a segment id"):
        staged_path(tmp_path, segment_id)
