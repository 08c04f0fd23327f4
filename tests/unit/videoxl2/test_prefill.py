"""Bounds of prefill: context, memory of activations, work per block, streaming."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from videoxl2 import prefill as prefill_module
from videoxl2 import prefill_attention
from videoxl2.config import PrefillSettings
from videoxl2.errors import ContextOverflow
from videoxl2.language import QwenDecoder
from videoxl2.model import VideoXL2
from videoxl2.prefill import prefill_pieces, video_layout


def visual_tokens(model: VideoXL2, groups: int) -> torch.Tensor:
    shape = (groups, model.spec.tokens_per_group, model.spec.language.width)
    return torch.randn(shape, generator=torch.Generator().manual_seed(groups))


def test_overflow_is_found_before_any_work(tiny_model: VideoXL2, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(QwenDecoder, "run_keys_values", lambda *_: pytest.fail("work was done"))
    with pytest.raises(ContextOverflow) as caught:
        tiny_model.prefill(visual_tokens(tiny_model, 5), [0.0] * 5, PrefillSettings(max_tokens=100))
    assert caught.value.limit == 100 and caught.value.needed > 5 * tiny_model.spec.tokens_per_group


def test_times_must_match_the_groups(tiny_model: VideoXL2) -> None:
    with pytest.raises(ValueError, match="2 times for 3"):
        tiny_model.prefill(visual_tokens(tiny_model, 3), [0.0, 4.0])


def test_no_groups_gives_only_the_prefix(tiny_model: VideoXL2) -> None:
    result = tiny_model.prefill(visual_tokens(tiny_model, 0), [])
    assert result.chunks == [] and result.prefix_kv.shape[3] == len(tiny_model.tokenizer.prefix_ids())


def test_no_segments_give_no_results(tiny_model: VideoXL2) -> None:
    assert tiny_model.prefill_batch([]) == []


def test_chunks_carry_their_groups_and_own_their_memory(tiny_model: VideoXL2) -> None:
    times = [4.0 * group for group in range(8)]
    result = tiny_model.prefill(visual_tokens(tiny_model, 8), times, chunk_groups=3)
    assert [chunk.num_groups for chunk in result.chunks] == [3, 3, 2]
    assert result.times == tuple(times)
    for chunk in result.chunks:
        assert chunk.kv_LSKMDh.is_contiguous()
        assert chunk.kv_LSKMDh.untyped_storage().nbytes() == chunk.num_bytes
        assert all(
            num_visual == tiny_model.spec.tokens_per_group and num_time > 0 for num_time, num_visual in chunk.groups
        )


def test_work_per_row_does_not_grow_with_the_video(tiny_model: VideoXL2, monkeypatch: pytest.MonkeyPatch) -> None:
    """Visual rows see window, prefix and timestamps; timestamp rows see all, once; no mask is longer than a pass."""
    blocks: list[tuple[int, int, int]] = []
    full_view: list[tuple[int, int, int]] = []
    commons: list[tuple[int, int]] = []
    real_parts, real_part = prefill_attention.attend_parts, prefill_attention.attend_part

    def recorded_parts(
        q: torch.Tensor,
        seen: list[tuple[torch.Tensor, torch.Tensor]],
        own: tuple[torch.Tensor, torch.Tensor],
        mask: torch.Tensor,
        **options: Any,
    ) -> torch.Tensor:
        assert mask.shape == (q.shape[2], own[0].shape[2])
        calls = blocks if q.shape[2] == 2 * tiny_model.spec.tokens_per_group else full_view
        calls.append((q.shape[2], sum(k.shape[2] for k, _ in seen), own[0].shape[2]))
        return real_parts(q, seen, own, mask, **options)

    def recorded_part(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, **options: Any) -> Any:
        commons.append((q.shape[2], k.shape[2]))
        return real_part(q, k, v, **options)

    monkeypatch.setattr(prefill_attention, "attend_parts", recorded_parts)
    monkeypatch.setattr(prefill_attention, "attend_part", recorded_part)
    groups, settings = 30, PrefillSettings(block_groups=2, previous_blocks=1)
    visual = visual_tokens(tiny_model, groups)
    layout = video_layout(tiny_model.tokenizer, [4.0 * g for g in range(groups)], visual)
    longest_block = 2 * max(span.end - span.start for span in layout.spans)
    monkeypatch.setattr(prefill_module, "PASS_TOKENS", 3 * longest_block + 1)  # passes of four blocks
    tiny_model.prefill(visual, [4.0 * g for g in range(groups)], settings)
    layers = tiny_model.spec.language.num_layers - 1
    kept = layout.visual_start + layout.num_time_tokens(groups)
    commons, earlier = commons[0::2], commons[1::2]
    assert len(blocks) == layers * (15 - 2) and len(commons) == len(earlier) == len(full_view) == layers * 4
    assert all(
        rows == 2 * layout.tokens_per_group and own <= 2 * longest_block and seen <= kept for rows, seen, own in blocks
    )
    assert all(keys <= kept for _, keys in commons)
    limited_groups = groups - 2 * 2
    visual_rows = layers * limited_groups * layout.tokens_per_group
    time_rows = layers * (layout.num_time_tokens(groups) - layout.num_time_tokens(2 * 2))
    assert sum(rows for rows, _, _ in blocks) == sum(rows for rows, _ in commons) == visual_rows
    assert sum(rows for rows, _, _ in full_view) == time_rows, "timestamp rows are computed once"
    assert sum(rows for rows, _ in earlier) == time_rows, "and in one call over all that lies before their pass"


def test_passes_of_a_long_video_are_longer_and_their_masks_are_not(
    tiny_model: VideoXL2, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A pass takes a quarter of what lies before it, within bounds; its masks stay those of a short one."""
    lengths: list[int] = []
    masked: list[tuple[int, int]] = []
    monkeypatch.setattr(prefill_module, "PASS_TOKENS", 100)
    monkeypatch.setattr(prefill_module, "LONGEST_PASS_TOKENS", 400)
    run, parts = tiny_model.language.run_keys_values, prefill_attention.attend_parts
    monkeypatch.setattr(
        tiny_model.language, "run_keys_values", lambda x, attention: (lengths.append(x.shape[1]), run(x, attention))[1]
    )

    def recorded(q: Any, seen: Any, own: Any, mask: torch.Tensor, **options: Any) -> torch.Tensor:
        masked.append((mask.shape[0], mask.shape[1]))
        return parts(q, seen, own, mask, **options)

    monkeypatch.setattr(prefill_attention, "attend_parts", recorded)
    tiny_model.prefill(visual_tokens(tiny_model, 80), [0.0] * 80, PrefillSettings(block_groups=1, previous_blocks=1))
    per_group = tiny_model.spec.tokens_per_group + 2
    assert lengths[1] < 100 + per_group and 400 <= max(lengths) < 400 + per_group
    assert lengths[1:-1] == sorted(lengths[1:-1])
    times = [(rows, keys) for rows, keys in masked if rows <= 2 * 4]
    assert max(rows for rows, _ in times) <= 2 * 4, "timestamps of about 100 tokens at a time"
    assert max(keys for _, keys in times) < 400 + per_group


def test_passes_are_whole_blocks_of_enough_tokens(tiny_model: VideoXL2, monkeypatch: pytest.MonkeyPatch) -> None:
    lengths: list[int] = []
    monkeypatch.setattr(prefill_module, "PASS_TOKENS", 300)
    run = tiny_model.language.run_keys_values
    monkeypatch.setattr(
        tiny_model.language, "run_keys_values", lambda x, attention: (lengths.append(x.shape[1]), run(x, attention))[1]
    )
    visual = visual_tokens(tiny_model, 17)
    result = tiny_model.prefill(visual, [0.0] * 17, PrefillSettings(block_groups=1))
    per_group = sum(result.chunks[0].groups[0])
    blocks = -(-300 // per_group)
    prefix, *passes = lengths
    assert prefix == result.prefix_kv.shape[3] and sum(passes) == 17 * per_group
    assert passes == [blocks * per_group] * (17 // blocks) + ([17 % blocks * per_group] if 17 % blocks else [])


def test_chunks_are_handed_out_while_the_video_runs(tiny_model: VideoXL2, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(prefill_module, "PASS_TOKENS", 8 * tiny_model.spec.tokens_per_group)  # at most four blocks
    visual = visual_tokens(tiny_model, 12)
    layout = video_layout(tiny_model.tokenizer, [0.0] * 12, visual)
    settings = PrefillSettings(block_groups=2)
    seen: list[int] = []
    run = tiny_model.language.run_keys_values
    pieces = prefill_pieces(tiny_model.language, layout, visual, settings, 3)
    try:
        tiny_model.language.run_keys_values = lambda *a: (seen.append(1), run(*a))[1]  # type: ignore[method-assign]
        next(pieces)
        next(pieces)
        assert len(seen) == 2, "prefix and the pass of four blocks that the first chunk lies in"
    finally:
        del tiny_model.language.run_keys_values


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_stays_close(tiny_model: VideoXL2, tiny_pixels: torch.Tensor, dtype: torch.dtype) -> None:
    half = VideoXL2.from_pretrained("tiny", device="cpu", dtype=dtype)
    exact, rough = (model.encode_frames(tiny_pixels) for model in (tiny_model, half))
    assert rough.dtype == dtype and float((exact - rough.float()).abs().max()) < 0.2
    times = [0.0, 4.0, 8.0]
    first, second = (model.prefill(exact, times).chunks[0].kv_LSKMDh for model in (tiny_model, half))
    assert second.dtype == dtype and second.isfinite().all()
    assert float((first - second.float()).abs().mean()) < 0.05


def test_the_host_is_asked_for_ids_once_per_pass(tiny_model: VideoXL2, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not per group: on a GPU each would be an upload of its own."""
    monkeypatch.setattr(prefill_module, "PASS_TOKENS", 8 * tiny_model.spec.tokens_per_group)
    embed, passes = QwenDecoder.embed, list[int]()

    def counted(self: QwenDecoder, ids: Any) -> torch.Tensor:
        passes.append(len(ids))
        return embed(self, ids)

    monkeypatch.setattr(QwenDecoder, "embed", counted)
    tiny_model.prefill(visual_tokens(tiny_model, 20), [4.0 * group for group in range(20)])
    assert len(passes) == 1 + 3 and min(passes) > 0, "the prefix, and three passes of two blocks at most"
