"""Storage of an archive: tables, KV files, staged segments, the writer lease. Knows nothing of models or decoding.

Names are loaded when they are first used, so importing the package costs nothing. The function ``sweep`` is in the
module of that name.
"""

from __future__ import annotations

import importlib
from typing import Any

_EXPORTS = {
    "ArchiveLocked": "errors",
    "CommitConflict": "errors",
    "CorruptKV": "errors",
    "CorruptStaging": "errors",
    "MissingKV": "errors",
    "RowConflict": "errors",
    "SchemaMismatch": "errors",
    "StoreError": "errors",
    "StoreUnavailable": "errors",
    "StoreSettings": "config",
    "SegmentRow": "records",
    "SegmentRows": "records",
    "VectorHit": "records",
    "VideoRow": "records",
    "Scope": "scope",
    "SparsePart": "sparse",
    "SparseParts": "sparse",
    "sparse_rows": "sparse",
    "CompactReport": "store",
    "DeleteReport": "store",
    "LanceStore": "store",
    "ChunkEntry": "kv_file",
    "DenseKVHeader": "kv_file",
    "DenseKVReader": "kv_file",
    "DenseKVWriter": "kv_file",
    "WrittenKV": "kv_file",
    "write_dense_kv": "kv_file",
    "TokensHeader": "token_file",
    "TokensReader": "token_file",
    "write_tokens": "token_file",
    "read_staged": "staging",
    "remove_staged": "staging",
    "write_staged": "staging",
    "WriterLease": "lease",
    "lease_holder": "lease",
    "Orphan": "sweep",
    "SweepReport": "sweep",
    "find_orphans": "sweep",
    "missing_kv": "sweep",
    "exact_search": "recall",
    "recall_at_k": "recall",
    "store_recall": "recall",
    "table_fingerprint": "fingerprint",
}

__all__ = sorted(_EXPORTS)


def __getattr__(name: str) -> Any:
    if name not in _EXPORTS:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_EXPORTS[name]}"), name)


def __dir__() -> list[str]:
    return __all__
