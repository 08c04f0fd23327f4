"""Settings of the whole system: composed here once, read from file and environment here only.

Sections are defined beside the component they configure; functions take the narrow section they need. Precedence:
explicit argument, ``VXL_*`` variable, the TOML file named by ``--config`` or ``VXL_CONFIG``, the default. The model's
architecture is no setting: it comes from the checkpoint.
"""

from __future__ import annotations

import os
import tomllib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from pipeline.decode_worker import DecodeSettings
from pipeline.errors import ConfigError
from pipeline.s3 import S3Settings
from videoxl2.config import LevelSettings, PrefillSettings, RelevanceKind


class IngestSettings(BaseModel):
    """What is sampled from a video and how it is cut: part of the archive's fingerprint, all but ``codec``."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    fps: float = Field(1.0, gt=0, le=60, description="frames sampled per second of media time")
    segment_s: float | None = Field(600.0, ge=0, description="seconds per segment; 0 = one segment per video")
    prefill: PrefillSettings = Field(default_factory=PrefillSettings)
    levels: LevelSettings = Field(default_factory=LevelSettings)
    codec: Literal["exact", "int8", "int4"] = Field(
        "exact",
        description="how the dense KV of newly indexed segments is stored: exact, or about half (int8) or three tenths "
        "(int4) of bfloat16's bytes at a loss",
    )

    @field_validator("segment_s")
    @classmethod
    def _zero_is_the_whole_video(cls, value: float | None) -> float | None:
        return value or None

    @model_validator(mode="after")
    def _segment_holds_whole_groups(self) -> IngestSettings:
        if self.segment_s is not None and self.segment_s * self.fps < 4:
            raise ValueError(
                f"segment_s={self.segment_s} at fps={self.fps} holds less than one frame group of 4 frames"
            )
        return self


class RunnerSettings(BaseModel):
    """Where stages run."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    kind: str = Field("local", pattern="^(local|ray)$", description="local: in this process; ray: actors")
    workers: int = Field(1, ge=1, le=1024, description="actors (ray); the local runner always has one worker")
    max_attempts: int = Field(2, ge=1, le=10, description="attempts at a video whose decoder or worker dies")
    ray_address: str | None = Field(None, description="Ray cluster to join; none starts one on this machine")
    num_gpus: float | None = Field(None, ge=0, description="GPUs per actor; none = 1 where the cluster has any, else 0")
    num_cpus: float = Field(1.0, gt=0, description="CPU cores per actor")
    accelerator_type: str | None = Field(None, description="Ray accelerator type, for example A100; needs num_gpus > 0")
    torch_threads: int | None = Field(None, ge=1, description="CPU threads of the model per worker; none = torch's own")
    start_timeout_s: float = Field(120.0, gt=0, description="seconds until an actor must have loaded its model")
    silence_timeout_s: float = Field(
        3600.0, gt=0, description="seconds without any sign from an actor at work before it is replaced"
    )


class RetentionRule(BaseModel):
    """What footage keeps once it has reached an age."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    after_days: float = Field(ge=0, description="age of the footage in days, by its wall clock")
    keep: Literal["int8", "int4", "tokens", "none", "nothing"] = Field(
        description="dense KV as int8 or int4; tokens: projected tokens, from which a question makes dense KV again "
        "without the video; none: sparse KV only; nothing: the video is expired, all of it removed"
    )
    camera: str | None = Field(None, description="for this camera only, instead of the rules for all cameras")


def rules_for(camera: str | None, rules: Sequence[RetentionRule]) -> list[RetentionRule]:
    """The rules that a camera's footage goes by: its own where it has any, else those for all cameras."""
    own = [rule for rule in rules if camera is not None and rule.camera == camera]
    return own or [rule for rule in rules if rule.camera is None]


class StorageSettings(BaseModel):
    """How much KV is kept. May change at any time; decides no byte of what is kept exactly."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    max_kv_bytes: int | None = Field(
        None,
        ge=0,
        description="most bytes of files of dense KV and tokens; the coldest segments are demoted before more is "
        "written",
    )
    keep_tokens: bool = Field(
        False,
        description="keep the projected tokens of newly indexed segments beside their dense KV, so that demotion can "
        "fall back to them; cameras with a retention rule that keeps tokens keep them in any case",
    )
    pins: tuple[str, ...] = Field((), description="cameras and video addresses whose dense KV is never demoted")
    static_motion: float | None = Field(
        None, ge=0, le=1, description="chunks whose motion is at most this keep sparse KV only; unset = all keep dense"
    )
    retention: tuple[RetentionRule, ...] = Field(
        (), description="rules by age and camera for vxl retention, each a [[storage.retention]] table"
    )

    def keeps_tokens(self, camera: str | None) -> bool:
        """Whether segments of a camera that are indexed now keep their projected tokens."""
        return self.keep_tokens or any(rule.keep == "tokens" for rule in rules_for(camera, self.retention))

    @property
    def may_keep_tokens(self) -> bool:
        """Whether segments of any camera do."""
        return self.keep_tokens or any(rule.keep == "tokens" for rule in self.retention)


class QuerySettings(BaseModel):
    """How questions are answered."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    limit: int = Field(10, ge=1, le=1000, description="moments returned by a search")
    max_context_tokens: int = Field(24_000, ge=256, description="most tokens assembled for one question")
    max_segments: int = Field(6, ge=1, description="most segments whose KV joins one context")
    max_citations: int = Field(5, ge=1, description="citations per answer")
    relevance: RelevanceKind = Field(
        "embedding",
        description="what chooses the chunks with full KV: embedding (how similar pictures are to the question), "
        "attention (what the model looks at in the pooled KV), fused (both)",
    )
    max_new_tokens: int = Field(64, ge=1, le=4096, description="longest answer in tokens")
    option_orders: bool = Field(
        True,
        description="ask a question with lettered options in every cyclic order of them over the same KV, and one "
        "whose options are times without these for the likeliest of them, so that an option's letter and place decide "
        "nothing",
    )
    layer_bands: int = Field(
        4,
        ge=1,
        description="rounds in which stored KV is read, first layers first, so that the question goes through these "
        "while later ones arrive; 1 = whole chunks",
    )


class Settings(BaseModel):
    """Everything that can be set, composed once."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    archive: str | None = Field(None, description="address of the archive")
    model: str = Field("tiny", description="packaged model, checkpoint folder or Hub id")
    device: str | None = Field(None, description="cpu, cuda or cuda:N; unset = GPU where there is one")
    dtype: Literal["float32", "float16", "bfloat16"] | None = Field(
        None, description="number type of a new archive's KV; unset = float32 on a CPU, bfloat16 on a GPU"
    )
    ingest: IngestSettings = Field(default_factory=IngestSettings)
    decode: DecodeSettings = Field(default_factory=DecodeSettings)
    s3: S3Settings = Field(default_factory=S3Settings)
    runner: RunnerSettings = Field(default_factory=RunnerSettings)
    storage: StorageSettings = Field(default_factory=StorageSettings)
    query: QuerySettings = Field(default_factory=QuerySettings)


_ENVIRONMENT = {
    "VXL_ARCHIVE": "archive",
    "VXL_MODEL": "model",
    "VXL_DEVICE": "device",
    "VXL_CODEC": "ingest.codec",
}


def load_settings(
    config: str | Path | None = None,
    overrides: Mapping[str, Any] | None = None,
    environ: Mapping[str, str] | None = None,
) -> Settings:
    """Settings from defaults, file, environment and explicit overrides, in rising precedence.

    ``overrides`` uses dotted names (``{"ingest.fps": 2.0}``); entries that are ``None`` are "not given".
    Raises ``ConfigError`` naming the file or field that is wrong.
    """
    environ = os.environ if environ is None else environ
    path = config or environ.get("VXL_CONFIG")
    values: dict[str, Any] = {}
    if path:
        try:
            values = tomllib.loads(Path(path).read_text(encoding="utf-8"))
        except OSError as exc:
            raise ConfigError(f"cannot read the settings file {str(path)!r}: {exc.strerror}") from exc
        except (tomllib.TOMLDecodeError, UnicodeDecodeError) as exc:
            raise ConfigError(f"the settings file {str(path)!r} is not valid TOML: {exc}") from exc
    given = {field: environ[name] for name, field in _ENVIRONMENT.items() if environ.get(name)}
    given.update({dotted: value for dotted, value in (overrides or {}).items() if value is not None})
    for dotted, value in given.items():
        section = values
        *parents, leaf = dotted.split(".")
        for parent in parents:
            section = section.setdefault(parent, {})
            if not isinstance(section, dict):
                raise ConfigError(f"{parent}: {section!r} in {str(path)!r} is a value where a section belongs")
        section[leaf] = value
    try:
        return Settings.model_validate(values)
    except ValidationError as exc:
        first = exc.errors()[0]
        where = ".".join(str(part) for part in first["loc"]) or "settings"
        raise ConfigError(f"{where}: {first['msg']} (got {first.get('input')!r})") from exc
