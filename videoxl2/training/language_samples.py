"""Samples of stages 3 and 4: a stretch of footage with several questions, as tokens, positions and who sees what.

The video is prefilled under the mask of chunked prefill, every segment of it apart; its keys and values make the caches
that questions are asked of, at new positions, with what is said between videos. In stage 4 half of a sample's questions
are asked of one cache with all chunks dense, and half of one with some pooled to sparse KV, of the same keys and
values: every sample teaches both.

Shapes: M tokens of prefix and video, C entries of a cache made of them, J tokens at most that an entry is the mean of,
T tokens of all questions or of those that are asked of one cache, E questions among them whose evidence is known,
G frame groups, P visual tokens per group, K KV heads, D width, Dh head width.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from videoxl2.config import PrefillSettings
from videoxl2.layout import TokenLayout, plan_chunks
from videoxl2.named_times import times_named
from videoxl2.tokenizer import Tokenizer
from videoxl2.training import replicas
from videoxl2.training.dialogues import (
    GROUP_S,
    CachedClip,
    Stretch,
    StretchSettings,
    evidence_groups,
    priors_of,
    questions_about,
    random_stretch,
)
from videoxl2.training.held_back import answers_alike
from videoxl2.training.priors import AnswerPriors
from videoxl2.training.qa import QA, offers_times
from videoxl2.training.tiles import VideoTiles, tile_video
from videoxl2.training.token_labels import TokenTargets, choose_tokens

_CHUNK_GROUPS, _COMPRESSION = 6, 4
_MOST_EVIDENCE = 0.6
"""Where more of a video than this is evidence, looking at the right place means nothing."""
_LENGTHS_SEED = 11
_TIME_WEIGHT = 3.0
"""How much an answer that is a time counts: its tokens share the weight of an answer, and most of them are digits."""
_DENSE_SHARE, _NONE_DENSE, _ENDS_DENSE = (0.05, 0.5), 0.15, 0.3
"""Levels of samples: the share of dense chunks is drawn from so far to so far, and how often none and the ends are."""


@dataclass(frozen=True)
class LanguageSettings:
    """What samples look like. ``pooled`` is the share of samples in which half of the questions meet sparse chunks,
    ``late_start`` that of stretches that do not begin at zero.

    With ``priors``, what wordings give away is counted on so many stretches, and questions are rather asked whose text
    does not tell (``priors.AnswerPriors``). With a ``grounding_weight`` some heads are told where to look, and the
    loss of that counts so many times. With a ``sight_weight`` hidden states must tell what their tokens show.
    ``segmented`` and ``videos`` are the shares of stretches that are prefilled in segments, and that are of several
    videos (``StretchSettings``).
    """

    groups: tuple[int, ...] = (1, 2, 3, 4, 6, 8)
    samples: int = 6
    questions: int = 14
    per_kind: int = 2
    priors: int = 0
    pooled: float = 0.0
    late_start: float = 0.35
    skip: float = 0.5
    max_skip: int = 6000
    long_answer_weight: float = 0.5
    grounding_weight: float = 0.0
    sight_weight: float = 0.0
    segmented: float = 0.0
    videos: float = 0.0

    def stretches(self, length: int) -> StretchSettings:
        """How a stretch of ``length`` groups is cut."""
        return StretchSettings(
            (length,),
            late_start=self.late_start,
            labelled=self.sight_weight > 0,
            segmented=self.segmented,
            videos=self.videos,
        )


@dataclass(frozen=True, eq=False)
class Pooling:
    """Entries of a cache as weighted sums of tokens: of ``token_CJ``, the first of them where the entry stands."""

    token_CJ: Tensor
    weight_CJ: Tensor

    def __call__(self, x_BKMDh: Tensor) -> Tensor:
        """Keys or values [B, K, C, Dh] of the cache."""
        index = self.token_CJ.flatten().to(x_BKMDh.device)
        parts = x_BKMDh.index_select(2, index).unflatten(2, self.token_CJ.shape)
        return (parts * self.weight_CJ.to(parts)[..., None]).sum(dim=3)


@dataclass(frozen=True)
class Asking:
    """Questions that are asked of one cache. ``pool`` makes it of the video's tokens (None: they are it);
    ``cache_position_C`` and ``position_T`` are positions in it and after it.

    The first H of its tokens are the headers of videos: token h stands before entry ``header_place_H[h]`` of the cache,
    and sees those before it and the headers so far.

    ``evidence_EC`` says which entries show what follows token ``ask_E``, where that is known; ``look_E`` weighs
    looking there, so that each question counts alike.
    """

    pool: Pooling | None
    cache_position_C: Tensor
    position_T: Tensor
    ask_E: Tensor
    evidence_EC: Tensor
    look_E: Tensor
    header_place_H: Tensor


@dataclass(frozen=True)
class Dialogue:
    """One sample as tokens. ``token_T`` are those of headers and questions, asking by asking. ``target_T`` is the next
    token where that is part of an answer, else -100; ``weight_T`` weighs it. ``owner_T`` is the question that a token
    belongs to, -1 for headers; ``kinds``, ``is_pooled``, ``times_offered``, ``never_shown`` tell of each question what
    it asks for, whether some chunks were sparse, whether its options are times, and whether training must not show its
    answer, ``is_of_videos`` whether there are several.

    ``silent_N2`` are places in T and tokens of the vocabulary that the loss leaves out of what is predicted there: they
    begin answers that training must not show (``held_back``). ``beside_R2`` names, by their number in it, the tokens
    that begin wrong answers at the same place, one at a time.

    ``tiles`` is who sees whom while the video is prefilled, ``prefill_position_M`` its positions then. ``shown`` is
    what visual tokens show, where that is taught.
    """

    layout: TokenLayout
    visual_GPD: Tensor
    tiles: VideoTiles
    prefill_position_M: Tensor
    askings: tuple[Asking, ...]
    token_T: Tensor
    owner_T: Tensor
    target_T: Tensor
    weight_T: Tensor
    silent_N2: Tensor
    beside_R2: Tensor
    kinds: tuple[str, ...] = ()
    is_pooled: tuple[bool, ...] = ()
    times_offered: tuple[bool, ...] = ()
    never_shown: tuple[bool, ...] = ()
    is_of_videos: bool = False
    shown: TokenTargets | None = None


def make_dialogue(
    tokenizer: Tokenizer,
    stretch: Stretch,
    questions: Sequence[QA],
    settings: LanguageSettings,
    rng: np.random.Generator,
    levels: Sequence[Sequence[bool] | None] = (None,),
) -> Dialogue:
    """Tokens, masks and positions of a sample. Questions are dealt out in turn to ``levels``, which say of each chunk
    whether it is dense, None: all are."""
    prefix = tokenizer.prefix_ids()
    P = stretch.visual_GPD.shape[1]
    layout = TokenLayout.build(prefix, [tokenizer.timestamp_ids(t) for t in stretch.times_s], P)
    M = layout.length
    gaps_M = np.zeros(M, np.int64)
    if rng.random() < settings.skip:
        # Far positions without far tokens: jumps between groups stand for footage that is not there.
        total = int(rng.integers(0, settings.max_skip))
        starts = [span.start for span in layout.spans]
        for cut in rng.choice(starts, int(rng.integers(1, 4))):
            gaps_M[cut:] += int(rng.integers(0, total // 3 + 1))
    position_M = np.arange(M) + gaps_M
    for first, end in stretch.spans[1:]:
        start, stop = layout.token_span(first, end)
        position_M[start:stop] -= position_M[start] - layout.visual_start
    headers = [tokenizer.encode(part.header) if part.header else [] for part in stretch.segments]
    dealt = [(one, questions[i :: len(levels)]) for i, one in enumerate(levels) if questions[i :: len(levels)]]
    spoken = [
        [_unasked(headers), *(_spoken(tokenizer, stretch, item, settings) for item in items)] for _, items in dealt
    ]
    spoken_ones = [one for part in spoken for one in part]
    share = 1 / max(1, len(questions))
    return Dialogue(
        layout,
        torch.from_numpy(np.ascontiguousarray(stretch.visual_GPD)).float(),
        tile_video(layout, PrefillSettings(), stretch.spans),
        torch.from_numpy(position_M),
        tuple(
            _asking(stretch, layout, gaps_M, headers, part, one, rng)
            for (one, _), part in zip(dealt, spoken, strict=True)
        ),
        torch.tensor([token for one in spoken_ones for token in one.tokens]),
        _owners(spoken),
        torch.tensor([target for one in spoken_ones for target in one.targets]),
        torch.tensor([weight * share for one in spoken_ones for weight in one.weights]),
        *_silent(spoken_ones),
        tuple(item.kind for _, items in dealt for item in items),
        tuple(one is not None for one, items in dealt for _ in items),
        tuple(offers_times(item) for _, items in dealt for item in items),
        tuple(item.answer in answers_alike(stretch.facts, item).held_back for _, items in dealt for item in items),
        stretch.is_of_videos,
        None if stretch.labels is None else choose_tokens(stretch.labels, layout, stretch.times_s, rng),
    )


@dataclass(frozen=True)
class _Spoken:
    """A question and its answer as tokens. ``looks``: at which of them to look at which groups [G], and how much that
    counts; ``silent``: after which of them which token is no wrong answer, and which others are."""

    tokens: list[int]
    targets: list[int]
    weights: list[float]
    looks: list[tuple[int, np.ndarray, float]]
    silent: list[tuple[int, int, list[int]]]


def _unasked(headers: Sequence[Sequence[int]]) -> _Spoken:
    """The headers of videos, one after another, which ask nothing."""
    tokens = [token for header in headers for token in header]
    return _Spoken(tokens, [-100] * len(tokens), [0.0] * len(tokens), [], [])


def _spoken(tokenizer: Tokenizer, stretch: Stretch, item: QA, settings: LanguageSettings) -> _Spoken:
    suffix = tokenizer.prompt_parts(item.question)[1]
    stop = tokenizer.token_id("<|im_end|>")
    assert stop in tokenizer.eos_ids
    answer = [*tokenizer.encode(item.answer), stop]
    before = len(suffix) - 1
    long = settings.long_answer_weight
    worth = {"describe": long, "events": long, "when": _TIME_WEIGHT}.get(item.kind, 1.0) / len(answer)
    looks = _looks(item, evidence_groups(stretch, item), answer, tokenizer)
    named = _times_named(tokenizer, stretch, item.question)
    return _Spoken(
        [*suffix, *answer[:-1]],
        [-100] * before + answer,
        [0.0] * before + [worth] * len(answer),
        [
            *((place, look_G, 1 / len(named)) for place, look_G in named),
            *((before + place, look_G, share) for place, look_G, share in looks),
        ],
        [(before + place, token, others) for place, token, others in _no_answers(tokenizer, stretch, item, answer)],
    )


def _no_answers(
    tokenizer: Tokenizer, stretch: Stretch, item: QA, answer: Sequence[int]
) -> list[tuple[int, int, list[int]]]:
    """Where answers that training must not show go another way than the right one, with which token, and with which
    ones the wrong answers do that it may show."""
    alike = answers_alike(stretch.facts, item)
    shown, held_back = (
        {part for text in texts if (part := _where_it_parts(answer, tokenizer.encode(text))) is not None}
        for texts in (alike.shown, alike.held_back)
    )
    return [
        (place, token, [other for at, other in sorted(shown) if at == place])
        for place, token in sorted(held_back - shown)
    ]


def _where_it_parts(answer: Sequence[int], other: Sequence[int]) -> tuple[int, int] | None:
    """The place at which the other answer goes another way, and its token there; None where it does not."""
    both = enumerate(zip(answer, other, strict=False))
    return next(((place, token) for place, (mine, token) in both if mine != token), None)


def _silent(spoken: Sequence[_Spoken]) -> tuple[Tensor, Tensor]:
    """The places and tokens of all of them [N, 2], and the tokens of wrong answers beside each [R, 2]."""
    starts = np.cumsum([0, *(len(one.tokens) for one in spoken)])[:-1].tolist()
    found = [(start + place, *rest) for start, one in zip(starts, spoken, strict=True) for place, *rest in one.silent]
    beside = [(number, other) for number, (_, _, others) in enumerate(found) for other in others]
    silent = [(place, token) for place, token, _ in found]
    return (
        torch.tensor(silent, dtype=torch.long).reshape(-1, 2),
        torch.tensor(beside, dtype=torch.long).reshape(-1, 2),
    )


def _times_named(tokenizer: Tokenizer, stretch: Stretch, question: str) -> list[tuple[int, np.ndarray]]:
    """The last token of every time that a question names, and which frame group [G] is then; footage has gaps."""
    starts_G = np.asarray(stretch.moments_s)
    suffix = tokenizer.prompt_parts(question)[1]
    found = []
    for time_s, end in times_named(question):
        look_G = (starts_G <= time_s) & (time_s < starts_G + GROUP_S)
        if look_G.any():
            # Digits are tokens of their own, so that the text up to one begins as the whole does.
            begun = tokenizer.prompt_parts(question[:end])[1]
            same = itertools.takewhile(lambda pair: pair[0] == pair[1], zip(suffix, begun, strict=False))
            found.append((len(list(same)) - 1, look_G))
    return found


def _owners(spoken: Sequence[Sequence[_Spoken]]) -> Tensor:
    """The question of each token, of askings that begin with headers."""
    numbers = itertools.count()
    owners = [[-1, *itertools.islice(numbers, len(part) - 1)] for part in spoken]
    lengths = [len(one.tokens) for part in spoken for one in part]
    return torch.repeat_interleave(torch.tensor(list(itertools.chain(*owners))), torch.tensor(lengths))


def _asking(
    stretch: Stretch,
    layout: TokenLayout,
    gaps_M: np.ndarray,
    headers: Sequence[Sequence[int]],
    spoken: Sequence[_Spoken],
    levels: Sequence[bool] | None,
    rng: np.random.Generator,
) -> Asking:
    """The cache with chunks of these levels, its entries side by side or with the gaps that the tokens had, and headers
    between them; the first of ``spoken`` are these."""
    pool = None if levels is None else _pooling(layout, plan_segments(stretch.spans), levels)
    kept_C = np.arange(layout.length) if pool is None else pool.token_CJ[:, 0].numpy()
    starts = [layout.spans[first].start for first, _ in stretch.spans[: len(headers)]]
    sizes = [len(header) for header in headers]
    place_H = np.repeat(np.searchsorted(kept_C, starts), sizes)
    left_H = np.asarray([size - number for size in sizes for number in range(size)], np.int64)
    positions_C = np.arange(len(kept_C)) + (gaps_M[kept_C] if rng.random() < 0.5 else 0)
    positions_C += np.searchsorted(place_H, np.arange(len(kept_C)), side="right")
    starts = np.cumsum([0, *(len(one.tokens) for one in spoken)])[:-1].tolist()
    looks = [
        (start + place, look_G, share)
        for start, one in zip(starts, spoken, strict=True)
        for place, look_G, share in one.looks
    ]
    # The prefix belongs to no frame group: number -1, the column that is added.
    shown_EG = np.asarray([look_G for _, look_G, _ in looks], np.bool_).reshape(len(looks), layout.num_groups)
    evidence_EC = np.pad(shown_EG, ((0, 0), (0, 1)))[:, _groups_of_tokens(layout)[kept_C]]
    places = torch.cat([torch.arange(len(one.tokens)) for one in spoken[1:]])
    return Asking(
        pool,
        torch.from_numpy(positions_C),
        torch.cat((torch.from_numpy(positions_C[place_H] - left_H), places + int(positions_C[-1]) + 1)),
        torch.tensor([place for place, _, _ in looks], dtype=torch.long),
        torch.from_numpy(evidence_EC),
        torch.tensor([share for _, _, share in looks]),
        torch.from_numpy(place_H),
    )


def random_dialogue(
    tokenizer: Tokenizer,
    stretch: Stretch,
    settings: LanguageSettings,
    rng: np.random.Generator,
    priors: AnswerPriors | None = None,
) -> Dialogue | None:
    """A sample about the stretch with random questions and levels; None where nothing can be asked about it."""
    num_chunks = len(plan_segments(stretch.spans))
    levels = [None, random_levels(num_chunks, rng)] if rng.random() < settings.pooled else [None]
    rng.shuffle(levels)
    seed = int(rng.integers(1 << 30))
    asked = questions_about(stretch, seed, settings.per_kind, settings.questions, priors=priors)
    return make_dialogue(tokenizer, stretch, asked, settings, rng, levels) if asked else None


def _looks(
    item: QA, seen_G: np.ndarray, answer: Sequence[int], tokenizer: Tokenizer
) -> list[tuple[int, np.ndarray, float]]:
    """Where to look for which token of the answer: its place, frame groups [G], and its share of the question.

    All is seen before the first token. A time has two ends: it is read off the first and the last of the groups.
    """
    if not seen_G.any() or seen_G.mean() > _MOST_EVIDENCE:
        return []
    between = tokenizer.encode(" to")
    if item.kind != "when" or len(between) != 1 or between[0] not in answer:
        return [(0, seen_G, 1.0)]
    groups = np.flatnonzero(seen_G)
    ends = (np.arange(len(seen_G)) == groups[0], np.arange(len(seen_G)) == groups[-1])
    middle = answer.index(between[0])
    return [(place, ends[place > middle], 1 / (len(answer) - 1)) for place in range(len(answer) - 1)]


def _groups_of_tokens(layout: TokenLayout) -> np.ndarray:
    """The frame group [M] that each token belongs to; -1 for the prefix."""
    group_M = np.full(layout.length, -1)
    for group, span in enumerate(layout.spans):
        group_M[span.start : span.end] = group
    return group_M


def plan_segments(spans: Sequence[tuple[int, int]]) -> list[tuple[int, int]]:
    """The chunks [first, end) of what was prefilled apart, of ``_CHUNK_GROUPS`` groups each or of what is left."""
    return [
        (first + begin, first + stop) for first, end in spans for begin, stop in plan_chunks(end - first, _CHUNK_GROUPS)
    ]


def random_levels(num_chunks: int, rng: np.random.Generator) -> list[bool]:
    """Which chunks are dense, as ``select_levels`` leaves it: a few, some times the ends too, some times none."""
    if rng.random() < _NONE_DENSE:
        return [False] * num_chunks
    number = max(1, round(float(rng.uniform(*_DENSE_SHARE)) * num_chunks))
    dense = set(rng.choice(num_chunks, min(number, num_chunks), replace=False).tolist())
    if rng.random() < _ENDS_DENSE:
        dense |= {0, num_chunks - 1}
    return [chunk in dense for chunk in range(num_chunks)]


def _pooling(layout: TokenLayout, chunks: Sequence[tuple[int, int]], levels: Sequence[bool]) -> Pooling:
    """Every chunk stays dense or is pooled as ``sparsify`` does."""
    starts, lengths = [torch.arange(layout.visual_start)], [torch.ones(layout.visual_start)]
    for (first, end), dense in zip(chunks, levels, strict=True):
        step = 1 if dense else _COMPRESSION
        for span in layout.spans[first:end]:
            time, visual = (
                torch.arange(span.start, span.time_end),
                torch.arange(span.time_end, span.end - step + 1, step),
            )
            starts += [time, visual]
            lengths += [torch.ones(len(time)), torch.full((len(visual),), float(step))]
    start_C, length_C = torch.cat(starts), torch.cat(lengths)
    part_CJ = torch.arange(_COMPRESSION) * (length_C[:, None] > 1)
    weight_CJ = (torch.arange(_COMPRESSION) < length_C[:, None]) / length_C[:, None]
    return Pooling(start_C[:, None] + part_CJ, weight_CJ)


def answer_priors(clips: Sequence[CachedClip], settings: LanguageSettings, seed: int) -> AnswerPriors | None:
    """What wordings give away in a run's training clips; None where the settings do not ask."""
    return priors_of(clips, StretchSettings(settings.groups), settings.priors, seed) if settings.priors else None


class DialogueFeed:
    """Samples of the steps to come, made in a thread while the decoder works."""

    def __init__(
        self,
        clips: Sequence[CachedClip],
        tokenizer: Tokenizer,
        settings: LanguageSettings,
        seed: int,
        *,
        priors: AnswerPriors | None = None,
        ahead: int = 3,
    ) -> None:
        self._clips, self._tokenizer, self._settings, self._seed = clips, tokenizer, settings, seed
        self._priors = priors
        self._pool = ThreadPoolExecutor(1)
        self._ahead = ahead
        self._waiting: dict[int, Future[list[Dialogue]]] = {}

    def make(self, number: int) -> list[Dialogue]:
        """The samples of a batch. Those of replicas at one step are of like length, so that none waits for another."""
        rng = np.random.default_rng([self._seed, number])
        lengths = np.random.default_rng([self._seed, _LENGTHS_SEED, number // replicas.count()])
        settings = self._settings
        found: list[Dialogue] = []
        while len(found) < settings.samples:
            stretch = random_stretch(self._clips, settings.stretches(int(lengths.choice(settings.groups))), rng)
            sample = random_dialogue(self._tokenizer, stretch, settings, rng, self._priors)
            if sample is not None:
                found.append(sample)
        return found

    def get(self, step: int) -> list[Dialogue]:
        for future in range(step, step + self._ahead):
            if future not in self._waiting:
                self._waiting[future] = self._pool.submit(self.make, replicas.batch_number(future))
        return self._waiting.pop(step).result()
