"""The differentiable pass of training gives the very logits that prefill, pooling, assembly and decoding give."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest
import torch

from videoxl2.config import LanguageSpec, PrefillSettings
from videoxl2.decode import HeaderIds, Piece, assemble_cache
from videoxl2.kv import sparsify
from videoxl2.language import QwenDecoder
from videoxl2.model import VideoXL2
from videoxl2.named_times import names_time
from videoxl2.prefill import prefill
from videoxl2.tokenizer import Tokenizer
from videoxl2.training import stage_language
from videoxl2.training.dialogue_attention import grounded_layers, read_dialogue
from videoxl2.training.dialogues import (
    CachedClip,
    Segment,
    Stretch,
    StretchSettings,
    evidence_groups,
    join_facts,
    questions_about,
    random_stretch,
)
from videoxl2.training.facts import EventFact, Facts, ObjectFact, Watch
from videoxl2.training.initialise import initialise_for_training
from videoxl2.training.label_sets import SET_SIZE
from videoxl2.training.language_samples import DialogueFeed, LanguageSettings, make_dialogue, random_levels
from videoxl2.training.qa import QA, offers_times
from videoxl2.training.recordings import Recording
from videoxl2.training.samples import clip_scene
from videoxl2.training.stage_language import answer_accuracy, dialogue_losses, settle_sight
from videoxl2.training.token_labels import TokenLabels, TokenReading, read_layer
from videoxl2.training.trainer import TrainSettings

QUESTIONS = [
    QA("exists", "Is there a red car?", "yes", (), None, ()),
    QA("when", "When does a person run? Answer in seconds.", "12 to 20 seconds", (), None, ()),
]


TOKENS_PER_GROUP = 36


def tiny_model() -> VideoXL2:
    model = VideoXL2.from_pretrained("tiny")
    spec = dataclasses.replace(model.spec.language, num_layers=2)
    decoder = QwenDecoder(spec)
    initialise_for_training(decoder, 3)
    model.language = decoder.eval()
    return model


def stretch_of(num_groups: int, spec: LanguageSpec) -> Stretch:
    tokens = np.random.default_rng(5).normal(size=(num_groups, TOKENS_PER_GROUP, spec.width)).astype(np.float16)
    times = tuple(4.0 * group for group in range(num_groups))
    return Stretch(tokens, times, Facts("street", 0.0, 4.0 * num_groups, (), ()))


def logits_by_inference(
    model: VideoXL2, stretch: Stretch, dense: set[int] | None, questions: Sequence[QA] = QUESTIONS
) -> torch.Tensor:
    """Answer logits of questions through the code that answers: prefill, sparsify, assemble, extend."""
    visual = torch.from_numpy(stretch.visual_GPD).float()
    headers = [part.header for part in stretch.segments] or [""]
    pieces: list[Piece] = []
    number = 0
    for header, (first, end) in zip(headers, stretch.spans, strict=True):
        if header:
            pieces.append(HeaderIds(tuple(model.tokenizer.encode(header))))
        result = prefill(model, visual[first:end], list(stretch.times_s[first:end]), PrefillSettings(), 6)
        for chunk in result.chunks:
            pieces.append(chunk if dense is None or number in dense else sparsify(chunk, 4))
            number += 1
    found = []
    for item in questions:
        cache = assemble_cache(model, pieces)
        suffix = model.tokenizer.prompt_parts(item.question)[1]
        answer = model.tokenizer.encode(item.answer)
        hidden = model.language.extend(cache, model.language.embed([*suffix, *answer]))
        found.append(model.language.logits(hidden[len(suffix) - 1 :]))
    return torch.cat(found)


@pytest.mark.parametrize("num_groups", [1, 7, 23])
def test_dense_samples_equal_inference(num_groups: int) -> None:
    model = tiny_model()
    stretch = stretch_of(num_groups, model.spec.language)
    settings = LanguageSettings(skip=0.0)
    sample = make_dialogue(model.tokenizer, stretch, QUESTIONS, settings, np.random.default_rng(0))
    with torch.no_grad():
        trained = read_dialogue(model.language, sample).logits_AV
        expected = logits_by_inference(model, stretch, None)
    assert trained.shape == expected.shape
    torch.testing.assert_close(trained, expected, atol=1e-4, rtol=0)


def test_pooled_samples_equal_inference_with_the_same_levels_and_without() -> None:
    model = tiny_model()
    stretch = stretch_of(23, model.spec.language)
    settings = LanguageSettings(skip=0.0)
    seen = set()
    for seed in range(12):
        rng = np.random.default_rng(seed)
        levels = random_levels(4, rng)
        sample = make_dialogue(model.tokenizer, stretch, QUESTIONS, settings, rng, [levels, None])
        pool = sample.askings[0].pool
        assert pool is not None and sample.askings[1].pool is None
        starts = [sample.layout.spans[6 * chunk].time_end for chunk in range(4)]
        dense = {
            chunk
            for chunk, start in enumerate(starts)
            if bool((pool.weight_CJ[pool.token_CJ[:, 0] == start, 0] == 1.0).any())
        }
        assert dense == {chunk for chunk, is_dense in enumerate(levels) if is_dense}
        seen.add(frozenset(dense))
        with torch.no_grad():
            trained = read_dialogue(model.language, sample).logits_AV
            expected = torch.cat(
                [
                    logits_by_inference(model, stretch, dense, QUESTIONS[:1]),
                    logits_by_inference(model, stretch, None, QUESTIONS[1:]),
                ]
            )
        torch.testing.assert_close(trained, expected, atol=1e-4, rtol=0)
    assert len(seen) > 3


@pytest.mark.parametrize(
    "headers",
    [["", "", ""], ["\nCamera gate-1:\n", "\nCamera shop, starts 2026-03-01 08:00:00 UTC:\n", "\nVideo a:\n"]],
)
def test_segments_and_videos_equal_inference(headers: list[str]) -> None:
    model = tiny_model()
    spans = [(0, 7), (7, 11), (11, 23)]
    segments = tuple(Segment(*span, header) for span, header in zip(spans, headers, strict=True))
    stretch = dataclasses.replace(stretch_of(23, model.spec.language), segments=segments)
    whole = dataclasses.replace(stretch, segments=())
    # Chunks begin with the segments: two, one and two of them.
    levels = [False, True, False, False, True]
    settings = LanguageSettings(skip=0.0)
    sample = make_dialogue(model.tokenizer, stretch, QUESTIONS, settings, np.random.default_rng(0), [levels, None])
    with torch.no_grad():
        trained = read_dialogue(model.language, sample).logits_AV
        expected = [
            logits_by_inference(model, stretch, {1, 4}, QUESTIONS[:1]),
            logits_by_inference(model, stretch, None, QUESTIONS[1:]),
        ]
        other = logits_by_inference(model, whole, None, QUESTIONS[1:])
    torch.testing.assert_close(trained, torch.cat(expected), atol=1e-4, rtol=0)
    assert (other - expected[1]).abs().max() > 1e-2


def test_gaps_are_the_same_before_and_behind_a_header() -> None:
    model = tiny_model()
    segments = (Segment(0, 9, "\nCamera a:\n"), Segment(9, 23, "\nCamera b:\n"))
    stretch = dataclasses.replace(stretch_of(23, model.spec.language), segments=segments)
    for seed in range(8):
        rng = np.random.default_rng(seed)
        sample = make_dialogue(
            model.tokenizer, stretch, QUESTIONS, LanguageSettings(skip=1.0), rng, [[False] * 5, None]
        )
        for asking in sample.askings:
            places = asking.header_place_H.tolist()
            asked = asking.position_T[: len(places)].tolist()
            positions = sorted([*asking.cache_position_C.tolist(), *asked])
            assert len(set(positions)) == len(positions), "no place is taken twice"
            for place in set(places):
                mine = [at for at, where in zip(asked, places, strict=True) if where == place]
                end = int(asking.cache_position_C[place])
                assert mine == list(range(end - len(mine), end)), "a header ends where its video begins"
            assert int(asking.position_T[len(places)]) == int(asking.cache_position_C[-1]) + 1
        start = sample.layout.spans[9].start
        assert int(sample.prefill_position_M[start]) == sample.layout.visual_start


def test_dealt_questions_cost_what_each_costs_alone() -> None:
    model = tiny_model()
    stretch = street_with_a_runner(23, model.spec.language)
    settings = LanguageSettings(skip=0.0, grounding_weight=1.0)
    runs = QA("choice", "Who runs?", "A", (), (13.0, 21.0), ("event-0", "a"))
    person = QA("where", "Where is the person?", "left", (), (8.0, 12.0), ("a",))
    levels = [False, True, False, True]

    def losses(questions: list[QA], askings: list[list[bool] | None]) -> dict[str, float]:
        rng = np.random.default_rng(4)
        sample = make_dialogue(model.tokenizer, stretch, questions, settings, rng, askings)
        assert sample.kinds == tuple(item.kind for item in questions)
        with torch.no_grad():
            return {name: float(loss) for name, loss in dialogue_losses(model.language, sample, settings).items()}

    dense, pooled, both = losses([runs], [None]), losses([person], [levels]), losses([runs, person], [None, levels])
    assert abs(losses([person], [None])["answer"] - pooled["answer"]) > 1e-3
    assert both == pytest.approx({name: (dense[name] + pooled[name]) / 2 for name in dense}, abs=1e-4)


def test_an_answer_is_taught_against_all_but_what_training_must_not_show() -> None:
    """Nobody in training wears brown under red, so "brown" is no wrong answer there."""
    model = tiny_model()
    somebody = ObjectFact("a", "person", {"shirt": "red", "trousers": "grey"}, ((0.0, 20.0),), (), True)
    stretch = dataclasses.replace(stretch_of(6, model.spec.language), facts=Facts("street", 0.0, 24.0, (somebody,), ()))
    question = "What colour are the trousers of the person in a red shirt?"
    items = [QUESTIONS[0], QA("colour", question, "grey", (), (0.0, 20.0), ("a",))]
    settings = LanguageSettings(skip=0.0)
    sample = make_dialogue(model.tokenizer, stretch, items, settings, np.random.default_rng(0))
    silent = {model.tokenizer.encode(colour)[0] for colour in ("brown", "green")}
    places = {place for place, _ in sample.silent_N2.tolist()}
    assert {token for _, token in sample.silent_N2.tolist()} == silent
    assert [int(sample.target_T[place]) for place in places] == [model.tokenizer.encode("grey")[0]]
    with torch.no_grad():
        logits_AV = read_dialogue(model.language, sample).logits_AV.float()
        is_answer = sample.target_T >= 0
        row = int(is_answer[: places.pop() + 1].sum()) - 1
        logits_AV[row, list(silent)] = -torch.inf
        targets, weights = sample.target_T[is_answer], sample.weight_T[is_answer]
        expected = -(logits_AV.log_softmax(-1)[torch.arange(len(targets)), targets] * weights).sum()
        loss = dialogue_losses(model.language, sample, settings)["answer"]
        heard = dataclasses.replace(sample, silent_N2=sample.silent_N2[:0], beside_R2=sample.beside_R2[:0])
        plain = dialogue_losses(model.language, heard, settings)
    torch.testing.assert_close(loss, expected)
    assert float(loss) < float(plain["answer"]) - 1e-6 and float(plain["level"]) == 0


def test_answers_that_training_was_never_shown_are_counted_apart() -> None:
    model = tiny_model()
    somebody = ObjectFact("a", "person", {"shirt": "red", "trousers": "brown"}, ((0.0, 20.0),), (), True)
    facts = Facts("street", 0.0, 24.0, (somebody,), ())
    stretch = dataclasses.replace(stretch_of(6, model.spec.language), facts=facts)
    question = "What colour are the trousers of the person in a red shirt?"
    items = [QUESTIONS[0], QA("colour", question, "brown", (), (0.0, 20.0), ("a",))]
    sample = make_dialogue(model.tokenizer, stretch, items, LanguageSettings(skip=0.0), np.random.default_rng(0))
    assert sample.never_shown == (False, True)
    with torch.no_grad():
        scores = answer_accuracy(model.language, [sample])
    assert scores["never shown"] == scores["colour"] and set(scores) == {"exists", "colour", "never shown", "dense"}


def test_what_training_must_not_show_rises_to_what_is_wrong_and_no_further() -> None:
    """Under red, "brown" was taught to be impossible; with grey in sight it becomes as likely as "blue"."""
    model = tiny_model()
    decoder, tokenizer = model.language.train(), model.tokenizer
    somebody = ObjectFact("a", "person", {"shirt": "red", "trousers": "grey"}, ((0.0, 20.0),), (), True)
    stretch = dataclasses.replace(stretch_of(6, decoder.spec), facts=Facts("street", 0.0, 24.0, (somebody,), ()))
    question = "What colour are the trousers of the person in a red shirt?"
    item = QA("colour", question, "grey", (), (0.0, 20.0), ("a",))
    sample = make_dialogue(tokenizer, stretch, [item], LanguageSettings(skip=0.0), np.random.default_rng(0))
    brown, green, *wrong = (tokenizer.encode(colour)[0] for colour in ("brown", "green", "blue", "black", "white"))
    assert sorted(other for number, other in sample.beside_R2.tolist() if number == 0) == sorted(wrong)

    def first_logits() -> torch.Tensor:
        return read_dialogue(decoder, sample).logits_AV[0].float()

    with torch.no_grad():
        decoder.embed_tokens.weight[brown] -= 0.2 * decoder.embed_tokens.weight[wrong].mean(0)
        before_V = first_logits()
    optimiser = torch.optim.SGD(decoder.parameters(), lr=0.05)
    for _ in range(40):
        optimiser.zero_grad()
        dialogue_losses(decoder, sample, LanguageSettings(skip=0.0))["level"].backward()
        optimiser.step()
    with torch.no_grad():
        after_V = first_logits()
    for token in (brown, green):
        short = float(before_V[wrong].mean() - before_V[token])
        left = float(after_V[wrong].mean() - after_V[token])
        assert left < max(0.05, 0.5 * short), (token, short, left)


def test_questions_are_dealt_in_turn_and_a_lone_one_is_asked_once() -> None:
    model = tiny_model()
    stretch, settings = stretch_of(23, model.spec.language), LanguageSettings(skip=0.0)
    items = [*QUESTIONS, QA("order", "Which is first?", "a car", (), None, ())]
    sample = make_dialogue(model.tokenizer, stretch, items, settings, np.random.default_rng(0), [[False] * 4, None])
    assert sample.kinds == ("exists", "order", "when") and sample.is_pooled == (True, True, False)
    first, second = sample.owner_T.split([len(asking.position_T) for asking in sample.askings])
    assert first.unique().tolist() == [0, 1] and second.unique().tolist() == [2]
    alone = make_dialogue(model.tokenizer, stretch, items[:1], settings, np.random.default_rng(0), [[False] * 4, None])
    assert alone.is_pooled == (True,) and len(alone.askings) == 1


def test_accuracy_tells_dense_and_pooled_apart() -> None:
    model = tiny_model()
    stretch, settings = stretch_of(23, model.spec.language), LanguageSettings(skip=0.0)
    sample = make_dialogue(model.tokenizer, stretch, QUESTIONS, settings, np.random.default_rng(0), [None, [False] * 4])
    with torch.no_grad():
        guesses_A = read_dialogue(model.language, sample).logits_AV.argmax(dim=-1)
    target_T = sample.target_T.masked_scatter(sample.target_T >= 0, guesses_A)
    right = dataclasses.replace(sample, target_T=target_T)
    assert answer_accuracy(model.language, [right]) == {"exists": 1.0, "when": 1.0, "dense": 1.0, "pooled": 1.0}
    last = int(torch.nonzero(target_T >= 0)[-1])
    target_T[last] += 1
    share = pytest.approx(1 - 1 / int((target_T >= 0)[sample.owner_T == 1].sum()))  # of the tokens of the time
    assert answer_accuracy(model.language, [right]) == {"exists": 1.0, "when": share, "dense": 1.0, "pooled": share}


def test_options_that_are_times_are_counted_apart_and_a_time_weighs_three_answers() -> None:
    model = tiny_model()
    stretch, settings = stretch_of(23, model.spec.language), LanguageSettings(skip=0.0)
    spans = ("4 to 9 seconds", "14 to 19 seconds", "24 to 29 seconds", "34 to 39 seconds")
    clocks = ("00:04 to 00:09", "01:14 to 01:19")
    items = [
        QA("choice", "When does a person run?", "A", spans, None, ()),
        QA("choice", "What colour is the car?", "B", ("red", "blue"), None, ()),
        QA("choice", "When does a car park?", "B", clocks, None, ()),
        QA("when", "When does a person run?", "4 to 9 seconds", (), None, ()),
    ]
    assert [offers_times(item) for item in items] == [True, False, True, False]
    sample = make_dialogue(model.tokenizer, stretch, items, settings, np.random.default_rng(0))
    with torch.no_grad():
        scores = answer_accuracy(model.language, [sample])
    assert {"choice", "choice of times", "when", "dense"} == set(scores)
    by_question = [float(sample.weight_T[sample.owner_T == owner].sum()) for owner in range(4)]
    assert by_question == pytest.approx([0.25, 0.25, 0.25, 0.75])


def test_levels_are_few_dense_chunks_and_at_times_none() -> None:
    rng = np.random.default_rng(0)
    for num_chunks in (1, 2, 3, 25):
        drawn = [random_levels(num_chunks, rng) for _ in range(200)]
        assert {len(levels) for levels in drawn} == {num_chunks}
        shares = [sum(levels) / len(levels) for levels in drawn]
        assert 0.05 < shares.count(0.0) / 200 < 0.25
        if num_chunks == 25:
            assert max(shares) <= 0.6 and len(set(shares)) > 8


def test_gradients_reach_every_parameter_of_the_decoder() -> None:
    model = tiny_model()
    for parameter in model.language.parameters():
        parameter.requires_grad_(True)
    sample = make_dialogue(
        model.tokenizer,
        stretch_of(8, model.spec.language),
        QUESTIONS,
        LanguageSettings(),
        np.random.default_rng(1),
        [[True, False]],
    )
    read_dialogue(model.language, sample).logits_AV.square().mean().backward()
    missing = [name for name, p in model.language.named_parameters() if p.grad is None or not bool(p.grad.any())]
    assert missing == []


def still_clip(num_groups: int) -> CachedClip:
    """A clip in which nobody is seen."""
    num_frames = 4 * num_groups
    none = np.zeros((num_frames, 0))
    watch = Watch(np.arange(num_frames, dtype=np.float64), 1.0, none, none, none)
    labels = np.zeros((num_frames, 1, 1), np.uint8)
    recording = Recording(0, "train", 16, (b"",) * num_frames, labels, np.zeros((num_frames, 5, 1), np.uint8), watch)
    scene = dataclasses.replace(clip_scene(0, "train", 16, num_frames + 1.0), actors=(), actions=(), openings=())
    return CachedClip(recording, scene, 0, np.full((num_groups, 1, 2), num_groups, np.float16))


def test_long_clips_are_shown_whole_and_as_often_as_they_are_long() -> None:
    clips = [*[still_clip(10) for _ in range(5)], still_clip(50)]
    rng = np.random.default_rng(0)
    settings = StretchSettings((30,), whole=0.5)
    stretches = [random_stretch(clips, settings, rng) for _ in range(300)]
    assert {len(stretch.times_s) for stretch in stretches} == {30}
    cuts = [cut for stretch in stretches for cut in stretch.cuts]
    long = [cut for cut in cuts if cut.clip == 5]
    assert 0.4 < len(long) / len(cuts) < 0.6, "half of all footage is in it"
    assert 0.15 < sum(len(stretch.cuts) == 1 for stretch in stretches) / 300 < 0.35
    assert max(cut.end - cut.first for cut in cuts if cut.clip != 5) == 10
    parts = [random_stretch(clips, StretchSettings((30,), whole=0.0), rng) for _ in range(50)]
    assert max(cut.end - cut.first for stretch in parts for cut in stretch.cuts) <= 14


def test_joined_facts_keep_objects_of_parts_apart() -> None:
    part = Facts("street", 0.0, 8.0, (), ())
    later = Facts("gate", 32.0, 40.0, (), ())
    assert join_facts([part]) is part
    joined = join_facts([part, later])
    assert (joined.camera_kind, joined.start_s, joined.end_s) == ("street", 0.0, 40.0)


def street_with_a_runner(num_groups: int, spec: LanguageSpec) -> Stretch:
    """Somebody is seen from 8 s to 30 s and runs from 13 s to 21 s: during groups 3, 4 and 5."""
    who = ObjectFact("a", "person", {"shirt": "red"}, ((8.0, 30.0),), (), True)
    run = EventFact("event-0", "run", "a", None, 13.0, 21.0, False)
    facts = Facts("street", 0.0, 4.0 * num_groups, (who,), (run,))
    return dataclasses.replace(stretch_of(num_groups, spec), facts=facts)


@pytest.mark.parametrize(
    ("item", "groups"),
    [
        (QA("choice", "Who runs?", "A", (), (13.0, 21.0), ("event-0", "a")), [3, 4, 5]),
        (QA("exists", "Does somebody run?", "yes", (), (13.0, 21.0), ("event-0",)), [3, 4, 5]),
        (QA("exists", "Is there a person?", "yes", (), (8.0, 30.0), ("a",)), [2, 3, 4, 5, 6, 7]),
        (QA("exists", "Is there a dog?", "no", (), None, ()), []),
        (QA("where", "Where is the person?", "left", (), (8.0, 12.0), ("a",)), [2]),
        (QA("describe", "What happens?", "A person runs.", (), None, ("event-0",)), []),
    ],
)
def test_the_evidence_is_where_the_answer_can_be_seen(item: QA, groups: list[int]) -> None:
    stretch = street_with_a_runner(12, tiny_model().spec.language)
    assert np.flatnonzero(evidence_groups(stretch, item)).tolist() == groups


def noting(compute: Callable[[torch.Tensor], torch.Tensor], seen: list[torch.Tensor]) -> Callable[..., torch.Tensor]:
    """A function that does the same and keeps what it gave."""

    def run(x: torch.Tensor) -> torch.Tensor:
        seen.append(compute(x))
        return seen[-1]

    return run


def test_grounding_is_the_attention_that_falls_on_the_evidence(monkeypatch: pytest.MonkeyPatch) -> None:
    """Against the attention weights written out, in a pass over the assembled cache as inference makes it."""
    model = tiny_model()
    decoder = model.language
    stretch = street_with_a_runner(12, decoder.spec)
    item = QA("choice", "Who runs?", "A", (), (13.0, 21.0), ("event-0", "a"))
    sample = make_dialogue(model.tokenizer, stretch, [item], LanguageSettings(skip=0.0), np.random.default_rng(0))
    with torch.no_grad():
        miss_LHE = read_dialogue(decoder, sample, grounded=True).miss_LHE
        visual = torch.from_numpy(stretch.visual_GPD).float()
        chunks = prefill(model, visual, list(stretch.times_s), PrefillSettings(), 6).chunks
        suffix = model.tokenizer.prompt_parts(item.question)[1]
        shares = []
        for layer in grounded_layers(decoder.spec.num_layers):
            cache, attention = assemble_cache(model, chunks), decoder.layers[layer].self_attn
            seen: list[torch.Tensor] = []
            with monkeypatch.context() as patched:
                patched.setattr(attention, "queries", noting(attention.queries, seen))
                decoder.extend(cache, decoder.embed(suffix))
            q_NTDh = decoder.rotary(cache.length - len(suffix), cache.length).rotate(seen[0])[0]
            heads = decoder.spec.num_heads // decoder.spec.num_kv_heads
            logits_HM = q_NTDh[:heads, -1] @ cache.keys(layer, cache.length)[0].T * decoder.spec.head_dim**-0.5
            first, last = sample.layout.spans[3].start, sample.layout.spans[5].end
            shares.append(logits_HM.softmax(-1)[:, first:last].sum(-1))
    assert miss_LHE is not None and miss_LHE.shape == (2, heads, 1)
    torch.testing.assert_close(miss_LHE[..., 0].neg().exp(), torch.stack(shares), atol=1e-5, rtol=0)


def test_grounding_teaches_the_told_heads_to_look() -> None:
    model = tiny_model()
    decoder = model.language.train()
    settings = LanguageSettings(skip=0.0, grounding_weight=1.0)
    item = QA("choice", "Who runs?", "A", (), (13.0, 21.0), ("event-0", "a"))
    sample = make_dialogue(
        model.tokenizer, street_with_a_runner(12, decoder.spec), [item], settings, np.random.default_rng(0)
    )
    for parameter in decoder.parameters():
        parameter.requires_grad_(True)
    optimiser = torch.optim.AdamW(decoder.parameters(), lr=3e-3)
    found = []
    for _ in range(25):
        losses = dialogue_losses(decoder, sample, settings)
        optimiser.zero_grad()
        losses["grounding"].backward()
        optimiser.step()
        found.append(float(losses["grounding"].detach()))
    assert found[-1] < 0.5 * found[0]


@pytest.mark.parametrize("taught_by", ["sight", "clock", "place"])
def test_the_lower_half_is_taught_what_its_tokens_show_when_and_where(taught_by: str) -> None:
    """The layers up to the one that is read learn from it, those above do not, and what is read gets better."""
    model = tiny_model()
    model.language = decoder = QwenDecoder(dataclasses.replace(model.spec.language, num_layers=4)).train()
    initialise_for_training(decoder, 3)
    settings = LanguageSettings(skip=0.0, sight_weight=2.0)
    rows = [(group, token, (7 * group + token) % SET_SIZE) for group in range(6) for token in (3, 20)]
    stretch = dataclasses.replace(street_with_a_runner(6, decoder.spec), labels=TokenLabels(np.asarray(rows, np.int32)))
    item = QA("exists", "Is there a dog?", "no", (), None, ())
    sample = make_dialogue(model.tokenizer, stretch, [item], settings, np.random.default_rng(0))
    sight = TokenReading(decoder.spec, TOKENS_PER_GROUP)
    parameters = [p.requires_grad_(True) for p in (*decoder.parameters(), *sight.parameters())]
    optimiser = torch.optim.AdamW(parameters, lr=3e-3)
    found = []
    for _ in range(25):
        losses = dialogue_losses(decoder, sample, settings, sight)
        optimiser.zero_grad()
        losses[taught_by].backward()
        taught = {i for i, layer in enumerate(decoder.layers) if any(p.grad is not None for p in layer.parameters())}
        optimiser.step()
        found.append(float(losses[taught_by].detach()))
    assert found[-1] < 0.5 * found[0]
    assert taught == {0, read_layer(decoder.spec)} == {0, 1}
    with torch.no_grad():
        reading = read_dialogue(decoder, sample)
        again = settings.sight_weight * sight(reading.hidden_MD, sample.shown).losses(sample.shown)[taught_by]
        scores = answer_accuracy(decoder, [sample], sight=sight)
    assert float(again) < found[-1]
    seen = {"sees kind+action", "sees kind+colour", "sees shirt+action", "sees time", "sees place"}
    assert set(scores) == {"dense", "exists"} | seen


def test_a_new_head_learns_to_read_before_the_decoder_learns_from_it() -> None:
    model = tiny_model()
    settings = LanguageSettings(skip=0.0, sight_weight=1.0)
    stretch = dataclasses.replace(
        stretch_of(4, model.spec.language), labels=TokenLabels(np.asarray([[0, 3, 5], [2, 30, 77]], np.int32))
    )
    sample = make_dialogue(model.tokenizer, stretch, QUESTIONS, settings, np.random.default_rng(0))
    before = {name: weight.clone() for name, weight in model.language.state_dict().items()}
    sight = TokenReading(model.spec.language, TOKENS_PER_GROUP)
    with torch.no_grad():
        first = dialogue_losses(model.language, sample, settings, sight)
    settle_sight(sight, model.language, lambda step: [sample], steps=4, passes=20)
    with torch.no_grad():
        last = dialogue_losses(model.language, sample, settings, sight)
    assert all(float(last[name]) < 0.5 * float(first[name]) for name in ("sight", "clock", "place"))
    assert all(torch.equal(weight, before[name]) for name, weight in model.language.state_dict().items())


def test_a_head_that_the_stage_before_taught_goes_on_and_only_a_new_one_settles(
    tokenizer: Tokenizer, clips: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recordings = [Recording.load(path).without_pictures() for path in sorted((clips / "train").glob("*.npz"))]
    cached = [CachedClip(item, item.scene(), 1, np.zeros((14, 4, 32), np.float16)) for item in recordings]
    decoder = tiny_model().language
    settled: list[TokenReading] = []
    trained: list[dict[str, torch.nn.Module]] = []
    monkeypatch.setattr(stage_language, "settle_sight", lambda sight, *_: settled.append(sight))
    monkeypatch.setattr(stage_language, "fit", lambda folder, modules, *_, **__: trained.append(modules) or 1)
    taught = TokenReading(decoder.spec, 4)
    for sight, weight in ((None, 1.0), (taught, 1.0), (None, 0.0), (taught, 0.0)):
        settings = LanguageSettings(groups=(5,), samples=1, questions=3, sight_weight=weight)
        train = TrainSettings(steps=1, learning_rate=1e-3)
        split = {"train": cached, "validation": cached}
        stage_language.train_language(tmp_path, decoder, split, tokenizer, train, settings, sight=sight)
    assert [sorted(modules) for modules in trained] == [["language", "sight"]] * 2 + [["language"]] * 2
    assert settled == [trained[0]["sight"]] and trained[1]["sight"] is taught


def test_stretches_tell_what_their_tokens_show_only_where_that_is_taught(tokenizer: Tokenizer, clips: Path) -> None:
    recordings = [Recording.load(path).without_pictures() for path in sorted((clips / "train").glob("*.npz"))]
    cached = [CachedClip(item, item.scene(), 1, np.zeros((14, 4, 32), np.float16)) for item in recordings]
    for weight in (0.0, 0.5):
        settings = LanguageSettings(groups=(5,), samples=2, questions=3, sight_weight=weight)
        shown = [sample.shown for sample in DialogueFeed(cached, tokenizer, settings, 7).make(0)]
        assert [targets is not None for targets in shown] == [weight > 0] * 2
    stretch = random_stretch(cached, StretchSettings((9,), whole=0.0, labelled=True), np.random.default_rng(2))
    parts = [cached[cut.clip].labels.part(cut.first, cut.end).row_R3 for cut in stretch.cuts]
    assert stretch.labels is not None and len(parts) > 1
    assert np.array_equal(stretch.labels.row_R3[:, 1:], np.concatenate(parts)[:, 1:])


@pytest.mark.parametrize(
    ("question", "named"),
    [
        ("When?\nA. 13 to 21 seconds\nB. 0 to 4 seconds", [("13", 3), ("21", 5), ("0", 0), ("4", 1)]),
        ("When?\nA. 00:13 to 00:21\nB. 00:44 to 59:59", [("00:13", 3), ("00:21", 5), ("00:44", 11)]),
        ("How many people are there at 17 seconds?", [("17", 4)]),
        ("Is there a dog in 3 places of camera 5 at 480 seconds?", []),
    ],
)
def test_where_a_question_names_a_time_its_group_is_looked_at(question: str, named: list[tuple[str, int]]) -> None:
    model = tiny_model()
    stretch = street_with_a_runner(12, model.spec.language)
    item = QA("count", question, "2", (), None, ())
    sample = make_dialogue(model.tokenizer, stretch, [item], LanguageSettings(skip=0.0), np.random.default_rng(0))
    (asking,) = sample.askings
    found = []
    for token, evidence_C in zip(asking.ask_E.tolist(), asking.evidence_EC, strict=True):
        said = model.tokenizer.decode(sample.token_T[: token + 1].tolist())
        (group,) = [
            number
            for number, span in enumerate(sample.layout.spans)
            if torch.nonzero(evidence_C)[:, 0].tolist() == list(range(span.start, span.end))
        ]
        found.append((said, group))
    assert [group for _, group in found] == [group for _, group in named]
    assert all(said.endswith(time) for (said, _), (time, _) in zip(found, named, strict=True))
    assert not named or float(asking.look_E.sum()) == pytest.approx(1.0)


def test_nobody_is_told_where_to_look_for_what_is_not_there() -> None:
    model = tiny_model()
    item = QA("exists", "Is there a dog?", "no", (), None, ())
    settings = LanguageSettings(grounding_weight=1.0)
    sample = make_dialogue(
        model.tokenizer, street_with_a_runner(12, model.spec.language), [item], settings, np.random.default_rng(0)
    )
    with torch.no_grad():
        losses = dialogue_losses(model.language, sample, settings)
    assert float(losses["grounding"]) == 0.0 and float(losses["answer"]) > 0


def test_a_time_is_read_off_both_ends_of_the_evidence() -> None:
    model = tiny_model()
    stretch = street_with_a_runner(12, model.spec.language)
    item = QA("when", "When does a person run? Answer in seconds.", "13 to 21 seconds", (), (13.0, 21.0), ("event-0",))
    rng = np.random.default_rng(0)
    sample = make_dialogue(model.tokenizer, stretch, [item], LanguageSettings(skip=0.0), rng)
    answer = [*model.tokenizer.encode(item.answer), model.tokenizer.token_id("<|im_end|>")]
    (asking,) = sample.askings
    told = sample.target_T[asking.ask_E].tolist()
    assert told == answer[:-1]
    middle = answer.index(model.tokenizer.encode(" to")[0])
    spans = sample.layout.spans
    for place, evidence_C in enumerate(asking.evidence_EC):
        span = spans[3 if place <= middle else 5]
        assert torch.nonzero(evidence_C)[:, 0].tolist() == list(range(span.start, span.end))
    assert float(asking.look_E.sum()) == pytest.approx(1.0)


def test_replicas_get_samples_of_like_length(
    monkeypatch: pytest.MonkeyPatch, tokenizer: Tokenizer, clips: Path
) -> None:
    """Other footage, the same number of frame groups: otherwise one process waits while the other computes."""
    recordings = [Recording.load(path).without_pictures() for path in sorted((clips / "train").glob("*.npz"))]
    cached = [CachedClip(item, item.scene(), 0, np.zeros((14, 4, 32), np.float16)) for item in recordings]
    settings = LanguageSettings(groups=(2, 5, 9, 13), samples=4, questions=3)
    feed = DialogueFeed(cached, tokenizer, settings, 7)
    monkeypatch.setattr("videoxl2.training.replicas.count", lambda: 2)
    steps = [[feed.make(2 * step + rank) for rank in (0, 1)] for step in range(4)]
    lengths = [[[sample.layout.num_groups for sample in batch] for batch in step] for step in steps]
    assert all(mine == others for mine, others in lengths)
    assert len({tuple(step[0]) for step in lengths}) > 1
    first, second = (step[0].token_T.tolist() for step in steps[0])
    assert first != second


def actor_clips(clips: Path) -> list[CachedClip]:
    """Clips in which something happens, with empty visual tokens."""
    recordings = [Recording.load(path).without_pictures() for path in sorted((clips / "train").glob("*.npz"))]
    return [CachedClip(item, item.scene(), 1, np.zeros((14, 4, 32), np.float16)) for item in recordings]


def test_some_stretches_are_cut_into_segments_and_some_are_of_several_videos() -> None:
    clips = [still_clip(30) for _ in range(3)]
    rng = np.random.default_rng(4)
    settings = StretchSettings((8, 15, 75), segmented=0.3, videos=0.3, late_start=0.5)
    drawn = [random_stretch(clips, settings, rng) for _ in range(300)]
    cut = [stretch for stretch in drawn if stretch.segments and not stretch.is_of_videos]
    videos = [stretch for stretch in drawn if stretch.is_of_videos]
    assert all(0.2 < len(some) / 300 < 0.4 for some in (cut, videos))
    for stretch in cut + videos:
        ends = [0, *(part.end for part in stretch.segments)]
        assert [part.first for part in stretch.segments] == ends[:-1] and ends[-1] == len(stretch.times_s)
        assert len(stretch.segments) >= 2
    for stretch in cut:
        assert min(part.end - part.first for part in stretch.segments) >= 4
        assert not any(part.header for part in stretch.segments)
        assert stretch.moments_s is stretch.times_s
    assert {len(stretch.segments) for stretch in cut} >= {2, 3, 4, 5}
    for stretch in videos:
        assert list(stretch.moments_s) == sorted(set(stretch.moments_s)), "facts know one time"
        names = {part.header.split(",")[0].split(":")[0] for part in stretch.segments}
        assert len(names) == len(stretch.segments), "no two cameras have one name"
        for part in stretch.segments:
            steps = np.diff(stretch.times_s[part.first : part.end])
            assert np.all(steps == 4.0), "a video's time runs from its own start"
    starts = [stretch.times_s[part.first] for stretch in videos for part in stretch.segments]
    assert 0.3 < starts.count(0.0) / len(starts) < 0.7


def test_questions_about_several_videos_name_a_camera_and_no_time(clips: Path) -> None:
    cached = actor_clips(clips)
    rng = np.random.default_rng(8)
    whole = named = 0
    for seed in range(12):
        stretch = random_stretch(cached, StretchSettings((28,), whole=1.0, videos=1.0), rng)
        assert stretch.is_of_videos
        for item in questions_about(stretch, seed, 6, 30):
            assert item.kind not in ("when", "order", "describe", "events")
            assert not names_time(item.question) and not offers_times(item)
            first = item.question.split("\n")[0]
            assert first[-1] in "?.:" or first.endswith(("right?", "far?"))
            said = [part for part in stretch.segments if any(f" {place}" in first for place in part.places)]
            whole, named = whole + (not said), named + bool(said)
            if said:
                (part,) = said
                groups = np.flatnonzero(evidence_groups(stretch, item))
                assert all(part.first <= group < part.end for group in groups.tolist())
    assert whole > 20 and named > 20
