"""Where the files of a benchmark lie: its published folders, tried in order."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from jobs.evaluation.benchmarks.rows import AnnotationError

VIDEO_ENDINGS = (".mp4", ".MP4", ".mkv", ".webm", ".avi", ".mov")


def find_annotation(folder: Path, names: Sequence[str], title: str) -> Path:
    """The first of ``names`` (relative paths, patterns allowed) that exists below ``folder``.

    Raises ``AnnotationError`` naming what was looked for.
    """
    if not folder.is_dir():
        raise AnnotationError(f"the {title} folder {str(folder)!r} is not there; give the folder its download lies in")
    for name in names:
        found = sorted(path for path in folder.glob(name) if path.is_file())
        if found:
            return found[0]
    raise AnnotationError(
        f"{str(folder)!r} holds no annotation of {title}; looked for {', '.join(names)}: put one of them there"
    )


def find_video(folder: Path, name: str, places: Sequence[str]) -> Path:
    """Where the video ``name`` lies: the first of ``places`` below ``folder`` that has it, with any usual ending.

    Where none has it, the path in the first place, for a message.
    """
    own = next((ending for ending in VIDEO_ENDINGS if name.endswith(ending)), "")
    stem = name.removesuffix(own)
    names = list(dict.fromkeys(stem + ending for ending in (own, *VIDEO_ENDINGS) if ending))
    for place in places:
        for candidate in names:
            if (path := folder / place / candidate).is_file():
                return path
    return folder / places[0] / names[0]
