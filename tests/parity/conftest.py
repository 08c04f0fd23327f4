"""The recorded tensors of the published code, and our model loaded from the recorded weights."""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file
from torch import Tensor

from videoxl2.layout import TokenLayout
from videoxl2.model import VideoXL2

GOLDEN_FOLDER = Path(__file__).parent / "golden"


@dataclass(frozen=True)
class Golden:
    """Configuration and tensors of the recorded case, and the model built from its weights."""

    config: dict[str, Any]
    tensors: dict[str, Tensor]
    model: VideoXL2
    layout: TokenLayout

    @property
    def suffix_ids(self) -> list[int]:
        return list(self.config["inputs"]["suffix_ids"])

    @property
    def prefix_ids(self) -> list[int]:
        return list(self.config["inputs"]["prefix_ids"])

    @property
    def times_s(self) -> list[float]:
        return list(self.config["inputs"]["group_timestamps_s"])


def published_config(golden_config: dict[str, Any]) -> dict[str, Any]:
    """The recorded configuration in the form of a checkpoint's ``config.json``."""
    parts = ("vision_config", "dts_config", "token_ids")
    return {**golden_config["model_config"], **{part: golden_config[part] for part in parts}}


def group_time_ids(ids: list[int], placeholder: int) -> list[list[int]]:
    """The timestamp ids of each group from the recorded run of timestamps and placeholders."""
    groups: list[list[int]] = []
    previous = placeholder
    for token in ids:
        if token != placeholder:
            if previous == placeholder:
                groups.append([])
            groups[-1].append(token)
        previous = token
    return groups


@pytest.fixture(scope="session")
def golden_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The recorded case laid out as a checkpoint folder."""
    folder = tmp_path_factory.mktemp("golden")
    config = json.loads((GOLDEN_FOLDER / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(published_config(config)))
    shutil.copy(GOLDEN_FOLDER / "weights.safetensors", folder / "model.safetensors")
    return folder


@pytest.fixture(scope="session")
def golden(golden_folder: Path) -> Golden:
    config = json.loads((GOLDEN_FOLDER / "config.json").read_text())
    tensors = load_file(GOLDEN_FOLDER / "tensors.safetensors")
    model = VideoXL2.from_pretrained(str(golden_folder), device="cpu")
    time_ids = group_time_ids(tensors["time_embedding_ids"].tolist(), config["token_ids"]["visual_placeholder"])
    layout = TokenLayout.build(config["inputs"]["prefix_ids"], time_ids, model.spec.tokens_per_group)
    return Golden(config, tensors, model, layout)


@pytest.fixture(scope="session")
def golden_visual(golden: Golden) -> Tensor:
    """Our visual tokens [G, P, D] of the recorded clip."""
    return golden.model.encode_frames(golden.tensors["pixels"].float())


def max_difference(found: Tensor, expected: Tensor) -> float:
    """Largest absolute difference; the shapes must be equal."""
    assert found.shape == expected.shape, f"{list(found.shape)} against {list(expected.shape)}"
    return float((found - expected).abs().max())
