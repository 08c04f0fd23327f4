"""Video-XL-2 inference: frames to visual tokens, chunked prefill, bi-level KV, greedy decoding.

Importing the package imports nothing heavy; each public name is loaded from its module when it is first used.
"""

from __future__ import annotations

import importlib
from typing import Any

_PUBLIC = {
    "AttentionRelevance": "relevance",
    "CheckpointInfo": "checkpoint",
    "CheckpointMismatch": "errors",
    "ChunkKV": "kv",
    "ContextOverflow": "errors",
    "EmbeddingRelevance": "relevance",
    "FingerprintMismatch": "errors",
    "FusedRelevance": "relevance",
    "GenerationSettings": "config",
    "HeaderIds": "decode",
    "ImageEncoder": "dual_encoder",
    "KVCache": "kv",
    "KVLayoutError": "errors",
    "KVLevel": "kv",
    "LevelSettings": "config",
    "ModelError": "errors",
    "ModelSpec": "config",
    "PrefillResult": "prefill",
    "PrefillSettings": "config",
    "PublishedSelection": "selection",
    "Relevance": "relevance",
    "TextEncoder": "text_tower",
    "Tokenizer": "tokenizer",
    "VideoFrames": "chat",
    "VideoXL2": "model",
    "read_checkpoint_info": "checkpoint",
    "read_selection_file": "selection",
    "resolve_checkpoint": "checkpoint",
}

__all__ = sorted(_PUBLIC)


def __getattr__(name: str) -> Any:
    if name in _PUBLIC:
        return getattr(importlib.import_module(f"{__name__}.{_PUBLIC[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *_PUBLIC})
