"""The stages of training in order, each a function of a run folder: what it needs, what it does, what it leaves.

    footage       clips/{train,validation}/*.npz        recorded clips with dense labels
    perception    perception/                           stage 1: tower, DTS and projector, and a first dual encoder
    features      features/{train,validation}/*.npy     visual tokens of every clip, computed once
    search        search/                               stage 2: texts meet visual tokens of stage 1
    pretraining   pretraining/                          stage 3: the decoder on short stretches
    instruction   instruction/                          stage 4: the decoder (or more) on long stretches
    export        checkpoint/                           a checkpoint folder with its model card

The run folder itself is ``run_folder.Run``. A stage that ended wrote ``stage.json`` into its folder. Every stage
continues where it was cut short, and does nothing where it is done.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import tokenizers
import torch

from videoxl2.bench import device_name
from videoxl2.dual_encoder import DualEncoder
from videoxl2.model import choose_device
from videoxl2.training import replicas
from videoxl2.training.dialogues import CachedClip
from videoxl2.training.end_to_end import PARTS, parts_of, train_end_to_end
from videoxl2.training.errors import TrainingError
from videoxl2.training.export import model_card, write_checkpoint
from videoxl2.training.feature_cache import cache_features, load_features
from videoxl2.training.language_samples import LanguageSettings
from videoxl2.training.make_random_checkpoint import tiny_spec
from videoxl2.training.recordings import Recording, finished_files, record_many
from videoxl2.training.run_folder import (
    STAGES,
    TRAINED_STAGES,
    Run,
    Stage,
    read_json,
    state_facts,
    write_json,
)
from videoxl2.training.splits import Split
from videoxl2.training.stage_language import train_language
from videoxl2.training.stage_perception import (
    PerceptionModules,
    clip_paths,
    frame_modules,
    text_modules,
    train_perception,
)
from videoxl2.training.stage_search import search_modules, train_search
from videoxl2.training.token_labels import TokenReading
from videoxl2.training.trainer import TrainSettings, plot_losses, require_matplotlib

DEFAULTS: Mapping[str, TrainSettings] = {
    "perception": TrainSettings(steps=12_000, learning_rate=2e-3, optimizer="muon"),
    "search": TrainSettings(steps=6_000, learning_rate=2e-3, optimizer="muon"),
    "pretraining": TrainSettings(steps=8_000, learning_rate=1.5e-3, optimizer="muon"),
    "instruction": TrainSettings(steps=8_000, learning_rate=1e-3, optimizer="muon"),
}
LANGUAGE: Mapping[str, LanguageSettings] = {
    "pretraining": LanguageSettings(
        groups=(1, 2, 3, 4, 6, 8, 12),
        per_kind=6,
        late_start=0.6,
        grounding_weight=0.2,
        sight_weight=0.2,
        priors=100,
    ),
    "instruction": LanguageSettings(
        groups=(8, 15, 15, 30, 30, 75, 75, 150),
        samples=3,
        questions=22,
        per_kind=10,
        pooled=1.0,
        grounding_weight=0.2,
        sight_weight=0.2,
        priors=100,
        segmented=0.2,
        videos=0.25,
    ),
}
"""How long stretches are (in frame groups), in which share of samples half of the questions meet pooled chunks, and how
many stretches are of several segments or videos."""


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
    cache, ``clip_minutes`` the length of those that are recorded now and ``events_per_minute`` how much happens in
    them (else each seed chooses); ``workers`` are processes that render and threads
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
    events_per_minute: float | None = None
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
    run = Run.open(folder, options.config, options.start)
    with replicas.group(options.processes, _run_replica, stage, folder, options):
        return _RUNNERS[stage](run, options, observe or _unobserved)


def _run_replica(stage: Stage, folder: Path, options: StageOptions) -> None:
    """The same stage in another process; what lies in the run folder is replica 0's to write."""
    _RUNNERS[stage](Run.open(folder, options.config, options.start), options, _unobserved)


def _unobserved(done: int, total: int, loss: float | None) -> None:
    """Where nobody looks."""


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
            events_per_minute=options.events_per_minute,
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
    device, settings = _device(options), _settings("search", options)
    _, dual = run.models(device, settings.seed)
    run.load("perception", text_modules(dual))
    clips = _cached_clips(run)
    train_search(run.path("search"), dual, clips, run.tokenizer, settings, on_step=_on_step(settings, observe))
    return _finish(run, "search", device, _seed_notices(run, settings.seed))


def _features(run: Run, options: StageOptions, observe: Observer) -> StageReport:
    paths = {split: clip_paths(run.path("clips"), split)[: options.clips] for split in _SPLITS}
    device = _device(options)
    model, _ = run.models(device, 0)
    run.load_perception(model)
    model.eval()
    made_by = run.perception_digest()
    cache, note = run.path("features"), run.path("features") / "features.json"
    if cache.exists() and (not note.is_file() or read_json(note)["perception"] != made_by):
        raise TrainingError(
            f"{cache} was made by another perception: remove it, and the stages after it, to make it anew"
        )
    replicas.slowest(0.0)  # all have looked before one writes
    cache.mkdir(exist_ok=True)
    if replicas.rank() == 0:
        write_json(note, {"perception": made_by})
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
    sight: TokenReading | None = None
    if stage == "instruction":
        taught: dict[str, torch.nn.Module] = {"language": model.language}
        if run.has("pretraining"):
            taught["sight"] = sight = TokenReading(model.spec.language, model.spec.tokens_per_group).to(device)
        run.load("pretraining", taught)
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
    clips = _cached_clips(run)
    train_language(
        run.path(stage), model.language, clips, run.tokenizer, settings, language, sight=sight, on_step=on_step
    )
    return _finish(run, stage, device, _seed_notices(run, settings.seed))


def _cached_clips(run: Run) -> dict[str, list[CachedClip]]:
    """The clips of each split with their visual tokens; ``TrainingError`` where there are none, or others' tokens."""
    clips: dict[str, list[CachedClip]] = {
        split: load_features(run.path("clips"), run.path("features"), split) for split in _SPLITS
    }
    if not all(clips.values()):
        raise TrainingError(f"{run.folder} has no visual tokens: run vxl train --stage features first")
    _check_made_with(run, "features", run.path("features") / "features.json")
    return clips


def _export(run: Run, options: StageOptions, observe: Observer) -> StageReport:
    model, dual = run.models(torch.device("cpu"), 0)
    # The dual encoder keeps the tower it was trained with, whatever the instruction stage made of the model's own.
    run.load_perception(model)
    run.load("perception", {**frame_modules(dual), **text_modules(dual)})
    if run.has("search"):
        run.load("search", search_modules(dual))
    elif run.has("perception") or not run.starts_with_group_head():
        dual.group = None  # it has learned nothing, or from tokens and texts that are others now
    separate = DualEncoder(run.spec.vision, run.text, None if dual.group is None else dual.group.spec)
    separate.load_state_dict(dual.state_dict())
    run.load("pretraining", {"language": model.language})
    trained = _trained_parts(run, "instruction")
    run.load("instruction", {name: module for name, module in parts_of(model, PARTS).items() if name in trained})
    begun = [stage for stage in TRAINED_STAGES if run.has(stage)]
    for stage in begun[1:]:
        _check_made_with(run, stage, run.path(stage) / "stage.json")
    stages = [*run.stages_of_start(), *(run.report_of(stage) for stage in begun)]
    raw = tokenizers.Tokenizer.from_file(str(run.folder / "tokenizer.json"))
    name = "tiny" if run.spec == tiny_spec(raw) else run.folder.resolve().name
    card = model_card(name, model, separate, _count_clips(run), stages)
    write_checkpoint(run.path("checkpoint"), model, separate, raw, card)
    observe(1, 1, None)
    num_bytes = sum(path.stat().st_size for path in run.path("checkpoint").rglob("*") if path.is_file())
    notices = [notice for stage in begun for notice in _cut_notices(run, stage)]
    if "search" not in begun:
        notices.append("search vectors are those of stage perception or of the start, since stage search has not run")
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
    write_json(folder / "stage.json", {"stage": stage, **facts, "perception": run.perception_digest()})
    plot_losses(folder)
    files = [f"{stage}/{name}" for name in ("state.pt", "log.jsonl", "loss.png", "stage.json")]
    return StageReport(stage, str(run.folder), facts, files, [*(notices or []), *_cut_notices(run, stage)])


def _seed_notices(run: Run, seed: int) -> list[str]:
    """Clips follow from the seed: a run that goes on from a checkpoint with its seed shows it nothing new."""
    if run.start is None or seed not in {stage.get("seed") for stage in run.stages_of_start()}:
        return []
    return [
        f"the model that this run began with has learned from clips of seed {seed} before: another --seed has new ones"
    ]


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
        "--events-per-minute": options.events_per_minute is not None and stage != "footage",
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


def _check_made_with(run: Run, stage: str, note: Path) -> None:
    """What a stage made fits the perception that is there now; a stage that left no note is taken on trust."""
    if note.is_file() and read_json(note).get("perception") != run.perception_digest():
        raise TrainingError(f"{stage} was made with another perception: remove {run.path(stage)} and do it again")
