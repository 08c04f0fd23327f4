"""Several processes train one model: the result is that of one process with all their batches, and failures end all."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from videoxl2.training import replicas
from videoxl2.training.errors import TrainingError
from videoxl2.training.trainer import TrainSettings, fit, load_modules, read_log


def layers() -> dict[str, nn.Module]:
    torch.manual_seed(3)
    return {"first": nn.Linear(4, 8), "second": nn.Linear(8, 1), "unused": nn.Linear(2, 2)}


def loss_of(modules: Mapping[str, nn.Module], number: int) -> Tensor:
    x = torch.randn(16, 4, generator=torch.Generator().manual_seed(number))
    guess = modules["second"](torch.tanh(modules["first"](x)))
    return (guess[:, 0] - x.sum(dim=1)).square().mean()


def settings_of(optimizer: str) -> TrainSettings:
    return TrainSettings(steps=9, learning_rate=0.02, warmup_steps=2, log_every=3, optimizer=optimizer)


def train(folder: str, optimizer: str) -> None:
    modules = layers()
    fit(
        Path(folder),
        modules,
        lambda step: {"fit": loss_of(modules, replicas.batch_number(step))},
        settings_of(optimizer),
        validate=lambda: {"rank": float(replicas.rank())},
        validate_every=3,
    )


def fail(_: str) -> None:
    raise ValueError("no such clip")


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_two_replicas_learn_what_one_learns_from_the_batches_of_both(tmp_path: Path, optimizer: str) -> None:
    torch_threads = torch.get_num_threads()
    with replicas.group(2, train, str(tmp_path / "two"), optimizer):
        assert (replicas.rank(), replicas.count(), replicas.is_shared()) == (0, 2, True)
        train(str(tmp_path / "two"), optimizer)
    assert (replicas.rank(), replicas.count(), replicas.is_shared()) == (0, 1, False)
    assert torch.get_num_threads() == torch_threads
    one = layers()
    fit(
        tmp_path / "one",
        one,
        lambda step: {"fit": (loss_of(one, 2 * step) + loss_of(one, 2 * step + 1)) / 2},
        settings_of(optimizer),
    )
    two = layers()
    assert load_modules(tmp_path / "two", two) == 9
    for name in ("first", "second"):
        torch.testing.assert_close(two[name].weight, one[name].weight, atol=2e-6, rtol=1e-4)
    rows = read_log(tmp_path / "two")
    assert [(row["step"], row["validation"]) for row in rows] == [(step, {"rank": 0.0}) for step in (3, 6, 9)]


def test_a_replica_that_fails_ends_all(tmp_path: Path) -> None:
    with (
        pytest.raises(TrainingError, match="no such clip"),
        replicas.group(2, fail, str(tmp_path)),
    ):
        train(str(tmp_path / "run"), "adamw")
    assert not replicas.is_shared()


def test_one_process_needs_no_group() -> None:
    with replicas.group(1, os._exit, 1):
        assert replicas.count() == 1
        assert replicas.batch_number(7) == 7
        assert replicas.slowest(2.5) == 2.5
