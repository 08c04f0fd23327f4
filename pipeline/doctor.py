"""Checks of this machine and one archive, each with a verdict and what to do. Reads only."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import os
import shutil
import sys
import tempfile
from collections.abc import Callable
from typing import Any

from indexers.folder import LocalFolder, Place, as_folder
from pipeline.config import Settings

OK, WARNING, PROBLEM = "ok", "warning", "problem"
PACKAGES = ("torch", "transformers", "lancedb", "pyarrow", "ray", "decord", "av", "boto3", "pydantic", "tokenizers")
LOW_DISK_BYTES = 5 * 2**30


def doctor(folder: Place | None, settings: Settings) -> dict[str, Any]:
    """``{"checks": [{"name", "status", "detail"}], "ok"}``; ``ok`` is false when a check found a problem."""
    checks: list[dict[str, str]] = []
    probes: list[tuple[str, Callable[[], tuple[str, str]]]] = [
        ("python", _python),
        ("packages", _packages),
        ("device", _device),
        ("flash-attn", _flash_attention),
        ("decoding", _decoding),
        ("model", lambda: _model(settings.model)),
    ]
    if folder is not None:
        probes += [
            ("archive", lambda: _archive(folder, settings)),
            ("kv files", lambda: _kv_files(folder, settings)),
            ("disk", lambda: _disk(folder)),
        ]
    for name, probe in probes:
        try:
            status, detail = probe()
        except Exception as exc:  # a check that breaks is itself a finding
            status, detail = PROBLEM, f"{type(exc).__name__}: {exc}"
        checks.append({"name": name, "status": status, "detail": detail})
    return {"checks": checks, "ok": all(check["status"] != PROBLEM for check in checks)}


def _python() -> tuple[str, str]:
    version = ".".join(map(str, sys.version_info[:3]))
    is_supported = (3, 11) <= sys.version_info[:2] <= (3, 12)
    return (OK, version) if is_supported else (WARNING, f"{version}; tested are 3.11 and 3.12")


def _packages() -> tuple[str, str]:
    found, missing = [], []
    for name in PACKAGES:
        try:
            found.append(f"{name} {importlib.metadata.version(name)}")
        except importlib.metadata.PackageNotFoundError:
            missing.append(name)
    if missing:
        return PROBLEM, f"not installed: {', '.join(missing)}; run: pip install -c constraints.txt -e ."
    return OK, ", ".join(found)


def _device() -> tuple[str, str]:
    import torch

    if not torch.cuda.is_available():
        return WARNING, f"no GPU; the model runs on {os.cpu_count()} CPU cores (the 8B model needs a GPU)"
    names = [torch.cuda.get_device_properties(index) for index in range(torch.cuda.device_count())]
    return OK, ", ".join(f"{gpu.name} ({gpu.total_memory / 2**30:.0f} GiB)" for gpu in names)


def _flash_attention() -> tuple[str, str]:
    if importlib.util.find_spec("flash_attn") is None:
        return OK, "not installed (optional); attention uses torch's SDPA"
    return OK, "installed"


def _decoding() -> tuple[str, str]:
    from pipeline.decode_worker import DecodeRequest, DecodeWorker
    from pipeline.errors import UnreadableMedia

    with DecodeWorker() as worker:
        request = DecodeRequest(fps=1.0, image_size=32, embed_image_size=32, segment_s=None)
        try:
            list(worker.decode(os.devnull, "file:///dev/null", request))
        except UnreadableMedia:
            return OK, "the decoding process starts and refuses an empty file"
    return PROBLEM, "the decoding process accepted an empty file"


def _model(name: str) -> tuple[str, str]:
    from videoxl2.checkpoint import read_checkpoint_info, resolve_checkpoint, weights_notice

    info = read_checkpoint_info(resolve_checkpoint(name))
    notice = weights_notice(info)
    detail = f"{info.name}, weights {info.weights_digest[:12]}"
    return (OK, detail) if notice is None else (WARNING, f"{detail}; {notice}")


def _archive(folder: Place, settings: Settings) -> tuple[str, str]:
    from pipeline.reader import ArchiveReader

    reader = ArchiveReader(folder, settings)
    rows = reader.videos()
    reader.checkpoint  # noqa: B018  raises where the weights differ
    bad = [row for row in rows if row.error_type is not None]
    interrupted = [row for row in rows if row.state in ("discovered", "queued", "running")]
    detail = f"{sum(row.is_visible for row in rows)} videos can be asked"
    if bad:
        detail += f"; {len(bad)} failed (vxl videos shows why, vxl retry tries again)"
    if interrupted:
        detail += f"; {len(interrupted)} unfinished (the same vxl ingest command continues them)"
    return (WARNING if bad or interrupted else OK), detail


def _kv_files(folder: Place, settings: Settings) -> tuple[str, str]:
    from indexers.errors import CorruptKV, MissingKV
    from indexers.kv_file import DenseKVReader
    from indexers.sweep import find_orphans
    from indexers.token_file import TokensReader
    from pipeline.reader import ArchiveReader

    store = ArchiveReader(folder, settings).store
    missing, wrong = [], []
    for segment in store.segments_of():
        for path, digest, reader in (
            (segment.kv_path, segment.kv_digest, DenseKVReader),
            (segment.tokens_path, segment.tokens_digest, TokensReader),
        ):
            if path is None:
                continue
            try:
                reader(path, digest, store.folder).close()
            except MissingKV:
                missing.append(path)
            except CorruptKV:
                wrong.append(path)
    if missing or wrong:
        shown = (missing + wrong)[0]
        return PROBLEM, (
            f"{len(missing)} segments' files are lost, {len(wrong)} are not the committed ones, "
            f"for example {shown}; vxl ask recomputes missing ones from the video, or delete and ingest the video again"
        )
    if orphans := find_orphans(folder, store):
        return WARNING, f"{len(orphans)} files that nothing refers to; the next ingest or vxl compact removes them"
    return OK, "every referenced file is there and the one that was committed; nothing is left over"


def _disk(place: Place) -> tuple[str, str]:
    folder = as_folder(place)
    if not isinstance(folder, LocalFolder):  # segments are written to a scratch file before they are uploaded
        usage = shutil.disk_usage(tempfile.gettempdir())
    else:
        usage = shutil.disk_usage(folder.path if folder.path.is_dir() else folder.path.parent)
    detail = f"{usage.free / 2**30:.1f} GiB free of {usage.total / 2**30:.0f} GiB"
    return (WARNING, f"{detail}: little") if usage.free < LOW_DISK_BYTES else (OK, detail)
