"""How much arithmetic a video needs, counted as in ``reference`` section 9: one multiply-add is two operations.

Matrix products and attention only; norms, softmax and embeddings are left out. Integers, no tensors.
"""

from __future__ import annotations

from dataclasses import dataclass

from videoxl2.config import DTSSpec, LanguageSpec, ModelSpec, PrefillSettings, VisionSpec
from videoxl2.layout import TokenLayout, plan_chunks


@dataclass(frozen=True, slots=True)
class PrefillFlops:
    """Operations of one prefilled video by part."""

    vision: int
    dts: int
    projector: int
    language_linear: int
    language_attention: int

    @property
    def total(self) -> int:
        return self.vision + self.dts + self.projector + self.language_linear + self.language_attention


def vision_flops_per_frame(spec: VisionSpec) -> int:
    """Patch embedding and the layers that run, for one frame."""
    tokens, width = spec.patch_grid**2, spec.width
    layer = 2 * tokens * (4 * width**2 + 2 * width * spec.mlp_width) + 4 * tokens**2 * width
    return spec.num_layers * layer + 2 * tokens * width * spec.num_channels * spec.patch_size**2


def dts_flops_per_group(spec: DTSSpec) -> int:
    """Two rounds of spatial attention, temporal attention and down-sampling."""
    total, slots, places, C = 0, spec.frames_per_group, spec.grid**2, spec.channels
    for _ in range(2):
        projections = 8 * C**2 * slots * places
        spatial = projections + 4 * places**2 * C * slots
        temporal = projections + 8 * slots**2 * C * places  # two products with content, two with the relative tables
        slots //= 2
        total += spatial + temporal + 2 * 27 * C**2 * slots * places
    return total


def projector_flops_per_group(spec: ModelSpec) -> int:
    """Both linear layers, on every grid position before pooling."""
    width = spec.language.width
    return 2 * spec.dts.grid**2 * (spec.dts.channels * width + width**2)


def language_flops_per_token(spec: LanguageSpec) -> int:
    """The linear layers of the whole decoder for one token, without the head."""
    return spec.num_layers * (_key_value_flops(spec) + _other_flops(spec))


def head_flops_per_token(spec: LanguageSpec) -> int:
    """The head, for one position that it is applied to."""
    return 2 * spec.width * spec.vocab_size


def attention_flops_per_pair(spec: LanguageSpec) -> int:
    """All layers and heads, for one query that sees one key."""
    return 4 * spec.num_heads * spec.head_dim * spec.num_layers


def visible_pairs(layout: TokenLayout, settings: PrefillSettings) -> int:
    """Pairs of a query and a key that it sees, over prefix and video."""
    blocks = plan_chunks(layout.num_groups, settings.block_groups)
    pairs = layout.visual_start * (layout.visual_start + 1) // 2
    before_times = [0]
    for span in layout.spans:
        before_times.append(before_times[-1] + span.time_end - span.start)
    for index, (first, end) in enumerate(blocks):
        start, stop = layout.token_span(first, end)
        rows = stop - start
        back = len(blocks) if settings.mode == "plain" else settings.previous_blocks
        window_first = blocks[max(0, index - back)][0]
        time_first = 0
        if settings.mode == "bounded" and settings.timestamp_groups is not None:
            time_first = max(0, window_first - settings.timestamp_groups)
        earlier_times = before_times[window_first] - before_times[time_first]
        seen_before = layout.visual_start + earlier_times + start - layout.spans[window_first].start
        pairs += rows * seen_before + rows * (rows + 1) // 2
        if settings.mode == "chunked":
            pairs += (before_times[end] - before_times[first]) * (start - seen_before)
    return pairs


def prefill_flops(
    spec: ModelSpec,
    layout: TokenLayout,
    num_frames: int,
    settings: PrefillSettings,
    *,
    whole_last_layer: bool = False,
) -> PrefillFlops:
    """The arithmetic from pixels to KV.

    Of the decoder's last layer a cache needs keys and values only, which is all that our prefill computes;
    ``whole_last_layer`` counts it in full, as the published single pass runs it.
    """
    language, groups = spec.language, layout.num_groups
    linear, pair = language_flops_per_token(language), attention_flops_per_pair(language)
    if not whole_last_layer:
        linear -= _other_flops(language)
        pair -= pair // language.num_layers
    return PrefillFlops(
        vision=num_frames * vision_flops_per_frame(spec.vision),
        dts=groups * dts_flops_per_group(spec.dts),
        projector=groups * projector_flops_per_group(spec),
        language_linear=layout.length * linear,
        language_attention=visible_pairs(layout, settings) * pair,
    )


def _key_value_flops(spec: LanguageSpec) -> int:
    return 2 * 2 * spec.width * spec.num_kv_heads * spec.head_dim


def _other_flops(spec: LanguageSpec) -> int:
    return 2 * (2 * spec.width * spec.num_heads * spec.head_dim + 3 * spec.width * spec.mlp_width)
