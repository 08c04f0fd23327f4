"""Checkpoints are found, described and digested; what is absent is named."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from videoxl2.checkpoint import (
    digest_weights,
    load_arrays,
    read_checkpoint_info,
    resolve_checkpoint,
    weight_files,
    weights_notice,
)
from videoxl2.errors import ModelError


def test_packaged_checkpoint() -> None:
    info = read_checkpoint_info(resolve_checkpoint("tiny"))
    assert info.name == "tiny"
    assert len(info.weights_digest) == 32 and info.encoder_digest is not None
    assert info.spec.tokens_per_group == 36
    total = sum(path.stat().st_size for path in info.folder.rglob("*") if path.is_file())
    assert total < 40_000_000


def test_random_weights_are_announced(tmp_path: Path) -> None:
    folder = tmp_path / "copy"
    shutil.copytree(resolve_checkpoint("tiny"), folder)
    (folder / "card.json").write_text(json.dumps({"name": "mine", "weights": "random"}))
    notice = weights_notice(read_checkpoint_info(folder))
    assert notice == "model 'mine' has random weights: answers and text search carry no meaning yet"
    (folder / "card.json").write_text(json.dumps({"name": "mine", "weights": "trained"}))
    assert weights_notice(read_checkpoint_info(folder)) is None
    (folder / "card.json").write_text(json.dumps({"name": "mine", "weights": "trained", "notice": "knows toys only"}))
    assert weights_notice(read_checkpoint_info(folder)) == "model 'mine': knows toys only"
    (folder / "card.json").unlink()
    assert read_checkpoint_info(folder).is_trained


def test_a_folder_is_taken_as_it_is(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    assert resolve_checkpoint(str(tmp_path)) == tmp_path


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("nosuch", "tiny"),
        ("nobody/nothing-here", "hf download"),
        ("../tiny", "no checkpoint"),
        ("a/b--", "hf download"),
    ],
)
def test_absent_checkpoints_say_what_to_do(
    name: str, message: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ModelError, match=message):
        resolve_checkpoint(name)


def test_a_folder_without_configuration_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"config\.json"):
        resolve_checkpoint(str(tmp_path))


def test_digest_follows_the_bytes(tmp_path: Path) -> None:
    save_file({"a": torch.zeros(3)}, tmp_path / "model.safetensors")
    first = digest_weights(tmp_path)
    save_file({"a": torch.ones(3)}, tmp_path / "model.safetensors")
    assert digest_weights(tmp_path) != first


def test_shards_come_from_the_index(tmp_path: Path) -> None:
    for name in ("model-1.safetensors", "model-2.safetensors", "other.safetensors"):
        save_file({name: torch.zeros(1)}, tmp_path / name)
    index = {"weight_map": {"a": "model-2.safetensors", "b": "model-1.safetensors"}}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    assert [path.name for path in weight_files(tmp_path)] == ["model-1.safetensors", "model-2.safetensors"]
    (tmp_path / "model-2.safetensors").unlink()
    with pytest.raises(ModelError, match=r"model-2\.safetensors"):
        weight_files(tmp_path)


@pytest.mark.parametrize("content", ["[]", "{", '{"weight_map": {"a": 5}}', '{"weight_map": []}'])
def test_an_index_of_another_form_is_refused(tmp_path: Path, content: str) -> None:
    (tmp_path / "model.safetensors.index.json").write_text(content)
    with pytest.raises(ModelError, match=r"index\.json"):
        weight_files(tmp_path)


def test_a_card_that_is_no_object_is_refused(tmp_path: Path) -> None:
    for name in ("config.json", "model.safetensors"):
        shutil.copy(resolve_checkpoint("tiny") / name, tmp_path)
    (tmp_path / "card.json").write_text("[1]")
    with pytest.raises(ModelError, match=r"card\.json"):
        read_checkpoint_info(tmp_path)


def test_no_weights(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"no \.safetensors"):
        weight_files(tmp_path)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_arrays_are_read_without_torch_as_float32(tmp_path: Path, dtype: torch.dtype) -> None:
    tensor = torch.randn(3, 5, generator=torch.Generator().manual_seed(0)).to(dtype)
    save_file({"text.a": tensor, "image.b": torch.zeros(2)}, tmp_path / "model.safetensors")
    arrays = load_arrays(tmp_path, "text.")
    assert list(arrays) == ["a"] and arrays["a"].dtype == np.float32
    assert np.array_equal(arrays["a"], tensor.float().numpy())


def test_an_unsupported_dtype_is_named(tmp_path: Path) -> None:
    save_file({"a": torch.zeros(2, dtype=torch.bool)}, tmp_path / "model.safetensors")
    with pytest.raises(ModelError, match="BOOL"):
        load_arrays(tmp_path, "")
