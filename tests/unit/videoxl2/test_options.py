"""Which lines of a question are its options, and what answers them when every order was asked."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from videoxl2.config import GenerationSettings
from videoxl2.decode import generate
from videoxl2.model import VideoXL2
from videoxl2.option_orders import best_option, generate_in_orders, likeliest_answer, settled_letter
from videoxl2.options import OptionQuestion
from videoxl2.prefill import PrefillResult

QUESTION = "Which of these happens?\nA. a person falls\nB. a dog runs\nC. a red car stops\nD. somebody drops a bag"
OTHERS = [
    "What does the person in a red shirt do?\nA. walks\nB. falls down\nC. runs\nD. drops a bag",
    "What colour is the car?\nA. red\nB. blue\nC. white\nD. black",
    "When does a person run?\nA. 4 to 9 seconds\nB. 31 to 36 seconds\nC. 18 to 23 seconds\nD. 12 to 17 seconds",
    "Who stops?\nA. a person in a green shirt\nB. a person in a black shirt\nC. a person in a blue shirt\nD. a dog",
]
OPEN = "What happens at the gate?"
SEEDED = settings(max_examples=60, deadline=None, derandomize=True)


def options_of(question: str) -> list[str] | None:
    asked = OptionQuestion.read(question)
    return None if asked is None else list(asked.options)


@pytest.mark.parametrize("mark", ["{}. ", "({}) ", "{}) ", "{}: ", "  {}.  "])
@pytest.mark.parametrize("letters", ["ABC", "abc"])
def test_options_are_lines_with_letters_in_order(mark: str, letters: str) -> None:
    lines = [mark.format(letter) + text for letter, text in zip(letters, ("red", "dark blue", "green"), strict=True)]
    text = "\n".join(["What colour is it?", *lines, "Answer with the letter."])
    asked = OptionQuestion.read(text)
    assert asked is not None
    assert asked.options == ("red", "dark blue", "green")
    assert asked.letters == tuple(letters)
    moved = asked.shifted(1)
    assert options_of(moved) == ["dark blue", "green", "red"]
    assert moved.splitlines()[0] == "What colour is it?"
    assert moved.splitlines()[-1] == "Answer with the letter."
    assert moved.splitlines()[1].startswith(mark.format(letters[0]).strip())
    assert asked.shifted(0) == asked.shifted(3) == text


@pytest.mark.parametrize(
    "question",
    [
        OPEN,
        "",
        "What?\nA. one",
        "What?\nB. one\nC. two",
        "What?\nA. one\nC. two",
        "What?\nA. one\n\nB. two",
        "What?\nA. one\nB. two\nA. three\nB. four",
        "What?\nA. one\nB. two\nC. all of the above",
        "What?\nA. one\nB. two\nC. both A and B",
        "What?\nA. one\nB. none of the following",
        "\n".join(f"{letter}. {letter}" for letter in "ABCDEFGHI"),
    ],
)
def test_what_has_no_options_or_options_with_a_place_of_their_own_is_asked_once(question: str) -> None:
    assert OptionQuestion.read(question) is None


@SEEDED
@given(
    words=st.lists(st.floats(-4, 4, width=16), min_size=2, max_size=8),
    letters=st.lists(st.floats(-30, 30, width=16), min_size=8, max_size=8),
)
def test_no_favourite_letter_changes_the_choice(words: list[float], letters: list[float]) -> None:
    """Logits are what an option deserves and what its letter is liked: the former decides, however large the latter."""
    count = len(words)
    deserved, liked = torch.tensor(words, dtype=torch.float64), torch.tensor(letters[:count], dtype=torch.float64)
    rows = torch.stack([torch.stack([deserved[(place + r) % count] for place in range(count)]) for r in range(count)])
    found = best_option((rows + liked).float(), range(count))
    assert float(deserved[found]) == pytest.approx(float(deserved.max()), abs=1e-3)


def best_by_hand(model: VideoXL2, prefill: PrefillResult, question: str) -> str:
    """The text of the option that asking each order alone, over a cache of its own, makes the likeliest."""
    asked = OptionQuestion.read(question)
    assert asked is not None
    if asked.asked_openly is not None:
        return max(asked.options, key=lambda option: said_by_hand(model, prefill, str(asked.asked_openly), option))
    letters = [model.tokenizer.encode(letter)[0] for letter in asked.letters]
    scores = dict.fromkeys(asked.options, 0.0)
    for shift in range(len(asked.options)):
        moved = OptionQuestion.read(asked.shifted(shift))
        assert moved is not None
        suffix = model.tokenizer.prompt_parts(asked.shifted(shift))[1]
        (step,) = generate(model, model.assemble(prefill.chunks), suffix, 1, keep_logits=True)
        assert step.logits_V is not None
        for option, score in zip(moved.options, step.logits_V[letters].log_softmax(dim=0).tolist(), strict=True):
            scores[option] += score
    return max(scores, key=lambda option: scores[option])


def said_by_hand(model: VideoXL2, prefill: PrefillResult, question: str, option: str) -> float:
    """The log probability of an answer, its tokens given one after another after the question."""
    suffix, total = model.tokenizer.prompt_parts(question)[1], 0.0
    for number, token in enumerate(ids := model.tokenizer.encode(option)):
        (step,) = generate(model, model.assemble(prefill.chunks), [*suffix, *ids[:number]], 1, keep_logits=True)
        assert step.logits_V is not None
        total += float(step.logits_V.log_softmax(dim=0)[token])
    return total


@pytest.mark.parametrize(
    ("options", "hint"),
    [
        (("4 to 9 seconds", "141 to 147 seconds"), "Answer in seconds."),
        (("9 seconds", "141 to 147 seconds"), "Answer in seconds."),
        (("00:04 to 00:09", "02:21 to 02:27", "02:40"), "Answer with minutes and seconds."),
        (("4 to 9 seconds", "02:21 to 02:27"), None),
        (("4 to 9 seconds", "never"), None),
        (("4", "9"), None),
        (("for 4 to 9 seconds", "for 8 to 12 seconds"), None),
    ],
)
def test_options_that_are_times_are_asked_for_openly(options: tuple[str, ...], hint: str | None) -> None:
    lines = [f"{letter}. {option}" for letter, option in zip("ABC", options, strict=False)]
    asked = OptionQuestion.read("\n".join(["At the gate,", "when does it run?", *lines, "Answer with the letter."]))
    assert asked is not None
    assert asked.asked_openly == (None if hint is None else f"At the gate,\nwhen does it run? {hint}")
    bare = OptionQuestion.read("\n".join(lines))
    assert bare is not None and bare.asked_openly is None


def test_the_likeliest_answer_is_found_over_a_cache_that_stays_as_it_was(
    tiny_model: VideoXL2, tiny_prefill: PrefillResult
) -> None:
    answers = ["0 to 3 seconds", "00:01 to 00:05", "a person", "12 to 17 seconds", "no"]
    cache = tiny_model.assemble(tiny_prefill.chunks)
    before = cache.length
    for question in ("When does a person run? Answer in seconds.", "Is there a dog?"):
        scores = [said_by_hand(tiny_model, tiny_prefill, question, one) for one in answers]
        found = likeliest_answer(tiny_model, cache, question, answers)
        assert scores[found] == pytest.approx(max(scores), abs=1e-3)
        assert cache.length == before


def answer(model: VideoXL2, prefill: PrefillResult, question: str, *, over: str = "assembly") -> str:
    pieces = list(prefill.chunks)
    context = model.assemble(pieces) if over == "cache" else model.begin_assembly(pieces)
    steps = generate_in_orders(model, context, question, 8, model.tokenizer.eos_ids)
    return model.tokenizer.decode([step.token_id for step in steps])


def test_the_option_is_the_same_in_whatever_order_it_is_asked(
    tiny_model: VideoXL2, tiny_prefill: PrefillResult
) -> None:
    changed = 0
    for question in (QUESTION, *OTHERS):
        asked = OptionQuestion.read(question)
        assert asked is not None
        expected, once = best_by_hand(tiny_model, tiny_prefill, question), set()
        for shift in range(len(asked.options)):
            moved = OptionQuestion.read(asked.shifted(shift))
            assert moved is not None
            letter = answer(tiny_model, tiny_prefill, asked.shifted(shift))
            assert moved.options[moved.letters.index(letter)] == expected
            assert letter == answer(tiny_model, tiny_prefill, asked.shifted(shift), over="cache")
            said = tiny_model.generate_text(tiny_model.assemble(tiny_prefill.chunks), asked.shifted(shift))
            once.add(moved.options[moved.letters.index(said)])
        changed += len(once) > 1
    assert changed, "asked once, the order decides now and then: otherwise nothing is shown here"


def test_a_batch_answers_as_one_question_does_and_the_cache_is_as_before(
    tiny_model: VideoXL2, tiny_prefill: PrefillResult
) -> None:
    asked = OptionQuestion.read(QUESTION)
    assert asked is not None
    questions = [OPEN, *(asked.shifted(shift) for shift in range(4))]
    cache = tiny_model.assemble(tiny_prefill.chunks)
    before = cache.length
    settings = GenerationSettings(max_new_tokens=8, option_orders=True)
    found = tiny_model.generate_texts(cache, questions, settings)
    assert cache.length == before
    assert found == [answer(tiny_model, tiny_prefill, question) for question in questions]
    plain = tiny_model.generate_text(cache, OPEN, GenerationSettings(max_new_tokens=8))
    assert found[0] == plain, "a question without options is answered as ever"


def test_what_is_not_answered_with_a_letter_is_left_as_it_is(
    tiny_model: VideoXL2, tiny_prefill: PrefillResult, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The letters' tokens are taken away: then no answer of the model is one of them."""
    cache = tiny_model.assemble(tiny_prefill.chunks)
    plain = tiny_model.generate_text(cache, QUESTION, GenerationSettings(max_new_tokens=8))
    letters = {letter: tiny_model.tokenizer.encode(letter) for letter in "ABCD"}
    others = {letter: [ids[0] + 26] for letter, ids in letters.items()}
    encode = tiny_model.tokenizer.encode
    monkeypatch.setattr(tiny_model.tokenizer, "encode", lambda text: others.get(text) or encode(text))
    assert settled_letter(tiny_model, cache, QUESTION) is None
    assert answer(tiny_model, tiny_prefill, QUESTION) == plain
    monkeypatch.setattr(tiny_model.tokenizer, "encode", lambda text: [1, 2] if text == "A" else encode(text))
    assert settled_letter(tiny_model, cache, QUESTION) is None


def test_sampled_answers_are_drawn_as_before(tiny_model: VideoXL2, tiny_prefill: PrefillResult) -> None:
    cache = tiny_model.assemble(tiny_prefill.chunks)
    once, orders = (
        GenerationSettings(max_new_tokens=8, temperature=2.0, seed=3, option_orders=option_orders)
        for option_orders in (False, True)
    )
    assert tiny_model.generate_text(cache, QUESTION, once) == tiny_model.generate_text(cache, QUESTION, orders)
