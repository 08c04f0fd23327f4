"""Every vision stage against the recorded tensors of the published code."""

from __future__ import annotations

import torch

from tests.parity.conftest import Golden, max_difference
from tests.parity.tolerances import EXACT, PREPROCESS, VISION
from videoxl2.dts import reinterpret_groups
from videoxl2.prefill import embed_groups
from videoxl2.preprocess import frames_to_pixels
from videoxl2.vision import resize_grid


def test_tower_and_grid(golden: Golden) -> None:
    tensors = golden.tensors
    with torch.no_grad():
        features = golden.model.vision(tensors["pixels"][:4].float())
        maps = resize_grid(features, golden.model.spec.dts.grid)
    assert max_difference(features, tensors["vit_out"]) <= VISION
    assert max_difference(maps[:, :8], tensors["interp_out_slice"]) <= VISION


def test_reinterpretation_moves_nothing(golden: Golden) -> None:
    maps = torch.arange(8 * 64 * 2 * 2, dtype=torch.float32).view(8, 64, 2, 2)
    groups = reinterpret_groups(maps, 4)
    for g, c, t in ((0, 0, 0), (0, 16, 0), (0, 63, 3), (1, 17, 2)):
        flat = 4 * c + t
        assert max_difference(groups[g, c, t], maps[4 * g + flat // 64, flat % 64]) == EXACT


def test_every_dts_layer(golden: Golden) -> None:
    tensors, model = golden.tensors, golden.model
    seen: list[torch.Tensor] = []
    hooks = [layer.register_forward_hook(lambda _m, _i, out: seen.append(out)) for layer in model.dts.encoder]
    try:
        with torch.no_grad():
            maps = resize_grid(model.vision(tensors["pixels"][:4].float()), model.spec.dts.grid)
            groups = reinterpret_groups(maps, 4)
            merged = model.dts(groups)
    finally:
        for hook in hooks:
            hook.remove()
    assert max_difference(groups[0, :8], tensors["dts_in_slice"]) <= VISION
    for index, out in enumerate(seen):
        assert max_difference(out[0, :, :, :4, :4], tensors[f"dts_layer{index}_out_slice"]) <= VISION, index
    assert max_difference(merged[0].T.reshape(64, 1, 24, 24), tensors["dts_out"]) <= VISION


def test_projector_before_pooling(golden: Golden) -> None:
    tensors, model = golden.tensors, golden.model
    merged = tensors["dts_out"].flatten(1).T[None]
    with torch.no_grad():
        assert max_difference(model.projector.mlp(merged)[0, :144], tensors["proj_out_slice"]) <= VISION
        assert max_difference(model.projector(merged)[0], tensors["pooled_visual_tokens"]) <= VISION


def test_visual_tokens_of_a_group(golden: Golden, golden_visual: torch.Tensor) -> None:
    assert golden_visual.shape == (9, 144, 80)
    assert max_difference(golden_visual[0], golden.tensors["pooled_visual_tokens"]) <= VISION


def test_last_group_is_filled_with_the_last_frame(golden: Golden) -> None:
    found = golden.model.encode_frames(golden.tensors["small.pixels"].float())
    assert max_difference(found, golden.tensors["small.pooled_visual_tokens"]) <= VISION


def test_batching_changes_nothing(golden: Golden, golden_visual: torch.Tensor) -> None:
    found = golden.model.encode_frames(golden.tensors["pixels"].float(), batch_groups=1)
    assert max_difference(found, golden_visual) <= VISION


def test_input_embeddings(golden: Golden, golden_visual: torch.Tensor) -> None:
    decoder, layout = golden.model.language, golden.layout
    pieces = (
        decoder.embed(golden.prefix_ids),
        embed_groups(decoder, layout, golden_visual, 0, layout.num_groups),
        decoder.embed(golden.suffix_ids),
    )
    assert max_difference(torch.cat(pieces), golden.tensors["inputs_embeds"]) <= VISION
    assert max_difference(pieces[0], golden.tensors["inputs_embeds"][: layout.visual_start]) == EXACT


def test_preprocessing(golden: Golden) -> None:
    pixels = frames_to_pixels(golden.tensors["preprocess.input_u8_hwc"], 384)
    assert pixels.shape == (2, 3, 384, 384)
    assert max_difference(pixels[:, :, ::16, ::16], golden.tensors["preprocess.output_slice"]) <= PREPROCESS
