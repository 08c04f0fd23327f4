"""Ids, schemas and the conversion of rows to Arrow."""

from __future__ import annotations

from dataclasses import fields
from datetime import UTC, datetime, timedelta, timezone
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from indexers import records
from indexers.records import (
    SEGMENTS_SCHEMA,
    VIDEOS_SCHEMA,
    SegmentRow,
    SegmentRows,
    VideoRow,
    distinct,
    rows_of,
    to_table,
)
from indexers.testing import EMBEDDING_DIM, SegmentShape, make_segment, make_video


def test_ids_are_stable_and_sort_in_order() -> None:
    video_id = records.make_video_id("s3://b/ü.mp4", "etag")
    assert video_id == records.make_video_id("s3://b/ü.mp4", "etag")
    assert len(video_id) == 32
    assert video_id != records.make_video_id("s3://b/ü.mp4", "etag2")
    assert records.make_video_id("a", "b\0c") != records.make_video_id("a\0b", "d")
    segment_id = records.make_segment_id("v", 7)
    assert segment_id == "v-00007"
    assert records.make_chunk_id(segment_id, 3) == "v-00007-0003"
    assert records.make_group_id(segment_id, 3) == "v-00007-00003"
    assert records.make_sparse_row_id("v-00007-0003", 1) == "v-00007-0003-001"


@pytest.mark.parametrize("video_id", ["", "../../etc", "A" * 32, "a" * 31, "a" * 32 + "\n", "a/" + "b" * 30])
def test_an_id_that_could_leave_its_folder_is_refused(video_id: str) -> None:
    with pytest.raises(ValueError, match="video id"):
        records.kv_path(video_id, 0)


def test_row_types_and_schemas_name_the_same_columns() -> None:
    assert {field.name for field in fields(VideoRow)} == set(VIDEOS_SCHEMA.names)
    assert [field.name for field in fields(SegmentRow)] == SEGMENTS_SCHEMA.names
    for table in records.TABLES:
        assert records.KEYS[table] == records.table_schema(table, 4).names[0]


def test_a_video_row_survives_the_tables_types() -> None:
    video = make_video(start_time=datetime(2026, 3, 1, 8, 0, 0, 123456, tzinfo=timezone(timedelta(hours=5))))
    (row,) = rows_of(to_table([video.to_row()], VIDEOS_SCHEMA))
    back = VideoRow.from_row(row)
    assert back == video
    assert back.start_time is not None
    assert back.start_time.tzinfo is UTC
    assert back.end_time == back.start_time + timedelta(seconds=24)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"start_time": datetime(2026, 3, 1)}, "without a time zone"),
        ({"uri": None}, "'uri' may not be null"),
        ({"size": "large"}, "'size'"),
        ({"size": 2**70}, "'size'"),
        ({"title": "\udcff"}, "'title'"),
        ({"surprise": 1}, "unknown \\['surprise'\\]"),
    ],
)
def test_rows_that_do_not_fit_are_refused_naming_the_column(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        to_table([{**make_video().to_row(), **change}], VIDEOS_SCHEMA)


def test_a_missing_column_is_refused_rather_than_filled_with_null() -> None:
    row = make_video().to_row()
    del row["camera"]
    with pytest.raises(ValueError, match=r"missing \['camera'\]"):
        to_table([row], VIDEOS_SCHEMA)


def test_of_several_rows_with_one_key_the_first_or_last_is_kept() -> None:
    table = pa.table({"k": ["a", "b", "a", "c", "b"], "n": [0, 1, 2, 3, 4]})
    assert distinct(table, "k", keep="first")["n"].to_pylist() == [0, 1, 3]
    assert distinct(table, "k", keep="last")["n"].to_pylist() == [2, 3, 4]


def test_segment_rows_that_contradict_themselves_are_refused() -> None:
    video = make_video()
    rows = make_segment(video)
    rows.check(EMBEDDING_DIM)
    with pytest.raises(ValueError, match=r"1 rows, segment .* says 2"):
        SegmentRows(rows.segment, rows.chunks.slice(1), rows.embeddings, rows.sparse).check(EMBEDDING_DIM)
    other = make_segment(video, 1)
    with pytest.raises(ValueError, match="rows of another segment_id"):
        SegmentRows(rows.segment, rows.chunks, other.embeddings, rows.sparse).check(EMBEDDING_DIM)
    with pytest.raises(ValueError, match="expected fixed_size_list"):
        rows.check(EMBEDDING_DIM + 1)
    unknown_chunk = rows.sparse.set_column(1, rows.sparse.schema.field(1), pa.array(["nowhere"] * rows.sparse.num_rows))
    with pytest.raises(ValueError, match="nowhere"):
        SegmentRows(rows.segment, rows.chunks, rows.embeddings, unknown_chunk).check(EMBEDDING_DIM)


@pytest.mark.parametrize("factor", [2.0, 0.0, np.nan])
def test_vectors_that_are_not_unit_length_are_refused(factor: float) -> None:
    rows = make_segment(make_video(), shape=SegmentShape(num_chunks=1))
    field = rows.embeddings.schema.field("vector")
    values = rows.embeddings["vector"].combine_chunks().flatten().to_numpy() * np.float32(factor)
    scaled = pa.FixedSizeListArray.from_arrays(pa.array(values, type=pa.float32()), EMBEDDING_DIM)
    position = rows.embeddings.schema.get_field_index("vector")
    embeddings = rows.embeddings.set_column(position, field, scaled)
    with pytest.raises(ValueError, match="L2-normalised"):
        SegmentRows(rows.segment, rows.chunks, embeddings, rows.sparse).check(EMBEDDING_DIM)
