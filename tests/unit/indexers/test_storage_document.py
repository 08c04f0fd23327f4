"""docs/storage.md is enough to read a KV file: its script is run on one."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from indexers import kv_file
from indexers.kv_file import DenseKVHeader, KVEncoding, StepGroup, write_dense_kv
from pipeline.kv_encoding import codec_settings, encode_chunk
from videoxl2.kv_codec import decode_kv, encode_kv

DOCUMENT = Path(__file__).resolve().parents[3] / "docs" / "storage.md"
CHUNK_GROUPS = (((2, 4), (3, 4)), ((2, 4),))


@pytest.fixture(scope="module")
def script(tmp_path_factory: pytest.TempPathFactory) -> Path:
    (code,) = re.findall(r"```python\n(.*?)```", DOCUMENT.read_text(), flags=re.DOTALL)
    path: Path = tmp_path_factory.mktemp("doc") / "read_kv.py"
    path.write_text(code)
    assert len(code.splitlines()) <= 30
    return path


def run(script: Path, path: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, str(script), str(path)], capture_output=True, text=True, check=False)


@pytest.mark.parametrize("version", [2, 3])
@pytest.mark.parametrize("codec", ["int8", "int4"])
@pytest.mark.parametrize(("axis", "size"), [("channel", 4), ("token", 3), ("channel", 64)])
def test_the_documented_script_expands_int8_and_int4(
    script: Path, tmp_path: Path, codec: str, axis: str, size: int, version: int
) -> None:
    """An odd number of codes in a layer (65 tokens in all, 7 channels) and a short last group along either axis."""
    encoding = KVEncoding(codec, StepGroup(axis, size), StepGroup("channel", 5))
    header = DenseKVHeader(
        video_id="a" * 32,
        segment_index=3,
        fingerprint="f" * 32,
        dtype="float32",
        layers=3,
        kv_heads=1,
        head_dim=7,
        chunk_groups=CHUNK_GROUPS,
        encoding=encoding,
        format=version,
    )
    settings = codec_settings(encoding)
    values = [torch.randn(header.chunk_shape(n), generator=torch.Generator().manual_seed(n)) for n in range(2)]
    path = tmp_path / "x.vxlkv"
    write_dense_kv(path, header, [encode_chunk(kv, header) for kv in values])
    done = run(script, path)
    assert done.returncode == 0, done.stderr
    for number, kv in enumerate(values):
        back = decode_kv(encode_kv(kv, settings), tuple(kv.shape), "float32", settings)
        shown = done.stdout.splitlines()[1 + number]
        shape = header.chunk_shape(number)
        assert shown.startswith(f"{number} {[list(group) for group in CHUNK_GROUPS[number]]} {shape} ")
        assert float(shown.rpartition(" ")[2]) == pytest.approx(float(back[:, 0].double().sum()), abs=1e-4)


@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
def test_the_documented_script_reads_what_the_writer_wrote(script: Path, tmp_path: Path, dtype: str) -> None:
    header = DenseKVHeader(
        video_id="a" * 32,
        segment_index=3,
        fingerprint="f" * 32,
        dtype=dtype,
        layers=2,
        kv_heads=1,
        head_dim=8,
        chunk_groups=CHUNK_GROUPS,
    )
    rng = np.random.default_rng(0)
    # Small whole numbers are exact in every dtype.
    arrays = [rng.integers(-8, 8, size=header.chunk_shape(chunk)).astype(np.float32) for chunk in range(2)]
    bits = [a.view(np.uint32) >> 16 for a in arrays]
    payloads = [b.astype("<u2").tobytes() for b in bits] if dtype == "bfloat16" else [a.tobytes() for a in arrays]
    path = tmp_path / "x.vxlkv"
    written = write_dense_kv(path, header, payloads)
    lines = run(script, path).stdout.splitlines()
    assert lines[0] == f"{'a' * 32} 3 exact {dtype} {'f' * 32}"
    for number, array in enumerate(arrays):
        groups = [list(group) for group in CHUNK_GROUPS[number]]
        assert lines[1 + number] == f"{number} {groups} {array.shape} {float(array[:, 0].sum())}"
    damaged = bytearray(path.read_bytes())
    damaged[written[1].offset] ^= 1
    path.write_bytes(damaged)
    assert "chunk 1 is damaged" in run(script, path).stderr


def test_the_document_names_what_the_code_writes() -> None:
    text = DOCUMENT.read_text().replace("\\|", "|")
    for word in (kv_file.LAYOUT, kv_file.ROTATION, *kv_file.CODECS, *kv_file.AXES, "VXLKVF\\r\\n", *kv_file.ITEM_BYTES):
        assert word in text
