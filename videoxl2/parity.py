"""Our stages against a recording of the published code: the largest difference of each, stage by stage.

A stage is one recorded tensor, named as it was recorded, or one fact of the recorded configuration. Numbers are
compared by their largest absolute difference; token ids, masks, positions and facts by the number of mismatches, which
must be 0. Each stage is computed from the recorded inputs by our own chain, never from another recorded stage. Which
tensors and modes are run follows from what the recording holds; a tensor that nothing here can compare fails, since
what has not been compared has not been shown.

Shapes: F frames, C channels, G frame groups, P visual tokens per group, D text width, M tokens.
"""

from __future__ import annotations

import functools
import json
import math
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from videoxl2.decode import assemble_cache, generate, published_dense_chunks
from videoxl2.dts import reinterpret_groups
from videoxl2.errors import ModelError
from videoxl2.kv import ChunkKV, rechunk, sparsify
from videoxl2.layout import TokenLayout, plan_chunks
from videoxl2.masked_prefill import MaskedPrefill, prefill_masked, visibility_mask
from videoxl2.prefill import PrefillResult, embed_groups, prefill_layout
from videoxl2.preprocess import frames_to_pixels
from videoxl2.recording import Recording, RecordingError, Selection, Tolerances
from videoxl2.sampling import published_frame_indices, rewrite_clock_times
from videoxl2.vision import resize_grid

_PREPROCESSED_SIDE = 384
"""The side that the published preprocessing resizes to, whatever a recording's tower takes."""


@dataclass(frozen=True, slots=True)
class Stage:
    """One comparison. ``max_abs_diff`` is None where none could be made; ``problem`` then says why."""

    name: str
    max_abs_diff: float | None
    tolerance: float
    problem: str = ""

    @property
    def ok(self) -> bool:
        return self.max_abs_diff is not None and self.max_abs_diff <= self.tolerance


@dataclass(frozen=True, slots=True)
class ParityReport:
    """Every stage that a recording holds, in the order of the model."""

    stages: tuple[Stage, ...]

    @property
    def ok(self) -> bool:
        """All stages hold, and there is at least one."""
        return bool(self.stages) and all(stage.ok for stage in self.stages)

    def to_document(self) -> dict[str, Any]:
        """``{"stages": [{"name", "max_abs_diff", "tolerance", "ok"}], "ok"}``; ``problem`` only where there is one."""
        stages: list[dict[str, Any]] = []
        for stage in self.stages:
            entry = {
                "name": stage.name,
                "max_abs_diff": stage.max_abs_diff,
                "tolerance": stage.tolerance,
                "ok": stage.ok,
            }
            stages.append({**entry, "problem": stage.problem} if stage.problem else entry)
        return {"stages": stages, "ok": self.ok}


def compare_recording(folder: Path | str, tolerances: Tolerances | None = None) -> ParityReport:
    """Run every stage and mode that a recording holds; ``tolerances`` None takes the recorded ones.

    Raises ``RecordingError`` or ``CheckpointMismatch`` where the folder cannot be read as a recording.
    """
    return Comparison(Recording.load(folder), tolerances).run()


class Comparison:
    """One run over a recording. Work that several stages share is done once, when the first of them needs it."""

    def __init__(self, recording: Recording, tolerances: Tolerances | None = None) -> None:
        self.recording = recording
        self.tolerances = tolerances or recording.tolerances

    @torch.no_grad()
    def run(self) -> ParityReport:
        """All stages, then what the recording holds and no stage has asked for."""
        recording = self.recording
        families = {
            "sampling": self.sampling(),
            "preprocess": self.preprocessing(),
            "inputs": self.inputs(),
            "vision": self.vision_of_one_group(),
            "visual_tokens": self.visual_tokens(),
            "full": self.mode("full"),
            "chunk": self.mode("chunk"),
            "prefill": self.prefill_plan(),
            "bilevel.prefill": self.unrotated_keys(),
            **{f"bilevel.{selection.name}": self.bilevel(selection) for selection in recording.selections},
        }
        empty = {name for name, tensor in recording.tensors.items() if not tensor.numel()}
        ran = [stage for name, family in families.items() for stage in _guarded(name, family)]
        stages = [stage for stage in ran if stage.name not in empty]
        stages += [Stage(name, None, 0.0, "nothing is recorded: the tensor is empty") for name in sorted(empty)]
        for name in sorted(set(recording.tensors) - recording.used - empty):
            stages.append(Stage(name, None, 0.0, "unknown tensor: no stage that ran computes it"))
        return ParityReport(tuple(stages))

    def sampling(self) -> Iterator[Stage]:
        """Frame choice and prompt rewriting, where ``sampling.json`` is there."""
        path = self.recording.folder / "sampling.json"
        if not path.is_file():
            return
        recorded = json.loads(path.read_text(encoding="utf-8"))
        for variant, drop_remainder in (("pure", True), ("w_chunk", False), ("w_chunk_bilevel", False)):
            cases = [case for case in recorded["cases"] if variant in case]
            if cases:
                wrong = sum(not _same_sampling(case, case[variant], drop_remainder) for case in cases)
                yield Stage(f"sampling.{variant}", float(wrong), 0.0)
        if pairs := recorded.get("prompt_time_rewrite"):
            wrong = sum(rewrite_clock_times(prompt) != rewritten for prompt, rewritten in pairs)
            yield Stage("sampling.prompt_time_rewrite", float(wrong), 0.0)

    def preprocessing(self) -> Iterator[Stage]:
        """Raw frames to pixels, at the recorded rows and columns."""
        expected = self.recording.get("preprocess.output_slice")
        if expected is None:
            return
        pixels = frames_to_pixels(self.recording.need("preprocess.input_u8_hwc"), _PREPROCESSED_SIDE)
        step = math.ceil(_PREPROCESSED_SIDE / expected.shape[-1])
        yield _numbers("preprocess.output_slice", pixels[:, :, ::step, ::step], expected, self.tolerances.preprocess)

    def inputs(self) -> Iterator[Stage]:
        """Prompt ids, timestamp text, spans and positions."""
        recording = self.recording
        if (expected := recording.get("prompt_ids")) is not None:
            sentinel = recording.field("token_ids", "image_sentinel")
            found = [*recording.prefix_ids, sentinel, *recording.suffix_ids]
            yield _mismatches("prompt_ids", found, expected.tolist())
        if (expected := recording.get("time_embedding_ids")) is not None:
            ids = recording.layout_ids(recording.group_times_s)
            yield _mismatches("time_embedding_ids", ids, expected.tolist())
        described = recording.config.get("inputs")
        if described is None:
            return
        if "timestamps_s" in described:
            every = recording.model.spec.frames_per_group
            yield _mismatches("group_timestamps_s", described["timestamps_s"][::every], recording.group_times_s)
        layout = self.layout
        facts = {
            "group_spans": [[span.start, span.time_end, span.end] for span in layout.spans],
            "visual_start": layout.visual_start,
            "visual_end": layout.length,
            "sequence_length": layout.length + len(recording.suffix_ids),
            "num_groups": layout.num_groups,
        }
        for name, found_fact in facts.items():
            if name in described:
                yield _mismatches(f"layout.{name}", found_fact, described[name])

    def vision_of_one_group(self) -> Iterator[Stage]:
        """Tower, resize, reinterpretation, every DTS layer, projector and pooling of the group that was dumped."""
        recording, model = self.recording, self.recording.model
        names = ("vit_out", "interp_out_slice", "dts_in_slice", "dts_out", "proj_out_slice", "pooled_visual_tokens")
        if not any(map(recording.holds, (*names, "dts_layer"))):
            return
        per_group, tolerance = model.spec.frames_per_group, self.tolerances.vision
        first = per_group * int(recording.field("stage_dumps", "group"))
        features_FPD = model.vision(self.pixels[first : first + per_group])
        maps_FCYX = resize_grid(features_FPD, model.spec.dts.grid)
        groups_GCTYX = reinterpret_groups(_fill(maps_FCYX, per_group), per_group)
        layers: list[Tensor] = []
        hooks = [layer.register_forward_hook(lambda _m, _i, out: layers.append(out)) for layer in model.dts.encoder]
        try:
            merged_GSC = model.dts(groups_GCTYX)
        finally:
            for hook in hooks:
                hook.remove()
        projected_SD, pooled_PD = model.projector.mlp(merged_GSC)[0], model.projector(merged_GSC)[0]

        def stage(name: str, found: Tensor) -> Iterator[Stage]:
            """The recording may hold a leading part of each dimension."""
            expected = recording.get(name)
            if expected is not None:
                leading = tuple(slice(0, size) for size in expected.shape)
                yield _numbers(name, found[leading] if found.ndim == expected.ndim else found, expected, tolerance)

        for name, found_frames in (("vit_out", features_FPD), ("interp_out_slice", maps_FCYX)):
            expected = recording.get(name)
            num_frames = len(found_frames) if expected is None else len(expected)
            yield from stage(name, _fill(found_frames, per_group)[:num_frames])
        yield from stage("dts_in_slice", groups_GCTYX[0])
        for index, out_GCTYX in enumerate(layers):
            yield from stage(f"dts_layer{index}_out_slice", out_GCTYX[0])
        grid = model.spec.dts.grid
        yield from stage("dts_out", merged_GSC[0].T.unflatten(1, (grid, grid))[:, None])
        yield from stage("proj_out_slice", projected_SD)
        yield from stage("pooled_visual_tokens", pooled_PD)

    def visual_tokens(self) -> Iterator[Stage]:
        """Whole clips: the other clips of the recording, and the language model's input for the main one."""
        recording, tolerance = self.recording, self.tolerances.vision
        clips = sorted(name.removesuffix(".pixels") for name in recording.tensors if name.endswith(".pixels"))
        for clip in clips:
            pixels = recording.need(f"{clip}.pixels")
            if (expected := recording.get(f"{clip}.pooled_visual_tokens")) is not None:
                found = recording.model.encode_frames(pixels)
                yield _numbers(f"{clip}.pooled_visual_tokens", found, expected, tolerance)
            if (ids := recording.get(f"{clip}.time_embedding_ids")) is not None:
                interval_s = float(recording.field(clip, "frame_interval_s"))
                times_s = [interval_s * frame for frame in range(0, len(pixels), recording.model.spec.frames_per_group)]
                yield _mismatches(f"{clip}.time_embedding_ids", recording.layout_ids(times_s), ids.tolist())
        if (expected := recording.get("inputs_embeds")) is not None:
            decoder = recording.model.language
            video_TD = embed_groups(decoder, self.layout, self.visual_GPD, 0, self.layout.num_groups)
            pieces = (decoder.embed(recording.prefix_ids), video_TD, decoder.embed(recording.suffix_ids))
            yield _numbers("inputs_embeds", torch.cat(pieces), expected, tolerance)

    def mode(self, mode: str) -> Iterator[Stage]:
        """A mode without bi-level KV: its mask, its caches, its logits and its tokens."""
        recording = self.recording
        if not recording.holds(f"{mode}."):
            return
        yield from self._mask(mode)
        expected = recording.get(f"{mode}.probe_logits")
        if expected is not None:
            probes = recording.need("probe_positions")
            logits = recording.model.language.logits(self.masked(mode).hidden_MD[probes])
            yield _numbers(f"{mode}.probe_logits", logits, expected, self.tolerances.logits)
        chunks = self.blockwise(mode).chunks
        for layer, part, name in _kv_names(recording, mode):
            cache = assemble_cache(recording.model, chunks, prefix_ids=recording.prefix_ids, max_tokens=self._limit)
            recording.model.language.extend(cache, recording.model.language.embed(recording.suffix_ids))
            held = {"key_postrope": cache.keys, "value": cache.values}[part](layer, cache.length)
            yield _numbers(name, held, recording.need(name), self.tolerances.kv)
        yield from self._answer(mode, chunks)

    def prefill_plan(self) -> Iterator[Stage]:
        """Blocks of the chunked mode and the number of pairs that its mask allows."""
        recorded = self.recording.config.get("prefill", {})
        if "block_size_chosed" not in recorded:
            return
        blocks = plan_chunks(self.layout.num_groups, recorded["block_size_chosed"])
        facts: dict[str, Callable[[], Any]] = {
            "num_blocks": lambda: len(blocks),
            "frames_per_block": lambda: recorded["block_size_chosed"] * self.recording.model.spec.frames_per_group,
            "block_spans": lambda: [list(self.layout.token_span(*block)) for block in blocks],
            "allowed_pairs": lambda: int(self._visibility("chunk").sum()),
        }
        for name, found in facts.items():
            if name in recorded:
                yield _mismatches(f"prefill.{name}", found(), recorded[name])

    def unrotated_keys(self) -> Iterator[Stage]:
        """Keys of the chunked prefill as the bi-level variant keeps them: the video block by block, the question."""
        for layer, part, name in _kv_names(self.recording, "bilevel.prefill"):
            video = self.blockwise("chunk")
            pieces = [video.prefix_kv, *(chunk.kv_LSKMDh for chunk in video.chunks)]
            question = self.masked("chunk").suffix_kv_LSKMDh
            kv_SKMDh = torch.cat([piece[layer] for piece in (*pieces, question)], dim=2)
            held = kv_SKMDh[{"key_prerope": 0, "value": 1}[part]]
            yield _numbers(name, held, self.recording.need(name), self.tolerances.kv)

    def bilevel(self, selection: Selection) -> Iterator[Stage]:
        """One selection: levels, mixed cache, positions of the question, logits and tokens."""
        recording, name = self.recording, f"bilevel.{selection.name}"
        if not recording.holds(f"{name}."):
            yield Stage(name, None, 0.0, "missing: config.json names this selection and no tensor belongs to it")
            return
        result = self.blockwise("chunk" if selection.units is not None else "full")
        chunks = rechunk(result.chunks, selection.chunk_groups)
        dense = set(published_dense_chunks(selection.units or (), selection.chunk_groups, len(chunks)))
        pieces = [
            chunk if place in dense else sparsify(chunk, selection.compression) for place, chunk in enumerate(chunks)
        ]
        mixed_LSKMDh = torch.cat([result.prefix_kv, *(piece.kv_LSKMDh for piece in pieces)], dim=3)
        length = mixed_LSKMDh.shape[3]
        facts = {
            "num_decode_chunks": len(chunks),
            "dense_chunks_1based": [place + 1 for place in sorted(dense)],
            "sparse_chunks_1based": [place + 1 for place in range(len(chunks)) if place not in dense],
            "mixed_kv_len": length,
        }
        for fact, found in facts.items():
            if fact in selection.expected:
                yield _mismatches(f"{name}.{fact}", found, selection.expected[fact])
        if (positions := recording.get(f"{name}.suffix_position_ids")) is not None:
            found_positions = list(range(length, length + len(recording.suffix_ids)))
            yield _mismatches(f"{name}.suffix_position_ids", found_positions, positions.flatten().tolist())
        for layer, part, tensor in _kv_names(recording, name):
            held = mixed_LSKMDh[layer, {"key_prerope": 0, "value": 1}[part]]
            yield _numbers(tensor, held, recording.need(tensor), self.tolerances.kv)
        yield from self._answer(name, pieces)

    @functools.cached_property
    def layout(self) -> TokenLayout:
        """The prompt's layout; a recording of vision alone need not describe one."""
        return self.recording.layout

    @functools.cached_property
    def pixels(self) -> Tensor:
        """The main clip's pixels in the model's dtype; they may be recorded in a shorter one."""
        return self.recording.need("pixels").to(self.recording.model.dtype)

    @functools.cached_property
    def visual_GPD(self) -> Tensor:
        """Our visual tokens of the main clip."""
        return self.recording.model.encode_frames(self.pixels)

    @functools.cache  # noqa: B019 - a comparison lives as long as its one run
    def blockwise(self, mode: str) -> PrefillResult:
        """The product's prefill, one frame group per chunk so that any decode chunk can be put together."""
        recording = self.recording
        settings = recording.settings(mode).model_copy(update={"max_tokens": self._limit})
        decoder = recording.model.language
        return prefill_layout(decoder, self.layout, self.visual_GPD, recording.group_times_s, settings, 1)

    @functools.cache  # noqa: B019 - a comparison lives as long as its one run
    def masked(self, mode: str) -> MaskedPrefill:
        """One pass with the question under the published mask, for rows that the product never computes."""
        recording = self.recording
        return prefill_masked(
            recording.model.language,
            self.layout,
            self.visual_GPD,
            recording.group_times_s,
            recording.settings(mode),
            1,
            recording.suffix_ids,
        )

    @property
    def _limit(self) -> int:
        """Room for the recorded run, whatever the checkpoint's position limit is."""
        steps = (t for name, t in self.recording.tensors.items() if name.endswith(("greedy_tokens", "step_logits")))
        longest = max((len(recorded) for recorded in steps), default=0)
        return self.layout.length + len(self.recording.suffix_ids) + longest + 1

    @functools.cache  # noqa: B019 - a comparison lives as long as its one run
    def _visibility(self, mode: str) -> Tensor:
        return visibility_mask(self.layout, len(self.recording.suffix_ids), self.recording.settings(mode))

    def _mask(self, mode: str) -> Iterator[Stage]:
        recording = self.recording
        if (counts := recording.get(f"{mode}.mask_row_counts")) is not None:
            found = self._visibility(mode).sum(dim=1)
            yield _mismatches(f"{mode}.mask_row_counts", found.tolist(), counts.tolist())
        if (rows := recording.get(f"{mode}.mask_rows")) is not None:
            found = self._visibility(mode)[recording.need(f"{mode}.mask_rows_index")]
            yield _mismatches(f"{mode}.mask_rows", found.to(torch.int64).tolist(), rows.to(torch.int64).tolist())

    def _answer(self, name: str, pieces: Sequence[ChunkKV]) -> Iterator[Stage]:
        """Logits of all question positions, tokens, and logits of the first steps, from the assembled cache."""
        recording, decoder, tolerance = self.recording, self.recording.model.language, self.tolerances.logits
        suffix, tokens, steps = (
            recording.get(f"{name}.{part}") for part in ("suffix_logits", "greedy_tokens", "step_logits")
        )
        if suffix is None and tokens is None and steps is None:
            return
        cache = assemble_cache(recording.model, pieces, prefix_ids=recording.prefix_ids, max_tokens=self._limit)
        if suffix is not None:
            before = cache.length
            logits_TV = decoder.logits(decoder.extend(cache, decoder.embed(recording.suffix_ids)))
            cache.length = before
            yield _numbers(f"{name}.suffix_logits", logits_TV, suffix, tolerance)
        num_tokens, num_steps = (0 if part is None else len(part) for part in (tokens, steps))
        count = max(num_tokens, num_steps)
        answer = list(generate(recording.model, cache, recording.suffix_ids, count, keep_logits=True))
        if tokens is not None:
            found = [step.token_id for step in answer[:num_tokens]]
            yield _mismatches(f"{name}.greedy_tokens", found, tokens.tolist())
        if steps is not None:
            logits = torch.stack([step.logits_V for step in answer[:num_steps] if step.logits_V is not None])
            yield _numbers(f"{name}.step_logits", logits, steps, tolerance)


def _guarded(name: str, family: Iterator[Stage]) -> Iterator[Stage]:
    """The stages of a family; one that lacks an input or does not fit the model ends it as a failed stage."""
    try:
        yield from family
    except RecordingError as lacking:
        yield Stage(name, None, 0.0, f"missing: {lacking}")
    except (ModelError, ValueError, KeyError, IndexError, RuntimeError) as unfit:
        yield Stage(name, None, 0.0, f"cannot be run: {type(unfit).__name__}: {' '.join(str(unfit).split())}")


def _fill(frames_F: Tensor, multiple: int) -> Tensor:
    """Copies of the last entry until the number is a multiple."""
    missing = -len(frames_F) % multiple
    return torch.cat((frames_F, frames_F[-1:].expand(missing, *frames_F.shape[1:])))


def _kv_names(recording: Recording, prefix: str) -> list[tuple[int, str, str]]:
    """(layer, part, name) of the recorded caches under a prefix, whatever layer was recorded."""
    pattern = re.compile(re.escape(prefix) + r"\.kv\.layer(\d+)\.(key_prerope|key_postrope|value)")
    keys = "key_postrope" if prefix in ("full", "chunk") else "key_prerope"
    found = [(match, name) for name in sorted(recording.tensors) if (match := pattern.fullmatch(name))]
    num_layers = recording.model.spec.language.num_layers
    return [
        (int(match[1]), match[2], name)
        for match, name in found
        if match[2] in (keys, "value") and int(match[1]) < num_layers
    ]


def _numbers(name: str, found: Tensor, expected: Tensor, tolerance: float) -> Stage:
    if found.shape != expected.shape:
        return Stage(name, None, tolerance, f"shape {list(found.shape)}, recorded {list(expected.shape)}")
    difference = float((found.double() - expected.double()).abs().max()) if found.numel() else 0.0
    if not math.isfinite(difference):
        return Stage(name, None, tolerance, "not all numbers are finite")
    return Stage(name, difference, tolerance)


def _mismatches(name: str, found: Any, expected: Any) -> Stage:
    """Entries that differ; an entry that only one side has differs."""
    return Stage(name, float(_count_mismatches(found, expected)), 0.0)


def _count_mismatches(found: Any, expected: Any) -> int:
    if not isinstance(found, list) or not isinstance(expected, list):
        return int(found != expected)
    shared = sum(_count_mismatches(ours, theirs) for ours, theirs in zip(found, expected, strict=False))
    return shared + abs(len(found) - len(expected))


def _same_sampling(case: dict[str, Any], recorded: dict[str, Any], drop_remainder: bool) -> bool:
    indices, times_s = published_frame_indices(
        case["total_frames"],
        case["video_fps"],
        case["max_frames_num"],
        case["fps"],
        case["max_fps"],
        drop_remainder=drop_remainder,
    )
    pairs = ((indices, recorded["frame_idx"]), (times_s, recorded["timestamps"]))
    return len(indices) == recorded["n"] and all(_abbreviated(ours, theirs) == theirs for ours, theirs in pairs)


def _abbreviated(values: list[Any], recorded: list[Any]) -> list[Any]:
    """As many entries at either end as a long list was recorded with, around ``"..."``."""
    if "..." not in recorded:
        return values
    head = recorded.index("...")
    tail = len(recorded) - head - 1
    return [*values[:head], "...", *values[len(values) - tail :]]
