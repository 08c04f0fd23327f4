"""``vxl kv verify`` and ``vxl kv stats``."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

from jobs.output import Output, printable

if TYPE_CHECKING:
    from pipeline.archive import Archive
    from pipeline.kv_verify import SegmentVerdict

EXIT_FAILED = 1
EXIT_NOT_VERIFIABLE = 3
EXIT_NOTHING_INDEXED = 5


def run_verify(
    archive: Archive, out: Output, *, segments: int | None, all_segments: bool, seed: int, exact: bool
) -> int:
    """Verdicts and certificate. 1 when a segment failed, 3 when one cannot be verified, 5 when there is none."""

    def observe(verdict: SegmentVerdict) -> None:
        if out.is_terminal:
            print(f"{verdict.segment_id}: {printable(verdict.status)}", file=sys.stderr)

    report = archive.kv.verify(segments=segments, all_segments=all_segments, seed=seed, exact=exact, observe=observe)
    if out.as_json:
        out.document(report)
    else:
        _print_report(report, out)
    counts = report["counts"]
    if counts["failed"]:
        return EXIT_FAILED
    if counts["not verifiable"]:
        return EXIT_NOT_VERIFIABLE
    return 0 if counts["sampled"] else EXIT_NOTHING_INDEXED


def _print_report(report: dict[str, Any], out: Output) -> None:
    counts = report["counts"]
    if not counts["sampled"]:
        out.text("the archive holds nothing that could be verified; add videos with: vxl ingest SOURCE")
        return
    out.table(
        ["verdict", "codec", "KV diff", "logit diff", "top-1", "answer", "segment", "video"],
        [
            [
                row["status"],
                row["codec"],
                "0 (bit for bit)" if row["is_bit_exact"] else _figure(row["max_kv_diff"]),
                _figure(row["max_logit_diff"]),
                "-" if row["top1_agreement"] is None else f"{row['top1_agreement']:.0%}",
                {True: "same", False: "differs", None: "-"}[row["answer_agreement"]],
                row["segment_id"],
                row["uri"],
            ]
            for row in report["segments"]
        ],
        right=(2, 3, 4),
    )
    for row in report["segments"]:
        if row["error"] is not None:
            out.text(f"{row['segment_id']}: {row['status']}: {row['error']}")
    out.text(
        f"{counts['verified']} verified, {counts['failed']} failed, {counts['not verifiable']} not verifiable "
        f"of {counts['sampled']} looked at; the archive has {counts['in_archive']} segments",
        f"certificate: {report['certificate'] or 'not written'}",
    )


def run_stats(archive: Archive, out: Output, price_per_gb_month: float | None) -> int:
    """Bytes per camera and in all."""
    stats = archive.kv.stats(price_per_gb_month=price_per_gb_month)
    if out.as_json:
        out.document(stats)
        return 0
    total, price = stats["total"], stats["price_per_gb_month"]
    if not total["videos"]:
        out.text("the archive holds no indexed videos; add some with: vxl ingest SOURCE")
        return 0
    rows = [*stats["cameras"], {"camera": "all cameras", **total}]
    out.table(
        [
            *("camera", "hours", "dense", "tokens", "sparse", "index (share)", "stored", "stored/hour"),
            *("source video", "cost/month"),
        ],
        [
            [
                "(no camera)" if row["camera"] is None else row["camera"],
                f"{row['hours']:.2f}",
                *(
                    _size(row[name])
                    for name in ("dense_bytes", "tokens_bytes", "sparse_bytes", "index_bytes", "stored_bytes")
                ),
                _size(row["per_hour"]["stored_bytes"]),
                _size(row["source_bytes"]),
                _money(row["cost_per_month"]),
            ]
            for row in rows
        ],
        right=tuple(range(1, 10)),
    )
    out.table(
        ["tier", "codec", "segments", "files", "of which tokens", "files/hour"],
        [
            [
                *(tier["tier"], tier["codec"], str(tier["segments"])),
                *(_size(tier[name]) for name in ("bytes", "tokens_bytes", "per_hour")),
            ]
            for tier in total["tiers"]
        ],
        right=(2, 3, 4, 5),
    )
    tables = ", ".join(f"{name} {_size(size)}" for name, size in stats["tables"].items())
    out.text(
        f"tables on disk: {tables}",
        f"on disk in all: {_size(stats['on_disk_bytes'])}, of which {_size(stats['other_bytes'])} are in no row above: "
        "old versions of tables and videos, overheads, leftovers (vxl compact frees some)",
    )
    cap, never, retention = stats["cap"], stats["never_dense"], stats["retention"]
    if cap["max_kv_bytes"] is not None:
        out.text(
            f"files of dense KV and tokens take {_size(cap['kv_file_bytes'])} of the cap's {_size(cap['max_kv_bytes'])}"
        )
    if never["chunks"]:
        out.text(
            f"{never['chunks']} chunks were never given dense KV (static, or no room): "
            f"{_size(never['saved_bytes'])} saved"
        )
    if retention["rules"]:
        out.text(
            f"vxl retention would free {_size(retention['frees_bytes'])}: {retention['segments']} segments keep less, "
            f"{retention['videos']} videos expire; {retention['unknown_age']} videos have no age"
        )
        if retention["without_tokens"]:
            out.text(without_tokens(retention["without_tokens"]))
    for way, planned in stats["planner"].items():
        if planned["asks"]:
            out.text(
                f"{way} was predicted {planned['asks']} times, wrong by {planned['median_error']:.2f}x at the median"
            )
    if stats["missing_kv_files"]:
        out.text(f"{stats['missing_kv_files']} segments have lost their KV file; vxl doctor names one")
    if price is None:
        out.text("give --price-per-gb-month to see the cost")
    else:
        out.text(
            f"at {price:g} per GB and month (GB = 10^9 bytes): {_money(stats['cost_per_month'])} for the archive, "
            f"{_money(stats['source_cost_per_month'])} for the source videos at the same price"
        )
    return 0


def without_tokens(segments: int) -> str:
    """What becomes of segments whose rule keeps tokens that were never kept."""
    return (
        f"{segments} segments should keep their tokens and have none (indexed before storage.keep_tokens or the rule): "
        "they keep int4"
    )


def _figure(value: float | None) -> str:
    return "-" if value is None else f"{value:.3g}"


def _size(num_bytes: float | None) -> str:
    if num_bytes is None:
        return "-"
    if abs(num_bytes) >= 1e9:
        return f"{num_bytes / 1e9:.2f} GB"
    return f"{num_bytes / 1e6:.2f} MB"


def _money(cost: float | None) -> str:
    return "-" if cost is None else f"{cost:.4g}"
