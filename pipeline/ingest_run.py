"""One call of ingestion from addresses to report: everything that can be wrong is found before work starts."""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence
from pathlib import Path

from indexers.folder import Folder, Place, as_folder
from indexers.lease import WriterLease
from indexers.store import LanceStore
from pipeline.config import IngestSettings, Settings
from pipeline.errors import ConfigError, UsageError
from pipeline.ingest import (
    Ingestion,
    Observer,
    check_pattern,
    dry_run_report,
    list_objects,
    open_sources,
    parse_key_pattern,
)
from pipeline.recipe import Manifest, is_archive_part, make_recipe, read_manifest, write_manifest
from pipeline.results import IngestReport
from videoxl2.checkpoint import read_checkpoint_info, resolve_checkpoint, weights_notice
from videoxl2.config import ModelSpec

logger = logging.getLogger(__name__)

PROMPT_ROOM = 64
TIMESTAMP_ROOM = 11
"""Tokens of the prompt's prefix with room to spare, and of the longest usual timestamp text."""


def run_ingest(
    place: Place,
    sources: Sequence[str],
    settings: Settings,
    *,
    key_pattern: str | None,
    time_zone: str | None,
    dry_run: bool,
    wait_s: float,
    observe: Observer | None,
) -> IngestReport:
    """Check sources, pattern, model and archive in this order, then index. See ``Archive.ingest``."""
    folder = as_folder(place)
    if not sources:
        raise UsageError("no source given: name an s3://bucket/prefix or a folder")
    observer = observe or (lambda phase, facts: None)
    pattern = parse_key_pattern(key_pattern, time_zone)
    opened = open_sources(sources, settings)
    found = read_manifest(folder)
    manifest, notice = _manifest(folder, found, settings)
    listed = list_objects(opened, pattern, time_zone)
    notices = [notice for notice in (check_pattern(listed, key_pattern), notice) if notice is not None]
    observer("listed", {"objects": len(listed)})
    if dry_run:
        rows = {} if found is None else {row.video_id: row for row in LanceStore.open(folder).videos()}
        return dry_run_report(listed, rows).with_notices(notices)
    if settings.runner.kind == "local" and settings.runner.workers > 1:
        logger.warning(
            "%d workers were asked for; the local runner has one (--runner ray has more)", settings.runner.workers
        )
    if found is None:
        _create(folder, manifest, wait_s)
    return Ingestion(folder, manifest, settings, observer).run(listed, wait_s).with_notices(notices)


def _manifest(folder: Folder, found: Manifest | None, settings: Settings) -> tuple[Manifest, str | None]:
    """The archive's manifest, or that of a new archive; settings that differ from the archive's are refused."""
    from videoxl2.model import choose_device

    name = settings.model
    if found is not None and "model" not in settings.model_fields_set:
        name = found.model
    info = read_checkpoint_info(resolve_checkpoint(name))
    if Path(name).is_dir():
        name = str(Path(name).absolute())
    ingest = settings.ingest
    if found is not None:
        given = settings.ingest.model_fields_set
        ingest = found.ingest.model_copy(update={field: getattr(settings.ingest, field) for field in given})
    usual = str(choose_device(settings.device, None)[1]).removeprefix("torch.")
    dtype = settings.dtype or (usual if found is None else found.recipe.dtype)
    check_segment_fits(info.spec, ingest)
    recipe = make_recipe(info, ingest, dtype)
    if found is not None:
        found.recipe.require_equal(recipe, folder.address())
        return found, weights_notice(info)
    return Manifest(model=name, recipe=recipe), weights_notice(info)


def _create(folder: Folder, manifest: Manifest, wait_s: float) -> None:
    """Make an archive: its tables, then its manifest, so that a folder with a manifest is a whole archive.

    A folder that holds other things is never turned into an archive; what a killed creation left is taken over.
    """
    try:
        if not all(is_archive_part(name) for name in folder.entries()):
            raise ConfigError(f"{folder.address()!r} is not empty and not an archive; name an empty or new folder")
        folder.make()
    except OSError as exc:
        raise ConfigError(f"cannot make an archive at {folder.address()!r}: {exc.strerror}") from exc
    with WriterLease(folder, wait_s):
        raced = read_manifest(folder)
        if raced is not None:
            raced.recipe.require_equal(manifest.recipe, folder.address())
            return
        LanceStore.create(folder, manifest.recipe.embedding_dim)
        write_manifest(folder, manifest)


def check_segment_fits(spec: ModelSpec, ingest: IngestSettings) -> None:
    """Raise ``ConfigError`` when a full segment is longer than the model's positions.

    A segment that is the whole video has no length yet; it is prefilled beyond the limit, as the published code does.
    """
    if ingest.segment_s is None:
        return
    num_groups = math.ceil(ingest.segment_s * ingest.fps / spec.frames_per_group)
    num_tokens = PROMPT_ROOM + num_groups * (spec.tokens_per_group + TIMESTAMP_ROOM)
    if num_tokens > spec.language.max_positions:
        raise ConfigError(
            f"a segment of {ingest.segment_s:g} s at {ingest.fps:g} frames/s is about {num_tokens} tokens, "
            f"the model has {spec.language.max_positions} positions; lower --segment-s or --fps"
        )
