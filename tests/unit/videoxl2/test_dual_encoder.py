"""Search vectors: unit length, one space for image and text, texts in their canonical form."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from videoxl2.checkpoint import resolve_checkpoint
from videoxl2.dual_encoder import ImageEncoder
from videoxl2.errors import CheckpointMismatch, ModelError
from videoxl2.model import VideoXL2
from videoxl2.text_tower import TextEncoder, canonical_text


@pytest.fixture(scope="module")
def text_encoder() -> TextEncoder:
    return TextEncoder.from_pretrained("tiny")


def test_images_and_texts_share_a_space(text_encoder: TextEncoder) -> None:
    images = ImageEncoder.from_pretrained("tiny", device="cpu")
    side, width = images.image_size, images.embedding_width
    assert side > 0 and width == text_encoder.embedding_width
    pixels = torch.rand(20, 3, side, side, generator=torch.Generator().manual_seed(0)) * 2 - 1
    vectors = images.embed(pixels)
    assert vectors.shape == (20, width) and vectors.dtype == torch.float32
    torch.testing.assert_close(vectors.norm(dim=1), torch.ones(20))
    torch.testing.assert_close(images.embed(pixels[7:8]), vectors[7:8], atol=1e-5, rtol=0)
    with pytest.raises(ValueError, match="pixels are"):
        images.embed(pixels[:, :, : side // 2])


def test_texts_are_unit_vectors_independent_of_their_batch(text_encoder: TextEncoder) -> None:
    vectors = text_encoder.embed(["a red car", "a person walks along the fence"])
    assert vectors.shape == (2, text_encoder.embedding_width) and vectors.dtype == np.float32
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1.0, atol=1e-5)
    np.testing.assert_allclose(text_encoder.embed(["a red car"])[0], vectors[0], atol=1e-6)
    assert float(vectors[0] @ vectors[1]) < 0.999
    assert text_encoder.embed([]).shape == (0, text_encoder.embedding_width)
    with pytest.raises(TypeError, match="list"):
        text_encoder.embed("a red car")


def test_canonical_form() -> None:
    assert canonical_text("  A Red\tCar, (parked)! ") == "a red car parked"


def test_texts_are_cut_and_filled(text_encoder: TextEncoder) -> None:
    spec = text_encoder.spec
    ids = text_encoder.token_ids("a red car")
    assert len(ids) == spec.num_positions and ids[-1] == spec.pad_id
    long = text_encoder.token_ids("car " * 500)
    assert len(long) == spec.num_positions and long[-1] == spec.pad_id and long[-2] != spec.pad_id
    assert text_encoder.token_ids("<|endoftext|>") != [spec.pad_id] * spec.num_positions


def test_a_checkpoint_without_a_dual_encoder_says_so(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "llava_qwen"}))
    for load in (TextEncoder.from_pretrained, ImageEncoder.from_pretrained):
        with pytest.raises(ModelError, match="dual_encoder"):
            load(str(tmp_path))


def test_text_weights_of_another_shape_are_named(tmp_path: Path) -> None:
    folder = tmp_path / "dual"
    shutil.copytree(resolve_checkpoint("tiny") / "dual_encoder", folder)
    config = json.loads((folder / "config.json").read_text())
    config["text_config"]["num_hidden_layers"] = 4
    config["text_config"]["vocab_size"] += 1
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(CheckpointMismatch) as caught:
        TextEncoder.from_pretrained(str(folder))
    assert "text_model.encoder.layers.3.layer_norm1.weight" in caught.value.missing
    assert caught.value.misshaped[0][0] == "text_model.embeddings.token_embedding.weight"


def test_a_tower_with_the_same_weights_is_run_once() -> None:
    model, encoder = VideoXL2.from_pretrained("tiny"), ImageEncoder.from_pretrained("tiny")
    pixels = torch.rand(6, 3, encoder.image_size, encoder.image_size) * 2 - 1
    model.vision.load_state_dict(encoder._tower.encoder.state_dict())
    assert encoder.has_tower(model.vision)
    features: list[torch.Tensor] = []
    tokens = model.encode_frames(pixels, batch_groups=1, on_features=features.append)
    torch.testing.assert_close(tokens, model.encode_frames(pixels))
    vectors = encoder.embed_features(torch.cat(features))
    torch.testing.assert_close(vectors, encoder.embed(pixels))
    with torch.no_grad():
        model.vision.position_embedding.weight[0, 0] += 1.0
    assert not encoder.has_tower(model.vision)
