"""The benchmarks by name."""

from __future__ import annotations

from jobs.evaluation.benchmarks.charades import CHARADES_STA
from jobs.evaluation.benchmarks.items import Benchmark
from jobs.evaluation.benchmarks.longvideobench import LONG_VIDEO_BENCH, LONG_VIDEO_BENCH_TEST
from jobs.evaluation.benchmarks.lvbench import LVBENCH
from jobs.evaluation.benchmarks.mlvu import MLVU, MLVU_TEST
from jobs.evaluation.benchmarks.videomme import VIDEO_MME
from pipeline.errors import UsageError

BENCHMARKS: tuple[Benchmark, ...] = (
    MLVU,
    MLVU_TEST,
    VIDEO_MME,
    LVBENCH,
    LONG_VIDEO_BENCH,
    LONG_VIDEO_BENCH_TEST,
    CHARADES_STA,
)


def find_benchmark(name: str) -> Benchmark:
    """The benchmark of a name; case, ``-`` and ``_`` do not matter. Raises ``UsageError`` naming those there are."""

    def plain(text: str) -> str:
        return text.lower().replace("-", "").replace("_", "")

    for benchmark in BENCHMARKS:
        if plain(benchmark.name) == plain(name):
            return benchmark
    raise UsageError(f"there is no benchmark {name!r}; there are {', '.join(one.name for one in BENCHMARKS)}")
