"""Files of projected tokens: what is written is read, any flipped bit is found, anything unknown is refused by name."""

from __future__ import annotations

import contextlib
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from indexers.container import pack_header, read_header
from indexers.errors import CorruptKV, MissingKV
from indexers.folder import LocalFile
from indexers.kv_file import DenseKVReader
from indexers.records import tokens_path
from indexers.token_file import MAGIC, TokensHeader, TokensReader, write_tokens

HEADER = TokensHeader(
    video_id="a" * 32,
    segment_index=3,
    fingerprint="f" * 32,
    dtype="float32",
    tokens_per_group=3,
    width=5,
    chunk_times_s=((1800.1, 1804.0), (1808.3333333333335,)),
)


def payloads() -> list[np.ndarray]:
    rng = np.random.default_rng(0)
    return [rng.standard_normal(HEADER.chunk_shape(chunk)).astype(np.float32) for chunk in range(2)]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / tokens_path("a" * 32, 3)
    write_tokens(path, HEADER, [payload.data for payload in payloads()])
    return path


def test_what_was_written_is_read_bit_for_bit_times_included(path: Path) -> None:
    with TokensReader(path) as file:
        assert file.header == HEADER and file.header.group_times_s == (1800.1, 1804.0, 1808.3333333333335)
        assert file.num_bytes == path.stat().st_size
        for chunk, payload in enumerate(payloads()):
            assert bytes(file.read_chunk(chunk)) == payload.tobytes()
        digest = file.digest
    TokensReader(path, digest).close()
    with pytest.raises(CorruptKV, match="digest differs"):
        TokensReader(path, "0" * 32)
    with pytest.raises(MissingKV):
        TokensReader(path.with_name("gone"))


def test_every_byte_is_covered_by_a_check(path: Path) -> None:
    content = path.read_bytes()
    for position in range(0, len(content), 37):
        damaged = bytearray(content)
        damaged[position] ^= 4
        path.write_bytes(damaged)
        with pytest.raises(CorruptKV), TokensReader(path) as file:
            file.verify()
    path.write_bytes(content[:-1])
    with pytest.raises(CorruptKV, match="its header says"):
        TokensReader(path)


def test_a_file_of_kv_is_none_of_tokens_and_the_other_way_round(path: Path) -> None:
    with pytest.raises(CorruptKV, match="magic"):
        DenseKVReader(path)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"format": 2}, "format is 2"),
        ({"layout": "[token]"}, "layout"),
        ({"dtype": "float8"}, "dtype"),
        ({"width": 6}, "chunk 0 has 120 bytes, its tokens make 144"),
        ({"width": 0}, "make sense"),
        ({"tokens_per_group": "x"}, "make sense"),
    ],
)
def test_what_a_reader_does_not_know_is_refused_by_name(path: Path, changes: dict[str, Any], words: str) -> None:
    with contextlib.closing(LocalFile(path)) as file:
        fields, packed = read_header(file, MAGIC)
    again = pack_header(MAGIC, {**fields, **changes})
    path.write_bytes(again + path.read_bytes()[len(packed) :])
    with pytest.raises(CorruptKV, match=words.replace("[", r"\[")):
        TokensReader(path)


@pytest.mark.parametrize("changes", [{"dtype": "float8"}, {"width": 0}, {"tokens_per_group": 0}])
def test_a_header_that_makes_no_sense_cannot_be_made(changes: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"dtype|at least 1"):
        replace(HEADER, **changes)


def test_too_few_chunks_leave_nothing_behind(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="1 of 2 chunks"):
        write_tokens(tmp_path / "x", HEADER, [payloads()[0].data])
    assert list(tmp_path.iterdir()) == []
