"""SigLIP text tower in numpy: a search text into the embedding space of the images. Imports no torch.

Searching must start in a moment and torch alone costs more than that; one text through this tower is a few matrix
products. The tower is bidirectional, texts are padded to the full length and the last position is taken.

Shapes: B texts, T positions, D width, N heads, Dh head width, E embedding width.
"""

from __future__ import annotations

import re
import string
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from videoxl2.checkpoint import load_arrays, read_config, resolve_checkpoint
from videoxl2.errors import CheckpointMismatch, ModelError
from videoxl2.tokenizer import Tokenizer

_PUNCTUATION = str.maketrans("", "", string.punctuation)
_GELU_FACTOR = np.float32((2 / np.pi) ** 0.5)


@dataclass(frozen=True, slots=True, kw_only=True)
class TextSpec:
    """A SigLIP text tower; defaults are those of the published configurations."""

    vocab_size: int = 32000
    width: int = 768
    mlp_width: int = 3072
    num_layers: int = 12
    num_heads: int = 12
    num_positions: int = 64
    embedding_width: int = 768
    pad_id: int = 1
    layer_norm_eps: float = 1e-6

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> TextSpec:
        """Read a dual encoder's ``config.json``; fields that the publisher left at their default may be absent."""
        text = config.get("text_config", {})
        width = int(text.get("hidden_size", 768))
        return cls(
            vocab_size=int(text.get("vocab_size", 32000)),
            width=width,
            mlp_width=int(text.get("intermediate_size", 3072)),
            num_layers=int(text.get("num_hidden_layers", 12)),
            num_heads=int(text.get("num_attention_heads", 12)),
            num_positions=int(text.get("max_position_embeddings", 64)),
            embedding_width=int(text.get("projection_size") or width),
            pad_id=int(text.get("pad_token_id", 1)),
            layer_norm_eps=float(text.get("layer_norm_eps", 1e-6)),
        )


class TextEncoder:
    """Texts to search vectors."""

    def __init__(self, spec: TextSpec, arrays: Mapping[str, np.ndarray], tokenizer: Tokenizer | None = None) -> None:
        """``arrays`` are the float32 tensors under ``text_model.``, keyed by the rest of their published key."""
        self.spec = spec
        self._arrays = arrays
        self._tokenizer = tokenizer

    @classmethod
    def from_pretrained(cls, name_or_folder: str) -> TextEncoder:
        """Load the text tower of a checkpoint's ``dual_encoder`` folder, or of a SigLIP checkpoint itself."""
        folder = dual_encoder_folder(resolve_checkpoint(name_or_folder))
        spec = TextSpec.from_config(read_config(folder))
        arrays = load_arrays(folder, "text_model.")
        _check_arrays(spec, arrays, str(folder))
        return cls(spec, arrays, Tokenizer(folder))

    @property
    def embedding_width(self) -> int:
        """Numbers in one vector."""
        return self.spec.embedding_width

    def embed(self, texts: Sequence[str]) -> np.ndarray:
        """Vectors [B, E] of the texts, float32 and of unit length."""
        if isinstance(texts, str):
            raise TypeError("embed takes a list of texts")
        if not texts:
            return np.empty((0, self.embedding_width), dtype=np.float32)
        vectors_BE = self.embed_ids(np.array([self.token_ids(text) for text in texts]))
        return vectors_BE / np.maximum(np.linalg.norm(vectors_BE, axis=-1, keepdims=True), 1e-12)

    def token_ids(self, text: str) -> list[int]:
        """The T ids of a text: lower case, without punctuation, cut to fit, ended and filled with the pad id."""
        if self._tokenizer is None:
            raise ModelError("this text tower was built without a tokenizer")
        ids = self._tokenizer.encode(canonical_text(text))[: self.spec.num_positions - 1]
        return ids + [self.spec.pad_id] * (self.spec.num_positions - len(ids))

    def embed_ids(self, ids_BT: np.ndarray) -> np.ndarray:
        """Vectors [B, E] of texts given as exactly T ids each, not normalised."""
        tokens = self._arrays["embeddings.token_embedding.weight"][ids_BT]
        hidden_BTD = tokens + self._arrays["embeddings.position_embedding.weight"][: ids_BT.shape[1]]
        for layer in range(self.spec.num_layers):
            hidden_BTD = self._layer(f"encoder.layers.{layer}.", hidden_BTD)
        return self._linear("head", self._norm("final_layer_norm", hidden_BTD[:, -1]))

    def _layer(self, prefix: str, hidden_BTD: np.ndarray) -> np.ndarray:
        normed = self._norm(f"{prefix}layer_norm1", hidden_BTD)
        q, k, v = (self._heads(self._linear(f"{prefix}self_attn.{x}_proj", normed)) for x in "qkv")
        logits_BNTT = q @ k.swapaxes(2, 3) * np.float32(q.shape[3] ** -0.5)
        weights = np.exp(logits_BNTT - logits_BNTT.max(axis=-1, keepdims=True))
        attended = (weights / weights.sum(axis=-1, keepdims=True)) @ v
        B, N, T, Dh = attended.shape
        merged = attended.swapaxes(1, 2).reshape(B, T, N * Dh)
        hidden_BTD = hidden_BTD + self._linear(f"{prefix}self_attn.out_proj", merged)
        inner = _gelu_tanh(self._linear(f"{prefix}mlp.fc1", self._norm(f"{prefix}layer_norm2", hidden_BTD)))
        return hidden_BTD + self._linear(f"{prefix}mlp.fc2", inner)

    def _heads(self, x_BTD: np.ndarray) -> np.ndarray:
        B, T, D = x_BTD.shape
        return x_BTD.reshape(B, T, self.spec.num_heads, D // self.spec.num_heads).swapaxes(1, 2)

    def _linear(self, name: str, x: np.ndarray) -> np.ndarray:
        return x @ self._arrays[f"{name}.weight"].T + self._arrays[f"{name}.bias"]

    def _norm(self, name: str, x: np.ndarray) -> np.ndarray:
        centred = x - x.mean(axis=-1, keepdims=True)
        variance = np.square(centred).mean(axis=-1, keepdims=True)
        scaled = centred / np.sqrt(variance + np.float32(self.spec.layer_norm_eps))
        return scaled * self._arrays[f"{name}.weight"] + self._arrays[f"{name}.bias"]


def canonical_text(text: str) -> str:
    """Lower case, ASCII punctuation removed, white space collapsed: the form that SigLIP's text tower is trained on."""
    return re.sub(r"\s+", " ", text.lower().translate(_PUNCTUATION)).strip()


def dual_encoder_folder(folder: Path) -> Path:
    """The folder of the dual encoder that belongs to a checkpoint; ``ModelError`` where there is none."""
    if (folder / "dual_encoder" / "config.json").is_file():
        return folder / "dual_encoder"
    if "text_config" in read_config(folder):
        return folder
    raise ModelError(f"{folder} has no dual encoder: put a SigLIP checkpoint into its folder 'dual_encoder'")


def _gelu_tanh(x: np.ndarray) -> np.ndarray:
    return np.float32(0.5) * x * (1 + np.tanh(_GELU_FACTOR * (x + np.float32(0.044715) * x * x * x)))


def _check_arrays(spec: TextSpec, arrays: Mapping[str, np.ndarray], folder: str) -> None:
    """Every tensor of the tower is there in its shape."""
    D, H = spec.width, spec.mlp_width
    expected: dict[str, tuple[int, ...]] = {
        "embeddings.token_embedding.weight": (spec.vocab_size, D),
        "embeddings.position_embedding.weight": (spec.num_positions, D),
        "head.weight": (spec.embedding_width, D),
        "head.bias": (spec.embedding_width,),
    }
    norms = ["final_layer_norm"]
    for layer in range(spec.num_layers):
        prefix = f"encoder.layers.{layer}."
        norms += [f"{prefix}layer_norm1", f"{prefix}layer_norm2"]
        linears = {f"self_attn.{name}_proj": (D, D) for name in ("q", "k", "v", "out")}
        for name, shape in {**linears, "mlp.fc1": (H, D), "mlp.fc2": (D, H)}.items():
            expected[f"{prefix}{name}.weight"], expected[f"{prefix}{name}.bias"] = shape, shape[:1]
    for name in norms:
        expected[f"{name}.weight"] = expected[f"{name}.bias"] = (D,)
    missing = [key for key in expected if key not in arrays]
    misshaped = [
        (f"text_model.{key}", shape, arrays[key].shape)
        for key, shape in expected.items()
        if key in arrays and arrays[key].shape != shape
    ]
    if missing or misshaped:
        raise CheckpointMismatch(folder, [f"text_model.{key}" for key in missing], (), misshaped)
