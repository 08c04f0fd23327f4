"""Where each token of a video prompt lies: prefix text, then per frame group its timestamp and its visual tokens.

Spans are built from the parts, never found by searching for token ids. Positions are absolute and contiguous from 0;
all spans are half-open. Integers only, no tensors (``reference`` section 1.6).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class GroupSpan:
    """One frame group: timestamp tokens [start, time_end), visual tokens [time_end, end)."""

    start: int
    time_end: int
    end: int


@dataclass(frozen=True, slots=True)
class TokenLayout:
    """The token layout of a prompt up to the end of the video.

    ``prefix_ids`` are the tokens before the video, ``time_ids`` each group's timestamp tokens.
    """

    prefix_ids: tuple[int, ...]
    time_ids: tuple[tuple[int, ...], ...]
    tokens_per_group: int
    spans: tuple[GroupSpan, ...] = field(init=False)

    def __post_init__(self) -> None:
        if not self.prefix_ids:
            raise ValueError("a prompt needs at least one token before the video")
        spans, position = [], len(self.prefix_ids)
        for ids in self.time_ids:
            if not ids:
                raise ValueError("every frame group needs timestamp tokens")
            time_end = position + len(ids)
            spans.append(GroupSpan(position, time_end, time_end + self.tokens_per_group))
            position = spans[-1].end
        object.__setattr__(self, "spans", tuple(spans))

    @classmethod
    def build(cls, prefix_ids: Sequence[int], time_ids: Sequence[Sequence[int]], tokens_per_group: int) -> TokenLayout:
        """The layout from any sequences of ids."""
        return cls(tuple(prefix_ids), tuple(map(tuple, time_ids)), tokens_per_group)

    @property
    def num_groups(self) -> int:
        return len(self.spans)

    @property
    def visual_start(self) -> int:
        """Position after the prefix."""
        return len(self.prefix_ids)

    @property
    def length(self) -> int:
        """Tokens of prefix and video together."""
        return self.spans[-1].end if self.spans else self.visual_start

    def group_sizes(self, first: int, end: int) -> tuple[tuple[int, int], ...]:
        """(timestamp tokens, visual tokens) of the groups [first, end)."""
        return tuple((span.time_end - span.start, span.end - span.time_end) for span in self.spans[first:end])

    def token_span(self, first: int, end: int) -> tuple[int, int]:
        """Positions [start, stop) of the groups [first, end); ``end`` must be greater than ``first``."""
        return self.spans[first].start, self.spans[end - 1].end

    def num_time_tokens(self, end: int) -> int:
        """Timestamp tokens of the groups before ``end``."""
        return self.spans[end - 1].time_end - self.visual_start - (end - 1) * self.tokens_per_group if end else 0

    def time_positions(self, first: int, end: int) -> list[int]:
        """Positions of all timestamp tokens of the groups [first, end)."""
        return [position for span in self.spans[first:end] for position in range(span.start, span.time_end)]


def plan_chunks(num_groups: int, chunk_groups: int) -> list[tuple[int, int]]:
    """Cut ``num_groups`` into runs [first, end) of ``chunk_groups``; the last may be shorter."""
    if chunk_groups < 1:
        raise ValueError(f"chunk_groups must be at least 1, got {chunk_groups}")
    return [(first, min(first + chunk_groups, num_groups)) for first in range(0, num_groups, chunk_groups)]
