"""Every tensor that the published code recorded, and every fact of its configuration, met within ``tolerances``."""

from __future__ import annotations

import pytest
import torch
from safetensors import safe_open

from tests.parity.conftest import GOLDEN_FOLDER, max_difference
from tests.parity.tolerances import EXACT, KV, LOGITS, PREPROCESS, VISION
from videoxl2.dts import reinterpret_groups
from videoxl2.parity import Comparison, ParityReport
from videoxl2.recording import Recording, Tolerances

INPUTS = {
    "pixels",
    "small.pixels",
    "preprocess.input_u8_hwc",
    "probe_positions",
    "chunk.mask_rows_index",
}
FACTS = [
    *(f"sampling.{name}" for name in ("pure", "w_chunk", "prompt_time_rewrite")),
    *(f"layout.{name}" for name in ("group_spans", "visual_start", "visual_end", "sequence_length", "num_groups")),
    *(f"prefill.{name}" for name in ("num_blocks", "frames_per_block", "block_spans", "allowed_pairs")),
    *(
        f"bilevel.{selection}.{name}"
        for selection in ("selA", "selB", "selEmpty")
        for name in ("num_decode_chunks", "dense_chunks_1based", "sparse_chunks_1based", "mixed_kv_len")
    ),
    "group_timestamps_s",
]
with safe_open(GOLDEN_FOLDER / "tensors.safetensors", framework="pt") as recorded_file:
    RECORDED = sorted(recorded_file.keys())


@pytest.fixture(scope="module")
def comparison() -> Comparison:
    strict = Tolerances(vision=VISION, logits=LOGITS, kv=KV, preprocess=PREPROCESS)
    return Comparison(Recording.load(GOLDEN_FOLDER), strict)


@pytest.fixture(scope="module")
def report(comparison: Comparison) -> ParityReport:
    return comparison.run()


@pytest.mark.parametrize("name", [*(name for name in RECORDED if name not in INPUTS), *FACTS])
def test_stage(report: ParityReport, name: str) -> None:
    (stage,) = (stage for stage in report.stages if stage.name == name)
    assert stage.ok, f"{stage.max_abs_diff} > {stage.tolerance} {stage.problem}"


def test_nothing_else_is_reported(report: ParityReport) -> None:
    assert {stage.name for stage in report.stages} == {*RECORDED, *FACTS} - INPUTS
    assert report.ok


def test_reinterpretation_moves_nothing() -> None:
    maps = torch.arange(8 * 64 * 2 * 2, dtype=torch.float32).view(8, 64, 2, 2)
    groups = reinterpret_groups(maps, 4)
    for g, c, t in ((0, 0, 0), (0, 16, 0), (0, 63, 3), (1, 17, 2)):
        flat = 4 * c + t
        assert max_difference(groups[g, c, t], maps[4 * g + flat // 64, flat % 64]) == EXACT


def test_text_embeddings_are_copied(comparison: Comparison) -> None:
    prefix_ids = comparison.recording.prefix_ids
    found = comparison.recording.model.language.embed(prefix_ids)
    assert max_difference(found, comparison.recording.tensors["inputs_embeds"][: len(prefix_ids)]) == EXACT


def test_batching_of_vision_changes_nothing(comparison: Comparison) -> None:
    found = comparison.recording.model.encode_frames(comparison.pixels, batch_groups=1)
    assert max_difference(found, comparison.visual_GPD) <= VISION


def test_block_wise_answer_equals_the_masked_pass(comparison: Comparison) -> None:
    """The recorded logits of question positions, from the reference pass as well."""
    for mode in ("full", "chunk"):
        expected = comparison.recording.tensors[f"{mode}.suffix_logits"]
        with torch.no_grad():
            found = comparison.recording.model.language.logits(comparison.masked(mode).hidden_MD[-len(expected) :])
        assert max_difference(found, expected) <= LOGITS
