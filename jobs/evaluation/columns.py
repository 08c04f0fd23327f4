"""The same questions answered in other ways: plain and whole-video prefill, dense, quantised, pooled and no KV.

Owns what each column of the comparison means. A video is decoded and encoded once; a cache is assembled once for every
column and takes all questions of the video as a batch. Only ``recompute_hits`` prefills for each question.

Shapes: G frame groups, P visual tokens per group, D text width.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from jobs.evaluation.records import Span

if TYPE_CHECKING:
    from pathlib import Path

    from torch import Tensor

    from indexers.records import VideoRow
    from pipeline.decode_worker import DecodeWorker
    from pipeline.reader import ArchiveReader
    from videoxl2.kv import ChunkKV
    from videoxl2.prefill import PrefillResult

ANSWER_TOKENS = 48
"""Longest answer in tokens; checkable answers are a letter, a word or one sentence."""

_BLIND_BATCH = 32


@dataclass(frozen=True, eq=False)
class EncodedVideo:
    """Visual tokens [G, P, D] of a video's sampled frames, and the media time of each group in seconds."""

    visual_GPD: Tensor
    group_times_s: tuple[float, ...]


@dataclass(frozen=True, slots=True)
class ColumnAnswers:
    """Answers by column, each in the order of the questions, and the bytes of all dense KV that the video has."""

    answers: Mapping[str, list[str]]
    dense_bytes: int
    num_segments: int


@dataclass(frozen=True, slots=True, eq=False)
class StoredKV:
    """The chunks of a video in order, the bytes read for them, and the number of segments that they lie in."""

    chunks: Sequence[ChunkKV]
    num_bytes: int
    num_segments: int


def encode_video(reader: ArchiveReader, decoder: DecodeWorker, path: Path) -> EncodedVideo:
    """Decode and encode a video as ingestion does. Raises ``MediaError`` where it cannot be decoded."""
    import torch

    from pipeline.decode_worker import FrameBatch
    from pipeline.stages import decode_request
    from videoxl2.preprocess import frames_to_pixels

    model, visual, times_s = reader.model, [], list[float]()
    for event in decoder.decode(str(path), path.as_uri(), decode_request(reader.manifest.recipe)):
        if isinstance(event, FrameBatch):
            pixels_F3SS = frames_to_pixels(event.pixels_u8_FHWC, model.spec.vision.image_size)
            visual.append(model.encode_frames(pixels_F3SS))
            times_s += event.times_s[:: model.spec.frames_per_group]
    return EncodedVideo(torch.cat(visual), tuple(times_s))


def answer_columns(
    reader: ArchiveReader, video: VideoRow, encoded: EncodedVideo, questions: Sequence[str]
) -> ColumnAnswers:
    """Answers to questions about one video in every column that needs no retrieval but ``blind``.

    ``plain`` and ``chunked`` prefill the whole video; the others start from the dense KV of its stored segments.
    """
    from videoxl2.kv import sparsify
    from videoxl2.kv_codec import KVCodec

    answers: dict[str, list[str]] = {}
    if questions:
        answers["plain"] = ask_all(reader, prefill_whole(reader, encoded, "plain").chunks, questions)
        answers["chunked"] = ask_all(reader, prefill_whole(reader, encoded, "chunked").chunks, questions)
    stored = stored_dense(reader, video)
    dense = stored.chunks
    if questions:
        compression = reader.manifest.recipe.compression
        answers["dense"] = ask_all(reader, dense, questions)
        answers["int8"] = ask_all(reader, quantised(dense, KVCodec.INT8), questions)
        answers["int4"] = ask_all(reader, quantised(dense, KVCodec.INT4), questions)
        answers["sparse_only"] = ask_all(reader, [sparsify(chunk, compression) for chunk in dense], questions)
    return ColumnAnswers(answers, stored.num_bytes, stored.num_segments)


def stored_dense(reader: ArchiveReader, video: VideoRow) -> StoredKV:
    """All dense KV that the archive holds of a video, read from its files. Raises what reading them raises."""
    from indexers.records import rows_of
    from pipeline.kv_source import KVSource
    from videoxl2.kv import ChunkKV, KVLevel

    rows = sorted(
        rows_of(reader.store.chunks(video_ids=[video.video_id])),
        key=lambda row: (row["segment_index"], row["chunk_index"]),
    )
    loaded = KVSource(reader, "reload").load([(row, KVLevel.DENSE) for row in rows])
    in_order = [loaded.chunks[row["chunk_id"]] for row in rows]
    chunks = [chunk for chunk in in_order if isinstance(chunk, ChunkKV)]  # all of them: nothing is pending after load
    return StoredKV(chunks, loaded.bytes_read, len({row["segment_id"] for row in rows}))


def prefill_whole(reader: ArchiveReader, encoded: EncodedVideo, mode: str) -> PrefillResult:
    """The whole video prefilled as one sequence, however long, in the mode ``plain``, ``chunked`` or ``bounded``."""
    from pipeline.kept_tokens import WHOLE_VIDEO_TOKENS

    recipe = reader.manifest.recipe
    settings = recipe.prefill.model_copy(update={"mode": mode, "max_tokens": WHOLE_VIDEO_TOKENS})
    if mode != "bounded":
        settings = settings.model_copy(update={"timestamp_groups": None})
    return reader.model.prefill(encoded.visual_GPD, encoded.group_times_s, settings, recipe.chunk_groups)


def answer_from_hits(
    reader: ArchiveReader, encoded: EncodedVideo, hits: Sequence[Sequence[Span]], questions: Sequence[str]
) -> list[str]:
    """Answers when only the frame groups inside each question's hits are prefilled, as a new sequence in order of time.

    This is the rival design: search by embeddings, then prefill what was found. Without a hit there is no video.
    Questions with the same hits share one prefill.
    """
    same: dict[tuple[int, ...], list[int]] = {}
    for number, spans in enumerate(hits):
        inside = (i for i, t in enumerate(encoded.group_times_s) if any(low <= t < high for _, low, high in spans))
        same.setdefault(tuple(inside), []).append(number)
    answers = [""] * len(questions)
    for kept, numbers in same.items():
        chunks: Sequence[ChunkKV] = ()
        if kept:
            found = EncodedVideo(encoded.visual_GPD[list(kept)], tuple(encoded.group_times_s[i] for i in kept))
            chunks = prefill_whole(reader, found, reader.manifest.recipe.prefill.mode).chunks
        for number, text in zip(numbers, ask_all(reader, chunks, [questions[n] for n in numbers]), strict=True):
            answers[number] = text
    return answers


def answer_blind(reader: ArchiveReader, questions: Sequence[str]) -> list[str]:
    """Answers of the model without any video."""
    found: list[str] = []
    for first in range(0, len(questions), _BLIND_BATCH):
        found += ask_all(reader, [], questions[first : first + _BLIND_BATCH])
    return found


def quantised(chunks: Sequence[ChunkKV], codec: str) -> list[ChunkKV]:
    """The chunks after a round trip through a codec (``int8`` or ``int4``) with its own settings."""
    from videoxl2.kv import ChunkKV
    from videoxl2.kv_codec import CodecSettings, KVCodec, decode_kv, encode_kv

    settings = CodecSettings(KVCodec(codec))
    found = []
    for chunk in chunks:
        kv = chunk.kv_LSKMDh
        dtype = str(kv.dtype).removeprefix("torch.")
        back = decode_kv(encode_kv(kv, settings), tuple(kv.shape), dtype, settings, kv.device)
        found.append(ChunkKV(back, chunk.groups, chunk.level))
    return found


def ask_all(reader: ArchiveReader, chunks: Sequence[ChunkKV], questions: Sequence[str]) -> list[str]:
    """Greedy answers to all questions over one cache of the chunks."""
    from pipeline.kept_tokens import WHOLE_VIDEO_TOKENS
    from videoxl2.config import GenerationSettings
    from videoxl2.decode import assemble_cache

    model = reader.model
    room = sum(len(model.tokenizer.prompt_parts(question)[1]) + ANSWER_TOKENS for question in questions)
    cache = assemble_cache(model, chunks, max_tokens=WHOLE_VIDEO_TOKENS, room=room)
    settings = GenerationSettings(max_new_tokens=ANSWER_TOKENS, option_orders=reader.settings.query.option_orders)
    texts = model.generate_texts(cache, questions, settings)
    return [text.strip() for text in texts]
