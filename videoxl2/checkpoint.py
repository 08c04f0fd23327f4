"""Where a checkpoint lies and what it says about itself. No torch, no weights in memory.

Owns the folder layout (``config.json``, ``model.safetensors`` or shards with an index, the tokenizer's files,
``card.json``, ``dual_encoder/``), the digest of the weight files and the reading of their headers into numpy arrays.
"""

from __future__ import annotations

import functools
import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import xxhash

from videoxl2.config import ModelSpec
from videoxl2.errors import ModelError

_PACKAGED = Path(__file__).parent / "checkpoints"
_HUB_NAME = re.compile(r"\w[\w.-]*/\w[\w.-]*")
_READ_BYTES = 1 << 22
_NUMPY_DTYPES = {"F64": "<f8", "F32": "<f4", "F16": "<f2", "I64": "<i8", "I32": "<i4", "BF16": "<u2"}


@dataclass(frozen=True, slots=True)
class CheckpointInfo:
    """A checkpoint as its folder describes it.

    ``weights_digest`` is the xxh3-128 of the model's weight files in name order; ``encoder_digest`` that of the dual
    encoder's, or None where the folder has no dual encoder; ``tokenizer_digest`` and ``encoder_tokenizer_digest`` those
    of the files of the tokenizers that are read, or None without one. ``card`` is ``card.json``, empty where there is
    none.
    """

    folder: Path
    spec: ModelSpec
    weights_digest: str
    encoder_digest: str | None
    tokenizer_digest: str | None
    encoder_tokenizer_digest: str | None
    is_trained: bool
    card: dict[str, Any]

    @property
    def name(self) -> str:
        return str(self.card.get("name", self.folder.name))


def resolve_checkpoint(name_or_folder: str) -> Path:
    """The folder of a checkpoint: a packaged name (``tiny``), an existing folder, or a model in the local Hub cache.

    Nothing is downloaded. Raises ``ModelError`` that says how to get the checkpoint.
    """
    packaged = _PACKAGED / name_or_folder
    if re.fullmatch(r"[\w-]+", name_or_folder) and (packaged / "config.json").is_file():
        return packaged
    folder = Path(name_or_folder).expanduser()
    if folder.is_dir():
        if not (folder / "config.json").is_file():
            raise ModelError(f"{name_or_folder!r} is not a checkpoint folder: it has no config.json")
        return folder
    if _HUB_NAME.fullmatch(name_or_folder):
        return _cached_snapshot(name_or_folder)
    known = ", ".join(sorted(path.name for path in _PACKAGED.glob("*") if (path / "config.json").is_file()))
    raise ModelError(
        f"no checkpoint {name_or_folder!r}: give a packaged name ({known}), an existing folder or a Hub id 'owner/name'"
    )


def _cached_snapshot(name: str) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HFValidationError, LocalEntryNotFoundError

    try:
        return Path(snapshot_download(name, local_files_only=True))
    except (LocalEntryNotFoundError, HFValidationError) as absent:
        raise ModelError(
            f"{name!r} is neither a folder nor in the local Hub cache; run 'hf download {name}' on a machine with "
            f"network access, or give the folder that holds the files"
        ) from absent


def read_config(folder: Path) -> dict[str, Any]:
    """``config.json`` of a checkpoint folder; ``ModelError`` where it is absent or no JSON object."""
    return read_object(folder / "config.json")


def read_object(path: Path) -> dict[str, Any]:
    """The JSON object of a file; ``ModelError`` where it is absent or holds something else."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as problem:
        raise ModelError(f"cannot read {path}: {problem}") from problem
    if not isinstance(found, dict):
        raise ModelError(f"{path} holds no JSON object")
    return found


def read_checkpoint_info(folder: Path | str) -> CheckpointInfo:
    """Read a checkpoint folder's description; digests its weight files, which takes as long as reading them once."""
    folder = Path(folder)
    spec = ModelSpec.from_config(read_config(folder))
    card_path = folder / "card.json"
    card = read_object(card_path) if card_path.is_file() else {}
    encoder = folder / "dual_encoder"
    return CheckpointInfo(
        folder=folder,
        spec=spec,
        weights_digest=digest_weights(folder),
        encoder_digest=digest_weights(encoder) if encoder.is_dir() else None,
        tokenizer_digest=_digest_tokenizer(folder),
        encoder_tokenizer_digest=_digest_tokenizer(encoder),
        is_trained=card.get("weights", "trained") != "random",
        card=card,
    )


def weights_notice(info: CheckpointInfo) -> str | None:
    """One sentence for the user about weights without meaning, or about the limits their card names; None without."""
    if info.is_trained:
        limits = info.card.get("notice")
        return None if limits is None else f"model {info.name!r}: {limits}"
    return f"model {info.name!r} has random weights: answers and text search carry no meaning yet"


def tokenizer_files(folder: Path) -> list[Path]:
    """The files of a checkpoint folder that its tokenizer is read from; empty where it has none."""
    if (folder / "tokenizer.json").is_file():
        return [folder / "tokenizer.json"]
    older = (folder / name for name in ("vocab.json", "merges.txt", "tokenizer_config.json", "added_tokens.json"))
    return [path for path in older if path.is_file()]


def _digest_tokenizer(folder: Path) -> str | None:
    digest, files = xxhash.xxh3_128(), tokenizer_files(folder)
    for path in files:
        content = path.read_bytes()
        digest.update(f"{path.name}\n{len(content)}\n".encode())
        digest.update(content)
    return digest.hexdigest() if files else None


def weight_files(folder: Path) -> list[Path]:
    """The weight files of a folder, sorted by name: the shards that its index names, else every safetensors file.

    Raises ``ModelError`` where there are none or a shard is absent.
    """
    index = folder / "model.safetensors.index.json"
    if index.is_file():
        try:
            files = sorted({folder / shard for shard in read_object(index)["weight_map"].values()})
        except (KeyError, AttributeError, TypeError) as problem:
            raise ModelError(f"cannot read {index}: {problem}") from problem
        if absent := [path.name for path in files if not path.is_file()]:
            raise ModelError(f"{folder} lacks the weight files {', '.join(absent)} that its index names")
    else:
        files = sorted(folder.glob("*.safetensors"))
    if not files:
        raise ModelError(f"{folder} holds no .safetensors file")
    return files


def digest_weights(folder: Path) -> str:
    """xxh3-128 over the bytes of the folder's weight files in name order, as 32 hexadecimal digits."""
    stats = [(path, path.stat()) for path in weight_files(folder)]
    return _digest(tuple((str(path), stat.st_size, stat.st_mtime_ns) for path, stat in stats))


@functools.lru_cache(maxsize=16)
def _digest(files: tuple[tuple[str, int, int], ...]) -> str:
    digest = xxhash.xxh3_128()
    for name, _, _ in files:
        with Path(name).open("rb") as file:
            while block := file.read(_READ_BYTES):
                digest.update(block)
    return digest.hexdigest()


def load_arrays(folder: Path, prefix: str) -> dict[str, np.ndarray]:
    """Tensors whose key starts with ``prefix``, as float32 arrays under the rest of their key.

    Reads the safetensors format directly, because numpy has no bfloat16 and this must not import torch.
    """
    arrays: dict[str, np.ndarray] = {}
    for path in weight_files(folder):
        with path.open("rb") as file:
            header = json.loads(file.read(int.from_bytes(file.read(8), "little")))
            start = file.tell()
            for key, entry in header.items():
                if not key.startswith(prefix) or key == "__metadata__":
                    continue
                first, last = entry["data_offsets"]
                file.seek(start + first)
                raw = file.read(last - first)
                arrays[key.removeprefix(prefix)] = _as_float32(raw, entry["dtype"], entry["shape"], key)
    return arrays


def _as_float32(raw: bytes, dtype: str, shape: list[int], key: str) -> np.ndarray:
    if dtype not in _NUMPY_DTYPES:
        raise ModelError(f"tensor {key!r} has dtype {dtype}, which is not supported")
    flat = np.frombuffer(raw, dtype=_NUMPY_DTYPES[dtype])
    if dtype == "BF16":
        flat = (flat.astype(np.uint32) << 16).view(np.float32)
    return flat.astype(np.float32).reshape(shape)
