"""How relevant each chunk of a context is to the question, by the kind that ``query.relevance`` names.

Which segments join the context is decided by the search index before; this decides which of their chunks are worth full
KV, and the order of the citations. Attention needs the model and the stored sparse KV of every chunk of the context,
embedding similarity needs neither.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, overload

from pipeline.kv_source import KVSource
from videoxl2.config import RelevanceKind

if TYPE_CHECKING:
    from pipeline.reader import ArchiveReader
    from videoxl2.kv import ChunkKV


class SparseContext(Sequence["ChunkKV"]):
    """The sparse KV of chunks (``rows``, in reading order), read when the first is asked for and then kept."""

    def __init__(self, source: KVSource, rows: Sequence[dict[str, Any]]) -> None:
        self._source, self._rows = source, rows
        self._chunks: list[ChunkKV] | None = None

    def __len__(self) -> int:
        return len(self._rows)

    @overload
    def __getitem__(self, index: int) -> ChunkKV: ...

    @overload
    def __getitem__(self, index: slice) -> Sequence[ChunkKV]: ...

    def __getitem__(self, index: int | slice) -> ChunkKV | Sequence[ChunkKV]:
        if self._chunks is None:
            self._chunks = self._read()
        return self._chunks[index]

    def _read(self) -> list[ChunkKV]:
        from videoxl2.kv import ChunkKV, KVLevel

        loaded = self._source.load([(row, KVLevel.SPARSE) for row in self._rows])
        found = [loaded.chunks[row["chunk_id"]] for row in self._rows]
        return [chunk for chunk in found if isinstance(chunk, ChunkKV)]


def score_chunks(
    reader: ArchiveReader,
    question: str,
    rows: Sequence[dict[str, Any]],
    similarities: Sequence[float],
    *,
    kind: RelevanceKind,
    reuse: str,
) -> list[float]:
    """One score for each of ``rows`` (of ``chunks``, in reading order), whose ``similarities`` the search has found.

    ``reuse`` says where sparse KV comes from, as for the answer itself. Raises what loading it raises.
    """
    from videoxl2.relevance import relevance_of

    model = None if kind == "embedding" else reader.model
    return relevance_of(kind, similarities, model).scores(question, SparseContext(KVSource(reader, reuse), rows))
