"""Attention of a training sample's video, tile by tile: what nobody sees is not computed, and gradients find back.

Chunked prefill lets a visual token see little of a long video, so a mask over all pairs of tokens is mostly wasted.
Here the visual tokens of one block are a tile with the few columns that they see; prefix and timestamp tokens, which
see everything earlier, are one tile of their own. Tiles are padded to one shape and computed as one batch. The kernels
of ``prefill`` do the same with less, but have no way back.

Shapes: B batch, N query heads, K KV heads, M tokens, Dh head width, Z tiles, R rows and C columns of a tile.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from videoxl2.config import PrefillSettings
from videoxl2.layout import TokenLayout, plan_chunks
from videoxl2.masked_prefill import Visibility
from videoxl2.training.masked_attention import mask_bias, masked_attention, pass_dtype

_Tile = tuple[Tensor, Tensor, Tensor]
"""Tokens that are rows, tokens that are columns, and which pairs may see each other."""


@dataclass(frozen=True, eq=False)
class TileSet:
    """Tiles of one shape: the tokens that are rows and columns of each, and which pairs may see each other.

    What pads a tile are rows that nobody reads and columns that nobody sees.
    """

    rows_ZR: Tensor
    columns_ZC: Tensor
    allowed_ZRC: Tensor

    def to(self, device: torch.device) -> TileSet:
        return TileSet(self.rows_ZR.to(device), self.columns_ZC.to(device), self.allowed_ZRC.to(device))

    def attend(self, q_BNMDh: Tensor, k_BKMDh: Tensor, v_BKMDh: Tensor) -> Tensor:
        """The rows' attention, [B, N, Z * R, Dh], with scale Dh^-0.5."""
        B, N, _, Dh = q_BNMDh.shape
        K = k_BKMDh.shape[1]
        (Z, R), C = self.rows_ZR.shape, self.columns_ZC.shape[1]

        def taken(x: Tensor, index: Tensor) -> Tensor:
            return x.index_select(2, index.flatten()).unflatten(2, index.shape)

        # Query heads that share a KV head are more rows of it, [B * Z, N/K * R, Dh] for each of the K.
        rows = (
            taken(q_BNMDh, self.rows_ZR).unflatten(1, (K, N // K)).permute(1, 0, 3, 2, 4, 5).reshape(K, B * Z, -1, Dh)
        )
        k, v = (taken(x, self.columns_ZC).transpose(0, 1).reshape(K, B * Z, C, Dh) for x in (k_BKMDh, v_BKMDh))
        bias = mask_bias(self.allowed_ZRC, pass_dtype(q_BNMDh)).repeat(B, N // K, 1)
        found = torch.stack([masked_attention(*head, bias) for head in zip(rows, k, v, strict=True)])
        return found.unflatten(2, (N // K, R)).unflatten(1, (B, Z)).permute(1, 0, 3, 2, 4, 5).reshape(B, N, Z * R, Dh)


@dataclass(frozen=True, eq=False)
class VideoTiles:
    """All rows of a video in tile sets; ``order_M`` says at which place of the sets' rows, one after another, token m
    stands."""

    sets: tuple[TileSet, ...]
    order_M: Tensor

    def to(self, device: torch.device) -> VideoTiles:
        return VideoTiles(tuple(tiles.to(device) for tiles in self.sets), self.order_M.to(device))

    def attend(self, q_BNMDh: Tensor, k_BKMDh: Tensor, v_BKMDh: Tensor) -> Tensor:
        """``attention.attend`` under ``masked_prefill.visibility_mask``, [B, N, M, Dh]."""
        found = [tiles.attend(q_BNMDh, k_BKMDh, v_BKMDh) for tiles in self.sets]
        return torch.cat(found, dim=2).index_select(2, self.order_M)


def tile_video(
    layout: TokenLayout, settings: PrefillSettings, segments: Sequence[tuple[int, int]] | None = None
) -> VideoTiles:
    """The tiles of a video: one per block for its visual tokens, and one for all other tokens.

    ``segments`` are runs [first, end) of frame groups that are prefilled apart, each after the prefix: then these are
    the tiles of every one of them.
    """
    others: list[_Tile] = []
    blocks: list[_Tile] = []
    for first, end in segments or [(0, layout.num_groups)]:
        part = TokenLayout(layout.prefix_ids, layout.time_ids[first:end], layout.tokens_per_group)
        token_M = torch.cat((torch.arange(layout.visual_start), torch.arange(*layout.token_span(first, end))))
        other, in_blocks = _tiles_of(part, settings)
        if others:  # the prefix, which sees itself only, has its rows already
            rows, columns, allowed = other
            other = rows[layout.visual_start :], columns, allowed[layout.visual_start :]
        others.append((token_M[other[0]], token_M[other[1]], other[2]))
        blocks += [(token_M[rows], token_M[columns], allowed) for rows, columns, allowed in in_blocks]
    sets = (_padded(others), _padded(blocks))
    order_M = torch.empty(layout.length, dtype=torch.long)
    begin = 0
    for tiles, padded in zip((others, blocks), sets, strict=True):
        num_rows = padded.rows_ZR.shape[1]
        for number, (rows, _, _) in enumerate(tiles):
            order_M[rows] = begin + number * num_rows + torch.arange(len(rows))
        begin += padded.rows_ZR.numel()
    return VideoTiles(sets, order_M)


def _tiles_of(layout: TokenLayout, settings: PrefillSettings) -> tuple[_Tile, list[_Tile]]:
    """The tile of prefix and timestamps, and those of the blocks, of what is prefilled at a time."""
    is_visual_M = torch.zeros(layout.length, dtype=torch.bool)
    for span in layout.spans:
        is_visual_M[span.time_end : span.end] = True
    tokens_M, visibility = torch.arange(layout.length), Visibility(layout, 0, settings)
    other = tokens_M[~is_visual_M]
    blocks: list[_Tile] = []
    for first, end in plan_chunks(layout.num_groups, settings.block_groups):
        inside = tokens_M[layout.spans[first].start : layout.spans[end - 1].end]
        rows = inside[is_visual_M[inside]]
        earlier = tokens_M[: layout.spans[end - 1].end]
        allowed = visibility.mask(rows, earlier)
        seen = allowed.any(dim=0)
        blocks.append((rows, earlier[seen], allowed[:, seen]))
    return (other, tokens_M, visibility.mask(other, tokens_M)), blocks


def _padded(tiles: Sequence[_Tile]) -> TileSet:
    """Rows, columns and what is allowed of several tiles, as one tile set."""
    R, C = max(len(rows) for rows, _, _ in tiles), max(len(columns) for _, columns, _ in tiles)
    rows_ZR, columns_ZC = torch.zeros(len(tiles), R, dtype=torch.long), torch.zeros(len(tiles), C, dtype=torch.long)
    allowed_ZRC = torch.zeros(len(tiles), R, C, dtype=torch.bool)
    allowed_ZRC[:, :, 0] = True  # a row of padding sees something: the softmax over nothing is not a number
    for number, (rows, columns, allowed) in enumerate(tiles):
        rows_ZR[number, : len(rows)], columns_ZC[number, : len(columns)] = rows, columns
        allowed_ZRC[number, : len(rows), : len(columns)] = allowed
    return TileSet(rows_ZR, columns_ZC, allowed_ZRC)
