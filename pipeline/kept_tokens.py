"""Projected tokens of a segment: how they are kept, and dense KV made from them by the language model alone.

What a token sees begins with its segment, so a chunk's KV takes a pass over the segment up to that chunk: no video, no
tower, no token synthesis. It is the pass of ingestion over the same numbers, so the KV is the same, bit for bit on the
same device with the same number of threads.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import TYPE_CHECKING

from indexers.folder import Place, as_folder
from indexers.kv_file import WrittenKV
from indexers.records import tokens_path
from indexers.token_file import TokensHeader, TokensReader, write_tokens
from pipeline.errors import StorageError

if TYPE_CHECKING:
    from torch import Tensor

    from pipeline.recipe import Recipe
    from videoxl2.config import PrefillSettings
    from videoxl2.kv import ChunkKV
    from videoxl2.model import VideoXL2

WHOLE_VIDEO_TOKENS = 2**31
"""Longest prefill of a video that is one segment: none in practice."""


def prefill_settings(recipe: Recipe) -> PrefillSettings:
    """What a segment of an archive is prefilled with."""
    if recipe.segment_s is None:  # the published whole-video mode knows no limit of positions
        return recipe.prefill.model_copy(update={"max_tokens": WHOLE_VIDEO_TOKENS})
    return recipe.prefill


def wait_for(computed: Tensor) -> None:
    """Return when the device has computed it, so that what comes before and after can be timed."""
    computed.reshape(-1)[-1:].cpu()


def keep_tokens(
    archive: Place,
    recipe: Recipe,
    video_id: str,
    segment_index: int,
    visual_GPD: Tensor,
    group_times_s: Sequence[float],
) -> WrittenKV:
    """Write a segment's visual tokens [groups, tokens, width] durably; what was written, and under which name.

    Raises ``StoreUnavailable``.
    """
    from videoxl2.kv import kv_to_numpy
    from videoxl2.layout import plan_chunks

    size = recipe.chunk_groups
    header = TokensHeader(
        video_id=video_id,
        segment_index=segment_index,
        fingerprint=recipe.fingerprint,
        dtype=recipe.dtype,
        tokens_per_group=visual_GPD.shape[1],
        width=visual_GPD.shape[2],
        chunk_times_s=tuple(tuple(group_times_s[first:end]) for first, end in plan_chunks(len(visual_GPD), size)),
    )
    path = tokens_path(video_id, segment_index)
    return write_tokens(path, header, (kv_to_numpy(chunk).data for chunk in visual_GPD.split(size)), as_folder(archive))


class StoredTokens:
    """Visual tokens by frame group, read chunk by chunk when a group is asked for; a ``videoxl2.prefill.VisualTokens``.

    Raises ``CorruptKV`` and ``StoreUnavailable`` as the file is read. Holds one chunk at a time.
    """

    def __init__(self, file: TokensReader) -> None:
        self._file = file
        self._places = [(c, g) for c, times_s in enumerate(file.header.chunk_times_s) for g in range(len(times_s))]
        self._held: tuple[int, Tensor] | None = None
        self.bytes_read = 0

    def __getitem__(self, group: int, /) -> Tensor:
        chunk, place = self._places[group]
        if self._held is None or self._held[0] != chunk:
            self._held = chunk, self.chunk(chunk)
        return self._held[1][place]

    def chunk(self, chunk: int) -> Tensor:
        """Tokens [groups, tokens, width] of one chunk, on the CPU."""
        from videoxl2.kv import kv_from_buffer

        payload, header = self._file.read_chunk(chunk), self._file.header
        self.bytes_read += len(payload)
        return kv_from_buffer(payload, header.dtype, header.chunk_shape(chunk))


def kv_from_tokens(model: VideoXL2, recipe: Recipe, file: TokensReader, num_chunks: int) -> tuple[list[ChunkKV], int]:
    """Dense KV of a segment's first ``num_chunks`` chunks on the model's device, and the bytes that were read for it.

    Raises ``StorageError`` where the file does not fit the recipe, and what reading raises.
    """
    from videoxl2.layout import TokenLayout, plan_chunks
    from videoxl2.prefill import prefill_pieces

    header, tokens = file.header, StoredTokens(file)
    expected = (model.spec.tokens_per_group, model.spec.language.width)
    if (header.tokens_per_group, header.width) != expected:
        raise StorageError(
            f"tokens in {file.path} are {header.tokens_per_group} a group of width {header.width}, the model's "
            f"{expected[0]} of {expected[1]}"
        )
    sizes = [len(times_s) for times_s in header.chunk_times_s]
    if sizes != [end - first for first, end in plan_chunks(sum(sizes), recipe.chunk_groups)]:
        raise StorageError(f"tokens in {file.path} are cut into chunks of {sizes} groups, not of {recipe.chunk_groups}")
    time_ids = [model.tokenizer.timestamp_ids(time_s) for time_s in header.group_times_s]
    layout = TokenLayout.build(model.tokenizer.prefix_ids(), time_ids, header.tokens_per_group)
    pieces = prefill_pieces(model.language, layout, tokens, prefill_settings(recipe), recipe.chunk_groups)
    next(pieces)  # the prefix
    return list(itertools.islice(pieces, num_chunks)), tokens.bytes_read
