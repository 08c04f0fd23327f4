"""Which layers and which pooling of the model's attention find the chunk that a question is about.

    OMP_NUM_THREADS=1 python -m tests.benchmarks.bench_relevance [--model tiny] [--videos 12] [--seconds 480] \
        [--queries 60] [--budget 4] [--json]

Made-up footage is rendered from scenes of a split, indexed as an archive does, and pooled to sparse KV.
Search queries with known moments ("a person in a red shirt running") are asked as questions. A chunk is true when it
overlaps a moment; one that overlaps only a doubtful moment is not counted either way. Recall is the share of queries
whose best-scored chunk (at 1), or one of the ``--budget`` best, is true; by chance it would be what the last row says.

One pass of a question over the sparse KV gives every layer, head and token, so that all choices are scored on the very
same footage. Choose on ``--split validation`` and confirm on ``--split test``: the best of many choices is flattered.
"""

from __future__ import annotations

import argparse
import itertools
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from videoxl2.dual_encoder import ImageEncoder
from videoxl2.kv import ChunkKV, sparsify
from videoxl2.model import VideoXL2
from videoxl2.preprocess import frames_to_pixels
from videoxl2.relevance import (
    POOLINGS,
    EmbeddingRelevance,
    FusedRelevance,
    chunk_similarities,
    pool_attention,
    question_attention,
)
from videoxl2.text_tower import TextEncoder
from videoxl2.training.dialogue_attention import grounded_layers
from videoxl2.training.facts import Facts
from videoxl2.training.queries import SearchQuery, search_queries
from videoxl2.training.samples import clip_scene, render_clip
from videoxl2.training.splits import SPLITS

QUESTION = "When can {} be seen?"
FRAMES_PER_CLIP = 60


@dataclass(frozen=True)
class IndexedVideo:
    """A video as a question finds it: sparse KV, search vectors [n, E] and the stretch of seconds of each chunk."""

    chunks: Sequence[ChunkKV]
    vectors_nE: Sequence[Tensor]
    spans_s: Sequence[tuple[float, float]]


@dataclass(frozen=True)
class Asked:
    """One query on one of its videos: scores by choice, one per chunk that counts, and which of those are true."""

    scores: Mapping[str, list[float]]
    is_true: tuple[bool, ...]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="tiny")
    parser.add_argument("--videos", type=int, default=12)
    parser.add_argument("--seconds", type=int, default=480, help="length of a video, a multiple of 60")
    parser.add_argument("--queries", type=int, default=60)
    parser.add_argument("--budget", type=int, default=4, help="chunks that may be dense")
    parser.add_argument("--chunk-groups", type=int, default=6)
    parser.add_argument("--compression", type=int, default=4)
    parser.add_argument("--split", choices=SPLITS, default="validation", help="split of the scenes")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    model = VideoXL2.from_pretrained(arguments.model)
    text, image = TextEncoder.from_pretrained(arguments.model), ImageEncoder.from_pretrained(arguments.model)
    videos: dict[str, IndexedVideo] = {}
    facts: dict[str, Facts] = {}
    for number in range(arguments.videos):
        key = f"video-{number}"
        frames, times_s, facts[key] = render(arguments, model, number)
        videos[key] = index(model, image, frames, times_s, arguments)
    queries = search_queries(facts, arguments.seed, arguments.queries)
    asked = [found for query in queries for found in ask(model, text, videos, query)]
    if not asked:
        raise SystemExit("no query has a true chunk beside others: render more or longer videos")
    rows = [(name, recall(asked, name, 1), recall(asked, name, arguments.budget)) for name in asked[0].scores]
    rows.sort(key=lambda row: (-row[2], -row[1], row[0]))
    rows.append(("chance", chance(asked, 1), chance(asked, arguments.budget)))
    if arguments.json:
        named = [{"choice": name, "recall_at_1": one, "recall_at_budget": more} for name, one, more in rows]
        settings = {name: value for name, value in vars(arguments).items() if name != "json"}
        print(
            json.dumps({"settings": settings, "weights": model.info.weights_digest, "asked": len(asked), "rows": named})
        )
        return
    print(f"{len(asked)} questions, {arguments.videos} videos; chunks of {arguments.chunk_groups} groups")
    print(f"{'choice':<36} at 1   at {arguments.budget}")
    for name, one, more in rows:
        print(f"{name:<36} {one:.3f}  {more:.3f}")


def render(arguments: argparse.Namespace, model: VideoXL2, number: int) -> tuple[np.ndarray, list[float], Facts]:
    """Frames [F, S, S, 3] at one per second, their times, and what is to be seen."""
    seed, side = 1000 * arguments.seed + number, model.spec.vision.image_size
    scene = clip_scene(seed, arguments.split, side, float(arguments.seconds))
    clip = render_clip(scene, 0.0, arguments.seconds, 1.0, side, seed=seed, split=arguments.split)
    return clip.frames_u8_FHWC, clip.times_s.tolist(), clip.facts


def index(
    model: VideoXL2, image: ImageEncoder, frames: np.ndarray, times_s: Sequence[float], arguments: argparse.Namespace
) -> IndexedVideo:
    """The video as an archive holds it."""
    result = model.index(frames, times_s, chunk_groups=arguments.chunk_groups)
    vectors_GE = torch.cat(
        [
            group_vectors(model, image, frames[first : first + FRAMES_PER_CLIP])
            for first in range(0, len(frames), FRAMES_PER_CLIP)
        ]
    )
    per_chunk = arguments.chunk_groups * model.spec.frames_per_group
    starts = range(0, len(frames), per_chunk)
    return IndexedVideo(
        chunks=[sparsify(chunk, arguments.compression) for chunk in result.chunks],
        vectors_nE=list(vectors_GE.cpu().split(arguments.chunk_groups)),
        spans_s=[(times_s[start], times_s[min(start + per_chunk, len(frames)) - 1] + 1.0) for start in starts],
    )


def group_vectors(model: VideoXL2, image: ImageEncoder, frames: np.ndarray) -> torch.Tensor:
    """Search vectors [G, E] of frame groups, as ingestion makes them."""
    if image.token_width is not None:
        return image.embed_groups(model.encode_frames(frames_to_pixels(frames, model.spec.vision.image_size)))
    vectors = image.embed(frames_to_pixels(frames, image.image_size)).split(model.spec.frames_per_group)
    return torch.stack([torch.nn.functional.normalize(group_FE.mean(dim=0), dim=-1) for group_FE in vectors])


def ask(model: VideoXL2, text: TextEncoder, videos: Mapping[str, IndexedVideo], query: SearchQuery) -> Iterator[Asked]:
    """The query on every video that has a true chunk and one that is not."""
    vector_E = torch.from_numpy(text.embed([query.text])[0])
    for key in sorted({moment[0] for moment in query.intervals}):
        video = videos[key]
        true = [overlaps(span, key, query.intervals) for span in video.spans_s]
        counts = [
            is_true or not overlaps(span, key, query.doubtful)
            for is_true, span in zip(true, video.spans_s, strict=True)
        ]
        kept = tuple(is_true for is_true, is_counted in zip(true, counts, strict=True) if is_counted)
        if len(set(kept)) < 2:
            continue
        scores = choices(model, QUESTION.format(query.text), video, chunk_similarities(vector_E, video.vectors_nE))
        yield Asked({name: list(itertools.compress(values, counts)) for name, values in scores.items()}, kept)


def choices(
    model: VideoXL2, question: str, video: IndexedVideo, similarities: Sequence[float]
) -> dict[str, list[float]]:
    """Scores by choice of layers and pooling, of similarity, and of similarity fused with every one of them.

    "told heads" are those that training told where to look (``training.dialogue_attention``).
    """
    relative_ANTC = question_attention(model, question, video.chunks)
    embedding = EmbeddingRelevance(tuple(similarities))
    found = {"embedding": list(similarities)}

    def add(name: str, scores_C: Tensor) -> None:
        scores = scores_C.tolist()
        found[f"attention {name}"] = scores
        both = FusedRelevance((embedding, EmbeddingRelevance(tuple(scores))), (1.0, 1.0))
        found[f"fused {name}"] = both.scores(question, video.chunks)

    for pooling in POOLINGS:
        pooled_AC = pool_attention(relative_ANTC, pooling)
        for name, layers in layer_choices(len(pooled_AC)).items():
            add(f"{pooling} {name}", pooled_AC[layers].mean(dim=0))
    spec = model.language.spec
    told_ARTC = relative_ANTC[list(grounded_layers(spec.num_layers)), : spec.num_heads // spec.num_kv_heads]
    for pooling in POOLINGS:
        add(f"{pooling} told heads", pool_attention(told_ARTC, pooling).mean(dim=0))
    return found


def layer_choices(num_layers: int) -> dict[str, list[int]]:
    """All layers, each alone, and the halves and thirds of the stack."""
    every = list(range(num_layers))
    found = {"all": every, **{f"layer {layer}": [layer] for layer in every}}
    if num_layers >= 4:
        half = num_layers // 2
        found |= {"first half": every[:half], "second half": every[half:]}
    if num_layers >= 6:
        third = num_layers // 3
        found |= {"middle third": every[third : num_layers - third], "last third": every[num_layers - third :]}
    return found


def overlaps(span: tuple[float, float], key: str, moments: Sequence[tuple[str, float, float]]) -> bool:
    return any(video == key and start < span[1] and end > span[0] for video, start, end in moments)


def recall(asked: Sequence[Asked], name: str, budget: int) -> float:
    """Share of questions with a true chunk among the ``budget`` best."""

    def is_found(one: Asked) -> bool:
        scores = one.scores[name]
        best = sorted(range(len(scores)), key=lambda chunk: (-scores[chunk], chunk))[:budget]
        return any(one.is_true[chunk] for chunk in best)

    return mean(asked, is_found)


def chance(asked: Sequence[Asked], budget: int) -> float:
    """The recall of an order drawn at random."""

    def of_one(one: Asked) -> float:
        missed, count, wrong = 1.0, len(one.is_true), one.is_true.count(False)
        for drawn in range(min(budget, count)):
            missed *= max(0, wrong - drawn) / (count - drawn)
        return 1 - missed

    return mean(asked, of_one)


def mean(asked: Sequence[Asked], value: Callable[[Asked], float]) -> float:
    return sum(map(value, asked)) / len(asked)


if __name__ == "__main__":
    main()
