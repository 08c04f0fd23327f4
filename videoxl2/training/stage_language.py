"""Stages 3 and 4: the decoder learns to answer from visual tokens, as it will be asked: from KV it cannot change.

One sample is one stretch of footage with several questions. The video's tokens run under the mask of chunked prefill;
each question's tokens then see the video's keys and values (at new positions) and themselves, never another question.
That is exactly what ``prefill``, ``sparsify`` and ``assemble_cache`` do, in one differentiable pass. In stage 4 half of
a sample's questions are asked with all chunks dense and half with some pooled to sparse KV, of the same keys and
values: every sample teaches both.

Beside the answer the decoder learns where to look: some heads of the middle layers are told, for the token from which
an answer begins, at which frame groups it can be seen (``grounding``). Answers alone teach that slowly, the more so the
longer the video. And it learns what it looks at: what each visual token shows is read off its hidden states halfway up
(``sight``, see ``token_labels``).

Shapes: M tokens of prefix and video, C entries of a cache assembled from them, T tokens of all questions or of those
that are asked of one cache, E questions among them whose evidence is known, K KV heads, N query heads, D width, Dh head
width.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from videoxl2.config import PrefillSettings
from videoxl2.language import QwenDecoder
from videoxl2.layout import TokenLayout, plan_chunks
from videoxl2.rotary import RotaryTable
from videoxl2.tokenizer import Tokenizer
from videoxl2.training import replicas
from videoxl2.training.dialogues import (
    CachedClip,
    Stretch,
    StretchSettings,
    evidence_groups,
    priors_of,
    questions_about,
    random_stretch,
)
from videoxl2.training.masked_attention import mask_bias, masked_attention, pass_dtype, without_autocast
from videoxl2.training.perception import set_scores
from videoxl2.training.priors import AnswerPriors
from videoxl2.training.qa import QA
from videoxl2.training.tiles import VideoTiles, tile_video
from videoxl2.training.token_labels import TokenReading, TokenTargets, choose_tokens, read_layer
from videoxl2.training.trainer import TrainSettings, fit

_CHUNK_GROUPS, _COMPRESSION = 6, 4
_MOST_EVIDENCE = 0.6
"""Where more of a video than this is evidence, looking at the right place means nothing."""
_CHECK_SEED, _LENGTHS_SEED = 999, 11
_SETTLING_RATE = 5e-3
_TOLD_SIGHTS = ("kind+colour", "shirt+action", "kind+action")
"""What validation tells of what tokens show."""
_DENSE_SHARE, _NONE_DENSE, _ENDS_DENSE = (0.05, 0.5), 0.15, 0.3
"""Levels of samples: the share of dense chunks is drawn from so far to so far, and how often none and the ends are."""


@dataclass(frozen=True)
class LanguageSettings:
    """What samples look like. ``pooled`` is the share of samples in which half of the questions meet sparse chunks.

    With ``priors``, what wordings give away is counted on so many stretches, and questions are rather asked whose text
    does not tell (``priors.AnswerPriors``). With a ``grounding_weight`` some heads are told where to look, and the
    loss of that counts so many times. With a ``sight_weight`` hidden states must tell what their tokens show.
    """

    groups: tuple[int, ...] = (1, 2, 3, 4, 6, 8)
    samples: int = 6
    questions: int = 14
    per_kind: int = 2
    priors: int = 0
    pooled: float = 0.0
    skip: float = 0.5
    max_skip: int = 6000
    long_answer_weight: float = 0.5
    grounding_weight: float = 0.0
    sight_weight: float = 0.0

    def stretches(self, length: int) -> StretchSettings:
        """How a stretch of ``length`` groups is cut."""
        return StretchSettings((length,), labelled=self.sight_weight > 0)


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

    ``evidence_EC`` says which entries show what follows token ``ask_E``, where that is known; ``look_E`` weighs
    looking there, so that each question counts alike.
    """

    pool: Pooling | None
    cache_position_C: Tensor
    position_T: Tensor
    ask_E: Tensor
    evidence_EC: Tensor
    look_E: Tensor


@dataclass(frozen=True)
class Dialogue:
    """One sample as tokens. ``token_T`` are those of all questions, asking by asking. ``target_T`` is the next token
    where that is part of an answer, else -100; ``weight_T`` weighs it. ``owner_T`` is the question that a token belongs
    to, and ``kinds`` and ``is_pooled`` tell of each question what it asks for and whether some chunks were sparse.

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
    kinds: tuple[str, ...] = ()
    is_pooled: tuple[bool, ...] = ()
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
    dealt = [(one, questions[i :: len(levels)]) for i, one in enumerate(levels) if questions[i :: len(levels)]]
    spoken = [[_spoken(tokenizer, stretch, item, settings) for item in items] for _, items in dealt]
    spoken_ones = [one for part in spoken for one in part]
    share = 1 / max(1, len(questions))
    return Dialogue(
        layout,
        torch.from_numpy(np.ascontiguousarray(stretch.visual_GPD)).float(),
        tile_video(layout, PrefillSettings()),
        torch.from_numpy(np.arange(M) + gaps_M),
        tuple(_asking(layout, gaps_M, part, one, rng) for (one, _), part in zip(dealt, spoken, strict=True)),
        torch.tensor([token for one in spoken_ones for token in one.tokens]),
        _owners(spoken_ones),
        torch.tensor([target for one in spoken_ones for target in one.targets]),
        torch.tensor([weight * share for one in spoken_ones for weight in one.weights]),
        tuple(item.kind for _, items in dealt for item in items),
        tuple(one is not None for one, items in dealt for _ in items),
        None if stretch.labels is None else choose_tokens(stretch.labels, layout, rng),
    )


@dataclass(frozen=True)
class _Spoken:
    """A question and its answer as tokens. ``looks``: at which of them to look at which groups [G], and how much that
    counts."""

    tokens: list[int]
    targets: list[int]
    weights: list[float]
    looks: list[tuple[int, np.ndarray, float]]


def _spoken(tokenizer: Tokenizer, stretch: Stretch, item: QA, settings: LanguageSettings) -> _Spoken:
    suffix = tokenizer.prompt_parts(item.question)[1]
    stop = tokenizer.token_id("<|im_end|>")
    assert stop in tokenizer.eos_ids
    answer = [*tokenizer.encode(item.answer), stop]
    before = len(suffix) - 1
    worth = (settings.long_answer_weight if item.kind in ("describe", "events") else 1.0) / len(answer)
    looks = _looks(item, evidence_groups(stretch, item), answer, tokenizer)
    return _Spoken(
        [*suffix, *answer[:-1]],
        [-100] * before + answer,
        [0.0] * before + [worth] * len(answer),
        [(before + place, look_G, share) for place, look_G, share in looks],
    )


def _owners(spoken: Sequence[_Spoken]) -> Tensor:
    return torch.repeat_interleave(torch.arange(len(spoken)), torch.tensor([len(one.tokens) for one in spoken]))


def _asking(
    layout: TokenLayout,
    gaps_M: np.ndarray,
    spoken: Sequence[_Spoken],
    levels: Sequence[bool] | None,
    rng: np.random.Generator,
) -> Asking:
    """The cache with chunks of these levels, its entries side by side or with the gaps that the tokens had."""
    pool = None if levels is None else _pooling(layout, levels)
    kept_C = np.arange(layout.length) if pool is None else pool.token_CJ[:, 0].numpy()
    positions_C = np.arange(len(kept_C)) + (gaps_M[kept_C] if rng.random() < 0.5 else 0)
    starts = np.cumsum([0, *(len(one.tokens) for one in spoken)])[:-1].tolist()
    looks = [
        (start + place, look_G, share)
        for start, one in zip(starts, spoken, strict=True)
        for place, look_G, share in one.looks
    ]
    # The prefix belongs to no frame group: number -1, the column that is added.
    shown_EG = np.asarray([look_G for _, look_G, _ in looks], np.bool_).reshape(len(looks), layout.num_groups)
    evidence_EC = np.pad(shown_EG, ((0, 0), (0, 1)))[:, _groups_of_tokens(layout)[kept_C]]
    places = torch.cat([torch.arange(len(one.tokens)) for one in spoken])
    return Asking(
        pool,
        torch.from_numpy(positions_C),
        places + int(positions_C[-1]) + 1,
        torch.tensor([place for place, _, _ in looks], dtype=torch.long),
        torch.from_numpy(evidence_EC),
        torch.tensor([share for _, _, share in looks]),
    )


def random_dialogue(
    tokenizer: Tokenizer,
    stretch: Stretch,
    settings: LanguageSettings,
    rng: np.random.Generator,
    priors: AnswerPriors | None = None,
) -> Dialogue | None:
    """A sample about the stretch with random questions and levels; None where nothing can be asked about it."""
    groups = len(stretch.times_s)
    levels = [None, random_levels(groups, rng)] if rng.random() < settings.pooled else [None]
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


def random_levels(num_groups: int, rng: np.random.Generator) -> list[bool]:
    """Which chunks are dense, as ``select_levels`` leaves it: a few, some times the ends too, some times none."""
    num_chunks = len(plan_chunks(num_groups, _CHUNK_GROUPS))
    if rng.random() < _NONE_DENSE:
        return [False] * num_chunks
    number = max(1, round(float(rng.uniform(*_DENSE_SHARE)) * num_chunks))
    dense = set(rng.choice(num_chunks, min(number, num_chunks), replace=False).tolist())
    if rng.random() < _ENDS_DENSE:
        dense |= {0, num_chunks - 1}
    return [chunk in dense for chunk in range(num_chunks)]


def _pooling(layout: TokenLayout, levels: Sequence[bool]) -> Pooling:
    """Every chunk stays dense or is pooled as ``sparsify`` does."""
    chunks = plan_chunks(layout.num_groups, _CHUNK_GROUPS)
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


def grounded_layers(num_layers: int) -> tuple[int, int]:
    """The layers in which the query heads of KV head 0 are told where to look: some have read the question before, and
    some are left to make something of what is found."""
    return num_layers // 3, num_layers // 2


class AskingAttention:
    """What the tokens of one asking see: the cache, and of their own question what came before.

    ``misses`` gets, from each grounded layer, how unlikely each of its told heads is to look at the evidence, [H, E].
    """

    def __init__(self, decoder: QwenDecoder, asking: Asking, owner_T: Tensor, grounded: tuple[int, ...]) -> None:
        device = decoder.device
        self._cache = _rotary(decoder, asking.cache_position_C)
        self._asked = _rotary(decoder, asking.position_T)
        self._pool = asking.pool
        owner_T = owner_T.to(device)
        T, C = len(owner_T), len(asking.cache_position_C)
        own_TT = (owner_T[:, None] == owner_T[None, :]).tril()
        self._allowed_TX = torch.cat((own_TT.new_ones(T, C), own_TT), dim=1)
        self._bias: Tensor | None = None
        self._grounded = grounded if len(asking.ask_E) else ()
        self._ask_E = asking.ask_E.to(device)
        self._evidence_EC = asking.evidence_EC.to(device)
        self.misses: list[Tensor] = []

    def keep(self, video: tuple[Tensor, Tensor], own: tuple[Tensor, Tensor]) -> None:
        """Keys (not rotated yet) and values of the video's tokens and of the questions', [B, K, M or T, Dh]."""
        keys, values = video if self._pool is None else (self._pool(video[0]), self._pool(video[1]))
        self._seen = (
            torch.cat((self._cache.rotate(keys), self._asked.rotate(own[0])), dim=2),
            torch.cat((values, own[1]), dim=2),
        )

    def attend(self, layer: int, q_BNTDh: Tensor) -> Tensor:
        """Query heads that share a KV head are more rows of it, and B is 1."""
        rotated = self._asked.rotate(q_BNTDh)
        if layer in self._grounded:
            self.misses.append(self._miss(rotated))
        keys, values = self._seen
        K, T = keys.shape[1], rotated.shape[2]
        if self._bias is None:
            self._bias = mask_bias(self._allowed_TX, pass_dtype(rotated)).repeat(rotated.shape[1] // K, 1)[None]
        rows = rotated.unflatten(1, (K, -1)).flatten(2, 3)
        heads = [masked_attention(rows[:, i], keys[:, i], values[:, i], self._bias) for i in range(K)]
        return torch.stack(heads, dim=1).unflatten(2, (-1, T)).flatten(1, 2)

    def _miss(self, q_BNTDh: Tensor) -> Tensor:
        """Minus the logarithm of the share of attention that falls on the evidence, [H, E], for KV head 0's queries."""
        keys_XDh = self._seen[0][0, 0].float()
        q_HEDh = q_BNTDh[0, : q_BNTDh.shape[1] // self._seen[0].shape[1]].index_select(1, self._ask_E).float()
        with without_autocast(q_BNTDh.device):
            logits_HEX = (q_HEDh @ keys_XDh.T) * q_HEDh.shape[-1] ** -0.5
        all_HE = logits_HEX.masked_fill(~self._allowed_TX.index_select(0, self._ask_E), float("-inf")).logsumexp(-1)
        C = self._evidence_EC.shape[1]
        return all_HE - logits_HEX[:, :, :C].masked_fill(~self._evidence_EC, float("-inf")).logsumexp(-1)


class DialogueAttention:
    """The attention of one sample: rows [0, M) are the video, then come the questions, asking by asking."""

    def __init__(self, decoder: QwenDecoder, dialogue: Dialogue, grounded: bool = False) -> None:
        asked = [len(asking.position_T) for asking in dialogue.askings]
        self._sizes = [dialogue.layout.length, *asked]
        self._prefill = _rotary(decoder, dialogue.prefill_position_M)
        self._tiles = dialogue.tiles.to(decoder.device)
        layers = grounded_layers(decoder.spec.num_layers) if grounded else ()
        self._askings = [
            AskingAttention(decoder, asking, owner_T, layers)
            for asking, owner_T in zip(dialogue.askings, dialogue.owner_T.split(asked), strict=True)
        ]

    @property
    def misses(self) -> list[Tensor]:
        """Of each asking whose evidence is known, [L, H, E]: one of each grounded layer."""
        return [torch.stack(asking.misses) for asking in self._askings if asking.misses]

    def keep(self, layer: int, k_BKTDh: Tensor, v_BKTDh: Tensor) -> None:
        video, *asked = zip(k_BKTDh.split(self._sizes, dim=2), v_BKTDh.split(self._sizes, dim=2), strict=True)
        self._video = (self._prefill.rotate(video[0]), video[1])
        for asking, own in zip(self._askings, asked, strict=True):
            asking.keep(video, own)

    def attend(self, layer: int, q_BNTDh: Tensor) -> Tensor:
        video, *asked = q_BNTDh.split(self._sizes, dim=2)
        seen = self._tiles.attend(self._prefill.rotate(video), *self._video)
        rows = [asking.attend(layer, rows) for asking, rows in zip(self._askings, asked, strict=True)]
        return torch.cat((seen, *rows), dim=2)


def _rotary(decoder: QwenDecoder, positions: Tensor) -> RotaryTable:
    spec = decoder.spec
    return RotaryTable(positions.to(decoder.device), spec.head_dim, spec.rope_theta, decoder.dtype)


@dataclass(frozen=True)
class Reading:
    """What one pass over a sample gives: logits [A, V] of the positions whose next token is part of an answer; minus
    the logarithm of the attention on the evidence, [L, H, E], of the L grounded layers, all askings side by side (None
    where nothing is grounded); ``hidden_MD`` is what the decoder knows of prefix and video halfway up."""

    logits_AV: Tensor
    miss_LHE: Tensor | None
    hidden_MD: Tensor


def read_dialogue(decoder: QwenDecoder, dialogue: Dialogue, grounded: bool = False) -> Reading:
    """The pass over a sample; with ``grounded`` it is noted where the told heads look."""
    layout, device = dialogue.layout, decoder.device
    video = [decoder.embed(layout.prefix_ids)]
    visual_GPD = dialogue.visual_GPD.to(device)
    for ids, tokens_PD in zip(layout.time_ids, visual_GPD, strict=True):
        video += [decoder.embed(ids), tokens_PD.to(decoder.dtype)]
    asked = decoder.embed(dialogue.token_T)
    attention = DialogueAttention(decoder, dialogue, grounded)
    halfway: list[Tensor] = []

    def watch(layer: int, hidden_BXD: Tensor) -> None:
        if layer == read_layer(decoder.spec):
            halfway.append(hidden_BXD[0, : layout.length])

    hidden_BXD = decoder.run(torch.cat((*video, asked))[None], attention, watch)
    # Indices from the CPU's copy: a mask on the device would make the shape depend on values that lie there.
    answers_A = torch.nonzero(dialogue.target_T >= 0)[:, 0].to(device)
    logits_AV = decoder.logits(hidden_BXD[0, layout.length :].index_select(0, answers_A))
    misses = attention.misses
    return Reading(logits_AV, torch.cat(misses, dim=-1) if misses else None, halfway[0])


def dialogue_losses(
    decoder: QwenDecoder, dialogue: Dialogue, settings: LanguageSettings, sight: TokenReading | None = None
) -> dict[str, Tensor]:
    """``answer``: cross-entropy of the answers, each question alike; ``grounding`` where layers are told to look;
    ``sight`` where a head reads what tokens show."""
    reading = read_dialogue(decoder, dialogue, settings.grounding_weight > 0)
    is_answer = dialogue.target_T >= 0
    logits_AV = reading.logits_AV.float()
    targets = dialogue.target_T[is_answer].to(logits_AV.device)
    losses_A = functional.cross_entropy(logits_AV, targets, reduction="none")
    losses = {"answer": (losses_A * dialogue.weight_T[is_answer].to(logits_AV.device)).sum()}
    if settings.grounding_weight > 0:
        # A video without known evidence counts as found, so that the mean over samples has one of each.
        miss = logits_AV.new_zeros(())
        if reading.miss_LHE is not None:
            look_E = torch.cat([asking.look_E for asking in dialogue.askings]).to(logits_AV.device)
            miss = reading.miss_LHE.mean(dim=(0, 1)) @ (look_E / look_E.sum())
        losses["grounding"] = settings.grounding_weight * miss
    if sight is not None and dialogue.shown is not None:
        losses["sight"] = settings.sight_weight * sight.loss(reading.hidden_MD, dialogue.shown)
    return losses


def mean_losses(samples: Sequence[Mapping[str, Tensor]]) -> dict[str, Tensor]:
    """The losses of several samples by name, each the mean of theirs."""
    return {name: torch.stack([losses[name] for losses in samples]).mean() for name in samples[0]}


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


def settle_sight(
    sight: TokenReading,
    decoder: QwenDecoder,
    samples_of: Callable[[int], Sequence[Dialogue]],
    steps: int = 20,
    passes: int = 15,
) -> None:
    """Let the new head learn to read the hidden states as they are, before it teaches the decoder to change them."""
    weights = list(sight.parameters())
    optimiser = torch.optim.AdamW(weights, lr=_SETTLING_RATE)
    for step in range(steps):
        with torch.no_grad(), torch.autocast(decoder.device.type, torch.bfloat16):
            seen = [
                (read_dialogue(decoder, sample).hidden_MD.float(), sample.shown)
                for sample in samples_of(step)
                if sample.shown is not None
            ]
        for _ in range(passes):
            losses = [sight.loss(hidden_MD, shown) for hidden_MD, shown in seen]
            optimiser.zero_grad()
            torch.stack(losses).mean().backward()
            replicas.average_gradients(weights)
            optimiser.step()


def train_language(
    folder: Path,
    decoder: QwenDecoder,
    clips: Mapping[str, Sequence[CachedClip]],
    tokenizer: Tokenizer,
    settings: TrainSettings,
    language: LanguageSettings,
    *,
    validate_every: int = 200,
    on_step: Callable[[int, float], None] | None = None,
) -> int:
    """Run or continue a language stage on cached clips of the splits ``train`` and ``validation``; gives the steps."""
    torch.manual_seed(settings.seed)
    priors = answer_priors(clips["train"], language, settings.seed)
    feed = DialogueFeed(clips["train"], tokenizer, language, settings.seed, priors=priors)
    asked = DialogueFeed(clips["validation"], tokenizer, language, _CHECK_SEED, priors=priors)
    checks = [sample for i in range(min(10, len(clips["validation"]))) for sample in asked.make(i)]
    sight = TokenReading(decoder.spec).to(decoder.device) if language.sight_weight > 0 else None
    if sight is not None and not (folder / "state.pt").exists():
        settle_sight(sight, decoder, feed.get)

    def losses_at(step: int) -> Mapping[str, Tensor]:
        samples = feed.get(step)
        with torch.autocast(decoder.device.type, torch.bfloat16):
            return mean_losses([dialogue_losses(decoder, sample, language, sight) for sample in samples])

    def validate() -> Mapping[str, float]:
        with torch.autocast(decoder.device.type, torch.bfloat16):
            return answer_accuracy(decoder, checks, language.grounding_weight > 0, sight)

    return fit(
        folder,
        {"language": decoder} | ({} if sight is None else {"sight": sight}),
        losses_at,
        settings,
        validate=validate,
        validate_every=validate_every,
        on_step=on_step,
    )


@torch.no_grad()
def answer_accuracy(
    decoder: QwenDecoder, dialogues: Sequence[Dialogue], grounded: bool = False, sight: TokenReading | None = None
) -> dict[str, float]:
    """Share of questions of each kind whose every answer token is the likeliest (teacher forcing), and of those of all
    kinds that are asked with all chunks ``dense`` and with some ``pooled``.

    ``grounding`` is the mean share of attention that the grounded heads have on the evidence, ``sees NAME`` the F1 of
    what ``sight`` reads off visual tokens.
    """
    rights: dict[str, list[bool]] = {}
    by_level: dict[str, list[bool]] = {}
    found: list[Tensor] = []
    seen: list[tuple[Tensor, Tensor]] = []
    for dialogue in dialogues:
        is_answer = dialogue.target_T >= 0
        reading = read_dialogue(decoder, dialogue, grounded)
        if reading.miss_LHE is not None:
            found.append(reading.miss_LHE.neg().exp().flatten().cpu())
        if sight is not None and dialogue.shown is not None:
            seen.append((sight(reading.hidden_MD, dialogue.shown).cpu(), dialogue.shown.set_SH))
        is_right_A = reading.logits_AV.argmax(dim=-1).cpu() == dialogue.target_T[is_answer]
        owners_A = dialogue.owner_T[is_answer]
        for owner, (kind, is_pooled) in enumerate(zip(dialogue.kinds, dialogue.is_pooled, strict=True)):
            is_right = bool(is_right_A[owners_A == owner].all())
            rights.setdefault(kind, []).append(is_right)
            by_level.setdefault("pooled" if is_pooled else "dense", []).append(is_right)
    shares = {kind: sum(right) / len(right) for kind, right in (*sorted(rights.items()), *sorted(by_level.items()))}
    if found:
        shares["grounding"] = float(torch.cat(found).mean())
    if seen:
        logits_SH, sets_SH = (torch.cat(parts) for parts in zip(*seen, strict=True))
        shares |= {f"sees {name}": f1 for name, f1 in set_scores(logits_SH, sets_SH).items() if name in _TOLD_SIGHTS}
    return shares
