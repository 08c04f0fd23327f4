"""Stages 3 and 4: the decoder learns to answer from visual tokens, as it will be asked: from KV it cannot change.

Beside the answer the decoder learns where to look: some heads of the middle layers are told, for the token from which
an answer begins, at which frame groups it can be seen (``grounding``). Answers alone teach that slowly, the more so the
longer the video. And it learns what it looks at: what each visual token shows is read off its hidden states halfway up
(``sight``, see ``token_labels``), and when and where that is (``clock``, ``place``). A sample is made in
``language_samples``; ``dialogue_attention`` is the pass over it.

Shapes: M tokens of prefix and video, A tokens of answers, E questions whose evidence is known, S tokens that are read,
H heads or what there is to be told of them, D width.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional

from videoxl2.language import QwenDecoder
from videoxl2.tokenizer import Tokenizer
from videoxl2.training import replicas
from videoxl2.training.dialogue_attention import read_dialogue
from videoxl2.training.dialogues import CachedClip
from videoxl2.training.label_sets import set_scores
from videoxl2.training.language_samples import Dialogue, DialogueFeed, LanguageSettings, answer_priors
from videoxl2.training.token_labels import TokenReading
from videoxl2.training.trainer import TrainSettings, fit

_CHECK_SEED = 999
_SETTLING_RATE = 5e-3
_LEVEL_WEIGHT = 0.3
_TOLD_SIGHTS = ("kind+colour", "shirt+action", "kind+action")
"""What validation tells of what tokens show."""


def dialogue_losses(
    decoder: QwenDecoder, dialogue: Dialogue, settings: LanguageSettings, sight: TokenReading | None = None
) -> dict[str, Tensor]:
    """``answer``: cross-entropy of the answers among all that training may show, each question alike; ``level``: how
    much less likely than wrong ones those are that it must not show; ``grounding`` where layers are told to look;
    ``sight``, ``clock`` and ``place`` where a head reads what tokens show, when and where."""
    reading = read_dialogue(decoder, dialogue, settings.grounding_weight > 0)
    is_answer = dialogue.target_T >= 0
    open_AV, level = _open_answers(reading.logits_AV.float(), dialogue)
    targets = dialogue.target_T[is_answer].to(open_AV.device)
    losses_A = functional.cross_entropy(open_AV, targets, reduction="none")
    losses = {"answer": (losses_A * dialogue.weight_T[is_answer].to(open_AV.device)).sum(), "level": level}
    if settings.grounding_weight > 0:
        # A video without known evidence counts as found, so that the mean over samples has one of each.
        miss = open_AV.new_zeros(())
        if reading.miss_LHE is not None:
            look_E = torch.cat([asking.look_E for asking in dialogue.askings]).to(open_AV.device)
            miss = reading.miss_LHE.mean(dim=(0, 1)) @ (look_E / look_E.sum())
        losses["grounding"] = settings.grounding_weight * miss
    if sight is not None and dialogue.shown is not None:
        told = sight(reading.hidden_MD, dialogue.shown).losses(dialogue.shown)
        losses |= {name: settings.sight_weight * loss for name, loss in told.items()}
    return losses


def _open_answers(logits_AV: Tensor, dialogue: Dialogue) -> tuple[Tensor, Tensor]:
    """The logits without those answers that training must not show, and how far these are below wrong ones.

    Silence alone does not undo what earlier steps have taught: who has learned that nobody wears brown under red is not
    contradicted. But where somebody in red wears grey, brown is no less likely than blue.
    """
    place_N, token_N = dialogue.silent_N2.T.to(logits_AV.device)
    number_R, other_R = dialogue.beside_R2.T.to(logits_AV.device)
    is_answer = (dialogue.target_T >= 0).to(logits_AV.device)
    row_N = is_answer.cumsum(0)[place_N] - 1
    silent_N, wrong_R = logits_AV[row_N, token_N], logits_AV[row_N[number_R], other_R].detach()
    count_N = torch.zeros_like(silent_N).index_add(0, number_R, torch.ones_like(wrong_R))
    wrong_N = torch.zeros_like(silent_N).index_add(0, number_R, wrong_R) / count_N.clamp(min=1)
    short_N = functional.relu(wrong_N - silent_N) * (count_N > 0)
    weight_N = dialogue.weight_T.to(short_N)[place_N] / (place_N[:, None] == place_N).sum(1).clamp(min=1)
    never = logits_AV.new_full((), -math.inf)
    return logits_AV.index_put((row_N, token_N), never), _LEVEL_WEIGHT * (short_N @ weight_N)


def mean_losses(samples: Sequence[Mapping[str, Tensor]]) -> dict[str, Tensor]:
    """The losses of several samples by name, each the mean of theirs."""
    return {name: torch.stack([losses[name] for losses in samples]).mean() for name in samples[0]}


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
            losses = [sum(sight(hidden_MD, shown).losses(shown).values()) for hidden_MD, shown in seen]
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
    sight: TokenReading | None = None,
    validate_every: int = 200,
    on_step: Callable[[int, float], None] | None = None,
) -> int:
    """Run or continue a language stage on cached clips of the splits ``train`` and ``validation``; gives the steps.

    ``sight`` is the head that the stage before has taught; a new one learns to read before the decoder learns from it.
    """
    torch.manual_seed(settings.seed)
    priors = answer_priors(clips["train"], language, settings.seed)
    feed = DialogueFeed(clips["train"], tokenizer, language, settings.seed, priors=priors)
    asked = DialogueFeed(clips["validation"], tokenizer, language, _CHECK_SEED, priors=priors)
    checks = [sample for i in range(min(10, len(clips["validation"]))) for sample in asked.make(i)]
    if language.sight_weight == 0:
        sight = None
    elif sight is None:
        sight = TokenReading(decoder.spec, clips["train"][0].visual_GPD.shape[1]).to(decoder.device)
        if not (folder / "state.pt").exists():
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

    Nobody knows every digit of a time: of each ``when`` the share of its tokens counts. Questions whose options are
    times are in ``choice`` and in ``choice of times``, those about ``several videos`` in their kind and there, and so
    are those whose answer names what training was ``never shown``.

    ``grounding`` is the mean share of attention that the grounded heads have on the evidence, ``sees NAME`` the F1 of
    what ``sight`` reads off visual tokens, ``sees time`` the share of the times' digits that it reads rightly and
    ``sees place`` that of the tokens whose row and column it does.
    """
    rights: dict[str, list[float]] = {}
    by_level: dict[str, list[float]] = {}
    found: list[Tensor] = []
    seen: list[tuple[Tensor, Tensor]] = []
    digits: list[Tensor] = []
    cells: list[Tensor] = []
    for dialogue in dialogues:
        is_answer = dialogue.target_T >= 0
        reading = read_dialogue(decoder, dialogue, grounded)
        if reading.miss_LHE is not None:
            found.append(reading.miss_LHE.neg().exp().flatten().cpu())
        if sight is not None and dialogue.shown is not None:
            shown, read = dialogue.shown, sight(reading.hidden_MD, dialogue.shown)
            seen.append((read.set_SH.cpu(), shown.set_SH))
            digits.append((read.digit_SNX.argmax(dim=-1).cpu() == shown.digit_SN).flatten())
            cells.append(read.cells().cpu() == shown.cell_S)
        is_right_A = reading.logits_AV.argmax(dim=-1).cpu() == dialogue.target_T[is_answer]
        owners_A = dialogue.owner_T[is_answer]
        asked = zip(dialogue.kinds, dialogue.is_pooled, dialogue.times_offered, dialogue.never_shown, strict=True)
        for owner, (kind, is_pooled, offers_times, never_shown) in enumerate(asked):
            mine = is_right_A[owners_A == owner].float()
            right = float(mine.mean() if kind == "when" else mine.min())
            rights.setdefault(kind, []).append(right)
            if dialogue.is_of_videos:
                rights.setdefault("several videos", []).append(right)
            if offers_times:
                rights.setdefault("choice of times", []).append(right)
            if never_shown:
                rights.setdefault("never shown", []).append(right)
            by_level.setdefault("pooled" if is_pooled else "dense", []).append(right)
    shares = {kind: sum(right) / len(right) for kind, right in (*sorted(rights.items()), *sorted(by_level.items()))}
    if found:
        shares["grounding"] = float(torch.cat(found).mean())
    if seen:
        logits_SH, sets_SH = (torch.cat(parts) for parts in zip(*seen, strict=True))
        shares |= {f"sees {name}": f1 for name, f1 in set_scores(logits_SH, sets_SH).items() if name in _TOLD_SIGHTS}
        shares["sees time"] = float(torch.cat(digits).float().mean())
        shares["sees place"] = float(torch.cat(cells).float().mean())
    return shares
