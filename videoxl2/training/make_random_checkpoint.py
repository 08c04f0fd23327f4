"""Write the checkpoint ``tiny`` with random weights: architecture, key names and loader of the published one, small.

    python -m videoxl2.training.make_random_checkpoint FOLDER --seed 0

Also owns the shape of ``tiny`` and its tokenizer, which training starts from. The weights carry no meaning; the scales
are those that keep activations of every layer near one, so that outputs are finite and differ from each other.
"""

from __future__ import annotations

import argparse
import itertools
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import tokenizers
import torch
from tokenizers import decoders, models, normalizers, pre_tokenizers, trainers
from torch import nn

from videoxl2.config import DTSSpec, LanguageSpec, ModelSpec, TokenIds, VisionSpec, vision_spec_from_hf
from videoxl2.dual_encoder import DualEncoder
from videoxl2.model import VideoXL2
from videoxl2.text_tower import TextSpec
from videoxl2.weights import DUAL_ENCODER_TABLE, save_weights, video_table

SPECIAL_TOKENS = ("<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|vision_pad|>")
_VOCAB_SIZE = 640
_ATTENTION_GAIN = 2.0
"""Random queries and keys are made larger, or attention would average everything and outputs would hardly differ."""

_COLOURS = ("red", "blue", "green", "white", "black", "yellow", "grey", "orange")
_THINGS = ("car", "van", "truck", "bus", "bicycle", "person", "man", "woman", "child", "dog", "bag", "box")
_ACTIONS = (
    "enters from the left",
    "leaves to the right",
    "stops at the gate",
    "walks along the fence",
    "runs across the yard",
    "turns around and goes back",
    "leaves a bag near the door",
    "parks beside the wall",
    "drives through the entrance",
    "stands still for a while",
    "carries a box",
    "opens the door",
)
_QUESTIONS = (
    "What happens at the gate after midnight?",
    "How many people are there in the video?",
    "When does the {colour} {thing} appear?",
    "Which camera shows a {colour} {thing}?",
    "Does anyone leave a bag behind?",
    "What colour is the {thing}?",
    "Describe what the {thing} does.",
    "Is there anything unusual?",
)


def tiny_sentences() -> Iterator[str]:
    """The text that the tokenizer's merges are learned from."""
    for colour, thing, action in itertools.product(_COLOURS, _THINGS, _ACTIONS):
        yield f"A {colour} {thing} {action}."
    for question, colour, thing in itertools.product(_QUESTIONS, _COLOURS, _THINGS):
        yield question.format(colour=colour, thing=thing)
    for name in ("gate", "yard", "door", "parking", "entrance", "hall"):
        yield f"Camera {name}, starting at 2026-03-01 08:00:00 UTC."
        yield f"Nothing happens at the {name}. No one is there. Yes, at the {name}. Time 0.0s: Time 12.5s:"
    yield from ["system\nYou are a helpful assistant.", "user\n", "assistant\n"] * 50


def build_tokenizer(vocab_size: int = _VOCAB_SIZE) -> tokenizers.Tokenizer:
    """A byte-level BPE tokenizer: every byte is representable and digits stand alone."""
    tokenizer = tokenizers.Tokenizer(models.BPE())
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size - len(SPECIAL_TOKENS),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(tiny_sentences(), trainer)
    tokenizer.add_special_tokens(list(SPECIAL_TOKENS))
    return tokenizer


def tiny_spec(tokenizer: tokenizers.Tokenizer) -> ModelSpec:
    """The architecture of ``tiny``: 13 x 13 patches, a 12 x 12 grid, 36 visual tokens per frame group."""
    vocabulary = tokenizer.get_vocab()
    return ModelSpec(
        vision=VisionSpec(width=64, mlp_width=256, num_layers=3, num_heads=4, image_size=208, patch_size=16),
        dts=DTSSpec(channels=64, grid=12),
        language=LanguageSpec(
            vocab_size=tokenizer.get_vocab_size(),
            width=128,
            mlp_width=384,
            num_layers=4,
            num_heads=4,
            num_kv_heads=2,
            head_dim=32,
        ),
        tokens=TokenIds(
            visual_placeholder=vocabulary["<|vision_pad|>"],
            eos=tuple(sorted(vocabulary[name] for name in ("<|im_end|>", "<|endoftext|>"))),
        ),
    )


def tiny_dual_config(tokenizer: tokenizers.Tokenizer) -> dict[str, Any]:
    """``config.json`` of the dual encoder, in the published field names."""
    shared = {"hidden_size": 64, "intermediate_size": 256, "num_hidden_layers": 3, "num_attention_heads": 4}
    pad = tokenizer.token_to_id("<|endoftext|>")
    return {
        "model_type": "siglip",
        "vision_config": {**shared, "image_size": 208, "patch_size": 16, "num_channels": 3, "layer_norm_eps": 1e-6},
        "text_config": {
            **shared,
            "vocab_size": tokenizer.get_vocab_size(),
            "max_position_embeddings": 64,
            "projection_size": 64,
            "pad_token_id": pad,
            "eos_token_id": pad,
            "layer_norm_eps": 1e-6,
        },
    }


def initialise(module: nn.Module, seed: int) -> None:
    """Fill every parameter from ``seed``: norms and scales one, biases small, matrices by their fan-in."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            if name.endswith("norm.weight") or "norm1.weight" in name or "norm2.weight" in name:
                parameter.fill_(1.0)
            elif name == "logit_scale":
                parameter.fill_(2.3026)
            elif name == "logit_bias":
                parameter.fill_(-10.0)
            elif name.endswith("bias"):
                parameter.normal_(0.0, 0.02, generator=generator)
            elif any(part in name for part in ("position_embedding", "temporal_encoding", "embeddings_table")):
                parameter.normal_(0.0, 0.1, generator=generator)
            elif any(part in name for part in ("embed_tokens", "token_embedding", "probe")):
                parameter.normal_(0.0, 1.0, generator=generator)
            else:
                gain = _ATTENTION_GAIN if name.endswith(("q_proj.weight", "k_proj.weight")) else 1.0
                parameter.normal_(0.0, gain * parameter[0].numel() ** -0.5, generator=generator)


def write_checkpoint(
    folder: Path, model: VideoXL2, dual: DualEncoder, tokenizer: tokenizers.Tokenizer, card: dict[str, Any]
) -> None:
    """Write a whole checkpoint folder in half precision. ``card`` needs ``name`` and ``weights``."""
    dual_folder = folder / "dual_encoder"
    dual_folder.mkdir(parents=True, exist_ok=True)
    _write_json(folder / "config.json", model.spec.to_config())
    _write_json(folder / "card.json", card)
    _write_json(dual_folder / "config.json", tiny_dual_config(tokenizer))
    for target in (folder, dual_folder):
        tokenizer.save(str(target / "tokenizer.json"), pretty=False)
    save_weights(model, folder / "model.safetensors", video_table(model.spec), dtype=torch.float16)
    save_weights(dual, dual_folder / "model.safetensors", DUAL_ENCODER_TABLE, dtype=torch.float16)


def make_random_checkpoint(folder: Path, seed: int) -> None:
    """Write ``tiny`` with random weights; the same seed gives the same bytes."""
    tokenizer = build_tokenizer()
    config = tiny_dual_config(tokenizer)
    model = VideoXL2(tiny_spec(tokenizer))
    vision = vision_spec_from_hf(config["vision_config"], num_layers=config["vision_config"]["num_hidden_layers"])
    dual = DualEncoder(vision, TextSpec.from_config(config))
    initialise(model, seed)
    initialise(dual, seed + 1)
    write_checkpoint(folder, model, dual, tokenizer, {"name": "tiny", "weights": "random", "seed": seed})


def _write_json(path: Path, document: dict[str, Any]) -> None:
    path.write_text(json.dumps(document, indent=2) + "\n", encoding="utf-8")


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description="Write the tiny checkpoint with random weights.")
    parser.add_argument("folder", type=Path)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args(argv)
    make_random_checkpoint(arguments.folder, arguments.seed)


if __name__ == "__main__":
    main()
