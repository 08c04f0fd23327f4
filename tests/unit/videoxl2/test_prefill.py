"""Bounds of prefill: context, memory of activations, work per block, streaming."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from videoxl2 import prefill as prefill_module
from videoxl2.config import PrefillSettings
from videoxl2.errors import ContextOverflow
from videoxl2.language import QwenDecoder
from videoxl2.model import VideoXL2
from videoxl2.prefill import prefill_pieces, video_layout


def visual_tokens(groups: int) -> torch.Tensor:
    return torch.randn(groups, 36, 128, generator=torch.Generator().manual_seed(groups))


def test_overflow_is_found_before_any_work(tiny_model: VideoXL2, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(QwenDecoder, "run_keys_values", lambda *_: pytest.fail("work was done"))
    with pytest.raises(ContextOverflow) as caught:
        tiny_model.prefill(visual_tokens(5), [0.0] * 5, PrefillSettings(max_tokens=100))
    assert caught.value.limit == 100 and caught.value.needed > 5 * 36


def test_times_must_match_the_groups(tiny_model: VideoXL2) -> None:
    with pytest.raises(ValueError, match="2 times for 3"):
        tiny_model.prefill(visual_tokens(3), [0.0, 4.0])


def test_no_groups_gives_only_the_prefix(tiny_model: VideoXL2) -> None:
    result = tiny_model.prefill(visual_tokens(0), [])
    assert result.chunks == [] and result.prefix_kv.shape[3] == len(tiny_model.tokenizer.prefix_ids())


def test_chunks_carry_their_groups_and_own_their_memory(tiny_model: VideoXL2) -> None:
    times = [4.0 * group for group in range(8)]
    result = tiny_model.prefill(visual_tokens(8), times, chunk_groups=3)
    assert [chunk.num_groups for chunk in result.chunks] == [3, 3, 2]
    assert result.times == tuple(times)
    for chunk in result.chunks:
        assert chunk.kv_LSKMDh.is_contiguous()
        assert chunk.kv_LSKMDh.untyped_storage().nbytes() == chunk.num_bytes
        assert all(num_visual == 36 and num_time > 0 for num_time, num_visual in chunk.groups)


def test_work_per_block_does_not_grow_with_the_video(tiny_model: VideoXL2, monkeypatch: pytest.MonkeyPatch) -> None:
    """Rows of a block, keys that its visual rows see (window, prefix, timestamps), and masks no longer than a pass."""
    calls: list[tuple[int, int, int]] = []
    real = prefill_module.attend_parts

    def recorded(
        q: torch.Tensor,
        seen: list[tuple[torch.Tensor, torch.Tensor]],
        own: tuple[torch.Tensor, torch.Tensor],
        *rest: Any,
        **options: Any,
    ) -> torch.Tensor:
        calls.append((q.shape[2], sum(k.shape[2] for k, _ in seen), own[0].shape[2]))
        return real(q, seen, own, *rest, **options)

    monkeypatch.setattr(prefill_module, "attend_parts", recorded)
    groups, settings = 30, PrefillSettings(block_groups=2, previous_blocks=1)
    layout = video_layout(tiny_model.tokenizer, [4.0 * g for g in range(groups)], visual_tokens(groups))
    tiny_model.prefill(visual_tokens(groups), [4.0 * g for g in range(groups)], settings)
    longest_block = 2 * max(span.end - span.start for span in layout.spans)
    kept = layout.visual_start + layout.num_time_tokens(groups)
    full_view = [call for call in calls if call[1] > kept]
    for rows, seen, own in calls:
        if seen > kept or own > 2 * longest_block:
            assert rows <= 4 * 2 * 12, "only timestamp rows of a pass see everything"
        assert own <= 4 * longest_block
    layers = tiny_model.spec.language.num_layers - 1
    assert len(calls) == layers * ((15 - 2) + 4), "one call per layer and block, one more per pass of four blocks"
    assert len(full_view) == layers * 3, "the first pass has nothing before it but the prefix"


def test_chunks_are_handed_out_while_the_video_runs(tiny_model: VideoXL2) -> None:
    visual = visual_tokens(12)
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
