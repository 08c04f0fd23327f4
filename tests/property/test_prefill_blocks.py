"""Block-wise prefill equals one masked pass, whatever the sizes; KV is free of position."""

from __future__ import annotations

import functools
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.parity.tolerances import BATCHED, CHUNKED
from videoxl2 import prefill as prefill_module
from videoxl2.attention import AttentionBackend
from videoxl2.config import LanguageSpec, PrefillSettings
from videoxl2.errors import ContextOverflow
from videoxl2.language import QwenDecoder
from videoxl2.layout import TokenLayout, plan_chunks
from videoxl2.masked_prefill import prefill_masked, visibility_mask
from videoxl2.prefill import ArrivingPrefill, PrefillResult, prefill, prefill_batch, prefill_layout
from videoxl2.training.make_random_checkpoint import initialise

SEEDED = settings(max_examples=60, deadline=None, derandomize=True)
SPEC = LanguageSpec(
    vocab_size=40, width=24, mlp_width=32, num_layers=3, num_heads=4, num_kv_heads=2, head_dim=8, max_positions=4096
)


@functools.cache
def decoder() -> QwenDecoder:
    decoder = QwenDecoder(SPEC).requires_grad_(False)
    initialise(decoder, 3)
    return decoder


def layout_of(time_lengths: list[int], tokens_per_group: int, prefix: int) -> TokenLayout:
    time_ids = [[(7 * group + step) % 40 for step in range(length)] for group, length in enumerate(time_lengths)]
    return TokenLayout.build(range(prefix), time_ids, tokens_per_group)


@contextmanager
def passes_of(
    tokens: int, backend: AttentionBackend = AttentionBackend.SDPA, *, longest: int | None = None
) -> Iterator[None]:
    """Passes of at least so many tokens, which may grow with the video up to ``longest``, through one backend."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(prefill_module, "PASS_TOKENS", tokens)
        patch.setattr(prefill_module, "LONGEST_PASS_TOKENS", longest or tokens)
        patch.setattr(decoder(), "backend", backend)
        yield


def joined(result: PrefillResult) -> torch.Tensor:
    return torch.cat([result.prefix_kv, *(chunk.kv_LSKMDh for chunk in result.chunks)], dim=3)


@SEEDED
@given(
    time_lengths=st.lists(st.integers(1, 4), min_size=1, max_size=14),
    tokens_per_group=st.integers(1, 5),
    prefix=st.integers(1, 5),
    block_groups=st.integers(1, 5),
    previous_blocks=st.integers(1, 4),
    chunk_groups=st.integers(1, 6),
    mode=st.sampled_from(["chunked", "bounded", "plain"]),
    timestamp_groups=st.none() | st.integers(0, 5),
    pass_tokens=st.integers(1, 60),
    longest_pass=st.integers(1, 60),
    backend=st.sampled_from([AttentionBackend.SDPA, AttentionBackend.PLAIN]),
    seed=st.integers(0, 5),
)
def test_blocks_equal_one_masked_pass(
    time_lengths: list[int],
    tokens_per_group: int,
    prefix: int,
    block_groups: int,
    previous_blocks: int,
    chunk_groups: int,
    mode: str,
    timestamp_groups: int | None,
    pass_tokens: int,
    longest_pass: int,
    backend: AttentionBackend,
    seed: int,
) -> None:
    layout = layout_of(time_lengths, tokens_per_group, prefix)
    visual = torch.randn(len(time_lengths), tokens_per_group, 24, generator=torch.Generator().manual_seed(seed))
    times = [4.0 * group for group in range(len(time_lengths))]
    knobs = PrefillSettings.model_validate(
        {
            "block_groups": block_groups,
            "previous_blocks": previous_blocks,
            "mode": mode,
            "timestamp_groups": timestamp_groups if mode == "bounded" else None,
        }
    )
    with passes_of(pass_tokens, backend, longest=longest_pass):
        streamed = prefill_layout(decoder(), layout, visual, times, knobs, chunk_groups)
    masked = prefill_masked(decoder(), layout, visual, times, knobs, chunk_groups).result
    assert [chunk.groups for chunk in streamed.chunks] == [chunk.groups for chunk in masked.chunks]
    assert (joined(streamed) - joined(masked)).abs().max() <= CHUNKED


class TimedModel:
    """A decoder and a tokenizer whose timestamps grow with the time."""

    def __init__(self) -> None:
        self.language, self.tokenizer = decoder(), self

    def prefix_ids(self) -> list[int]:
        return [1, 2, 3]

    def timestamp_ids(self, t_s: float) -> list[int]:
        return [7, *(8 + int(digit) for digit in str(int(t_s)))]


@SEEDED
@given(
    parts=st.lists(st.integers(0, 5), min_size=1, max_size=8).filter(any),
    block_groups=st.integers(1, 4),
    chunk_groups=st.integers(1, 6),
    mode=st.sampled_from(["chunked", "bounded", "plain"]),
    pass_tokens=st.integers(1, 60),
    longest_pass=st.integers(1, 60),
    expected_groups=st.integers(0, 40),
)
def test_a_video_that_arrives_in_parts_has_the_kv_of_the_whole_bit_for_bit(
    parts: list[int],
    block_groups: int,
    chunk_groups: int,
    mode: str,
    pass_tokens: int,
    longest_pass: int,
    expected_groups: int,
) -> None:
    model, count = TimedModel(), sum(parts)
    visual = torch.randn(count, 3, 24, generator=torch.Generator().manual_seed(count))
    times = [3.0 * group for group in range(count)]
    knobs = PrefillSettings.model_validate({"block_groups": block_groups, "previous_blocks": 1, "mode": mode})
    with passes_of(pass_tokens, longest=longest_pass):
        whole = prefill(model, visual, times, knobs, chunk_groups)
        arriving = ArrivingPrefill(model, knobs, chunk_groups, expected_groups=expected_groups)
        first = 0
        for part in parts:
            arriving.add(visual[first : first + part], times[first : first + part])
            first += part
        result = arriving.finish()
    assert [chunk.groups for chunk in result.chunks] == [chunk.groups for chunk in whole.chunks]
    assert torch.equal(joined(result), joined(whole))
    assert (result.times, result.settings) == (whole.times, whole.settings)


def test_what_has_arrived_runs_before_the_rest_is_there() -> None:
    model = TimedModel()
    visual = torch.randn(12, 3, 24, generator=torch.Generator().manual_seed(1))
    with passes_of(1):
        arriving = ArrivingPrefill(model, PrefillSettings(block_groups=2, previous_blocks=1), 3)
        for group in range(0, 12, 4):
            arriving.add(visual[group : group + 4], [float(group + i) for i in range(4)])
            assert arriving.num_chunks == (group + 4) // 3
        assert arriving.num_chunks == 4 and len(arriving.finish().chunks) == 4


def test_when_a_video_has_ended_its_working_cache_is_let_go_and_another_may_come() -> None:
    model, visual = TimedModel(), torch.randn(6, 3, 24, generator=torch.Generator().manual_seed(2))
    times = [float(group) for group in range(6)]
    arriving = ArrivingPrefill(model, None, 3)
    arriving.add(visual, times)
    assert arriving._run is not None
    working_cache = weakref.ref(arriving._run._cache)
    first = arriving.finish()
    assert working_cache() is None
    with pytest.raises(ValueError, match="no frame group"):
        arriving.finish()
    arriving.add(visual, times)
    assert torch.equal(joined(arriving.finish()), joined(first)) and len(first.chunks) == 2


def test_a_video_that_grows_too_long_is_refused_when_it_does() -> None:
    arriving = ArrivingPrefill(TimedModel(), PrefillSettings(max_tokens=40), 3, expected_groups=1000)
    visual = torch.zeros(4, 3, 24)
    arriving.add(visual, [0.0, 1.0, 2.0, 3.0])
    with pytest.raises(ContextOverflow, match="40"):
        arriving.add(visual, [4.0, 5.0, 6.0, 7.0])
    with pytest.raises(ValueError, match="no frame group"):
        ArrivingPrefill(TimedModel()).finish()
    with pytest.raises(ValueError, match="1 times for 4"):
        ArrivingPrefill(TimedModel()).add(visual, [0.0])


@pytest.mark.parametrize("mode", ["chunked", "bounded", "plain"])
def test_blocks_through_flex_attention_equal_one_masked_pass(mode: str) -> None:
    layout = layout_of([2, 3, 1] * 5, 4, 3)
    visual = torch.randn(15, 4, 24, generator=torch.Generator().manual_seed(4))
    knobs = PrefillSettings.model_validate({"block_groups": 2, "previous_blocks": 1, "mode": mode})
    with passes_of(20, AttentionBackend.FLEX, longest=40):
        streamed = prefill_layout(decoder(), layout, visual, [0.0] * 15, knobs, 4)
    masked = prefill_masked(decoder(), layout, visual, [0.0] * 15, knobs, 4).result
    assert (joined(streamed) - joined(masked)).abs().max() <= CHUNKED


@SEEDED
@given(
    num_groups=st.integers(1, 12),
    block_groups=st.integers(1, 4),
    previous_blocks=st.integers(1, 4),
    num_suffix=st.integers(0, 3),
)
def test_mask_follows_the_five_rules(num_groups: int, block_groups: int, previous_blocks: int, num_suffix: int) -> None:
    """The rules of section 4.1, read one pair at a time."""
    layout = layout_of([2] * num_groups, 3, 2)
    knobs = PrefillSettings(block_groups=block_groups, previous_blocks=previous_blocks)
    block: dict[int, int] = {}
    is_time: set[int] = set()
    for group, span in enumerate(layout.spans):
        block.update(dict.fromkeys(range(span.start, span.end), group // block_groups))
        is_time.update(range(span.start, span.time_end))

    def allowed(i: int, j: int) -> bool:
        if j > i:
            return False
        if j < layout.visual_start or i >= layout.length or i < layout.visual_start or j in is_time or i in is_time:
            return True
        return 0 <= block[i] - block[j] <= previous_blocks

    size = layout.length + num_suffix
    expected = torch.tensor([[allowed(i, j) for j in range(size)] for i in range(size)])
    assert torch.equal(visibility_mask(layout, num_suffix, knobs), expected)


@SEEDED
@given(
    num_groups=st.integers(1, 12),
    block_groups=st.integers(1, 4),
    previous_blocks=st.integers(1, 3),
    timestamp_groups=st.none() | st.integers(0, 6),
)
def test_bounded_mask_one_pair_at_a_time(
    num_groups: int, block_groups: int, previous_blocks: int, timestamp_groups: int | None
) -> None:
    """Timestamp rows have the rule of visual rows; timestamps before the window may be limited to the latest groups."""
    layout = layout_of([2] * num_groups, 3, 2)
    knobs = PrefillSettings(
        block_groups=block_groups, previous_blocks=previous_blocks, mode="bounded", timestamp_groups=timestamp_groups
    )
    group_of = {p: g for g, span in enumerate(layout.spans) for p in range(span.start, span.end)}
    is_time = set(layout.time_positions(0, num_groups))

    def allowed(i: int, j: int) -> bool:
        if j > i or j < layout.visual_start or i >= layout.length:
            return j <= i
        if i < layout.visual_start:
            return True
        window_first = max(0, group_of[i] // block_groups - previous_blocks) * block_groups
        if group_of[j] >= window_first:
            return True
        return j in is_time and (timestamp_groups is None or group_of[j] >= window_first - timestamp_groups)

    size = layout.length + 2
    expected = torch.tensor([[allowed(i, j) for j in range(size)] for i in range(size)])
    assert torch.equal(visibility_mask(layout, 2, knobs), expected)


class FixedTokenizer:
    """Timestamps of one to three tokens and a prefix of two."""

    def prefix_ids(self) -> list[int]:
        return [3, 4]

    def timestamp_ids(self, t_s: float) -> list[int]:
        return [5 + step for step in range(1 + int(t_s) % 3)]


@dataclass
class Segmenter:
    language: QwenDecoder
    tokenizer: FixedTokenizer


@SEEDED
@given(
    lengths=st.lists(st.integers(0, 20), min_size=1, max_size=5),
    block_groups=st.integers(1, 4),
    chunk_groups=st.integers(1, 6),
    mode=st.sampled_from(["chunked", "bounded", "plain"]),
    pass_tokens=st.integers(1, 60),
)
def test_a_batch_of_segments_equals_each_alone(
    lengths: list[int], block_groups: int, chunk_groups: int, mode: str, pass_tokens: int
) -> None:
    model = Segmenter(decoder(), FixedTokenizer())
    knobs = PrefillSettings.model_validate({"block_groups": block_groups, "previous_blocks": 1, "mode": mode})
    generator = torch.Generator().manual_seed(sum(lengths))
    segments = [(torch.randn(n, 3, 24, generator=generator), [float(7 * g + n) for g in range(n)]) for n in lengths]
    with passes_of(pass_tokens):
        together = prefill_batch(model, segments, knobs, chunk_groups)
    assert len(together) == len(segments)
    for found, (visual, times) in zip(together, segments, strict=True):
        alone = prefill(model, visual, times, knobs, chunk_groups)
        assert found.times == alone.times
        assert [chunk.groups for chunk in found.chunks] == [chunk.groups for chunk in alone.chunks]
        largest = max(1.0, float(joined(alone).abs().max()))
        assert float((joined(found) - joined(alone)).abs().max()) <= BATCHED * largest


@SEEDED
@given(num_groups=st.integers(0, 60), chunk_groups=st.integers(1, 20))
def test_chunks_tile_the_groups_once_in_order(num_groups: int, chunk_groups: int) -> None:
    chunks = plan_chunks(num_groups, chunk_groups)
    assert [group for first, end in chunks for group in range(first, end)] == list(range(num_groups))
    assert all(end - first == chunk_groups for first, end in chunks[:-1])


@pytest.mark.parametrize("groups", [8, 64])
def test_visual_tokens_forget_what_lies_before_their_window(groups: int) -> None:
    """A far visual token must not reach later visual tokens of the first layers except through timestamps."""
    layout = layout_of([2] * groups, 3, 2)
    visual = torch.randn(groups, 3, 24, generator=torch.Generator().manual_seed(0))
    changed = visual.clone()
    changed[0] += 1.0
    knobs = PrefillSettings(block_groups=1, previous_blocks=1)
    before, after = (
        joined(prefill_layout(decoder(), layout, tokens, [0.0] * groups, knobs, 4)) for tokens in (visual, changed)
    )
    last = layout.spans[-1]
    moved = (before - after).abs().amax(dim=(1, 2, 4))
    assert (moved[0, layout.spans[1].start :] == 0).all(), "layer 0 sees only its own token"
    assert (moved[1, last.time_end :] == 0).all(), "visual rows of layer 1 have not seen group 0"
    assert (moved[1, last.start : last.time_end] > 0).all(), "timestamp rows have"
    assert (moved[2, last.time_end :] > 0).all(), "and pass it on"
