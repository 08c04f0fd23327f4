"""The stages of training in order, each a function of a run folder: what it needs, what it does, what it leaves.

    footage       clips/{train,validation}/*.npz        recorded clips with dense labels
    perception    perception/                           stage 1: tower, DTS and projector, and a first dual encoder
    search        search/                               stage 2: the dual encoder on the tower of stage 1
    features      features/{train,validation}/*.npy     visual tokens of every clip, computed once
    pretraining   pretraining/                          stage 3: the decoder on short stretches
    instruction   instruction/                          stage 4: the decoder (or more) on long stretches
    export        checkpoint/                           a checkpoint folder with its model card

A run folder also holds ``config.json`` (the model's shape, in the published format), ``dual_encoder.json`` and
``tokenizer.json``, fixed by the first command. Where it does not begin with random weights, ``start/`` is a copy of the
checkpoint that it goes on from: whatever a stage would take from one that has not run is then taken from there. A stage
that ended wrote ``stage.json`` into its folder. Every stage continues where it was cut short, and does nothing where it
is done.
"""

from __future__ import annotations

import dataclasses
import filecmp
import json
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, get_args

import tokenizers
import torch
import xxhash
from torch import nn

from videoxl2.bench import device_name
from videoxl2.checkpoint import resolve_checkpoint
from videoxl2.config import ModelSpec, TokenIds
from videoxl2.dual_encoder import DualEncoder
from videoxl2.model import VideoXL2, choose_device
from videoxl2.text_tower import TextSpec, dual_encoder_folder
from videoxl2.tokenizer import Tokenizer
from videoxl2.training import replicas
from videoxl2.training.dialogues import CachedClip
from videoxl2.training.end_to_end import PARTS, parts_of, train_end_to_end
from videoxl2.training.errors import TrainingError
from videoxl2.training.export import dual_config, model_card, write_checkpoint
from videoxl2.training.feature_cache import cache_features, load_features
from videoxl2.training.initialise import initialise_for_training
from videoxl2.training.make_random_checkpoint import tiny_spec, tiny_text_spec, tiny_tokenizer
from videoxl2.training.recordings import Recording, finished_files, record_many
from videoxl2.training.splits import Split
from videoxl2.training.stage_language import LanguageSettings, train_language
from videoxl2.training.stage_perception import FRAMES_PER_GROUP, PerceptionModules, clip_paths, train_perception
from videoxl2.training.stage_search import search_modules, train_search
from videoxl2.training.trainer import TrainSettings, load_modules, plot_losses, read_log, require_matplotlib
from videoxl2.weights import DUAL_ENCODER_TABLE, load_weights

Stage = Literal["footage", "perception", "search", "features", "pretraining", "instruction", "export"]
STAGES: tuple[Stage, ...] = get_args(Stage)
TRAINED_STAGES: tuple[Stage, ...] = ("perception", "search", "pretraining", "instruction")
"""Those that have a learning rate, a log and a curve."""

DEFAULTS: Mapping[str, TrainSettings] = {
    "perception": TrainSettings(steps=12_000, learning_rate=2e-3, optimizer="muon"),
    "search": TrainSettings(steps=12_000, learning_rate=8e-4, optimizer="muon"),
    "pretraining": TrainSettings(steps=8_000, learning_rate=1.5e-3, optimizer="muon"),
    "instruction": TrainSettings(steps=8_000, learning_rate=1e-3, optimizer="muon"),
}
LANGUAGE: Mapping[str, LanguageSettings] = {
    "pretraining": LanguageSettings(groups=(1, 2, 3, 4, 6, 8, 12), grounding_weight=0.2),
    "instruction": LanguageSettings(
        groups=(4, 8, 15, 15, 30, 30, 75, 150), samples=3, questions=22, per_kind=4, pooled=0.5, grounding_weight=0.2
    ),
}
"""How long stretches are (in frame groups), and which share of samples has pooled chunks."""

VISUAL_SCALE, EMBEDDING_SCALE = 0.25, 5.0
"""The decoder begins with visual tokens and words of like size: the projector's output shrinks, embeddings grow."""

SETTLE_STEPS = 150
"""Where a run goes on from a checkpoint its readings are new: they learn alone before they teach the rest."""

DEFAULT_CLIPS = 8000
_SEED_STRIDE = 1_000_000
_SPLITS: tuple[Split, ...] = ("train", "validation")
_VALIDATION_SHARE, _MOST_VALIDATION = 20, 200
_LEAST_VALIDATION = 2

Observer = Callable[[int, int, float | None], None]
"""Gets what is done, of how much, and the loss where there is one."""


@dataclass(frozen=True)
class StageOptions:
    """What a command may say. None takes the default.

    ``minutes`` bounds a stage's wall time over all its runs; ``clips`` is the number of training clips to record or to
    cache, ``clip_minutes`` the length of those that are recorded now; ``workers`` are processes that render and threads
    that prepare batches; ``config`` is a model's ``config.json``; ``start`` is a checkpoint to go on from (when the run
    begins); ``rate`` is the highest learning rate; ``unfreeze`` names the parts that the instruction stage trains from
    pixels; ``processes`` share a training stage, each with batches of its own.
    """

    device: str | None = None
    seed: int = 0
    steps: int | None = None
    minutes: float | None = None
    clips: int | None = None
    clip_minutes: int = 1
    workers: int = 1
    config: Path | None = None
    start: str | None = None
    rate: float | None = None
    unfreeze: tuple[str, ...] = ()
    processes: int = 1


@dataclass(frozen=True)
class StageReport:
    """What a stage did. ``facts`` are its own counts; ``files`` lie in the run folder; times are seconds."""

    stage: str
    folder: str
    facts: dict[str, Any]
    files: list[str] = field(default_factory=list)
    notices: list[str] = field(default_factory=list)

    def to_document(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return {
            "stage": self.stage,
            "folder": self.folder,
            **self.facts,
            "files": self.files,
            "notices": self.notices,
        }


def run_stage(stage: str, folder: Path, options: StageOptions, observe: Observer | None = None) -> StageReport:
    """Run or continue one stage of the run in ``folder``.

    Raises ``TrainingError`` when a stage before it is missing, an option does not fit or the folder belongs to another
    run; ``ModelError`` for an unknown device or configuration; ``FloatingPointError`` when training diverges.
    """
    if stage not in STAGES:
        raise TrainingError(f"there is no stage {stage!r}: they are {', '.join(STAGES)}")
    _refuse_idle_options(stage, options)
    if stage in TRAINED_STAGES:
        require_matplotlib()
    run = Run.open(folder, options)
    with replicas.group(options.processes, _run_replica, stage, folder, options):
        return _RUNNERS[stage](run, options, observe or _unobserved)


def _run_replica(stage: Stage, folder: Path, options: StageOptions) -> None:
    """The same stage in another process; what lies in the run folder is replica 0's to write."""
    _RUNNERS[stage](Run.open(folder, options), options, _unobserved)


def _unobserved(done: int, total: int, loss: float | None) -> None:
    """Where nobody looks."""


@dataclass(frozen=True)
class Run:
    """A run folder, and the shape of the models that are trained in it."""

    folder: Path
    spec: ModelSpec
    text: TextSpec
    tokenizer: Tokenizer

    @classmethod
    def open(cls, folder: Path, options: StageOptions) -> Run:
        """The run in a folder, begun with ``tiny``'s shape or that of ``options.config`` where there is none yet.

        Raises ``TrainingError`` where the folder was begun with another configuration or start.
        """
        config = options.config
        checkpoint = None if options.start is None else resolve_checkpoint(options.start)
        if checkpoint is not None:
            if config is not None:
                raise TrainingError("a checkpoint to start from has a shape of its own: give no other configuration")
            config = checkpoint / "config.json"
        if config is not None:
            _read_json(config)
        folder.mkdir(parents=True, exist_ok=True)
        if not (folder / "tokenizer.json").is_file():
            _write_tokenizer(folder, config)
        raw = tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json"))
        wanted = None if config is None else read_shape(config, raw)
        stored = folder / "config.json"
        if not stored.is_file():
            spec = wanted or tiny_spec(raw)
            text = _text_spec(spec, raw) if checkpoint is None else _text_spec_of(checkpoint)
            _write_json(folder / "dual_encoder.json", dual_config(spec.vision, text))
            _write_json(stored, spec.to_config())
        spec = ModelSpec.from_config(_read_json(stored))
        if wanted is not None and wanted != spec:
            raise TrainingError(f"{folder} was begun with another configuration; choose another folder or remove it")
        if checkpoint is not None:  # one of another shape has been refused by now
            _keep_start(folder, checkpoint)
        text = TextSpec.from_config(_read_json(folder / "dual_encoder.json"))
        return cls(folder, spec, text, Tokenizer(folder))

    def path(self, stage: str) -> Path:
        return self.folder / stage

    @property
    def start(self) -> Path | None:
        """The checkpoint that the run goes on from, None where it began with random weights."""
        return self.path("start") if self.path("start").is_dir() else None

    def has(self, stage: str) -> bool:
        """Whether a training stage has made something."""
        return (self.path(stage) / "state.pt").is_file()

    def models(self, device: torch.device, seed: int) -> tuple[VideoXL2, DualEncoder]:
        """Both models with starting weights; they share one tower, as in stage 1.

        The decoder begins with words as large as its visual tokens (``EMBEDDING_SCALE``); the projector's output is
        not yet scaled to them (``load_perception``).
        """
        if self.start is not None:
            model = VideoXL2.from_pretrained(str(self.start), "cpu", torch.float32)
            dual = DualEncoder(self.spec.vision, self.text)
            towers = dual_encoder_folder(self.start)
            load_weights(dual, towers, DUAL_ENCODER_TABLE, device="cpu", dtype=torch.float32)
            _scale_output(model, 1 / VISUAL_SCALE)
            for module in (model, dual):
                module.requires_grad_(True).train()
        else:
            model, dual = VideoXL2(self.spec), DualEncoder(self.spec.vision, self.text)
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
            return _read_json(path)
        return {"stage": stage, **state_facts(self.path(stage)), "device": None}


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
    spec = ModelSpec.from_config(_read_json(path))
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


def _text_spec_of(checkpoint: Path) -> TextSpec:
    return TextSpec.from_config(_read_json(dual_encoder_folder(checkpoint) / "config.json"))


def _footage(run: Run, options: StageOptions, observe: Observer) -> StageReport:
    num_train = options.clips or DEFAULT_CLIPS
    num_validation = min(_MOST_VALIDATION, max(_LEAST_VALIDATION, num_train // _VALIDATION_SHARE))
    first = options.seed * _SEED_STRIDE
    total = num_train + num_validation
    recorded = 0
    for split, number in zip(_SPLITS[::-1], (num_validation, num_train), strict=True):
        before = recorded
        recorded += record_many(
            run.path("clips"),
            split,
            range(first, first + number),
            image_size=run.spec.vision.image_size,
            grid=run.spec.dts.grid,
            seconds=60 * options.clip_minutes,
            workers=options.workers,
            on_progress=lambda done, before=before: observe(before + done, total, None),  # type: ignore[misc]
        )
    facts = {"seed": options.seed, "recorded": recorded, "clips": _count_clips(run)}
    return StageReport("footage", str(run.folder), facts, ["clips"])


def _perception(run: Run, options: StageOptions, observe: Observer) -> StageReport:
    _check_clips(run)
    device, settings = _device(options), _settings("perception", options)
    torch.manual_seed(settings.seed)
    model, dual = run.models(device, settings.seed)
    modules = PerceptionModules.build(model, dual)
    modules.heads.to(device)
    train_perception(
        run.path("perception"),
        modules,
        run.path("clips"),
        run.tokenizer,
        settings,
        threads=options.workers,
        settle_steps=0 if run.start is None else SETTLE_STEPS,
        on_step=_on_step(settings, observe),
    )
    return _finish(run, "perception", device, _seed_notices(run, settings.seed))


def _search(run: Run, options: StageOptions, observe: Observer) -> StageReport:
    _check_clips(run)
    device, settings = _device(options), _settings("search", options)
    model, dual = run.models(device, settings.seed)
    run.load("perception", {"vision": model.vision, **search_modules(dual)})
    train_search(
        run.path("search"),
        dual,
        run.path("clips"),
        run.tokenizer,
        settings,
        threads=options.workers,
        on_step=_on_step(settings, observe),
    )
    return _finish(run, "search", device)


def _features(run: Run, options: StageOptions, observe: Observer) -> StageReport:
    paths = {split: clip_paths(run.path("clips"), split)[: options.clips] for split in _SPLITS}
    device = _device(options)
    model, _ = run.models(device, 0)
    run.load_perception(model)
    model.eval()
    made_by = perception_digest(run)
    cache, note = run.path("features"), run.path("features") / "features.json"
    if cache.exists() and (not note.is_file() or _read_json(note)["perception"] != made_by):
        raise TrainingError(
            f"{cache} was made by another perception: remove it, and the stages after it, to make it anew"
        )
    replicas.slowest(0.0)  # all have looked before one writes
    cache.mkdir(exist_ok=True)
    if replicas.rank() == 0:
        _write_json(note, {"perception": made_by})
    total = sum(len(found) for found in paths.values())
    computed = 0
    for split in reversed(_SPLITS):
        before = computed
        computed += cache_features(
            model,
            run.path("clips"),
            cache,
            split,
            options.clips,
            torch.bfloat16 if device.type == "cuda" else None,
            on_progress=lambda done, before=before: observe((before + done) * replicas.count(), total, None),  # type: ignore[misc]
        )
    computed = round(replicas.total(computed))
    cached = {split: len(finished_files(cache / split, ".npy")) for split in _SPLITS}
    facts = {"computed": computed, "cached": cached, "device": device_name(device)}
    return StageReport("features", str(run.folder), facts, ["features"], _cut_notices(run, "perception"))


def _pretraining(run: Run, options: StageOptions, observe: Observer) -> StageReport:
    return _language(run, "pretraining", options, observe)


def _instruction(run: Run, options: StageOptions, observe: Observer) -> StageReport:
    return _language(run, "instruction", options, observe)


def _language(run: Run, stage: Stage, options: StageOptions, observe: Observer) -> StageReport:
    device, settings = _device(options), _settings(stage, options)
    model, _ = run.models(device, settings.seed)
    if stage == "instruction":
        run.load("pretraining", {"language": model.language})
    language, on_step = LANGUAGE[stage], _on_step(settings, observe)
    if options.unfreeze:
        parts_of(model, options.unfreeze)
        _check_clips(run)
        run.load_perception(model)
        train_end_to_end(
            run.path(stage),
            model,
            run.path("clips"),
            run.tokenizer,
            settings,
            language,
            options.unfreeze,
            threads=options.workers,
            on_step=on_step,
        )
        slow = device.type == "cpu" and "training from pixels on a CPU is slow; a GPU is what it is made for"
        return _finish(run, stage, device, [*([slow] if slow else []), *_seed_notices(run, settings.seed)])
    clips: dict[str, list[CachedClip]] = {
        split: load_features(run.path("clips"), run.path("features"), split) for split in _SPLITS
    }
    if not all(clips.values()):
        raise TrainingError(f"{run.folder} has no visual tokens: run vxl train --stage features first")
    _check_made_with(run, "features", run.path("features") / "features.json")
    train_language(run.path(stage), model.language, clips, run.tokenizer, settings, language, on_step=on_step)
    return _finish(run, stage, device, _seed_notices(run, settings.seed))


def _export(run: Run, options: StageOptions, observe: Observer) -> StageReport:
    model, dual = run.models(torch.device("cpu"), 0)
    # The dual encoder keeps the tower it was trained with, whatever the instruction stage made of the model's own.
    run.load_perception(model)
    run.load("perception", search_modules(dual))
    if run.has("search"):
        run.load("search", search_modules(dual))
    separate = DualEncoder(run.spec.vision, run.text)
    separate.load_state_dict(dual.state_dict())
    run.load("pretraining", {"language": model.language})
    trained = _trained_parts(run, "instruction")
    run.load("instruction", {name: module for name, module in parts_of(model, PARTS).items() if name in trained})
    begun = [stage for stage in TRAINED_STAGES if run.has(stage)]
    for stage in begun[1:]:
        _check_made_with(run, stage, run.path(stage) / "stage.json")
    stages = [*_stages_of_start(run), *(run.report_of(stage) for stage in begun)]
    raw = tokenizers.Tokenizer.from_file(str(run.folder / "tokenizer.json"))
    name = "tiny" if run.spec == tiny_spec(raw) else run.folder.resolve().name
    card = model_card(name, model, separate, _count_clips(run), stages)
    write_checkpoint(run.path("checkpoint"), model, separate, raw, card)
    observe(1, 1, None)
    num_bytes = sum(path.stat().st_size for path in run.path("checkpoint").rglob("*") if path.is_file())
    notices = [notice for stage in begun for notice in _cut_notices(run, stage)]
    if "search" not in begun:
        notices.append("search vectors are those of stage perception, since stage search has not run")
    facts = {"name": name, "parameters": card["parameters"], "bytes": num_bytes}
    return StageReport("export", str(run.folder), facts, ["checkpoint"], notices)


_RUNNERS: Mapping[str, Callable[[Run, StageOptions, Observer], StageReport]] = {
    "footage": _footage,
    "perception": _perception,
    "search": _search,
    "features": _features,
    "pretraining": _pretraining,
    "instruction": _instruction,
    "export": _export,
}


def _finish(run: Run, stage: Stage, device: torch.device, notices: list[str] | None = None) -> StageReport:
    """Write ``stage.json`` and the curve of a training stage, and report it."""
    folder = run.path(stage)
    if replicas.rank() > 0:
        return StageReport(stage, str(run.folder), {})
    facts = {
        **state_facts(folder),
        "device": device_name(device),
        "threads": torch.get_num_threads(),
        "processes": replicas.count(),
    }
    _write_json(folder / "stage.json", {"stage": stage, **facts, "perception": perception_digest(run)})
    plot_losses(folder)
    files = [f"{stage}/{name}" for name in ("state.pt", "log.jsonl", "loss.png", "stage.json")]
    return StageReport(stage, str(run.folder), facts, files, [*(notices or []), *_cut_notices(run, stage)])


def _seed_notices(run: Run, seed: int) -> list[str]:
    """Clips follow from the seed: a run that goes on from a checkpoint with its seed shows it nothing new."""
    if run.start is None or seed not in {stage.get("seed") for stage in _stages_of_start(run)}:
        return []
    return [
        f"the model that this run began with has learned from clips of seed {seed} before: another --seed has new ones"
    ]


def _stages_of_start(run: Run) -> list[dict[str, Any]]:
    """What the card of the checkpoint that the run goes on from says of its stages; nothing without one."""
    found: list[dict[str, Any]] = [] if run.start is None else _read_json(run.start / "card.json").get("training", [])
    return found


def _cut_notices(run: Run, stage: Stage) -> list[str]:
    if not run.has(stage):
        return []
    facts = run.report_of(stage)
    is_out_of_time = facts["planned_s"] is not None and facts["wall_s"] >= facts["planned_s"]
    if facts["steps"] >= facts["planned_steps"] or is_out_of_time:
        return []
    return [f"{stage} was cut short after {facts['steps']} of {facts['planned_steps']} steps"]


def _trained_parts(run: Run, stage: Stage) -> set[str]:
    """The modules that a stage's state holds; empty where it has not run."""
    path = run.path(stage) / "state.pt"
    if not path.is_file():
        return set()
    return set(torch.load(path, map_location="cpu", weights_only=True, mmap=True)["modules"])


def _settings(stage: Stage, options: StageOptions) -> TrainSettings:
    default = DEFAULTS[stage]
    steps = options.steps or default.steps
    return dataclasses.replace(
        default,
        steps=steps,
        learning_rate=options.rate or default.learning_rate,
        warmup_steps=min(default.warmup_steps, max(1, steps // 10)),
        seed=options.seed,
        max_s=None if options.minutes is None else 60.0 * options.minutes,
    )


def _refuse_idle_options(stage: str, options: StageOptions) -> None:
    """An option that a stage does not look at is a mistake of whoever gave it."""
    idle = {
        "--steps": options.steps is not None and stage not in TRAINED_STAGES,
        "--minutes": options.minutes is not None and stage not in TRAINED_STAGES,
        "--clips": options.clips is not None and stage not in ("footage", "features"),
        "--clip-minutes": options.clip_minutes != 1 and stage != "footage",
        "--unfreeze": bool(options.unfreeze) and stage != "instruction",
        "--processes": options.processes > 1 and stage not in (*TRAINED_STAGES, "features"),
        "--rate": options.rate is not None and stage not in TRAINED_STAGES,
    }
    if named := [name for name, is_idle in idle.items() if is_idle]:
        raise TrainingError(f"stage {stage} takes no {', '.join(named)}")


def _device(options: StageOptions) -> torch.device:
    device, _ = choose_device(options.device, torch.float32)
    if device.type == "cuda" and replicas.count() > 1:
        return choose_device(f"cuda:{replicas.rank()}", torch.float32)[0]
    return device


def _on_step(settings: TrainSettings, observe: Observer) -> Callable[[int, float], None]:
    return lambda step, loss: observe(step, settings.steps, loss)


def _check_clips(run: Run) -> None:
    """There are clips, and their labels have the grid of the model."""
    grid = run.spec.dts.grid
    for split in _SPLITS:
        found = Recording.load(clip_paths(run.path("clips"), split)[0]).owners_FYX.shape[1]
        if found != grid:
            raise TrainingError(f"the clips in {run.path('clips')} have {found} cells a side and the model {grid}")


def _count_clips(run: Run) -> dict[str, int]:
    return {split: len(finished_files(run.path("clips") / split, ".npz")) for split in _SPLITS}


def perception_digest(run: Run) -> str:
    """xxh3-128 of the tower, DTS and projector that stage 1 has made so far, as 32 hexadecimal digits."""
    digest, parts = xxhash.xxh3_128(), ("vision", "dts", "projector")
    if run.has("perception"):
        path = run.path("perception") / "state.pt"
        modules = torch.load(path, map_location="cpu", weights_only=True, mmap=True)["modules"]
    elif run.start is not None:
        model, _ = run.models(torch.device("cpu"), 0)
        modules = {part: model.get_submodule(part).state_dict() for part in parts}
    else:
        raise TrainingError(f"{run.folder} has no trained perception: run vxl train --stage perception first")
    for part in parts:
        for name, tensor in modules[part].items():
            digest.update(name.encode())
            digest.update(tensor.contiguous().numpy().tobytes())
    return digest.hexdigest()


def _check_made_with(run: Run, stage: str, note: Path) -> None:
    """What a stage made fits the perception that is there now; a stage that left no note is taken on trust."""
    if note.is_file() and _read_json(note).get("perception") != perception_digest(run):
        raise TrainingError(f"{stage} was made with another perception: remove {run.path(stage)} and do it again")


def _write_tokenizer(folder: Path, config: Path | None) -> None:
    """The tokenizer beside a configuration, else ``tiny``'s."""
    beside = None if config is None else config.parent / "tokenizer.json"
    target = folder / "tokenizer.json"
    if beside is not None and beside.is_file():
        target.write_bytes(beside.read_bytes())
    else:
        tiny_tokenizer().save(str(target), pretty=False)


def _read_json(path: Path) -> dict[str, Any]:
    try:
        return dict(json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError) as problem:
        raise TrainingError(f"cannot read {path}: {problem}") from problem


def _write_json(path: Path, document: Mapping[str, Any]) -> None:
    unfinished = path.with_suffix(".partial")
    unfinished.write_text(json.dumps(document, indent=2) + "\n", encoding="utf-8")
    unfinished.replace(path)
