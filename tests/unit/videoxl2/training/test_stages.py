"""The run folder and the checkpoint: what is fixed by the first command, what is refused, what is written."""

from __future__ import annotations

import dataclasses
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import tokenizers
import torch

from tests.unit.videoxl2.test_config import PUBLISHED
from videoxl2.checkpoint import resolve_checkpoint
from videoxl2.config import ModelSpec, vision_spec_from_hf
from videoxl2.dual_encoder import DualEncoder, ImageEncoder
from videoxl2.errors import ModelError
from videoxl2.model import VideoXL2
from videoxl2.text_tower import TextSpec
from videoxl2.training import stages
from videoxl2.training.errors import TrainingError
from videoxl2.training.export import dual_config, model_card, write_checkpoint
from videoxl2.training.initialise import initialise_for_training
from videoxl2.training.run_folder import STAGES, Run, _group_spec, read_shape
from videoxl2.training.stages import StageOptions, _seed_notices, run_stage


@pytest.fixture
def config(tmp_path: Path, small_spec: ModelSpec) -> Path:
    """A configuration with a tokenizer beside it."""
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(small_spec.to_config()))
    shutil.copy(resolve_checkpoint("tiny") / "tokenizer.json", folder)
    return folder / "config.json"


@pytest.fixture
def models(small_spec: ModelSpec, small_text: TextSpec) -> tuple[VideoXL2, DualEncoder]:
    model, dual = VideoXL2(small_spec), DualEncoder(small_spec.vision, small_text)
    initialise_for_training(model, 0)
    initialise_for_training(dual, 1)
    return model, dual


def raw_tokenizer() -> tokenizers.Tokenizer:
    return tokenizers.Tokenizer.from_file(str(resolve_checkpoint("tiny") / "tokenizer.json"))


def test_the_first_command_fixes_the_shape(tmp_path: Path, config: Path, small_spec: ModelSpec) -> None:
    run = Run.open(tmp_path / "run", config)
    assert run.spec == small_spec
    assert (run.text.width, run.text.vocab_size) == (32, run.tokenizer.vocab_size)
    assert Run.open(tmp_path / "run").spec == small_spec  # later commands need not repeat it
    assert Run.open(tmp_path / "run", config).spec == small_spec
    config.write_text(json.dumps({**small_spec.to_config(), "num_hidden_layers": 3}))
    with pytest.raises(TrainingError, match="begun with another configuration"):
        Run.open(tmp_path / "run", config)


def test_the_published_configuration_is_taken_with_the_ids_of_the_tokenizer(tmp_path: Path) -> None:
    path = tmp_path / "config.json"
    path.write_text(json.dumps(PUBLISHED))
    raw = raw_tokenizer()
    spec = read_shape(path, raw)
    assert dataclasses.replace(spec, tokens=ModelSpec.from_config(PUBLISHED).tokens) == ModelSpec.from_config(PUBLISHED)
    assert spec.tokens.visual_placeholder == raw.token_to_id("<|vision_pad|>")
    assert set(spec.tokens.eos) == {raw.token_to_id("<|im_end|>"), raw.token_to_id("<|endoftext|>")}


def test_a_vocabulary_that_is_too_small_is_refused(config: Path, small_spec: ModelSpec) -> None:
    config.write_text(json.dumps({**small_spec.to_config(), "vocab_size": 100}))
    with pytest.raises(TrainingError, match=r"the model 100; put the model's tokenizer\.json beside"):
        read_shape(config, raw_tokenizer())


@pytest.mark.parametrize("stage", [stage for stage in STAGES if stage != "footage"])
def test_a_stage_without_the_one_before_it_says_which(tmp_path: Path, config: Path, stage: str) -> None:
    options = StageOptions(device="cpu", config=config)
    with pytest.raises(TrainingError, match=r"stage footage|vxl train --stage \w+ first"):
        run_stage(stage, tmp_path / "run", options)


@pytest.mark.parametrize(
    ("stage", "options", "said"),
    [
        ("fly", {}, "no stage 'fly'"),
        ("export", {"steps": 3}, "takes no --steps"),
        ("features", {"minutes": 3.0}, "takes no --minutes"),
        ("search", {"clips": 3}, "takes no --clips"),
        ("features", {"clip_minutes": 10}, "takes no --clip-minutes"),
        ("perception", {"events_per_minute": 10.0}, "takes no --events-per-minute"),
        ("pretraining", {"unfreeze": ("vision",)}, "takes no --unfreeze"),
    ],
)
def test_options_that_would_do_nothing_are_refused(
    tmp_path: Path, stage: str, options: dict[str, Any], said: str
) -> None:
    with pytest.raises(TrainingError, match=said):
        run_stage(stage, tmp_path / "run", StageOptions(**options))
    assert not (tmp_path / "run").exists()


def test_the_configuration_of_the_dual_encoder_follows_its_towers(small_spec: ModelSpec, small_text: TextSpec) -> None:
    written = dual_config(small_spec.vision, small_text)
    tower = written["vision_config"]
    assert vision_spec_from_hf(tower, num_layers=tower["num_hidden_layers"]) == small_spec.vision
    assert TextSpec.from_config(written) == small_text


def test_a_checkpoint_gives_back_its_weights_in_half_precision(
    tmp_path: Path, models: tuple[VideoXL2, DualEncoder]
) -> None:
    model, dual = models
    card = model_card("small", model, dual, {"train": 3}, [{"stage": "search", "steps": 2, "device": None}])
    write_checkpoint(tmp_path / "out", model, dual, raw_tokenizer(), card)
    loaded = VideoXL2.from_pretrained(str(tmp_path / "out"), device="cpu")
    assert loaded.info.is_trained and loaded.info.name == "small"
    for name, parameter in loaded.named_parameters():
        assert torch.equal(parameter, model.get_parameter(name).detach().half().float()), name
    assert loaded.info.card["parameters"]["language"] == sum(p.numel() for p in model.language.parameters())
    assert loaded.info.card["training"][0]["device"] is None


def test_a_head_for_visual_tokens_is_part_of_a_checkpoint_once_it_was_trained(
    tmp_path: Path, models: tuple[VideoXL2, DualEncoder], small_spec: ModelSpec, small_text: TextSpec
) -> None:
    model, dual = models
    plain = tmp_path / "plain"
    write_checkpoint(plain, model, dual, raw_tokenizer(), {"name": "x", "weights": "trained"})
    assert ImageEncoder.from_pretrained(str(plain), device="cpu").token_width is None
    run = Run.open(tmp_path / "run", start=str(plain))
    begun = run.models(torch.device("cpu"), 5)[1]
    assert begun.group is not None, "a run has one to train"
    assert run.group.token_width == small_spec.language.width and not run.starts_with_group_head()
    (run.folder / "clips" / "train").mkdir(parents=True)
    run_stage("export", run.folder, StageOptions())
    untrained = ImageEncoder.from_pretrained(str(run.path("checkpoint")), device="cpu")
    assert untrained.token_width is None, "which is left out as long as it has learned nothing"

    begun.image.encoder = type(model.vision)(small_spec.vision)
    initialise_for_training(begun, 8)
    with_head = tmp_path / "head"
    write_checkpoint(with_head, model, begun, raw_tokenizer(), {"name": "x", "weights": "trained"})
    again = Run.open(tmp_path / "again", start=str(with_head))
    assert again.starts_with_group_head() and again.group == run.group
    head = again.models(torch.device("cpu"), 5)[1].group
    assert head is not None
    tokens_GPD = torch.randn(3, 4, small_spec.language.width)
    expected = torch.nn.functional.normalize(head(tokens_GPD), dim=-1)
    loaded = ImageEncoder.from_pretrained(str(with_head), device="cpu")
    torch.testing.assert_close(loaded.embed_groups(tokens_GPD), expected.detach())
    with pytest.raises(ModelError, match="width 32, not 33"):
        loaded.embed_groups(torch.randn(3, 4, 33))
    with pytest.raises(ModelError, match="width None"):
        untrained.embed_groups(tokens_GPD)


def test_a_head_is_not_exported_beside_a_perception_that_it_has_not_learned_from(
    tmp_path: Path,
    models: tuple[VideoXL2, DualEncoder],
    small_spec: ModelSpec,
    small_text: TextSpec,
    clips: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model, _ = models
    dual = DualEncoder(small_spec.vision, small_text, _group_spec(small_spec, small_text))
    initialise_for_training(dual, 8)
    start = tmp_path / "start"
    write_checkpoint(start, model, dual, raw_tokenizer(), {"name": "x", "weights": "trained"})

    def exported_width(run: Run) -> int | None:
        run_stage("export", run.folder, StageOptions())
        return ImageEncoder.from_pretrained(str(run.path("checkpoint")), device="cpu").token_width

    run = Run.open(tmp_path / "run", start=str(start))
    shutil.copytree(clips, run.path("clips"))
    assert exported_width(run) == small_spec.language.width, "as long as its tokens are what they were"
    monkeypatch.setattr(stages, "SETTLE_STEPS", 0)
    run_stage("perception", run.folder, StageOptions(device="cpu", steps=1))
    assert exported_width(run) is None
    for stage in ("features", "search"):
        run_stage(stage, run.folder, StageOptions(device="cpu", steps=1 if stage == "search" else None))
    assert exported_width(run) == small_spec.language.width, "it has learned from the tokens that are there now"


def test_a_weight_beyond_half_precision_is_refused_before_anything_is_written(
    tmp_path: Path, models: tuple[VideoXL2, DualEncoder]
) -> None:
    model, dual = models
    with torch.no_grad():
        dual.text.head.weight[0, 0] = 1e6
    with pytest.raises(ModelError, match=r"text\.head\.weight of the dual encoder"):
        write_checkpoint(tmp_path / "out", model, dual, raw_tokenizer(), {"name": "x", "weights": "trained"})
    assert not (tmp_path / "out").exists()


@pytest.fixture
def checkpoint(tmp_path: Path, models: tuple[VideoXL2, DualEncoder]) -> Path:
    """A checkpoint folder to go on from."""
    model, dual = models
    card = model_card("small", model, dual, {"train": 3}, [{"stage": "perception", "steps": 7}])
    write_checkpoint(tmp_path / "checkpoint", model, dual, raw_tokenizer(), card)
    return tmp_path / "checkpoint"


def test_a_run_goes_on_from_a_checkpoint(
    tmp_path: Path, checkpoint: Path, models: tuple[VideoXL2, DualEncoder]
) -> None:
    """Nothing was trained yet: what is exported is what it began with, and the stages before are still told of."""
    run = Run.open(tmp_path / "run", start=str(checkpoint))
    model, dual = run.models(torch.device("cpu"), 5)
    assert dual.image.encoder is model.vision
    assert all(parameter.requires_grad for module in (model, dual) for parameter in module.parameters())
    shutil.rmtree(checkpoint)  # the run keeps a copy
    (tmp_path / "run" / "clips" / "train").mkdir(parents=True)
    report = run_stage("export", tmp_path / "run", StageOptions())
    assert any("search vectors" in notice for notice in report.notices)
    exported = VideoXL2.from_pretrained(str(tmp_path / "run" / "checkpoint"), device="cpu")
    for name, parameter in exported.named_parameters():
        before = models[0].get_parameter(name).detach().half().float()
        torch.testing.assert_close(parameter, before, atol=1e-3, rtol=1e-3)
    assert [stage["steps"] for stage in exported.info.card["training"]] == [7]


def test_a_run_that_shows_a_model_what_it_knows_says_so(tmp_path: Path, models: tuple[VideoXL2, DualEncoder]) -> None:
    begun_anew = Run.open(tmp_path / "anew")
    assert _seed_notices(begun_anew, 0) == []
    card = model_card("small", *models, {"train": 3}, [{"stage": "perception", "steps": 7, "seed": 4}])
    write_checkpoint(tmp_path / "seeded", *models, raw_tokenizer(), card)
    run = Run.open(tmp_path / "run", start=str(tmp_path / "seeded"))
    assert _seed_notices(run, 5) == []
    assert "clips of seed 4 before: another --seed" in _seed_notices(run, 4)[0]


def test_a_run_has_one_start(
    tmp_path: Path, checkpoint: Path, config: Path, models: tuple[VideoXL2, DualEncoder]
) -> None:
    folder, options = tmp_path / "run", StageOptions(start=str(checkpoint))
    with pytest.raises(TrainingError, match="give no other configuration"):
        Run.open(folder, config, options.start)
    assert not folder.exists()
    Run.open(folder, start=options.start)
    assert Run.open(folder, start=options.start).start == Run.open(folder).start == folder / "start"
    with torch.no_grad():
        models[0].language.norm.weight.add_(1.0)
    write_checkpoint(checkpoint, *models, raw_tokenizer(), {"name": "x", "weights": "trained"})
    with pytest.raises(TrainingError, match="begun from another checkpoint"):
        Run.open(folder, start=options.start)
    (tmp_path / "other" / "perception").mkdir(parents=True)
    with pytest.raises(TrainingError, match="has begun stage perception without a start"):
        Run.open(tmp_path / "other", start=options.start)


def test_a_start_of_another_shape_leaves_the_run_as_it_was(tmp_path: Path, checkpoint: Path) -> None:
    Run.open(tmp_path / "run")
    with pytest.raises(TrainingError, match="begun with another configuration"):
        Run.open(tmp_path / "run", start=str(checkpoint))
    assert Run.open(tmp_path / "run").start is None
