"""A checkpoint folder out of modules: weights under their published names, configurations, tokenizer, model card.

Owns what of a checkpoint does not depend on its shape, and the model card of a trained run. ``from_pretrained`` reads
what is written here. Weights are stored in half precision.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import tokenizers
import torch
from torch import nn

from videoxl2.config import GroupSpec, VisionSpec
from videoxl2.dual_encoder import DualEncoder
from videoxl2.errors import ModelError
from videoxl2.model import VideoXL2
from videoxl2.text_tower import TextSpec
from videoxl2.weights import DUAL_ENCODER_TABLE, save_weights, video_table

DATA = (
    "Rendered footage only (videoxl2.training): drawn scenes of five kinds of fixed cameras, with exact labels, "
    "questions and search texts made from them. No recorded footage, no text and no weights from elsewhere."
)
NOTICE = "small, and trained on rendered footage only: take its answers about real footage as guesses"
LIMITS = (
    "Knows drawn people, cars, vans, bicycles, dogs and bags in plain colours, and a dozen actions; real footage looks "
    "different.",
    "Understands English questions of the kinds it was trained on; other wordings may be answered wrongly.",
    "Looks at one frame per second: what is shorter than a second or smaller than a few pixels is missed.",
    "An answer is a guess of a small model. It gives no sign when it is wrong: look at the evidence.",
)


def dual_config(vision: VisionSpec, text: TextSpec, group: GroupSpec | None = None) -> dict[str, Any]:
    """``config.json`` of a dual encoder of these parts, in the published field names (``group_config`` is ours)."""
    towers: dict[str, Any] = {
        "model_type": "siglip",
        "vision_config": {
            "hidden_size": vision.width,
            "intermediate_size": vision.mlp_width,
            "num_hidden_layers": vision.num_layers,
            "num_attention_heads": vision.num_heads,
            "image_size": vision.image_size,
            "patch_size": vision.patch_size,
            "num_channels": vision.num_channels,
            "layer_norm_eps": vision.layer_norm_eps,
        },
        "text_config": {
            "hidden_size": text.width,
            "intermediate_size": text.mlp_width,
            "num_hidden_layers": text.num_layers,
            "num_attention_heads": text.num_heads,
            "vocab_size": text.vocab_size,
            "max_position_embeddings": text.num_positions,
            "projection_size": text.embedding_width,
            "pad_token_id": text.pad_id,
            "eos_token_id": text.pad_id,
            "layer_norm_eps": text.layer_norm_eps,
        },
    }
    return towers if group is None else {**towers, "group_config": group.to_config()}


def write_checkpoint(
    folder: Path, model: VideoXL2, dual: DualEncoder, tokenizer: tokenizers.Tokenizer, card: Mapping[str, Any]
) -> None:
    """Write a whole checkpoint folder in half precision. ``card`` needs ``name`` and ``weights``.

    Configurations follow the modules as they are. Raises ``ModelError`` where a weight is not finite in half precision;
    nothing is written then.
    """
    _check_half(model, "the model")
    _check_half(dual, "the dual encoder")
    dual_folder = folder / "dual_encoder"
    dual_folder.mkdir(parents=True, exist_ok=True)
    _write_json(folder / "config.json", model.spec.to_config())
    _write_json(folder / "card.json", card)
    group = None if dual.group is None else dual.group.spec
    _write_json(dual_folder / "config.json", dual_config(dual.image.encoder.spec, dual.text.spec, group))
    for target in (folder, dual_folder):
        tokenizer.save(str(target / "tokenizer.json"), pretty=False)
    save_weights(model, folder / "model.safetensors", video_table(model.spec), dtype=torch.float16)
    save_weights(dual, dual_folder / "model.safetensors", DUAL_ENCODER_TABLE, dtype=torch.float16)


def model_card(
    name: str, model: VideoXL2, dual: DualEncoder, clips: Mapping[str, int], stages: Iterable[Mapping[str, Any]]
) -> dict[str, Any]:
    """``card.json`` of trained weights.

    ``clips`` counts the recorded clips of each split. ``stages`` are what the stages report of themselves (stage,
    steps, seed, seconds of wall time, device, validation figures); what nobody recorded is null.
    """
    parts = {part: _num_parameters(model.get_submodule(part)) for part in ("vision", "dts", "projector", "language")}
    return {
        "name": name,
        "weights": "trained",
        "notice": NOTICE,
        "dtype": "float16",
        "data": {"description": DATA, "clips": dict(clips)},
        "parameters": {**parts, "dual_encoder": _num_parameters(dual)},
        "training": [dict(stage) for stage in stages],
        "limits": list(LIMITS),
    }


def _num_parameters(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def _check_half(module: nn.Module, what: str) -> None:
    """Half precision holds numbers up to 65504; a weight beyond that would be stored as infinity."""
    for name, parameter in module.named_parameters():
        if not bool(torch.isfinite(parameter.detach().to(torch.float16)).all()):
            raise ModelError(f"{name} of {what} is not finite in half precision")


def _write_json(path: Path, document: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(document, indent=2) + "\n", encoding="utf-8")
