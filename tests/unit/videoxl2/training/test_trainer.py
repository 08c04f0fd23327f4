"""The loop of all stages: the same run whether cut or not, the rate, the clock, and numbers that are none."""

from __future__ import annotations

import dataclasses
import math
import sys
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from videoxl2.training import trainer
from videoxl2.training.errors import TrainingError
from videoxl2.training.trainer import (
    TrainSettings,
    fit,
    learning_rate,
    load_modules,
    make_optimisers,
    plot_losses,
    read_log,
)

SETTINGS = TrainSettings(steps=12, learning_rate=0.05, warmup_steps=3, log_every=4, save_every_s=0.0)
Losses = Callable[[int], Mapping[str, Tensor]]


def made(seed: int = 0) -> dict[str, nn.Module]:
    torch.manual_seed(seed)
    return {"first": nn.Linear(4, 8), "second": nn.Linear(8, 1)}


def losses_of(modules: Mapping[str, nn.Module]) -> Losses:
    """A regression whose batch depends on the step alone."""

    def losses_at(step: int) -> Mapping[str, Tensor]:
        x = torch.randn(16, 4, generator=torch.Generator().manual_seed(step))
        guess = modules["second"](torch.tanh(modules["first"](x)))
        return {"fit": (guess[:, 0] - x.sum(dim=1)).square().mean(), "small": 0.01 * guess.square().mean()}

    return losses_at


def cut_at(step: int, losses_at: Losses) -> Losses:
    def until(now: int) -> Mapping[str, Tensor]:
        if now == step:
            raise KeyboardInterrupt
        return losses_at(now)

    return until


def weights(modules: Mapping[str, nn.Module]) -> list[Tensor]:
    return [parameter.detach().clone() for module in modules.values() for parameter in module.parameters()]


def equal(a: list[Tensor], b: list[Tensor]) -> bool:
    return all(torch.equal(x, y) for x, y in zip(a, b, strict=True))


@pytest.mark.parametrize("save_every_s", [0.0, 1e9], ids=["saved", "never saved"])
def test_a_run_that_was_cut_ends_as_the_one_that_was_not(tmp_path: Path, save_every_s: float) -> None:
    settings = dataclasses.replace(SETTINGS, save_every_s=save_every_s)
    whole = made()
    assert fit(tmp_path / "whole", whole, losses_of(whole), settings) == 12

    cut = made()
    with pytest.raises(KeyboardInterrupt):
        fit(tmp_path / "cut", cut, cut_at(7, losses_of(cut)), settings)
    assert (tmp_path / "cut" / "state.pt").exists() == (save_every_s == 0)
    going_on = made(seed=0 if save_every_s else 99)  # what it starts with must not matter where there is a state
    assert fit(tmp_path / "cut", going_on, losses_of(going_on), settings) == 12
    assert equal(weights(whole), weights(going_on))
    rows, expected = (read_log(tmp_path / name) for name in ("cut", "whole"))
    assert [(row["step"], row["rate"]) for row in rows] == [(row["step"], row["rate"]) for row in expected]
    assert rows[-1]["fit"] == expected[-1]["fit"]
    assert not list(tmp_path.rglob("*.partial"))


def test_a_finished_run_does_nothing_and_its_modules_load(tmp_path: Path) -> None:
    modules = made()
    fit(tmp_path, modules, losses_of(modules), SETTINGS)
    again = made(seed=5)
    assert fit(tmp_path, again, cut_at(12, cut_at(0, losses_of(again))), SETTINGS) == 12
    assert equal(weights(modules), weights(again))
    loaded = made(seed=6)
    assert load_modules(tmp_path, {"second": loaded["second"]}) == 12
    assert equal(weights(loaded)[2:], weights(modules)[2:]) and not equal(weights(loaded)[:2], weights(modules)[:2])


def test_training_learns_and_frozen_parameters_stay(tmp_path: Path) -> None:
    modules = made()
    modules["first"].requires_grad_(False)
    before = weights(modules)
    fit(tmp_path, modules, losses_of(modules), dataclasses.replace(SETTINGS, steps=60))
    rows = read_log(tmp_path)
    assert rows[-1]["fit"] < 0.8 * rows[0]["fit"]
    assert equal(weights(modules)[:2], before[:2]) and not equal(weights(modules)[2:], before[2:])


class Clock:
    """A clock that only ``tick`` moves."""

    def __init__(self) -> None:
        self.now = 1000.0

    def monotonic(self) -> float:
        return self.now

    def tick(self, losses_at: Losses) -> Losses:
        def slower(step: int) -> Mapping[str, Tensor]:
            self.now += 1.0
            return losses_at(step)

        return slower


def test_time_ends_a_run_with_a_low_rate_and_a_last_check(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock()
    monkeypatch.setattr(trainer, "time", clock)
    settings = dataclasses.replace(SETTINGS, steps=1000, max_s=10.0)
    modules = made()
    done = fit(tmp_path, modules, clock.tick(losses_of(modules)), settings, validate=lambda: {"good": 0.5})
    assert done == 10
    last = read_log(tmp_path)[-1]
    assert (last["step"], last["s"], last["validation"]) == (10, 10.0, {"good": 0.5})
    assert last["rate"] < 0.1 * settings.learning_rate
    clock.now += 500.0
    assert fit(tmp_path, modules, clock.tick(losses_of(modules)), settings) == 10  # its time is used up
    longer = dataclasses.replace(settings, max_s=14.0)
    assert fit(tmp_path, modules, clock.tick(losses_of(modules)), longer) == 14


def test_the_rate_rises_then_falls_to_its_end() -> None:
    settings = TrainSettings(steps=1000, learning_rate=2.0, warmup_steps=10, final_rate=0.1)
    rising = [learning_rate(step, 0.0, settings) for step in range(10)]
    assert rising == pytest.approx([0.2 * (step + 1) for step in range(10)])
    falling = [learning_rate(step, step / 1000, settings) for step in range(10, 1001)]
    assert falling == sorted(falling, reverse=True)
    assert learning_rate(500, 0.5, settings) == pytest.approx(2.0 * (0.1 + 0.9 * 0.5))
    assert falling[-1] == learning_rate(20, 1.7, settings) == pytest.approx(0.2)


def test_a_step_without_a_finite_loss_or_gradient_changes_nothing(tmp_path: Path) -> None:
    modules = made()
    good = losses_of(modules)
    seen: list[list[Tensor]] = []

    def sometimes(step: int) -> Mapping[str, Tensor]:
        seen.append(weights(modules))
        losses = dict(good(step))
        if step == 3:
            losses["fit"] = losses["fit"] * math.nan
        if step == 6:  # the loss is a number, its gradient is none
            losses["small"] = (modules["first"].weight * 0).abs().sum().sqrt()
        return losses

    fit(tmp_path, modules, sometimes, SETTINGS)
    same = [step for step in range(len(seen) - 1) if equal(seen[step], seen[step + 1])]
    assert same == [3, 6]
    assert all(math.isfinite(row["fit"]) for row in read_log(tmp_path))
    assert all(bool(torch.isfinite(tensor).all()) for tensor in weights(modules))


@pytest.mark.parametrize("what", ["loss", "gradient"])
def test_ten_such_steps_running_are_an_error(tmp_path: Path, what: str) -> None:
    modules = made()

    def bad(step: int) -> Mapping[str, Tensor]:
        weight = modules["first"].weight
        return {"fit": weight.sum() * math.nan if what == "loss" else (weight * 0).abs().sum().sqrt()}

    with pytest.raises(FloatingPointError, match="10 steps running"):
        fit(tmp_path, modules, bad, dataclasses.replace(SETTINGS, steps=100))


def test_a_folder_of_another_run_is_refused(tmp_path: Path) -> None:
    modules = made()
    fit(tmp_path, modules, losses_of(modules), SETTINGS)
    for change in ({"steps": 13}, {"learning_rate": 0.1}, {"seed": 1}):
        with pytest.raises(TrainingError, match=f"other {next(iter(change))}"):
            fit(tmp_path, modules, losses_of(modules), dataclasses.replace(SETTINGS, **change))
    with pytest.raises(TrainingError, match="also trained second"):
        fit(tmp_path, {"first": modules["first"]}, losses_of(modules), SETTINGS)
    with pytest.raises(TrainingError, match="not third"):
        load_modules(tmp_path, {"third": nn.Linear(1, 1)})
    with pytest.raises(TrainingError, match="another shape"):
        load_modules(tmp_path, {"first": nn.Linear(5, 8)})


def test_curves_are_drawn(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(TrainingError, match="no log"):
        plot_losses(tmp_path)
    modules = made()
    fit(tmp_path, modules, losses_of(modules), SETTINGS, validate=lambda: {"good": 0.5}, validate_every=4)
    assert plot_losses(tmp_path).read_bytes()[:4] == b"\x89PNG"
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(TrainingError, match=r"vxl-archive\[train\]"):
        plot_losses(tmp_path)


def test_muon_is_for_the_matrices_inside_and_adamw_for_the_rest(tmp_path: Path) -> None:
    torch.manual_seed(0)
    inside = nn.Sequential(nn.Linear(4, 8), nn.LayerNorm(8), nn.Linear(8, 8))
    modules = {"body": inside, "heads": nn.Linear(8, 2), "words": nn.Embedding(5, 4)}
    adamw, muon = make_optimisers(modules, dataclasses.replace(SETTINGS, optimizer="muon"))
    held = {id(p) for group in muon.param_groups for p in group["params"]}
    assert held == {id(inside[0].weight), id(inside[2].weight)}
    others = {id(p) for group in adamw.param_groups for p in group["params"]}
    assert others | held == {id(p) for module in modules.values() for p in module.parameters()} and not others & held
    with pytest.raises(TrainingError, match="unknown optimizer 'sgd'"):
        make_optimisers(modules, dataclasses.replace(SETTINGS, optimizer="sgd"))


def test_a_run_with_muon_that_was_cut_ends_as_the_one_that_was_not(tmp_path: Path) -> None:
    settings = dataclasses.replace(SETTINGS, optimizer="muon")
    whole, cut = made(), made()
    fit(tmp_path / "whole", whole, losses_of(whole), settings)
    with pytest.raises(KeyboardInterrupt):
        fit(tmp_path / "cut", cut, cut_at(7, losses_of(cut)), settings)
    going_on = made(seed=99)
    assert fit(tmp_path / "cut", going_on, losses_of(going_on), settings) == 12
    assert equal(weights(whole), weights(going_on))
    assert read_log(tmp_path / "whole")[-1]["fit"] < read_log(tmp_path / "whole")[0]["fit"]
