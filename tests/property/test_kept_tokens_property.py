"""Dense KV made of stored tokens is the dense KV of ingestion: any chunks, any order, any way of prefilling."""

from __future__ import annotations

import tempfile
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest import mock

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from indexers.errors import CorruptKV
from indexers.records import SegmentRow, kv_path, make_chunk_id, make_segment_id
from indexers.token_file import TokensReader, write_tokens
from pipeline.config import Settings
from pipeline.errors import ModelMismatch, StorageError
from pipeline.kept_tokens import keep_tokens, prefill_settings
from pipeline.kv_source import KVSource
from tests.unit.pipeline.samples import tiny_recipe
from videoxl2 import prefill
from videoxl2.config import PrefillSettings
from videoxl2.kv import ChunkKV, KVLevel
from videoxl2.model import VideoXL2

VIDEO = "a" * 32
SEGMENT_ID = make_segment_id(VIDEO, 2)
MODES = st.sampled_from(
    [
        PrefillSettings(),
        PrefillSettings(mode="plain"),
        PrefillSettings(mode="bounded", timestamp_groups=3),
        PrefillSettings(block_groups=2, previous_blocks=1),
    ]
)


@pytest.fixture(scope="module")
def model() -> VideoXL2:
    return VideoXL2.from_pretrained("tiny", device="cpu")


class OneSegment:
    """What ``KVSource`` needs of an archive that keeps one segment's tokens, and the KV that ingestion computed."""

    def __init__(self, folder: Path, model: VideoXL2, recipe: Any, num_groups: int, seed: int) -> None:
        generator = torch.Generator().manual_seed(seed)
        shape = (num_groups, model.spec.tokens_per_group, model.spec.language.width)
        visual_GPD = torch.randn(shape, generator=generator)
        times_s = [1200.0 + 4.0 * group + seed / 7 for group in range(num_groups)]
        made = model.prefill(visual_GPD, times_s, prefill_settings(recipe), recipe.chunk_groups)
        self.chunks: list[ChunkKV] = made.chunks
        written = keep_tokens(folder, recipe, VIDEO, 2, visual_GPD, times_s)
        self.path = written.name
        self.num_bytes = written.num_bytes
        segment = SegmentRow(
            **{"segment_id": SEGMENT_ID, "video_id": VIDEO, "segment_index": 2, "start_s": 1200.0, "end_s": 1800.0},
            **{"num_chunks": len(made.chunks), "num_groups": num_groups, "num_frames": 4 * num_groups},
            num_tokens=sum(chunk.num_tokens for chunk in made.chunks),
            **{"state": "indexed", "kv_path": None, "kv_bytes": 0, "sparse_bytes": 0, "kv_digest": None},
            **{"tier": "tokens", "codec": "none", "dtype": recipe.dtype, "fingerprint": recipe.fingerprint},
            **{"tokens_path": self.path, "tokens_bytes": written.num_bytes, "tokens_digest": written.digest},
        )
        self.rows = [segment]
        """Rows that the store gives one after another; the last stays."""
        store = SimpleNamespace(segments=lambda video_id: [self.rows.pop(0) if len(self.rows) > 1 else self.rows[0]])
        self.reader: Any = SimpleNamespace(
            folder=folder,
            store=store,
            model=model,
            manifest=SimpleNamespace(recipe=recipe, model="tiny"),
            settings=Settings(),
        )

    def wanted(self, chunk: int) -> tuple[dict[str, Any], KVLevel]:
        row = {
            **{"chunk_id": make_chunk_id(SEGMENT_ID, chunk), "segment_id": SEGMENT_ID, "video_id": VIDEO},
            **{"segment_index": 2, "chunk_index": chunk, "num_tokens": self.chunks[chunk].num_tokens},
        }
        return row, KVLevel.DENSE


@settings(max_examples=15, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    num_groups=st.integers(1, 14),
    chunk_groups=st.integers(1, 6),
    mode=MODES,
    pass_tokens=st.sampled_from([1, 120, 2048]),
    seed=st.integers(0, 99),
    data=st.data(),
)
def test_any_chunks_in_any_order_are_those_of_ingestion(
    model: VideoXL2,
    num_groups: int,
    chunk_groups: int,
    mode: PrefillSettings,
    pass_tokens: int,
    seed: int,
    data: st.DataObject,
) -> None:
    recipe = tiny_recipe(prefill=mode, chunk_groups=chunk_groups)
    with tempfile.TemporaryDirectory() as folder, mock.patch.object(prefill, "PASS_TOKENS", pass_tokens):
        archive = OneSegment(Path(folder), model, recipe, num_groups, seed)
        order = data.draw(st.permutations(range(len(archive.chunks))))
        order = order[: data.draw(st.integers(1, len(order)))]
        loaded = KVSource(archive.reader, "reload").load([archive.wanted(chunk) for chunk in order])
        assert list(loaded.chunks) == [make_chunk_id(SEGMENT_ID, chunk) for chunk in order]
        for chunk, found in zip(order, loaded.chunks.values(), strict=True):
            assert isinstance(found, ChunkKV) and found.groups == archive.chunks[chunk].groups
            assert torch.equal(found.kv_LSKMDh, archive.chunks[chunk].kv_LSKMDh)
        assert 0 < loaded.bytes_read <= archive.num_bytes
        assert loaded.tokens_s > 0 and loaded.recompute_s == 0


def test_only_what_leads_up_to_the_last_wanted_chunk_is_read(model: VideoXL2, tmp_path: Path) -> None:
    recipe = tiny_recipe(chunk_groups=4)
    with mock.patch.object(prefill, "PASS_TOKENS", 1):  # a pass is a block of four groups
        archive = OneSegment(tmp_path, model, recipe, 12, 0)
        path = tmp_path / archive.path
        content = bytearray(path.read_bytes())
        content[-100] ^= 1  # in the last chunk
        path.write_bytes(content)
        loaded = KVSource(archive.reader, "reload").load([archive.wanted(1)])
        with pytest.raises(CorruptKV, match="chunk 2: checksum"):
            KVSource(archive.reader, "reload").load([archive.wanted(2)])
    with TokensReader(path) as file:
        assert loaded.bytes_read == sum(entry.length for entry in file.entries[:2])


@pytest.mark.parametrize(
    ("changes", "error", "words"),
    [
        ({"fingerprint": "0" * 32}, ModelMismatch, "fingerprint 000000000000"),
        ({"video_id": "b" * 32}, StorageError, "video_id b"),
        ({"segment_index": 3}, StorageError, "segment_index 3"),
        ({"dtype": "float16"}, StorageError, "dtype float16"),
        ({"tokens_per_group": 5}, StorageError, "5 a group"),
        ({"width": 7}, StorageError, "width 7"),
        ({"chunk_times_s": ((1200.0,),)}, StorageError, "number of chunks 1"),
        ({"chunk_times_s": ((1200.0,) * 3, (1216.0,) * 4)}, StorageError, r"chunks of \[3, 4\] groups, not of 4"),
        ({"chunk_times_s": ((1200.0,) * 4, (1216.0,) * 3)}, StorageError, "make another chunk"),
    ],
)
def test_tokens_of_something_else_are_refused_by_the_name_of_the_field(
    model: VideoXL2, tmp_path: Path, changes: dict[str, Any], error: type[Exception], words: str
) -> None:
    """Right checksums and the right digest in the row: only what the header says is wrong."""
    archive = OneSegment(tmp_path, model, tiny_recipe(chunk_groups=4), 8, 0)
    with TokensReader(tmp_path / archive.path) as file:
        header = replace(file.header, **changes)
    written = write_tokens(
        tmp_path / archive.path, header, (bytes(header.chunk_bytes(chunk)) for chunk in range(header.num_chunks))
    )
    archive.rows[0] = replace(archive.rows[0], tokens_digest=written.digest)
    with pytest.raises(error, match=words):
        KVSource(archive.reader, "reload").load([archive.wanted(1)])


@pytest.mark.parametrize("is_demoted", [True, False], ids=["demoted meanwhile", "lost"])
def test_a_reader_whose_dense_kv_is_gone_takes_the_tokens(
    model: VideoXL2, tmp_path: Path, is_demoted: bool, caplog: pytest.LogCaptureFixture
) -> None:
    archive = OneSegment(tmp_path, model, tiny_recipe(), 8, 0)
    dense = replace(
        archive.rows[0], kv_path=kv_path(VIDEO, 2), kv_digest="0" * 32, tier="dense", codec="exact", kv_bytes=9
    )
    archive.rows[:] = [dense, archive.rows[0]] if is_demoted else [dense]
    loaded = KVSource(archive.reader, "reload").load([archive.wanted(1)])
    (found,) = loaded.chunks.values()
    assert isinstance(found, ChunkKV) and torch.equal(found.kv_LSKMDh, archive.chunks[1].kv_LSKMDh)
    assert ("is not there" in caplog.text) is not is_demoted
    (tmp_path / archive.path).unlink()
    with pytest.raises(StorageError, match="not there"):
        KVSource(archive.reader, "reload").load([archive.wanted(1)])
