"""The cost model against the specification's table (section 9) and against the mask itself."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.unit.videoxl2.test_config import PUBLISHED
from videoxl2.config import ModelSpec, PrefillSettings
from videoxl2.flops import (
    attention_flops_per_pair,
    dts_flops_per_group,
    head_flops_per_token,
    language_flops_per_token,
    prefill_flops,
    projector_flops_per_group,
    visible_pairs,
    vision_flops_per_frame,
)
from videoxl2.layout import TokenLayout
from videoxl2.masked_prefill import visibility_mask

SPEC = ModelSpec.from_config(PUBLISHED)


def published_layout(times_s: list[float]) -> TokenLayout:
    """Timestamps of 6 tokens and the digits of their whole seconds."""
    return TokenLayout.build([1] * 14, [[1] * (6 + len(str(int(t_s)))) for t_s in times_s], 144)


def test_parts_per_frame_group_and_token() -> None:
    assert vision_flops_per_frame(SPEC.vision) == pytest.approx(0.642e12, rel=1e-3)
    assert dts_flops_per_group(SPEC.dts) == pytest.approx(206.5e9, rel=2e-3)
    assert projector_flops_per_group(SPEC) == pytest.approx(19.6e9, rel=3e-3)
    assert language_flops_per_token(SPEC.language) == pytest.approx(13.05e9, rel=1e-3)
    assert head_flops_per_token(SPEC.language) == pytest.approx(1.09e9, rel=1e-3)
    assert attention_flops_per_pair(SPEC.language) == 401_408


@pytest.mark.parametrize(
    ("frames", "every_s", "block", "window", "linear", "vision", "full", "ratio", "chunked"),
    [
        (256, 1.0, 4, 3, 0.127, 0.178, 0.019, 0.465, 0.009),
        (300, 3.4, 4, 3, 0.149, 0.209, 0.027, 0.421, 0.011),
        (400, 2.55, 4, 3, 0.199, 0.278, 0.047, 0.351, 0.017),
        (400, 2.55, 6, 5, 0.199, 0.278, 0.047, 0.606, 0.029),
        (600, 6.8, 4, 11, 0.299, 0.416, 0.107, 0.581, 0.062),
        (2048, 1.0, 4, 3, 1.03, 1.42, 1.24, 0.169, 0.21),
        (3600, 1.0, 4, 3, 1.81, 2.50, 3.84, 0.150, 0.58),
        (10000, 1.0, 4, 3, 5.02, 6.94, 29.7, 0.135, 4.0),
    ],
)
def test_table_of_the_specification(
    frames: int,
    every_s: float,
    block: int,
    window: int,
    linear: float,
    vision: float,
    full: float,
    ratio: float,
    chunked: float,
) -> None:
    """Its attention includes a question of 60 tokens, which sees everything; its linear part does not."""
    layout = published_layout([every_s * frame for frame in range(0, frames, 4)])
    knobs = PrefillSettings(block_groups=block, previous_blocks=window)
    found = prefill_flops(SPEC, layout, frames, knobs, whole_last_layer=True)
    length = layout.length + 60
    pair = attention_flops_per_pair(SPEC.language)
    question = length * (length + 1) // 2 - layout.length * (layout.length + 1) // 2
    every = visible_pairs(layout, PrefillSettings(mode="plain")) + question
    seen = visible_pairs(layout, knobs) + question
    assert every == length * (length + 1) // 2
    peta = 1e15
    assert layout.length * language_flops_per_token(SPEC.language) / peta == pytest.approx(linear, rel=0.01)
    assert (found.vision + found.dts) / peta == pytest.approx(vision, rel=0.01)
    assert pair * every / peta == pytest.approx(full, rel=0.03)
    assert seen / every == pytest.approx(ratio, abs=0.002)
    assert pair * seen / peta == pytest.approx(chunked, abs=0.006 if chunked < 1 else 0.06)


@settings(max_examples=60, deadline=None, derandomize=True)
@given(
    time_lengths=st.lists(st.integers(1, 4), min_size=1, max_size=14),
    block=st.integers(1, 5),
    window=st.integers(1, 4),
    mode=st.sampled_from(["chunked", "bounded", "plain"]),
    timestamp_groups=st.none() | st.integers(0, 5),
)
def test_pairs_are_those_of_the_mask(
    time_lengths: list[int], block: int, window: int, mode: str, timestamp_groups: int | None
) -> None:
    layout = TokenLayout.build([1, 2, 3], [[0] * length for length in time_lengths], 5)
    knobs = PrefillSettings.model_validate(
        {
            "block_groups": block,
            "previous_blocks": window,
            "mode": mode,
            "timestamp_groups": timestamp_groups if mode == "bounded" else None,
        }
    )
    assert visible_pairs(layout, knobs) == int(visibility_mask(layout, 0, knobs).sum())


def test_our_last_layer_is_keys_and_values_only() -> None:
    layout = published_layout([0.0, 4.0])
    ours, whole = (
        prefill_flops(SPEC, layout, 8, PrefillSettings(), whole_last_layer=whole_layer) for whole_layer in (False, True)
    )
    assert ours.language_attention * 28 == whole.language_attention * 27
    skipped = 2 * (2 * 3584 * 3584 + 3 * 3584 * 18944)
    assert whole.language_linear - ours.language_linear == layout.length * skipped
    parts = (whole.vision, whole.dts, whole.projector, whole.language_linear, whole.language_attention)
    assert whole.total == sum(parts)
