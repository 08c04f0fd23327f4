"""What int8 and int4 KV save and what they cost: bytes, error, logits, greedy agreement, speed.

    OMP_NUM_THREADS=1 python tests/benchmarks/bench_kv_codec.py [--video FILE] [--rounds 5]

Three subjects: ``tiny`` on a video (its packaged weights; without --video a clip made for tests); a random decoder of
Qwen2.5-0.5B's width, 8 layers; and the same with a few large key biases per head, which imitate the outlier channels of
trained Qwen2.5 keys. None is the published model. The ceiling of speed is a copy of the same bytes in memory.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import av
import numpy as np
import torch

from tests.clips import RECIPES, make
from videoxl2.config import LanguageSpec, ModelSpec
from videoxl2.decode import assemble_cache, generate
from videoxl2.kv import ChunkKV, KVLevel
from videoxl2.kv_codec import CodecSettings, Grouping, KVCodec, decode_kv, encode_kv, encoded_bytes
from videoxl2.model import VideoXL2
from videoxl2.token_choice import likeliest

STEPS = 24
QUESTIONS = 4
"""Suffixes of random words; the random models know no others."""
ASKED = (
    "What happens in this video?",
    "How many people are there?",
    "How many cars are there?",
    "What colour is the car?",
    "Is there a person?",
    "Does a person leave a bag?",
    "What is on the left?",
    "When does a car appear?",
    "Does anything move?",
    "Which way does the car drive?",
    "Is there a car at second 20?",
    "What is in the middle of the picture?",
)
"""What the trained model is asked; its answers end where it ends them."""
CHUNK_8B = (28, 2, 4, 6 * 150, 128)
"""A chunk of the published model: six frame groups of 144 visual tokens and a timestamp."""
GROUPINGS = [Grouping(axis, size) for axis in ("channel", "token") for size in (16, 32, 64, 128)]  # type: ignore[arg-type]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--video")
    parser.add_argument("--rounds", type=int, default=5)
    arguments = parser.parse_args()
    tiny = VideoXL2.from_pretrained("tiny", device="cpu")
    subjects: list[tuple[str, VideoXL2, Sequence[ChunkKV]]] = [("tiny, video", tiny, video_kv(tiny, arguments.video))]
    for name, outliers in (("random 0.5B width", False), ("random, key outliers", True)):
        model = random_model(tiny, outliers=outliers)
        subjects.append((name, model, random_kv(model)))
    document: dict[str, Any] = {"benchmark": "kv_codec", "groupings": [], "codecs": [], "speed": []}
    for name, _, chunks in subjects:
        document["groupings"] += grouping_rows(name, chunks)
    print_groupings(document["groupings"])
    for name, model, chunks in subjects:
        document["codecs"] += codec_rows(name, model, chunks)
    print("\nsubject               codec  bits/value  of bf16  KV rel. error  logit diff  logit std  greedy agreement")
    for row in document["codecs"]:
        print(
            f"{row['subject']:<21} {row['codec']:<6} {row['bits']:>10.2f} {row['of_bf16']:>8.1%} {row['error']:>14.2e} "
            f"{row['logit_diff']:>11.3g} {row['logit_std']:>10.3g} {row['agreement']:>17.1%}"
        )
    document["answers"] = answer_rows(tiny, subjects[0][2])
    print(f"\n{len(ASKED)} questions to tiny: codec, logit diff, tokens that agree, whole answers that agree")
    for row in document["answers"]:
        print(f"{row['codec']:<6} {row['logit_diff']:.3g} {row['token_agreement']:.1%} {row['answer_agreement']:.1%}")
    document["speed"] = speed_rows(arguments.rounds)
    print("\nspeed on one chunk of the 8B shape, bfloat16, GB of bfloat16 per second: median (least to most)")
    for row in document["speed"]:
        print(f"{row['what']:<16} {row['median']:.2f} ({row['least']:.2f} to {row['most']:.2f})")
    document |= {
        "machine": platform.processor() or platform.machine(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
    }
    print(json.dumps(document))


def video_kv(model: VideoXL2, path: str | None) -> Sequence[ChunkKV]:
    """KV of up to two minutes of a video at one frame per second."""
    with tempfile.TemporaryDirectory() as folder:
        name = path or str(make(RECIPES["long.mp4"], Path(folder)).path)
        frames, due = [], 0.0
        with av.open(name) as container:
            for frame in container.decode(video=0):
                if frame.time is not None and frame.time >= due and len(frames) < 120:
                    frames.append(frame.reformat(416, 416).to_ndarray(format="rgb24"))
                    due += 1.0
    return model.index(np.stack(frames), [float(n) for n in range(len(frames))]).chunks


def random_model(tiny: VideoXL2, *, outliers: bool) -> VideoXL2:
    """Qwen2.5-0.5B's width and heads, eight layers, tiny's words; weights normal with 0.02."""
    language = LanguageSpec(
        vocab_size=536, width=896, mlp_width=4864, num_layers=8, num_heads=14, num_kv_heads=2, head_dim=64
    )
    spec = ModelSpec(vision=tiny.spec.vision, dts=tiny.spec.dts, language=language, tokens=tiny.spec.tokens)
    model = VideoXL2(spec).requires_grad_(False).eval()
    generator = torch.Generator().manual_seed(0)
    for module in model.language.modules():
        for name, parameter in module.named_parameters(recurse=False):
            if "norm" in type(module).__name__.lower():
                parameter.fill_(1.0)
            else:
                parameter.normal_(0.0, 0.5 if name == "bias" else 0.02, generator=generator)
    if outliers:
        for number, layer in enumerate(model.language.layers):
            bias_KDh = layer.self_attn.k_proj.bias.view(language.num_kv_heads, language.head_dim)
            bias_KDh[:, number % 32] = 40.0
            bias_KDh[:, 32 + (number * 7) % 32] = -90.0
    model.__dict__["tokenizer"] = tiny.tokenizer
    return model


def random_kv(model: VideoXL2) -> Sequence[ChunkKV]:
    """Six frame groups of visual tokens that change slowly, as those of footage do."""
    generator = torch.Generator().manual_seed(1)
    shape = (144, model.spec.language.width)
    scene = torch.randn(shape, generator=generator)
    groups = [scene + 0.3 * torch.randn(shape, generator=generator) for _ in range(6)]
    return model.prefill(0.05 * torch.stack(groups), [4.0 * n for n in range(6)]).chunks


def grouping_rows(subject: str, chunks: Sequence[ChunkKV]) -> list[dict[str, Any]]:
    """Error of keys and of values alone under every grouping, relative to their deviation from the channel's mean.

    The deviation is what tells tokens apart: a large constant channel must not flatter the figure.
    """
    rows = []
    for codec in (KVCodec.INT8, KVCodec.INT4):
        for grouping in GROUPINGS:
            settings = CodecSettings(codec, grouping, grouping)
            apart, spread, size, count = np.zeros(2), np.zeros(2), 0, 0
            for chunk in chunks:
                kv = chunk.kv_LSKMDh
                lossy = coded(chunk, settings).kv_LSKMDh
                for which in range(2):
                    apart[which] += float((lossy - kv)[:, which].double().square().sum())
                    around = kv[:, which] - kv[:, which].mean(dim=2, keepdim=True)
                    spread[which] += float(around.double().square().sum())
                size += encoded_bytes(tuple(kv.shape), "bfloat16", settings)
                count += kv.numel()
            keys, values = np.sqrt(apart / spread)
            rows.append(
                {
                    "subject": subject,
                    "codec": codec.value,
                    "axis": grouping.axis,
                    "size": grouping.size,
                    "bits": 8 * size / count,
                    "key_error": float(keys),
                    "value_error": float(values),
                }
            )
    return rows


def print_groupings(rows: Sequence[dict[str, Any]]) -> None:
    print("error relative to the deviation from each channel's mean\n")
    print("subject               codec  axis     group  bits/value  keys      values")
    for row in rows:
        print(
            f"{row['subject']:<21} {row['codec']:<6} {row['axis']:<8} {row['size']:>5} {row['bits']:>11.2f}  "
            f"{row['key_error']:.2e}  {row['value_error']:.2e}"
        )


def codec_rows(subject: str, model: VideoXL2, chunks: Sequence[ChunkKV]) -> list[dict[str, Any]]:
    rows = []
    references = [answer(model, chunks, random_words(question), None) for question in range(QUESTIONS)]
    for codec in KVCodec:
        settings = CodecSettings(codec)
        lossy = [coded(chunk, settings) for chunk in chunks]
        apart = sum(
            float((a.kv_LSKMDh - b.kv_LSKMDh).double().square().sum()) for a, b in zip(lossy, chunks, strict=True)
        )
        norm = sum(float(chunk.kv_LSKMDh.double().square().sum()) for chunk in chunks)
        diff, agreeing, stds = 0.0, 0, []
        for question, (expected, tokens) in enumerate(references):
            logits, _ = answer(model, lossy, random_words(question), tokens)
            diff = max(diff, float((logits - expected).abs().max()))
            agreeing += int((logits.argmax(dim=-1) == torch.tensor(tokens)).sum())
            stds.append(float(expected.std()))
        size = sum(encoded_bytes(tuple(chunk.kv_LSKMDh.shape), "bfloat16", settings) for chunk in chunks)
        count = sum(chunk.kv_LSKMDh.numel() for chunk in chunks)
        rows.append(
            {
                "subject": subject,
                "codec": codec.value,
                "bits": 8 * size / count,
                "of_bf16": size / (2 * count),
                "error": (apart / norm) ** 0.5,
                "logit_diff": diff,
                "logit_std": statistics.mean(stds),
                "agreement": agreeing / (QUESTIONS * STEPS),
            }
        )
    return rows


def answer_rows(model: VideoXL2, chunks: Sequence[ChunkKV]) -> list[dict[str, Any]]:
    """Real questions over each codec's KV, the exact answer's tokens forced: which of them would have been chosen."""
    suffixes = [model.tokenizer.prompt_parts(question)[1] for question in ASKED]
    ends = model.tokenizer.eos_ids
    references = [answer(model, chunks, suffix, None, ends) for suffix in suffixes]
    rows = []
    for codec in KVCodec:
        lossy = [coded(chunk, CodecSettings(codec)) for chunk in chunks]
        diff, agreeing = 0.0, []
        for suffix, (expected, tokens) in zip(suffixes, references, strict=True):
            logits, _ = answer(model, lossy, suffix, tokens, ends)
            diff = max(diff, float((logits - expected).abs().max()))
            agreeing.append(logits.argmax(dim=-1) == torch.tensor(tokens))
        rows.append(
            {
                "codec": codec.value,
                "questions": len(ASKED),
                "logit_diff": diff,
                "token_agreement": float(torch.cat(agreeing).double().mean()),
                "answer_agreement": statistics.mean(float(same.all()) for same in agreeing),
            }
        )
    return rows


def coded(chunk: ChunkKV, settings: CodecSettings) -> ChunkKV:
    kv = chunk.kv_LSKMDh
    lossy = decode_kv(encode_kv(kv, settings), tuple(kv.shape), str(kv.dtype).removeprefix("torch."), settings)
    return ChunkKV(lossy, chunk.groups, KVLevel.DENSE)


def random_words(question: int) -> list[int]:
    """A suffix that means nothing."""
    return torch.randint(0, 500, (12,), generator=torch.Generator().manual_seed(question)).tolist()


def answer(
    model: VideoXL2,
    chunks: Sequence[ChunkKV],
    suffix_ids: Sequence[int],
    forced: Sequence[int] | None,
    ends: Sequence[int] = (),
) -> tuple[torch.Tensor, list[int]]:
    """Logits of every step [steps, V] and its tokens: the likeliest, or those forced."""
    logits: list[torch.Tensor] = []
    tokens: list[int] = []

    def choose(logits_V: torch.Tensor) -> int:
        logits.append(logits_V)
        tokens.append(likeliest(logits_V) if forced is None else forced[len(tokens)])
        return tokens[-1]

    cache = assemble_cache(model, chunks)
    for _ in generate(model, cache, suffix_ids, STEPS, ends, choose=choose):
        pass
    return torch.stack(logits), tokens


def speed_rows(rounds: int) -> list[dict[str, Any]]:
    kv = torch.randn(CHUNK_8B, generator=torch.Generator().manual_seed(0)).bfloat16()
    target = torch.empty_like(kv)
    work: list[tuple[str, Callable[[], object]]] = [("memcpy (ceiling)", lambda: target.copy_(kv))]
    for codec in KVCodec:
        settings = CodecSettings(codec)
        payload = encode_kv(kv, settings).copy()
        work.append((f"encode {codec}", lambda settings=settings: encode_kv(kv, settings)))  # type: ignore[misc]
        work.append(
            (
                f"decode {codec}",
                lambda settings=settings, payload=payload: decode_kv(payload, CHUNK_8B, "bfloat16", settings),  # type: ignore[misc]
            )
        )
    times: dict[str, list[float]] = {name: [] for name, _ in work}
    for number in range(rounds + 1):
        for name, call in work:
            started = time.perf_counter()
            call()
            if number:  # the first round warms up
                times[name].append(kv.numel() * 2 / 1e9 / (time.perf_counter() - started))
    return [
        {"what": name, "median": statistics.median(rates), "least": min(rates), "most": max(rates)}
        for name, rates in times.items()
    ]


if __name__ == "__main__":
    main()
