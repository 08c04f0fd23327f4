"""Architecture comes from config.json, with the published defaults; settings refuse what they do not know."""

from __future__ import annotations

from typing import Any

import pytest
from pydantic import ValidationError

from videoxl2.checkpoint import read_config, resolve_checkpoint
from videoxl2.config import GenerationSettings, LevelSettings, ModelSpec, PrefillSettings
from videoxl2.errors import ModelError

PUBLISHED: dict[str, Any] = {
    "model_type": "llava_qwen",
    "vocab_size": 152064,
    "hidden_size": 3584,
    "intermediate_size": 18944,
    "num_hidden_layers": 28,
    "num_attention_heads": 28,
    "num_key_value_heads": 4,
    "max_position_embeddings": 32768,
    "rms_norm_eps": 1e-6,
    "rope_theta": 1000000.0,
    "rope_scaling": None,
    "tie_word_embeddings": False,
    "eos_token_id": 151645,
    "mm_vision_tower": "google/siglip-so400m-patch14-384",
    "mm_hidden_size": 1152,
    "mm_projector_type": "mlp2x_gelu",
    "mm_spatial_pool_stride": 2,
    "mm_spatial_pool_mode": "average",
}


_SMALL_TOWER = {
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers_before_drop": 3,
    "num_attention_heads": 4,
    "image_size": 32,
    "patch_size": 8,
}


def test_fields_that_are_null_count_as_absent() -> None:
    absent = {"dts_config": None, "token_ids": None, "rope_parameters": None, "head_dim": None}
    assert ModelSpec.from_config({**PUBLISHED, **absent}) == ModelSpec.from_config(PUBLISHED)
    named = ModelSpec.from_config({**PUBLISHED, "token_ids": {"eos": None}})
    assert named.tokens.eos == (151645,)
    assert ModelSpec.from_config({**PUBLISHED, "eos_token_id": [3, 4]}).tokens.eos == (3, 4)


def test_a_tower_may_count_its_layers_before_the_last_is_dropped_only() -> None:
    spec = ModelSpec.from_config({**PUBLISHED, "vision_config": _SMALL_TOWER, "dts_config": {"channels": 64}})
    assert spec.vision.num_layers == 2


def test_published_flat_configuration() -> None:
    spec = ModelSpec.from_config(PUBLISHED)
    assert (spec.vision.width, spec.vision.num_layers, spec.vision.patch_grid) == (1152, 26, 27)
    assert (spec.dts.channels, spec.dts.grid, spec.dts.frames_per_group) == (1152, 24, 4)
    assert (spec.language.head_dim, spec.language.num_kv_heads) == (128, 4)
    assert spec.language.kv_values_per_token * 2 == 57344
    assert (spec.tokens_per_group, spec.frames_per_group) == (144, 4)
    assert spec.tokens.visual_placeholder == 151654 and spec.tokens.eos == (151645,)


@pytest.mark.parametrize("config", [PUBLISHED, read_config(resolve_checkpoint("tiny"))], ids=["published", "tiny"])
def test_written_configuration_reads_back(config: dict[str, Any]) -> None:
    spec = ModelSpec.from_config(config)
    assert ModelSpec.from_config(spec.to_config()) == spec
    assert spec.to_dict()["language"]["width"] == spec.language.width


def test_rope_parameters_of_newer_configurations() -> None:
    config = {**PUBLISHED, "rope_parameters": {"rope_theta": 5e5}}
    del config["rope_theta"]
    assert ModelSpec.from_config(config).language.rope_theta == 5e5


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"mm_vision_tower": "clip"}, "clip"),
        ({"mm_projector_type": "linear"}, "linear"),
        ({"mm_spatial_pool_mode": "sum"}, "sum"),
        ({"vision_config": {"hidden_size": 64}}, "num_hidden_layers"),
        ({"dts_config": {"channels": 64}}, "DTS channels"),
        ({"num_key_value_heads": 3}, "multiple"),
        ({"num_key_value_heads": 0}, r"language\.num_kv_heads must be at least 1"),
        ({"num_attention_heads": 0}, r"language\.num_heads"),
        ({"num_hidden_layers": 0}, r"language\.num_layers"),
        ({"head_dim": 5}, "even"),
        ({"mm_spatial_pool_stride": 0}, "pool_stride"),
        ({"mm_spatial_pool_stride": 25}, "leaves nothing"),
        ({"hidden_size": "wide"}, "another form"),
        ({"hidden_size": None}, "another form"),
        ({"hidden_act": "gelu"}, "gelu"),
        ({"use_sliding_window": True}, "sliding_window"),
        ({"eos_token_id": [1.5]}, "neither a token id"),
        ({"eos_token_id": "2"}, "neither a token id"),
        ({"vision_config": []}, "another form"),
        (
            {"vision_config": {**_SMALL_TOWER, "num_attention_heads": 5}, "dts_config": {"channels": 64}},
            "vision heads",
        ),
    ],
)
def test_unsupported_configurations_are_named(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ModelError, match=message):
        ModelSpec.from_config({**PUBLISHED, **change})


def test_a_missing_field_is_named() -> None:
    config = {key: value for key, value in PUBLISHED.items() if key != "hidden_size"}
    with pytest.raises(ModelError, match="hidden_size"):
        ModelSpec.from_config(config)


def test_settings_have_the_published_defaults_but_for_the_dense_share() -> None:
    prefill, levels = PrefillSettings(), LevelSettings()
    assert (prefill.block_groups, prefill.previous_blocks, prefill.mode) == (4, 3, "chunked")
    assert (levels.chunk_groups, levels.compression) == (6, 4)
    assert (levels.dense_first_last, levels.dense_share) == (False, 0.2), "the published rule: first, last and a number"
    assert GenerationSettings().max_new_tokens == 64


def test_settings_refuse_unknown_and_impossible_values() -> None:
    with pytest.raises(ValidationError):
        PrefillSettings.model_validate({"blocks": 4})
    with pytest.raises(ValidationError):
        PrefillSettings(previous_blocks=0)
    with pytest.raises(ValidationError):
        GenerationSettings.model_validate({"repetition_penalty": 1.05})
