"""The SDK: one archive, as an application developer sees it. Composition only; each use case lives in its module.

Everything raised on purpose is an ``ArchiveError``; errors of the layers below are translated at this border.
"""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, ParamSpec, TypeVar

from pipeline.address import open_folder
from pipeline.config import Settings, load_settings
from pipeline.errors import (
    ArchiveBusy,
    ArchiveError,
    ConfigError,
    ModelMismatch,
    StageError,
    StorageError,
    StorageFull,
)
from pipeline.results import AnomalyResult, Answer, IngestReport, Moment, SearchResult

if TYPE_CHECKING:
    import pandas as pd
    import pyarrow as pa

    from pipeline.ingest import Observer
    from pipeline.kv_verify import SegmentVerdict
    from pipeline.reader import ArchiveReader

P = ParamSpec("P")
R = TypeVar("R")


def translated(call: Callable[P, R]) -> Callable[P, R]:
    """Present errors of the layers below as ``ArchiveError``."""

    @functools.wraps(call)
    def wrapper(*args: P.args, **kwargs: P.kwargs) -> R:
        from indexers.errors import StoreError
        from videoxl2.errors import ModelError

        try:
            return call(*args, **kwargs)
        except (StoreError, ModelError) as exc:
            raise translate(exc) from exc

    return wrapper


def translate(error: Exception) -> ArchiveError:
    """The SDK's error for one of ``indexers`` or ``videoxl2``."""
    from indexers.errors import ArchiveLocked, CorruptKV, DiskFull, SchemaMismatch, StoreError
    from videoxl2.errors import CheckpointMismatch, FingerprintMismatch, ModelError

    match error:
        case ArchiveLocked():
            return ArchiveBusy(str(error))
        case SchemaMismatch() | FingerprintMismatch():
            return ModelMismatch(str(error))
        case DiskFull():
            return StorageFull(error.where, error.cause)
        case CorruptKV():
            return StorageError(str(error))
        case StoreError():
            return StorageError(str(error))
        case CheckpointMismatch():
            return ConfigError(f"the model's checkpoint cannot be used: {error}")
        case ModelError():
            return ConfigError(str(error))
    return StageError("unknown", str(error))


class Archive:
    """A video archive you can ask.

    ``uri`` is a local folder or ``s3://bucket/prefix``. Opening costs nothing; the first call that needs it reads it.

        archive = Archive("footage.vxl")
        archive.ingest("s3://bucket/cameras", key_pattern="{camera}/%Y-%m-%d/%H%M%S.mp4", time_zone="Europe/Berlin")
        for moment in archive.search("person leaves a bag").cameras("gate").limit(5):
            print(moment.rank, moment.camera, moment.start_time)
        print(archive.ask("What happened at the gate after midnight?").answer)
    """

    def __init__(self, uri: str | Path, *, settings: Settings | None = None, time_zone: str | None = None) -> None:
        self.settings = settings or load_settings()
        self.folder = open_folder(uri, self.settings.s3)
        self.time_zone = time_zone
        self._opened: ArchiveReader | None = None

    @translated
    def under(self, settings: Settings) -> Archive:
        """The same archive under other settings, for queries that differ in them; what is loaded here is shared.

        What settings of indexing decide is fixed in the archive and stays as it is.
        """
        other = copy.copy(self)
        other.settings = settings
        other._opened = self._reader().under(settings)
        return other

    def _reader(self) -> ArchiveReader:
        from pipeline.reader import ArchiveReader

        if self._opened is None:
            self._opened = ArchiveReader(self.folder, self.settings)
        return self._opened

    def _filters(
        self,
        cameras: Sequence[str],
        videos: Sequence[str],
        after: str | datetime | None,
        before: str | datetime | None,
        time_zone: str | None,
        time_range: str | tuple[str, str] | None = None,
    ) -> Any:
        from pipeline.reader import make_filters

        return make_filters(
            cameras=cameras,
            videos=videos,
            after=after,
            before=before,
            time_range=time_range,
            time_zone=time_zone or self.time_zone,
        )

    @translated
    def ingest(
        self,
        *sources: str | Path,
        key_pattern: str | None = None,
        time_zone: str | None = None,
        dry_run: bool = False,
        wait_s: float = 0.0,
        observe: Observer | None = None,
    ) -> IngestReport:
        """Index what the sources (``s3://bucket/prefix`` or local folders and files) hold and the archive lacks.

        The archive is created when it does not exist, with the settings this object was made with. ``wait_s``: how
        long to wait for another writer. Raises ``SourceUnavailable``, ``ModelMismatch``, ``ArchiveBusy``,
        ``ConfigError`` before any work; a video that fails is reported, never raised.
        """
        from pipeline.ingest_run import run_ingest

        self._opened = None
        return run_ingest(
            self.folder,
            [str(source) for source in sources],
            self.settings,
            key_pattern=key_pattern,
            time_zone=time_zone or self.time_zone,
            dry_run=dry_run,
            wait_s=wait_s,
            observe=observe,
        )

    def search(self, text: str) -> SearchQuery:
        """A query for moments that look like ``text``; refine it, then iterate."""
        return SearchQuery(archive=self, text=text, limit_=self.settings.query.limit, zone=self.time_zone)

    @translated
    def ask(
        self,
        question: str,
        *,
        cameras: Sequence[str] = (),
        videos: Sequence[str] = (),
        after: str | datetime | None = None,
        before: str | datetime | None = None,
        time_zone: str | None = None,
        reuse: str = "auto",
        max_new_tokens: int | None = None,
        on_text: Callable[[str], None] | None = None,
    ) -> Answer:
        """Answer from stored KV, with citations. ``on_text`` receives the answer piece by piece as it is decoded.

        ``reuse``: ``reload`` uses stored KV only, ``recompute`` prefills the retrieved segments from their videos,
        ``auto`` reloads what is stored and recomputes the rest.
        """
        from pipeline.ask import ask

        filters = self._filters(cameras, videos, after, before, time_zone)
        return ask(self._reader(), question, filters, reuse=reuse, max_new_tokens=max_new_tokens, on_text=on_text)

    def ask_stream(self, question: str, **options: Any) -> Iterator[str | Answer]:
        """Pieces of the answer's text as they are decoded; the last item is the ``Answer`` itself."""
        import queue
        import threading

        pieces: queue.Queue[str | Answer | BaseException] = queue.Queue()

        def run() -> None:
            try:
                pieces.put(self.ask(question, on_text=pieces.put, **options))
            except BaseException as exc:  # handed to the consumer, which raises it
                pieces.put(exc)

        threading.Thread(target=run, name="vxl-ask", daemon=True).start()
        while True:
            item = pieces.get()
            if isinstance(item, BaseException):
                raise item
            yield item
            if isinstance(item, Answer):
                return

    @translated
    def anomalies(
        self,
        *,
        cameras: Sequence[str] = (),
        videos: Sequence[str] = (),
        after: str | datetime | None = None,
        before: str | datetime | None = None,
        time_zone: str | None = None,
        max_per_day: int | None = None,
    ) -> AnomalyResult:
        """Unusual stretches against each camera's own normal, at most ``max_per_day`` per camera and day."""
        from pipeline.scan import DEFAULT_MAX_PER_DAY, anomalies

        filters = self._filters(cameras, videos, after, before, time_zone)
        return anomalies(self._reader(), filters, DEFAULT_MAX_PER_DAY if max_per_day is None else max_per_day)

    @translated
    def videos(self) -> list[dict[str, Any]]:
        """Every object version the ledger knows, as plain rows, by URI and then age."""
        from pipeline.admin import list_videos

        return list_videos(self._reader())

    @translated
    def status(self) -> dict[str, Any]:
        """Counts by state, hours, bytes, and who is writing."""
        from pipeline.admin import status

        return status(self._reader())

    @translated
    def retry(self, *uris: str, wait_s: float = 0.0) -> list[str]:
        """Put failed and quarantined videos (all, or those named) back in line for the next ingest; their URIs."""
        from pipeline.admin import retry

        return retry(self._reader(), uris, wait_s)

    @translated
    def delete(self, *uris: str, wait_s: float = 0.0) -> list[str]:
        """Delete videos with all their rows and KV; their URIs. They are not indexed again in the same version."""
        from pipeline.admin import delete

        return delete(self._reader(), uris, wait_s)

    @translated
    def compact(self, wait_s: float = 0.0) -> dict[str, Any]:
        """Compact tables, remove what nothing refers to; what was freed."""
        from pipeline.admin import compact

        return compact(self._reader(), wait_s)

    @translated
    def retention(self, *, dry_run: bool = False, wait_s: float = 0.0) -> dict[str, Any]:
        """Carry out the settings' retention rules, or with ``dry_run`` say what they would do now.

        The result has ``demoted`` (segments), ``expired`` (videos), ``unknown_age`` (videos without a start, which are
        kept) and ``freed_bytes`` of KV. Raises ``UsageError`` without rules, ``ArchiveBusy`` while another writes.
        """
        from pipeline.retention import run_retention

        return run_retention(self._reader(), dry_run=dry_run, wait_s=wait_s)

    @property
    def kv(self) -> ArchiveKV:
        """What can be done with the stored KV as such."""
        return ArchiveKV(self)

    @translated
    def doctor(self) -> dict[str, Any]:
        """Checks of this machine and this archive, each with a verdict and what to do."""
        from pipeline.doctor import doctor

        return doctor(self.folder, self.settings)


@dataclass(frozen=True)
class ArchiveKV:
    """The stored KV of an archive: is it right, and what does it take."""

    archive: Archive

    @translated
    def verify(
        self,
        *,
        segments: int | None = None,
        all_segments: bool = False,
        seed: int = 0,
        exact: bool = False,
        observe: Callable[[SegmentVerdict], None] | None = None,
    ) -> dict[str, Any]:
        """Prefill segments again from their videos, compare with what is stored, write a certificate into the archive.

        ``segments`` are drawn by ``seed`` from those that can be asked (16 by default, at most as many as there are).
        The result has ``segments`` (one verdict each, ``status`` is ``verified``, ``failed`` or ``not verifiable``),
        ``counts``, ``ok`` (every one is verified) and ``certificate``, its path relative to the archive. ``observe``
        gets each verdict as it is reached. ``exact`` demands equal bytes: for the device and number of threads that
        indexed; others add up in another order, and a small difference passes. Raises ``ModelMismatch`` where the
        archive's model is not here.
        """
        from pipeline.kv_verify import DEFAULT_SEGMENTS, verify

        wanted = DEFAULT_SEGMENTS if segments is None else segments
        return verify(
            self.archive._reader(),
            num_segments=wanted,
            all_segments=all_segments,
            seed=seed,
            exact=exact,
            observe=observe,
        )

    @translated
    def stats(self, *, price_per_gb_month: float | None = None) -> dict[str, Any]:
        """Bytes on disk in all, per camera and camera-hour, by tier and codec; with a price, their cost a month."""
        from pipeline.kv_stats import kv_stats

        return kv_stats(self.archive._reader(), price_per_gb_month)

    @translated
    def evict(self, *, max_bytes: int | None = None, dry_run: bool = False, wait_s: float = 0.0) -> dict[str, Any]:
        """Demote the coldest dense KV and tokens until files take at most ``max_bytes`` (the setting's cap by default).

        The result has ``bytes_before``, ``bytes_after``, ``fits`` and ``demoted``; pinned segments are left alone.
        ``dry_run`` estimates. Raises ``UsageError`` without a cap, ``ArchiveBusy`` while another process writes.
        """
        from pipeline.retention import evict

        return evict(self.archive._reader(), max_bytes=max_bytes, dry_run=dry_run, wait_s=wait_s)


@dataclass(frozen=True, kw_only=True)
class SearchQuery:
    """An immutable search: every method gives a new one; iterating, or any ``to_*``, runs it."""

    archive: Archive
    text: str
    limit_: int
    zone: str | None = None
    cameras_: tuple[str, ...] = ()
    videos_: tuple[str, ...] = ()
    after: str | datetime | None = None
    before: str | datetime | None = None
    daily: tuple[str, str] | None = None

    def cameras(self, *names: str) -> SearchQuery:
        """Only these cameras."""
        return replace(self, cameras_=names)

    def between(self, after: str | datetime | None, before: str | datetime | None) -> SearchQuery:
        """Only footage in the half-open wall-clock range; naive times need a time zone."""
        return replace(self, after=after, before=before)

    def time_range(self, start: str, end: str) -> SearchQuery:
        """Only this local time of day, ``HH:MM`` to ``HH:MM``, over midnight if the second is earlier."""
        return replace(self, daily=(start, end))

    def time_zone(self, name: str) -> SearchQuery:
        """The zone of naive times and of ``time_range``."""
        return replace(self, zone=name)

    def where(self, *, camera: str | None = None, video: str | None = None) -> SearchQuery:
        """One more exact condition; ``video`` is a URI or path."""
        query = self
        if camera is not None:
            query = replace(query, cameras_=(*query.cameras_, camera))
        if video is not None:
            query = replace(query, videos_=(*query.videos_, video))
        return query

    def limit(self, count: int) -> SearchQuery:
        """At most this many moments."""
        return replace(self, limit_=count)

    @translated
    def run(self) -> SearchResult:
        """The moments with their coverage."""
        from pipeline.query import search

        filters = self.archive._filters(self.cameras_, self.videos_, self.after, self.before, self.zone, self.daily)
        return search(self.archive._reader(), self.text, filters, self.limit_)

    def __iter__(self) -> Iterator[Moment]:
        return iter(self.run().moments)

    def to_dicts(self) -> list[dict[str, Any]]:
        """Moments as plain dictionaries, times as ISO text."""
        return [moment.to_dict() for moment in self]

    def to_arrow(self) -> pa.Table:
        """Moments as an Arrow table, times as UTC timestamps."""
        import pyarrow as pa

        stamp = pa.timestamp("us", tz="UTC")
        schema = pa.schema(
            [
                ("rank", pa.int32()),
                ("score", pa.float64()),
                ("video_id", pa.string()),
                ("uri", pa.string()),
                ("title", pa.string()),
                ("camera", pa.string()),
                ("start_s", pa.float64()),
                ("end_s", pa.float64()),
                ("start_time", stamp),
                ("end_time", stamp),
            ]
        )
        rows = [{name: getattr(moment, name) for name in schema.names} for moment in self]
        return pa.Table.from_pylist(rows, schema=schema)

    def to_pandas(self) -> pd.DataFrame:
        """Moments as a data frame; needs pandas."""
        try:
            return self.to_arrow().to_pandas()
        except ImportError as exc:
            raise ConfigError("to_pandas needs pandas: pip install pandas") from exc
