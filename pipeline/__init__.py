"""The SDK of the video archive. Names are imported on first use, so that importing this package costs nothing.

from pipeline import Archive
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pipeline.archive import Archive, SearchQuery
    from pipeline.config import Settings, load_settings
    from pipeline.errors import (
        ArchiveBusy,
        ArchiveError,
        ConfigError,
        DecoderCrashed,
        DecoderTimeout,
        EvidenceUnavailable,
        MediaChanged,
        MediaError,
        MediaFetchError,
        ModelMismatch,
        ScratchFull,
        SourceUnavailable,
        StageError,
        StorageError,
        StorageFull,
        UnreadableMedia,
        UsageError,
        WorkerLost,
    )
    from pipeline.results import (
        AnomalyResult,
        Answer,
        Citation,
        Coverage,
        Event,
        IngestReport,
        Moment,
        SearchResult,
        VideoReport,
    )

_HOMES = {
    "pipeline.archive": ("Archive", "SearchQuery"),
    "pipeline.config": ("Settings", "load_settings"),
    "pipeline.errors": (
        "ArchiveBusy",
        "ArchiveError",
        "ConfigError",
        "DecoderCrashed",
        "DecoderTimeout",
        "EvidenceUnavailable",
        "MediaChanged",
        "MediaError",
        "MediaFetchError",
        "ModelMismatch",
        "ScratchFull",
        "SourceUnavailable",
        "StageError",
        "StorageError",
        "StorageFull",
        "UnreadableMedia",
        "UsageError",
        "WorkerLost",
    ),
    "pipeline.results": (
        "AnomalyResult",
        "Answer",
        "Citation",
        "Coverage",
        "Event",
        "IngestReport",
        "Moment",
        "SearchResult",
        "VideoReport",
    ),
}
_HOME_OF = {name: module for module, names in _HOMES.items() for name in names}

__all__ = [
    "AnomalyResult",
    "Answer",
    "Archive",
    "ArchiveBusy",
    "ArchiveError",
    "Citation",
    "ConfigError",
    "Coverage",
    "DecoderCrashed",
    "DecoderTimeout",
    "Event",
    "EvidenceUnavailable",
    "IngestReport",
    "MediaChanged",
    "MediaError",
    "MediaFetchError",
    "ModelMismatch",
    "Moment",
    "ScratchFull",
    "SearchQuery",
    "SearchResult",
    "Settings",
    "SourceUnavailable",
    "StageError",
    "StorageError",
    "StorageFull",
    "UnreadableMedia",
    "UsageError",
    "VideoReport",
    "WorkerLost",
    "load_settings",
]


def __getattr__(name: str) -> Any:
    try:
        module = _HOME_OF[name]
    except KeyError:
        raise AttributeError(f"module 'pipeline' has no attribute {name!r}") from None
    return getattr(importlib.import_module(module), name)
