"""The researcher's surface: frames to KV to an answer, in every mode."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from videoxl2.chat import VideoFrames
from videoxl2.config import GenerationSettings, LevelSettings, PrefillSettings
from videoxl2.decode import generate
from videoxl2.kv import rechunk, sparsify
from videoxl2.model import VideoXL2
from videoxl2.prefill import PrefillResult
from videoxl2.preprocess import frames_to_pixels
from videoxl2.relevance import AttentionRelevance, EmbeddingRelevance
from videoxl2.selection import PublishedSelection

QUESTION = "What happens at the gate?"
TIMES = [1.5 * frame for frame in range(30)]
LEVELS = LevelSettings(chunk_groups=2, compression=4, max_dense_chunks=1, dense_first_last=True)
SHORT = GenerationSettings(max_new_tokens=10)
WINDOW = PrefillSettings(block_groups=1, previous_blocks=1)


@pytest.fixture(scope="module")
def frames() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (30, 90, 160, 3), dtype=np.uint8)


@pytest.fixture(scope="module")
def indexed(tiny_model: VideoXL2, frames: np.ndarray) -> PrefillResult:
    return tiny_model.index(frames, TIMES, WINDOW, chunk_groups=2)


def ask(model: VideoXL2, pieces: list[Any]) -> str:
    return model.generate_text(model.assemble(pieces), QUESTION, SHORT)


def test_index_is_encode_and_prefill(tiny_model: VideoXL2, frames: np.ndarray, indexed: PrefillResult) -> None:
    visual = tiny_model.encode_frames(frames_to_pixels(frames, tiny_model.spec.vision.image_size))
    expected = tiny_model.prefill(visual, TIMES[::4], WINDOW, 2)
    assert indexed.times == tuple(TIMES[::4]) and indexed.settings == WINDOW
    for ours, theirs in zip(indexed.chunks, expected.chunks, strict=True):
        torch.testing.assert_close(ours.kv_LSKMDh, theirs.kv_LSKMDh, atol=1e-4, rtol=0)


def test_frames_may_be_tensors_and_batches_change_nothing(
    tiny_model: VideoXL2, frames: np.ndarray, indexed: PrefillResult, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("videoxl2.chat._BATCH_GROUPS", 1)
    again = tiny_model.index(torch.from_numpy(frames), TIMES, WINDOW, chunk_groups=2)
    for ours, theirs in zip(again.chunks, indexed.chunks, strict=True):
        torch.testing.assert_close(ours.kv_LSKMDh, theirs.kv_LSKMDh, atol=1e-4, rtol=0)


def test_modes(tiny_model: VideoXL2, frames: np.ndarray, indexed: PrefillResult) -> None:
    video = VideoFrames(frames, TIMES)
    plain = tiny_model.index(frames, TIMES, PrefillSettings(mode="plain"))
    assert tiny_model.chat(video, QUESTION, "plain", generation=SHORT) == ask(tiny_model, plain.chunks)
    expected = ask(tiny_model, indexed.chunks)
    assert tiny_model.chat(video, QUESTION, settings=WINDOW, generation=SHORT) == expected
    assert tiny_model.chat(indexed, QUESTION, "chunked", generation=SHORT) == expected


def test_bilevel_selections(tiny_model: VideoXL2, indexed: PrefillResult) -> None:
    def mixed(dense: set[int], size: int, compression: int) -> str:
        chunks = rechunk(indexed.chunks, size)
        return ask(tiny_model, [c if i in dense else sparsify(c, compression) for i, c in enumerate(chunks)])

    def bilevel(**options: Any) -> str:
        return tiny_model.chat(indexed, QUESTION, "bilevel", generation=SHORT, **options)

    published = PublishedSelection("needle", (3,), chunk_groups=3, compression=2)
    assert published.dense_chunks(8) == (0, 2), "unit 3 begins in the last of three chunks"
    assert bilevel(selection=published) == mixed({0, 2}, 3, 2)
    assert bilevel(selection=[1], levels=LEVELS) == mixed({1}, 2, 4)
    given = EmbeddingRelevance((0.0, 0.1, 0.9, 0.2))
    assert bilevel(selection=given, levels=LEVELS) == mixed({0, 2, 3}, 2, 4)
    attended = AttentionRelevance(tiny_model)
    assert bilevel(levels=LEVELS) == bilevel(selection=attended, levels=LEVELS)


def test_what_has_no_effect_is_refused(tiny_model: VideoXL2, frames: np.ndarray, indexed: PrefillResult) -> None:
    with pytest.raises(ValueError, match="selection has no effect"):
        tiny_model.chat(indexed, QUESTION, "chunked", selection=[0])
    with pytest.raises(ValueError, match="already prefilled"):
        tiny_model.chat(indexed, QUESTION, settings=WINDOW)
    with pytest.raises(ValueError, match="'chunked', which cannot answer 'plain'"):
        tiny_model.chat(indexed, QUESTION, "plain")
    with pytest.raises(ValueError, match=r"not all in 0\.\.3"):
        tiny_model.chat(indexed, QUESTION, "bilevel", selection=[4], levels=LEVELS)
    with pytest.raises(ValueError, match="29 times for 30"):
        tiny_model.index(frames, TIMES[1:])
    with pytest.raises(ValueError, match="at least one frame"):
        VideoFrames(frames[:0], [])


def test_odd_videos_and_modes(tiny_model: VideoXL2, frames: np.ndarray, indexed: PrefillResult) -> None:
    with pytest.raises(ValueError, match="mode 'fancy' is none of plain, chunked, bilevel"):
        tiny_model.chat(indexed, QUESTION, "fancy")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="finite"):
        tiny_model.index(frames, [float("nan"), *TIMES[1:]])
    from_array = tiny_model.chat(indexed, QUESTION, "bilevel", selection=np.array([1]), levels=LEVELS, generation=SHORT)  # type: ignore[arg-type]
    assert from_array == tiny_model.chat(indexed, QUESTION, "bilevel", selection=[1], levels=LEVELS, generation=SHORT)


@pytest.mark.parametrize("mode", ["plain", "chunked", "bilevel"])
@pytest.mark.parametrize("num_frames", [1, 3])
def test_videos_of_less_than_a_group_and_empty_questions(
    tiny_model: VideoXL2, frames: np.ndarray, mode: Any, num_frames: int
) -> None:
    video = VideoFrames(frames[:num_frames], TIMES[:num_frames])
    answer = tiny_model.chat(video, "", mode, generation=GenerationSettings(max_new_tokens=2))
    assert isinstance(answer, str)


def test_rechunk_keeps_what_fits_and_joins_the_rest(indexed: PrefillResult) -> None:
    assert all(ours is theirs for ours, theirs in zip(rechunk(indexed.chunks, 2), indexed.chunks, strict=True))
    whole = torch.cat([chunk.kv_LSKMDh for chunk in indexed.chunks], dim=3)
    for size in (1, 3, 8, 20):
        chunks = rechunk(indexed.chunks, size)
        assert [chunk.num_groups for chunk in chunks] == [min(size, 8 - first) for first in range(0, 8, size)]
        assert torch.equal(torch.cat([chunk.kv_LSKMDh for chunk in chunks], dim=3), whole)
    assert rechunk([], 3) == []


def test_generate_takes_any_choice(tiny_model: VideoXL2, indexed: PrefillResult) -> None:
    cache = tiny_model.assemble(indexed.chunks[:1])
    steps = generate(tiny_model, cache, [5], 3, choose=lambda logits: int(logits.argmin()), keep_logits=True)
    assert all(step.logits_V is not None and step.token_id == int(step.logits_V.argmin()) for step in steps)


def test_the_documented_example_runs(frames: np.ndarray, capsys: pytest.CaptureFixture[str]) -> None:
    text = (Path(__file__).parents[3] / "docs" / "model.md").read_text(encoding="utf-8")
    example = text.split("```python\n")[1].split("```")[0]
    exec(compile(example, "docs/model.md", "exec"), {"frames": frames[:9], "times_s": TIMES[:9]})
    starts = {line[:2] for line in capsys.readouterr().out.splitlines()}
    assert {"0 ", "1 "} <= starts, "pieces of both answers"
