"""Steps of fixed shape against steps that grow with the cache: the same tokens and logits, however they are started."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest
import torch
from torch import Tensor

from videoxl2 import decode_step
from videoxl2.config import GenerationSettings
from videoxl2.decode_step import CudaGraphs, FixedStep, choose_stepping, fixed_step
from videoxl2.errors import ContextOverflow, ModelError
from videoxl2.kv import KVCache
from videoxl2.language import Stepping
from videoxl2.model import VideoXL2
from videoxl2.prefill import PrefillResult
from videoxl2.questions import generate_batch
from videoxl2.token_choice import TokenChoice

SUFFIXES = [[5, 6, 7], [9], [11, 12, 13, 14, 15]]


class Repeats(CudaGraphs):
    """A stand-in for a GPU: what a graph does is repeated, and it is handed no new arguments."""

    def __init__(self) -> None:
        self.num_captures = 0

    def capture(self, work: Callable[[], Tensor]) -> Callable[[], Tensor]:
        self.num_captures += 1
        work()  # the run that lets libraries set themselves up
        work()  # the recording
        return work


@pytest.fixture(params=["fixed", "graph", "traced"])
def stepping(request: pytest.FixtureRequest, tiny_model: VideoXL2, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """Steps of fixed shape as they are, repeated by a stand-in for graphs, and as torch's compiler traces them."""
    if request.param == "graph":
        graphs = Repeats()
        monkeypatch.setattr(decode_step, "CudaGraphs", lambda: graphs)
    if request.param == "traced":
        traced = torch.compile(fixed_step, dynamic=True, fullgraph=True, backend="eager")
        monkeypatch.setattr(decode_step, "_compiled_step", lambda: traced)
    monkeypatch.setattr(
        tiny_model.language, "stepping", Stepping.COMPILE if request.param == "traced" else Stepping(request.param)
    )
    yield request.param
    if request.param == "graph":
        assert graphs.num_captures > 0


def answers(
    model: VideoXL2, cache: KVCache, suffixes: list[list[int]], count: int = 12, eos: tuple[int, ...] = ()
) -> list[list[tuple[int, Tensor]]]:
    found: list[list[tuple[int, Tensor]]] = [[] for _ in suffixes]
    before = cache.length
    for question, step in generate_batch(model, cache, suffixes, count, eos, keep_logits=True):
        assert step.logits_V is not None
        found[question].append((step.token_id, step.logits_V))
    assert cache.length == before
    return found


@pytest.mark.parametrize("num_questions", [1, 3])
def test_tokens_and_logits_are_the_same(
    tiny_model: VideoXL2, tiny_prefill: PrefillResult, stepping: str, num_questions: int
) -> None:
    """Twice over one cache, which keeps what the first answers wrote behind its end."""
    cache = tiny_model.assemble(tiny_prefill.chunks, max_tokens=5000)
    suffixes = SUFFIXES[:num_questions]
    for turn in range(2):
        found = answers(tiny_model, cache, suffixes)
        tiny_model.language.stepping = Stepping.EAGER
        expected = answers(tiny_model, cache, suffixes)
        tiny_model.language.stepping = {"traced": Stepping.COMPILE}.get(stepping) or Stepping(stepping)
        for ours, theirs in zip(found, expected, strict=True):
            assert [token for token, _ in ours] == [token for token, _ in theirs], f"turn {turn}"
            for (_, logits), (_, wanted) in zip(ours, theirs, strict=True):
                torch.testing.assert_close(logits, wanted, atol=1e-4, rtol=0)


def test_questions_that_end_leave_the_others_alone(
    tiny_model: VideoXL2, tiny_prefill: PrefillResult, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache = tiny_model.assemble(tiny_prefill.chunks)
    whole = answers(tiny_model, cache, SUFFIXES)
    end = (whole[0][2][0],)
    expected = answers(tiny_model, cache, SUFFIXES, eos=end)
    monkeypatch.setattr(tiny_model.language, "stepping", Stepping.FIXED)
    found = answers(tiny_model, cache, SUFFIXES, eos=end)
    assert [[token for token, _ in answer] for answer in found] == [
        [token for token, _ in answer] for answer in expected
    ]


def test_sampling_draws_the_same_tokens(
    tiny_model: VideoXL2, tiny_prefill: PrefillResult, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache = tiny_model.assemble(tiny_prefill.chunks)
    settings = GenerationSettings(temperature=0.8, top_p=0.9, seed=3)

    def drawn() -> list[int]:
        steps = generate_batch(tiny_model, cache, SUFFIXES[:1], 10, choices=[TokenChoice(settings)])
        return [step.token_id for _, step in steps]

    expected = drawn()
    monkeypatch.setattr(tiny_model.language, "stepping", Stepping.FIXED)
    assert drawn() == expected


def test_the_context_ends_at_the_same_token(
    tiny_model: VideoXL2, tiny_prefill: PrefillResult, monkeypatch: pytest.MonkeyPatch
) -> None:
    length = tiny_model.assemble(tiny_prefill.chunks).length
    counts: list[int] = []
    for stepping in (Stepping.EAGER, Stepping.FIXED):
        monkeypatch.setattr(tiny_model.language, "stepping", stepping)
        cache = tiny_model.assemble(tiny_prefill.chunks, max_tokens=length + 8)
        counts.append(0)
        with pytest.raises(ContextOverflow):
            for _ in generate_batch(tiny_model, cache, SUFFIXES[:1], 100):
                counts[-1] += 1
        assert cache.length == length
    assert counts[0] == counts[1] == 8 - 3 + 1


def test_room_is_cleared_first(tiny_model: VideoXL2) -> None:
    """Memory that was never written may hold anything, and what is masked must still be a number."""
    cache = KVCache(tiny_model.language.spec, 40)
    cache.slot(0, 40).fill_(float("nan"))
    cache.slot(0, 10).fill_(0.1)
    cache.advance(10)
    step = FixedStep(tiny_model.language, cache, 9, [0], [1], 5, Stepping.FIXED)
    assert step([3]).isfinite().all()


def test_a_step_can_be_repeated(tiny_model: VideoXL2) -> None:
    """A graph's warm-up and recording run it before it counts."""
    cache = KVCache(tiny_model.language.spec, 40)
    cache.slot(0, 40).fill_(0.1)
    cache.advance(10)
    step = FixedStep(tiny_model.language, cache, 9, [0], [1], 5, Stepping.FIXED)
    first = step([3])
    assert torch.equal(step._work(), first) and torch.equal(step._work(), first)


def test_names() -> None:
    assert choose_stepping("eager", torch.device("cpu")) is Stepping.EAGER
    assert choose_stepping("graph", torch.device("cuda")) is Stepping.GRAPH
    with pytest.raises(ModelError, match="CUDA"):
        choose_stepping("graph", torch.device("cpu"))
    with pytest.raises(ValueError, match="magic"):
        choose_stepping("magic", torch.device("cpu"))
