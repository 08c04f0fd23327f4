"""Other words for what queries say, so that the text tower is not deaf to those that a stranger uses.

Owns synonyms and sentence frames. Meaning is kept: "a person in a red shirt running" may become "someone wearing a red
top who runs", never something else.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

import numpy as np

_SYNONYMS: Mapping[str, tuple[str, ...]] = {
    "person": ("man", "woman", "pedestrian", "someone", "human", "figure"),
    "car": ("vehicle", "automobile", "sedan", "hatchback"),
    "van": ("minibus", "delivery van", "truck"),
    "cyclist": ("bicycle", "bike", "person on a bicycle", "bicyclist", "rider on a bike"),
    "bag": ("suitcase", "luggage", "handbag", "backpack"),
    "shirt": ("top", "jacket", "sweater", "coat", "T-shirt"),
    "trousers": ("pants", "jeans", "legs"),
    "grey": ("gray",),
    "running": ("sprinting", "who runs", "jogging", "in a hurry"),
    "walking": ("who walks", "strolling", "going on foot"),
    "standing and waiting": ("standing still", "who stops", "waiting", "standing"),
    "loitering": ("hanging around", "lingering", "who loiters", "standing around for a long time"),
    "falling down": ("who falls", "lying on the ground", "collapsing", "on the floor"),
    "dropping": ("leaving behind", "putting down", "who drops", "leaving"),
    "picking up": ("taking", "lifting", "who picks up", "collecting"),
    "meeting": ("talking to", "who meets", "standing with", "greeting"),
    "driving the wrong way": ("going against the traffic", "in the wrong direction", "on the wrong side"),
    "driving": ("passing", "who drives", "moving", "going past"),
    "parking": ("who parks", "pulling into a space", "coming to a stop"),
    "riding past": ("riding", "cycling", "passing by"),
    "smoke": ("fire", "fumes", "a cloud of smoke"),
    "a door left open": ("an open door", "door standing open", "the door is open"),
}
_FRAMES = ("{}", "{}", "{}", "there is {}", "a view of {}", "find {}", "show me {}", "{} in the picture", "when is {}")
_KEEP = 0.45


def paraphrase(text: str, rng: np.random.Generator) -> str:
    """The text, often in other words."""
    if rng.random() < _KEEP:
        return text
    for word, others in _SYNONYMS.items():
        if rng.random() < 0.5 and re.search(rf"\b{word}\b", text):
            text = re.sub(rf"\b{word}\b", others[int(rng.integers(len(others)))], text, count=1)
    if rng.random() < 0.3:
        text = re.sub(r"\bin an? (\w+) (shirt|top|jacket|sweater|coat|T-shirt)\b", r"in \1", text)
    elif rng.random() < 0.3:
        text = text.replace(" in a ", " wearing a ").replace(" in an ", " wearing an ")
    if rng.random() < 0.3:
        text = re.sub(r"^(a|an) ", "", text)
    return _FRAMES[int(rng.integers(len(_FRAMES)))].format(text)


def all_paraphrase_words() -> tuple[str, ...]:
    """Every word or phrase that paraphrases add, for the tokenizer."""
    words = [word for others in _SYNONYMS.values() for word in others]
    return tuple(sorted({*words, *(frame.format("").strip() for frame in _FRAMES), "wearing"}))
