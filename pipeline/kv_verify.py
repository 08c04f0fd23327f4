"""Is stored KV what the model makes of the video? Segments are prefilled again and compared; a certificate records it.

Of a segment that keeps projected tokens these are compared as well; one that keeps nothing else is held to the KV that
a question would make of them. One that keeps neither (demoted, static or without room) is held to its sparse KV.

Checksums prove that bytes are those that were written. This proves that they were the right ones: a chunk rotated,
swapped or taken from elsewhere fails even when it is signed correctly. KV under a lossy codec is allowed what the codec
states, value by value, and no more. Tables are only read.
"""

from __future__ import annotations

import importlib.metadata
import json
import logging
import math
import random
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import xxhash

from indexers.errors import StoreError
from indexers.records import SegmentRow, make_chunk_id, rows_of
from indexers.sweep import KV_FOLDER
from pipeline.errors import ArchiveError, EvidenceUnavailable, StorageError, UsageError
from pipeline.kept_tokens import StoredTokens, kv_from_tokens
from pipeline.kv_compare import (
    PROBE_QUESTION,
    PROBE_TOKENS,
    is_same_kv,
    kv_difference,
    largest,
    pooled_excess,
    probe_difference,
)
from pipeline.kv_encoding import codec_settings
from pipeline.kv_source import (
    encode_segment,
    open_dense,
    open_tokens,
    read_dense_chunk,
    require_fingerprint,
    stored_sparse_chunk,
)
from pipeline.tiers import LOSSY_TIERS, tier_of

if TYPE_CHECKING:
    from torch import Tensor

    from pipeline.reader import ArchiveReader
    from pipeline.segment import SegmentEncoder
    from videoxl2.kv import ChunkKV
    from videoxl2.kv_codec import CodecSettings
    from videoxl2.model import VideoXL2

logger = logging.getLogger(__name__)

DISTRIBUTION = "vxl-archive"
CERTIFICATE_FORMAT = "vxl-kv-certificate/1"
CERTIFICATE_FOLDER = f"{KV_FOLDER}/certificates"
DEFAULT_SEGMENTS = 16

VERIFIED = "verified"
FAILED = "failed"
NOT_VERIFIABLE = "not verifiable"

TOKEN_TOLERANCE = {"float64": 1e-3, "float32": 1e-3, "bfloat16": 0.25, "float16": 0.25}
"""Largest ``token_error`` by number type that counts as the same KV where the bytes differ.

Another device or number of threads adds up in another order. A token that was moved, rotated or swapped has an error of
about 1. The half-precision figures are an allowance, not a measurement: no GPU has been compared with another yet.
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class SegmentVerdict:
    """What came of one segment. Figures are ``None`` where it did not get that far.

    ``max_kv_diff`` and ``max_token_error`` are over the dense chunks: what the codec costs is in them.
    ``max_token_excess`` is the part beyond what the codec states; ``max_visual_error`` that of the worst projected
    token where these are kept. ``codec`` is ``tokens`` where no more is kept, ``none`` where only sparse KV is: the
    figures are then over that. ``is_bit_exact`` says that every byte is the one that this codec makes of recomputed KV;
    ``top1_agreement`` is the share of the probe's tokens that stored KV would also have chosen.
    """

    segment_id: str
    uri: str
    status: str = VERIFIED
    codec: str
    kv_digest: str | None
    tokens_digest: str | None = None
    is_bit_exact: bool | None = None
    max_kv_diff: float | None = None
    max_token_error: float | None = None
    max_token_excess: float | None = None
    max_visual_error: float | None = None
    max_logit_diff: float | None = None
    top1_agreement: float | None = None
    answer_agreement: bool | None = None
    error: str | None = None

    @property
    def ok(self) -> bool:
        return self.status == VERIFIED

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready; a figure that is not finite is ``None``."""
        fields = {name: _finite(value) for name, value in asdict(self).items()}
        return {**fields, "ok": self.ok}


def verify(
    reader: ArchiveReader,
    *,
    num_segments: int = DEFAULT_SEGMENTS,
    all_segments: bool = False,
    seed: int = 0,
    exact: bool = False,
    observe: Callable[[SegmentVerdict], None] | None = None,
) -> dict[str, Any]:
    """Compare a seeded sample of the visible segments with their videos, and write a certificate. See ``Archive.kv``.

    Raises ``ModelMismatch`` when the archive's model is not here, ``UsageError`` for a sample of none.
    """
    tolerance = 0.0 if exact else TOKEN_TOLERANCE[reader.manifest.recipe.dtype]
    if num_segments < 1:
        raise UsageError(f"--segments {num_segments} must be at least 1")
    uris = {video.video_id: video.uri for video in reader.store.visible_videos()}
    segments = [segment for segment in reader.store.segments_of() if segment.video_id in uris]
    num_total = len(segments)
    if not all_segments and num_segments < num_total:
        chosen = sorted(random.Random(seed).sample(range(num_total), num_segments))
        segments = [segments[index] for index in chosen]
    verdicts = []
    if segments:
        model = reader.model  # here, so that a model that is not there is no segment's fault
        for segment in segments:
            verdict = _verify_as_kept(reader, model, segment, uris[segment.video_id], tolerance)
            if verdict is None:
                continue
            verdicts.append(verdict)
            if observe is not None:
                observe(verdict)
    return _report(reader, verdicts, num_total, seed, tolerance)


def _verify_as_kept(
    reader: ArchiveReader, model: VideoXL2, segment: SegmentRow, uri: str, tolerance: float
) -> SegmentVerdict | None:
    """One segment as the archive keeps it when it is looked at; ``None`` where it was deleted since it was chosen.

    A demotion between row and file is no damage: each takes something away, so this comes to an end.
    """
    while True:
        verdict = verify_segment(reader, model, segment, uri, tolerance)
        if verdict.status != FAILED:
            return verdict
        newer = next(
            (row for row in reader.store.segments(segment.video_id) if row.segment_id == segment.segment_id), None
        )
        if newer is None or newer.file_paths == segment.file_paths:
            return None if newer is None else verdict
        segment = newer


def verify_segment(
    reader: ArchiveReader, model: VideoXL2, segment: SegmentRow, uri: str, tolerance: float
) -> SegmentVerdict:
    """One segment: what is stored is read and checked first, so that damage is found even where the video is gone."""
    from videoxl2.errors import ModelError
    from videoxl2.kv import sparsify

    verdict = SegmentVerdict(
        segment_id=segment.segment_id,
        uri=uri,
        codec=str(tier_of(segment)),
        kv_digest=segment.kv_digest,
        tokens_digest=segment.tokens_digest,
        status=FAILED,
    )
    try:
        tokens = _stored_tokens(reader, segment)
        if segment.file_paths:
            stored, codec = _stored_dense(reader, segment)
            sparse_error = _sparse_error(reader, segment, stored, codec, tolerance)
        else:
            stored, codec, sparse_error = _stored_sparse(reader, segment), None, None
        try:
            encoder = encode_segment(reader, segment.video_id, segment.segment_index)
            made = encoder.prefill()
        except EvidenceUnavailable as exc:
            if sparse_error is not None:
                return replace(verdict, error=sparse_error)
            return replace(verdict, status=NOT_VERIFIABLE, error=str(exc))
        if not segment.file_paths:
            made = tuple(sparsify(chunk, reader.manifest.recipe.compression) for chunk in made)
        has_gaps = len(stored) == len(made) and not all(chunk.groups for chunk in stored)
        if has_gaps:  # chunks that keep sparse KV only: of those there is nothing dense to compare
            stored = tuple(mine if mine.groups else theirs for mine, theirs in zip(stored, made, strict=True))
        if [chunk.groups for chunk in stored] != [chunk.groups for chunk in made]:
            return replace(verdict, error="the video gives other chunks than those that are stored")
        is_lossy = tier_of(segment) in LOSSY_TIERS
        if (has_gaps or is_lossy) and sparse_error is None:  # pooled before the codec: hold it to that
            sparse_error = _sparse_error(reader, segment, made, None, tolerance)
        kv = kv_difference(stored, made, codec)
        visual_error = None if tokens is None else token_difference(tokens, encoder)
        probe = probe_difference(model, stored, made)
        verdict = replace(
            verdict,
            is_bit_exact=kv.is_bit_exact,
            max_kv_diff=kv.max_abs,
            max_token_error=kv.token_error,
            max_token_excess=kv.token_excess,
            max_visual_error=visual_error,
            max_logit_diff=probe.max_logit_diff,
            top1_agreement=probe.top1_agreement,
            answer_agreement=probe.answer_agrees,
        )
        if not is_same_kv(kv, tolerance):
            return replace(
                verdict,
                error=f"stored KV is not what the video gives: a token is off by {kv.token_excess:.3g} of the usual "
                f"length{_beyond(segment)}, {tolerance:g} is allowed",
            )
        if visual_error is not None and not visual_error <= tolerance:
            return replace(
                verdict,
                error=f"stored tokens are not what the video gives: one is off by {visual_error:.3g} of the usual "
                f"length, {tolerance:g} is allowed",
            )
        if sparse_error is not None:
            return replace(verdict, error=sparse_error)
        return replace(verdict, status=VERIFIED)
    except (ArchiveError, StoreError, ModelError) as exc:
        return replace(verdict, error=str(exc))


def token_difference(stored: StoredSegmentTokens, made: SegmentEncoder) -> float:
    """The worst projected token: the length of its difference over the usual length of the segment's tokens.

    Infinite where there are other tokens, or the same at other times.
    """
    stored_GPD, made_GPD = stored.visual_GPD.double(), made.visual_GPD.detach().cpu().double()
    if stored_GPD.shape != made_GPD.shape or stored.group_times_s != tuple(made.group_times_s):
        return math.inf
    usual = made_GPD.square().sum(-1).mean().sqrt().clamp_min(1e-12)
    return float((stored_GPD - made_GPD).square().sum(-1).sqrt().max() / usual)


def _beyond(segment: SegmentRow) -> str:
    tier = tier_of(segment)
    return f" beyond what {tier} may cost" if tier in LOSSY_TIERS else ""


def _stored_dense(reader: ArchiveReader, segment: SegmentRow) -> tuple[tuple[ChunkKV, ...], CodecSettings | None]:
    """A segment's dense KV as a question would get it, and the codec of its file: none where it is made of tokens."""
    recipe = reader.manifest.recipe
    if segment.kv_path is not None:
        with open_dense(reader.folder, recipe.fingerprint, segment) as file:
            chunks = tuple(read_dense_chunk(file, index) for index in range(file.header.num_chunks))
            return chunks, codec_settings(file.header.encoding)
    with open_tokens(reader.folder, recipe.fingerprint, segment) as kept:
        return tuple(kv_from_tokens(reader.model, recipe, kept, kept.header.num_chunks)[0]), None


@dataclass(frozen=True, slots=True)
class StoredSegmentTokens:
    """A segment's projected tokens [groups, tokens, width] as they are kept, and the time of each group."""

    visual_GPD: Tensor
    group_times_s: tuple[float, ...]


def _stored_tokens(reader: ArchiveReader, segment: SegmentRow) -> StoredSegmentTokens | None:
    """All of a segment's tokens, each chunk checked; ``None`` where it keeps none."""
    import torch

    if segment.tokens_path is None:
        return None
    with open_tokens(reader.folder, reader.manifest.recipe.fingerprint, segment) as file:
        stored = StoredTokens(file)
        chunks = [stored.chunk(chunk) for chunk in range(file.header.num_chunks)]
        return StoredSegmentTokens(torch.cat(chunks), file.header.group_times_s)


def _sparse_error(
    reader: ArchiveReader, segment: SegmentRow, dense: Sequence[ChunkKV], codec: CodecSettings | None, tolerance: float
) -> str | None:
    try:
        _check_sparse(reader, segment, dense, codec, tolerance)
    except (StorageError, StoreError) as exc:
        return str(exc)
    return None


def _stored_sparse(reader: ArchiveReader, segment: SegmentRow) -> tuple[ChunkKV, ...]:
    """A segment's sparse KV, each part checked.

    Raises ``StorageError`` naming the chunk, ``CorruptKV``, and ``ModelMismatch`` where another recipe made it.
    """
    require_fingerprint(segment, reader.manifest.recipe)
    rows = sorted(
        rows_of(reader.store.chunks(segment_ids=[segment.segment_id])), key=lambda row: int(row["chunk_index"])
    )
    if [row["chunk_index"] for row in rows] != list(range(segment.num_chunks)):
        raise StorageError(f"{len(rows)} rows of chunks for {segment.num_chunks} chunks of KV")
    parts = reader.store.read_sparse([row["chunk_id"] for row in rows])
    for row in rows:
        if row["chunk_id"] not in parts:
            raise StorageError(f"chunk {row['chunk_id']}: its sparse KV is not there")
    compression = reader.manifest.recipe.compression
    return tuple(stored_sparse_chunk(parts[row["chunk_id"]], row, compression) for row in rows)


def _check_sparse(
    reader: ArchiveReader, segment: SegmentRow, dense: Sequence[ChunkKV], codec: CodecSettings | None, tolerance: float
) -> None:
    """Stored sparse KV must be what pooling dense KV gives. Raises ``StorageError`` naming the chunk.

    Where ``dense`` went through a lossy ``codec``, a pooled value is allowed the mean of what its tokens may have lost.
    """
    from videoxl2.kv import sparsify

    compression = reader.manifest.recipe.compression
    found = _stored_sparse(reader, segment)
    if len(found) != len(dense):
        raise StorageError(f"{len(found)} chunks of sparse KV for {len(dense)} of dense")
    for index, (stored, chunk) in enumerate(zip(found, dense, strict=True)):
        if not chunk.groups:
            continue
        name = f"chunk {make_chunk_id(segment.segment_id, index)}"
        expected = sparsify(chunk, compression)
        if stored.groups != expected.groups or stored.kv_LSKMDh.shape != expected.kv_LSKMDh.shape:
            raise StorageError(f"{name}: its sparse KV has other tokens than its dense KV")
        excess = pooled_excess(stored, expected, chunk, codec, compression)
        if not excess <= tolerance:  # also where it is NaN
            raise StorageError(f"{name}: its sparse KV is not its dense KV pooled (a token is off by {excess:.3g})")


def _report(
    reader: ArchiveReader, verdicts: Sequence[SegmentVerdict], num_total: int, seed: int, tolerance: float
) -> dict[str, Any]:
    counts = {
        status: sum(verdict.status == status for verdict in verdicts) for status in (VERIFIED, FAILED, NOT_VERIFIABLE)
    }
    report = {
        "segments": [verdict.to_dict() for verdict in verdicts],
        "ok": bool(verdicts) and all(verdict.ok for verdict in verdicts),
        "counts": {**counts, "sampled": len(verdicts), "in_archive": num_total},
        "codecs": codec_figures(verdicts),
    }
    certificate = _write_certificate(reader, report, seed, tolerance) if verdicts else None
    return {**report, "certificate": certificate}


def codec_figures(verdicts: Sequence[SegmentVerdict]) -> list[dict[str, Any]]:
    """The worst figures of each codec's segments that were compared, and the shares that agreed."""
    rows = []
    for codec in sorted({verdict.codec for verdict in verdicts}):
        of = [verdict for verdict in verdicts if verdict.codec == codec]
        compared = [verdict for verdict in of if verdict.answer_agreement is not None]
        row: dict[str, Any] = {
            "codec": codec,
            "segments": len(of),
            "verified": sum(verdict.ok for verdict in of),
            "failed": sum(verdict.status == FAILED for verdict in of),
        }
        for name in ("max_kv_diff", "max_token_error", "max_token_excess", "max_visual_error", "max_logit_diff"):
            row[name] = _finite(largest(getattr(verdict, name) for verdict in compared))
        for name in ("top1_agreement", "answer_agreement"):
            values = [float(getattr(verdict, name)) for verdict in compared]
            row[name] = sum(values) / len(values) if values else None
        rows.append(row)
    return rows


def certificate_digest(certificate: dict[str, Any]) -> str:
    """Digest of a certificate's content; its date is no part of it, so verifying again renews the same file."""
    content = {name: value for name, value in certificate.items() if name != "date"}
    return xxhash.xxh3_128_hexdigest(json.dumps(content, sort_keys=True, separators=(",", ":")).encode())


def _write_certificate(reader: ArchiveReader, report: dict[str, Any], seed: int, tolerance: float) -> str | None:
    """Its path relative to the archive; ``None`` where it cannot be written, since the result is worth more."""
    import torch

    certificate = {
        "format": CERTIFICATE_FORMAT,
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "fingerprint": reader.manifest.recipe.fingerprint,
        "model": reader.manifest.model,
        "weights_digest": reader.manifest.recipe.weights_digest,
        "device": str(reader.model.device),
        "threads": torch.get_num_threads(),
        "program": f"{DISTRIBUTION} {importlib.metadata.version(DISTRIBUTION)}",
        "torch": torch.__version__,
        "probe": {"question": PROBE_QUESTION, "tokens": PROBE_TOKENS},
        "tolerance": tolerance,
        "seed": seed,
        **report,
    }
    relative = f"{CERTIFICATE_FOLDER}/{certificate_digest(certificate)}.json"
    try:
        with reader.folder.create(relative) as durable:
            durable.file.write((json.dumps(certificate, indent=1, sort_keys=True) + "\n").encode())
            durable.commit()
    except OSError as exc:
        logger.warning("the certificate cannot be written to %s: %s", reader.folder.address(), exc.strerror or exc)
        return None
    return relative


def _finite(value: Any) -> Any:
    return None if isinstance(value, float) and not math.isfinite(value) else value
