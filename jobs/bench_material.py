"""What ``vxl bench reuse`` runs on: footage with a known event in every file, and a larger random checkpoint.

The pictures are simple and sampled sparsely, so that making and decoding them costs little: what is compared is the
model's work with the reading of its KV. Cheap decoding favours the ways that go back to the video.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from videoxl2.checkpoint import read_checkpoint_info, resolve_checkpoint
from videoxl2.config import DTSSpec, LanguageSpec, ModelSpec

PICTURE = (416, 234)
"""Width and height of the footage in pixels."""
FILE_FPS = 2
_EVENT = (0.45, 0.55)
"""The part of each file in which the event happens."""


@dataclass(frozen=True, slots=True)
class MadeFile:
    """One file of footage and the stretch of it, in seconds, in which a red block crosses the picture."""

    path: Path
    duration_s: float
    event_s: tuple[float, float]


def make_footage(folder: Path, num_files: int, file_s: float) -> list[MadeFile]:
    """``num_files`` videos of ``file_s`` seconds, an hour of wall clock apart: ``gate/2026-03-01/000000.mp4``, ..."""
    import av

    made = []
    for number in range(num_files):
        path = folder / "gate" / f"2026-03-{1 + number // 24:02d}" / f"{number % 24:02d}0000.mp4"
        path.parent.mkdir(parents=True, exist_ok=True)
        with av.open(str(path), "w") as container:
            stream = container.add_stream("libx264", rate=FILE_FPS)
            stream.width, stream.height, stream.pix_fmt = *PICTURE, "yuv420p"
            stream.options = {"preset": "veryfast", "crf": "27", "g": "8"}
            for rgb_HW3 in _pictures(number, file_s):
                container.mux(stream.encode(av.VideoFrame.from_ndarray(rgb_HW3, format="rgb24")))
            container.mux(stream.encode(None))
        made.append(MadeFile(path, file_s, (_EVENT[0] * file_s, _EVENT[1] * file_s)))
    return made


def _pictures(seed: int, file_s: float) -> Iterator[np.ndarray]:
    """A still, textured scene; a grey block drifts through it all the time, a red one during the event."""
    rng = np.random.default_rng([seed, 5])
    width, height = PICTURE
    coarse = rng.integers(60, 180, (height // 26, width // 26, 3))
    scene = np.kron(coarse, np.ones((26, 26, 1))).astype(np.uint8)
    num_frames = round(file_s * FILE_FPS)
    for frame in range(num_frames):
        rgb = scene.copy()
        at = frame / num_frames
        left = int(at * 7 * width) % (width - 30)
        rgb[160:200, left : left + 30] = 120
        if _EVENT[0] <= at < _EVENT[1]:
            left = int((at - _EVENT[0]) / (_EVENT[1] - _EVENT[0]) * (width - 80))
            rgb[60:130, left : left + 80] = (220, 30, 30)
        yield rgb


def large_spec(tiny: ModelSpec) -> ModelSpec:
    """The larger model: the packaged one's pictures and words, a decoder of 226 million parameters, a wider tower."""
    return replace(
        tiny,
        vision=replace(tiny.vision, width=192, mlp_width=768, num_layers=6, num_heads=3),
        dts=DTSSpec(channels=192, grid=tiny.dts.grid, frames_per_group=tiny.dts.frames_per_group),
        language=LanguageSpec(
            vocab_size=tiny.language.vocab_size,
            width=1152,
            mlp_width=4608,
            num_layers=12,
            num_heads=18,
            num_kv_heads=2,
            head_dim=64,
            max_positions=tiny.language.max_positions,
        ),
    )


def make_large_checkpoint(folder: Path) -> Path:
    """Write the larger model with random weights, with tokenizer and dual encoder of the packaged one; its folder."""
    import torch

    from videoxl2.model import VideoXL2
    from videoxl2.training.make_random_checkpoint import initialise
    from videoxl2.weights import save_weights, video_table

    packaged = read_checkpoint_info(resolve_checkpoint("tiny"))
    spec = large_spec(packaged.spec)
    with torch.device("meta"):
        model = VideoXL2(spec)
    model = model.to_empty(device="cpu")
    initialise(model, seed=0)
    folder.mkdir(parents=True, exist_ok=True)
    shutil.copytree(packaged.folder / "dual_encoder", folder / "dual_encoder", dirs_exist_ok=True)
    shutil.copy(packaged.folder / "tokenizer.json", folder / "tokenizer.json")
    (folder / "config.json").write_text(json.dumps(spec.to_config()), encoding="utf-8")
    (folder / "card.json").write_text(json.dumps({"name": "large", "weights": "random"}), encoding="utf-8")
    save_weights(model, folder / "model.safetensors", video_table(spec), dtype=torch.float16)
    return folder


def describe(spec: ModelSpec) -> str:
    """The shape in words."""
    vision, language = spec.vision, spec.language
    return (
        f"decoder {language.num_layers} x {language.width} (MLP {language.mlp_width}, {language.num_heads} heads, "
        f"{language.num_kv_heads} KV heads of {language.head_dim}), tower {vision.num_layers} x {vision.width}, "
        f"{vision.image_size} px, {spec.tokens_per_group} visual tokens per group of {spec.frames_per_group} frames"
    )
