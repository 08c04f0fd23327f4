"""A question with options is asked in every cyclic order of these, so that an option's letter and place decide nothing.

A language model favours letters and places whatever stands there (Zheng et al. 2024, "Large Language Models Are Not
Robust Multiple Choice Selectors"). Their cyclic permutation is what is done here: with O options the question is asked
O times, each time every option stands at another place, and the mean of an option's log probabilities among the letters
decides. The published evaluation of Video-XL-2 asks once (``GenerationSettings.option_orders`` is off by default).

Options that are times are harder to compare than to say: each is a place to look at. So such a question is asked
without them, and the option decides that is the likeliest answer: the cloze of Robinson et al. 2023, "Leveraging Large
Language Models for Multiple Choice Question Answering". It knows no order either.

Shapes: O options, and as many orders; V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Sequence
from typing import Protocol

import torch
from torch import Tensor

from videoxl2.decode import Assembly, TokenStep, generate
from videoxl2.kv import KVCache
from videoxl2.options import OptionQuestion
from videoxl2.prefill import PrefillModel
from videoxl2.questions import generate_batch
from videoxl2.relevance import QuestionTokenizer
from videoxl2.token_choice import likeliest


class AnsweringTokenizer(QuestionTokenizer, Protocol):
    """The part of a tokenizer that options need: ``encode`` gives the tokens of an answer's text."""

    def encode(self, text: str) -> list[int]: ...


class AnsweringModel(PrefillModel, Protocol):
    """The part of a model that options need."""

    @property
    def tokenizer(self) -> AnsweringTokenizer: ...


def best_option(logits_OV: Tensor, letter_ids: Sequence[int]) -> int:
    """The option with the highest mean log probability among the letters, the first of equal ones.

    Row r of the logits follows the question shifted by r; ``letter_ids`` are the tokens of the letters in their order.
    """
    among_letters_OO = logits_OV[:, list(letter_ids)].float().log_softmax(dim=-1)
    by_option_OO = [row_O.roll(shift) for shift, row_O in enumerate(among_letters_OO)]
    return int(sum(by_option_OO[1:], by_option_OO[0]).argmax())


class _Saying:
    """Says the tokens that it is given, one after another, and sums their log probabilities in ``score``."""

    DONE = -1

    def __init__(self, ids: Sequence[int]) -> None:
        self._ids = iter(ids)
        self.score = 0.0

    def __call__(self, logits_V: Tensor) -> int:
        """The next token, ``DONE`` after the last one."""
        token = next(self._ids, self.DONE)
        if token != self.DONE:
            self.score += float(logits_V.float().log_softmax(dim=-1)[token])
        return token


def likeliest_answer(model: AnsweringModel, cache: KVCache, question: str, answers: Sequence[str]) -> int:
    """Which of the answers is the likeliest after the question; all are said at once.

    Afterwards the cache is as before. Raises ``ContextOverflow``.
    """
    suffix_ids = model.tokenizer.prompt_parts(question)[1]
    ids = [model.tokenizer.encode(answer) for answer in answers]
    said = [_Saying(tokens) for tokens in ids]
    steps = generate_batch(
        model, cache, [suffix_ids] * len(ids), max(map(len, ids)), (_Saying.DONE,), choices=list(said)
    )
    for _ in steps:
        pass
    return max(range(len(said)), key=lambda number: said[number].score)


class SaidFirst:
    """Chooses a token that is settled already, and the likeliest ones after it."""

    def __init__(self, token: int) -> None:
        self._settled: int | None = token

    def __call__(self, logits_V: Tensor) -> int:
        """The next token."""
        token, self._settled = self._settled, None
        return likeliest(logits_V) if token is None else token


def settled_letter(model: AnsweringModel, cache: KVCache, question: str) -> int | None:
    """The token of the option's letter that all orders together choose, or of the time that is the likeliest answer;
    afterwards the cache is as before.

    None where the question has no options that can change places, or the model answers it with something else than
    one of their letters. Raises ``ContextOverflow``.
    """
    asked = OptionQuestion.read(question)
    return None if asked is None else _settle(model, cache, asked, None)


def generate_in_orders(
    model: AnsweringModel,
    context: KVCache | Assembly,
    question: str,
    max_new_tokens: int,
    eos_ids: Collection[int] = (),
) -> Iterator[TokenStep]:
    """As ``decode.generate`` after the question's own tokens, but a question with options is asked in every order.

    An assembly is completed with the question as it was asked; the other orders follow over the cache, all at once.
    """
    asked = OptionQuestion.read(question)
    suffix_ids = model.tokenizer.prompt_parts(question)[1]
    steps = generate(model, context, suffix_ids, max_new_tokens, eos_ids, keep_logits=asked is not None)
    first = next(steps, None)
    if first is None:
        return
    if asked is not None:
        cache = context if isinstance(context, KVCache) else context.finish()
        cache.length -= len(suffix_ids)
        token = _settle(model, cache, asked, first.logits_V)
        choose: Callable[[Tensor], int] = SaidFirst(first.token_id if token is None else token)
        steps = generate(model, cache, suffix_ids, max_new_tokens, eos_ids, choose=choose)
    else:
        yield first
    yield from steps


def _settle(model: AnsweringModel, cache: KVCache, asked: OptionQuestion, logits_V: Tensor | None) -> int | None:
    """The letter's token; ``logits_V`` are those of the question as it was asked, where they are known."""
    letter_ids = [ids[0] for letter in asked.letters if len(ids := model.tokenizer.encode(letter)) == 1]
    if len(letter_ids) < len(asked.letters):
        return None
    known = [] if logits_V is None else [logits_V]
    if known and likeliest(known[0]) not in letter_ids:
        return None
    openly = asked.asked_openly
    orders = len(asked.options) if openly is None else 1
    suffixes = [model.tokenizer.prompt_parts(asked.shifted(shift))[1] for shift in range(len(known), orders)]
    steps = generate_batch(model, cache, suffixes, 1, keep_logits=True)
    found = [*known, *(step.logits_V for _, step in steps if step.logits_V is not None)]
    if likeliest(found[0]) not in letter_ids:
        return None
    if openly is not None:
        return letter_ids[likeliest_answer(model, cache, openly, asked.options)]
    return letter_ids[best_option(torch.stack(found), letter_ids)]
