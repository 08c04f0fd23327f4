"""What a KV file's header says about its codec, as the model's settings and back; and a stored file encoded anew.

The codec is a property of a file, not of the archive: KV of one fingerprint may lie in files of different codecs.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from indexers.folder import Place, as_folder
from indexers.kv_file import (
    AS_COMPUTED,
    CODECS,
    EXACT,
    FORMAT_VERSION,
    DenseKVHeader,
    DenseKVReader,
    KVEncoding,
    StepGroup,
    rewrite_dense_kv,
)
from indexers.records import SegmentRow, kv_path
from pipeline.errors import StorageError

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from videoxl2.kv_codec import CodecSettings

NO_DENSE = "none"
"""Tier and codec in the row of a segment that keeps no dense KV."""
TOKENS = "tokens"
"""Tier in the row of a segment that keeps no dense KV, but the projected tokens to make it of."""


def encoding_of(codec: str) -> KVEncoding:
    """What is written under a codec's name: ``exact``, ``int8`` or ``int4`` with the groups that ship."""
    from videoxl2.kv_codec import KEY_GROUPING, VALUE_GROUPING

    if codec == AS_COMPUTED.codec:
        return AS_COMPUTED
    return KVEncoding(
        codec,
        keys=StepGroup(KEY_GROUPING.axis, KEY_GROUPING.size),
        values=StepGroup(VALUE_GROUPING.axis, VALUE_GROUPING.size),
    )


def codec_settings(encoding: KVEncoding) -> CodecSettings:
    """How to decode what a header describes."""
    from videoxl2.kv_codec import CodecSettings, Grouping, KVCodec

    codec = KVCodec(encoding.codec)
    if encoding.keys is None or encoding.values is None:
        return CodecSettings(codec)
    keys, values = (Grouping(*group) for group in (encoding.keys, encoding.values))  # type: ignore[arg-type]
    return CodecSettings(codec, keys, values)


def encode_chunk(kv_LSKMDh: Tensor, header: DenseKVHeader) -> memoryview:
    """A chunk's bytes as a file with this header has them. Raises ``KVLayoutError`` for values out of range."""
    from videoxl2.kv_codec import encode_sections

    return encode_sections(kv_LSKMDh, codec_settings(header.encoding), header.num_sections).data


def decode_chunk(payload: memoryview, header: DenseKVHeader, index: int, device: str | torch.device = "cpu") -> Tensor:
    """A chunk [layers, 2, KV heads, tokens, head width] from its bytes in a file with this header."""
    import torch

    from videoxl2.kv import kv_from_buffer
    from videoxl2.kv_codec import decode_sections_into

    shape, settings = header.chunk_shape(index), codec_settings(header.encoding)
    if header.encoding.codec == EXACT:
        return kv_from_buffer(payload, header.dtype, shape, device)
    raw_B = kv_from_buffer(payload, "uint8", (len(payload),), device)
    kv_LSKMDh = torch.empty(shape, dtype=getattr(torch, header.dtype), device=device)
    decode_sections_into(raw_B, header.dtype, settings, kv_LSKMDh, header.num_sections)
    return kv_LSKMDh


def reencode_segment(archive: Place, segment: SegmentRow, codec: str, device: str | torch.device = "cpu") -> SegmentRow:
    """Write a segment's dense KV again under a codec of fewer bytes; the new row. The old file stays.

    The new file is durable and has a path of its own, so that a reader with either row finds what the row says. The
    caller holds the writer lease, then commits the row (``LanceStore.replace_segment``) and removes the old file;
    killed in between, the sweep removes whichever of the two no row names. int8 to int4 adds the error of both.
    ``ValueError`` unless the codec is lower than the stored one (exact, int8, int4) and where the segment keeps no
    dense KV; raises what reading raises, and ``StorageError`` for values that the codec cannot hold.
    """
    from videoxl2.errors import KVLayoutError

    if segment.kv_path is None:
        raise ValueError(f"segment {segment.segment_id} keeps no dense KV")
    if codec not in CODECS or CODECS.index(codec) <= CODECS.index(segment.codec):
        raise ValueError(f"KV stored as {segment.codec} cannot be made {codec}: bytes only become fewer")
    encoding = encoding_of(codec)
    target = kv_path(segment.video_id, segment.segment_index, codec)
    folder = as_folder(archive)
    with DenseKVReader(segment.kv_path, segment.kv_digest, folder) as file:
        source, wanted = file.header, replace(file.header, encoding=encoding, format=FORMAT_VERSION)

        def convert(index: int, payload: memoryview) -> memoryview:
            if not payload:  # a chunk that keeps sparse KV only
                return payload
            return encode_chunk(decode_chunk(payload, source, index, device), wanted)

        try:
            written = rewrite_dense_kv(file, target, encoding, convert, folder)
        except KVLayoutError as exc:
            raise StorageError(f"KV file {file.path} cannot be stored as {codec}: {exc}") from exc
    return replace(segment, codec=codec, kv_path=written.name, kv_bytes=written.num_bytes, kv_digest=written.digest)
