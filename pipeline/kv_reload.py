"""Stored chunks on their way to where they are used: several reads in flight, no copy between file and cache.

A piece is bound to its place, a slot of the cache or a tensor of its own, before anything is read. Then threads read
the chunks in the order in which they are needed: the first layers of all chunks, then the next ones, where chunks are
large enough; else whole chunks, neighbours in a file together. An exact chunk for the CPU is read
straight into its place; any other is read into a buffer that its thread uses again and again, uploaded where there is a
device, and expanded there into its place. Whoever assembles works on what is there while later layers arrive.
"""

from __future__ import annotations

import itertools
import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from indexers.container import aligned
from indexers.folder import ByteRange
from indexers.kv_file import EXACT, DenseKVReader
from pipeline.kv_encoding import codec_settings

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from videoxl2.kv import ChunkKV
    from videoxl2.upload import Arrival, Cuda, Uploads

READS_IN_FLIGHT = 4
SPAN_BYTES = 16 * 1024 * 1024
"""Neighbouring chunks are read together up to this many bytes, or one chunk where it is larger."""


@dataclass(frozen=True, slots=True, eq=False)
class Band:
    """Consecutive layers of a chunk that are read, checked and waited for together: these sections of the file."""

    layers: range
    sections: range
    arrived: Future[Arrival | None] = field(default_factory=Future)


class PendingChunk:
    """One chunk of an open file; a ``videoxl2.kv.PendingKV``. Made by ``Reload.chunk``."""

    def __init__(self, reload: Reload, file: DenseKVReader, index: int, most_bands: int) -> None:
        self._reload = reload
        self.file = file
        self.index = index
        self.slot_LSKMDh: Tensor | None = None
        num_sections = file.entries[index].num_sections
        num_bands = max(1, min(most_bands, num_sections, self.num_bytes // file.least_read_bytes))
        cuts = [number * num_sections // num_bands for number in range(num_bands + 1)]
        per_section = file.header.layers // num_sections
        self.bands = tuple(
            Band(range(first * per_section, end * per_section), range(first, end))
            for first, end in itertools.pairwise(cuts)
        )

    @property
    def shape(self) -> tuple[int, int, int, int, int]:
        """[layers, 2, KV heads, tokens, head width]."""
        return self.file.header.chunk_shape(self.index)

    @property
    def num_bytes(self) -> int:
        """Bytes in the file."""
        return self.file.entries[self.index].length

    def bind(self, slot_LSKMDh: Tensor) -> None:
        """Name the place; ``ValueError`` for a second one and for another shape."""
        if self.slot_LSKMDh is not None:
            raise ValueError(f"chunk {self.index} of {self.file.path} has a place already")
        if tuple(slot_LSKMDh.shape) != self.shape:
            raise ValueError(f"chunk {self.index} is {list(self.shape)}, its place {list(slot_LSKMDh.shape)}")
        self.slot_LSKMDh = slot_LSKMDh
        self._reload.bound.append(self)

    def start(self) -> None:
        """Begin to read everything that is bound."""
        self._reload.launch()

    def wait(self, layer: int) -> int:
        """Return when a layer is in its place; the end of its band. Raises ``CorruptKV``, ``StoreUnavailable``."""
        started = time.perf_counter()
        band = next(band for band in self.bands if layer in band.layers)
        arrival = band.arrived.result()
        if arrival is not None:
            arrival.join()
        self._reload.wait_s += time.perf_counter() - started
        return band.layers.stop

    def announce(self, number: int) -> None:
        """Say that a band is read soon, if there is one of that number."""
        if number < len(self.bands):
            self.file.announce([self.index], self.bands[number].sections)

    def bind_to_own(self, device: str | torch.device = "cpu") -> None:
        """Give the chunk a tensor of its own, for whoever wants chunks and no cache."""
        import torch

        self.bind(torch.empty(self.shape, dtype=getattr(torch, self.file.header.dtype), device=device))

    def load(self) -> ChunkKV:
        """Wait for the chunk in the tensor that it is bound to."""
        from videoxl2.kv import ChunkKV, KVLevel

        self.start()
        for band in self.bands:
            self.wait(band.layers.start)
        assert self.slot_LSKMDh is not None
        return ChunkKV(self.slot_LSKMDh, self.file.header.chunk_groups[self.index], KVLevel.DENSE)


class Reload:
    """Reads chunks of several files side by side. A context manager: leaving it ends reading and closes the files.

    Chunks are read in ``layer_bands`` rounds, the first layers of all of them first; in fewer where a file has one
    checksum for all layers, or so few bytes of them that reading these alone does not pay. ``wait_s`` is the time that
    users of its chunks spent waiting for them. Not for several threads at once.
    """

    def __init__(
        self,
        *,
        layer_bands: int = 1,
        reads_in_flight: int = READS_IN_FLIGHT,
        span_bytes: int = SPAN_BYTES,
        cuda: Cuda | None = None,
    ) -> None:
        self.bound: list[PendingChunk] = []
        self.wait_s = 0.0
        self._launched: list[PendingChunk] = []
        self._files: list[DenseKVReader] = []
        self._layer_bands = layer_bands
        self._reads_in_flight = reads_in_flight
        self._span_bytes = span_bytes
        self._cuda = cuda
        self._pool: ThreadPoolExecutor | None = None
        self._local = threading.local()
        self._is_closed = False

    def __enter__(self) -> Reload:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def add(self, file: DenseKVReader) -> DenseKVReader:
        """Take over an open file: it is closed with this."""
        self._files.append(file)
        return file

    def chunk(self, file: DenseKVReader, index: int) -> PendingChunk:
        """A chunk of a file that was added; the system is told that it is read soon."""
        chunk = PendingChunk(self, file, index, self._layer_bands)
        chunk.announce(0)
        return chunk

    def launch(self) -> None:
        """Begin to read what was bound since the last call."""
        if self._is_closed:
            raise ValueError("chunks of a closed reload cannot be read")
        pieces, self.bound = self.bound, []
        if not pieces:
            return
        if self._pool is None:
            self._pool = ThreadPoolExecutor(self._reads_in_flight, thread_name_prefix="vxl-read")
        self._launched += pieces
        ready = self._mark(pieces)
        for number in range(max(len(piece.bands) for piece in pieces)):
            for span in spans([piece for piece in pieces if number < len(piece.bands)], self._span_bytes):
                self._pool.submit(self._read_span, span, number, ready)

    def close(self) -> None:
        """End reading and close the files. A chunk that is half-way is finished: its place may be freed after this."""
        self._is_closed = True
        if self._pool is not None:
            self._pool.shutdown(wait=True, cancel_futures=True)
        for piece in self._launched:
            for band in piece.bands:
                if not band.arrived.done():
                    band.arrived.set_exception(ValueError(f"chunk {piece.index} of {piece.file.path} was given up"))
                elif band.arrived.exception() is None and (arrival := band.arrived.result()) is not None:
                    arrival.finish()
        self._launched.clear()
        for file in self._files:
            file.close()
        self._files.clear()

    def _mark(self, pieces: Sequence[PendingChunk]) -> Any:
        """An event after all that this thread has queued on the device of the places; None on the CPU."""
        slot = pieces[0].slot_LSKMDh
        assert slot is not None
        if slot.device.type == "cpu" and self._cuda is None:
            return None
        if self._cuda is None:
            from videoxl2.upload import Cuda

            self._cuda = Cuda()
        return self._cuda.mark(slot.device)

    def _read_span(self, pieces: Sequence[PendingChunk], number: int, ready: Any) -> None:
        """Read one band of each."""
        with pieces[0].file.open_run([piece.index for piece in pieces], pieces[0].bands[number].sections) as run:
            for piece in pieces:
                if self._is_closed:
                    return
                piece.announce(number + 1)
                band = piece.bands[number]
                try:
                    band.arrived.set_result(self._read(piece, band, run, ready))
                except BaseException as exc:  # whoever waits for this chunk is told
                    band.arrived.set_exception(exc)

    def _read(self, piece: PendingChunk, band: Band, run: ByteRange, ready: Any) -> Arrival | None:
        from videoxl2.kv_codec import decode_sections_into

        assert piece.slot_LSKMDh is not None
        slot, header, sections = (
            piece.slot_LSKMDh[band.layers.start : band.layers.stop],
            piece.file.header,
            band.sections,
        )
        settings = codec_settings(header.encoding)
        is_as_stored = header.encoding.codec == EXACT and str(slot.dtype) == f"torch.{header.dtype}"
        if ready is None and is_as_stored:
            piece.file.read_chunk_into(piece.index, list(byte_runs(slot)), run, sections)
            return None
        uploads = self._uploads(slot.device, ready)
        raw_B = uploads.buffer(len(sections) * piece.file.entries[piece.index].section_bytes)
        piece.file.read_chunk_into(piece.index, [raw_B.numpy().data], run, sections)
        return uploads.deliver(
            raw_B, lambda found_B: decode_sections_into(found_B, header.dtype, settings, slot, len(sections))
        )

    def _uploads(self, device: torch.device, ready: Any) -> Uploads:
        """Those of this thread and of this launch."""
        from videoxl2.upload import CudaUploads, HostUploads

        kept = getattr(self._local, "uploads", None)
        if kept is not None and kept[0] is ready:
            uploads: Uploads = kept[1]
            return uploads
        if ready is None:
            uploads = HostUploads()
        else:
            assert self._cuda is not None
            uploads = CudaUploads(device, ready, self._cuda)
        self._local.uploads = (ready, uploads)
        return uploads


def spans(pieces: Sequence[PendingChunk], max_bytes: int) -> Iterator[list[PendingChunk]]:
    """The pieces in order, those that are read whole and follow each other in one file together up to ``max_bytes``."""
    span: list[PendingChunk] = []
    for piece in pieces:
        if span:
            last = span[-1]
            is_next = piece.file is last.file and piece.index == last.index + 1
            is_whole = len(piece.bands) == len(last.bands) == 1
            if not is_next or not is_whole or sum(aligned(one.num_bytes) for one in (*span, piece)) > max_bytes:
                yield span
                span = []
        span.append(piece)
    if span:
        yield span


def byte_runs(slot_LSKMDh: Tensor) -> Iterator[memoryview]:
    """A slot of a cache as writable runs of bytes in the order of a stored chunk: one per layer, key or value, head."""
    import torch

    L, S, K, M, Dh = slot_LSKMDh.shape
    if M * Dh == 0:
        return
    array = slot_LSKMDh.detach().view(torch.uint8).numpy()
    for layer, which, head in itertools.product(range(L), range(S), range(K)):
        yield array[layer, which, head].reshape(-1).data
