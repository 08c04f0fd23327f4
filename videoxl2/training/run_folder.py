"""A run folder: what the stages of training share and leave to each other.

It holds ``config.json`` (the model's shape, in the published format), ``dual_encoder.json`` and ``tokenizer.json``,
fixed by the first command. Where the run does not begin with random weights, ``start/`` is a copy of the checkpoint
that it goes on from: whatever a stage would take from one that has not run is then taken from there. What each stage
adds lies in a folder of its name.
"""

from __future__ import annotations

import dataclasses
import filecmp
import json
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

import tokenizers
import torch
import xxhash
from torch import nn

from videoxl2.checkpoint import resolve_checkpoint
from videoxl2.config import GroupSpec, ModelSpec, TokenIds
from videoxl2.dual_encoder import DualEncoder, GroupHead
from videoxl2.model import VideoXL2
from videoxl2.text_tower import TextSpec, dual_encoder_folder
from videoxl2.tokenizer import Tokenizer
from videoxl2.training.errors import TrainingError
from videoxl2.training.export import dual_config
from videoxl2.training.initialise import initialise_for_training
from videoxl2.training.make_random_checkpoint import tiny_spec, tiny_text_spec, tiny_tokenizer
from videoxl2.training.stage_perception import FRAMES_PER_GROUP
from videoxl2.training.trainer import load_modules, read_log
from videoxl2.weights import DUAL_ENCODER_TABLE, load_weights

Stage = Literal["footage", "perception", "features", "search", "pretraining", "instruction", "export"]
STAGES: tuple[Stage, ...] = get_args(Stage)
TRAINED_STAGES: tuple[Stage, ...] = ("perception", "search", "pretraining", "instruction")
"""Those that have a learning rate, a log and a curve."""

VISUAL_SCALE, EMBEDDING_SCALE = 0.25, 5.0
"""The decoder begins with visual tokens and words of like size: the projector's output shrinks, embeddings grow."""


@dataclass(frozen=True)
class Run:
    """A run folder, and the shape of the models that are trained in it."""

    folder: Path
    spec: ModelSpec
    text: TextSpec
    group: GroupSpec
    tokenizer: Tokenizer

    @classmethod
    def open(cls, folder: Path, config: Path | None = None, start: str | None = None) -> Run:
        """The run in a folder; where there is none yet it begins with ``tiny``'s shape or that of a ``config.json``.

        ``start`` is a checkpoint to go on from, which has a shape of its own.

        Raises ``TrainingError`` where the folder was begun with another configuration or start.
        """
        checkpoint = None if start is None else resolve_checkpoint(start)
        if checkpoint is not None:
            if config is not None:
                raise TrainingError("a checkpoint to start from has a shape of its own: give no other configuration")
            config = checkpoint / "config.json"
        if config is not None:
            read_json(config)
        folder.mkdir(parents=True, exist_ok=True)
        if not (folder / "tokenizer.json").is_file():
            _write_tokenizer(folder, config)
        raw = tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json"))
        wanted = None if config is None else read_shape(config, raw)
        stored = folder / "config.json"
        if not stored.is_file():
            spec = wanted or tiny_spec(raw)
            text = _text_spec(spec, raw) if checkpoint is None else _text_spec_of(checkpoint)
            write_json(folder / "dual_encoder.json", dual_config(spec.vision, text, _group_spec(spec, text)))
            write_json(stored, spec.to_config())
        spec = ModelSpec.from_config(read_json(stored))
        if wanted is not None and wanted != spec:
            raise TrainingError(f"{folder} was begun with another configuration; choose another folder or remove it")
        if checkpoint is not None:  # one of another shape has been refused by now
            _keep_start(folder, checkpoint)
        dual = read_json(folder / "dual_encoder.json")
        text = TextSpec.from_config(dual)
        return cls(folder, spec, text, GroupSpec.from_config(dual) or _group_spec(spec, text), Tokenizer(folder))

    def path(self, stage: str) -> Path:
        return self.folder / stage

    @property
    def start(self) -> Path | None:
        """The checkpoint that the run goes on from, None where it began with random weights."""
        return self.path("start") if self.path("start").is_dir() else None

    def starts_with_group_head(self) -> bool:
        """Whether the checkpoint that the run goes on from has a ``GroupHead``."""
        return self.start is not None and "group_config" in read_json(dual_encoder_folder(self.start) / "config.json")

    def has(self, stage: str) -> bool:
        """Whether a training stage has made something."""
        return (self.path(stage) / "state.pt").is_file()

    def models(self, device: torch.device, seed: int) -> tuple[VideoXL2, DualEncoder]:
        """Both models with starting weights; they share one tower, as in stage 1.

        The decoder begins with words as large as its visual tokens (``EMBEDDING_SCALE``); the projector's output is
        not yet scaled to them (``load_perception``). A start whose dual encoder has no ``GroupHead`` gets a new one.
        """
        if self.start is not None:
            model = VideoXL2.from_pretrained(str(self.start), "cpu", torch.float32)
            towers = dual_encoder_folder(self.start)
            group = GroupSpec.from_config(read_json(towers / "config.json"))
            dual = DualEncoder(self.spec.vision, self.text, group)
            load_weights(dual, towers, DUAL_ENCODER_TABLE, device="cpu", dtype=torch.float32)
            if dual.group is None:
                dual.group = GroupHead(self.group)
                initialise_for_training(dual.group, seed + 2)
            _scale_output(model, 1 / VISUAL_SCALE)
            for module in (model, dual):
                module.requires_grad_(True).train()
        else:
            model, dual = VideoXL2(self.spec), DualEncoder(self.spec.vision, self.text, self.group)
            initialise_for_training(model, seed)
            initialise_for_training(dual, seed + 1)
            with torch.no_grad():
                model.language.embed_tokens.weight.mul_(EMBEDDING_SCALE)
        dual.image.encoder = model.vision
        return model.to(device), dual.to(device)

    def load(self, stage: str, modules: Mapping[str, nn.Module]) -> None:
        """Fill modules with what a stage made of them.

        Where it has made nothing yet they stay what the start made of them; ``TrainingError`` where there is no start.
        """
        if self.has(stage):
            load_modules(self.path(stage), modules)
        elif self.start is None:
            raise TrainingError(f"{self.folder} has no trained {stage}: run vxl train --stage {stage} first")

    def load_perception(self, model: VideoXL2) -> None:
        """Tower, DTS and projector of stage 1, the projector's output scaled for the decoder (``VISUAL_SCALE``)."""
        self.load("perception", {"vision": model.vision, "dts": model.dts, "projector": model.projector})
        _scale_output(model, VISUAL_SCALE)

    def report_of(self, stage: str) -> dict[str, Any]:
        """What a training stage says of itself: from its ``stage.json``, or from state and log where it was cut."""
        path = self.path(stage) / "stage.json"
        if path.is_file():
            return read_json(path)
        return {"stage": stage, **state_facts(self.path(stage)), "device": None}

    def perception_digest(self) -> str:
        """xxh3-128 of the tower, DTS and projector that stage 1 has made so far, as 32 hexadecimal digits."""
        digest, parts = xxhash.xxh3_128(), ("vision", "dts", "projector")
        if self.has("perception"):
            path = self.path("perception") / "state.pt"
            modules = torch.load(path, map_location="cpu", weights_only=True, mmap=True)["modules"]
        elif self.start is not None:
            model, _ = self.models(torch.device("cpu"), 0)
            modules = {part: model.get_submodule(part).state_dict() for part in parts}
        else:
            raise TrainingError(f"{self.folder} has no trained perception: run vxl train --stage perception first")
        for part in parts:
            for name, tensor in modules[part].items():
                digest.update(name.encode())
                digest.update(tensor.contiguous().numpy().tobytes())
        return digest.hexdigest()

    def stages_of_start(self) -> list[dict[str, Any]]:
        """What the card of the checkpoint that the run goes on from says of its stages; nothing without one."""
        if self.start is None:
            return []
        found: list[dict[str, Any]] = read_json(self.start / "card.json").get("training", [])
        return found


def _scale_output(model: VideoXL2, factor: float) -> None:
    """Multiply what the projector gives."""
    last = model.projector.mlp[-1]
    assert isinstance(last, nn.Linear)
    with torch.no_grad():
        last.weight.mul_(factor)
        last.bias.mul_(factor)


def _keep_start(folder: Path, checkpoint: Path) -> None:
    """Copy the checkpoint that a run goes on from into its folder; ``TrainingError`` where it began otherwise."""
    kept, weights = folder / "start", "model.safetensors"
    if kept.is_dir():
        if not filecmp.cmp(kept / weights, checkpoint / weights, shallow=False):
            raise TrainingError(f"{folder} was begun from another checkpoint; choose another folder or remove it")
        return
    if begun := [stage for stage in TRAINED_STAGES if (folder / stage).exists()]:
        raise TrainingError(f"{folder} has begun stage {begun[0]} without a start; choose another folder or remove it")
    if not (checkpoint / weights).is_file():
        raise TrainingError(f"{checkpoint} has no {weights}: training goes on from a checkpoint that it wrote itself")
    unfinished = folder / "start.partial"
    shutil.rmtree(unfinished, ignore_errors=True)
    shutil.copytree(checkpoint, unfinished)
    unfinished.replace(kept)


def state_facts(folder: Path) -> dict[str, Any]:
    """Steps, seed, seconds, rate and last figures of a training stage, from its ``state.pt`` and log."""
    state = torch.load(folder / "state.pt", map_location="cpu", weights_only=True, mmap=True)
    rows = read_log(folder)
    checked = [row for row in rows if "validation" in row]
    settings = state["settings"]
    return {
        "steps": int(state["step"]),
        "planned_steps": settings["steps"],
        "planned_s": settings["max_s"],
        "seed": settings["seed"],
        "learning_rate": settings["learning_rate"],
        "wall_s": round(float(state["spent_s"]), 1),
        "losses": {k: v for k, v in (rows[-1] if rows else {}).items() if k not in ("step", "s", "rate", "validation")},
        "validation": checked[-1]["validation"] if checked else {},
    }


def read_shape(path: Path, tokenizer: tokenizers.Tokenizer) -> ModelSpec:
    """The architecture of a published ``config.json``, with the token ids of the tokenizer that is used.

    Raises ``TrainingError`` where the file cannot be read or the tokenizer does not fit, ``ModelError`` for an
    architecture that is not supported.
    """
    spec = ModelSpec.from_config(read_json(path))
    if spec.frames_per_group != FRAMES_PER_GROUP:
        raise TrainingError(f"{path}: training needs {FRAMES_PER_GROUP} frames per group, not {spec.frames_per_group}")
    if tokenizer.get_vocab_size() > spec.language.vocab_size:
        raise TrainingError(
            f"{path}: the tokenizer has {tokenizer.get_vocab_size()} tokens and the model {spec.language.vocab_size}; "
            "put the model's tokenizer.json beside the file"
        )
    names = ("<|vision_pad|>", "<|im_end|>", "<|endoftext|>")
    vocabulary = tokenizer.get_vocab()
    if any(name not in vocabulary for name in names):
        raise TrainingError(f"the tokenizer beside {path} lacks one of {', '.join(names)}")
    placeholder, *ends = (vocabulary[name] for name in names)
    return dataclasses.replace(spec, tokens=TokenIds(visual_placeholder=placeholder, eos=tuple(sorted(ends))))


def _text_spec(spec: ModelSpec, tokenizer: tokenizers.Tokenizer) -> TextSpec:
    """The text tower for a model: ``tiny``'s own, else one as wide as the image tower and half as deep."""
    if spec == tiny_spec(tokenizer):
        return tiny_text_spec(tokenizer)
    vision = spec.vision
    return TextSpec(
        vocab_size=tokenizer.get_vocab_size(),
        width=vision.width,
        mlp_width=vision.mlp_width,
        num_layers=max(1, vision.num_layers // 2),
        num_heads=vision.num_heads,
        num_positions=64,
        embedding_width=vision.width,
        pad_id=tokenizer.get_vocab()["<|endoftext|>"],
    )


def _group_spec(spec: ModelSpec, text: TextSpec) -> GroupSpec:
    """The head that reads visual tokens: one layer as wide as the image tower."""
    vision = spec.vision
    return GroupSpec(
        token_width=spec.language.width,
        width=vision.width,
        mlp_width=vision.mlp_width,
        num_layers=1,
        num_heads=vision.num_heads,
        embedding_width=text.embedding_width,
    )


def _text_spec_of(checkpoint: Path) -> TextSpec:
    return TextSpec.from_config(read_json(dual_encoder_folder(checkpoint) / "config.json"))


def _write_tokenizer(folder: Path, config: Path | None) -> None:
    """The tokenizer beside a configuration, else ``tiny``'s."""
    beside = None if config is None else config.parent / "tokenizer.json"
    target = folder / "tokenizer.json"
    if beside is not None and beside.is_file():
        target.write_bytes(beside.read_bytes())
    else:
        tiny_tokenizer().save(str(target), pretty=False)


def read_json(path: Path) -> dict[str, Any]:
    try:
        return dict(json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError) as problem:
        raise TrainingError(f"cannot read {path}: {problem}") from problem


def write_json(path: Path, document: Mapping[str, Any]) -> None:
    unfinished = path.with_suffix(".partial")
    unfinished.write_text(json.dumps(document, indent=2) + "\n", encoding="utf-8")
    unfinished.replace(path)
