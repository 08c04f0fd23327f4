"""Make ``.venv`` in the project's root with everything installed, on a machine that has Python 3.11 or 3.12 and pip.

On a machine without a GPU torch's CPU build is taken, and if only a CUDA build is on offer (several gigabytes that
cannot be used) the installation stops before downloading and says what to do. On a machine with a GPU an installed
torch is left alone. Standard library only; run by ``make``.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
SUPPORTED = ((3, 11), (3, 12))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--venv", type=Path, default=ROOT / ".venv")
    parser.add_argument("--extras", default="dev,demo")
    arguments = parser.parse_args()
    python = find_python()
    if not (arguments.venv / "bin" / "python").exists():
        say(f"creating {arguments.venv} with {python}")
        subprocess.run([python, "-m", "venv", str(arguments.venv)], check=True)
    pip = [str(arguments.venv / "bin" / "python"), "-m", "pip", "--disable-pip-version-check"]
    constraints = ["-c", str(ROOT / "constraints.txt")]
    index = ["--extra-index-url", os.environ["TORCH_INDEX"]] if os.environ.get("TORCH_INDEX") else []
    if not has_torch(arguments.venv):
        if not has_gpu():
            refuse_cuda_build(pip, constraints, index)
    elif has_gpu():
        constraints = ["-c", str(without_torch(arguments.venv))]
    say("installing the project")
    # Of 18 000 modules a few thousand are ever imported: Python compiles those when they are, unless it may not.
    compiled = [] if os.environ.get("PYTHONDONTWRITEBYTECODE") else ["--no-compile"]
    project = ["-e", f"{ROOT}[{arguments.extras}]"]
    subprocess.run([*pip, "install", "-q", *compiled, *constraints, *index, *project], check=True)


def find_python() -> str:
    """A supported interpreter: the one running this, else one on the path."""
    if sys.version_info[:2] in SUPPORTED:
        return sys.executable
    for major, minor in SUPPORTED:
        found = shutil.which(f"python{major}.{minor}")
        if found:
            return found
    sys.exit("Python 3.11 or 3.12 is needed; neither is on the path")


def has_torch(venv: Path) -> bool:
    code = "import importlib.util, sys; sys.exit(importlib.util.find_spec('torch') is None)"
    return subprocess.run([str(venv / "bin" / "python"), "-c", code], check=False).returncode == 0


def has_gpu() -> bool:
    """Whether an NVIDIA driver with at least one device answers."""
    tool = shutil.which("nvidia-smi")
    return tool is not None and subprocess.run([tool, "-L"], capture_output=True, check=False).stdout.startswith(b"GPU")


def refuse_cuda_build(pip: list[str], constraints: list[str], index: list[str]) -> None:
    """Stop when installing torch would bring CUDA packages along."""
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "report.json"
        command = [*pip, "install", "-q", "--dry-run", "--report", str(report), *constraints, *index, "torch"]
        subprocess.run(command, check=True)
        names = [item["metadata"]["name"] for item in json.loads(report.read_text())["install"]]
    cuda = [name for name in names if name.startswith(("nvidia-", "cuda-", "triton"))]
    if cuda:
        sys.exit(
            "This machine has no GPU, and the torch on offer brings CUDA packages along "
            f"({', '.join(cuda[:3])}, ...).\n"
            "Set TORCH_INDEX to an index that holds torch's CPU builds and run make again."
        )


def without_torch(venv: Path) -> Path:
    """The constraints without torch's line, for a machine whose CUDA build must stay."""
    path = venv / "constraints-gpu.txt"
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    path.write_text("\n".join(line for line in lines if not line.startswith("torch==")) + "\n")
    return path


def say(text: str) -> None:
    print(f"setup: {text}", flush=True)


if __name__ == "__main__":
    main()
