"""How fast stored KV comes back: reload against a plain sequential read of the same bytes, in the same run.

    OMP_NUM_THREADS=1 python tests/benchmarks/bench_reload.py [--gib 1] [--rounds 7] [--folder FOLDER] [--json FILE]

A KV file is written with random values in the shape of a larger decoder (``--shape`` layers,kv_heads,head_dim) and its
chunks are read in four ways, in turn, round after round:

- plain: ``readinto`` from the first byte to the last into one reused buffer of 1 MiB, nothing else. The ceiling.
- plain, kept: the same into memory that holds all of it, as any use of the bytes must.
- chunks: every chunk into one reused buffer, checksums verified (one thread).
- reload: several reads in flight, checksums verified, every chunk into its slot of one cache that was used before. This
  is what assembly waits for; rotation comes on top and is timed apart, with int8 and int4 expanded into the same slots.

Warm: the file lies in the system's page cache. Cold: it is dropped from there before every measurement
(``posix_fadvise``), which drops clean pages of this file only and says nothing about caches below the system.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
import xxhash

from indexers.kv_file import DenseKVHeader, DenseKVReader, write_dense_kv
from pipeline.kv_encoding import codec_settings, encoding_of
from pipeline.kv_reload import READS_IN_FLIGHT, Reload
from videoxl2.kv_codec import encode_kv

CODECS = ("exact", "int8", "int4")
PLAIN_BYTES = 1 << 20
TARGET = 0.8


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--gib", type=float, default=1.0, help="size of the exact file")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--shape", default="28,4,128", help="layers, KV heads, head width")
    parser.add_argument("--tokens", type=int, default=900, help="tokens of a chunk")
    parser.add_argument("--folder", help="where the files are made; a temporary folder unless given")
    parser.add_argument("--json", help="write the figures to this file")
    arguments = parser.parse_args()
    layers, kv_heads, head_dim = map(int, arguments.shape.split(","))
    chunk_bytes = layers * 2 * kv_heads * arguments.tokens * head_dim * 2
    num_chunks = max(1, round(arguments.gib * 2**30 / chunk_bytes))
    shape = (layers, 2, kv_heads, arguments.tokens, head_dim)
    with tempfile.TemporaryDirectory(prefix="vxl-reload-", dir=arguments.folder) as folder:
        paths = {codec: write(Path(folder) / f"{codec}.vxlkv", codec, shape, num_chunks) for codec in CODECS}
        cache = torch.zeros((layers, 2, kv_heads, arguments.tokens * num_chunks, head_dim), dtype=torch.bfloat16)
        document: dict[str, Any] = {
            **{"benchmark": "reload", "chunk_bytes": chunk_bytes, "chunks": num_chunks, "rounds": arguments.rounds},
            **{"cores": os.cpu_count(), "load": os.getloadavg()[0], "torch_threads": torch.get_num_threads()},
            **{"reads_in_flight": READS_IN_FLIGHT, "machine": platform.machine(), "torch": torch.__version__},
        }
        print(f"{num_chunks} chunks of {chunk_bytes / 2**20:.1f} MiB, load average {document['load']:.1f}")
        for is_cold in (False, True):
            name = "cold" if is_cold else "warm"
            document[name] = measure(paths, cache, arguments.tokens, arguments.rounds, is_cold)
            report(name, document[name])
        document["checksum_gb_per_s"] = checksum_rate(chunk_bytes)
        print(f"checksum alone, one thread, bytes in memory: {document['checksum_gb_per_s']:.1f} GB/s")
    if arguments.json:
        Path(arguments.json).write_text(json.dumps(document, indent=1))


def write(path: Path, codec: str, shape: tuple[int, ...], num_chunks: int) -> Path:
    """A file of equal chunks of normal values, except that each has a first byte of its own."""
    encoding = encoding_of(codec)
    header = DenseKVHeader(
        **{"video_id": "0" * 32, "segment_index": 0, "fingerprint": "0" * 32, "dtype": "bfloat16"},
        **{"layers": shape[0], "kv_heads": shape[2], "head_dim": shape[4]},
        chunk_groups=(((0, shape[3]),),) * num_chunks,
        encoding=encoding,
    )
    values = torch.randn(shape, generator=torch.Generator().manual_seed(0)).bfloat16()
    payload = encode_kv(values, codec_settings(encoding)).copy()

    def chunks() -> Any:
        for number in range(num_chunks):
            payload[0] = number % 256
            yield payload.data

    write_dense_kv(path, header, chunks())
    return path


def measure(paths: dict[str, Path], cache: torch.Tensor, tokens: int, rounds: int, is_cold: bool) -> dict[str, Any]:
    """Rates in GB of file per second: median, least and most."""
    exact = paths["exact"]
    small, whole = bytearray(PLAIN_BYTES), memoryview(bytearray(exact.stat().st_size))
    ways: dict[str, tuple[Path, Callable[[], None]]] = {
        "plain": (exact, lambda: plain(exact, small)),
        "plain, kept": (exact, lambda: kept(exact, whole)),
        "chunks": (exact, lambda: chunk_by_chunk(exact)),
    }
    for codec, path in paths.items():
        ways[f"reload {codec}"] = (path, lambda path=path: reload(path, cache, tokens))  # type: ignore[misc]
    seconds: dict[str, list[float]] = {way: [] for way in ways}
    for number in range(rounds + 1):
        for way, (path, run) in ways.items():
            if is_cold:
                drop(path)
            started = time.perf_counter()
            run()
            if number:  # the first round warms up
                seconds[way].append(time.perf_counter() - started)
    figures: dict[str, Any] = {}
    for way, (path, _) in ways.items():
        rates = [path.stat().st_size / 1e9 / second for second in seconds[way]]
        figures[way] = {
            **{"gb_per_s": statistics.median(rates), "least": min(rates), "most": max(rates)},
            "seconds": statistics.median(seconds[way]),
        }
    for ceiling in ("plain", "plain, kept"):
        ratios = [base / own for base, own in zip(seconds[ceiling], seconds["reload exact"], strict=True)]
        figures["reload exact"][f"of {ceiling}"] = statistics.median(ratios)
    return figures


def plain(path: Path, buffer: bytearray) -> None:
    with path.open("rb", buffering=0) as file:
        while file.readinto(buffer):
            pass


def kept(path: Path, buffer: memoryview) -> None:
    position = 0
    with path.open("rb", buffering=0) as file:
        while step := file.readinto(buffer[position : position + PLAIN_BYTES]):
            position += step


def chunk_by_chunk(path: Path) -> None:
    with DenseKVReader(path) as file:
        buffer = memoryview(bytearray(max(entry.length for entry in file.entries)))
        for index, entry in enumerate(file.entries):
            file.read_chunk_into(index, [buffer[: entry.length]])


def reload(path: Path, cache: torch.Tensor, tokens: int) -> None:
    with Reload() as reading:
        file = reading.add(DenseKVReader(path))
        pieces = [reading.chunk(file, index) for index in range(file.header.num_chunks)]
        for index, piece in enumerate(pieces):
            piece.bind(cache[:, :, :, index * tokens : (index + 1) * tokens])
        for piece in pieces:
            piece.start()
        for piece in pieces:
            piece.load()


def drop(path: Path) -> None:
    """Ask the system to forget the file's pages."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
    finally:
        os.close(descriptor)


def checksum_rate(num_bytes: int) -> float:
    payload = np.random.default_rng(0).integers(0, 256, num_bytes, dtype=np.uint8)
    seconds = []
    for _ in range(7):
        started = time.perf_counter()
        xxhash.xxh3_128_hexdigest(payload.data)
        seconds.append(time.perf_counter() - started)
    return num_bytes / 1e9 / statistics.median(seconds)


def report(name: str, figures: dict[str, Any]) -> None:
    print(f"\n{name:<14} GB/s (least to most)      seconds")
    for way, row in figures.items():
        print(f"{way:<14} {row['gb_per_s']:5.2f} ({row['least']:.2f} to {row['most']:.2f}) {row['seconds']:12.3f}")
    row = figures["reload exact"]
    for ceiling in ("plain", "plain, kept"):
        print(f"reload exact is {row[f'of {ceiling}']:.0%} of {ceiling} (median of rounds; target {TARGET:.0%})")


if __name__ == "__main__":
    main()
