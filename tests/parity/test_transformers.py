"""Tower, dual encoder and decoder against transformers with shared random weights, whatever the shape."""

from __future__ import annotations

import json
import random
import tempfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import tokenizers
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import models, pre_tokenizers, trainers
from torch import nn
from transformers import (
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen2Tokenizer,
    SiglipConfig,
    SiglipModel,
    SiglipTextConfig,
    SiglipVisionConfig,
    SiglipVisionModel,
)

from tests.parity.conftest import max_difference
from tests.parity.shared_weights import QWEN_TABLE, published_folder, randomise
from tests.parity.tolerances import NUMPY_TOWER, TRANSFORMERS
from videoxl2.checkpoint import load_arrays
from videoxl2.config import LanguageSpec, vision_spec_from_hf
from videoxl2.dual_encoder import DualEncoder, ImageEncoder, ImageTower
from videoxl2.kv import KVCache
from videoxl2.language import QwenDecoder
from videoxl2.text_tower import TextEncoder, TextSpec
from videoxl2.tokenizer import Tokenizer
from videoxl2.vision import SiglipEncoder
from videoxl2.weights import DUAL_ENCODER_TABLE, IMAGE_TOWER_TABLE, load_weights

SEEDED = settings(max_examples=25, deadline=None, derandomize=True)
seeds = st.integers(0, 2**20)


@dataclass(frozen=True)
class Pictures:
    """Square pictures: ``grid`` patches of ``patch`` pixels on a side, and pixels left over that nothing looks at."""

    count: int
    patch: int
    grid: int
    left_over: int

    @property
    def size(self) -> int:
        return self.patch * self.grid + min(self.left_over, self.patch - 1)

    def pixels(self, seed: int) -> torch.Tensor:
        generator = torch.Generator().manual_seed(seed)
        return torch.randn(self.count, 3, self.size, self.size, generator=generator)


pictures = st.builds(Pictures, st.integers(1, 3), st.integers(2, 7), st.integers(1, 5), st.integers(0, 6))


@st.composite
def tower_shapes(draw: st.DrawFn) -> dict[str, int]:
    heads = draw(st.integers(1, 4))
    return {
        "hidden_size": heads * draw(st.sampled_from([4, 6, 8])),
        "intermediate_size": draw(st.integers(1, 60)),
        "num_hidden_layers": draw(st.integers(1, 4)),
        "num_attention_heads": heads,
    }


@SEEDED
@given(seed=seeds, shape=tower_shapes(), frames=pictures)
def test_vision_tower(seed: int, shape: dict[str, int], frames: Pictures) -> None:
    """Hidden states with and without the last layer, and the pooled vector of the attention head."""
    config = SiglipVisionConfig(**shape, image_size=frames.size, patch_size=frames.patch, attn_implementation="sdpa")
    reference = SiglipVisionModel(config).eval()
    randomise(reference, seed)
    state = {key.removeprefix("vision_model."): value for key, value in reference.state_dict().items()}
    spec = vision_spec_from_hf(config.to_dict(), num_layers=shape["num_hidden_layers"])
    tower = ImageTower(spec)
    with tempfile.TemporaryDirectory() as folder:
        published_folder(Path(folder), {f"vision_model.{key}": value for key, value in state.items()})
        load_weights(tower, folder, IMAGE_TOWER_TABLE, device="cpu", dtype=torch.float32)
    pixels = frames.pixels(seed)
    with torch.no_grad():
        expected = reference(pixels, output_hidden_states=True)
        assert max_difference(tower.encoder(pixels), expected.hidden_states[-1]) <= TRANSFORMERS
        assert max_difference(tower(pixels), expected.pooler_output) <= TRANSFORMERS
        dropped = SiglipEncoder(vision_spec_from_hf(config.to_dict(), num_layers=shape["num_hidden_layers"] - 1))
        dropped.load_state_dict(tower.encoder.state_dict(), strict=False)
        assert max_difference(dropped(pixels), expected.hidden_states[-2]) <= TRANSFORMERS


@settings(SEEDED, max_examples=12)
@given(
    seed=seeds,
    shape=tower_shapes(),
    text=tower_shapes(),
    frames=pictures,
    texts=st.integers(1, 4),
    positions=st.integers(2, 9),
)
def test_dual_encoder(
    seed: int, shape: dict[str, int], text: dict[str, int], frames: Pictures, texts: int, positions: int
) -> None:
    """Both towers with their logits, and the numpy text tower that searching uses."""
    text_config = SiglipTextConfig(
        **text, vocab_size=50, max_position_embeddings=positions, projection_size=shape["hidden_size"], pad_token_id=1
    )
    vision_config = SiglipVisionConfig(**shape, image_size=frames.size, patch_size=frames.patch)
    config = SiglipConfig(text_config=text_config.to_dict(), vision_config=vision_config.to_dict())
    reference = SiglipModel(config).eval()
    randomise(reference, seed)
    text_spec = TextSpec.from_config(config.to_dict())
    vision_spec = vision_spec_from_hf(vision_config.to_dict(), num_layers=shape["num_hidden_layers"])
    dual = DualEncoder(vision_spec, text_spec)
    ids = torch.randint(0, 50, (texts, positions), generator=torch.Generator().manual_seed(seed))
    pixels = frames.pixels(seed)
    with tempfile.TemporaryDirectory() as name:
        folder = published_folder(Path(name), reference.state_dict())
        config.to_json_file(folder / "config.json", use_diff=False)
        load_weights(dual, folder, DUAL_ENCODER_TABLE, device="cpu", dtype=torch.float32)
        images = ImageEncoder.from_pretrained(str(folder), device="cpu").embed(pixels)
        numpy_tower = TextEncoder(text_spec, load_arrays(folder, "text_model."))
    with torch.no_grad():
        expected = reference(input_ids=ids, pixel_values=pixels)
        logits = dual(pixels, ids)
        found = nn.functional.normalize(dual.text(ids), dim=-1)
    assert max_difference(logits, expected.logits_per_text) <= TRANSFORMERS
    assert max_difference(found, expected.text_embeds) <= TRANSFORMERS
    assert max_difference(images, expected.image_embeds) <= TRANSFORMERS
    vectors = numpy_tower.embed_ids(ids.numpy())
    vectors = vectors / np.linalg.norm(vectors, axis=-1, keepdims=True)
    assert vectors.dtype == np.float32
    assert np.abs(vectors - found.numpy()).max() <= NUMPY_TOWER


@SEEDED
@given(
    seed=seeds,
    kv_heads=st.integers(1, 3),
    ratio=st.sampled_from([1, 2, 3, 7]),
    head_dim=st.sampled_from([2, 4, 8, 16]),
    layers=st.integers(1, 4),
    mlp_width=st.integers(1, 60),
    tied=st.booleans(),
    theta=st.sampled_from([1e3, 1e4, 1e6]),
    batch=st.integers(1, 3),
    pieces=st.lists(st.integers(1, 9), min_size=1, max_size=5),
)
def test_decoder(
    seed: int,
    kv_heads: int,
    ratio: int,
    head_dim: int,
    layers: int,
    mlp_width: int,
    tied: bool,
    theta: float,
    batch: int,
    pieces: list[int],
) -> None:
    """Logits of whole sequences at once, and of the first one piece by piece over a cache that grows."""
    heads, vocabulary, length = kv_heads * ratio, 31 + layers, sum(pieces)
    config = Qwen2Config(
        vocab_size=vocabulary,
        hidden_size=head_dim * heads,
        intermediate_size=mlp_width,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=kv_heads,
        max_position_embeddings=128,
        rope_parameters={"rope_type": "default", "rope_theta": theta},
        rms_norm_eps=1e-6,
        tie_word_embeddings=tied,
        attn_implementation="sdpa",
    )
    reference = Qwen2ForCausalLM(config).eval()
    randomise(reference, seed)
    state = {k: v.clone() for k, v in reference.state_dict().items() if not (tied and k == "lm_head.weight")}
    spec = LanguageSpec(
        vocab_size=vocabulary,
        width=head_dim * heads,
        mlp_width=mlp_width,
        num_layers=layers,
        num_heads=heads,
        num_kv_heads=kv_heads,
        head_dim=head_dim,
        rope_theta=theta,
        tied_head=tied,
    )
    decoder = QwenDecoder(spec)
    with tempfile.TemporaryDirectory() as folder:
        published_folder(Path(folder), state)
        load_weights(decoder, folder, QWEN_TABLE, device="cpu", dtype=torch.float32)
    decoder.tie_head()
    ids = torch.randint(0, vocabulary, (batch, length), generator=torch.Generator().manual_seed(seed))
    with torch.no_grad():
        expected = reference(input_ids=ids).logits
        scale = max(1.0, float(expected.abs().max()))
        assert max_difference(decoder(decoder.embed(ids)), expected) <= TRANSFORMERS * scale
        cache = KVCache(spec, 4)
        hidden = [decoder.extend(cache, decoder.embed(piece)) for piece in ids[0].split(pieces)]
        assert max_difference(decoder.logits(torch.cat(hidden)), expected[0]) <= TRANSFORMERS * scale
        assert cache.length == length


ADDED = ("<|endoftext|>", "<|im_start|>", "<|im_end|>", "<tool_call>", "<|vision_pad|>")
ALPHABET = "aA 'tsréüé1239\n\r\t.:,?<|>東京 e\u0301"


def write_vocabulary(folder: Path) -> int:
    """A small byte-level BPE in Qwen2's older files; the number of its tokens without the added ones."""
    raw = tokenizers.Tokenizer(models.BPE())
    raw.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    trainer = trainers.BpeTrainer(
        vocab_size=600, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False
    )
    text = "Time 12.3s: A red car stops, don't it?\n\n What's   there? 東京 über naïve"
    raw.train_from_iterator([text] * 20, trainer)
    raw.model.save(str(folder))
    return int(raw.get_vocab_size())


def test_the_older_tokenizer_files_are_read_as_transformers_reads_them(tmp_path: Path) -> None:
    """``vocab.json`` and ``merges.txt`` without ``tokenizer.json``, with the added tokens described in either way."""
    size = write_vocabulary(tmp_path)
    described = {
        str(size + place): {
            "content": text,
            "special": text.startswith("<|"),
            **dict.fromkeys(("lstrip", "normalized", "rstrip", "single_word"), False),
        }
        for place, text in enumerate(ADDED)
    }
    config = {"tokenizer_class": "Qwen2Tokenizer", "added_tokens_decoder": described, "eos_token": "<|im_end|>"}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    ours, theirs = Tokenizer(tmp_path), Qwen2Tokenizer.from_pretrained(str(tmp_path))
    (tmp_path / "tokenizer_config.json").unlink()
    (tmp_path / "added_tokens.json").write_text(json.dumps({text: size + n for n, text in enumerate(ADDED)}))
    older = Tokenizer(tmp_path)
    draw = random.Random(0)
    for _ in range(200):
        text = "".join(draw.choices(ALPHABET, k=draw.randrange(30)))
        text += draw.choice(("", draw.choice(ADDED) + "x"))
        expected = theirs(text, add_special_tokens=False)["input_ids"]
        assert ours.encode(text) == older.encode(text) == expected, text
    assert ours.eos_ids == older.eos_ids == (size, size + 2)
