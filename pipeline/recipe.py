"""The recipe an archive was made with, its fingerprint, and the refusal of anything made differently.

Everything that changes the stored bytes is a field here: weights and tokenizers, the texts around the pictures,
architecture, preprocessing, sampling, prefill settings, KV layout and number type. The recipe lies in
``archive.json``; its digest, the fingerprint, is in every row and KV file. A difference is a ``ModelMismatch`` that
names the field, never a silent reuse: writers, workers and readers all hold the checkpoint that they find, and this
program, to the whole recipe.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import asdict
from typing import Any

import xxhash
from pydantic import BaseModel, ConfigDict, ValidationError

from indexers.container import TEMP_SUFFIX
from indexers.folder import Place, as_folder
from indexers.lease import LOCK_NAME
from indexers.records import SCHEMA_VERSION
from indexers.store import TABLES_FOLDER
from pipeline.config import IngestSettings
from pipeline.errors import ConfigError, ModelMismatch
from videoxl2.checkpoint import CheckpointInfo, read_config
from videoxl2.config import GroupSpec, LevelSettings, PrefillSettings, dual_encoder_vision
from videoxl2.errors import ModelError
from videoxl2.text_tower import TextSpec, dual_encoder_folder
from videoxl2.wording import prefix_text, timestamp_text

MANIFEST_NAME = "archive.json"
KV_LAYOUT_VERSION = 1
SIGLIP_IMAGE_SIZE = 224
"""What a published SigLIP configuration means when it leaves the image size out."""
PREPROCESSING = "pil-bicubic-square/v1"
TIMESTAMP_SAMPLE_S = 83.46
RECORDED_LATER = ("tokenizer_digest", "encoder_tokenizer_digest", "encoder", "prompt_text", "timestamp_text")
"""Fields that archives of earlier versions lack."""


class Recipe(BaseModel):
    """All that decides the bytes an archive holds.

    Fields of ``RECORDED_LATER`` are None in archives made before they were recorded; these keep the fingerprint that
    they had, and nothing is held to what they do not say. ``encoder`` is what the search encoder's configuration says
    of its towers; ``timestamp_text`` is the text of the time ``TIMESTAMP_SAMPLE_S``.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    schema_version: int
    kv_layout_version: int
    weights_digest: str
    encoder_digest: str | None
    tokenizer_digest: str | None = None
    encoder_tokenizer_digest: str | None = None
    encoder: dict[str, Any] | None = None
    prompt_text: str | None = None
    timestamp_text: str | None = None
    architecture: dict[str, Any]
    embedding_dim: int
    preprocessing: str
    embed_image_size: int
    fps: float
    segment_s: float | None
    prefill: PrefillSettings
    chunk_groups: int
    compression: int
    dtype: str

    @property
    def image_size(self) -> int:
        """Side of the model's square input in pixels."""
        return int(self.architecture["vision"]["image_size"])

    @property
    def frames_per_group(self) -> int:
        """Sampled frames per frame group."""
        return int(self.architecture["dts"]["frames_per_group"])

    @property
    def fingerprint(self) -> str:
        """Digest of every field, 32 hexadecimal characters."""
        fields = self.model_dump(mode="json")
        for name in self._not_recorded:
            del fields[name]
        text = json.dumps(fields, sort_keys=True, separators=(",", ":"))
        return xxhash.xxh3_128_hexdigest(text.encode())

    @property
    def _not_recorded(self) -> list[str]:
        return [name for name in RECORDED_LATER if getattr(self, name) is None]

    def require_equal(self, found: Recipe, archive: str) -> None:
        """Raise ``ModelMismatch`` naming the first field in which ``found`` differs from this, the archive's recipe."""
        found = found.model_copy(update=dict.fromkeys(self._not_recorded))
        for name, ours, theirs in _differences(self.model_dump(mode="json"), found.model_dump(mode="json")):
            raise ModelMismatch(
                f"archive {archive!r} was made with another {name}: the archive has {ours!r}, this run {theirs!r}; "
                "use the archive's own settings or a new archive"
            )


def _differences(ours: dict[str, Any], theirs: dict[str, Any], parent: str = "") -> Iterator[tuple[str, Any, Any]]:
    """Dotted name and both values of every field that differs."""
    for name in dict.fromkeys((*ours, *theirs)):
        left, right = ours.get(name), theirs.get(name)
        if isinstance(left, dict) and isinstance(right, dict):
            yield from _differences(left, right, f"{parent}{name}.")
        elif left != right:
            yield f"{parent}{name}", left, right


class Manifest(BaseModel):
    """``archive.json``: the recipe and the address of the model that made the archive."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    format: str = "vxl-archive"
    model: str
    recipe: Recipe

    @property
    def ingest(self) -> IngestSettings:
        """The ingest settings that the recipe stands for."""
        return IngestSettings(
            fps=self.recipe.fps,
            segment_s=self.recipe.segment_s,
            prefill=self.recipe.prefill,
            levels=LevelSettings(chunk_groups=self.recipe.chunk_groups, compression=self.recipe.compression),
        )


def make_recipe(info: CheckpointInfo, settings: IngestSettings, dtype: str) -> Recipe:
    """The recipe of an archive made by this checkpoint and its dual encoder with these settings.

    Raises ``ModelError`` for a dual encoder that reads visual tokens of another width than the model makes.
    """
    encoder = read_config(dual_encoder_folder(info.folder))
    towers = {"image": asdict(dual_encoder_vision(encoder)), "text": asdict(TextSpec.from_config(encoder))}
    group, width = GroupSpec.from_config(encoder), info.spec.language.width
    if group is not None and group.token_width != width:
        raise ModelError(
            f"the dual encoder of {str(info.folder)!r} reads visual tokens of width {group.token_width}, "
            f"the model's have {width}: they were not trained together"
        )
    return Recipe(
        schema_version=SCHEMA_VERSION,
        kv_layout_version=KV_LAYOUT_VERSION,
        weights_digest=info.weights_digest,
        encoder_digest=info.encoder_digest,
        tokenizer_digest=info.tokenizer_digest,
        encoder_tokenizer_digest=info.encoder_tokenizer_digest,
        encoder=towers if group is None else {**towers, "group": asdict(group)},
        prompt_text=prefix_text(),
        timestamp_text=timestamp_text(TIMESTAMP_SAMPLE_S),
        architecture=json.loads(json.dumps(info.spec.to_dict())),
        embedding_dim=TextSpec.from_config(encoder).embedding_width,
        preprocessing=PREPROCESSING,
        embed_image_size=int(encoder.get("vision_config", {}).get("image_size", SIGLIP_IMAGE_SIZE)),
        fps=settings.fps,
        segment_s=settings.segment_s,
        prefill=settings.prefill,
        chunk_groups=settings.levels.chunk_groups,
        compression=settings.levels.compression,
        dtype=dtype,
    )


def require_checkpoint(manifest: Manifest, info: CheckpointInfo, archive: str) -> None:
    """Raise ``ModelMismatch`` unless this checkpoint, run by this program, would fill the archive with the same bytes.

    Its weights, its tokenizer, what its configuration says, and how this program prepares pictures and lays out KV.
    """
    recipe = manifest.recipe
    for part, ours, theirs in (
        ("model", recipe.weights_digest, info.weights_digest),
        ("search encoder", recipe.encoder_digest, info.encoder_digest),
    ):
        if ours != theirs:
            raise ModelMismatch(
                f"archive {archive!r} was made with other weights of the {part} of "
                f"{manifest.model!r}: the archive has {str(ours)[:12]}, this machine {str(theirs)[:12]}"
            )
    recipe.require_equal(make_recipe(info, manifest.ingest, recipe.dtype), archive)


def read_manifest(place: Place) -> Manifest | None:
    """The archive's manifest; ``None`` where there is no archive. Raises ``ModelMismatch`` for another schema."""
    folder = as_folder(place)
    path = folder.address(MANIFEST_NAME)
    try:
        text = folder.read_bytes(MANIFEST_NAME).decode()
    except FileNotFoundError:
        return None
    except OSError as exc:
        raise ConfigError(f"cannot read archive {folder.address()!r}: {exc.strerror}") from exc
    except UnicodeDecodeError as exc:
        raise ConfigError(f"the manifest {path!r} is damaged: {exc}") from exc
    try:
        document = json.loads(text)
        if not isinstance(document, dict) or document.get("format") != "vxl-archive":
            raise ConfigError(f"{path!r} is not the manifest of a video archive")
        recipe = document.get("recipe")
        version = recipe.get("schema_version") if isinstance(recipe, dict) else None
        if version is not None and version != SCHEMA_VERSION:
            raise ModelMismatch(
                f"archive {folder.address()!r} has schema version {version}, this program writes {SCHEMA_VERSION}; "
                "use the program version that made it, or index again into a new archive"
            )
        return Manifest.model_validate(document)
    except json.JSONDecodeError as exc:
        raise ConfigError(f"the manifest {path!r} is damaged: {exc}") from exc
    except ValidationError as exc:
        first = exc.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        raise ConfigError(
            f"the manifest {path!r} is damaged, or of another version of this program: {where}: {first['msg']}"
        ) from exc


def is_archive_part(name: str) -> bool:
    """Whether this is the name of something that creating an archive, perhaps killed half-way, leaves in its folder."""
    is_unfinished = name.startswith(f".{MANIFEST_NAME}.") and name.endswith(TEMP_SUFFIX)
    return name in (TABLES_FOLDER, LOCK_NAME, MANIFEST_NAME) or is_unfinished


def write_manifest(place: Place, manifest: Manifest) -> None:
    """Write ``archive.json`` atomically: a reader sees the whole file or none.

    Raises ``ConfigError`` where the folder cannot be written to.
    """
    text = json.dumps(manifest.model_dump(mode="json"), indent=1, sort_keys=True) + "\n"
    folder = as_folder(place)
    try:
        with folder.create(MANIFEST_NAME) as durable:
            durable.file.write(text.encode())
            durable.commit()
    except OSError as exc:
        raise ConfigError(f"cannot make an archive at {folder.address()!r}: {exc.strerror}") from exc
