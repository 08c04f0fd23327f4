"""Model-free overhead of ingestion: ``vxl ingest`` of one long clip beside ``ffmpeg`` decoding and scaling it.

    python tests/benchmarks/bench_ingest.py [--minutes 10] [--rounds 3] [--clip FILE]

Both run on the same cores in turn, each round one of each. The ceiling is ffmpeg itself: no index can be made without
decoding the video. Without ``--clip`` a 720p H.264 clip at 30 frames/s is made first. Needs ffmpeg on the path.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
TARGET = 2.0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--minutes", type=float, default=10.0)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--clip", type=Path)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        clip = arguments.clip or make_clip(Path(folder) / "clip.mp4", arguments.minutes)
        rounds = [(timed(ffmpeg(clip)), timed(vxl(clip, Path(folder) / f"{n}"))) for n in range(arguments.rounds)]
    ratios = [ours[0] / theirs[0] for theirs, ours in rounds]
    print(f"{'round':>5} {'ffmpeg wall':>12} {'cpu':>7} {'vxl wall':>10} {'cpu':>7} {'ratio':>6}")
    for number, ((ffmpeg_s, ffmpeg_cpu), (vxl_s, vxl_cpu)) in enumerate(rounds, 1):
        print(
            f"{number:>5} {ffmpeg_s:>11.1f}s {ffmpeg_cpu:>6.1f}s "
            f"{vxl_s:>9.1f}s {vxl_cpu:>6.1f}s {vxl_s / ffmpeg_s:>6.2f}"
        )
    print(f"median ratio {statistics.median(ratios):.2f}, target at most {TARGET:g}; ceiling 1.00 is ffmpeg alone")
    print(
        json.dumps(
            {
                "benchmark": "ingest_overhead",
                "cores": os.cpu_count(),
                "machine": platform.machine(),
                "python": platform.python_version(),
                "minutes": arguments.minutes,
                "rounds": [
                    {"ffmpeg_s": a[0], "ffmpeg_cpu_s": a[1], "vxl_s": b[0], "vxl_cpu_s": b[1]} for a, b in rounds
                ],
                "median_ratio": statistics.median(ratios),
                "target": TARGET,
            }
        )
    )


def make_clip(path: Path, minutes: float) -> Path:
    """Moving test picture with noise, so that decoding costs what real footage costs."""
    source = f"testsrc2=size=1280x720:rate=30:duration={minutes * 60},noise=alls=12:allf=t"
    options = ["-c:v", "libx264", "-preset", "veryfast", "-crf", "30", "-g", "250", "-pix_fmt", "yuv420p"]
    subprocess.run(["ffmpeg", "-v", "error", "-y", "-f", "lavfi", "-i", source, *options, str(path)], check=True)
    return path


def ffmpeg(clip: Path) -> list[str]:
    if shutil.which("ffmpeg") is None:
        sys.exit("ffmpeg is not on the path")
    scaled = ["-an", "-vf", "fps=1,scale=208:208", "-f", "rawvideo", os.devnull]
    return ["ffmpeg", "-v", "error", "-y", "-i", str(clip), *scaled]


def vxl(clip: Path, archive: Path) -> list[str]:
    return [sys.executable, "-m", "jobs.cli", "ingest", str(clip), "--archive", str(archive), "--model", "tiny"]


def timed(command: list[str]) -> tuple[float, float]:
    """Wall and CPU seconds of a command with all its children."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    started = time.perf_counter()
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, cwd=ROOT)
    wall_s = time.perf_counter() - started
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return wall_s, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


if __name__ == "__main__":
    main()
