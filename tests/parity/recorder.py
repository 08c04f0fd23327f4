"""Makes a recording in the golden format from our plain reference path: one masked pass, no blocks, no shared cache.

It exists to run ``videoxl2.parity`` over other dimensions than the published recording has. What it writes says nothing
about the published code; it says that the comparison takes everything from the folder.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from videoxl2.attention import attend
from videoxl2.config import DTSSpec, LanguageSpec, ModelSpec, PrefillSettings, TokenIds, VisionSpec
from videoxl2.decode import published_dense_chunks
from videoxl2.dts import reinterpret_groups
from videoxl2.kv import ChunkKV, sparsify
from videoxl2.layout import TokenLayout, plan_chunks
from videoxl2.masked_prefill import prefill_masked, visibility_mask
from videoxl2.model import VideoXL2
from videoxl2.preprocess import frames_to_pixels
from videoxl2.training.make_random_checkpoint import initialise
from videoxl2.vision import resize_grid
from videoxl2.weights import save_weights, video_table

TOKENS = {
    "image_sentinel": -200,
    "visual_placeholder": 88,
    "time_start": 70,
    "time_end": 25,
    "space": 60,
    "dot": 13,
    "digit_zero": 15,
    "letter_s": 71,
    "eos": None,
}


@dataclass(frozen=True)
class Plan:
    """What to record; nothing of it equals the published recording."""

    frames: int = 27
    interval_s: float = 1.7
    block_groups: int = 3
    previous_blocks: int = 1
    dump_group: int = 6
    layer: int = 2
    new_tokens: int = 5
    selections: tuple[tuple[str, int, int, tuple[int, ...]], ...] = (
        ("odd", 3, 2, (2, 99)),
        ("wide-5", 5, 8, (0,)),
        ("one", 1, 5, (3, 1)),
        ("all", 4, 2, ()),
    )


def spec() -> ModelSpec:
    return ModelSpec(
        vision=VisionSpec(width=96, mlp_width=40, num_layers=1, num_heads=3, image_size=27, patch_size=2),
        dts=DTSSpec(channels=96, grid=8, max_relative_position=3),
        language=LanguageSpec(
            vocab_size=90,
            width=24,
            mlp_width=40,
            num_layers=4,
            num_heads=6,
            num_kv_heads=3,
            head_dim=4,
            max_positions=300,
            rope_theta=1e4,
        ),
        tokens=TokenIds(visual_placeholder=TOKENS["visual_placeholder"] or 0),
    )


def record(folder: Path, plan: Plan) -> Path:
    """Write the recording into ``folder``."""
    folder.mkdir(parents=True, exist_ok=True)
    model = VideoXL2(spec()).requires_grad_(False).eval()
    initialise(model, 5)
    generator = torch.Generator().manual_seed(7)
    # Rounded to half precision, so that recorded pixels are exact.
    pixels = (torch.rand(plan.frames, 3, 27, 27, generator=generator) * 2 - 1).to(torch.float16)
    second = (torch.rand(3, 3, 27, 27, generator=generator) * 2 - 1).to(torch.float16)
    prefix, suffix = [3, 1, 4, 1, 5], [9, 2, 6, 5, 3, 5]
    times = [round(plan.interval_s * frame, 1) for frame in range(plan.frames)]
    layout = TokenLayout.build(prefix, [timestamp(t) for t in times[::4]], 16)
    visual = encode(model, pixels.float())
    tensors: dict[str, Tensor] = {
        "pixels": pixels,
        "prompt_ids": torch.tensor([*prefix, -200, *suffix]),
        "time_embedding_ids": torch.tensor(layout_ids(layout)),
        "second.pixels": second,
        "second.time_embedding_ids": torch.tensor([*timestamp(0.0), *[TOKENS["visual_placeholder"] or 0] * 16]),
        "second.pooled_visual_tokens": encode(model, second.float()),
        "probe_positions": torch.tensor([0, 7, layout.length - 1, layout.length + 2]),
        **preprocessing(generator),
        **vision_stages(model, pixels.float(), plan),
    }
    settings = {
        "full": PrefillSettings(mode="plain"),
        "chunk": PrefillSettings(block_groups=plan.block_groups, previous_blocks=plan.previous_blocks),
    }
    for mode, knobs in settings.items():
        tensors |= mode_stages(model, layout, visual, knobs, suffix, plan, mode, tensors["probe_positions"])
    mask = visibility_mask(layout, len(suffix), settings["chunk"])
    rows = torch.tensor([2, layout.spans[-1].start, layout.spans[-1].end - 1, len(mask) - 1])
    tensors["chunk.mask_row_counts"] = mask.sum(dim=1).to(torch.int32)
    tensors["chunk.mask_rows_index"], tensors["chunk.mask_rows"] = rows, mask[rows].to(torch.uint8)

    masked = prefill_masked(model.language, layout, visual, times[::4], settings["chunk"], 1, suffix)
    whole = torch.cat([masked.result.prefix_kv, *(c.kv_LSKMDh for c in masked.result.chunks)], dim=3)
    everything = torch.cat((whole, masked.suffix_kv_LSKMDh), dim=3)
    tensors[f"bilevel.prefill.kv.layer{plan.layer}.key_prerope"] = everything[plan.layer, 0]
    described = []
    for name, size, compression, units in plan.selections:
        chunks = plan_chunks(layout.num_groups, size)
        dense = published_dense_chunks(units, size, len(chunks))
        pieces = [masked.result.prefix_kv]
        for place, (first, end) in enumerate(chunks):
            start, stop = layout.token_span(first, end)
            piece = ChunkKV(whole[:, :, :, start:stop], layout.group_sizes(first, end), masked.result.chunks[0].level)
            pieces.append((piece if place in dense else sparsify(piece, compression)).kv_LSKMDh)
        mixed = torch.cat(pieces, dim=3)
        described.append(
            {
                "name": name,
                "selected_chunk_size": size,
                "compression": compression,
                "selected_unit_indices": list(units),
                "num_decode_chunks": len(chunks),
                "dense_chunks_1based": [place + 1 for place in dense],
                "sparse_chunks_1based": [p + 1 for p in range(len(chunks)) if p not in dense],
                "mixed_kv_len": mixed.shape[3],
            }
        )
        tensors |= bilevel_stages(model, mixed, suffix, plan, f"bilevel.{name}")
    config = {
        "format": "videoxl2-golden-v1",
        "dtype": "float32",
        "tolerance": {"vision_abs": 2e-5, "logits_abs": 3e-5, "kv_abs": 4e-5},
        **architecture(model.spec),
        "token_ids": TOKENS,
        "inputs": {
            "num_groups": layout.num_groups,
            "timestamps_s": times,
            "group_timestamps_s": times[::4],
            "prefix_ids": prefix,
            "suffix_ids": suffix,
            "sequence_length": layout.length + len(suffix),
            "group_spans": [[span.start, span.time_end, span.end] for span in layout.spans],
        },
        "second": {"frame_interval_s": 2.0},
        "stage_dumps": {"group": plan.dump_group},
        "prefill": {
            "block_size_chosed": plan.block_groups,
            "prev_blocks_num": plan.previous_blocks,
            "allowed_pairs": int(mask.sum()),
        },
        "bilevel_selections": described,
    }
    save_weights(model, folder / "weights.safetensors", video_table(model.spec))
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, folder / "tensors.safetensors")
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def architecture(model_spec: ModelSpec) -> dict[str, Any]:
    flat = model_spec.to_config()
    return {
        "vision_config": flat.pop("vision_config"),
        "dts_config": flat.pop("dts_config"),
        "model_config": {name: value for name, value in flat.items() if name != "token_ids"},
    }


def timestamp(t_s: float) -> list[int]:
    named = {".": 13, "s": 71, ":": 25}
    return [70, 60, *(named[c] if c in named else 15 + int(c) for c in f"{t_s:.1f}s:")]


def layout_ids(layout: TokenLayout) -> list[int]:
    return [token for ids in layout.time_ids for token in (*ids, *[88] * layout.tokens_per_group)]


def encode(model: VideoXL2, pixels: Tensor) -> Tensor:
    """Group by group, filled with the last frame."""
    groups = []
    for first in range(0, len(pixels), 4):
        frames = pixels[first : first + 4]
        maps = resize_grid(model.vision(torch.cat((frames, frames[-1:].expand(4 - len(frames), -1, -1, -1)))), 8)
        groups.append(model.projector(model.dts(reinterpret_groups(maps, 4))))
    return torch.cat(groups)


def preprocessing(generator: torch.Generator) -> dict[str, Tensor]:
    frames = torch.randint(0, 256, (1, 19, 23, 3), generator=generator, dtype=torch.uint8)
    sliced = frames_to_pixels(frames, 384)[:, :, ::32, ::32].contiguous()
    return {"preprocess.input_u8_hwc": frames, "preprocess.output_slice": sliced}


def vision_stages(model: VideoXL2, pixels: Tensor, plan: Plan) -> dict[str, Tensor]:
    """The last group is not full: its real frames are dumped, the rest of the chain has copies."""
    frames = pixels[4 * plan.dump_group : 4 * plan.dump_group + 4]
    features = model.vision(frames)
    maps = resize_grid(features, 8)
    hidden = reinterpret_groups(torch.cat((maps, maps[-1:].expand(4 - len(maps), -1, -1, -1))), 4)
    found = {"vit_out": features, "interp_out_slice": maps[:, :3], "dts_in_slice": hidden[0, :5]}
    hidden = hidden + model.dts.temporal_encoding.T[None, :, :, None, None]
    for index, layer in enumerate(model.dts.encoder):
        hidden = layer(hidden)
        found[f"dts_layer{index}_out_slice"] = hidden[0, :, :, :2, :3]
    merged = hidden[0].flatten(1).T[None]
    return {
        **found,
        "dts_out": hidden[0],
        "proj_out_slice": model.projector.mlp(merged)[0, :9],
        "pooled_visual_tokens": model.projector(merged)[0],
        "inputs_embeds": input_embeddings(model, pixels, plan),
    }


def input_embeddings(model: VideoXL2, pixels: Tensor, plan: Plan) -> Tensor:
    visual = encode(model, pixels)
    rows = [model.language.embed([3, 1, 4, 1, 5])]
    for group, tokens in enumerate(visual):
        rows += [model.language.embed(timestamp(round(plan.interval_s * 4 * group, 1))), tokens]
    return torch.cat([*rows, model.language.embed([9, 2, 6, 5, 3, 5])])


def mode_stages(
    model: VideoXL2,
    layout: TokenLayout,
    visual: Tensor,
    knobs: PrefillSettings,
    suffix: list[int],
    plan: Plan,
    mode: str,
    probes: Tensor,
) -> dict[str, Tensor]:
    """One masked pass over everything for every token, the answer so far included."""
    answer: list[int] = []
    steps: list[Tensor] = []
    stages: dict[str, Tensor] = {}
    for _ in range(plan.new_tokens):
        masked = prefill_masked(model.language, layout, visual, [0.0] * len(visual), knobs, 1, [*suffix, *answer])
        logits = model.language.logits(masked.hidden_MD)
        if not answer:
            pieces = (masked.result.prefix_kv, *(chunk.kv_LSKMDh for chunk in masked.result.chunks))
            keys, values = torch.cat((*pieces, masked.suffix_kv_LSKMDh), dim=3)[plan.layer]
            stages = {
                f"{mode}.suffix_logits": logits[layout.length :],
                f"{mode}.probe_logits": logits[probes],
                f"{mode}.kv.layer{plan.layer}.key_postrope": model.language.rotary(0, len(logits)).rotate(keys),
                f"{mode}.kv.layer{plan.layer}.value": values,
            }
        steps.append(logits[-1])
        answer.append(int(logits[-1].argmax()))
    tokens = torch.tensor(answer)
    return {**stages, f"{mode}.step_logits": torch.stack(steps[:3]), f"{mode}.greedy_tokens": tokens}


class WholeCacheAttention:
    """As published: keys are kept before rotation and the whole cache is rotated for every pass."""

    def __init__(self, model: VideoXL2, kv: Tensor, count: int) -> None:
        self.kv, self.count, self.start = kv, count, kv.shape[3]
        self.rotary = model.language.rotary(0, self.start + count)
        self.queries = model.language.rotary(self.start, self.start + count)

    def keep(self, layer: int, k: Tensor, v: Tensor) -> None:
        keys, values = torch.cat((self.kv[layer, 0][None], k), dim=2), torch.cat((self.kv[layer, 1][None], v), dim=2)
        self.keys, self.values = self.rotary.rotate(keys), values

    def attend(self, layer: int, q: Tensor) -> Tensor:
        return attend(self.queries.rotate(q), self.keys, self.values, causal=True)


def bilevel_stages(model: VideoXL2, mixed: Tensor, suffix: list[int], plan: Plan, name: str) -> dict[str, Tensor]:
    answer: list[int] = []
    steps: list[Tensor] = []
    for _ in range(plan.new_tokens):
        ids = [*suffix, *answer]
        hidden = model.language.run(model.language.embed(ids)[None], WholeCacheAttention(model, mixed, len(ids)))[0]
        logits = model.language.logits(hidden)
        steps.append(logits[: len(suffix)] if not answer else logits[-1:])
        answer.append(int(logits[-1].argmax()))
    return {
        f"{name}.kv.layer{plan.layer}.key_prerope": mixed[plan.layer, 0],
        f"{name}.kv.layer{plan.layer}.value": mixed[plan.layer, 1],
        f"{name}.suffix_position_ids": torch.arange(mixed.shape[3], mixed.shape[3] + len(suffix)),
        f"{name}.suffix_logits": steps[0],
        f"{name}.step_logits": torch.stack([logits[-1] for logits in steps[:2]]),
        f"{name}.greedy_tokens": torch.tensor(answer),
    }
