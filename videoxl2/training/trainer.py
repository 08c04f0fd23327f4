"""The training loop that all stages share: schedule, resuming, progress, loss curves.

A stage gives modules and a function from step number to named losses; this module owns the optimiser, the learning
rate, when state is written and what is logged. A run folder holds ``state.pt`` (replaced atomically), ``log.jsonl`` and
``loss.png``. The same seed and number of steps give the same run on the same machine, interrupted or not; with a limit
of time (``max_s``) the learning rate follows the clock, and two runs are only alike.
"""

from __future__ import annotations

import json
import logging
import math
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from videoxl2.training import replicas
from videoxl2.training.errors import TrainingError

logger = logging.getLogger(__name__)

Losses = Mapping[str, Tensor]
OPTIMIZERS = ("adamw", "muon")
_READOUTS = {"heads", "lm_head"}
"""Layers whose outputs are the model's own, one meaning each: Muon is not for them."""
_MOST_BAD_STEPS = 10
_NUM_COLOURS = 10
_NOT_LOSSES = ("step", "s", "rate", "validation")


@dataclass(frozen=True)
class TrainSettings:
    """How long and how fast a stage learns. ``max_s`` ends it early (seconds of wall time, whole run).

    ``learning_rate`` is the highest one; ``final_rate`` is the share of it that is left at the end. ``optimizer`` is
    ``adamw``, or ``muon`` for the weights of linear layers and AdamW for the rest (``make_optimisers``).
    """

    steps: int
    learning_rate: float = 1e-3
    warmup_steps: int = 100
    final_rate: float = 0.05
    weight_decay: float = 0.01
    clip_norm: float = 1.0
    seed: int = 0
    save_every_s: float = 120.0
    log_every: int = 20
    max_s: float | None = None
    optimizer: str = "adamw"


def fit(
    folder: Path,
    modules: Mapping[str, nn.Module],
    losses_at: Callable[[int], Losses],
    settings: TrainSettings,
    *,
    validate: Callable[[], Mapping[str, float]] | None = None,
    validate_every: int = 500,
    on_step: Callable[[int, float], None] | None = None,
) -> int:
    """Minimise the sum of the losses over all parameters that require a gradient; gives the steps done in all.

    Continues from ``folder`` where an earlier run with the same settings was cut short. ``losses_at(step)`` must depend
    on nothing but the step and the parameters. When time is up the rate still falls to its end: the schedule follows
    whichever of steps and seconds is further. A step whose loss or gradient is not finite changes nothing and is left
    out of the logged means. ``validate`` runs every ``validate_every`` steps, as far as these are logged, and at the
    end, however that comes. ``on_step`` gets the step and the loss whenever a row is logged.

    Raises ``FloatingPointError`` when ten steps running are not finite, ``TrainingError`` for a folder of another run.
    """
    folder.mkdir(parents=True, exist_ok=True)
    parameters = [p for module in modules.values() for p in module.parameters() if p.requires_grad]
    optimisers = make_optimisers(modules, settings)
    step, spent_s = load_state(folder, modules, optimisers, settings)
    writes = replicas.rank() == 0
    if writes:
        _forget_rows_after(folder / "log.jsonl", step)
    started, last_saved, bad = time.monotonic() - spent_s, time.monotonic(), 0
    sums: dict[str, float] = {}
    counted = 0
    is_last = step >= settings.steps or (settings.max_s is not None and spent_s >= settings.max_s)
    while not is_last:
        elapsed_s = replicas.slowest(time.monotonic() - started)
        share = max(step / settings.steps, elapsed_s / settings.max_s if settings.max_s else 0.0)
        rate = learning_rate(step, share, settings)
        for group in (group for optimiser in optimisers for group in optimiser.param_groups):
            group["lr"] = rate
        losses = losses_at(step)
        total = torch.stack([loss.float() for loss in losses.values()]).sum()
        for optimiser in optimisers:
            optimiser.zero_grad(set_to_none=True)
        is_finite = math.isfinite(replicas.slowest(float(total.detach()) if torch.isfinite(total) else math.inf))
        if is_finite:
            torch.autograd.backward(total)
            replicas.average_gradients(parameters)
            is_finite = bool(torch.isfinite(nn.utils.clip_grad_norm_(parameters, settings.clip_norm)))
        if is_finite:
            for optimiser in optimisers:
                optimiser.step()
            bad = 0
            counted += 1
            for name, loss in losses.items():
                sums[name] = sums.get(name, 0.0) + float(loss.detach())
        else:
            bad += 1
            if bad >= _MOST_BAD_STEPS:
                raise FloatingPointError(f"loss or gradient of {bad} steps running was not finite (at step {step})")
        step += 1
        elapsed_s = replicas.slowest(time.monotonic() - started)
        out_of_time = settings.max_s is not None and elapsed_s >= settings.max_s
        is_last = step >= settings.steps or out_of_time
        if writes and (step % settings.log_every == 0 or is_last):
            row: dict[str, Any] = {"step": step, "s": round(time.monotonic() - started, 1), "rate": rate}
            row |= {name: round(value / counted, 5) for name, value in sums.items()}
            if validate is not None and (step % validate_every == 0 or is_last):
                row["validation"] = {name: round(value, 4) for name, value in validate().items()}
            _append(folder / "log.jsonl", row)
            if on_step is not None:
                on_step(step, sum(sums.values()) / max(counted, 1))
            sums, counted = {}, 0
        if writes and time.monotonic() - last_saved > settings.save_every_s:
            save_state(folder, modules, optimisers, settings, step, time.monotonic() - started)
            last_saved = time.monotonic()
    if writes:
        save_state(folder, modules, optimisers, settings, step, time.monotonic() - started)
    return step


def make_optimisers(modules: Mapping[str, nn.Module], settings: TrainSettings) -> list[torch.optim.Optimizer]:
    """AdamW for all parameters; with ``muon``, Muon for the weights of linear layers, its step as large as AdamW's.

    Muon makes the update of a matrix orthogonal (Jordan et al. 2024; the size of the step: Liu et al. 2025, section
    2.2). Raises ``TrainingError`` for another optimiser.
    """
    if settings.optimizer not in OPTIMIZERS:
        raise TrainingError(f"unknown optimizer {settings.optimizer!r}: they are {', '.join(OPTIMIZERS)}")
    linear = {
        id(layer.weight)
        for part, module in modules.items()
        for name, layer in module.named_modules(prefix=part)
        if settings.optimizer == "muon" and isinstance(layer, nn.Linear) and not _READOUTS & set(name.split("."))
    }
    named = {id(p): p for module in modules.values() for p in module.parameters() if p.requires_grad}
    matrices = [p for key, p in named.items() if key in linear]
    decayed = [p for key, p in named.items() if key not in linear and p.ndim > 1]
    others = [p for key, p in named.items() if key not in linear and p.ndim <= 1]
    rate, decay = settings.learning_rate, settings.weight_decay
    groups = [{"params": decayed, "weight_decay": decay}, {"params": others, "weight_decay": 0.0}]
    found: list[torch.optim.Optimizer] = [torch.optim.AdamW(groups, lr=rate, betas=(0.9, 0.98))]
    if matrices:
        found.append(torch.optim.Muon(matrices, lr=rate, weight_decay=decay, adjust_lr_fn="match_rms_adamw"))
    return found


def learning_rate(step: int, share: float, settings: TrainSettings) -> float:
    """Linear warm-up, then a cosine down to ``final_rate`` of the highest at ``share`` 1."""
    warm = min(1.0, (step + 1) / max(1, settings.warmup_steps))
    cosine = 0.5 * (1.0 + math.cos(math.pi * min(share, 1.0)))
    return settings.learning_rate * warm * (settings.final_rate + (1 - settings.final_rate) * cosine)


def save_state(
    folder: Path,
    modules: Mapping[str, nn.Module],
    optimisers: Sequence[torch.optim.Optimizer],
    settings: TrainSettings,
    step: int,
    spent_s: float,
) -> None:
    """Write ``state.pt`` under another name first."""
    unfinished = folder / "state.partial"
    torch.save(
        {
            "modules": {name: module.state_dict() for name, module in modules.items()},
            "optimisers": [optimiser.state_dict() for optimiser in optimisers],
            "settings": asdict(settings),
            "step": step,
            "spent_s": spent_s,
        },
        unfinished,
    )
    unfinished.replace(folder / "state.pt")


def load_state(
    folder: Path,
    modules: Mapping[str, nn.Module],
    optimisers: Sequence[torch.optim.Optimizer],
    settings: TrainSettings,
) -> tuple[int, float]:
    """Step and seconds to continue from, (0, 0.0) for a new run; ``TrainingError`` where another run's state lies."""
    path = folder / "state.pt"
    if not path.exists():
        return 0, 0.0
    state = torch.load(path, map_location="cpu", weights_only=True)
    ours, theirs = asdict(settings), state["settings"]
    changed = [name for name in ("steps", "learning_rate", "seed", "optimizer") if ours[name] != theirs.get(name)]
    if changed:
        raise TrainingError(f"{folder} holds a run with other {', '.join(changed)}; choose another folder or remove it")
    if surplus := state["modules"].keys() - modules.keys():
        raise TrainingError(f"{folder} also trained {', '.join(sorted(surplus))}; choose another folder or remove it")
    _fill(folder, modules, state["modules"])
    for optimiser, held in zip(optimisers, state["optimisers"], strict=True):
        optimiser.load_state_dict(held)
    return int(state["step"]), float(state["spent_s"])


def load_modules(folder: Path, modules: Mapping[str, nn.Module]) -> int:
    """Load the modules of a finished or cut run, without its optimiser; gives its steps."""
    state = torch.load(folder / "state.pt", map_location="cpu", weights_only=True)
    _fill(folder, modules, state["modules"])
    return int(state["step"])


def _fill(folder: Path, modules: Mapping[str, nn.Module], stored: Mapping[str, Any]) -> None:
    for name, module in modules.items():
        if name not in stored:
            raise TrainingError(f"{folder} trained {', '.join(stored)}, not {name}; choose another folder or remove it")
        try:
            module.load_state_dict(stored[name])
        except RuntimeError as misfit:
            raise TrainingError(f"{folder} holds {name} of a model of another shape") from misfit


def read_log(folder: Path) -> list[dict[str, Any]]:
    """The rows of ``log.jsonl``."""
    path = folder / "log.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def plot_losses(folder: Path, names: Iterable[str] | None = None) -> Path:
    """Draw ``loss.png`` from the log: losses, and validation figures where there are any.

    Raises ``TrainingError`` without matplotlib and for a folder whose log is empty.
    """
    figure = require_matplotlib().Figure(figsize=(12, 4))
    rows = read_log(folder)
    if not rows:
        raise TrainingError(f"{folder} holds no log of a run")
    keys = list(names or dict.fromkeys(key for row in rows for key in row if key not in _NOT_LOSSES))
    left, right = figure.subplots(1, 2)
    for key in keys:
        left.plot([row["step"] for row in rows if key in row], [row[key] for row in rows if key in row], label=key)
    left.set(xlabel="step", ylabel="loss", yscale="log", title=folder.name)
    left.legend()
    checked = [row for row in rows if "validation" in row]
    for number, key in enumerate(checked[-1]["validation"] if checked else []):
        values = [row["validation"].get(key) for row in checked]
        # Ten colours are repeated: the second time round the lines are dashed.
        right.plot([row["step"] for row in checked], values, "--" if number >= _NUM_COLOURS else "-", label=key)
    right.set(xlabel="step", title="validation")
    if checked:
        right.legend(fontsize=7, loc="center left", bbox_to_anchor=(1.0, 0.5))
    figure.tight_layout()
    figure.savefig(folder / "loss.png", dpi=100)
    return folder / "loss.png"


def require_matplotlib() -> Any:
    """``matplotlib.figure``; ``TrainingError`` that says how to get it."""
    try:
        import matplotlib.figure
    except ImportError as absent:
        raise TrainingError("loss curves are drawn with matplotlib: pip install 'vxl-archive[train]'") from absent
    return matplotlib.figure


def _forget_rows_after(path: Path, step: int) -> None:
    """A run that was killed logged steps that its saved state has not: they are done, and logged, again."""
    if not path.exists():
        return
    lines = path.read_text(encoding="utf-8").splitlines(keepends=True)
    kept = [line for line in lines if line.endswith("\n") and json.loads(line)["step"] <= step]
    if len(kept) < len(lines):
        unfinished = path.with_suffix(".partial")
        unfinished.write_text("".join(kept), encoding="utf-8")
        unfinished.replace(path)


def _append(path: Path, row: Mapping[str, Any]) -> None:
    with path.open("a", encoding="utf-8") as file:
        file.write(json.dumps(row) + "\n")
    logger.info("%s", row)
