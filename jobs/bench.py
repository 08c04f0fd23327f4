"""The command ``vxl bench``: how fast the model prefills on this machine, and what reusing stored KV is worth."""

from __future__ import annotations

from typing import cast

from jobs.output import Output
from pipeline.errors import UsageError

SUBJECTS = ("prefill", "reuse")
MODES = ("chunked", "bounded", "plain", "masked")


def run(
    subject: str,
    frames: list[int],
    hours: list[float],
    model: str | None,
    device: str | None,
    mode: str,
    out: Output,
    *,
    decoding: str = "eager",
    attention: str = "auto",
) -> int:
    """Measure and print; the exit code. Raises ``UsageError`` for a model, device or number that cannot be."""
    if subject not in SUBJECTS:
        raise UsageError(f"cannot measure {subject!r}: {', '.join(SUBJECTS)} can be")
    if subject == "reuse":
        if frames or device is not None or (mode, decoding, attention) != (MODES[0], "eager", "auto"):
            raise UsageError("vxl bench reuse takes --model, --hours and --json only")
        from jobs.bench_reuse import run as run_reuse

        return run_reuse([] if model is None else [model], hours, out)
    if hours:
        raise UsageError(f"vxl bench {subject} takes no --hours; give --frames")
    model = "tiny" if model is None else model
    if mode not in MODES:
        raise UsageError(f"--mode: {mode!r} is none of {', '.join(MODES)}")
    if not frames or min(frames) < 1:
        raise UsageError("give --frames with one or more positive numbers of frames")
    from videoxl2.bench import BenchMode, bench_prefill
    from videoxl2.errors import ModelError

    try:
        bench = bench_prefill(model, frames, device, cast(BenchMode, mode), decoding=decoding, attention=attention)
    except (ModelError, ValueError) as unfit:
        raise UsageError(" ".join(str(unfit).split())) from unfit
    if out.as_json:
        out.document(bench.to_document())
        return 0
    ceiling, memory = bench.matrix_flops_per_s, bench.memory_bytes_per_s
    sizes = ", ".join(f"{name} {count / 1e6:,.1f} M" for name, count in bench.parameters.items())
    out.text(f"{bench.model} ({bench.dtype}, {bench.mode}) on {bench.device}, {bench.threads} threads")
    out.text(f"attention: {bench.attention}; decoding: {bench.decoding}")
    out.text(f"parameters: {sizes}; matrix rate {ceiling / 1e9:,.0f} GFLOP/s, memory rate {memory / 1e9:,.1f} GB/s")
    rows = [
        [
            f"{measured.frames:,}",
            f"{measured.tokens:,}",
            *(f"{s:.2f}" for s in (measured.vision_s, measured.dts_s, measured.language_s, measured.total_s)),
            f"{measured.tokens_per_s:,.0f}",
            f"{measured.flops_per_s / 1e9:,.1f}",
            f"{measured.flops_per_s / ceiling:.0%}",
            f"{measured.peak_bytes / 2**20:,.0f}",
            f"{measured.kv_bytes / 2**20:,.0f}",
            f"{measured.first_token_s:.3f}",
            f"{1 / measured.decode_s:,.1f}",
            f"{measured.decode_bytes / measured.decode_s / memory:.0%}",
        ]
        for measured in bench.runs
    ]
    columns = ["frames", "tokens", "vision s", "DTS s", "language s", "total s", "tokens/s", "GFLOP/s", "of ceiling"]
    columns += ["peak MiB", "KV MiB", "first token s", "decode tokens/s", "of memory rate"]
    out.table(columns, rows, right=tuple(range(len(columns))))
    return 0
