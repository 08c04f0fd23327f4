"""Measures prefill from pixels on the device to complete KV, stage by stage, and decoding after it.

Prefill is shown beside the device's matrix rate and decoding beside its memory rate, both measured in the same run.
Pixels are random and already on the device: one batch of them is encoded again and again, so that decoding and the
video's pixels are no part of time or memory. Chunks are dropped as they come, as an archive moves them away; what stays
is the working cache. Decoding runs over a cache of the video's length whose values are made up. Weights may be random
too, since they change no time.

Shapes: F frames, S image side, G frame groups, P visual tokens per group, D text width.
"""

from __future__ import annotations

import platform
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from videoxl2.attention import choose_backend
from videoxl2.clock import StageClock
from videoxl2.config import DTSSpec, LanguageSpec, ModelSpec, PrefillSettings, TokenIds, VisionSpec
from videoxl2.decode_step import choose_stepping
from videoxl2.flops import prefill_flops
from videoxl2.kv import KVCache
from videoxl2.layout import TokenLayout
from videoxl2.masked_prefill import prefill_masked
from videoxl2.model import VideoXL2, choose_device
from videoxl2.overlap import VisionAhead
from videoxl2.prefill import prefill_pieces
from videoxl2.questions import generate_batch
from videoxl2.tokenizer import Tokenizer

BenchMode = Literal["chunked", "bounded", "plain", "masked"]
"""The modes of prefill, and ``masked``: the published single pass under a mask."""

BOUNDED_TIMESTAMP_GROUPS = 256
"""In the bounded mode a run sees the timestamps of so many earlier groups, so that its state is bounded indeed."""

RANDOM_PREFIX = "random:"
_PREFIX_TOKENS = 14
_TIME_TOKENS = 6
"""Tokens of a published timestamp beside the digits of its whole seconds."""
_QUESTION_TOKENS = 60
_ANSWER_TOKENS = 16
_UNLIMITED = 1 << 40


@dataclass(frozen=True, slots=True)
class PrefillRun:
    """One length. Times in seconds; ``flops`` is the arithmetic that prefill needed, ``peak_bytes`` its highest memory.

    The stages are measured one after the other. On a CPU ``total_s`` is their sum; on a GPU it is that of a second run,
    in which vision runs beside the language model (``overlap``), and so is ``peak_bytes``.

    ``peak_bytes`` is what the allocator gave out on a GPU and the process's resident memory on a CPU, weights and all;
    ``kv_bytes`` is the part of it that is the KV. ``first_token_s`` is from a question of 60 tokens to the first token
    of its answer over the whole dense KV, ``decode_s`` that of each further one, which reads ``decode_bytes`` (weights
    and KV, once).
    """

    frames: int
    tokens: int
    vision_s: float
    dts_s: float
    language_s: float
    total_s: float
    flops: int
    peak_bytes: int
    kv_bytes: int
    first_token_s: float
    decode_s: float
    decode_bytes: int

    @property
    def tokens_per_s(self) -> float:
        return self.tokens / self.total_s

    @property
    def flops_per_s(self) -> float:
        return self.flops / self.total_s


@dataclass(frozen=True, slots=True)
class PrefillBench:
    """All lengths on one device.

    ``matrix_flops_per_s`` and ``memory_bytes_per_s`` (a copy, read and written) are measured: the ceilings of prefill
    and of decoding. ``parameters`` counts those of each part of the model.
    """

    device: str
    model: str
    parameters: dict[str, int]
    dtype: str
    mode: str
    decoding: str
    attention: str
    threads: int
    matrix_flops_per_s: float
    memory_bytes_per_s: float
    runs: tuple[PrefillRun, ...]

    def to_document(self) -> dict[str, Any]:
        return {**asdict(self), "runs": [asdict(run) for run in self.runs]}


def bench_prefill(
    model_name: str,
    frame_counts: Sequence[int],
    device: str | None = None,
    mode: BenchMode = "chunked",
    report: Callable[[PrefillRun], object] = lambda run: None,
    *,
    decoding: str = "eager",
    attention: str = "auto",
) -> PrefillBench:
    """Measure each length once, after one short warm-up; ``report`` is called after each.

    ``model_name`` is a checkpoint or ``random:8b`` / ``random:0.5b`` (``random_spec``); ``decoding`` and ``attention``
    are those of ``VideoXL2.from_pretrained``.
    """
    if not frame_counts or min(frame_counts) < 1:
        raise ValueError("frame counts are positive")
    model = bench_model(model_name, device, attention)
    model.language.stepping = choose_stepping(decoding, model.device)
    matrix, memory = matrix_rate(model.device, model.dtype), memory_rate(model.device)
    prefill_run(model, min(min(frame_counts), 64), mode)
    runs: list[PrefillRun] = []
    for num_frames in frame_counts:
        runs.append(prefill_run(model, num_frames, mode))
        report(runs[-1])
    return PrefillBench(
        device=device_name(model.device),
        model=model_name,
        parameters={
            name: sum(parameter.numel() for parameter in part.parameters()) for name, part in model.named_children()
        },
        dtype=str(model.dtype).removeprefix("torch."),
        mode=mode,
        decoding=str(model.language.stepping),
        attention=str(model.language.backend),
        threads=torch.get_num_threads(),
        matrix_flops_per_s=matrix,
        memory_bytes_per_s=memory,
        runs=tuple(runs),
    )


def bench_model(name: str, device: str | None, attention: str = "auto") -> VideoXL2:
    """A checkpoint, or random weights of a named size made on the device."""
    if not name.startswith(RANDOM_PREFIX):
        return VideoXL2.from_pretrained(name, device=device, attention=attention)
    chosen, dtype = choose_device(device, None)
    with torch.device("meta"):
        model = VideoXL2(random_spec(name.removeprefix(RANDOM_PREFIX))).to(dtype)
    model = model.to_empty(device=chosen).requires_grad_(False).eval()
    model.language.tie_head()
    generator = torch.Generator(chosen).manual_seed(0)
    for module in model.modules():
        is_norm = "norm" in type(module).__name__.lower()
        for parameter in module.parameters(recurse=False):
            if is_norm:
                parameter.fill_(1.0)
            else:
                parameter.normal_(0.0, 0.02, generator=generator)
    backend = choose_backend(attention, chosen, dtype)
    model.vision.use_backend(backend)
    model.language.backend = backend
    return model


def random_spec(size: str) -> ModelSpec:
    """``8b``: the published model. ``0.5b``: a decoder of Qwen2.5-0.5B's shape, for a CPU.

    The tower of ``0.5b`` is small (6 layers of width 192, 24 x 24 patches; SigLIP so400m has 27 of 1152), so that
    vision does not hide the decoder; a group has 144 visual tokens, as published.
    """
    if size == "8b":
        return ModelSpec(
            vision=VisionSpec(width=1152, mlp_width=4304, num_layers=26, num_heads=16, image_size=384, patch_size=14),
            dts=DTSSpec(channels=1152),
            language=LanguageSpec(
                vocab_size=152064,
                width=3584,
                mlp_width=18944,
                num_layers=28,
                num_heads=28,
                num_kv_heads=4,
                head_dim=128,
            ),
            tokens=TokenIds(),
        )
    if size == "0.5b":
        return ModelSpec(
            vision=VisionSpec(width=192, mlp_width=768, num_layers=6, num_heads=3, image_size=384, patch_size=16),
            dts=DTSSpec(channels=192),
            language=LanguageSpec(
                vocab_size=151936,
                width=896,
                mlp_width=4864,
                num_layers=24,
                num_heads=14,
                num_kv_heads=2,
                head_dim=64,
                tied_head=True,
            ),
            tokens=TokenIds(),
        )
    raise ValueError(f"no random model of size {size!r} (8b and 0.5b are known)")


@torch.no_grad()
def prefill_run(model: VideoXL2, num_frames: int, mode: BenchMode) -> PrefillRun:
    """One measured length at one frame per second."""
    settings = PrefillSettings(
        mode="chunked" if mode == "masked" else mode,
        timestamp_groups=BOUNDED_TIMESTAMP_GROUPS if mode == "bounded" else None,
        max_tokens=_UNLIMITED,
    )
    layout, times_s = bench_layout(model.spec, num_frames, model.tokenizer if model.is_loaded else None)
    batch_frames = model.batch_groups * model.spec.frames_per_group
    pixels_F3SS = _random_pixels(model, min(num_frames, batch_frames))
    clock = StageClock(model.device)
    with peak_memory(model.device) as peak:
        started = time.perf_counter()
        visual_GPD = model.empty_tokens(layout.num_groups)
        for first in range(0, num_frames, batch_frames):
            with clock.stage("vision"):
                maps_FCYX = model.frame_maps(pixels_F3SS[: min(batch_frames, num_frames - first)])
            with clock.stage("dts"):
                group = first // model.spec.frames_per_group
                visual_GPD[group : group + model.batch_groups] = model.merge_maps(maps_FCYX)
        del maps_FCYX
        with clock.stage("language"):
            if mode == "masked":
                prefill_masked(model.language, layout, visual_GPD, times_s, settings, 6)
            else:
                for _ in prefill_pieces(model.language, layout, visual_GPD, settings, 6):
                    pass
        _synchronise(model.device)
        total_s = time.perf_counter() - started
    highest = peak()
    del visual_GPD
    seconds = clock.seconds()
    if model.device.type == "cuda" and mode != "masked":
        with peak_memory(model.device) as peak:
            total_s = overlapped_s(model, layout, pixels_F3SS, num_frames, settings)
        highest = peak()
    first_token_s, decode_s = decode_times(model, layout.length)
    itemsize = model.dtype.itemsize
    return PrefillRun(
        frames=num_frames,
        tokens=layout.length,
        vision_s=seconds["vision"],
        dts_s=seconds["dts"],
        language_s=seconds["language"],
        total_s=total_s,
        flops=prefill_flops(model.spec, layout, num_frames, settings, whole_last_layer=mode == "masked").total,
        peak_bytes=highest,
        kv_bytes=layout.length * model.spec.language.kv_values_per_token * itemsize,
        first_token_s=first_token_s,
        decode_s=decode_s,
        decode_bytes=decode_bytes(model, layout.length + _QUESTION_TOKENS),
    )


@torch.no_grad()
def overlapped_s(
    model: VideoXL2, layout: TokenLayout, pixels_F3SS: Tensor, num_frames: int, settings: PrefillSettings
) -> float:
    """Seconds from pixels to KV with vision a batch ahead of the language model, in a stream of its own on a GPU."""
    batch_frames = len(pixels_F3SS)
    counts = iter([min(batch_frames, num_frames - first) for first in range(0, num_frames, batch_frames)])
    batch_groups = -(-batch_frames // model.spec.frames_per_group)
    _synchronise(model.device)
    started = time.perf_counter()
    tokens = VisionAhead(
        counts, lambda count: model.merge_maps(model.frame_maps(pixels_F3SS[:count])), batch_groups, model.device
    )
    for _ in prefill_pieces(model.language, layout, tokens, settings, 6):
        pass
    _synchronise(model.device)
    return time.perf_counter() - started


@torch.no_grad()
def decode_times(model: VideoXL2, num_tokens: int) -> tuple[float, float]:
    """Seconds from a question to the first token of its answer, and per further token, over a cache of a length."""
    decoder = model.language
    room = num_tokens + _QUESTION_TOKENS + _ANSWER_TOKENS + 1
    cache = KVCache(decoder.spec, room, limit=_UNLIMITED, device=decoder.device, dtype=decoder.dtype)
    cache.slot(0, num_tokens).fill_(0.01)
    cache.advance(num_tokens)
    question = [1] * _QUESTION_TOKENS
    for _ in generate_batch(model, cache, [question], _ANSWER_TOKENS + 1):  # a warm-up of both kinds of step
        pass
    _synchronise(model.device)
    marks = [time.perf_counter()]
    marks += [time.perf_counter() for _ in generate_batch(model, cache, [question], _ANSWER_TOKENS + 1)]
    return marks[1] - marks[0], (marks[-1] - marks[1]) / _ANSWER_TOKENS


def decode_bytes(model: VideoXL2, num_tokens: int) -> int:
    """What one decoding step at batch 1 must read: the decoder's weights, head included, and KV of ``num_tokens``."""
    decoder = model.language
    weights = [*decoder.layers.parameters(), *decoder.norm.parameters(), decoder.lm_head.weight]
    values = sum(weight.numel() for weight in weights) + num_tokens * decoder.spec.kv_values_per_token
    return values * decoder.dtype.itemsize


def bench_layout(
    spec: ModelSpec, num_frames: int, tokenizer: Tokenizer | None = None
) -> tuple[TokenLayout, list[float]]:
    """The prompt of a video at one frame per second, in the published lengths where there is no tokenizer; and the
    groups' times."""
    times_s = [float(first) for first in range(0, num_frames, spec.frames_per_group)]
    if tokenizer is not None:
        prefix_ids, time_ids = tokenizer.prefix_ids(), [tokenizer.timestamp_ids(t_s) for t_s in times_s]
    else:
        prefix_ids, time_ids = [1] * _PREFIX_TOKENS, [[1] * (_TIME_TOKENS + len(str(int(t_s)))) for t_s in times_s]
    return TokenLayout.build(prefix_ids, time_ids, spec.tokens_per_group), times_s


def matrix_rate(device: torch.device, dtype: torch.dtype) -> float:
    """Operations per second of the device's own matrix product, the best of a few square ones."""
    side = 8192 if device.type == "cuda" else 1024
    left, right = (torch.randn(side, side, device=device).to(dtype) for _ in range(2))
    best_s = float("inf")
    for _ in range(6):
        _synchronise(device)
        started = time.perf_counter()
        left @ right
        _synchronise(device)
        best_s = min(best_s, time.perf_counter() - started)
    return 2 * side**3 / best_s


def memory_rate(device: torch.device) -> float:
    """Bytes per second that a large copy reads and writes, the best of a few."""
    source = torch.ones((1 << 30 if device.type == "cuda" else 1 << 26), dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    best_s = float("inf")
    for _ in range(6):
        _synchronise(device)
        started = time.perf_counter()
        target.copy_(source)
        _synchronise(device)
        best_s = min(best_s, time.perf_counter() - started)
    return 2 * source.numel() / best_s


def device_name(device: torch.device) -> str:
    """The device in words."""
    if device.type == "cuda":
        return str(torch.cuda.get_device_name(device))
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text(encoding="utf-8").splitlines() if cpuinfo.is_file() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or "CPU"


def _random_pixels(model: VideoXL2, num_frames: int) -> Tensor:
    vision = model.spec.vision
    generator = torch.Generator(model.device).manual_seed(0)
    shape = (num_frames, vision.num_channels, vision.image_size, vision.image_size)
    return torch.rand(shape, generator=generator, device=model.device).mul_(2).sub_(1).to(model.dtype)


@contextmanager
def peak_memory(device: torch.device) -> Iterator[Callable[[], int]]:
    """The highest memory since the block was entered, asked for after it."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        yield lambda: int(torch.cuda.max_memory_allocated(device))
        return
    clear, status = Path("/proc/self/clear_refs"), Path("/proc/self/status")
    if clear.exists():
        clear.write_text("5", encoding="ascii")  # sets the high-water mark of resident memory back
    yield lambda: _resident_peak(status)


def _resident_peak(status: Path) -> int:
    if not status.exists():
        return 0
    (line,) = (line for line in status.read_text(encoding="ascii").splitlines() if line.startswith("VmHWM:"))
    return int(line.split()[1]) * 1024


def _synchronise(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
