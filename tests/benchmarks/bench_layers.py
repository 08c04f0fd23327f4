"""Is it worth using the first layers of stored KV while later ones arrive? Time to the first token by bands of layers.

    OMP_NUM_THREADS=1 python tests/benchmarks/bench_layers.py [--width 384] [--rounds 7] [--json FILE]

A decoder with random weights, whose width decides what computing costs beside reading, is asked a question over dense
chunks of random values with two texts between them. From the first request to the logits of the first token, in turn,
round after round: with whole chunks (1 band), and in 2, 4 and 6 bands. With ``--device-s`` the decoder is next to
nothing and each layer waits its share of that many seconds instead, as for a device of its own that takes nothing from
the cores that read. Beside it, from the same rounds, the two parts alone:

- load: reading, checking and placing everything, nothing computed;
- compute: rotating everything and the pass of texts and question, all KV being there.

No way can be faster than the larger of the two (the ceiling); whole chunks take about their sum.

Stores: the local file warm (in the page cache), cold (dropped from it before every measurement) and, with it warm, a
store of limited bandwidth: all requests share ``--mb-per-s``, and each waits ``--latency-ms`` before its first byte.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import platform
import statistics
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch

from indexers.folder import ByteRange, LocalFile, LocalFolder, Name
from indexers.kv_file import DenseKVHeader, DenseKVReader, write_dense_kv
from pipeline.kv_encoding import encode_chunk, encoding_of
from pipeline.kv_reload import Reload
from videoxl2.config import LanguageSpec
from videoxl2.decode import Assembly, HeaderIds, Piece
from videoxl2.kv import ChunkKV, KVLevel
from videoxl2.language import GapAttention, QwenDecoder

BANDS = (1, 2, 4, 6)
PREFIX, HEADER, QUESTION = tuple(range(1, 21)), tuple(range(5, 25)), tuple(range(2, 32))


class Throttle:
    """A connection shared by all requests: so many bytes per second, and a delay before the first byte of each."""

    def __init__(self, bytes_per_s: float, latency_s: float) -> None:
        self._bytes_per_s, self.latency_s = bytes_per_s, latency_s
        self._lock, self._free_at = threading.Lock(), 0.0

    def take(self, num_bytes: int) -> None:
        with self._lock:
            self._free_at = max(self._free_at, time.perf_counter()) + num_bytes / self._bytes_per_s
            wait_s = self._free_at - time.perf_counter()
        time.sleep(max(0.0, wait_s))


class _SlowRange:
    def __init__(self, found: ByteRange, throttle: Throttle) -> None:
        self._found, self._throttle, self._is_first = found, throttle, True

    def read_into(self, views: Sequence[memoryview], offset: int) -> int:
        if self._is_first:
            time.sleep(self._throttle.latency_s)
            self._is_first = False
        self._throttle.take(sum(map(len, views)))
        return self._found.read_into(views, offset)


class SlowFile(LocalFile):
    """A local file behind the throttle."""

    def __init__(self, path: Path, throttle: Throttle) -> None:
        super().__init__(path)
        self._throttle = throttle

    @contextlib.contextmanager
    def _slow(self, offset: int, length: int) -> Iterator[ByteRange]:
        with super().open_range(offset, length) as found:
            yield _SlowRange(found, self._throttle)

    def open_range(self, offset: int, length: int) -> AbstractContextManager[ByteRange]:
        return self._slow(offset, length)


class SlowFolder(LocalFolder):
    """This machine's files behind a throttle."""

    throttle: Throttle

    def open(self, name: Name) -> LocalFile:
        return SlowFile(self.path / name, self.throttle)


def slow_folder(throttle: Throttle) -> SlowFolder:
    folder = SlowFolder(Path())
    object.__setattr__(folder, "throttle", throttle)
    return folder


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--chunks", type=int, default=12)
    parser.add_argument("--tokens", type=int, default=900, help="tokens of a chunk")
    parser.add_argument("--width", type=int, default=384, help="of the decoder of 12 layers with 2 KV heads of 64")
    parser.add_argument("--device-s", type=float, default=0.0, help="seconds that a pass takes on a device of its own")
    parser.add_argument("--stores", default="warm,cold,slow")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--mb-per-s", type=float, default=300.0)
    parser.add_argument("--latency-ms", type=float, default=15.0)
    parser.add_argument("--codecs", default="exact,int8")
    parser.add_argument("--folder", help="where the files are made; a temporary folder unless given")
    parser.add_argument("--json", help="write the figures to this file")
    arguments = parser.parse_args()
    torch.manual_seed(0)
    arguments.width = 128 if arguments.device_s else arguments.width
    spec = LanguageSpec(
        vocab_size=1000,
        width=arguments.width,
        mlp_width=4 * arguments.width,
        num_layers=12,
        num_heads=arguments.width // 64,
        num_kv_heads=2,
        head_dim=64,
        max_positions=1_000_000,
    )
    decoder = QwenDecoder(spec).requires_grad_(False).eval()
    for name, parameter in decoder.named_parameters():
        parameter.fill_(1.0) if "norm" in name else parameter.normal_(0.0, 0.02)
    if arguments.device_s:
        attend = GapAttention.attend

        def waiting(self: GapAttention, layer: int, q_BNTDh: torch.Tensor) -> torch.Tensor:
            found = attend(self, layer, q_BNTDh)
            time.sleep(arguments.device_s / spec.num_layers)
            return found

        GapAttention.attend = waiting  # type: ignore[method-assign]
    model = SimpleNamespace(language=decoder, tokenizer=None)
    slow = slow_folder(Throttle(arguments.mb_per_s * 1e6, arguments.latency_ms / 1e3))
    document: dict[str, Any] = {
        **{"benchmark": "layers", "chunks": arguments.chunks, "tokens": arguments.tokens, "rounds": arguments.rounds},
        **{
            "layers": spec.num_layers,
            "width": spec.width,
            "device_s": arguments.device_s,
            "mb_per_s": arguments.mb_per_s,
            "latency_ms": arguments.latency_ms,
        },
        **{"cores": os.cpu_count(), "load": os.getloadavg()[0], "torch_threads": torch.get_num_threads()},
        **{"machine": platform.machine(), "torch": torch.__version__},
    }
    sizes = f"{arguments.chunks} chunks of {arguments.tokens} tokens, width {spec.width}"
    print(f"{sizes}, load average {document['load']:.1f}")
    with tempfile.TemporaryDirectory(prefix="vxl-layers-", dir=arguments.folder) as folder:
        for codec in arguments.codecs.split(","):
            path = write(Path(folder) / codec, codec, spec, arguments.chunks, arguments.tokens)
            print(f"\n{codec}: {path.stat().st_size / 1e6:.0f} MB")
            for store in arguments.stores.split(","):
                place = slow if store == "slow" else LocalFolder(Path())
                is_cold = store == "cold"
                figures = measure(model, path, place, is_cold, arguments.chunks, arguments.rounds)
                document[f"{codec} {store}"] = figures
                report(store, figures)
    if arguments.json:
        Path(arguments.json).write_text(json.dumps(document, indent=1))


def write(path: Path, codec: str, spec: Any, num_chunks: int, tokens: int) -> Path:
    header = DenseKVHeader(
        **{"video_id": "0" * 32, "segment_index": 0, "fingerprint": "0" * 32, "dtype": "float32"},
        **{"layers": spec.num_layers, "kv_heads": spec.num_kv_heads, "head_dim": spec.head_dim},
        chunk_groups=(((0, tokens),),) * num_chunks,
        encoding=encoding_of(codec),
    )
    values = torch.randn(header.chunk_shape(0), generator=torch.Generator().manual_seed(0))
    payload = bytes(encode_chunk(values, header))
    write_dense_kv(path, header, (payload for _ in range(num_chunks)))
    return path


def measure(model: Any, path: Path, folder: LocalFolder, is_cold: bool, num_chunks: int, rounds: int) -> dict[str, Any]:
    """Seconds to the first token by number of bands, and those of load and compute alone: medians, least and most."""
    there = [ChunkKV(piece.kv_LSKMDh, piece.groups, KVLevel.DENSE) for piece in load(path, folder, 1)]
    ways: dict[str, Callable[[], float]] = {f"{n} bands": lambda n=n: ask(model, path, folder, n) for n in BANDS}  # type: ignore[misc]
    ways["load alone"] = lambda: timed(lambda: load(path, folder, 1))
    ways["compute alone"] = lambda: timed(lambda: Assembly(model, texts(there), prefix_ids=PREFIX).extend(QUESTION))
    seconds: dict[str, list[float]] = {way: [] for way in ways}
    for number in range(rounds + 1):
        for way, run in ways.items():
            if is_cold:
                drop(path)
            taken = run()
            if number:  # the first round warms up
                seconds[way].append(taken)
    return {way: {"s": statistics.median(s), "least": min(s), "most": max(s)} for way, s in seconds.items()}


def drop(path: Path) -> None:
    """Ask the system to forget the file's pages."""
    with path.open("rb") as file:
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def texts(chunks: Sequence[Piece]) -> list[Piece]:
    """A text before the first chunk and one in the middle, as between two cameras."""
    middle = len(chunks) // 2
    return [HeaderIds(HEADER), *chunks[:middle], HeaderIds(HEADER), *chunks[middle:]]


def ask(model: Any, path: Path, folder: LocalFolder, layer_bands: int) -> float:
    started = time.perf_counter()
    with Reload(layer_bands=layer_bands) as reload, torch.no_grad():
        file = reload.add(DenseKVReader(path, folder=folder))
        pieces = [reload.chunk(file, index) for index in range(file.header.num_chunks)]
        hidden_TD = Assembly(model, texts(pieces), prefix_ids=PREFIX).extend(QUESTION)
        model.language.logits(hidden_TD[-1])
    return time.perf_counter() - started


def load(path: Path, folder: LocalFolder, layer_bands: int) -> list[ChunkKV]:
    with Reload(layer_bands=layer_bands) as reload:
        file = reload.add(DenseKVReader(path, folder=folder))
        pieces = [reload.chunk(file, index) for index in range(file.header.num_chunks)]
        for piece in pieces:
            piece.bind_to_own()
        return [piece.load() for piece in pieces]


def timed(run: Callable[[], object]) -> float:
    started = time.perf_counter()
    run()
    return time.perf_counter() - started


def report(store: str, figures: dict[str, Any]) -> None:
    load_s, compute_s = figures["load alone"]["s"], figures["compute alone"]["s"]
    plain_s = figures["1 bands"]["s"]
    print(f"{store}: load {load_s:.3f} s, compute {compute_s:.3f} s, ceiling {max(load_s, compute_s):.3f} s")
    for bands in BANDS:
        row = figures[f"{bands} bands"]
        print(
            f"  {bands} band{'s' if bands > 1 else ' '}  {row['s']:.3f} s ({row['least']:.3f} to {row['most']:.3f})"
            f"  {row['s'] / plain_s:6.0%} of whole chunks  {row['s'] / max(load_s, compute_s):6.0%} of the ceiling"
        )


if __name__ == "__main__":
    main()
