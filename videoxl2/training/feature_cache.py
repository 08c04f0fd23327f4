"""Visual tokens of recorded clips, computed once: the language stages read them instead of looking again.

Shapes: G frame groups, P visual tokens per group, D text width.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

from videoxl2.model import VideoXL2
from videoxl2.preprocess import frames_to_pixels
from videoxl2.training import replicas
from videoxl2.training.dialogues import CachedClip
from videoxl2.training.recordings import Recording, finished_files
from videoxl2.training.splits import Split


def cache_features(
    model: VideoXL2,
    clips: Path,
    cache: Path,
    split: Split,
    limit: int | None = None,
    dtype: torch.dtype | None = None,
    on_progress: Callable[[int], None] | None = None,
) -> int:
    """Write the visual tokens of a split's clips that ``cache`` lacks; gives how many were computed here.

    A clip begins at a random one of its first four frames, so that groups are cut at all moments. Replicas share the
    clips.
    """
    (cache / split).mkdir(parents=True, exist_ok=True)
    done = 0
    size = model.spec.frames_per_group
    for path in finished_files(clips / split, ".npz")[:limit][replicas.rank() :: replicas.count()]:
        target = cache / split / f"{path.stem}.npy"
        if target.exists():
            continue
        clip = Recording.load(path)
        first = first_frame(clip, size)
        groups = (clip.num_frames - first) // size
        pixels_F3SS = frames_to_pixels(clip.frames(first, first + groups * size), model.spec.vision.image_size)
        with torch.no_grad(), torch.autocast(model.device.type, torch.bfloat16, enabled=dtype is not None):
            visual_GPD = model.encode_frames(pixels_F3SS)
        unfinished = target.with_suffix(".partial.npy")
        np.save(unfinished, visual_GPD.float().cpu().numpy().astype(np.float16))
        unfinished.replace(target)
        done += 1
        if on_progress is not None:
            on_progress(done)
    return done


def first_frame(recording: Recording, frames_per_group: int = 4) -> int:
    """The frame at which a clip's first group begins."""
    return int(np.random.default_rng([recording.seed, 73]).integers(frames_per_group))


def load_features(clips: Path, cache: Path, split: Split, limit: int | None = None) -> list[CachedClip]:
    """The clips of a split whose visual tokens are cached, without their pictures."""
    found: list[CachedClip] = []
    for path in finished_files(cache / split, ".npy")[:limit]:
        clip = Recording.load(clips / split / f"{path.stem}.npz").without_pictures()
        found.append(CachedClip(clip, clip.scene(), first_frame(clip), np.load(path)))
    return found
