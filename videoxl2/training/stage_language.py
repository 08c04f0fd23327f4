"""Stages 3 and 4: the decoder learns to answer from visual tokens, as it will be asked: from KV it cannot change.

One sample is one stretch of footage with several questions. The video's tokens run under the mask of chunked prefill;
each question's tokens then see the video's keys and values (at new positions, some chunks pooled to sparse KV in stage
4) and themselves, never another question. That is exactly what ``prefill``, ``sparsify`` and ``assemble_cache`` do, in
one differentiable pass.

Beside the answer the decoder learns where to look: some heads of the middle layers are told, for the token from which
an answer begins, at which frame groups it can be seen (``grounding``). Answers alone teach that slowly, the more so the
longer the video. And it learns what it looks at: what each visual token shows is read off its hidden states halfway up
(``sight``, see ``token_labels``).

Shapes: M tokens of prefix and video, C entries of the assembled cache, T tokens of all questions, E questions whose
evidence is known, K KV heads, N query heads, D width, Dh head width.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
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
from videoxl2.training.questions import QA
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
    """What samples look like. ``pooled`` is the share of samples in which some chunks are sparse.

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
class Dialogue:
    """One sample as tokens. ``target_T`` is the next token where that is part of an answer, else -100; ``weight_T``
    weighs it. ``owner_T`` is the question that a token belongs to.
    ``evidence_EC`` says which entries of the cache show what follows token ``ask_E``; ``look_E`` weighs it, so that
    each question counts alike. ``shown`` is what visual tokens show, where that is taught.

    ``tiles`` is who sees whom while the video is prefilled, ``prefill_position_M`` its positions then; ``pool`` makes
    the cache from its tokens; ``cache_position_C`` and ``position_T`` are positions while questions are asked.
    """

    layout: TokenLayout
    visual_GPD: Tensor
    tiles: VideoTiles
    prefill_position_M: Tensor
    pool: Pooling | None
    cache_position_C: Tensor
    token_T: Tensor
    position_T: Tensor
    owner_T: Tensor
    target_T: Tensor
    weight_T: Tensor
    ask_E: Tensor
    evidence_EC: Tensor
    look_E: Tensor
    kinds: tuple[str, ...] = field(default=())
    shown: TokenTargets | None = None


def make_dialogue(
    tokenizer: Tokenizer,
    stretch: Stretch,
    questions: Sequence[QA],
    settings: LanguageSettings,
    rng: np.random.Generator,
    levels: Sequence[bool] | None = None,
) -> Dialogue:
    """Tokens, masks and positions of a sample; ``levels`` says of each chunk whether it is dense, None: all are."""
    prefix = tokenizer.prefix_ids()
    P = stretch.visual_GPD.shape[1]
    layout = TokenLayout.build(prefix, [tokenizer.timestamp_ids(t) for t in stretch.times_s], P)
    M = layout.length
    gaps = np.zeros(M, np.int64)
    if rng.random() < settings.skip:
        # Far positions without far tokens: jumps between groups stand for footage that is not there.
        total = int(rng.integers(0, settings.max_skip))
        starts = [span.start for span in layout.spans]
        for cut in rng.choice(starts, int(rng.integers(1, 4))):
            gaps[cut:] += int(rng.integers(0, total // 3 + 1))
    positions_M = np.arange(M) + gaps
    pool = None if levels is None else _pooling(layout, levels)
    kept = np.arange(M) if pool is None else pool.token_CJ[:, 0].numpy()
    cache_positions = np.arange(len(kept)) + (gaps[kept] if rng.random() < 0.5 else 0)
    next_position = int(cache_positions[-1]) + 1
    tokens: list[int] = []
    positions: list[int] = []
    owners: list[int] = []
    targets: list[int] = []
    weights: list[float] = []
    asks: list[int] = []
    evidence: list[np.ndarray] = []
    looks: list[float] = []
    group_C = _groups_of_tokens(layout)[kept]
    end = tokenizer.eos_ids
    stop = tokenizer.token_id("<|im_end|>")
    assert stop in end
    for owner, item in enumerate(questions):
        suffix = tokenizer.prompt_parts(item.question)[1]
        answer = [*tokenizer.encode(item.answer), stop]
        ids = [*suffix, *answer[:-1]]
        for place, look_G, share_of_looks in _looks(item, evidence_groups(stretch, item), answer, tokenizer):
            asks.append(len(tokens) + len(suffix) - 1 + place)
            evidence.append(np.concatenate((look_G, [False]))[group_C])
            looks.append(share_of_looks)
        is_long = item.kind in ("describe", "events")
        share = (settings.long_answer_weight if is_long else 1.0) / len(answer)
        tokens += ids
        positions += range(next_position, next_position + len(ids))
        owners += [owner] * len(ids)
        targets += [-100] * (len(suffix) - 1) + answer
        weights += [0.0] * (len(suffix) - 1) + [share] * len(answer)
    return Dialogue(
        layout,
        torch.from_numpy(np.ascontiguousarray(stretch.visual_GPD)).float(),
        tile_video(layout, PrefillSettings()),
        torch.from_numpy(positions_M),
        pool,
        torch.from_numpy(cache_positions),
        torch.tensor(tokens),
        torch.tensor(positions),
        torch.tensor(owners),
        torch.tensor(targets),
        torch.tensor(weights) / max(1, len(questions)),
        torch.tensor(asks, dtype=torch.long),
        torch.from_numpy(np.stack(evidence)) if evidence else torch.zeros(0, len(kept), dtype=torch.bool),
        torch.tensor(looks),
        tuple(item.kind for item in questions),
        None if stretch.labels is None else choose_tokens(stretch.labels, layout, rng),
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
    levels = random_levels(groups, rng) if rng.random() < settings.pooled else None
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


class DialogueAttention:
    """The attention of one sample: rows [0, M) are the video, rows [M, M + T) all questions.

    ``misses`` gets, from each grounded layer, how unlikely each of its told heads is to look at the evidence, [H, E].
    """

    def __init__(self, decoder: QwenDecoder, dialogue: Dialogue, grounded: bool = False) -> None:
        spec, device = decoder.spec, decoder.device

        def table(positions: Tensor) -> RotaryTable:
            return RotaryTable(positions.to(device), spec.head_dim, spec.rope_theta, decoder.dtype)

        self._num_video = dialogue.layout.length
        self._prefill = table(dialogue.prefill_position_M)
        self._cache = table(dialogue.cache_position_C)
        self._asked = table(dialogue.position_T)
        self._pool = dialogue.pool
        self._tiles = dialogue.tiles.to(device)
        owner_T = dialogue.owner_T.to(device)
        T, C = len(owner_T), len(dialogue.cache_position_C)
        own_TT = (owner_T[:, None] == owner_T[None, :]).tril()
        self._allowed_TX = torch.cat((own_TT.new_ones(T, C), own_TT), dim=1)
        self._bias: Tensor | None = None
        self._grounded = grounded_layers(spec.num_layers) if grounded and len(dialogue.ask_E) else ()
        self._ask_E = dialogue.ask_E.to(device)
        self._evidence_EC = dialogue.evidence_EC.to(device)
        self.misses: list[Tensor] = []

    def keep(self, layer: int, k_BKTDh: Tensor, v_BKTDh: Tensor) -> None:
        M = self._num_video
        keys, values = k_BKTDh[:, :, :M], v_BKTDh[:, :, :M]
        self._video = (self._prefill.rotate(keys), values)
        if self._pool is not None:
            keys, values = self._pool(keys), self._pool(values)
        self._seen = (
            torch.cat((self._cache.rotate(keys), self._asked.rotate(k_BKTDh[:, :, M:])), dim=2),
            torch.cat((values, v_BKTDh[:, :, M:]), dim=2),
        )

    def attend(self, layer: int, q_BNTDh: Tensor) -> Tensor:
        M = self._num_video
        video = self._tiles.attend(self._prefill.rotate(q_BNTDh[:, :, :M]), *self._video)
        q_BNTDh = self._asked.rotate(q_BNTDh[:, :, M:])
        if layer in self._grounded:
            self.misses.append(self._miss(q_BNTDh))
        return torch.cat((video, self._attend_asked(q_BNTDh)), dim=2)

    def _attend_asked(self, q_BNTDh: Tensor) -> Tensor:
        """The questions' rows; query heads that share a KV head are more rows of it, and B is 1."""
        keys, values = self._seen
        K, T = keys.shape[1], q_BNTDh.shape[2]
        if self._bias is None:
            self._bias = mask_bias(self._allowed_TX, pass_dtype(q_BNTDh)).repeat(q_BNTDh.shape[1] // K, 1)[None]
        rows = q_BNTDh.unflatten(1, (K, -1)).flatten(2, 3)
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


@dataclass(frozen=True)
class Reading:
    """What one pass over a sample gives: logits [A, V] of the positions whose next token is part of an answer, and of
    each grounded layer minus the logarithm of the attention on the evidence, [H, E]; ``hidden_MD`` is what the decoder
    knows of prefix and video halfway up."""

    logits_AV: Tensor
    misses: list[Tensor]
    hidden_MD: Tensor


def read_dialogue(decoder: QwenDecoder, dialogue: Dialogue, grounded: bool = False) -> Reading:
    """The pass over a sample; with ``grounded`` it is noted where the told heads look."""
    layout, device = dialogue.layout, decoder.device
    video = [decoder.embed(layout.prefix_ids)]
    visual_GPD = dialogue.visual_GPD.to(device)
    for ids, tokens_PD in zip(layout.time_ids, visual_GPD, strict=True):
        video += [decoder.embed(ids), tokens_PD.to(decoder.dtype)]
    embeds_XD = torch.cat((*video, decoder.embed(dialogue.token_T)))
    attention = DialogueAttention(decoder, dialogue, grounded)
    halfway: list[Tensor] = []

    def watch(layer: int, hidden_BXD: Tensor) -> None:
        if layer == read_layer(decoder.spec):
            halfway.append(hidden_BXD[0, : layout.length])

    hidden_BXD = decoder.run(embeds_XD[None], attention, watch)
    # Indices from the CPU's copy: a mask on the device would make the shape depend on values that lie there.
    answers_A = torch.nonzero(dialogue.target_T >= 0)[:, 0].to(device)
    return Reading(
        decoder.logits(hidden_BXD[0, layout.length :].index_select(0, answers_A)), attention.misses, halfway[0]
    )


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
        if reading.misses:
            look_E = dialogue.look_E.to(logits_AV.device)
            miss = torch.stack(reading.misses).mean(dim=(0, 1)) @ (look_E / look_E.sum())
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
    """Share of questions of each kind whose every answer token is the likeliest (teacher forcing).

    ``grounding`` is the mean share of attention that the grounded heads have on the evidence, ``sees NAME`` the F1 of
    what ``sight`` reads off visual tokens.
    """
    right: dict[str, int] = {}
    total: dict[str, int] = {}
    found: list[Tensor] = []
    seen: list[tuple[Tensor, Tensor]] = []
    for dialogue in dialogues:
        is_answer = dialogue.target_T >= 0
        reading = read_dialogue(decoder, dialogue, grounded)
        found += [miss.neg().exp().flatten().cpu() for miss in reading.misses]
        if sight is not None and dialogue.shown is not None:
            seen.append((sight(reading.hidden_MD, dialogue.shown).cpu(), dialogue.shown.set_SH))
        guesses_A = reading.logits_AV.argmax(dim=-1).cpu()
        owners_A, targets_A = dialogue.owner_T[is_answer], dialogue.target_T[is_answer]
        for owner, kind in enumerate(dialogue.kinds):
            mine = owners_A == owner
            total[kind] = total.get(kind, 0) + 1
            right[kind] = right.get(kind, 0) + int(bool((guesses_A[mine] == targets_A[mine]).all()))
    shares = {kind: right[kind] / total[kind] for kind in sorted(total)}
    if found:
        shares["grounding"] = float(torch.cat(found).mean())
    if seen:
        logits_SH, sets_SH = (torch.cat(parts) for parts in zip(*seen, strict=True))
        shares |= {f"sees {name}": f1 for name, f1 in set_scores(logits_SH, sets_SH).items() if name in _TOLD_SIGHTS}
    return shares
