"""Recorded clips and a model that are small enough to train in a test."""

from __future__ import annotations

from pathlib import Path

import pytest

from videoxl2.checkpoint import resolve_checkpoint
from videoxl2.config import DTSSpec, LanguageSpec, ModelSpec, TokenIds, VisionSpec
from videoxl2.text_tower import TextSpec
from videoxl2.tokenizer import Tokenizer
from videoxl2.training.recordings import record_many

IMAGE_SIZE, GRID = 96, 6


@pytest.fixture(scope="session")
def tokenizer() -> Tokenizer:
    return Tokenizer(resolve_checkpoint("tiny"))


@pytest.fixture(scope="session")
def small_spec(tokenizer: Tokenizer) -> ModelSpec:
    return ModelSpec(
        vision=VisionSpec(width=32, mlp_width=48, num_layers=2, num_heads=2, image_size=IMAGE_SIZE, patch_size=16),
        dts=DTSSpec(channels=32, grid=GRID),
        language=LanguageSpec(
            vocab_size=tokenizer.vocab_size,
            width=32,
            mlp_width=64,
            num_layers=2,
            num_heads=2,
            num_kv_heads=1,
            head_dim=16,
        ),
        tokens=TokenIds(visual_placeholder=tokenizer.token_id("<|vision_pad|>"), eos=tokenizer.eos_ids),
    )


@pytest.fixture(scope="session")
def small_text(tokenizer: Tokenizer) -> TextSpec:
    return TextSpec(
        vocab_size=tokenizer.vocab_size,
        width=32,
        mlp_width=48,
        num_layers=1,
        num_heads=2,
        num_positions=24,
        embedding_width=32,
        pad_id=tokenizer.token_id("<|endoftext|>"),
    )


@pytest.fixture(scope="session")
def clips(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three clips for training and one for validation."""
    folder = tmp_path_factory.mktemp("clips")
    assert record_many(folder, "train", range(3), image_size=IMAGE_SIZE, grid=GRID) == 3
    assert record_many(folder, "validation", range(1), image_size=IMAGE_SIZE, grid=GRID) == 1
    return folder
