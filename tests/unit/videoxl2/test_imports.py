"""What importing costs: no torch where search needs none, and no library that belongs to another package."""

from __future__ import annotations

import subprocess
import sys

import pytest

LIGHT = "videoxl2, videoxl2.text_tower, videoxl2.checkpoint, videoxl2.tokenizer, videoxl2.config, videoxl2.errors"
FOREIGN = ("ray", "lancedb", "decord", "boto3", "av", "transformers", "indexers", "pipeline", "jobs")


def loaded_by(code: str) -> set[str]:
    script = f"import sys\n{code}\nprint(' '.join(sorted(name for name in sys.modules if '.' not in name)))"
    run = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True, timeout=120)
    return set(run.stdout.split())


def test_a_text_search_loads_no_torch() -> None:
    code = f"import {LIGHT}, videoxl2.preprocess, videoxl2.sampling, videoxl2.layout"
    code += "\nfrom videoxl2 import TextEncoder\nTextEncoder.from_pretrained('tiny').embed(['a red car'])"
    assert "torch" not in loaded_by(code)


def test_the_model_loads_no_library_of_other_packages() -> None:
    assert not loaded_by("import videoxl2.model, videoxl2.dual_encoder").intersection(FOREIGN)


def test_public_names_are_loaded_on_first_use() -> None:
    import videoxl2

    assert all(getattr(videoxl2, name) is not None for name in videoxl2.__all__)
    assert set(videoxl2.__all__) <= set(dir(videoxl2))
    with pytest.raises(AttributeError, match="nosuch"):
        _ = videoxl2.nosuch
