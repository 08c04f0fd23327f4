"""Attention of one pass of chunked prefill: who sees whom, in calls without a mask wherever a row sees a whole span.

Shapes: T tokens of the pass, M all tokens, K KV heads, N query heads, Dh head width, L layers, S = 2 (key, value).
"""

from __future__ import annotations

import bisect
import itertools
from collections.abc import Sequence

import torch
from torch import Tensor

from videoxl2.attention import AttentionBackend, BiasReuse, PartialAttention, attend, attend_part, attend_parts
from videoxl2.config import PrefillSettings
from videoxl2.kv import KVCache
from videoxl2.language import QwenDecoder
from videoxl2.layout import TokenLayout
from videoxl2.upload import put_numbers


class PendingKeys:
    """Keys before rotation of tokens that have been computed and not yet handed out in a chunk."""

    def __init__(self, num_layers: int) -> None:
        self._start = 0
        self._layers: list[list[Tensor]] = [[] for _ in range(num_layers)]

    def add(self, layer: int, k_KTDh: Tensor) -> None:
        self._layers[layer].append(k_KTDh)

    def take(self, cache: KVCache, start: int, stop: int) -> Tensor:
        """KV [L, 2, K, stop - start, Dh] of the oldest pending tokens, which begin at ``start``; forgets their keys."""
        assert start == self._start
        num_layers, count = len(self._layers), stop - start
        kv_LSKMDh: Tensor | None = None
        for layer, blocks in enumerate(self._layers):
            keys_KMDh = torch.cat(blocks, dim=1) if len(blocks) > 1 else blocks[0]
            if kv_LSKMDh is None:
                kv_LSKMDh = keys_KMDh.new_empty((num_layers, 2, len(keys_KMDh), count, keys_KMDh.shape[2]))
            kv_LSKMDh[layer, 0] = keys_KMDh[:, :count]
            kv_LSKMDh[layer, 1] = cache.values(layer, stop)[:, start:]
            self._layers[layer] = [keys_KMDh[:, count:]]
        assert kv_LSKMDh is not None
        self._start = stop
        return kv_LSKMDh


class SegmentAttention:
    """Attention of one pass: causal over everything, or after ``limit`` in the form of the chunked modes.

    Then the leading blocks, whose window begins with the video, stay causal. Every other row attends either to prefix
    and earlier timestamps, which ``summary`` keeps next to each other, and to the window, which ends with its block
    itself; or, as the timestamp rows of the exact mode do, to everything before it. No row is computed twice.
    """

    def __init__(self, decoder: QwenDecoder, cache: KVCache, summary: KVCache, stop: int, pending: PendingKeys) -> None:
        self._cache, self._summary, self._pending = cache, summary, pending
        self._start, self._stop = cache.length, stop
        self._rotary = decoder.rotary(self._start, stop)
        self._backend, self._reuse = decoder.backend, BiasReuse()
        self._summary_T = torch.arange(stop - self._start, device=cache.device)
        self._num_causal = stop - self._start
        self._blocks: list[_BlockRows] = []
        self._common = 0
        self._full_view_T: Tensor | None = None
        self._full_view: list[_FullViewRows] = []

    def limit(
        self,
        layout: TokenLayout,
        blocks: Sequence[tuple[int, int]],
        windows: Sequence[int],
        settings: PrefillSettings,
        run_tokens: int,
    ) -> None:
        """Let tokens of ``blocks`` see no group before their window's first but by its timestamp."""
        device, start, prefix = self._cache.device, self._start, layout.visual_start
        windowed = [(block, first) for block, first in zip(blocks, windows, strict=True) if first > 0]
        num_causal = len(blocks) - len(windowed)
        self._num_causal = layout.spans[blocks[num_causal - 1][1] - 1].end - start if num_causal else 0
        limited: list[list[int]] = []
        full_view: list[int] = []
        for (first, end), _ in windowed:
            times = layout.time_positions(first, end) if settings.mode == "chunked" else []
            limited.append(sorted(set(range(*layout.token_span(first, end))).difference(times)))
            full_view += times
        kept = layout.time_positions(blocks[0][0], blocks[-1][1])
        sizes = [*map(len, limited), len(full_view), len(kept)]
        *limited_T, full_view_T, kept_T = put_numbers([*itertools.chain(*limited), *full_view, *kept], device).split(
            sizes
        )
        num_rows = 0
        for ((_, end), window_first), rows_T in zip(windowed, limited_T, strict=True):
            time_first = 0
            if settings.mode == "bounded" and settings.timestamp_groups is not None:
                time_first = max(0, window_first - settings.timestamp_groups)
            window = (layout.spans[window_first].start, layout.spans[end - 1].end)
            time_span = (prefix + layout.num_time_tokens(time_first), prefix + layout.num_time_tokens(window_first))
            if not self._blocks:
                self._common = time_span[1]
            if time_first > 0:  # what the first block sees of the summary is not seen by all
                self._common = 0
            self._blocks.append(
                _BlockRows(
                    rows=(num_rows, num_rows + len(rows_T)),
                    seen=[(0, time_span[1])] if time_first == 0 else [(0, prefix), time_span],
                    window=window,
                    mask_TM=torch.arange(*window, device=device) <= rows_T[:, None],
                )
            )
            num_rows += len(rows_T)
        self._summary_T = kept_T - start
        if windowed:
            self._limited_T = torch.cat(limited_T) - start
        if full_view:
            self._full_view_T = full_view_T - start
            self._full_view = _plan_full_view(full_view, start, run_tokens, device)

    def keep(self, layer: int, k_BKTDh: Tensor, v_BKTDh: Tensor) -> None:
        keys, values = self._rotary.rotate(k_BKTDh)[0], v_BKTDh[0]
        self._pending.add(layer, k_BKTDh[0])
        self._cache.write(layer, self._start, keys, values)
        T = self._summary_T
        self._summary.write(layer, self._summary.length, keys.index_select(1, T), values.index_select(1, T))

    def attend(self, layer: int, q_BNTDh: Tensor) -> Tensor:
        q = self._rotary.rotate(q_BNTDh)
        every = (self._cache.keys(layer, self._stop)[None], self._cache.values(layer, self._stop)[None])
        if not self._blocks:
            return attend(q, *every, causal=True, reuse=self._reuse, backend=self._backend)
        out_BNTDh = torch.empty_like(q)
        if self._num_causal:
            free = _between(every, 0, self._start + self._num_causal)
            out_BNTDh[:, :, : self._num_causal] = attend(
                q[:, :, : self._num_causal], *free, causal=True, reuse=self._reuse, backend=self._backend
            )
        end = self._summary.length + len(self._summary_T)
        summary = (self._summary.keys(layer, end)[None], self._summary.values(layer, end)[None])
        out_BNTDh.index_copy_(2, self._limited_T, self._attend_windows(q, every, summary))
        if self._full_view_T is not None:
            queries = q.index_select(2, self._full_view_T)
            earlier = attend_part(queries, *_between(every, 0, self._start), backend=self._backend)
            found = [rows.attend(queries, every, earlier, self._backend) for rows in self._full_view]
            out_BNTDh.index_copy_(2, self._full_view_T, torch.cat(found, dim=2))
        return out_BNTDh

    def _attend_windows(self, q: Tensor, every: tuple[Tensor, Tensor], summary: tuple[Tensor, Tensor]) -> Tensor:
        """The limited rows, in order. What all of them see of the summary is attended in one call."""
        limited = q.index_select(2, self._limited_T)
        common = attend_part(limited, *_between(summary, 0, self._common), backend=self._backend)
        found = [block.attend(limited, every, summary, common, self._common, self._backend) for block in self._blocks]
        return torch.cat(found, dim=2)

    def finish(self) -> None:
        """Count the pass's tokens as held."""
        self._cache.advance(self._stop)
        self._summary.advance(self._summary.length + len(self._summary_T))


class _BlockRows:
    """The limited rows of one block, ``rows`` among those of its pass.

    They see the spans ``seen`` of the summary, and of the window's keys those that ``mask_TM`` lets them.
    """

    def __init__(
        self, rows: tuple[int, int], seen: list[tuple[int, int]], window: tuple[int, int], mask_TM: Tensor
    ) -> None:
        self._rows, self._seen, self._window = rows, seen, window
        self._mask_TM, self._reuse = mask_TM, BiasReuse()

    def attend(
        self,
        q: Tensor,
        every: tuple[Tensor, Tensor],
        summary: tuple[Tensor, Tensor],
        common: PartialAttention | None,
        num_common: int,
        backend: AttentionBackend,
    ) -> Tensor:
        """``common``, where it is given, is what the pass's rows attend to in the summary's first ``num_common``."""
        start, stop = self._rows
        seen = self._seen if common is None else [(max(first, num_common), end) for first, end in self._seen]
        return attend_parts(
            q[:, :, start:stop],
            [_between(summary, first, end) for first, end in seen if first < end],
            _between(every, *self._window),
            self._mask_TM,
            before=None if common is None else common.rows(start, stop),
            reuse=self._reuse,
            backend=backend,
        )


class _FullViewRows:
    """Timestamp rows that follow each other, ``rows`` among those of a pass, in which they see keys up to their own."""

    def __init__(self, rows: tuple[int, int], own: tuple[int, int], mask_TM: Tensor) -> None:
        self._rows, self._own, self._mask_TM, self._reuse = rows, own, mask_TM, BiasReuse()

    def attend(
        self,
        q: Tensor,
        every: tuple[Tensor, Tensor],
        earlier: PartialAttention | None,
        backend: AttentionBackend,
    ) -> Tensor:
        """``earlier`` is what all of them attend to before the pass."""
        start, stop = self._rows
        return attend_parts(
            q[:, :, start:stop],
            [],
            _between(every, *self._own),
            self._mask_TM,
            before=None if earlier is None else earlier.rows(start, stop),
            reuse=self._reuse,
            backend=backend,
        )


def _plan_full_view(
    positions: Sequence[int], pass_start: int, run_tokens: int, device: torch.device
) -> list[_FullViewRows]:
    """The timestamp rows of a pass, which stand at ``positions``, in runs over at least ``run_tokens`` each.

    A run's masked keys end with its last row, so that a long pass does not compute what its early rows may not see.
    """
    length = positions[-1] + 1 - pass_start
    num_runs = max(1, length // run_tokens)
    found: list[_FullViewRows] = []
    first = 0
    for run in range(1, num_runs + 1):
        end = bisect.bisect_left(positions, pass_start + length * run // num_runs)
        if end > first:
            own = (pass_start, positions[end - 1] + 1)
            mask_TM = torch.arange(*own, device=device) <= put_numbers(positions[first:end], device)[:, None]
            found.append(_FullViewRows((first, end), own, mask_TM))
        first = end
    return found


def _between(kv: tuple[Tensor, Tensor], start: int, stop: int) -> tuple[Tensor, Tensor]:
    return kv[0][:, :, start:stop], kv[1][:, :, start:stop]
