"""Settings of the store. Which archive to open is an argument, not a setting."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict, Field

MIB = 1024 * 1024


class StoreSettings(BaseModel):
    """How tables are written, searched and compacted. The defaults suit archives from minutes to years."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    commit_bytes: int = Field(
        default=64 * MIB, gt=0, description="Largest sparse-KV commit in bytes; a commit needs about 7x this in memory."
    )
    sparse_row_bytes: int = Field(
        default=4 * MIB, gt=0, description="Largest sparse-KV row in bytes, unless a single frame group is larger."
    )
    ann_threshold_rows: int = Field(
        default=50_000,
        gt=0,
        description="Embedding rows from which compaction builds a vector index; below, search is exact.",
    )
    nprobes: int = Field(default=20, gt=0, description="Index partitions searched when nothing is filtered.")
    filtered_nprobes: int = Field(
        default=80, gt=0, description="Index partitions searched at least, when rows are filtered."
    )
    keep_versions_s: float = Field(
        default=3600.0,
        gt=0,
        description="Age in seconds below which compaction keeps old versions, for readers that use them.",
    )
    sparse_compact_bytes: int = Field(
        default=1024 * MIB,
        ge=0,
        description="Size of the sparse-KV table in bytes up to which every compaction rewrites it.",
    )
    sparse_compact_waste: float = Field(
        default=0.2, ge=0, le=1, description="Share of bytes not live from which a larger sparse-KV table is rewritten."
    )


DEFAULT_SETTINGS = StoreSettings()
