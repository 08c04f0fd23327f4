"""Write the checkpoint ``tiny`` with random weights: architecture, key names and loader of the published one, small.

    python -m videoxl2.training.make_random_checkpoint FOLDER --seed 0

Also owns the shape of ``tiny`` and its tokenizer, which training starts from. The weights carry no meaning; the scales
are those that keep activations of every layer near one, so that outputs are finite and differ from each other.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import tokenizers
import torch
from tokenizers import decoders, models, normalizers, pre_tokenizers, trainers
from torch import nn

from videoxl2.checkpoint import resolve_checkpoint
from videoxl2.config import DTSSpec, LanguageSpec, ModelSpec, TokenIds, VisionSpec
from videoxl2.dual_encoder import DualEncoder
from videoxl2.model import VideoXL2
from videoxl2.text_tower import TextSpec
from videoxl2.training.export import dual_config, write_checkpoint
from videoxl2.training.paraphrases import all_paraphrase_words
from videoxl2.training.vocabulary import training_sentences

SPECIAL_TOKENS = ("<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|vision_pad|>")
TIME_TOKENS = (
    "Time ",
    *(f".{digit}s:" for digit in range(10)),
    *(f"Time {number}" for number in range(100)),
    *(f"{digit}.0s:" for digit in range(10)),
    *(f"{number:02d}.0s:" for number in range(100)),
)
"""A timestamp of whole seconds below 10,000 is two of these; other times take some tokens more."""
_VOCAB_SIZE = 900
_ATTENTION_GAIN = 2.0
"""Random queries and keys are made larger, or attention would average everything and outputs would hardly differ."""

_SENTENCES = 40_000


def tiny_sentences() -> Iterator[str]:
    """The text that the tokenizer's merges are learned from: all that is said about rendered footage, and prompts."""
    yield from training_sentences(0, _SENTENCES)
    for word in all_paraphrase_words():
        yield from [f"a {word}", f"{word} in red"] * 60
    for name in ("gate", "street", "shop", "parking", "corridor", "yard", "door", "entrance", "hall"):
        yield from [f"\nCamera {name}, starts 2026-03-01 08:00:00 UTC:\n"] * 60
    yield from ["system\nYou are a helpful assistant.", "user\n", "assistant\n", "A", "B", "C", "D"] * 200


def tiny_tokenizer() -> tokenizers.Tokenizer:
    """The tokenizer in the package. Weights belong to it: it stays as it is while what is rendered and said changes."""
    return tokenizers.Tokenizer.from_file(str(resolve_checkpoint("tiny") / "tokenizer.json"))


def build_tokenizer(vocab_size: int = _VOCAB_SIZE) -> tokenizers.Tokenizer:
    """A byte-level BPE tokenizer of what is said today: every byte is representable and digits stand alone.

    It is how ``tiny``'s own was made, from the sentences of that day.
    """
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
    # Timestamps are what long videos pay for most: every later token sees them, and they see every earlier one.
    tokenizer.add_tokens([tokenizers.AddedToken(text, normalized=False) for text in TIME_TOKENS])
    return tokenizer


def tiny_spec(tokenizer: tokenizers.Tokenizer) -> ModelSpec:
    """The architecture of ``tiny``: 13 x 13 patches, a 12 x 12 grid, 36 visual tokens per frame group."""
    vocabulary = tokenizer.get_vocab()
    return ModelSpec(
        vision=VisionSpec(width=128, mlp_width=384, num_layers=6, num_heads=4, image_size=208, patch_size=16),
        dts=DTSSpec(channels=128, grid=12),
        language=LanguageSpec(
            vocab_size=tokenizer.get_vocab_size(),
            width=128,
            mlp_width=384,
            num_layers=6,
            num_heads=4,
            num_kv_heads=2,
            head_dim=32,
        ),
        tokens=TokenIds(
            visual_placeholder=vocabulary["<|vision_pad|>"],
            eos=tuple(sorted(vocabulary[name] for name in ("<|im_end|>", "<|endoftext|>"))),
        ),
    )


def tiny_text_spec(tokenizer: tokenizers.Tokenizer) -> TextSpec:
    """The text tower of ``tiny``'s dual encoder; its image tower has the shape of the model's own."""
    return TextSpec(
        vocab_size=tokenizer.get_vocab_size(),
        width=128,
        mlp_width=384,
        num_layers=3,
        num_heads=4,
        num_positions=32,
        embedding_width=128,
        pad_id=tokenizer.get_vocab()["<|endoftext|>"],
    )


def tiny_dual_config(tokenizer: tokenizers.Tokenizer) -> dict[str, Any]:
    """``config.json`` of the dual encoder, in the published field names."""
    return dual_config(tiny_spec(tokenizer).vision, tiny_text_spec(tokenizer))


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


def make_random_checkpoint(folder: Path, seed: int, tokenizer: tokenizers.Tokenizer | None = None) -> None:
    """Write ``tiny`` with random weights; the same seed gives the same bytes. ``tokenizer``: the packaged one."""
    tokenizer = tokenizer or tiny_tokenizer()
    model = VideoXL2(tiny_spec(tokenizer))
    dual = DualEncoder(model.spec.vision, tiny_text_spec(tokenizer))
    initialise(model, seed)
    initialise(dual, seed + 1)
    write_checkpoint(folder, model, dual, tokenizer, {"name": "tiny", "weights": "random", "seed": seed})


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description="Write the tiny checkpoint with random weights.")
    parser.add_argument("folder", type=Path)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--new-vocabulary", action="store_true", help="learn a tokenizer of what is said today")
    arguments = parser.parse_args(argv)
    tokenizer = build_tokenizer() if arguments.new_vocabulary else None
    make_random_checkpoint(arguments.folder, arguments.seed, tokenizer)


if __name__ == "__main__":
    main()
