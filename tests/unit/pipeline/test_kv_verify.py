"""What counts as the same KV, what a segment's verdict says, and that statistics divide and add up as told."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from indexers.kv_file import DenseKVReader
from indexers.records import SegmentRow, kv_path, make_segment_id, make_video_id
from indexers.testing import make_video
from pipeline import kv_verify
from pipeline.config import Settings
from pipeline.errors import EvidenceUnavailable, UsageError
from pipeline.kv_compare import KVDifference, is_same_kv, kv_difference, pooled_excess, probe_difference
from pipeline.kv_encoding import codec_settings, encoding_of
from pipeline.kv_stats import kv_stats
from pipeline.kv_verify import (
    FAILED,
    NOT_VERIFIABLE,
    TOKEN_TOLERANCE,
    SegmentVerdict,
    certificate_digest,
    codec_figures,
    verify,
    verify_segment,
)
from pipeline.reader import ArchiveReader
from tests.unit.pipeline.samples import make_archive
from videoxl2.kv import ChunkKV, KVLevel, sparsify
from videoxl2.kv_codec import decode_kv, encode_kv
from videoxl2.model import VideoXL2

GROUPS = ((3, 36), (4, 36))
TOKENS = sum(map(sum, GROUPS))


def chunk(seed: int = 0, *, layers: int = 2, kv_heads: int = 1, width: int = 8) -> ChunkKV:
    kv = torch.randn(layers, 2, kv_heads, TOKENS, width, generator=torch.Generator().manual_seed(seed))
    return ChunkKV(kv, GROUPS, KVLevel.DENSE)


def changed(original: ChunkKV, token: int, factor: float) -> ChunkKV:
    kv = original.kv_LSKMDh.clone()
    kv[1, 0, :, token] *= factor
    return replace(original, kv_LSKMDh=kv)


def test_equal_bytes_are_bit_exact_and_half_the_size_of_one_token_is_not_averaged_away() -> None:
    same = kv_difference([chunk()], [chunk()])
    assert same == KVDifference(True, 0.0, 0.0, 0.0)
    one = kv_difference([changed(chunk(), 70, 0.5)], [chunk()])
    assert not one.is_bit_exact
    assert 0.1 < one.token_error < 2
    assert one.max_abs == pytest.approx(float(chunk().kv_LSKMDh[1, 0, :, 70].abs().max()) / 2)


@pytest.mark.parametrize("dtype", TOKEN_TOLERANCE)
def test_a_small_difference_is_the_same_kv_and_a_moved_token_is_not(dtype: str) -> None:
    noise = TOKEN_TOLERANCE[dtype] / 20
    assert is_same_kv(kv_difference([changed(chunk(), 5, 1 + noise)], [chunk()]), TOKEN_TOLERANCE[dtype])
    moved = chunk().kv_LSKMDh.clone()
    moved[:, :, :, [5, 6]] = moved[:, :, :, [6, 5]].clone()
    assert not is_same_kv(kv_difference([replace(chunk(), kv_LSKMDh=moved)], [chunk()]), TOKEN_TOLERANCE[dtype])


def stored_as(original: ChunkKV, *codecs: str) -> ChunkKV:
    kv = original.kv_LSKMDh
    for codec in codecs:
        settings = codec_settings(encoding_of(codec))
        kv = decode_kv(encode_kv(kv, settings), tuple(kv.shape), "float32", settings)
    return replace(original, kv_LSKMDh=kv)


LOSSY = [("int8",), ("int4",), ("int8", "int4")]


@pytest.mark.parametrize("codecs", LOSSY)
def test_what_a_codec_costs_is_shown_and_allowed_and_its_own_bytes_are_bit_exact(codecs: tuple[str, ...]) -> None:
    settings = codec_settings(encoding_of(codecs[-1]))
    kv = kv_difference([stored_as(chunk(), *codecs)], [chunk()], settings)
    assert kv.is_bit_exact and is_same_kv(kv, 0.0)
    assert kv.token_error > 1e-3 and kv.max_abs > 0 and kv.token_excess <= 1e-6


@pytest.mark.parametrize("codecs", LOSSY)
def test_a_codec_does_not_hide_other_numbers_nor_other_tokens(codecs: tuple[str, ...]) -> None:
    settings = codec_settings(encoding_of(codecs[-1]))
    noisy = replace(chunk(), kv_LSKMDh=chunk().kv_LSKMDh * (1 + 1e-5))
    kv = kv_difference([stored_as(noisy, *codecs)], [chunk()], settings)
    assert not kv.is_bit_exact and is_same_kv(kv, TOKEN_TOLERANCE["float32"]), "another order of summation"
    moved = chunk().kv_LSKMDh.clone()
    moved[:, :, :, [5, 6]] = moved[:, :, :, [6, 5]].clone()
    for wrong in (replace(chunk(), kv_LSKMDh=moved), changed(chunk(), 70, 0.5), changed(chunk(), 70, math.nan)):
        coded = stored_as(wrong, *codecs) if not bool(wrong.kv_LSKMDh.isnan().any()) else wrong
        assert not is_same_kv(kv_difference([coded], [chunk()], settings), TOKEN_TOLERANCE["float32"])
    assert not is_same_kv(kv_difference([stored_as(chunk(), *codecs)], [chunk()]), TOKEN_TOLERANCE["float32"])


@pytest.mark.parametrize("codecs", [(), *LOSSY])
def test_sparse_kv_is_held_to_dense_kv_and_to_what_its_codec_may_have_lost(codecs: tuple[str, ...]) -> None:
    codec = codec_settings(encoding_of(codecs[-1])) if codecs else None
    dense = stored_as(chunk(), *codecs)
    sparse = sparsify(chunk(), 4)
    assert pooled_excess(sparse, sparsify(dense, 4), dense, codec, 4) <= 1e-6
    other = sparsify(chunk(1), 4)
    assert pooled_excess(other, sparsify(dense, 4), dense, codec, 4) > 0.1


def test_figures_are_reported_by_codec() -> None:
    def verdict(codec: str, **figures: Any) -> SegmentVerdict:
        return SegmentVerdict(segment_id="s", uri="u", codec=codec, kv_digest=None, **figures)

    same = {"max_token_excess": 0.0, "top1_agreement": 1.0, "answer_agreement": True}
    lossy = {"max_token_excess": 0.0, "top1_agreement": 0.5, "answer_agreement": False}
    rows = codec_figures(
        [
            verdict("exact", max_kv_diff=0.0, **same),
            verdict("int8", max_kv_diff=0.2, **lossy),
            verdict("int8", max_kv_diff=0.1, **same),
            verdict("int8", status=FAILED, error="gone"),
        ]
    )
    assert [(row["codec"], row["segments"], row["verified"], row["failed"]) for row in rows] == [
        ("exact", 1, 1, 0),
        ("int8", 3, 2, 1),
    ]
    assert (rows[1]["max_kv_diff"], rows[1]["top1_agreement"], rows[1]["answer_agreement"]) == (0.2, 0.75, 0.5)
    json.dumps(rows, allow_nan=False)


@pytest.mark.parametrize("side", [0, 1])
def test_a_value_that_is_nan_is_never_the_same(side: int) -> None:
    both = [[chunk()], [chunk()]]
    both[side] = [changed(chunk(), 5, math.nan)]
    difference = kv_difference(*both)
    assert math.isnan(difference.token_error) and math.isnan(difference.max_abs)
    assert not is_same_kv(difference, 1e-3)


def test_figures_that_are_not_finite_are_null_in_json() -> None:
    verdict = SegmentVerdict(segment_id="s", uri="u", codec="exact", kv_digest=None, max_kv_diff=math.nan)
    assert verdict.to_dict()["max_kv_diff"] is None
    json.dumps(verdict.to_dict(), allow_nan=False)


@pytest.fixture(scope="module")
def model() -> VideoXL2:
    return VideoXL2.from_pretrained("tiny", device="cpu")


def fitting(model: VideoXL2, seed: int) -> ChunkKV:
    spec = model.spec.language
    return chunk(seed, layers=spec.num_layers, kv_heads=spec.num_kv_heads, width=spec.head_dim)


def test_the_probe_sees_no_difference_between_equal_caches_and_one_between_others(model: VideoXL2) -> None:
    same = probe_difference(model, [fitting(model, 0)], [fitting(model, 0)])
    assert (same.max_logit_diff, same.top1_agreement, same.answer_agrees) == (0.0, 1.0, True)
    other = probe_difference(model, [fitting(model, 1)], [fitting(model, 0)])
    assert other.max_logit_diff > 1e-3
    assert 0.0 <= other.top1_agreement <= 1.0


def test_a_segment_longer_than_the_context_is_probed_with_what_fits(model: VideoXL2) -> None:
    chunks = [fitting(model, 0)] * (model.spec.language.max_positions // TOKENS + 2)
    assert probe_difference(model, chunks, chunks).answer_agrees


@pytest.fixture
def reader(tmp_path: Path) -> ArchiveReader:
    return ArchiveReader(make_archive(tmp_path / "archive"), Settings(device="cpu"))


def row(reader: ArchiveReader, **changes: Any) -> SegmentRow:
    return replace(reader.store.segments_of()[0], **changes)


def test_a_segment_of_sparse_kv_only_is_read_before_its_video_is_missed(
    reader: ArchiveReader, model: VideoXL2, monkeypatch: pytest.MonkeyPatch
) -> None:
    verdict = verify_segment(reader, model, row(reader, kv_path=None), "file:///a.mp4", 1e-3)
    assert (verdict.status, verdict.ok, verdict.codec) == (FAILED, False, "none")
    assert "has fingerprint" in str(verdict.error)
    monkeypatch.setattr(type(reader.manifest.recipe), "fingerprint", row(reader).fingerprint)
    with monkeypatch.context() as patch:
        patch.setattr(type(reader.store), "read_sparse", lambda *_: {})
        verdict = verify_segment(reader, model, row(reader, kv_path=None), "file:///a.mp4", 1e-3)
    assert verdict.status == FAILED and "sparse KV is not there" in str(verdict.error)
    monkeypatch.setattr(kv_verify, "_stored_sparse", lambda *_: (chunk(),))
    verdict = verify_segment(reader, model, row(reader, kv_path=None), "file:///a.mp4", 1e-3)
    assert (verdict.status, verdict.ok, verdict.uri) == (NOT_VERIFIABLE, False, "file:///a.mp4")


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"kv_path": kv_path("f" * 32, 0)}, "not there"),
        ({"kv_digest": "0" * 32}, "digest differs"),
        ({"num_chunks": 99}, "number of chunks"),
        ({"segment_index": 7}, "another segment"),
    ],
)
def test_a_file_that_is_not_the_segments_fails(
    reader: ArchiveReader, model: VideoXL2, monkeypatch: pytest.MonkeyPatch, changes: dict[str, Any], words: str
) -> None:
    # The rows of this archive are made up, and so is their fingerprint: take it for the archive's.
    with DenseKVReader(str(row(reader).kv_path), folder=reader.folder) as file:
        recipe = reader.manifest.recipe.model_copy(update={"dtype": file.header.dtype})
        monkeypatch.setattr(type(recipe), "fingerprint", file.header.fingerprint)
    monkeypatch.setattr(reader, "manifest", reader.manifest.model_copy(update={"recipe": recipe}))
    verdict = verify_segment(reader, model, row(reader, **changes), "u", 1e-3)
    assert verdict.status == FAILED
    assert words in str(verdict.error)


def test_a_file_of_another_fingerprint_fails(reader: ArchiveReader, model: VideoXL2) -> None:
    verdict = verify_segment(reader, model, row(reader), "u", 1e-3)
    assert verdict.status == FAILED
    assert "fingerprint" in str(verdict.error)


def test_the_result_survives_a_certificate_that_cannot_be_written(
    reader: ArchiveReader, model: VideoXL2, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(kv_verify, "_stored_dense", lambda *_: ((chunk(),), None))
    monkeypatch.setattr(kv_verify, "_sparse_error", lambda *_: None)

    def gone(*_: Any) -> Any:
        raise EvidenceUnavailable("the video is gone")

    monkeypatch.setattr(kv_verify, "encode_segment", gone)
    Path(reader.folder.address("kv/certificates")).write_text("a file where the folder should be")
    seen: list[SegmentVerdict] = []
    report = verify(reader, num_segments=1, observe=seen.append)
    assert report["certificate"] is None and "cannot be written" in caplog.text
    assert report["counts"] == {"verified": 0, "failed": 0, "not verifiable": 1, "sampled": 1, "in_archive": 2}
    assert [verdict.to_dict() for verdict in seen] == report["segments"]
    assert report["segments"][0]["error"] == "the video is gone"
    assert not report["ok"]


def test_a_sample_of_none_is_refused(reader: ArchiveReader) -> None:
    with pytest.raises(UsageError, match="--segments 0"):
        verify(reader, num_segments=0)


def test_the_digest_of_a_certificate_leaves_its_date_out() -> None:
    first = {"format": "x", "date": "2026-01-01", "ok": True}
    assert certificate_digest(first) == certificate_digest({**first, "date": "2027-01-01"})
    assert certificate_digest(first) != certificate_digest({**first, "ok": False})


def test_stats_divide_by_camera_and_count_replaced_versions_in_the_total_only(tmp_path: Path) -> None:
    videos = [
        make_video("a", camera="gate"),
        make_video("b", camera="yard"),
        make_video("c", camera=None),
    ]
    folder = make_archive(tmp_path / "archive", videos, num_segments=2)
    reader = ArchiveReader(folder, Settings())
    before = kv_stats(reader, 0.5)
    assert [camera["camera"] for camera in before["cameras"]] == ["gate", "yard", None]
    total = before["total"]
    for name in ("videos", "segments", "dense_bytes", "sparse_bytes", "source_bytes", "hours"):
        assert sum(camera[name] for camera in before["cameras"]) == pytest.approx(total[name]), name
    index = sum(size for name, size in before["tables"].items() if name != "sparse_kv")
    assert sum(camera["index_bytes"] for camera in before["cameras"]) == pytest.approx(index, abs=3)
    assert before["on_disk_bytes"] == sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
    assert total["cost_per_month"] == pytest.approx(total["stored_bytes"] / 1e9 * 0.5)
    assert kv_stats(reader)["cost_per_month"] is None

    hidden = replace(reader.store.visible_videos()[0], superseded_by=make_video_id("x", "y"))
    reader.store.upsert_videos([hidden])
    after = kv_stats(reader)
    assert after["total"]["videos"] == 2
    assert after["total"]["dense_bytes"] < total["dense_bytes"]
    assert after["on_disk_bytes"] > total["stored_bytes"]

    segment = next(s for s in reader.store.segments_of() if s.video_id != hidden.video_id)
    assert segment.segment_id == make_segment_id(segment.video_id, segment.segment_index)
    (folder / str(segment.kv_path)).unlink()
    assert kv_stats(reader)["missing_kv_files"] == 1


@pytest.mark.parametrize("price", [-1.0, math.inf, math.nan])
def test_a_price_that_is_none_is_refused(reader: ArchiveReader, price: float) -> None:
    with pytest.raises(UsageError, match="--price-per-gb-month"):
        kv_stats(reader, price)
