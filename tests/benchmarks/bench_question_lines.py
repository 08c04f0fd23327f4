"""How questions with options find their chunks: as one text, or line by line.

    python -m tests.benchmarks.bench_question_lines RUN [--model tiny] [--per-kind 14] [--share 0.2] [--json]

``RUN`` is the folder of a training run with visual tokens (``vxl train --stage features``) made by that very model;
its validation clips of ten minutes are asked about. Printed is how often the best ``--share`` of a clip's chunks has
one that shows the answer, beside what chance gives. Kinds of question that have one line are the same in every row.
"""

from __future__ import annotations

import argparse
import json
import math
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from pipeline.question_hits import question_lines
from videoxl2.dual_encoder import ImageEncoder
from videoxl2.options import OPTION_MARK
from videoxl2.relevance import standard_scores
from videoxl2.text_tower import TextEncoder
from videoxl2.training.dialogues import GROUP_S, CachedClip, Stretch, evidence_groups
from videoxl2.training.feature_cache import load_features
from videoxl2.training.questions import questions_of

CHUNK_GROUPS = 6
LEAST_CHUNKS = 10
MOST_EVIDENCE = 0.5
Scores = NDArray[np.float64]

WAYS: Mapping[str, Callable[[Scores, Scores, Scores], Scores]] = {
    "as one text": lambda whole_C, lines_LC, bare_LC: whole_C,
    "its first line": lambda whole_C, lines_LC, bare_LC: lines_LC[0],
    "lines, similarities": lambda whole_C, lines_LC, bare_LC: lines_LC.max(axis=0),
    "lines, standard scores": lambda whole_C, lines_LC, bare_LC: standard(lines_LC).max(axis=0),
    "options by themselves": lambda whole_C, lines_LC, bare_LC: standard(bare_LC).max(axis=0),
}
"""Scores of a question's chunks, from those of its text, of the lines that are looked up, and of bare options."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path)
    parser.add_argument("--model", default="tiny")
    parser.add_argument("--per-kind", type=int, default=14)
    parser.add_argument("--share", type=float, default=0.2)
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    image, text = ImageEncoder.from_pretrained(arguments.model), TextEncoder.from_pretrained(arguments.model)
    clips = load_features(arguments.run / "clips", arguments.run / "features", "validation")
    found: dict[tuple[str, str], list[float]] = defaultdict(list)
    for number, clip in enumerate(clip for clip in clips if clip.num_groups >= CHUNK_GROUPS * LEAST_CHUNKS):
        for kind, way, hit in asked(clip, number, image, text, arguments.per_kind, arguments.share):
            found[kind, way].append(hit)
    rows = [
        {"kind": kind, "way": way, "asked": len(hits), "recall": float(np.mean(hits))}
        for (kind, way), hits in sorted(found.items())
    ]
    if arguments.json:
        print(json.dumps({"share": arguments.share, "rows": rows}))
        return
    for row in rows:
        print(f"{row['kind']:<10} {row['way']:<24} {row['asked']:>5}  {row['recall']:.3f}")


def asked(
    clip: CachedClip, seed: int, image: ImageEncoder, text: TextEncoder, per_kind: int, share: float
) -> list[tuple[str, str, float]]:
    """Kind, way, and whether the best chunks held evidence, for every question about the clip that has some."""
    seen = Stretch(
        clip.visual_GPD, tuple(GROUP_S * g for g in range(clip.num_groups)), clip.facts(0, clip.num_groups, 0.0)
    )
    vectors_GE = image.embed_groups(torch.from_numpy(clip.visual_GPD).float()).cpu().numpy()
    starts = range(0, clip.num_groups, CHUNK_GROUPS)
    number = max(1, math.ceil(share * len(starts)))
    found: list[tuple[str, str, float]] = []
    for item in questions_of(seen.facts, seed, "train", per_kind):
        evidence_G = evidence_groups(seen, item)
        if not evidence_G.any() or evidence_G.mean() > MOST_EVIDENCE:
            continue
        true_C = np.asarray([evidence_G[start : start + CHUNK_GROUPS].any() for start in starts])
        whole_1C = by_chunk(vectors_GE, text.embed([item.question]), starts)
        lines_LC = by_chunk(vectors_GE, text.embed(question_lines(item.question)), starts)
        bare_LC = by_chunk(vectors_GE, text.embed(bare_lines(item.question)), starts)
        for way, score in WAYS.items():
            best = np.argsort(-score(whole_1C[0], lines_LC, bare_LC), kind="stable")[:number]
            found.append((item.kind, way, float(true_C[best].any())))
        missed = math.comb(len(starts) - int(true_C.sum()), number) / math.comb(len(starts), number)
        found.append((item.kind, "by chance", 1 - missed))
    return found


def bare_lines(question: str) -> list[str]:
    """The lines, options without what asks for them."""
    return [OPTION_MARK.sub("", line.strip()) for line in question.splitlines() if line.strip()]


def standard(lines_LC: Scores) -> Scores:
    return np.asarray([standard_scores(row.tolist()) for row in lines_LC])


def by_chunk(vectors_GE: np.ndarray, texts_LE: np.ndarray, starts: Sequence[int]) -> Scores:
    """The best similarity [L, C] of each text with a frame group of each chunk."""
    similar_LG = texts_LE @ vectors_GE.T
    return np.stack([similar_LG[:, start : start + CHUNK_GROUPS].max(axis=1) for start in starts], axis=1)


if __name__ == "__main__":
    main()
