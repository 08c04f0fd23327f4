"""What a vector search over a table with gigabytes of sparse KV reads, and what reading sparse KV reads.

    python -m tests.benchmarks.bench_lazy_sparse [--gigabytes 2] [--json]

Made-up rows, written as ingestion writes them. Bytes are those that this process asked the system for (``rchar`` of
``/proc/self/io``), whether they came from the disk or from the page cache; the store is opened anew for each line.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from indexers.store import LanceStore
from indexers.testing import EMBEDDING_DIM, SegmentShape, make_segment, make_video

SHAPE = SegmentShape(
    num_chunks=25, groups_per_chunk=6, visual_tokens=36, layers=12, kv_heads=2, head_dim=64, sparse_row_bytes=8 << 20
)
_SEARCHES = 10


def bytes_asked_for() -> int:
    """Bytes that this process has read so far."""
    fields = dict(line.split(": ") for line in Path("/proc/self/io").read_text().splitlines())
    return int(fields["rchar"])


def measured(folder: Path, what: str, work: Callable[[LanceStore], Any]) -> dict[str, Any]:
    """One line of the table: ``work`` on a store that was just opened."""
    with LanceStore.open(folder) as store:
        before, started = bytes_asked_for(), time.perf_counter()
        work(store)
        return {"what": what, "bytes": bytes_asked_for() - before, "s": time.perf_counter() - started}


def main() -> None:
    parser = argparse.ArgumentParser(description="Bytes read by searches over a table with sparse KV.")
    parser.add_argument("--gigabytes", type=float, default=2.0)
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    rng = np.random.default_rng(0)
    with tempfile.TemporaryDirectory(prefix="vxl-bench-sparse-") as name:
        folder, sparse_bytes, chunk_ids = Path(name), 0, []
        store = LanceStore.create(folder, EMBEDDING_DIM)
        number = 0
        while sparse_bytes < arguments.gigabytes * 1e9:
            video = make_video(f"video-{number}")
            rows = make_segment(video, shape=SHAPE)
            store.insert_segment(rows)
            store.upsert_videos([video])
            sparse_bytes += sum(len(kv) for kv in rows.sparse["kv"].to_pylist())
            chunk_ids += rows.chunks["chunk_id"].to_pylist()
            number += 1
        store.close()
        queries = rng.standard_normal((_SEARCHES, EMBEDDING_DIM)).astype(np.float32)

        def search(opened: LanceStore) -> None:
            for query_E in queries:
                assert len(opened.search_vectors(query_E, limit=50)) == 50

        lines = [
            measured(folder, f"{_SEARCHES} vector searches", search),
            measured(folder, "rows of all chunks", lambda opened: opened.chunks()),
            measured(folder, "sparse KV of one chunk", lambda opened: opened.read_sparse(chunk_ids[:1])),
            measured(folder, "sparse KV of 100 chunks", lambda opened: opened.read_sparse(chunk_ids[:100])),
        ]
    document = {"sparse_bytes": sparse_bytes, "chunks": len(chunk_ids), "lines": lines}
    if arguments.json:
        print(json.dumps(document, indent=1))
        return
    print(f"{len(chunk_ids):,} chunks, {sparse_bytes / 1e9:.2f} GB of sparse KV")
    for line in lines:
        share = line["bytes"] / sparse_bytes
        print(f"{line['what']:26}{line['bytes'] / 1e6:10.2f} MB read, {share:8.3%} of the sparse KV, {line['s']:.3f} s")


if __name__ == "__main__":
    main()
