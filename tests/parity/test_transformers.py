"""Tower, dual encoder and decoder against transformers, with random weights shared under the published keys."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from transformers import (
    Qwen2Config,
    Qwen2ForCausalLM,
    SiglipConfig,
    SiglipModel,
    SiglipTextConfig,
    SiglipVisionConfig,
    SiglipVisionModel,
)

from tests.parity.conftest import max_difference
from tests.parity.tolerances import NUMPY_TOWER, TRANSFORMERS
from videoxl2.checkpoint import load_arrays
from videoxl2.config import LanguageSpec, vision_spec_from_hf
from videoxl2.dual_encoder import DualEncoder, ImageEncoder, ImageTower
from videoxl2.kv import KVCache
from videoxl2.language import QwenDecoder
from videoxl2.text_tower import TextEncoder, TextSpec
from videoxl2.vision import SiglipEncoder
from videoxl2.weights import DUAL_ENCODER_TABLE, IMAGE_TOWER_TABLE, KeyTable, load_weights

SHAPES = [
    pytest.param(
        0, {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 3, "num_attention_heads": 4}, id="4h"
    ),
    pytest.param(
        1, {"hidden_size": 24, "intermediate_size": 80, "num_hidden_layers": 2, "num_attention_heads": 3}, id="3h"
    ),
]
QWEN_TABLE = KeyTable((("lm_head.", "lm_head."), ("", "model.")))


def randomise(module: nn.Module, seed: int) -> None:
    """Weights large enough that every layer matters, norms near one."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            spread = torch.empty_like(parameter).normal_(0.0, 0.2, generator=generator)
            parameter.copy_(1 + spread if "norm" in name and name.endswith("weight") else spread)


def published_folder(folder: Path, state: dict[str, Tensor]) -> Path:
    """A folder of weights under published keys. transformers 5 drops ``vision_model.`` where there is one tower."""
    folder.mkdir(exist_ok=True)
    save_file({key: value.contiguous() for key, value in state.items()}, folder / "model.safetensors")
    return folder


@pytest.mark.parametrize(("seed", "shape"), SHAPES)
def test_vision_tower(seed: int, shape: dict[str, int], tmp_path: Path) -> None:
    config = SiglipVisionConfig(**shape, image_size=50, patch_size=7, attn_implementation="sdpa")
    reference = SiglipVisionModel(config).eval()
    randomise(reference, seed)
    state = {key.removeprefix("vision_model."): value for key, value in reference.state_dict().items()}
    folder = published_folder(tmp_path / "tower", {f"vision_model.{key}": value for key, value in state.items()})
    spec = vision_spec_from_hf(config.to_dict(), num_layers=shape["num_hidden_layers"])
    tower = ImageTower(spec)
    load_weights(tower, folder, IMAGE_TOWER_TABLE, device="cpu", dtype=torch.float32)
    pixels = torch.randn(3, 3, 50, 50, generator=torch.Generator().manual_seed(seed + 10))
    with torch.no_grad():
        expected = reference(pixels, output_hidden_states=True)
        assert max_difference(tower.encoder(pixels), expected.hidden_states[-1]) <= TRANSFORMERS
        assert max_difference(tower(pixels), expected.pooler_output) <= TRANSFORMERS
        dropped = SiglipEncoder(vision_spec_from_hf(config.to_dict(), num_layers=shape["num_hidden_layers"] - 1))
        dropped.load_state_dict(tower.encoder.state_dict(), strict=False)
        assert max_difference(dropped(pixels), expected.hidden_states[-2]) <= TRANSFORMERS


@pytest.mark.parametrize(("seed", "shape"), SHAPES)
def test_dual_encoder(seed: int, shape: dict[str, int], tmp_path: Path) -> None:
    text_config = SiglipTextConfig(
        **shape, vocab_size=50, max_position_embeddings=9, projection_size=shape["hidden_size"], pad_token_id=1
    )
    vision_config = SiglipVisionConfig(**shape, image_size=32, patch_size=8)
    config = SiglipConfig(text_config=text_config.to_dict(), vision_config=vision_config.to_dict())
    reference = SiglipModel(config).eval()
    randomise(reference, seed)
    folder = published_folder(tmp_path / "dual", reference.state_dict())
    config.to_json_file(folder / "config.json", use_diff=False)

    text_spec = TextSpec.from_config(config.to_dict())
    vision_spec = vision_spec_from_hf(vision_config.to_dict(), num_layers=shape["num_hidden_layers"])
    dual = DualEncoder(vision_spec, text_spec)
    load_weights(dual, folder, DUAL_ENCODER_TABLE, device="cpu", dtype=torch.float32)
    generator = torch.Generator().manual_seed(seed + 10)
    ids = torch.randint(0, 50, (4, 9), generator=generator)
    pixels = torch.randn(3, 3, 32, 32, generator=generator)
    with torch.no_grad():
        expected = reference(input_ids=ids, pixel_values=pixels)
        logits = dual(pixels, ids)
        texts = nn.functional.normalize(dual.text(ids), dim=-1)
    assert max_difference(logits, expected.logits_per_text) <= TRANSFORMERS
    assert max_difference(texts, expected.text_embeds) <= TRANSFORMERS
    images = ImageEncoder.from_pretrained(str(folder), device="cpu").embed(pixels)
    assert max_difference(images, expected.image_embeds) <= TRANSFORMERS

    numpy_tower = TextEncoder(text_spec, load_arrays(folder, "text_model."))
    vectors = numpy_tower.embed_ids(ids.numpy())
    vectors = vectors / np.linalg.norm(vectors, axis=-1, keepdims=True)
    assert vectors.dtype == np.float32
    assert np.abs(vectors - texts.numpy()).max() <= NUMPY_TOWER


@pytest.mark.parametrize(("seed", "heads", "kv_heads", "tied"), [(0, 4, 2, False), (1, 6, 1, True), (2, 2, 2, False)])
def test_decoder(seed: int, heads: int, kv_heads: int, tied: bool, tmp_path: Path) -> None:
    config = Qwen2Config(
        vocab_size=61,
        hidden_size=8 * heads,
        intermediate_size=40,
        num_hidden_layers=3,
        num_attention_heads=heads,
        num_key_value_heads=kv_heads,
        max_position_embeddings=128,
        rope_theta=10000.0,
        rms_norm_eps=1e-6,
        tie_word_embeddings=tied,
        attn_implementation="sdpa",
    )
    reference = Qwen2ForCausalLM(config).eval()
    randomise(reference, seed)
    state = {k: v.clone() for k, v in reference.state_dict().items() if not (tied and k == "lm_head.weight")}
    folder = published_folder(tmp_path / "decoder", state)
    spec = LanguageSpec(
        vocab_size=61,
        width=8 * heads,
        mlp_width=40,
        num_layers=3,
        num_heads=heads,
        num_kv_heads=kv_heads,
        head_dim=8,
        rope_theta=10000.0,
        tied_head=tied,
    )
    decoder = QwenDecoder(spec)
    load_weights(decoder, folder, QWEN_TABLE, device="cpu", dtype=torch.float32)
    decoder.tie_head()
    ids = torch.randint(0, 61, (2, 23), generator=torch.Generator().manual_seed(seed + 10))
    with torch.no_grad():
        expected = reference(input_ids=ids).logits
        assert max_difference(decoder(decoder.embed(ids)), expected) <= TRANSFORMERS
        cache = KVCache(spec, 4)
        hidden = [decoder.extend(cache, decoder.embed(piece)) for piece in ids[0].split([5, 1, 1, 9, 7])]
        assert max_difference(decoder.logits(torch.cat(hidden)), expected[0]) <= TRANSFORMERS
        assert cache.length == 23
