"""Which words may come together in training, validation and test footage.

Owns the rule and nothing else. A combination is a tuple of words such as (kind, colour, action) or
("shirt", colour, "trousers", colour). Every single word occurs in every split; one combination in ten is kept for
the test, one in ten for validation. What nearly everybody does sooner or later (``EVERYWHERE``) is not part of the
rule: were "green walks" kept back, nothing in training could be green and do anything. Layouts and seeds of the splits
are disjoint by construction (``layout_seed``).
"""

from __future__ import annotations

import zlib
from typing import Literal

Split = Literal["train", "validation", "test"]
SPLITS: tuple[Split, ...] = ("train", "validation", "test")
NUM_LAYOUTS: dict[Split, int] = {"train": 1000, "validation": 6, "test": 12}
EVERYWHERE = frozenset({"enter", "leave", "walk", "carry", "drive"})
"""Actions that may be shown in every colour, since most stories hold one of them."""
_NUM_BUCKETS = 10


def first_split(*words: str) -> Split:
    """The most open split that may show a combination: "train" for eight in ten."""
    if words[-1] in EVERYWHERE:
        return "train"
    bucket = zlib.crc32("|".join(words).encode()) % _NUM_BUCKETS
    return ("test", "validation")[bucket] if bucket < 2 else "train"


def is_allowed(split: Split, *words: str) -> bool:
    """True when footage of ``split`` may show the combination. The test may show everything."""
    return SPLITS.index(first_split(*words)) <= SPLITS.index(split)


def layout_seed(split: Split, kind: str, number: int) -> list[int]:
    """Seed of one layout of a kind of camera; no two splits share one."""
    return [SPLITS.index(split), zlib.crc32(kind.encode()), number % NUM_LAYOUTS[split]]


def scene_seed(split: Split, kind: str, seed: int) -> list[int]:
    """Seed of everything else in a scene."""
    return [1000 + SPLITS.index(split), zlib.crc32(kind.encode()), seed]
