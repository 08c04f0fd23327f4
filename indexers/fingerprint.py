"""A digest of each table's rows, so that two archives can be said to hold the same, row for row."""

from __future__ import annotations

from datetime import datetime
from typing import Any

import xxhash

from indexers.records import TABLES
from indexers.store import LanceStore


def table_fingerprint(store: LanceStore) -> dict[str, str]:
    """xxh3_128 of each table's rows, blobs included, whatever their order on disk; reads everything."""
    return {table: _digest_of(store, table) for table in TABLES}


def _digest_of(store: LanceStore, table: str) -> str:
    rows = sorted(xxhash.xxh3_128_digest(_canonical(row)) for row in store.read_table(table))
    return xxhash.xxh3_128_hexdigest(b"".join(rows))


def _canonical(row: dict[str, Any]) -> bytes:
    return repr([(name, _plain(row[name])) for name in sorted(row)]).encode("utf-8", "surrogatepass")


def _plain(value: Any) -> Any:
    if isinstance(value, datetime):
        return value.isoformat()
    if isinstance(value, bytes):
        return xxhash.xxh3_128_hexdigest(value)
    return value
