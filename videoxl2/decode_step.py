"""A decoding step whose shapes and addresses never change, so that it can be compiled or replayed as a CUDA graph.

A step of a large model is some hundred small operations, each of which the host has to start: at batch 1 a GPU may wait
for the host. Here the tokens to come get their room in the cache at the start, a step reads that room whole under a
small mask, and what changes from step to step lies in tensors that stay where they are. The numbers are those of the
step that grows with the cache (``questions``), in another order of summation.

Shapes: B questions, L layers, S = 2 (key, value), K KV heads, N query heads, R = N/K, M tokens of video and room,
O of them that belong to questions, Dh head width, V vocabulary.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from videoxl2.errors import ModelError
from videoxl2.kv import KVCache
from videoxl2.language import QwenDecoder, Stepping
from videoxl2.rotary import RotaryTable
from videoxl2.upload import put_numbers

Work = Callable[[], Tensor]


def choose_stepping(name: str, device: torch.device) -> Stepping:
    """The stepping of a name; ``ModelError`` where it cannot run on the device."""
    stepping = Stepping(name)
    if stepping is Stepping.GRAPH and device.type != "cuda":
        raise ModelError("decoding 'graph' needs a CUDA device")
    return stepping


class CudaGraphs:
    """The calls to CUDA that capture work, in one place so that a test can stand in for a GPU."""

    def capture(self, work: Work) -> Work:
        """The same work, recorded once and started as a whole; it must give the same result whenever it is repeated."""
        current, aside = torch.cuda.current_stream(), torch.cuda.Stream()
        aside.wait_stream(current)
        with torch.cuda.stream(aside):  # libraries set themselves up at their first call, which cannot be recorded
            work()
        current.wait_stream(aside)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            result = work()

        def replay() -> Tensor:
            graph.replay()
            return result.clone()  # the next replay writes into it

        return replay


class FixedStep:
    """One token for each of B questions at the end of a cache, again and again.

    ``owners`` says to which question each token behind the video's ``num_shared`` belongs, ``lengths`` how many each
    question has; up to ``num_steps`` tokens of each will follow, and the cache gets room for them. Questions that have
    ended may be given any token. The cache must not be used otherwise while steps are made.
    """

    def __init__(
        self,
        decoder: QwenDecoder,
        cache: KVCache,
        num_shared: int,
        owners: Sequence[int],
        lengths: Sequence[int],
        num_steps: int,
        stepping: Stepping,
        graphs: CudaGraphs | None = None,
    ) -> None:
        B, used, device = len(lengths), num_shared + len(owners), decoder.device
        end = used + B * num_steps
        longest = num_shared + max(lengths)
        cache.reserve(end, longest=longest)
        kv_LSKMDh = cache.slot(0, end)
        kv_LSKMDh[:, :, :, used:].zero_()  # masked values count nothing only if they are numbers
        self._ids_B = put_numbers([0] * B, device)
        self._positions_B = put_numbers([num_shared + length for length in lengths], device)
        self._slots_B = put_numbers(range(used, used + B), device)
        owners_O = put_numbers([*owners, *([-1] * (end - used))], device)
        self._own_BO = owners_O == put_numbers(range(B), device)[:, None]
        self._num_shared = num_shared
        self._is_first = True
        function = _compiled_step() if stepping is Stepping.COMPILE else fixed_step
        keys, values = ([kv_LSKMDh[layer, part] for layer in range(len(kv_LSKMDh))] for part in (0, 1))

        def work() -> Tensor:
            return function(decoder, keys, values, self._ids_B, self._positions_B, self._slots_B, self._own_BO)

        self._work: Work = work
        self._graphs = (graphs or CudaGraphs()) if stepping is Stepping.GRAPH else None

    def __call__(self, ids: Sequence[int]) -> Tensor:
        """Logits [B, V] after one more token of each question."""
        self._ids_B.copy_(put_numbers(ids, self._ids_B.device))
        if not self._is_first:
            self._positions_B.add_(1)
            self._slots_B.add_(len(ids))
        self._own_BO.scatter_(1, (self._slots_B - self._num_shared)[:, None], True)
        if self._is_first and self._graphs is not None:
            self._work = self._graphs.capture(self._work)
        self._is_first = False
        return self._work()


@torch.no_grad()
def fixed_step(
    decoder: QwenDecoder,
    keys: Sequence[Tensor],
    values: Sequence[Tensor],
    ids_B: Tensor,
    positions_B: Tensor,
    slots_B: Tensor,
    own_BO: Tensor,
) -> Tensor:
    """Put the tokens' keys and values into ``slots_B`` of each layer's [K, M, Dh]; logits [B, V] after them.

    A question sees the M - O tokens of the video and, of the O behind them, what ``own_BO`` lets it. Repeated with the
    same arguments it does the same again.
    """
    attention = _FixedAttention(decoder, keys, values, positions_B, slots_B, own_BO)
    hidden_BTD = decoder.run(decoder.embed_tokens(ids_B)[None], attention)
    return decoder.logits(hidden_BTD[0])


class _FixedAttention:
    """Attention over the whole room, written out: for a few queries the logits are small beside the keys."""

    def __init__(
        self,
        decoder: QwenDecoder,
        keys: Sequence[Tensor],
        values: Sequence[Tensor],
        positions_B: Tensor,
        slots_B: Tensor,
        own_BO: Tensor,
    ) -> None:
        self._keys, self._values, self._slots_B, self._hidden_BO = keys, values, slots_B, ~own_BO
        self._rotary = RotaryTable(positions_B, decoder.spec.head_dim, decoder.spec.rope_theta, decoder.dtype)

    def keep(self, layer: int, k_BKTDh: Tensor, v_BKTDh: Tensor) -> None:
        self._keys[layer].index_copy_(1, self._slots_B, self._rotary.rotate(k_BKTDh)[0])
        self._values[layer].index_copy_(1, self._slots_B, v_BKTDh[0])

    def attend(self, layer: int, q_BNTDh: Tensor) -> Tensor:
        keys_KMDh, values_KMDh = self._keys[layer], self._values[layer]
        q_NTDh = self._rotary.rotate(q_BNTDh)[0]
        K, (N, T, Dh), O = len(keys_KMDh), q_NTDh.shape, self._hidden_BO.shape[1]
        logits_KSM = q_NTDh.reshape(K, N // K * T, Dh) @ keys_KMDh.transpose(1, 2)
        logits_KRTM = logits_KSM.to(torch.float32).mul(Dh**-0.5).unflatten(1, (N // K, T))
        shared, own = logits_KRTM[..., :-O], logits_KRTM[..., -O:].masked_fill(self._hidden_BO, float("-inf"))
        weights_KRTM = torch.cat((shared, own), dim=-1).softmax(dim=-1).to(values_KMDh.dtype)
        return (weights_KRTM.flatten(1, 2) @ values_KMDh).reshape(1, N, T, Dh)


@functools.cache
def _compiled_step() -> Callable[..., Tensor]:
    """Compiled for each number of questions; lengths of cache and room may differ."""
    return torch.compile(fixed_step, dynamic=True)
