"""Every word of the rendered data, and sentences to train a tokenizer on.

Owns the listing; the words themselves are in ``wording`` and ``scene.COLOURS``. Numbers are spelt by their digits.
"""

from __future__ import annotations

import re

import numpy as np

from videoxl2.options import CLOCK_HINT, SECONDS_HINT
from videoxl2.training.captions import captions_of, frame_caption
from videoxl2.training.facts import script_facts
from videoxl2.training.queries import search_queries
from videoxl2.training.questions import questions_of
from videoxl2.training.random_scenes import CAMERA_KINDS, random_scene
from videoxl2.training.scene import COLOURS
from videoxl2.training.splits import Split
from videoxl2.training.wording import (
    DEPTHS,
    LETTERS,
    NOTHING,
    NOUNS,
    PATTERNS,
    SIDES,
    TARGET_NOUN,
    VERBS,
)

_TOKEN = re.compile(r"[A-Za-z]+|\d|[^\sA-Za-z\d]")
_GLUE = ("a", "an", "the", "in", "and", "to", "yes", "no", "seconds", "shirt", "trousers", "of", "open", "door")
_EMPTY_PICTURE = "The picture is empty."
_RATES = (0.5, 2.0, 4.0, 6.0)
_SCENE_S = 60.0


def words_in(text: str) -> list[str]:
    """The words, digits and signs of a text, in lower case."""
    return [token.lower() for token in _TOKEN.findall(text)]


def all_words() -> tuple[str, ...]:
    """The closed vocabulary, sorted: words in lower case, digits and signs."""
    texts = [re.sub(r"\{\w+\}", " ", pattern) for patterns in PATTERNS.values() for pattern in patterns]
    texts += [*COLOURS, *SIDES, *DEPTHS, *LETTERS, *TARGET_NOUN.values(), *_GLUE]
    texts += [noun for forms in NOUNS.values() for noun in forms]
    texts += [form for verb in VERBS.values() for form in (verb.third, verb.ing, verb.base)]
    texts += [SECONDS_HINT, CLOCK_HINT, NOTHING, _EMPTY_PICTURE, "0123456789", ".,:?"]
    return tuple(sorted({word for text in texts for word in words_in(text)}))


def training_sentences(seed: int, num_sentences: int, split: Split = "train") -> list[str]:
    """Captions, questions, answers and queries of random scenes, without rendering them."""
    rng = np.random.default_rng([seed, 71])
    found: list[str] = []
    while len(found) < num_sentences:
        number = int(rng.integers(1 << 30))
        kind, rate = CAMERA_KINDS[number % len(CAMERA_KINDS)], _RATES[number % len(_RATES)]
        offset_s = float(rng.integers(0, 6000))
        facts = script_facts(random_scene(kind, number, _SCENE_S, split, events_per_minute=rate), offset_s)
        found += [text for text, _, _ in captions_of(facts)]
        found += [frame_caption(facts, offset_s + float(rng.uniform(0, _SCENE_S)))]
        for item in questions_of(facts, number, split):
            found += [item.question, item.answer]
        found += [query.text for query in search_queries({"": facts}, number, 6)]
    return [found[i] for i in rng.permutation(len(found))[:num_sentences].tolist()]
