"""Published checkpoint keys <-> ours, and reading and writing weight files by that table.

One ``KeyTable`` per model: pairs of key prefixes, read in both directions, and patterns of published keys that are
ignored on purpose. Shapes are the published ones throughout, so a rename is all there is (``reference`` section 2.1).
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from videoxl2.checkpoint import weight_files
from videoxl2.config import ModelSpec
from videoxl2.errors import CheckpointMismatch, ModelError

_TOWER = "model.vision_tower.vision_tower.vision_model"


@dataclass(frozen=True, slots=True)
class KeyTable:
    """``renames`` are (our prefix, published prefix); ``ignored`` are full-match patterns of published keys."""

    renames: tuple[tuple[str, str], ...]
    ignored: tuple[str, ...] = ()

    def to_published(self, name: str) -> str:
        """The published key of one of our parameter names; ``KeyError`` where the table has none."""
        return _replace_prefix(name, self.renames)

    def from_published(self, key: str) -> str | None:
        """Our name of a published key, or None where it is ignored; ``KeyError`` for an unknown key."""
        if any(re.fullmatch(pattern, key) for pattern in self.ignored):
            return None
        return _replace_prefix(key, tuple((published, ours) for ours, published in self.renames))


def video_table(spec: ModelSpec) -> KeyTable:
    """The table of a Video-XL-2 checkpoint. Ignored: the tower's last layer, final norm and head, and ``text_mlp``."""
    ignored = [
        re.escape(f"{_TOWER}.encoder.layers.{spec.vision.num_layers}.") + ".*",
        re.escape(f"{_TOWER}.post_layernorm.") + ".*",
        re.escape(f"{_TOWER}.head.") + ".*",
        re.escape(f"{_TOWER}.embeddings.position_ids"),
        r"model\.text_mlp\..*",
        r"model\.(layers\.\d+\.self_attn\.)?rotary_emb\.inv_freq",
    ]
    if spec.language.tied_head:
        ignored.append(r"lm_head\.weight")
    return KeyTable(
        renames=(
            ("vision.patch_embedding.", f"{_TOWER}.embeddings.patch_embedding."),
            ("vision.position_embedding.", f"{_TOWER}.embeddings.position_embedding."),
            ("vision.layers.", f"{_TOWER}.encoder.layers."),
            ("dts.", "model.sae."),
            ("projector.mlp.", "model.mm_projector."),
            ("language.lm_head.", "lm_head."),
            ("language.", "model."),
        ),
        ignored=tuple(ignored),
    )


IMAGE_TOWER_RENAMES = (
    ("encoder.patch_embedding.", "vision_model.embeddings.patch_embedding."),
    ("encoder.position_embedding.", "vision_model.embeddings.position_embedding."),
    ("encoder.layers.", "vision_model.encoder.layers."),
    ("post_layernorm.", "vision_model.post_layernorm."),
    ("head.", "vision_model.head."),
)
TEXT_TOWER_RENAMES = (
    ("token_embedding.", "text_model.embeddings.token_embedding."),
    ("position_embedding.", "text_model.embeddings.position_embedding."),
    ("layers.", "text_model.encoder.layers."),
    ("final_layer_norm.", "text_model.final_layer_norm."),
    ("head.", "text_model.head."),
)
_POSITION_IDS = r"(vision|text)_model\.embeddings\.position_ids"
_GROUP_HEAD = "group_model."
"""Ours: the published dual encoders have no such keys."""
_OF_NO_TOWER = (r"logit_(scale|bias)", _POSITION_IDS)
IMAGE_TOWER_TABLE = KeyTable(IMAGE_TOWER_RENAMES, (r"(text|group)_model\..*", *_OF_NO_TOWER))
GROUP_HEAD_TABLE = KeyTable((("", _GROUP_HEAD),), (r"(text|vision)_model\..*", *_OF_NO_TOWER))
DUAL_ENCODER_TABLE = KeyTable(
    (
        *((f"image.{ours}", published) for ours, published in IMAGE_TOWER_RENAMES),
        *((f"text.{ours}", published) for ours, published in TEXT_TOWER_RENAMES),
        ("group.", _GROUP_HEAD),
        ("logit_", "logit_"),
    ),
    (_POSITION_IDS,),
)


def load_weights(
    module: nn.Module, folder: Path | str, table: KeyTable, *, device: torch.device | str, dtype: torch.dtype
) -> None:
    """Fill ``module`` (built on the meta device) from a folder's safetensors files or one file, a tensor at a time.

    Every parameter must be there in its shape and every key must be known or ignored; otherwise ``CheckpointMismatch``
    lists all that differs, before anything is read. A file that cannot be read is a ``ModelError``. Parameters come
    out frozen, on ``device``, in ``dtype``.
    """
    files = [Path(folder)] if Path(folder).is_file() else weight_files(Path(folder))
    shapes = {name: tuple(parameter.shape) for name, parameter in module.named_parameters()}
    plan = _plan_reading(files, table, shapes, str(folder))
    for path, keys in plan.items():
        with _opened(path, str(device)) as file:
            for key, name in keys.items():
                tensor = file.get_tensor(key).to(dtype)
                owner, _, leaf = name.rpartition(".")
                setattr(module.get_submodule(owner), leaf, nn.Parameter(tensor, requires_grad=False))


def save_weights(module: nn.Module, path: Path | str, table: KeyTable, *, dtype: torch.dtype | None = None) -> None:
    """Write a module's parameters under their published keys, in ``dtype`` (None: as they are)."""
    tensors: dict[str, Tensor] = {
        table.to_published(name): parameter.detach().to(device="cpu", dtype=dtype or parameter.dtype).contiguous()
        for name, parameter in module.named_parameters()
    }
    save_file(tensors, str(path), metadata={"format": "pt"})
    Path(path).chmod(0o644)  # safetensors creates files that only their owner may read


def _plan_reading(
    files: Sequence[Path], table: KeyTable, shapes: Mapping[str, tuple[int, ...]], folder: str
) -> dict[Path, dict[str, str]]:
    """Which key of which file fills which parameter."""
    plan: dict[Path, dict[str, str]] = {}
    surplus: list[str] = []
    misshaped: list[tuple[str, tuple[int, ...], tuple[int, ...]]] = []
    found: set[str] = set()
    for path in files:
        with _opened(path, "cpu") as file:
            for key in file.keys():  # noqa: SIM118
                try:
                    name = table.from_published(key)
                except KeyError:
                    surplus.append(key)
                    continue
                if name is None:
                    continue
                if name not in shapes or name in found:  # a key that lies in two files is one too many
                    surplus.append(key)
                    continue
                found.add(name)
                shape = tuple(file.get_slice(key).get_shape())
                if shape != shapes[name]:
                    misshaped.append((key, shapes[name], shape))
                plan.setdefault(path, {})[key] = name
    missing = [table.to_published(name) for name in shapes if name not in found]
    if missing or surplus or misshaped:
        raise CheckpointMismatch(folder, missing, surplus, misshaped)
    return plan


@contextlib.contextmanager
def _opened(path: Path, device: str) -> Iterator[Any]:
    try:
        with safe_open(path, framework="pt", device=device) as file:
            yield file
    except SafetensorError as problem:
        raise ModelError(f"cannot read {path}: {problem}") from problem


def _replace_prefix(name: str, pairs: Sequence[tuple[str, str]]) -> str:
    for old, new in pairs:
        if name.startswith(old):
            return new + name.removeprefix(old)
    raise KeyError(name)
