"""``vxl train``: all stages, one command each, end in a checkpoint that loads, searches and answers; each can go on."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from tests.vxl import call
from videoxl2.checkpoint import resolve_checkpoint
from videoxl2.config import ModelSpec, TokenIds
from videoxl2.training.trainer import read_log

SMALL = {
    "vocab_size": 1280,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "mm_vision_tower": "siglip",
    "mm_spatial_pool_stride": 2,
    "vision_config": {
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 3,
        "num_attention_heads": 2,
        "image_size": 96,
        "patch_size": 16,
    },
    "dts_config": {"channels": 32, "grid": 6},
}


def train(folder: Path, stage: str, *more: str) -> Any:
    done = call("train", "--stage", stage, "--folder", folder, "--device", "cpu", "--json", *more)
    assert done.code == 0, done.err
    return done.json


@pytest.mark.slow
def test_all_stages_one_after_the_other(tmp_path: Path) -> None:
    (tmp_path / "model").mkdir()
    config = tmp_path / "model" / "config.json"
    config.write_text(json.dumps(SMALL))
    shutil.copy(resolve_checkpoint("tiny") / "tokenizer.json", config.parent)
    run = tmp_path / "run"

    first = call("train", "--stage", "perception", "--folder", run, "--config", config, "--steps", "1")
    assert first.code == 2 and "stage footage" in first.error_line

    recorded = train(run, "footage", "--clips", "6", "--config", str(config))
    assert (recorded["recorded"], recorded["clips"]) == (8, {"train": 6, "validation": 2})
    again = train(run, "footage", "--clips", "6")
    assert again["recorded"] == 0

    for stage, before in (("search", "perception"), ("features", "perception"), ("pretraining", "features")):
        refused = call("train", "--stage", stage, "--folder", run, "--device", "cpu")
        assert refused.code == 2
        assert f"vxl train --stage {before}" in refused.error_line

    report = train(run, "perception", "--steps", "3")
    assert report["steps"] == 3 and report["validation"]["search_ap"] >= 0
    refused = call("train", "--stage", "search", "--folder", run, "--device", "cpu")
    assert refused.code == 2 and "vxl train --stage features" in refused.error_line
    assert train(run, "features", "--processes", "2")["computed"] == 8
    assert train(run, "features")["computed"] == 0
    report = train(run, "search", "--steps", "3")
    assert report["steps"] == 3 and report["validation"]["search_ap"] >= 0

    refused = call("train", "--stage", "instruction", "--folder", run, "--device", "cpu", "--steps", "2")
    assert "vxl train --stage pretraining" in refused.error_line
    for stage in ("pretraining", "instruction"):
        report = train(run, stage, "--steps", "2")
        assert report["steps"] == 2 and report["losses"]["answer"] > 0 and report["validation"]
        assert train(run, stage, "--steps", "2")["steps"] == 2  # done: nothing more happens
        assert [row["step"] for row in read_log(run / stage)] == [2]
        assert (run / stage / "loss.png").stat().st_size > 1000
    before, after = (sight_of(run / stage) for stage in ("pretraining", "instruction"))
    assert 0 < float((after - before).abs().max()) < 0.05, "the head that reads what tokens show was taught anew"
    other = call("train", "--stage", "pretraining", "--folder", run, "--device", "cpu", "--steps", "5")
    assert other.code == 2 and "other steps" in other.error_line

    exported = train(run, "export")
    checkpoint = run / "checkpoint"
    card = json.loads((checkpoint / "card.json").read_text())
    assert (card["weights"], card["data"]["clips"]) == ("trained", {"train": 6, "validation": 2})
    assert [(stage["stage"], stage["steps"], stage["seed"]) for stage in card["training"]] == [
        *(("perception", 3, 0), ("search", 3, 0), ("pretraining", 2, 0), ("instruction", 2, 0))
    ]
    assert all(stage["wall_s"] > 0 and stage["device"] and stage["validation"] for stage in card["training"])
    assert exported["bytes"] == sum(path.stat().st_size for path in checkpoint.rglob("*") if path.is_file())
    the_checkpoint_works(checkpoint, config)

    note = run / "search" / "stage.json"
    note.write_text(json.dumps({**json.loads(note.read_text()), "perception": "another"}))
    stale = call("train", "--stage", "export", "--folder", run)
    assert stale.code == 2 and "search was made with another perception" in stale.error_line


def sight_of(folder: Path) -> Any:
    """The bias of the head that reads what tokens show, as a language stage left it."""
    import torch

    return torch.load(folder / "state.pt", weights_only=True)["modules"]["sight"]["heads.bias"]


def the_checkpoint_works(checkpoint: Path, config: Path) -> None:
    """It loads, does not call its weights random, in the shape asked for, and its search towers fit each other."""
    import torch

    from videoxl2 import GenerationSettings, TextEncoder, VideoXL2
    from videoxl2.checkpoint import weights_notice
    from videoxl2.dual_encoder import ImageEncoder

    model = VideoXL2.from_pretrained(str(checkpoint), device="cpu")
    asked_for = ModelSpec.from_config(json.loads(config.read_text()))
    assert "random" not in str(weights_notice(model.info))
    assert (model.spec.vision, model.spec.dts, model.spec.language) == (
        *(asked_for.vision, asked_for.dts, asked_for.language),
    )
    assert model.spec.tokens != TokenIds() and set(model.tokenizer.eos_ids) == set(model.spec.tokens.eos)
    pixels = torch.rand(8, 3, 96, 96) * 2 - 1
    result = model.prefill(model.encode_frames(pixels), [0.0, 4.0])
    assert isinstance(
        model.generate_text(model.assemble(result.chunks), "What?", GenerationSettings(max_new_tokens=3)), str
    )
    images = ImageEncoder.from_pretrained(str(checkpoint), device="cpu")
    texts = TextEncoder.from_pretrained(str(checkpoint)).embed(["a red car"])
    assert images.embed_groups(model.encode_frames(pixels)).shape == (2, texts.shape[1])


def test_impossible_requests_are_refused_in_one_line(tmp_path: Path) -> None:
    for words, said in (
        (("--stage", "fly"), "no stage 'fly'"),
        (("--stage", "footage", "--steps", "3"), "takes no --steps"),
        (("--stage", "search", "--unfreeze", "vision"), "takes no --unfreeze"),
        (("--stage", "footage", "--config", tmp_path / "none.json"), "cannot read"),
    ):
        done = call("train", "--folder", tmp_path / "run", *words)
        assert done.code == 2 and said in done.error_line, done.err
