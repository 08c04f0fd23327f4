"""Reading ahead: what is read together, who is told of damage, and when a pinned buffer may be used again."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from indexers.errors import CorruptKV
from indexers.folder import ByteRange, LocalFile
from indexers.kv_file import DenseKVHeader, DenseKVReader, write_dense_kv
from pipeline.kv_encoding import codec_settings, encode_chunk, encoding_of
from pipeline.kv_reload import Reload, byte_runs, spans
from videoxl2.kv import KVLevel
from videoxl2.kv_codec import decode_kv, encode_kv
from videoxl2.upload import Cuda, HostUploads

TOKENS = (5, 9, 5, 70)
VALUES = [torch.randn(2, 2, 2, tokens, 4, generator=torch.Generator().manual_seed(tokens)) for tokens in TOKENS]


@pytest.fixture(params=["exact", "int8", "int4"])
def codec(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def write(path: Path, codec: str = "exact") -> Path:
    header = DenseKVHeader(
        video_id="a" * 32,
        segment_index=0,
        fingerprint="f" * 32,
        dtype="float32",
        layers=2,
        kv_heads=2,
        head_dim=4,
        chunk_groups=tuple(((1, tokens - 1),) for tokens in TOKENS),
        encoding=encoding_of(codec),
    )
    write_dense_kv(path, header, [encode_chunk(kv, header) for kv in VALUES])
    return path


def expected(codec: str, chunk: int) -> Tensor:
    settings, kv = codec_settings(encoding_of(codec)), VALUES[chunk]
    return decode_kv(encode_kv(kv, settings), tuple(kv.shape), "float32", settings)


def test_neighbours_are_read_together_up_to_a_size(tmp_path: Path) -> None:
    with Reload() as reload:
        files = [reload.add(DenseKVReader(write(tmp_path / name))) for name in "ab"]

        def of(order: list[tuple[int, int]], max_bytes: int) -> list[list[int]]:
            pieces = [reload.chunk(files[file], chunk) for file, chunk in order]
            return [[piece.index for piece in span] for span in spans(pieces, max_bytes)]

        whole = [(0, 0), (0, 1), (0, 2), (0, 3)]
        assert of(whole, 2**20) == [[0, 1, 2, 3]]
        assert of(whole, 2 * 4096) == [[0, 1], [2], [3]]
        assert of(whole, 1) == [[0], [1], [2], [3]]
        assert of([(0, 1), (0, 0), (0, 3), (1, 0), (1, 1), (0, 2), (0, 3)], 2**20) == [[1], [0], [3], [0, 1], [2, 3]]
        assert of([], 1) == []


def test_every_chunk_lands_in_a_tensor_of_its_own(tmp_path: Path, codec: str) -> None:
    with Reload(span_bytes=1) as reload:
        file = reload.add(DenseKVReader(write(tmp_path / "x", codec)))
        pieces = [reload.chunk(file, chunk) for chunk in (3, 0, 0, 2)]
        for piece in pieces:
            piece.bind_to_own()
        loaded = [piece.load() for piece in pieces]
    for chunk, found in zip((3, 0, 0, 2), loaded, strict=True):
        assert torch.equal(found.kv_LSKMDh, expected(codec, chunk))
        assert (found.groups, found.level) == (((1, TOKENS[chunk] - 1),), KVLevel.DENSE)


def test_a_cache_of_another_dtype_gets_the_chunk_s_own_values_rounded(tmp_path: Path, codec: str) -> None:
    with Reload() as reload:
        file = reload.add(DenseKVReader(write(tmp_path / "x", codec)))
        piece = reload.chunk(file, 1)
        slot = torch.empty(piece.shape, dtype=torch.bfloat16)
        piece.bind(slot)
        piece.load()
    assert torch.equal(slot, expected(codec, 1).bfloat16())


def test_an_exact_chunk_is_read_straight_into_the_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_buffer(self: object, num_bytes: int) -> Tensor:
        raise AssertionError("a buffer between file and cache is a second copy")

    monkeypatch.setattr(HostUploads, "buffer", no_buffer)
    with Reload() as reload:
        file = reload.add(DenseKVReader(write(tmp_path / "x")))
        piece = reload.chunk(file, 1)
        cache = torch.zeros(2, 2, 2, 20, 4)
        piece.bind(cache[:, :, :, 3:12])
        piece.start()
        assert piece.wait(0) == 2
    assert torch.equal(cache[:, :, :, 3:12], VALUES[1])
    assert not cache[:, :, :, :3].any() and not cache[:, :, :, 12:].any()


def test_one_buffer_serves_all_chunks_of_a_thread(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    addresses: set[int] = set()
    buffer = HostUploads.buffer

    def spied(self: HostUploads, num_bytes: int) -> Tensor:
        found = buffer(self, num_bytes)
        addresses.add(found.data_ptr())
        return found

    monkeypatch.setattr(HostUploads, "buffer", spied)
    with Reload(reads_in_flight=1, span_bytes=1) as reload:
        file = reload.add(DenseKVReader(write(tmp_path / "x", "int8")))
        pieces = [reload.chunk(file, chunk) for chunk in (3, 1, 0, 2)]  # the largest first
        for piece in pieces:
            piece.bind_to_own()
        for piece in pieces:
            piece.load()
    assert len(addresses) == 1


def test_first_layers_of_all_chunks_are_read_before_later_ones_of_any(
    tmp_path: Path, codec: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Small chunks are read whole, before anything of the later layers of large ones."""
    monkeypatch.setattr(LocalFile, "least_read_bytes", 400)
    log: list[tuple[int, range | None]] = []
    read = DenseKVReader.read_chunk_into

    def watched(self: DenseKVReader, chunk: int, parts: list[memoryview], run: ByteRange, sections: range) -> None:
        log.append((chunk, sections))
        read(self, chunk, parts, run, sections)

    monkeypatch.setattr(DenseKVReader, "read_chunk_into", watched)
    with Reload(layer_bands=4, reads_in_flight=1) as reload:
        file = reload.add(DenseKVReader(write(tmp_path / "x", codec)))
        pieces = [reload.chunk(file, chunk) for chunk in (3, 0, 1, 3)]
        for piece in pieces:
            piece.bind_to_own()
        loaded = [piece.load() for piece in pieces]
    for piece, found in zip(pieces, loaded, strict=True):
        assert torch.equal(found.kv_LSKMDh, expected(codec, piece.index))
    later = [(chunk, sections) for chunk, sections in log if sections.start]
    assert (3, range(1, 2)) in later, "the large chunk comes in two bands: it has two layers"
    assert log[-len(later) :] == later
    assert (0, range(2)) in log, "the small one is not worth two reads"


def test_damage_is_told_to_whoever_waits_for_that_chunk(tmp_path: Path, codec: str) -> None:
    path = write(tmp_path / "x", codec)
    with DenseKVReader(path) as file:
        offset = file.entries[1].offset
    content = bytearray(path.read_bytes())
    content[offset] ^= 1
    path.write_bytes(content)
    with Reload() as reload:
        file = reload.add(DenseKVReader(path))
        pieces = [reload.chunk(file, chunk) for chunk in range(3)]
        for piece in pieces:
            piece.bind_to_own()
        for piece in (pieces[0], pieces[2]):
            piece.load()
        with pytest.raises(CorruptKV, match="chunk 1: checksum"):
            pieces[1].load()


def test_misuse_is_refused(tmp_path: Path) -> None:
    with Reload() as reload:
        file = reload.add(DenseKVReader(write(tmp_path / "x")))
        piece = reload.chunk(file, 0)
        with pytest.raises(ValueError, match="its place"):
            piece.bind(torch.empty(2, 2, 2, 6, 4))
        piece.bind_to_own()
        with pytest.raises(ValueError, match="a place already"):
            piece.bind_to_own()
        late = reload.chunk(file, 1)
        late.bind_to_own()
    with pytest.raises(ValueError, match="closed"):
        late.start()


def test_closing_early_ends_reading_and_nobody_waits_for_ever(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    entered, go_on = threading.Event(), threading.Event()
    read = DenseKVReader.read_chunk_into

    def slow(self: DenseKVReader, chunk: int, parts: list[memoryview], *run: ByteRange) -> None:
        entered.set()
        assert go_on.wait(30)
        read(self, chunk, parts, *run)

    monkeypatch.setattr(DenseKVReader, "read_chunk_into", slow)
    reload = Reload(reads_in_flight=1, span_bytes=1)
    file = reload.add(DenseKVReader(write(tmp_path / "x")))
    pieces = [reload.chunk(file, chunk) for chunk in range(4)]
    for piece in pieces:
        piece.bind_to_own()
    pieces[0].start()
    assert entered.wait(30)
    closer = threading.Thread(target=reload.close)
    closer.start()
    go_on.set()
    closer.join(30)
    pieces[0].wait(0)  # the one that was half-way is whole
    with pytest.raises(ValueError, match="given up"):
        pieces[3].wait(0)


class FakeEvent:
    reached = False


class FakeCuda(Cuda):
    """A GPU whose uploads end only when somebody waits for them: until then they show what the buffer holds later."""

    def __init__(self) -> None:
        self.log: list[tuple[str, Any]] = []
        self.pending: dict[int, FakeEvent] = {}
        self.threads = threading.local()
        self.main = threading.current_thread()
        self.too_early: list[int] = []
        self.num_pinned = 0

    def pinned(self, num_bytes: int) -> Tensor:
        self.num_pinned += 1
        return torch.empty(num_bytes, dtype=torch.uint8)

    def new_stream(self, device: torch.device) -> Any:
        return object()

    @contextlib.contextmanager
    def on(self, stream: Any) -> Iterator[None]:  # type: ignore[override]
        self.threads.stream = stream
        yield
        self.threads.stream = None

    def upload(self, raw_B: Tensor, device: torch.device) -> Tensor:
        assert self.threads.stream is not None, "an upload outside its own stream would hold up the others"
        self.threads.uploading = raw_B.data_ptr()
        return raw_B

    def mark(self, device: torch.device) -> FakeEvent:
        event = FakeEvent()
        if threading.current_thread() is self.main:
            self.log.append(("ready", event))
        else:
            self.pending[self.threads.uploading] = event
        return event

    def after(self, event: Any, device: torch.device) -> None:
        who = "user" if threading.current_thread() is self.main else "stream"
        self.log.append((f"{who} after", event))

    def wait(self, event: Any) -> None:
        event.reached = True


@pytest.mark.parametrize("layer_bands", [1, 2])
@pytest.mark.parametrize("reads_in_flight", [1, 3])
def test_pinned_buffers_are_used_again_only_after_their_upload(
    tmp_path: Path, codec: str, reads_in_flight: int, layer_bands: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(LocalFile, "least_read_bytes", 1)
    cuda = FakeCuda()
    read = DenseKVReader.read_chunk_into

    def watched(self: DenseKVReader, chunk: int, parts: list[memoryview], *run: ByteRange) -> None:
        (part,) = parts
        address = torch.frombuffer(part, dtype=torch.uint8).data_ptr()
        event = cuda.pending.get(address)
        if event is not None and not event.reached:
            cuda.too_early.append(chunk)
        read(self, chunk, parts, *run)

    monkeypatch.setattr(DenseKVReader, "read_chunk_into", watched)
    with Reload(layer_bands=layer_bands, reads_in_flight=reads_in_flight, span_bytes=1, cuda=cuda) as reload:
        file = reload.add(DenseKVReader(write(tmp_path / "x", codec)))
        order = (3, 1, 0, 2, 3, 1)
        pieces = [reload.chunk(file, chunk) for chunk in order]
        for piece in pieces:
            piece.bind_to_own()
        loaded = [piece.load() for piece in pieces]
    for chunk, found in zip(order, loaded, strict=True):
        assert torch.equal(found.kv_LSKMDh, expected(codec, chunk))
    assert cuda.too_early == []
    kinds = [kind for kind, _ in cuda.log]
    assert kinds[0] == "ready", "the place may be in use until then"
    assert kinds.count("user after") == len(order) * layer_bands, "who uses a chunk queues its work after the upload"
    streams = [event for kind, event in cuda.log if kind == "stream after"]
    assert streams and set(streams) == {cuda.log[0][1]}
    assert 1 <= cuda.num_pinned <= 2 * reads_in_flight * 2, "two for a thread, and larger ones in their place"


def test_byte_runs_are_the_order_of_a_stored_chunk() -> None:
    cache = torch.randn(2, 2, 3, 10, 4, dtype=torch.float32).bfloat16()
    slot = cache[:, :, :, 2:7]
    assert b"".join(bytes(run) for run in byte_runs(slot)) == slot.contiguous().view(torch.uint8).numpy().tobytes()
    assert list(byte_runs(cache[:, :, :, 2:2])) == []
