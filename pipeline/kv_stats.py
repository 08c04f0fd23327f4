"""What an archive's KV takes on disk, by camera, tier and codec, and what that costs.

A gigabyte is 10^9 bytes.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from datetime import UTC, datetime
from typing import Any

from indexers.folder import Folder, reached
from indexers.records import SPARSE_KV, TABLES, SegmentRow, VideoRow
from indexers.store import TABLES_FOLDER
from indexers.sweep import KV_FOLDER
from pipeline.errors import UsageError
from pipeline.planner import planner_accuracy
from pipeline.reader import ArchiveReader
from pipeline.retention import plan_retention
from pipeline.tiers import kv_file_bytes, token_bytes

GIGABYTE = 10**9


def kv_stats(reader: ArchiveReader, price_per_gb_month: float | None = None) -> dict[str, Any]:
    """Bytes and cost of the archive, of each camera, and of each tier and codec; see ``Archive.kv``.

    Cameras and tiers count what can be asked. ``on_disk_bytes`` counts every file: replaced versions, old versions of
    tables and leftovers cost as well, until they are removed; they are ``other_bytes``. The tables besides sparse KV
    are divided among cameras by frame groups (``index_bytes``). Sparse KV is counted by its values, without overhead.
    """
    if price_per_gb_month is not None and not 0 <= price_per_gb_month < float("inf"):
        raise UsageError(f"--price-per-gb-month {price_per_gb_month} must be 0 or more")
    visible = [row for row in reader.videos() if row.is_visible]
    shown = {row.video_id for row in visible}
    segments = [segment for segment in reader.store.segments_of() if segment.video_id in shown]
    kv_files = _sizes(reader.folder, KV_FOLDER)
    tables = {name: sum(_sizes(reader.folder, f"{TABLES_FOLDER}/{name}.lance").values()) for name in TABLES}
    on_disk = sum(_sizes(reader.folder, "").values())
    index_bytes = sum(size for name, size in tables.items() if name != SPARSE_KV)
    num_groups = sum(segment.num_groups for segment in segments)

    def summary(videos: Iterable[VideoRow], of: list[SegmentRow]) -> dict[str, Any]:
        videos = list(videos)
        hours = sum(row.duration_s or 0.0 for row in videos) / 3600
        share = sum(segment.num_groups for segment in of) / num_groups if num_groups else 0.0
        parts = {
            "dense_bytes": sum(_bytes_of(segment.kv_path, kv_files) for segment in of),
            "tokens_bytes": sum(_bytes_of(segment.tokens_path, kv_files) for segment in of),
            "sparse_bytes": sum(segment.sparse_bytes for segment in of),
            "index_bytes": round(index_bytes * share),
        }
        stored = sum(parts.values())
        return {
            "videos": len(videos),
            "hours": hours,
            "segments": len(of),
            **parts,
            "stored_bytes": stored,
            "source_bytes": sum(row.size for row in videos),
            "per_hour": {
                name: _per_hour(value, hours)
                for name, value in (
                    *parts.items(),
                    ("stored_bytes", stored),
                    ("source_bytes", sum(row.size for row in videos)),
                )
            },
            "tiers": _tiers(of, kv_files, hours),
            "cost_per_month": _cost(stored, price_per_gb_month),
        }

    by_camera: dict[str | None, list[VideoRow]] = defaultdict(list)
    for row in visible:
        by_camera[row.camera].append(row)
    cameras = []
    for camera in sorted(by_camera, key=lambda name: (name is None, name or "")):
        ids = {row.video_id for row in by_camera[camera]}
        of = [segment for segment in segments if segment.video_id in ids]
        cameras.append({"camera": camera, **summary(by_camera[camera], of)})
    total = summary(visible, segments)
    return {
        "archive": reader.folder.address(),
        "cameras": cameras,
        "total": total,
        "tables": tables,
        "on_disk_bytes": on_disk,
        "other_bytes": on_disk - total["stored_bytes"],
        "missing_kv_files": sum(any(path not in kv_files for path in segment.file_paths) for segment in segments),
        "cap": {"max_kv_bytes": reader.settings.storage.max_kv_bytes, "kv_file_bytes": kv_file_bytes(reader.folder)},
        "never_dense": _never_dense(reader, shown),
        "retention": _retention(reader),
        "planner": planner_accuracy(reader.folder),
        "price_per_gb_month": price_per_gb_month,
        "cost_per_month": _cost(on_disk, price_per_gb_month),
        "source_cost_per_month": _cost(total["source_bytes"], price_per_gb_month),
    }


def _never_dense(reader: ArchiveReader, shown: set[str]) -> dict[str, Any]:
    """Chunks that were never given dense KV (static ones, or no room under the cap), and the exact bytes not taken."""
    if not shown:
        return {"chunks": 0, "saved_bytes": 0}
    rows = reader.store.chunks(columns=["video_id", "num_tokens", "kv_length"]).to_pylist()
    without = [row["num_tokens"] for row in rows if row["video_id"] in shown and row["kv_length"] == 0]
    return {"chunks": len(without), "saved_bytes": sum(without) * token_bytes(reader.manifest.recipe)}


def _retention(reader: ArchiveReader) -> dict[str, Any]:
    """What ``vxl retention`` would free now; an estimate."""
    storage = reader.settings.storage
    plan = plan_retention(reader.folder, reader.store, storage.retention, storage.pins, datetime.now(UTC))
    return {
        "rules": len(storage.retention),
        "segments": len(plan.demotions),
        "videos": len(plan.expired),
        "frees_bytes": plan.freed,
        "unknown_age": plan.unknown_age,
        "without_tokens": plan.without_tokens,
    }


def _tiers(segments: list[SegmentRow], kv_files: dict[str, int], hours: float) -> list[dict[str, Any]]:
    """Files of dense KV and tokens by (tier, codec); per hour of footage of the whole camera or archive.

    ``bytes`` is all of it, ``tokens_bytes`` what of it are tokens.
    """
    found: dict[tuple[str, str], list[SegmentRow]] = defaultdict(list)
    for segment in segments:
        found[segment.tier, segment.codec].append(segment)
    rows = []
    for (tier, codec), of in sorted(found.items()):
        size = sum(_bytes_of(path, kv_files) for segment in of for path in segment.file_paths)
        rows.append(
            {
                "tier": tier,
                "codec": codec,
                "segments": len(of),
                "bytes": size,
                "tokens_bytes": sum(_bytes_of(segment.tokens_path, kv_files) for segment in of),
                "per_hour": _per_hour(size, hours),
            }
        )
    return rows


def _bytes_of(path: str | None, files: dict[str, int]) -> int:
    return 0 if path is None else files.get(path, 0)


def _sizes(archive: Folder, folder: str) -> dict[str, int]:
    """Bytes of every file below a folder of the archive, by path relative to the archive; links are not followed."""
    with reached(archive):
        return {file.name: file.num_bytes for file in archive.list(folder)}


def _per_hour(size: int, hours: float) -> float | None:
    return size / hours if hours > 0 else None


def _cost(size: int, price_per_gb_month: float | None) -> float | None:
    return None if price_per_gb_month is None else size / GIGABYTE * price_per_gb_month
