"""The measurement itself: what it reports, and that it measures what the model really does."""

from __future__ import annotations

import json

import pytest
import torch

from jobs.cli import main
from videoxl2.bench import (
    bench_layout,
    bench_model,
    bench_prefill,
    decode_bytes,
    decode_times,
    matrix_rate,
    memory_rate,
    overlapped_s,
    prefill_run,
    random_spec,
)
from videoxl2.config import ModelSpec, PrefillSettings
from videoxl2.model import VideoXL2


@pytest.mark.parametrize("mode", ["chunked", "bounded", "plain", "masked"])
def test_a_run_adds_up(tiny_model: VideoXL2, mode: str) -> None:
    run = prefill_run(tiny_model, 70, mode)  # type: ignore[arg-type]
    spec = tiny_model.spec
    words = tiny_model.tokenizer
    times = sum(len(words.timestamp_ids(float(t_s))) for t_s in range(0, 70, 4))
    assert run.frames == 70 and run.tokens == len(words.prefix_ids()) + 18 * spec.tokens_per_group + times
    assert min(run.vision_s, run.dts_s, run.language_s) > 0
    assert run.vision_s + run.dts_s + run.language_s == pytest.approx(run.total_s, rel=0.2)
    assert run.peak_bytes > run.kv_bytes == run.tokens * spec.language.kv_values_per_token * 4
    assert run.flops > 0 and run.tokens_per_s > 0 and run.flops_per_s > 0
    assert run.first_token_s > 0 and run.decode_s > 0 and run.decode_bytes > run.kv_bytes


def test_peak_memory_is_that_of_the_run(tiny_model: VideoXL2) -> None:
    """A block of 400 MB held before and released does not count for later runs."""
    first = prefill_run(tiny_model, 16, "chunked").peak_bytes
    held = torch.ones(100_000_000)
    during = prefill_run(tiny_model, 16, "chunked").peak_bytes
    del held
    after = prefill_run(tiny_model, 16, "chunked").peak_bytes
    assert during > first + 300_000_000 and after < first + 100_000_000


def test_published_lengths_of_timestamps() -> None:
    layout, times = bench_layout(random_spec("8b"), 256)
    assert layout.length == 9838 - 60, "the specification's length includes a question of 60 tokens"
    assert times[:3] == [0.0, 4.0, 8.0]


def test_a_checkpoint_is_measured_with_its_own_tokenizer(tiny_model: VideoXL2) -> None:
    layout, times = bench_layout(tiny_model.spec, 64, tiny_model.tokenizer)
    assert [list(ids) for ids in layout.time_ids] == [tiny_model.tokenizer.timestamp_ids(t_s) for t_s in times]
    assert prefill_run(tiny_model, 64, "chunked").tokens == layout.length


def test_sizes() -> None:
    from tests.unit.videoxl2.test_config import PUBLISHED

    published = ModelSpec.from_config(PUBLISHED)
    assert random_spec("8b").language == published.language and random_spec("8b").vision == published.vision
    small = random_spec("0.5b")
    with torch.device("meta"):
        count = sum(parameter.numel() for parameter in VideoXL2(small).language.parameters())
    assert 0.49e9 < count < 0.5e9 and small.language.tied_head and small.tokens_per_group == 144
    with pytest.raises(ValueError, match=r"8b and 0\.5b"):
        random_spec("70b")


def test_random_weights_run(monkeypatch: pytest.MonkeyPatch, tiny_model: VideoXL2) -> None:
    monkeypatch.setattr("videoxl2.bench.random_spec", lambda size: tiny_model.spec)
    model = bench_model("random:any", "cpu")
    assert all(parameter.isfinite().all() for parameter in model.parameters())
    assert prefill_run(model, 9, "chunked").tokens == 14 + 3 * tiny_model.spec.tokens_per_group + 3 * 7
    assert matrix_rate(model.device, model.dtype) > 1e8 and memory_rate(model.device) > 1e7


def test_a_tied_head_stays_tied(monkeypatch: pytest.MonkeyPatch, tiny_model: VideoXL2) -> None:
    tied = ModelSpec.from_config({**tiny_model.spec.to_config(), "tie_word_embeddings": True})
    monkeypatch.setattr("videoxl2.bench.random_spec", lambda size: tied)
    decoder = bench_model("random:any", "cpu").language
    assert decoder.lm_head.weight is decoder.embed_tokens.weight


def test_a_step_reads_the_weights_and_the_kv(tiny_model: VideoXL2) -> None:
    decoder = tiny_model.language
    weights = sum(p.numel() for p in decoder.parameters()) - decoder.embed_tokens.weight.numel()
    assert not decoder.spec.tied_head or weights > 0
    more = decode_bytes(tiny_model, 1000) - decode_bytes(tiny_model, 0)
    assert more == 1000 * decoder.spec.kv_values_per_token * decoder.dtype.itemsize
    if not decoder.spec.tied_head:
        assert decode_bytes(tiny_model, 0) == weights * decoder.dtype.itemsize
    first_s, step_s = decode_times(tiny_model, 500)
    assert first_s > 0 and step_s > 0


def test_every_length_is_reported() -> None:
    seen: list[int] = []
    bench = bench_prefill("tiny", [8, 4], "cpu", report=lambda run: seen.append(run.frames))
    assert [run.frames for run in bench.runs] == seen == [8, 4]
    with pytest.raises(ValueError, match="positive"):
        bench_prefill("tiny", [], "cpu")


def test_command_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", "prefill", "--frames", "8", "12", "--device", "cpu", "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert document["model"] == "tiny" and document["device"] and document["matrix_flops_per_s"] > 0
    expected = {"frames", "tokens", "vision_s", "dts_s", "language_s", "total_s", "flops", "peak_bytes", "kv_bytes"}
    expected |= {"first_token_s", "decode_s", "decode_bytes"}
    assert set(document["parameters"]) == {"vision", "dts", "projector", "language"}
    assert document["memory_bytes_per_s"] > 0
    assert [run["frames"] for run in document["runs"]] == [8, 12] and set(document["runs"][0]) == expected
    assert main(["bench", "prefill", "--frames", "8", "--device", "cpu", "--mode", "bounded"]) == 0
    text = capsys.readouterr().out
    assert "matrix rate" in text and "of ceiling" in text and "bounded" in text and "decode tokens/s" in text


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["prefill"], "--frames"),
        (["prefill", "--frames", "0"], "positive"),
        (["decode", "--frames", "8"], "'decode'"),
        (["prefill", "--frames", "8", "--mode", "fast"], "'fast'"),
        (["prefill", "--frames", "8", "--model", "nosuch"], "no checkpoint"),
        (["prefill", "--frames", "8", "--model", "random:70b"], "8b and 0.5b"),
        (["prefill", "--frames", "8", "--device", "nosuch"], "'nosuch' is no device"),
    ],
)
def test_usage_errors(arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", *arguments]) == 2
    captured = capsys.readouterr()
    assert captured.out == "" and message in captured.err and captured.err.count("\n") == 1


def test_the_overlapped_run_does_all_the_work(tiny_model: VideoXL2, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is timed on a GPU, on a CPU: every frame goes through the tower, every token through the language model."""
    counts: list[int] = []
    real = VideoXL2.frame_maps
    monkeypatch.setattr(
        VideoXL2, "frame_maps", lambda self, pixels: (counts.append(len(pixels)), real(self, pixels))[1]
    )
    layout, _ = bench_layout(tiny_model.spec, 39, tiny_model.tokenizer)
    side = tiny_model.spec.vision.image_size
    assert overlapped_s(tiny_model, layout, torch.zeros(16, 3, side, side), 39, PrefillSettings()) > 0
    assert counts == [16, 16, 7]
