"""What a checkpoint is (``ModelSpec``, read from its ``config.json``) and how it is run (the settings).

Owns the reading of the published flat configuration (``reference`` sections 1 and 2.2) and its defaults. Imports no
torch, so that the command line can read a checkpoint's shape without it. Architecture is never a setting.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

from pydantic import BaseModel, ConfigDict, Field, model_validator

from videoxl2.errors import ModelError

_SO400M = "siglip-so400m-patch14-384"
_SO400M_VISION: Mapping[str, Any] = {
    "hidden_size": 1152,
    "intermediate_size": 4304,
    "num_hidden_layers": 27,
    "num_attention_heads": 16,
    "image_size": 384,
    "patch_size": 14,
}
_PUBLISHED_PLACEHOLDER = 151654


@dataclass(frozen=True, slots=True, kw_only=True)
class VisionSpec:
    """A SigLIP image tower. ``num_layers`` counts the layers that run (for Video-XL-2 one less than the tower has)."""

    width: int
    mlp_width: int
    num_layers: int
    num_heads: int
    image_size: int
    patch_size: int
    num_channels: int = 3
    layer_norm_eps: float = 1e-6

    @property
    def patch_grid(self) -> int:
        """Patches along one side; pixels that do not fill a patch are ignored at the right and bottom."""
        return self.image_size // self.patch_size


@dataclass(frozen=True, slots=True, kw_only=True)
class DTSSpec:
    """Dynamic Token Synthesis: the module that merges one frame group."""

    channels: int
    grid: int = 24
    frames_per_group: int = 4
    norm_groups: int = 32
    norm_eps: float = 1e-6
    max_relative_position: int = 64


@dataclass(frozen=True, slots=True, kw_only=True)
class LanguageSpec:
    """A Qwen2.5 decoder."""

    vocab_size: int
    width: int
    mlp_width: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    max_positions: int = 32768
    rms_norm_eps: float = 1e-6
    rope_theta: float = 1e6
    tied_head: bool = False

    @property
    def kv_values_per_token(self) -> int:
        """Numbers that one token adds to the KV: layers x (key, value) x KV heads x head width."""
        return self.num_layers * 2 * self.num_kv_heads * self.head_dim


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenIds:
    """Token ids that the checkpoint gives a meaning: the visual placeholder and those that end an answer."""

    visual_placeholder: int = _PUBLISHED_PLACEHOLDER
    eos: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelSpec:
    """The whole architecture of one checkpoint."""

    vision: VisionSpec
    dts: DTSSpec
    language: LanguageSpec
    tokens: TokenIds
    pool_stride: int = 2
    pool_mode: Literal["average", "max"] = "average"

    def __post_init__(self) -> None:
        if self.dts.channels != self.vision.width:
            raise ModelError(f"DTS channels ({self.dts.channels}) must equal the vision width ({self.vision.width})")
        if self.dts.channels % self.dts.norm_groups:
            raise ModelError(
                f"DTS channels ({self.dts.channels}) do not divide into {self.dts.norm_groups} norm groups"
            )
        if self.dts.channels % self.dts.frames_per_group:
            raise ModelError(f"DTS channels ({self.dts.channels}) are not divisible by the frames per group")
        counts = {**_numbers_of(self.vision), **_numbers_of(self.dts), **_numbers_of(self.language)}
        if absent := [name for name, count in {**counts, "pool_stride": self.pool_stride}.items() if count < 1]:
            raise ModelError(f"{', '.join(absent)} must be at least 1")
        if self.language.num_heads % self.language.num_kv_heads:
            raise ModelError("the number of query heads is not a multiple of the number of KV heads")
        if self.vision.width % self.vision.num_heads:
            raise ModelError("the vision width does not divide into the vision heads")
        if self.language.head_dim % 2:
            raise ModelError(f"the width of a head must be even to be rotated, and is {self.language.head_dim}")
        if self.pool_stride > self.dts.grid:
            raise ModelError(f"a pooling stride of {self.pool_stride} leaves nothing of a grid of {self.dts.grid}")

    @property
    def frames_per_group(self) -> int:
        return self.dts.frames_per_group

    @property
    def tokens_per_group(self) -> int:
        """Visual tokens of one frame group after pooling."""
        return (self.dts.grid // self.pool_stride) ** 2

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> ModelSpec:
        """Read a checkpoint's ``config.json``.

        Takes the published flat configuration, where the tower is known by its name in ``mm_vision_tower`` and DTS by
        its defaults, and the sub-dictionaries ``vision_config``, ``dts_config`` and ``token_ids`` where they are given.
        ``vision_config`` counts the tower's layers before the last is dropped: ``num_hidden_layers_before_drop`` when
        it is there, else ``num_hidden_layers``. Raises ``ModelError`` naming the field that is missing or unknown.
        """
        try:
            vision = _vision_spec(config)
            return cls(
                vision=vision,
                dts=_dts_spec(config, vision),
                language=_language_spec(config),
                tokens=_token_ids(config),
                pool_stride=int(config.get("mm_spatial_pool_stride", 2)),
                pool_mode=_pool_mode(config),
            )
        except KeyError as missing:
            raise ModelError(f"config.json has no field {missing.args[0]!r}") from missing
        except (TypeError, ValueError, AttributeError, OverflowError) as unfit:
            raise ModelError(f"a field of config.json has another form: {unfit}") from unfit

    def to_config(self) -> dict[str, Any]:
        """The ``config.json`` that ``from_config`` reads back as this specification."""
        vision, dts, language = self.vision, self.dts, self.language
        return {
            "model_type": "llava_qwen",
            "vocab_size": language.vocab_size,
            "hidden_size": language.width,
            "intermediate_size": language.mlp_width,
            "num_hidden_layers": language.num_layers,
            "num_attention_heads": language.num_heads,
            "num_key_value_heads": language.num_kv_heads,
            "head_dim": language.head_dim,
            "hidden_act": "silu",
            "max_position_embeddings": language.max_positions,
            "rms_norm_eps": language.rms_norm_eps,
            "rope_theta": language.rope_theta,
            "rope_scaling": None,
            "tie_word_embeddings": language.tied_head,
            "mm_vision_tower": "siglip",
            "mm_hidden_size": vision.width,
            "mm_projector_type": "mlp2x_gelu",
            "mm_patch_merge_type": "unires",
            "mm_resampler_type": "spatial_pool",
            "mm_spatial_pool_stride": self.pool_stride,
            "mm_spatial_pool_mode": self.pool_mode,
            "mm_spatial_pool_out_channels": vision.width,
            "vision_config": {
                "hidden_size": vision.width,
                "intermediate_size": vision.mlp_width,
                "num_hidden_layers_before_drop": vision.num_layers + 1,
                "num_hidden_layers": vision.num_layers,
                "num_attention_heads": vision.num_heads,
                "image_size": vision.image_size,
                "patch_size": vision.patch_size,
                "num_channels": vision.num_channels,
                "layer_norm_eps": vision.layer_norm_eps,
            },
            "dts_config": {
                "channels": dts.channels,
                "grid": dts.grid,
                "frames_per_group": dts.frames_per_group,
                "group_norm_groups": dts.norm_groups,
                "group_norm_eps": dts.norm_eps,
                "max_relative_position": dts.max_relative_position,
            },
            "token_ids": {"visual_placeholder": self.tokens.visual_placeholder, "eos": list(self.tokens.eos)},
        }

    def to_dict(self) -> dict[str, Any]:
        """Every number of the architecture as plain nested values, for fingerprints."""
        return dataclasses.asdict(self)


def vision_spec_from_hf(config: Mapping[str, Any], *, num_layers: int) -> VisionSpec:
    """A tower from a SigLIP ``vision_config`` in the field names of the published configurations."""
    return VisionSpec(
        width=int(config["hidden_size"]),
        mlp_width=int(config["intermediate_size"]),
        num_layers=num_layers,
        num_heads=int(config["num_attention_heads"]),
        image_size=int(config["image_size"]),
        patch_size=int(config["patch_size"]),
        num_channels=int(config.get("num_channels", 3)),
        layer_norm_eps=float(config.get("layer_norm_eps", 1e-6)),
    )


_DUAL_ENCODER_DEFAULTS = {
    "hidden_size": 768,
    "intermediate_size": 3072,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "image_size": 224,
    "patch_size": 16,
}


def dual_encoder_vision(config: Mapping[str, Any]) -> VisionSpec:
    """The image tower of a dual encoder's ``config.json``, all its layers; absent fields are the published ones."""
    vision = {**_DUAL_ENCODER_DEFAULTS, **config.get("vision_config", {})}
    return vision_spec_from_hf(vision, num_layers=int(vision["num_hidden_layers"]))


@dataclass(frozen=True, slots=True, kw_only=True)
class GroupSpec:
    """The part of a dual encoder that reads visual tokens (``dual_encoder.GroupHead``): ours, no published one has it.

    It stands in the dual encoder's ``config.json`` as ``group_config``.
    """

    token_width: int
    width: int
    mlp_width: int
    num_layers: int
    num_heads: int
    embedding_width: int
    layer_norm_eps: float = 1e-6

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> GroupSpec | None:
        """What a dual encoder's ``config.json`` says of it, None where it has none."""
        group = config.get("group_config")
        if group is None:
            return None
        return cls(
            token_width=int(group["token_size"]),
            width=int(group["hidden_size"]),
            mlp_width=int(group["intermediate_size"]),
            num_layers=int(group["num_hidden_layers"]),
            num_heads=int(group["num_attention_heads"]),
            embedding_width=int(group["projection_size"]),
            layer_norm_eps=float(group.get("layer_norm_eps", 1e-6)),
        )

    def to_config(self) -> dict[str, Any]:
        """The fields of ``group_config``, named as those of the towers."""
        return {
            "token_size": self.token_width,
            "hidden_size": self.width,
            "intermediate_size": self.mlp_width,
            "num_hidden_layers": self.num_layers,
            "num_attention_heads": self.num_heads,
            "projection_size": self.embedding_width,
            "layer_norm_eps": self.layer_norm_eps,
        }


def _vision_spec(config: Mapping[str, Any]) -> VisionSpec:
    tower = config.get("vision_config")
    if tower is None:
        name = str(config["mm_vision_tower"])
        if _SO400M not in name:
            raise ModelError(f"mm_vision_tower {name!r} is not {_SO400M} and config.json has no vision_config")
        tower = _SO400M_VISION
    before_drop = tower.get("num_hidden_layers_before_drop")
    layers = int(tower["num_hidden_layers"] if before_drop is None else before_drop)
    return vision_spec_from_hf(tower, num_layers=layers - 1)


def _dts_spec(config: Mapping[str, Any], vision: VisionSpec) -> DTSSpec:
    dts = config.get("dts_config") or {}
    return DTSSpec(
        channels=int(dts.get("channels", vision.width)),
        grid=int(dts.get("grid", 24)),
        frames_per_group=int(dts.get("frames_per_group", 4)),
        norm_groups=int(dts.get("group_norm_groups", 32)),
        norm_eps=float(dts.get("group_norm_eps", 1e-6)),
        max_relative_position=int(dts.get("max_relative_position", 64)),
    )


def _language_spec(config: Mapping[str, Any]) -> LanguageSpec:
    width, num_heads = int(config["hidden_size"]), int(config["num_attention_heads"])
    rope = config.get("rope_parameters") or {}
    activation = config.get("hidden_act", "silu")
    if activation != "silu":
        raise ModelError(f"hidden_act {activation!r} is not supported (silu is)")
    if config.get("use_sliding_window"):
        raise ModelError("use_sliding_window is not supported: the published model has none")
    return LanguageSpec(
        vocab_size=int(config["vocab_size"]),
        width=width,
        mlp_width=int(config["intermediate_size"]),
        num_layers=int(config["num_hidden_layers"]),
        num_heads=num_heads,
        num_kv_heads=int(config["num_key_value_heads"]),
        head_dim=int(config.get("head_dim") or width // max(num_heads, 1)),
        max_positions=int(config.get("max_position_embeddings", 32768)),
        rms_norm_eps=float(config.get("rms_norm_eps", 1e-6)),
        rope_theta=float(config.get("rope_theta") or rope.get("rope_theta") or 1e6),
        tied_head=bool(config.get("tie_word_embeddings", False)),
    )


def _token_ids(config: Mapping[str, Any]) -> TokenIds:
    named = config.get("token_ids") or {}
    return TokenIds(
        visual_placeholder=int(named.get("visual_placeholder", _PUBLISHED_PLACEHOLDER)), eos=end_tokens(config)
    )


def end_tokens(config: Mapping[str, Any]) -> tuple[int, ...]:
    """Ids that end an answer by a ``config.json`` or ``generation_config.json``: one, a list, or none.

    Raises ``ModelError`` for what is no id.
    """
    named = (config.get("token_ids") or {}).get("eos")
    eos = config.get("eos_token_id") if named is None else named
    listed = [] if eos is None else eos if isinstance(eos, list | tuple) else [eos]
    if any(type(token) is not int for token in listed):
        raise ModelError(f"eos_token_id {eos!r} is neither a token id nor a list of them")
    return tuple(listed)


def _numbers_of(spec: VisionSpec | DTSSpec | LanguageSpec) -> dict[str, int]:
    """The whole numbers of a part of the architecture by their names; all of them count something."""
    part = type(spec).__name__.removesuffix("Spec").lower()
    values = dataclasses.asdict(spec)
    return {f"{part}.{name}": value for name, value in values.items() if type(value) is int}


def _pool_mode(config: Mapping[str, Any]) -> Literal["average", "max"]:
    projector = config.get("mm_projector_type", "mlp2x_gelu")
    if projector != "mlp2x_gelu":
        raise ModelError(f"mm_projector_type {projector!r} is not supported (mlp2x_gelu is)")
    mode = config.get("mm_spatial_pool_mode", "average")
    if mode not in ("average", "max"):
        raise ModelError(f"mm_spatial_pool_mode {mode!r} is neither 'average' nor 'max'")
    return mode


class _Settings(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class PrefillSettings(_Settings):
    """How a video is prefilled (``reference`` section 4); the defaults are the published ones."""

    block_groups: int = Field(default=4, ge=1, description="Frame groups in one prefill block.")
    previous_blocks: int = Field(default=3, ge=1, description="Earlier blocks that visual tokens of a block see whole.")
    mode: Literal["chunked", "bounded", "plain"] = Field(
        default="chunked",
        description="chunked: visual tokens see the block window above, timestamp tokens everything earlier, as "
        "published; bounded: timestamp tokens see the window too; plain: every token sees everything earlier.",
    )
    timestamp_groups: int | None = Field(
        default=None,
        ge=0,
        description="Frame groups before the window whose timestamps are seen in the bounded mode; None: all of them.",
    )
    max_tokens: int | None = Field(
        default=None, ge=1, description="Longest sequence in tokens; None takes the checkpoint's position limit."
    )

    @model_validator(mode="after")
    def _timestamps_are_limited_in_bounded_mode_only(self) -> PrefillSettings:
        if self.timestamp_groups is not None and self.mode != "bounded":
            raise ValueError(f"timestamp_groups has no effect in mode {self.mode!r}; it needs mode 'bounded'")
        return self


RelevanceKind: TypeAlias = Literal["embedding", "attention", "fused"]
"""How chunks are scored for a question: by similarity of pictures, by the model's own attention, or by both."""


class LevelSettings(_Settings):
    """How much of each chunk is loaded to answer a question (``reference`` section 5).

    Published: first and last chunk and a few more, whatever the length. A short video is then dense all over, so the
    default here is a share of the chunks, without first and last unless they are among the best (``docs/model.md``).
    """

    chunk_groups: int = Field(default=6, ge=1, description="Frame groups in one chunk.")
    compression: int = Field(default=4, ge=1, description="Visual tokens pooled into one in sparse KV.")
    dense_first_last: bool = Field(default=False, description="Always take the first and the last chunk dense.")
    max_dense_chunks: int = Field(default=8, ge=0, description="Highest-scoring chunks that are taken dense.")
    dense_share: float | None = Field(
        default=0.2,
        gt=0,
        le=1,
        description="Highest-scoring chunks that are taken dense as a share of those looked at, rounded up; never more "
        "than max_dense_chunks. None: max_dense_chunks alone.",
    )
    neighbours: int = Field(
        default=0, ge=0, description="Chunks on either side of a highest-scoring one that are taken dense with it."
    )

    def num_best(self, num_chunks: int) -> int:
        """How many of ``num_chunks`` chunks at most are dense for their score, apart from first, last and neighbours.

        With a share and any chunk, and unless ``max_dense_chunks`` is 0, it is at least one.
        """
        if self.dense_share is None:
            return min(self.max_dense_chunks, num_chunks)
        # Rounded first: 0.1 of 30 chunks is 3.0000000000000004 in binary, and still three chunks.
        wanted = math.ceil(round(self.dense_share * num_chunks, 9))
        return min(self.max_dense_chunks, max(wanted, min(1, num_chunks)))


class GenerationSettings(_Settings):
    """How an answer is generated; the default is greedy without repetition penalty, as in the published evaluation."""

    max_new_tokens: int = Field(default=64, ge=1, description="Longest answer in tokens.")
    temperature: float = Field(default=0.0, ge=0, description="0: the likeliest token; above: sampling, flatter.")
    top_p: float = Field(
        default=1.0, gt=0, le=1, description="Sampling keeps the likeliest tokens that make up this probability."
    )
    seed: int = Field(default=0, ge=0, description="Seed of sampling; without effect at temperature 0.")
    option_orders: bool = Field(
        default=False,
        description="Ask a question with lettered options in every cyclic order of them, and one whose options are "
        "times for the likeliest of these (at temperature 0).",
    )
