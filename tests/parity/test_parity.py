"""``vxl parity``: everything comes from the folder, and what does not hold is named."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from jobs.cli import main
from tests.parity.conftest import GOLDEN_FOLDER
from tests.parity.recorder import Plan, record
from tests.parity.recorder import spec as recorder_spec
from videoxl2.errors import CheckpointMismatch
from videoxl2.model import VideoXL2
from videoxl2.parity import Comparison, ParityReport, compare_recording
from videoxl2.recording import Recording, RecordingError, Tolerances
from videoxl2.sampling import published_frame_indices

PLANS = {
    "ragged": Plan(),
    "whole-groups": Plan(
        frames=20, interval_s=31.5, block_groups=1, previous_blocks=1, dump_group=1, layer=0, new_tokens=2
    ),
    "one-frame": Plan(
        frames=1, dump_group=0, selections=(("nothing-left", 1, 17, (0,)), ("larger-than-the-video", 9, 1, ()))
    ),
    "long-timestamps": Plan(
        frames=61,
        interval_s=700.3,
        block_groups=5,
        previous_blocks=2,
        dump_group=15,
        new_tokens=9,
        selections=(("one-token", 4, 16, (30, 1)), ("uneven", 7, 7, (2,)), ("none", 3, 100, (4,))),
    ),
    "shorter-than-a-block": Plan(frames=6, block_groups=5, dump_group=0, selections=(("x", 2, 3, (0,)),)),
}


@pytest.fixture(scope="module", params=PLANS)
def other(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return record(tmp_path_factory.mktemp("recording"), PLANS[request.param])


@pytest.fixture(scope="module")
def ragged(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return record(tmp_path_factory.mktemp("recording"), PLANS["ragged"])


@pytest.fixture
def copied(ragged: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(ragged, tmp_path / "copy"))


def rewrite_tensors(folder: Path, change: Callable[[dict[str, Tensor]], object]) -> None:
    tensors = load_file(folder / "tensors.safetensors")
    change(tensors)
    save_file(tensors, folder / "tensors.safetensors")


def rewrite_config(folder: Path, change: Callable[[dict[str, Any]], object]) -> None:
    config = json.loads((folder / "config.json").read_text())
    change(config)
    (folder / "config.json").write_text(json.dumps(config))


def failed(report: ParityReport) -> set[str]:
    return {stage.name for stage in report.stages if not stage.ok}


def test_other_dimensions_hold(other: Path) -> None:
    report = compare_recording(other)
    assert not failed(report) and report.ok
    names = {stage.name for stage in report.stages}
    inputs = {"pixels", "second.pixels", "preprocess.input_u8_hwc", "probe_positions", "chunk.mask_rows_index"}
    assert set(load_file(other / "tensors.safetensors")) - inputs <= names
    assert {stage.tolerance for stage in report.stages} == {0.0, 1e-6, 2e-5, 3e-5, 4e-5}, "the recording's own"


@pytest.mark.parametrize(
    "name",
    [
        "vit_out",
        "dts_layer3_out_slice",
        "second.pooled_visual_tokens",
        "full.probe_logits",
        "chunk.kv.layer2.value",
        "bilevel.prefill.kv.layer2.key_prerope",
        "bilevel.wide-5.suffix_logits",
        "preprocess.output_slice",
    ],
)
def test_a_number_that_was_changed_fails_its_stage_only(copied: Path, name: str) -> None:
    def change(tensors: dict[str, Tensor]) -> None:
        tensors[name].view(-1)[-1] += 1e-3

    rewrite_tensors(copied, change)
    report = compare_recording(copied)
    assert failed(report) == {name} and not report.ok
    (stage,) = (stage for stage in report.stages if stage.name == name)
    assert stage.max_abs_diff == pytest.approx(1e-3, abs=1e-4)


@pytest.mark.parametrize(
    ("name", "mismatches"),
    [("bilevel.odd.greedy_tokens", 2), ("chunk.mask_rows", 2), ("full.greedy_tokens", 2), ("prompt_ids", 2)],
)
def test_integers_count_their_mismatches(copied: Path, name: str, mismatches: int) -> None:
    def change(tensors: dict[str, Tensor]) -> None:
        flat = tensors[name].view(-1)
        flat[:mismatches] = 1 - flat[:mismatches]

    rewrite_tensors(copied, change)
    report = compare_recording(copied)
    assert {stage.name: stage.max_abs_diff for stage in report.stages if not stage.ok} == {name: float(mismatches)}


def test_a_weight_that_was_changed_fails(copied: Path) -> None:
    weights = load_file(copied / "weights.safetensors")
    weights["model.layers.1.mlp.down_proj.weight"][0] += 0.1
    save_file(weights, copied / "weights.safetensors")
    found = failed(compare_recording(copied))
    assert "chunk.suffix_logits" in found and "vit_out" not in found


def test_an_unknown_tensor_is_named(copied: Path) -> None:
    rewrite_tensors(copied, lambda tensors: tensors.update({"bilevel.later.suffix_logits": torch.zeros(1)}))
    report = compare_recording(copied)
    assert [(s.name, s.max_abs_diff) for s in report.stages if not s.ok] == [("bilevel.later.suffix_logits", None)]
    assert "unknown tensor" in report.stages[-1].problem


def test_a_missing_input_fails_what_needs_it(copied: Path) -> None:
    rewrite_tensors(copied, lambda tensors: tensors.pop("probe_positions"))
    (stage,) = (s for s in compare_recording(copied).stages if s.problem.startswith("missing") and s.name == "full")
    assert "probe_positions" in stage.problem


def test_a_selection_without_tensors_is_missing(copied: Path) -> None:
    def drop(tensors: dict[str, Tensor]) -> None:
        for name in [name for name in tensors if name.startswith("bilevel.one.")]:
            del tensors[name]

    rewrite_tensors(copied, drop)
    assert failed(compare_recording(copied)) == {"bilevel.one"}


def test_absent_stages_are_not_run(copied: Path) -> None:
    """What is left is computed all the same: steps without tokens, times without ids."""
    absent = ("full.suffix_logits", "full.greedy_tokens", "chunk.greedy_tokens", "time_embedding_ids")

    def drop(tensors: dict[str, Tensor]) -> None:
        for name in [name for name in tensors if name in absent or name.startswith("bilevel.")]:
            del tensors[name]

    def change(config: dict[str, Any]) -> None:
        config["bilevel_selections"] = []
        del config["inputs"]["group_timestamps_s"]

    rewrite_tensors(copied, drop)
    rewrite_config(copied, change)
    report = compare_recording(copied)
    names = {stage.name for stage in report.stages}
    assert not failed(report) and report.ok and not names & set(absent)
    assert {"full.step_logits", "chunk.step_logits", "layout.group_spans", "group_timestamps_s"} <= names


def test_vision_alone_can_be_recorded(copied: Path) -> None:
    kept = ("pixels", "vit_out", "interp_out_slice", "dts_out", "pooled_visual_tokens")

    def drop(tensors: dict[str, Tensor]) -> None:
        for name in set(tensors).difference(kept):
            del tensors[name]

    def change(config: dict[str, Any]) -> None:
        for name in ("inputs", "prefill", "bilevel_selections"):
            del config[name]

    rewrite_tensors(copied, drop)
    rewrite_config(copied, change)
    report = compare_recording(copied)
    assert report.ok and {stage.name for stage in report.stages} == set(kept[1:])

    rewrite_tensors(copied, lambda tensors: tensors.update({"dts_out": torch.zeros(96, 0, 8, 8)}))
    (stage,) = (stage for stage in compare_recording(copied).stages if not stage.ok)
    assert stage.name == "dts_out" and "empty" in stage.problem


def test_facts_of_the_configuration_are_compared(copied: Path) -> None:
    def change(config: dict[str, Any]) -> None:
        config["prefill"]["allowed_pairs"] += 1
        config["bilevel_selections"][0]["dense_chunks_1based"].append(9)
        config["inputs"]["group_spans"][2][0] += 1

    rewrite_config(copied, change)
    expected = {"prefill.allowed_pairs", "bilevel.odd.dense_chunks_1based", "layout.group_spans"}
    assert failed(compare_recording(copied)) == expected


def test_another_shape_is_no_difference_of_zero(copied: Path) -> None:
    rewrite_tensors(
        copied, lambda t: t.update({"dts_out": t["dts_out"].flatten(), "vit_out": t["vit_out"] * torch.nan})
    )
    problems = {stage.name: stage.problem for stage in compare_recording(copied).stages if not stage.ok}
    assert problems == {
        "vit_out": "not all numbers are finite",
        "dts_out": "shape [96, 1, 8, 8], recorded [6144]",
    }


def test_pixels_that_do_not_fit_end_their_stages_only(copied: Path) -> None:
    rewrite_tensors(copied, lambda tensors: tensors.update({"pixels": tensors["pixels"][:, :, :20, :20].contiguous()}))
    report = compare_recording(copied)
    problems = {stage.name: stage.problem for stage in report.stages if stage.problem}
    assert "cannot be run" in problems["vision"] and "cannot be run" in problems["full"]
    assert "second.pooled_visual_tokens" not in problems


def test_folders_that_are_no_recording(tmp_path: Path, copied: Path) -> None:
    with pytest.raises(RecordingError, match=r"config\.json"):
        compare_recording(tmp_path)
    (tmp_path / "config.json").write_text('{"format": "other"}')
    with pytest.raises(RecordingError, match="'other'"):
        compare_recording(tmp_path)
    (tmp_path / "config.json").write_text('{"format": "videoxl2-golden-v1"}')
    with pytest.raises(RecordingError, match=r"weights\.safetensors"):
        compare_recording(tmp_path)
    (copied / "tensors.safetensors").write_bytes(b"no tensors")
    with pytest.raises(RecordingError, match="cannot read"):
        compare_recording(copied)


def test_a_selection_of_another_form_is_named(copied: Path) -> None:
    rewrite_config(copied, lambda config: config["bilevel_selections"][0].update(selected_chunk_size="all"))
    with pytest.raises(RecordingError, match=r"a selection of .* has another form: .*'all'"):
        compare_recording(copied)


@pytest.mark.parametrize(("variant", "kept"), [("w_chunk", 3), ("w_chunk_bilevel", 7)])
def test_sampling_of_every_variant_is_compared(ragged: Path, variant: str, kept: int) -> None:
    """Long lists are recorded by as many entries at their ends as the recording likes."""
    indices, times_s = published_frame_indices(3000, 25.0, 100)
    ends = {
        name: [*values[:kept], "...", *values[-kept:]]
        for name, values in (("frame_idx", indices), ("timestamps", times_s))
    }
    case: dict[str, Any] = {"total_frames": 3000, "video_fps": 25.0, "max_frames_num": 100, "fps": 1, "max_fps": 4}
    comparison = Comparison(Recording(ragged, {}, {}, VideoXL2(recorder_spec())), Tolerances(0, 0, 0))
    for wrong in (0, 1):
        ends["frame_idx"][-1] += wrong
        document = {"cases": [{**case, variant: {"n": len(indices), **ends}}]}
        (ragged / "sampling.json").write_text(json.dumps(document))
        assert [(s.name, s.max_abs_diff) for s in comparison.sampling()] == [(f"sampling.{variant}", wrong)]
    (ragged / "sampling.json").unlink()


def test_weights_of_another_model_are_listed(copied: Path) -> None:
    rewrite_config(copied, lambda config: config["model_config"].update(num_hidden_layers=5))
    with pytest.raises(CheckpointMismatch, match=r"12 missing: model\.layers\.4"):
        compare_recording(copied)


def test_command_line(copied: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert main(["parity", str(GOLDEN_FOLDER), "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert document["ok"] and len(document["stages"]) == 73
    assert all(set(stage) == {"name", "max_abs_diff", "tolerance", "ok"} for stage in document["stages"])

    rewrite_tensors(copied, lambda tensors: tensors["full.greedy_tokens"].add_(1))
    assert main(["parity", str(copied), "--json"]) == 1
    document = json.loads(capsys.readouterr().out)
    assert not document["ok"]
    assert [stage["name"] for stage in document["stages"] if not stage["ok"]] == ["full.greedy_tokens"]
    assert main(["parity", str(copied)]) == 1
    assert capsys.readouterr().out.strip().endswith("stages do not hold: full.greedy_tokens")

    assert main(["parity", str(tmp_path / "nothing")]) == 2
    captured = capsys.readouterr()
    assert captured.out == "" and captured.err.startswith("vxl: cannot read") and captured.err.count("\n") == 1
