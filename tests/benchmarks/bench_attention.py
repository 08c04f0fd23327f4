"""The calls that a pass of prefill makes, through every attention backend that is present: milliseconds and rate.

    OMP_NUM_THREADS=1 python -m tests.benchmarks.bench_attention --model tiny --keys 20000 [--compile-flex]
    python -m tests.benchmarks.bench_attention --model random:8b --keys 80000 --device cuda

A pass asks for three things: a block's window under its mask, the timestamps before it for all visual rows, and
everything before it for the timestamp rows. Times are the best of several, of the processor on a CPU and between
synchronisations on a GPU. ``--compile-flex`` adds FlexAttention compiled for the CPU, which gives no log-sum-exp and so
cannot be a part of a longer attention; it needs a C++ compiler.
"""

from __future__ import annotations

import argparse
import functools
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from videoxl2.attention import AttentionBackend, BiasReuse, choose_backend, kernel_for, lower_right_mask
from videoxl2.attention_kernels import Visible
from videoxl2.bench import RANDOM_PREFIX, random_spec
from videoxl2.checkpoint import read_checkpoint_info, resolve_checkpoint
from videoxl2.config import ModelSpec, PrefillSettings
from videoxl2.errors import ModelError
from videoxl2.model import choose_device

TIME_TOKENS = 9
"""Timestamp tokens of a group, as published below 1,000 s; ``tiny`` has two."""


@dataclass(frozen=True)
class Call:
    name: str
    rows: int
    keys: int
    is_masked: bool


def calls(spec: ModelSpec, keys: int, time_tokens: int) -> list[Call]:
    """Those of one pass of 2,048 tokens after ``keys`` tokens."""
    knobs, group = PrefillSettings(), spec.tokens_per_group + time_tokens
    block, blocks = knobs.block_groups * group, max(1, 2048 // (knobs.block_groups * group))
    visual, times = blocks * knobs.block_groups * spec.tokens_per_group, blocks * knobs.block_groups * time_tokens
    return [
        Call("window of a block", block, block * (knobs.previous_blocks + 1), True),
        Call("timestamps before, visual rows", visual, keys // group * time_tokens, False),
        Call("all before, timestamp rows", times, keys, False),
    ]


def best_ms(run: Callable[[], Any], device: torch.device, repeats: int = 5) -> float:
    """The best of several runs after one that does not count."""
    run()
    best_s = float("inf")
    for _ in range(repeats):
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        clock = time.perf_counter if device.type == "cuda" else time.process_time
        started = clock()
        run()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        best_s = min(best_s, clock() - started)
    return best_s * 1e3


def compiled_flex(q: Tensor, k: Tensor, v: Tensor, mask_TM: Tensor | None) -> Callable[[], Tensor]:
    """FlexAttention compiled without its log-sum-exp."""
    from torch.nn.attention.flex_attention import create_block_mask, flex_attention

    def seen(_b: Tensor, _n: Tensor, t: Tensor, m: Tensor) -> Tensor:
        assert mask_TM is not None
        return mask_TM[t, m]

    block_mask = None
    if mask_TM is not None:
        block_mask = create_block_mask(seen, None, None, q.shape[2], k.shape[2], device=q.device)
    compiled: Any = torch.compile(flex_attention)
    return lambda: compiled(q, k, v, block_mask=block_mask, enable_gqa=True)


@torch.no_grad()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="tiny")
    parser.add_argument("--keys", type=int, default=20_000, help="tokens before the pass")
    parser.add_argument("--device")
    parser.add_argument("--compile-flex", action="store_true")
    arguments = parser.parse_args()
    device, dtype = choose_device(arguments.device, None)
    is_random = arguments.model.startswith(RANDOM_PREFIX)
    if is_random:
        spec = random_spec(arguments.model.removeprefix(RANDOM_PREFIX))
    else:
        spec = read_checkpoint_info(resolve_checkpoint(arguments.model)).spec
    language = spec.language
    for call in calls(spec, arguments.keys, TIME_TOKENS if is_random else 2):
        q = torch.randn(1, language.num_heads, call.rows, language.head_dim, device=device).to(dtype)
        k, v = (
            torch.randn(1, language.num_kv_heads, call.keys, language.head_dim, device=device).to(dtype)
            for _ in range(2)
        )
        mask_TM = lower_right_mask(call.rows, call.keys, device) if call.is_masked else None
        operations = 4 * language.num_heads * call.rows * call.keys * language.head_dim
        print(f"{call.name}: {call.rows} x {call.keys}{', masked' if call.is_masked else ''}")
        runs: dict[str, Callable[[], Any]] = {}
        for backend in AttentionBackend:
            try:
                choose_backend(backend, device, dtype)
            except ModelError as absent:
                print(f"  {backend:14} {absent}")
                continue
            kernel, visible = kernel_for(backend, q, is_masked=call.is_masked), Visible(False, mask_TM, BiasReuse())
            runs[backend] = functools.partial(kernel, q, k, v, visible)
        if arguments.compile_flex:
            runs["flex compiled"] = compiled_flex(q, k, v, mask_TM)
        for name, run in runs.items():
            taken_ms = best_ms(run, device)
            print(f"  {name:14} {taken_ms:9.2f} ms  {operations / taken_ms / 1e6:8.1f} GFLOP/s", flush=True)


if __name__ == "__main__":
    main()
