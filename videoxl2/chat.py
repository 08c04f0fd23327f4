"""The researcher's surface: frames in, KV or one answer out, in each mode of the paper.

Decoding and frame choice happen elsewhere (``sampling`` has the published rule); this module takes frames and times.

Shapes: F frames, H height, W width.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol, TypeAlias, get_args

from torch import Tensor

from videoxl2.config import GenerationSettings, LevelSettings, ModelSpec, PrefillSettings
from videoxl2.decode import assemble_cache, select_levels
from videoxl2.kv import ChunkKV, KVCache, KVLevel, rechunk, sparsify
from videoxl2.layout import TokenLayout
from videoxl2.overlap import VisionAhead, run_ahead
from videoxl2.prefill import PrefillResult, prefill_layout
from videoxl2.preprocess import frames_to_pixels, resize_frames
from videoxl2.relevance import AskedModel, AttentionRelevance, Relevance
from videoxl2.selection import PublishedSelection
from videoxl2.upload import FrameUploads, streams_of

ChatMode: TypeAlias = Literal["plain", "chunked", "bilevel"]
Selection: TypeAlias = PublishedSelection | Relevance | Sequence[int]
"""What is dense in bi-level mode: a published selection, scores computed now, or the dense chunks counted from 0."""

_BATCH_GROUPS = 16


class Frames(Protocol):
    """An array or tensor [F, H, W, 3], or what gives one for a slice."""

    def __len__(self) -> int: ...

    def __getitem__(self, frames: slice, /) -> Any: ...


@dataclass(frozen=True, eq=False)
class VideoFrames:
    """Sampled frames, uint8 RGB [F, H, W, 3] of any size, and the time of each in seconds.

    ``frames_FHW3`` may also be what decodes frames when a slice of it is taken: that happens in a thread, while the
    model works on the frames before.
    """

    frames_FHW3: Frames
    times_s: Sequence[float]

    def __post_init__(self) -> None:
        if len(self.frames_FHW3) != len(self.times_s):
            raise ValueError(f"{len(self.times_s)} times for {len(self.frames_FHW3)} frames")
        if not len(self.times_s):
            raise ValueError("a video needs at least one frame")
        if not all(map(math.isfinite, self.times_s)):
            raise ValueError("the times of frames are finite numbers of seconds")


class ChatModel(AskedModel, Protocol):
    """The part of a model that the functions here need."""

    @property
    def spec(self) -> ModelSpec: ...

    def encode_frames(self, pixels_F3SS: Tensor) -> Tensor: ...

    def generate_text(self, cache: KVCache, question: str, settings: GenerationSettings | None = None) -> str: ...


def index_frames(
    model: ChatModel, video: VideoFrames, settings: PrefillSettings | None = None, chunk_groups: int = 6
) -> PrefillResult:
    """The KV of a video: decode or read its frames, resize, encode, prefill, each beside the one after it.

    A thread takes frames out of ``video`` and resizes them; vision runs a batch ahead of the language model, on a GPU
    in a stream of its own (``overlap``). Raises ``ContextOverflow`` where the video does not fit, before any work.
    """
    spec, device = model.spec, model.language.device
    group_times_s = list(video.times_s)[:: spec.frames_per_group]
    time_ids = [model.tokenizer.timestamp_ids(t_s) for t_s in group_times_s]
    layout = TokenLayout.build(model.tokenizer.prefix_ids(), time_ids, spec.tokens_per_group)
    uploads, streams = FrameUploads(device), streams_of(device)
    batch_frames = _BATCH_GROUPS * spec.frames_per_group

    def pictures() -> Iterator[Tensor]:
        for first in range(0, len(video.times_s), batch_frames):
            frames = video.frames_FHW3[first : first + batch_frames]
            if len(frames) != min(batch_frames, len(video.times_s) - first):
                raise ValueError(f"{len(frames)} frames were given for those from {first} on, of {len(video.times_s)}")
            yield streams.pin(resize_frames(frames, spec.vision.image_size))

    def encode(pictures_u8: Tensor) -> Tensor:
        return model.encode_frames(frames_to_pixels(pictures_u8, spec.vision.image_size, uploads.bring))

    with contextlib.closing(run_ahead(pictures())) as ahead:
        tokens = VisionAhead(ahead, encode, _BATCH_GROUPS, device)
        return prefill_layout(
            model.language, layout, tokens, group_times_s, settings or PrefillSettings(), chunk_groups
        )


def chat(
    model: ChatModel,
    video: VideoFrames | PrefillResult,
    question: str,
    mode: ChatMode = "chunked",
    *,
    selection: Selection | None = None,
    levels: LevelSettings | None = None,
    settings: PrefillSettings | None = None,
    generation: GenerationSettings | None = None,
) -> str:
    """Answer one question about one video.

    ``plain`` is full attention, ``chunked`` adds the chunk mask, ``bilevel`` also answers from dense KV of the chunks
    that ``selection`` names and sparse KV of the others. A ``PublishedSelection`` brings chunk size and compression;
    otherwise ``levels`` does. Without a selection, bi-level scores the chunks by attention (``AttentionRelevance``);
    the published code would fall back to ``plain``. A video that is already prefilled must have been so in the mode.
    ``settings`` are those of prefill (window, position limit) and belong to frames only.
    """
    if mode not in get_args(ChatMode):
        raise ValueError(f"mode {mode!r} is none of {', '.join(get_args(ChatMode))}")
    if selection is not None and mode != "bilevel":
        raise ValueError(f"a selection has no effect in mode {mode!r}")
    levels = selection.levels if isinstance(selection, PublishedSelection) else levels or LevelSettings()
    if isinstance(video, VideoFrames):
        settings = (settings or PrefillSettings()).model_copy(update={"mode": "plain"} if mode == "plain" else {})
        video = index_frames(model, video, settings, levels.chunk_groups)
    elif settings is not None:
        raise ValueError("the video is already prefilled, so prefill settings have no effect")
    if (video.settings.mode == "plain") != (mode == "plain"):
        raise ValueError(f"the video was prefilled in mode {video.settings.mode!r}, which cannot answer {mode!r}")
    pieces = list(video.chunks)
    if mode == "bilevel":
        pieces = _choose_pieces(
            model, rechunk(pieces, levels.chunk_groups), question, selection, levels, video.settings
        )
    cache = assemble_cache(model, pieces, max_tokens=video.settings.max_tokens)
    return model.generate_text(cache, question, generation)


def _choose_pieces(
    model: ChatModel,
    chunks: list[ChunkKV],
    question: str,
    selection: Selection | None,
    levels: LevelSettings,
    settings: PrefillSettings,
) -> list[ChunkKV]:
    sparse = [sparsify(chunk, levels.compression) for chunk in chunks]
    if isinstance(selection, PublishedSelection):
        dense = set(selection.dense_chunks(sum(chunk.num_groups for chunk in chunks)))
    elif isinstance(selection, Iterable):
        dense = set(selection)
        if not dense <= set(range(len(chunks))):
            raise ValueError(f"dense chunks {sorted(dense)} are not all in 0..{len(chunks) - 1}")
    else:
        relevance = selection or AttentionRelevance(model, max_tokens=settings.max_tokens)
        chosen = select_levels(relevance.scores(question, sparse), levels)
        dense = {index for index, level in enumerate(chosen) if level is KVLevel.DENSE}
    return [chunk if index in dense else sparse[index] for index, chunk in enumerate(chunks)]
