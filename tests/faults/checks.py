"""What holds of an archive of made-up footage after any fault, and after the run that follows it."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest

from indexers.container import TEMP_SUFFIX
from indexers.fingerprint import table_fingerprint
from indexers.kv_file import DenseKVReader
from indexers.lease import WriterLease
from indexers.records import KEYS, TABLES, make_chunk_id
from indexers.staging import read_staged
from indexers.store import LanceStore
from indexers.sweep import find_orphans, missing_kv, sweep
from indexers.token_file import TokensReader
from pipeline import Archive, ArchiveError
from pipeline.config import load_settings
from pipeline.kv_source import read_dense_chunk, stored_sparse_chunk
from pipeline.recipe import read_manifest
from tests.faults import made_up

KNOWN_FILES = {"archive.json", "writer.lock", "access.log", "costs.jsonl"}


def files(folder: Path) -> set[str]:
    """Every file below a folder that is being written to."""
    found: set[str] = set()
    waiting = [str(folder)]
    while waiting:
        try:
            with os.scandir(waiting.pop()) as entries:
                for entry in entries:
                    if entry.is_dir(follow_symlinks=False):
                        waiting.append(entry.path)
                    else:
                        found.add(entry.path)
        except FileNotFoundError:
            continue
    return found


def check(folder: Path) -> LanceStore | None:
    """Whatever a row refers to is there and right, nothing is there twice, and every file has a reason to be there."""
    if read_manifest(folder) is None:
        with pytest.raises(ArchiveError):  # killed while the archive was being made
            Archive(folder, settings=load_settings(environ={})).videos()
        return None
    store = LanceStore.open(folder)
    recipe = made_up.manifest().recipe
    for table in TABLES:
        keys = [row[KEYS[table]] for row in store.read_table(table)]
        assert len(keys) == len(set(keys)), f"{table}: {sorted(keys)}"
    assert missing_kv(store) == []
    segments = store.segments_of()
    for segment in segments:
        rows = store.chunks(segment_ids=[segment.segment_id]).to_pylist()
        ids = [make_chunk_id(segment.segment_id, chunk) for chunk in range(segment.num_chunks)]
        assert [row["chunk_id"] for row in rows] == ids
        sparse = store.read_sparse(ids)
        for row in rows:
            stored = sparse[row["chunk_id"]]
            assert made_up.is_of(stored_sparse_chunk(stored, row, recipe.compression).kv_LSKMDh, row["chunk_id"])
        if segment.tokens_path is not None:
            with TokensReader(folder / segment.tokens_path, segment.tokens_digest) as kept:
                for number, chunk_id in enumerate(ids):
                    tokens = np.frombuffer(kept.read_chunk(number), dtype=np.float16)
                    assert len(tokens) and (tokens == made_up.number_of(chunk_id)).all()
        if segment.kv_path is None:
            continue
        with DenseKVReader(folder / segment.kv_path, segment.kv_digest) as file:
            assert file.header.fingerprint == recipe.fingerprint
            for number, chunk_id in enumerate(ids):
                assert made_up.is_of(read_dense_chunk(file, number).kv_LSKMDh, chunk_id)
    groups = [row["segment_id"] for row in store.read_table("embeddings")]
    for video in store.visible_videos():
        whole = [segment for segment in segments if segment.video_id == video.video_id]
        assert len(whole) == video.num_segments == made_up.NUM_SEGMENTS
        assert all(groups.count(segment.segment_id) == segment.num_groups for segment in whole)
    uris = [video.uri for video in store.visible_videos()]
    assert len(uris) == len(set(uris)), "two versions of one object can be seen"
    for path in folder.glob("staging/*.rows"):
        read_staged(path)
    named = {path for segment in segments for path in segment.file_paths}
    orphans = {orphan.path for orphan in find_orphans(folder, store)}
    for path in files(folder):
        name = Path(path).relative_to(folder).as_posix()
        is_known = name.startswith("tables/") or name in KNOWN_FILES or name == "kv/room.lock"
        assert is_known or name in named or name in orphans or name.startswith(("staging/", "kv/")), name
        assert not name.endswith(TEMP_SUFFIX) or name in orphans, name
    return store


def check_swept(folder: Path) -> None:
    """A sweep leaves nothing that no row names, and takes nothing that one does."""
    store = LanceStore.open(folder)
    before = table_fingerprint(store)["segments"]
    with WriterLease(folder) as lease:
        sweep(folder, store, lease)
    assert find_orphans(folder, store) == [] and store.partial_segments() == [] and missing_kv(store) == []
    assert table_fingerprint(store)["segments"] == before or not store.videos(states=["deleting"])


def check_same(folder: Path, undisturbed: Path) -> None:
    """Nothing lost, nothing twice: the tables row for row, the KV byte for byte, and no leftovers."""
    stores = [LanceStore.open(each) for each in (folder, undisturbed)]
    assert table_fingerprint(stores[0]) == table_fingerprint(stores[1])
    trees = [
        {path.relative_to(each): path.read_bytes() for path in (each / "kv").rglob("*") if path.is_file()}
        for each in (folder, undisturbed)
    ]
    assert trees[0] == trees[1]
    assert find_orphans(folder, stores[0]) == [] and not list(folder.glob("staging/*"))
    assert not list(folder.glob(f".*{TEMP_SUFFIX}"))
