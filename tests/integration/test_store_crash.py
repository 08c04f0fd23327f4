"""A reader beside a writer, two real processes. ``tests/faults/test_kill_moments.py`` kills writers."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from indexers.errors import MissingKV
from indexers.kv_file import DenseKVReader
from indexers.records import VideoRow
from indexers.store import LanceStore
from indexers.testing import EMBEDDING_DIM

WRITER = '''
"""A resumable run over two versions of three videos, and one that it deletes: what is committed is not made again."""
import sys
from dataclasses import replace
from pathlib import Path
from indexers.config import StoreSettings
from indexers.lease import WriterLease
from indexers.records import RUNNING
from indexers.staging import read_staged, remove_staged, write_staged
from indexers.records import VideoRow
from indexers.store import LanceStore
from indexers.sweep import sweep
from indexers.testing import SegmentShape, make_segment, make_video

SHAPE = SegmentShape(num_chunks=3, visual_tokens=64, layers=4, head_dim=32, sparse_row_bytes=1 << 16)

def ingest(folder):
    with WriterLease(folder, wait_s=10) as lease:
        store = LanceStore.open(folder, StoreSettings(commit_bytes=1 << 17))
        store.visible_videos()
        print("go", flush=True)
        sweep(folder, store, lease)
        for version in ("1", "2"):
            for name in "abcd" if version == "1" else "abc":
                video = make_video(name, etag=version, num_segments=2)
                if store.video(video.video_id) is None:
                    store.upsert_videos([replace(video, state=RUNNING)])
                done = {segment.segment_index for segment in store.segments(video.video_id)}
                for index in {0, 1} - done:
                    staged = write_staged(folder / "staging", make_segment(video, index, shape=SHAPE, archive=folder))
                    store.insert_segment(read_staged(staged))
                    remove_staged(staged)
                known = store.video(video.video_id)
                if known.state == RUNNING:
                    old = make_video(name, etag="1").video_id
                    store.publish_video(video, [old] if version == "2" else [])
        store.delete_video(make_video("d", etag="1").video_id)

if __name__ == "__main__":
    ingest(Path(sys.argv[1]))
'''


@pytest.fixture
def writer(tmp_path: Path) -> Path:
    path = tmp_path / "writer.py"
    path.write_text(WRITER)
    return path


def start(writer: Path, folder: Path) -> subprocess.Popen[str]:
    root = Path(__file__).resolve().parents[2]
    process = subprocess.Popen(
        [sys.executable, str(writer), str(folder)], stdout=subprocess.PIPE, text=True, env={"PYTHONPATH": str(root)}
    )
    with process.stdout as stdout:  # type: ignore[union-attr]
        assert stdout.readline() == "go\n"
    return process


def check_what_readers_see(folder: Path) -> None:
    """Every visible video is whole: segments, chunks, vectors, sparse KV and dense KV."""
    store = LanceStore.open(folder)
    videos = store.visible_videos()
    hits = store.search_vectors(np.ones(EMBEDDING_DIM), limit=1000)
    visible = {video.video_id for video in [*videos, *store.visible_videos()]}
    assert {hit.video_id for hit in hits} <= visible
    names = [video.key for video in videos]
    assert len(names) == len(set(names)), "two versions of one video were visible"
    for video in videos:
        try:
            check_whole(store, video)
        except (AssertionError, MissingKV):
            if store.video(video.video_id) == video:
                raise  # it was not being deleted meanwhile


def check_whole(store: LanceStore, video: VideoRow) -> None:
    segments = store.segments(video.video_id)
    assert len(segments) == 2
    for segment in segments:
        chunk_ids = store.chunks(segment_ids=[segment.segment_id])["chunk_id"].to_pylist()
        assert len(chunk_ids) == segment.num_chunks
        sparse = store.read_sparse(chunk_ids)
        assert sum(parts.num_groups for parts in sparse.values()) == segment.num_groups
        with DenseKVReader(segment.kv_path or "", segment.kv_digest, store.folder) as reader:
            reader.verify()


@pytest.mark.timeout(120)
def test_a_reader_beside_a_writer_sees_whole_videos_and_progress(tmp_path: Path, writer: Path) -> None:
    folder = tmp_path / "archive"
    LanceStore.create(folder, EMBEDDING_DIM)
    reader = LanceStore.open(folder)
    process = start(writer, folder)
    counts = []
    while process.poll() is None:
        counts.append(len(reader.visible_videos()))
        check_what_readers_see(folder)
    assert process.returncode == 0
    counts.append(len(reader.visible_videos()))
    assert max(counts) == 4
    assert counts[-1] == 3
    rising = counts[: counts.index(4)]
    assert rising == sorted(rising), "replacing a video never hid it"
