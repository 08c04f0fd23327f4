"""The command ``vxl bench``: how fast the model prefills on this machine."""

from __future__ import annotations

from typing import cast

from jobs.output import Output
from pipeline.errors import UsageError

SUBJECTS = ("prefill",)
MODES = ("chunked", "bounded", "plain", "masked")


def run(subject: str, frames: list[int], model: str, device: str | None, mode: str, out: Output) -> int:
    """Measure and print; the exit code. Raises ``UsageError`` for a model, device or number that cannot be."""
    if subject not in SUBJECTS:
        raise UsageError(f"cannot measure {subject!r}: {', '.join(SUBJECTS)} can be")
    if mode not in MODES:
        raise UsageError(f"--mode: {mode!r} is none of {', '.join(MODES)}")
    if not frames or min(frames) < 1:
        raise UsageError("give --frames with one or more positive numbers of frames")
    from videoxl2.bench import BenchMode, bench_prefill
    from videoxl2.errors import ModelError

    try:
        bench = bench_prefill(model, frames, device, cast(BenchMode, mode))
    except (ModelError, ValueError) as unfit:
        raise UsageError(" ".join(str(unfit).split())) from unfit
    if out.as_json:
        out.document(bench.to_document())
        return 0
    ceiling = bench.matrix_flops_per_s
    out.text(
        f"{bench.model} ({bench.dtype}, {bench.mode}) on {bench.device}, {bench.threads} threads; "
        f"matrix rate {ceiling / 1e9:,.0f} GFLOP/s"
    )
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
        ]
        for measured in bench.runs
    ]
    columns = ["frames", "tokens", "vision s", "DTS s", "language s", "total s", "tokens/s", "GFLOP/s", "of ceiling"]
    out.table([*columns, "peak MiB", "KV MiB"], rows, right=tuple(range(11)))
    return 0
