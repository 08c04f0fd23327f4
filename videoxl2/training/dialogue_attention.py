"""The pass of the decoder over a sample: the video as it is prefilled, and questions that see its keys and values.

Each question's tokens see the cache that they are asked of and themselves, never another question: what ``prefill``,
``sparsify`` and ``assemble_cache`` do, in one differentiable pass. Some heads can be watched: how much of their
attention falls on the evidence.

Shapes: M tokens of prefix and video, C entries of a cache, T tokens of questions that are asked of it, X entries and
tokens that they see, E questions whose evidence is known, A tokens of answers, L grounded layers, K KV heads, N query
heads, H of them told where to look, D width, Dh head width.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from videoxl2.language import QwenDecoder
from videoxl2.rotary import RotaryTable
from videoxl2.training.language_samples import Asking, Dialogue
from videoxl2.training.masked_attention import mask_bias, masked_attention, pass_dtype, without_autocast
from videoxl2.training.token_labels import read_layer


def grounded_layers(num_layers: int) -> tuple[int, int]:
    """The layers in which the query heads of KV head 0 are told where to look: some have read the question before, and
    some are left to make something of what is found."""
    return num_layers // 3, num_layers // 2


class AskingAttention:
    """What the tokens of one asking see: the cache, all headers, and of their own question what came before.

    Headers see what stands before them.

    ``misses`` gets, from each grounded layer, how unlikely each of its told heads is to look at the evidence, [H, E].
    """

    def __init__(self, decoder: QwenDecoder, asking: Asking, owner_T: Tensor, grounded: tuple[int, ...]) -> None:
        device = decoder.device
        self._cache = _rotary(decoder, asking.cache_position_C)
        self._asked = _rotary(decoder, asking.position_T)
        self._pool = asking.pool
        owner_T = owner_T.to(device)
        T, C = len(owner_T), len(asking.cache_position_C)
        is_header_T = owner_T < 0
        own_TT = ((owner_T[:, None] == owner_T[None, :]) | is_header_T).tril()
        cached_TC = own_TT.new_ones(T, C)
        cached_TC[is_header_T] = torch.arange(C, device=device) < asking.header_place_H.to(device)[:, None]
        self._allowed_TX = torch.cat((cached_TC, own_TT), dim=1)
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
