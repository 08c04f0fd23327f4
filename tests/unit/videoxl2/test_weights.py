"""The published key table: one to one, at the published size, with everything that differs named."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from tests.unit.videoxl2.test_config import PUBLISHED
from videoxl2.checkpoint import resolve_checkpoint
from videoxl2.config import ModelSpec
from videoxl2.errors import CheckpointMismatch
from videoxl2.model import VideoXL2
from videoxl2.weights import load_weights, save_weights, video_table

TOWER = "model.vision_tower.vision_tower.vision_model"


def published_shapes() -> dict[str, tuple[int, ...]]:
    """Section 2.1 of the specification, at the size of the published model, without the unused keys."""
    C, H, F, V = 1152, 3584, 18944, 152064
    shapes: dict[str, tuple[int, ...]] = {
        "model.embed_tokens.weight": (V, H),
        "model.norm.weight": (H,),
        "lm_head.weight": (V, H),
        f"{TOWER}.embeddings.patch_embedding.weight": (C, 3, 14, 14),
        f"{TOWER}.embeddings.patch_embedding.bias": (C,),
        f"{TOWER}.embeddings.position_embedding.weight": (729, C),
        "model.sae.temporal_encoding": (4, C),
        "model.mm_projector.0.weight": (H, C),
        "model.mm_projector.0.bias": (H,),
        "model.mm_projector.2.weight": (H, H),
        "model.mm_projector.2.bias": (H,),
    }
    for layer in range(28):
        prefix = f"model.layers.{layer}"
        for name, rows in (("q", H), ("k", 512), ("v", 512)):
            shapes[f"{prefix}.self_attn.{name}_proj.weight"] = (rows, H)
            shapes[f"{prefix}.self_attn.{name}_proj.bias"] = (rows,)
        shapes[f"{prefix}.self_attn.o_proj.weight"] = (H, H)
        shapes[f"{prefix}.mlp.gate_proj.weight"] = shapes[f"{prefix}.mlp.up_proj.weight"] = (F, H)
        shapes[f"{prefix}.mlp.down_proj.weight"] = (H, F)
        shapes[f"{prefix}.input_layernorm.weight"] = shapes[f"{prefix}.post_attention_layernorm.weight"] = (H,)
    for layer in range(26):
        prefix = f"{TOWER}.encoder.layers.{layer}"
        for norm in ("layer_norm1", "layer_norm2"):
            shapes[f"{prefix}.{norm}.weight"] = shapes[f"{prefix}.{norm}.bias"] = (C,)
        for name in ("q_proj", "k_proj", "v_proj", "out_proj"):
            shapes[f"{prefix}.self_attn.{name}.weight"], shapes[f"{prefix}.self_attn.{name}.bias"] = (C, C), (C,)
        shapes[f"{prefix}.mlp.fc1.weight"], shapes[f"{prefix}.mlp.fc1.bias"] = (4304, C), (4304,)
        shapes[f"{prefix}.mlp.fc2.weight"], shapes[f"{prefix}.mlp.fc2.bias"] = (C, 4304), (C,)
    for stage in (0, 3):
        spatial, temporal, down = (f"model.sae.encoder.{stage + step}" for step in range(3))
        for norm in (spatial, temporal):
            shapes[f"{norm}.norm.weight"] = shapes[f"{norm}.norm.bias"] = (C,)
        for name in ("q", "k", "v", "proj_out"):
            shapes[f"{spatial}.{name}.weight"], shapes[f"{spatial}.{name}.bias"] = (C, C, 1, 1, 1), (C,)
        shapes[f"{temporal}.qkv.weight"], shapes[f"{temporal}.qkv.bias"] = (3 * C, C, 1), (3 * C,)
        shapes[f"{temporal}.relative_position_k.embeddings_table"] = (129, C)
        shapes[f"{temporal}.relative_position_v.embeddings_table"] = (129, C)
        shapes[f"{temporal}.proj_out.weight"], shapes[f"{temporal}.proj_out.bias"] = (C, C, 1), (C,)
        shapes[f"{down}.conv.weight"], shapes[f"{down}.conv.bias"] = (C, C, 3, 3, 3), (C,)
    return shapes


def test_the_published_model_maps_one_to_one() -> None:
    """Built on the meta device: 8.1 B parameters, no memory."""
    spec = ModelSpec.from_config(PUBLISHED)
    table = video_table(spec)
    with torch.device("meta"):
        model = VideoXL2(spec)
    ours = {table.to_published(name): tuple(p.shape) for name, p in model.named_parameters()}
    assert ours == published_shapes()
    assert all(table.from_published(table.to_published(name)) == name for name, _ in model.named_parameters())
    assert not list(model.buffers()), "what is not a parameter must not be part of a checkpoint"
    count = sum(parameter.numel() for parameter in model.parameters())
    assert count == sum(math.prod(shape) for shape in published_shapes().values())
    assert 8.12e9 < count < 8.13e9


@pytest.fixture
def tiny_state() -> dict[str, Tensor]:
    return load_file(resolve_checkpoint("tiny") / "model.safetensors")


def load_state(state: dict[str, Tensor], folder: Path, spec: ModelSpec) -> VideoXL2:
    save_file(state, folder / "model.safetensors")
    with torch.device("meta"):
        model = VideoXL2(spec)
    load_weights(model, folder, video_table(spec), device="cpu", dtype=torch.float32)
    return model


def test_keys_that_are_not_used_may_be_there(
    tiny_model: VideoXL2, tiny_state: dict[str, Tensor], tmp_path: Path
) -> None:
    """The last layer, the final norm and the head of the tower, and the text MLP of the evaluation code."""
    dropped = tiny_model.spec.vision.num_layers
    unused = {
        f"{TOWER}.encoder.layers.{dropped}.layer_norm1.weight": torch.zeros(64),
        f"{TOWER}.post_layernorm.weight": torch.zeros(64),
        f"{TOWER}.head.probe": torch.zeros(1, 1, 64),
        f"{TOWER}.embeddings.position_ids": torch.zeros(1, 169, dtype=torch.long),
        "model.text_mlp.0.weight": torch.zeros(2, 2),
        "model.layers.0.self_attn.rotary_emb.inv_freq": torch.zeros(16),
    }
    model = load_state({**tiny_state, **unused}, tmp_path, tiny_model.spec)
    expected = tiny_model.state_dict()
    assert all(torch.equal(value, expected[name]) for name, value in model.state_dict().items())


def test_everything_that_differs_is_named_at_once(
    tiny_model: VideoXL2, tiny_state: dict[str, Tensor], tmp_path: Path
) -> None:
    del tiny_state["model.norm.weight"]
    tiny_state["model.mm_projector.0.bias"] = torch.zeros(7)
    tiny_state["model.WindowTimeToTokenAttention.q_proj.weight"] = torch.zeros(2)
    tiny_state["visual.blocks.0.weight"] = torch.zeros(2)
    beyond = f"{TOWER}.encoder.layers.{tiny_model.spec.vision.num_layers + 1}.layer_norm1.weight"
    tiny_state[beyond] = torch.zeros(64)
    with pytest.raises(CheckpointMismatch) as caught:
        load_state(tiny_state, tmp_path, tiny_model.spec)
    assert caught.value.missing == ("model.norm.weight",)
    assert set(caught.value.surplus) == {
        "model.WindowTimeToTokenAttention.q_proj.weight",
        "visual.blocks.0.weight",
        beyond,
    }
    assert caught.value.misshaped == (("model.mm_projector.0.bias", (tiny_model.spec.language.width,), (7,)),)


def test_shards_are_read_like_one_file(tiny_model: VideoXL2, tiny_state: dict[str, Tensor], tmp_path: Path) -> None:
    keys = sorted(tiny_state)
    for index, part in enumerate((keys[::2], keys[1::2])):
        save_file({key: tiny_state[key] for key in part}, tmp_path / f"model-{index}.safetensors")
    with torch.device("meta"):
        model = VideoXL2(tiny_model.spec)
    load_weights(model, tmp_path, video_table(tiny_model.spec), device="cpu", dtype=torch.float32)
    assert torch.equal(model.language.norm.weight, tiny_model.language.norm.weight)


def test_saved_weights_load_again(tiny_model: VideoXL2, tiny_state: dict[str, Tensor], tmp_path: Path) -> None:
    save_weights(tiny_model, tmp_path / "model.safetensors", video_table(tiny_model.spec), dtype=torch.float16)
    again = load_file(tmp_path / "model.safetensors")
    assert set(again) == set(tiny_state)
    assert all(torch.equal(again[key], tiny_state[key]) for key in again)


def test_a_tied_head_is_shared_and_may_be_absent(
    tiny_model: VideoXL2, tiny_state: dict[str, Tensor], tmp_path: Path
) -> None:
    spec = ModelSpec.from_config({**tiny_model.spec.to_config(), "tie_word_embeddings": True})
    tiny_state.pop("lm_head.weight", None)
    model = load_state(tiny_state, tmp_path, spec)
    model.language.tie_head()
    assert model.language.lm_head.weight is model.language.embed_tokens.weight
