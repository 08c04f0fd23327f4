"""Qwen2.5 decoder with an explicit cache (``reference`` section 1.7).

A pass runs the layers; what each layer's queries see is decided by the ``LayerAttention`` that is given, so that
chunked prefill, question prefill, decoding and training are the same layers with another attention.

Shapes: B batch, T tokens, D width, V vocabulary, N query heads, K KV heads, Dh head width.
"""

from __future__ import annotations

import enum
from collections.abc import Callable, Sequence
from typing import Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional

from videoxl2.attention import AttentionBackend, BiasReuse, attend
from videoxl2.config import LanguageSpec
from videoxl2.kv import KVCache
from videoxl2.rotary import RotaryTable
from videoxl2.upload import put, put_numbers


class LayerAttention(Protocol):
    """What one pass does with each layer's projections. Queries and keys arrive before rotation."""

    def keep(self, layer: int, k_BKTDh: Tensor, v_BKTDh: Tensor) -> None:
        """Take the layer's keys and values; called before ``attend`` of the same layer."""

    def attend(self, layer: int, q_BNTDh: Tensor) -> Tensor:
        """The attended values [B, N, T, Dh] of the layer's queries."""
        ...


class Stepping(enum.StrEnum):
    """How the tokens of an answer after the first are made.

    ``eager``: by attention that grows with the cache. The others by ``decode_step``, whose shapes stay: ``fixed`` as it
    is, ``compile`` compiled by torch, ``graph`` replayed as a CUDA graph.
    """

    EAGER = "eager"
    FIXED = "fixed"
    COMPILE = "compile"
    GRAPH = "graph"


class RMSNorm(nn.Module):
    """Root-mean-square norm, computed in float32."""

    def __init__(self, width: int, eps: float) -> None:
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.empty(width))

    def forward(self, x: Tensor) -> Tensor:
        x32 = x.to(torch.float32)
        return self.weight * (x32 * torch.rsqrt(x32.square().mean(-1, keepdim=True) + self.eps)).to(x.dtype)


class DecoderAttention(nn.Module):
    """Projections of one layer's grouped-query attention."""

    def __init__(self, spec: LanguageSpec) -> None:
        super().__init__()
        self.head_dim = spec.head_dim
        self.q_proj = nn.Linear(spec.width, spec.num_heads * spec.head_dim)
        self.k_proj = nn.Linear(spec.width, spec.num_kv_heads * spec.head_dim)
        self.v_proj = nn.Linear(spec.width, spec.num_kv_heads * spec.head_dim)
        self.o_proj = nn.Linear(spec.num_heads * spec.head_dim, spec.width, bias=False)

    def queries(self, x_BTD: Tensor) -> Tensor:
        return self._heads(self.q_proj(x_BTD))

    def keys_values(self, x_BTD: Tensor) -> tuple[Tensor, Tensor]:
        return self._heads(self.k_proj(x_BTD)), self._heads(self.v_proj(x_BTD))

    def output(self, attended_BNTDh: Tensor) -> Tensor:
        return self.o_proj(attended_BNTDh.transpose(1, 2).flatten(2))

    def _heads(self, x_BTD: Tensor) -> Tensor:
        return x_BTD.unflatten(2, (-1, self.head_dim)).transpose(1, 2)


class DecoderMLP(nn.Module):
    """SwiGLU."""

    def __init__(self, spec: LanguageSpec) -> None:
        super().__init__()
        self.gate_proj = nn.Linear(spec.width, spec.mlp_width, bias=False)
        self.up_proj = nn.Linear(spec.width, spec.mlp_width, bias=False)
        self.down_proj = nn.Linear(spec.mlp_width, spec.width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.down_proj(functional.silu(self.gate_proj(x)) * self.up_proj(x))


class DecoderLayer(nn.Module):
    """Pre-norm decoder layer."""

    def __init__(self, spec: LanguageSpec) -> None:
        super().__init__()
        self.input_layernorm = RMSNorm(spec.width, spec.rms_norm_eps)
        self.self_attn = DecoderAttention(spec)
        self.post_attention_layernorm = RMSNorm(spec.width, spec.rms_norm_eps)
        self.mlp = DecoderMLP(spec)

    def forward(self, layer: int, hidden_BTD: Tensor, attention: LayerAttention) -> Tensor:
        normed_BTD = self.input_layernorm(hidden_BTD)
        attention.keep(layer, *self.self_attn.keys_values(normed_BTD))
        attended = attention.attend(layer, self.self_attn.queries(normed_BTD))
        hidden_BTD = hidden_BTD + self.self_attn.output(attended)
        return hidden_BTD + self.mlp(self.post_attention_layernorm(hidden_BTD))


class QwenDecoder(nn.Module):
    """The decoder: embedding, layers, final norm, head."""

    def __init__(self, spec: LanguageSpec) -> None:
        super().__init__()
        self.spec = spec
        self.embed_tokens = nn.Embedding(spec.vocab_size, spec.width)
        self.layers = nn.ModuleList(DecoderLayer(spec) for _ in range(spec.num_layers))
        self.norm = RMSNorm(spec.width, spec.rms_norm_eps)
        self.lm_head = nn.Linear(spec.width, spec.vocab_size, bias=False)
        self.backend = AttentionBackend.SDPA
        self.stepping = Stepping.EAGER
        self.tie_head()

    def tie_head(self) -> None:
        """Share the head with the embedding where the checkpoint says so; again needed after weights are assigned."""
        if self.spec.tied_head:
            self.lm_head.weight = self.embed_tokens.weight

    @property
    def device(self) -> torch.device:
        return self.embed_tokens.weight.device

    @property
    def dtype(self) -> torch.dtype:
        return self.embed_tokens.weight.dtype

    def embed(self, ids: list[int] | tuple[int, ...] | Tensor) -> Tensor:
        """Token embeddings [..., D] of ids."""
        ids_T = put(ids, self.device) if isinstance(ids, Tensor) else put_numbers(ids, self.device)
        return self.embed_tokens(ids_T.to(torch.long))

    def rotary(self, start: int, end: int) -> RotaryTable:
        """The rotation of positions [start, end)."""
        positions_T = torch.arange(start, end, device=self.device)
        return RotaryTable(positions_T, self.spec.head_dim, self.spec.rope_theta, self.dtype)

    def run(
        self, embeds_BTD: Tensor, attention: LayerAttention, watch: Callable[[int, Tensor], None] | None = None
    ) -> Tensor:
        """All layers and the final norm: hidden states [B, T, D]. ``watch`` is shown what each layer puts out."""
        hidden_BTD = embeds_BTD
        for index, layer in enumerate(self.layers):
            hidden_BTD = layer(index, hidden_BTD, attention)
            if watch is not None:
                watch(index, hidden_BTD)
        return self.norm(hidden_BTD)

    def run_keys_values(self, embeds_BTD: Tensor, attention: LayerAttention) -> None:
        """Only what a cache needs: of the last layer no more than keys and values are computed."""
        hidden_BTD = embeds_BTD
        for index, layer in enumerate(self.layers[:-1]):
            hidden_BTD = layer(index, hidden_BTD, attention)
        last = self.layers[-1]
        attention.keep(len(self.layers) - 1, *last.self_attn.keys_values(last.input_layernorm(hidden_BTD)))  # type: ignore[union-attr, operator]

    def forward(self, embeds_BTD: Tensor) -> Tensor:
        """Logits [B, T, V] of whole sequences from position 0 under full causal attention, without a cache."""
        return self.logits(self.run(embeds_BTD, CausalAttention(self, embeds_BTD.shape[1])))

    def extend(self, cache: KVCache, embeds_TD: Tensor) -> Tensor:
        """Append tokens that see everything in ``cache`` and each other causally; hidden states [T, D]."""
        end = cache.length + embeds_TD.shape[0]
        cache.reserve(end)
        hidden_BTD = self.run(embeds_TD[None], CachedAttention(self, cache, end))
        cache.advance(end)
        return hidden_BTD[0]

    def logits(self, hidden: Tensor) -> Tensor:
        """Logits [..., V] of hidden states; give only the positions that are needed."""
        return self.lm_head(hidden)


class CausalAttention:
    """Full causal attention inside the pass; nothing is kept."""

    def __init__(self, decoder: QwenDecoder, num_tokens: int) -> None:
        self._rotary = decoder.rotary(0, num_tokens)
        self._backend = decoder.backend

    def keep(self, layer: int, k_BKTDh: Tensor, v_BKTDh: Tensor) -> None:
        self._keys, self._values = self._rotary.rotate(k_BKTDh), v_BKTDh

    def attend(self, layer: int, q_BNTDh: Tensor) -> Tensor:
        return attend(self._rotary.rotate(q_BNTDh), self._keys, self._values, causal=True, backend=self._backend)


class GapAttention:
    """Causal attention of tokens at several places of a cache whose other places are filled, or will be.

    ``gaps`` (at least one) are the places [start, end) of the pass's tokens, one after another. A token sees all that
    lies before it in the cache, as if it had been appended when the cache ended there. ``arrive`` is called before a
    layer's other places are looked at, and returns when they are filled.
    """

    def __init__(
        self, decoder: QwenDecoder, cache: KVCache, gaps: Sequence[tuple[int, int]], arrive: Callable[[int], None]
    ) -> None:
        self._cache, self._gaps, self._arrive, self._backend = cache, gaps, arrive, decoder.backend
        self._sizes = [end - start for start, end in gaps]
        positions_T = torch.cat([torch.arange(start, end, device=decoder.device) for start, end in gaps])
        self._rotary = RotaryTable(positions_T, decoder.spec.head_dim, decoder.spec.rope_theta, decoder.dtype)
        self._reuse = [BiasReuse() for _ in gaps]

    def keep(self, layer: int, k_BKTDh: Tensor, v_BKTDh: Tensor) -> None:
        keys, values = self._rotary.rotate(k_BKTDh)[0].split(self._sizes, 1), v_BKTDh[0].split(self._sizes, 1)
        for (start, _), keys_KTDh, values_KTDh in zip(self._gaps, keys, values, strict=True):
            self._cache.write(layer, start, keys_KTDh, values_KTDh)

    def attend(self, layer: int, q_BNTDh: Tensor) -> Tensor:
        self._arrive(layer)
        parts = zip(self._gaps, self._rotary.rotate(q_BNTDh).split(self._sizes, 2), self._reuse, strict=True)
        return torch.cat(
            [
                attend(
                    queries,
                    self._cache.keys(layer, end)[None],
                    self._cache.values(layer, end)[None],
                    causal=True,
                    reuse=reuse,
                    backend=self._backend,
                )
                for (_, end), queries, reuse in parts
            ],
            dim=2,
        )


class CachedAttention:
    """Causal attention over a cache to which the pass's tokens are appended, ending at position ``end``."""

    def __init__(self, decoder: QwenDecoder, cache: KVCache, end: int) -> None:
        self._cache, self._start, self._end = cache, cache.length, end
        self._rotary = decoder.rotary(self._start, end)
        self._backend, self._reuse = decoder.backend, BiasReuse()

    def keep(self, layer: int, k_BKTDh: Tensor, v_BKTDh: Tensor) -> None:
        self._cache.write(layer, self._start, self._rotary.rotate(k_BKTDh)[0], v_BKTDh[0])

    def attend(self, layer: int, q_BNTDh: Tensor) -> Tensor:
        keys, values = self._cache.keys(layer, self._end)[None], self._cache.values(layer, self._end)[None]
        q = self._rotary.rotate(q_BNTDh)
        return attend(q, keys, values, causal=True, reuse=self._reuse, backend=self._backend)
