"""Which token follows: the likeliest, or one drawn from the tempered, truncated distribution.

Drawing happens on the CPU in double precision with a generator of its own, so that a seed means the same tokens
whatever else runs, and on whatever device the logits were made.

Shapes: V vocabulary.
"""

from __future__ import annotations

import torch
from torch import Tensor

from videoxl2.config import GenerationSettings


def likeliest(logits_V: Tensor) -> int:
    """The token of the highest logit, the first of equal ones."""
    return int(logits_V.argmax())


class TokenChoice:
    """Chooses the tokens of one answer by temperature, top-p and seed; at temperature 0 the likeliest."""

    def __init__(self, settings: GenerationSettings) -> None:
        self._temperature, self._top_p = settings.temperature, settings.top_p
        self._generator = torch.Generator().manual_seed(settings.seed)

    @property
    def is_greedy(self) -> bool:
        """Whether every token is the likeliest, whatever was drawn before."""
        return self._temperature == 0

    def __call__(self, logits_V: Tensor) -> int:
        """The next token of the answer; each call draws once from the seeded generator."""
        if self.is_greedy:
            return likeliest(logits_V)
        tempered_V = logits_V.detach().to("cpu", torch.float64)
        probabilities_V = ((tempered_V - tempered_V.max()) / self._temperature).softmax(dim=-1)
        sorted_V, tokens_V = probabilities_V.sort(descending=True, stable=True)
        mass_V = sorted_V.cumsum(dim=-1)
        # The likeliest tokens up to and including the one with which they reach top_p.
        count = min(int((mass_V < self._top_p).sum()) + 1, len(mass_V))
        drawn = torch.rand(1, generator=self._generator, dtype=torch.float64) * mass_V[count - 1]
        place = int(torch.searchsorted(mass_V[:count], drawn, right=True))
        return int(tokens_V[min(place, count - 1)])
