"""How much dense KV an archive keeps: a byte cap that is never exceeded, and demotion of the coldest segments.

A segment's dense KV is ``exact``, ``int8`` or ``int4``; or only its projected ``tokens`` are left, from which a
question makes it again; or there is ``none`` of it and the segment is answered from its sparse KV. Tokens are written
when a segment is indexed, beside its dense KV (``storage.keep_tokens``), since the video may be gone when it is
demoted. The cap counts the files of dense KV and tokens, whatever they are there for: those of hidden and replaced
videos, unfinished and leftover ones too. Sparse KV, vectors and pictures are not counted; retention removes them.

Room is made before it is needed. The committer demotes after every commit, so that the next segment of every worker
fits; the worker then looks again, under a lock, while it writes. What does not fit is stored as sparse KV only.
"""

from __future__ import annotations

import fcntl
import logging
import math
import os
import time
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from indexers.access_log import last_uses
from indexers.container import ALIGNMENT, aligned
from indexers.errors import CorruptKV, DiskFull, StoreUnavailable
from indexers.folder import LocalFolder, Place, as_folder, reached
from indexers.kv_file import ITEM_BYTES, DenseKVReader
from indexers.records import INDEXED, SegmentRow, SegmentRows, VideoRow
from indexers.store import LanceStore
from indexers.sweep import KV_FOLDER
from pipeline.config import StorageSettings
from pipeline.errors import StorageError, UsageError
from pipeline.kv_encoding import NO_DENSE, TOKENS, encoding_of, reencode_segment
from pipeline.media import normalise_uri

if TYPE_CHECKING:
    from pipeline.recipe import Recipe
    from pipeline.segment import Segment

logger = logging.getLogger(__name__)

CERTIFICATES = "certificates"
ROOM_LOCK = "room.lock"
_TIMESTAMP_ROOM = 16
"""Tokens of the longest timestamp text, with room to spare."""
_POLL_S = 0.1
_HEADER_BYTES_PER_CHUNK = 512
_HEADER_BYTES_PER_GROUP = 32


class Tier(StrEnum):
    """What is kept of a segment's dense KV, from most to least."""

    EXACT = "exact"
    INT8 = "int8"
    INT4 = "int4"
    TOKENS = "tokens"
    NONE = "none"

    @property
    def rank(self) -> int:
        """0 for exact, rising as less is kept."""
        return list(Tier).index(self)


LOSSY_TIERS = (Tier.INT8, Tier.INT4)
"""Dense KV encoded anew, at a loss."""
LOWER_TIERS = (*LOSSY_TIERS, Tier.TOKENS, Tier.NONE)
"""What a segment may be demoted to, in the order in which room is made."""


def tier_of(segment: SegmentRow) -> Tier:
    """The tier of a committed segment."""
    if segment.kv_path is not None:
        return Tier(segment.codec)
    return Tier.NONE if segment.tokens_path is None else Tier.TOKENS


@dataclass(frozen=True, slots=True, kw_only=True)
class Demotion:
    """One step down of one segment. ``freed`` is in bytes; a planned one is an estimate for int8 and int4."""

    segment_id: str
    uri: str
    camera: str | None
    before: Tier
    after: Tier
    freed: int

    def to_dict(self) -> dict[str, Any]:
        return {
            "segment_id": self.segment_id,
            "uri": self.uri,
            "camera": self.camera,
            "before": str(self.before),
            "after": str(self.after),
            "freed": self.freed,
        }


@dataclass(frozen=True, slots=True)
class Candidate:
    """A segment with dense KV or tokens that may be demoted. ``last_use`` is in seconds since 1970."""

    segment: SegmentRow
    video: VideoRow | None
    last_use: float


def is_pinned(video: VideoRow | None, pins: Collection[str]) -> bool:
    """Whether a pin names the video's camera or address."""
    if video is None:
        return False
    return any(pin == video.camera or video.uri in (pin, _address(pin)) for pin in pins)


def _address(pin: str) -> str | None:
    return normalise_uri(pin) if "/" in pin else None


def require_local(place: Place, what: str) -> Path:
    """The archive's folder on this machine. Raises ``UsageError`` for one on S3, where ``what`` is not supported."""
    folder = as_folder(place)
    if not isinstance(folder, LocalFolder):
        raise UsageError(
            f"{what} needs an archive in a local folder, not {folder.address()!r}: dense KV on S3 is not demoted yet; "
            "vxl delete removes whole videos, ingest.codec stores new ones in fewer bytes"
        )
    return folder.path


def kv_file_bytes(archive: Place) -> int:
    """Bytes of all files of dense KV and tokens, unfinished and leftover ones included."""
    folder, certificates = as_folder(archive), f"{KV_FOLDER}/{CERTIFICATES}/"
    with reached(folder):
        return sum(file.num_bytes for file in folder.list(KV_FOLDER) if not file.name.startswith(certificates))


@contextmanager
def room_lock(folder: Path) -> Iterator[None]:
    """While it is held nobody else measures and writes dense KV under the cap. Ends with its holder."""
    path = folder / KV_FOLDER / ROOM_LOCK
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def largest_segment_bytes(recipe: Recipe, *, dense: bool = True, tokens: bool = False) -> int | None:
    """No segment's exact KV file (``dense``) and its tokens (``tokens``) together are larger.

    ``None`` where a segment is a whole video of any length.
    """
    if recipe.segment_s is None:
        return None
    spec = recipe.architecture
    num_groups = math.ceil(recipe.segment_s * recipe.fps / recipe.frames_per_group) + 1
    num_chunks = math.ceil(num_groups / recipe.chunk_groups)
    visual = (int(spec["dts"]["grid"]) // int(spec["pool_stride"])) ** 2
    bound = 0
    if dense:
        bound += _file_bound(num_groups * (visual + _TIMESTAMP_ROOM) * token_bytes(recipe), num_chunks, num_groups)
    if tokens:
        width = int(spec["language"]["width"])
        bound += _file_bound(num_groups * visual * width * ITEM_BYTES[recipe.dtype], num_chunks, num_groups)
    return bound


def token_bytes(recipe: Recipe) -> int:
    """Bytes of one token's exact dense KV."""
    language = recipe.architecture["language"]
    values = 2 * int(language["num_layers"]) * int(language["num_kv_heads"]) * int(language["head_dim"])
    return values * ITEM_BYTES[recipe.dtype]


def _file_bound(payload: int, num_chunks: int, num_groups: int) -> int:
    header = ALIGNMENT + num_chunks * _HEADER_BYTES_PER_CHUNK + num_groups * _HEADER_BYTES_PER_GROUP
    return aligned(header) + payload + num_chunks * ALIGNMENT


def write_segment(
    archive: Place, segment: Segment, codec: str, storage: StorageSettings, wait_s: float = 0.0
) -> SegmentRows:
    """Write a segment's files under the cap and return its rows.

    Where there is no room for dense KV its tokens are kept, if they are wanted and fit, else sparse KV only.

    ``wait_s``: how long the committer is given to make room, where it runs beside this worker. Raises what writing
    raises.
    """
    tokens = storage.keeps_tokens(segment.task.camera)
    if storage.static_motion is None and storage.max_kv_bytes is None:
        return segment.write_kv(archive, codec, tokens=tokens)
    ends = np.cumsum([chunk.num_groups for chunk in segment.chunks])
    motion = [float(part.mean()) for part in np.split(segment.motion_G, ends[:-1])]
    keep = kept_dense(motion, storage.static_motion)
    if not any(keep) or storage.max_kv_bytes is None:
        return segment.write_kv(archive, codec, keep, tokens=tokens)
    kept = [chunk for chunk, is_kept in zip(segment.chunks, keep, strict=True) if is_kept]
    sizes = len(segment.chunks), sum(chunk.num_groups for chunk in segment.chunks)
    for_tokens = _file_bound(segment.visual_GPD.nbytes, *sizes) if tokens else 0
    needed = _file_bound(sum(chunk.num_bytes for chunk in kept), *sizes) + for_tokens
    deadline = time.monotonic() + wait_s
    folder = require_local(archive, "a byte cap (storage.max_kv_bytes)")
    while True:
        with room_lock(folder):
            used, is_last = kv_file_bytes(archive), time.monotonic() >= deadline
            if used + needed <= storage.max_kv_bytes:
                return segment.write_kv(archive, codec, keep, tokens=tokens)
            if is_last and tokens and used + for_tokens <= storage.max_kv_bytes:
                logger.warning("segment %s keeps tokens only: no room under storage.max_kv_bytes", segment.segment_id)
                return segment.write_kv(archive, codec, keep, dense=False, tokens=True)
        if is_last:
            break
        time.sleep(_POLL_S)
    logger.warning("segment %s keeps sparse KV only: no room under storage.max_kv_bytes", segment.segment_id)
    return segment.write_kv(archive, codec, [False] * len(keep))


def kept_dense(motion: Sequence[float], static_motion: float | None) -> list[bool]:
    """Which chunks keep dense KV: all, or with a threshold those that move more."""
    return [static_motion is None or not value <= static_motion for value in motion]


@dataclass(slots=True)
class KeptKV:
    """What one ingest kept as it was, and what it had to give up; made into notices at its end."""

    recipe: Recipe
    storage: StorageSettings
    segments: int = 0
    frames: int = 0
    tokens: int = 0
    chunks: int = 0
    static_chunks: int = 0
    static_bytes: int = 0
    without_room: int = 0
    tokens_only: int = 0
    demoted: int = 0

    def note(self, rows: SegmentRows) -> None:
        """Count a segment that was committed."""
        motion = rows.chunks["motion"].to_pylist()
        tokens = rows.chunks["num_tokens"].to_pylist()
        keep = kept_dense(motion, self.storage.static_motion)
        given_up = sum(count for count, is_kept in zip(tokens, keep, strict=True) if not is_kept)
        self.segments += 1
        self.frames += int(rows.segment["num_frames"])
        self.tokens += int(rows.segment["num_tokens"])
        self.chunks += len(keep)
        self.static_chunks += keep.count(False)
        self.static_bytes += given_up * token_bytes(self.recipe)
        if any(keep) and rows.segment["kv_path"] is None:
            has_tokens = rows.segment["tokens_path"] is not None
            self.tokens_only += has_tokens
            self.without_room += not has_tokens

    def notices(self) -> tuple[str, ...]:
        """One sentence for each thing that was given up."""
        said = []
        if self.static_chunks:
            said.append(
                f"{self.static_chunks} of {self.chunks} chunks measured as static (motion at most "
                f"{self.storage.static_motion:g}) and keep sparse KV only: {self.static_bytes / 1e6:.1f} MB of dense "
                "KV were not stored"
            )
        if self.demoted:
            said.append(f"{self.demoted} times a colder segment was demoted to stay under storage.max_kv_bytes")
        if self.tokens_only:
            said.append(f"{self.tokens_only} segments keep tokens only: there was no room under storage.max_kv_bytes")
        if self.without_room:
            said.append(
                f"{self.without_room} segments keep sparse KV only: there was no room under storage.max_kv_bytes"
            )
        return tuple(said)


class TierKeeper:
    """Demotes segments of one archive. Its owner holds the writer lease; all but ``candidates`` write."""

    def __init__(self, archive: Place, store: LanceStore, pins: Collection[str]) -> None:
        self._folder = require_local(archive, "demoting dense KV")
        self._store = store
        self._pins = pins

    def candidates(self) -> list[Candidate]:
        """Segments with dense KV or tokens that no pin names, the coldest first.

        A segment is as warm as its last use, or, before any, as the writing of its file. Segments of replaced versions,
        which nobody can ask, are colder than all others.
        """
        videos = {video.video_id: video for video in self._store.videos()}
        uses = last_uses(self._folder)
        found = []
        for segment in self._store.segments_of():
            video = videos.get(segment.video_id)
            if not segment.file_paths or is_pinned(video, self._pins):
                continue
            if video is not None and video.superseded_by is not None:
                found.append(Candidate(segment, video, 0.0))
                continue
            written = [path.stat().st_mtime for name in segment.file_paths if (path := self._folder / name).is_file()]
            if not written:
                continue  # lost: nothing to free
            found.append(Candidate(segment, video, max(*written, uses.get(segment.segment_id, 0.0))))
        return sorted(found, key=lambda item: (item.last_use, item.segment.segment_id))

    def make_room(
        self, cap: int, needed: int, observe: Callable[[Demotion], object] = lambda step: None
    ) -> list[Demotion]:
        """Demote until ``needed`` bytes are free under ``cap``, or nothing is left that may be demoted.

        First the coldest become int8, then int4, then their tokens are left where they are kept, then nothing is: so
        much footage keeps some. Encoding anew needs room for the new file beside the old one; where cap or disk
        do not give it, the coldest segment loses its dense KV instead.
        """
        used = kv_file_bytes(self._folder)
        if used + needed <= cap:
            return []
        done: list[Demotion] = []
        left = {item.segment.segment_id: item for item in self.candidates()}
        for tier in LOWER_TIERS:
            for segment_id in list(left):
                while segment_id in left and used + needed > cap:
                    item = left[segment_id]
                    if tier_of(item.segment).rank >= tier.rank:
                        break
                    step = self._step(item, tier, cap, left)
                    if step is None:
                        break
                    done.append(step)
                    observe(step)
                    used = kv_file_bytes(self._folder)
        if done:
            refresh_videos(self._store)
        return done

    def _step(self, item: Candidate, tier: Tier, cap: int, left: dict[str, Candidate]) -> Demotion | None:
        """Demote one, or the coldest of all where there is no room to encode this one anew; ``None``: no gain."""
        if tier is Tier.TOKENS and item.segment.tokens_path is None:
            return None
        if tier in LOSSY_TIERS:
            planned = encoded_file_bytes(self._folder, item.segment, tier)
            if planned is None or planned >= item.segment.kv_bytes:
                return None
            with room_lock(self._folder):
                if kv_file_bytes(self._folder) + planned <= cap:
                    try:
                        step, row = self._reencode(item, tier)
                    except DiskFull:  # no room to encode in, cap or no cap
                        pass
                    except (CorruptKV, StorageError) as exc:  # damaged, or values that the codec cannot hold
                        logger.warning("segment %s stays as it is for now: %s", item.segment.segment_id, exc)
                        return None
                    else:
                        left[row.segment_id] = replace(item, segment=row)
                        return step
            item = next(other for other in left.values() if other.segment.kv_path is not None)
            tier = Tier.NONE if item.segment.tokens_path is None else Tier.TOKENS
        step, row = self.drop(item, tier)
        left[row.segment_id] = replace(item, segment=row)
        return step

    def demote(self, item: Candidate, tier: Tier, cap: int | None) -> Demotion | None:
        """One segment to a lower tier; ``None`` where cap or disk leave no room to encode it anew.

        ``refresh_videos`` has to follow. ``ValueError`` for tokens of a segment that has kept none.
        """
        if tier in (Tier.TOKENS, Tier.NONE):
            return self.drop(item, tier)[0]
        planned = encoded_file_bytes(self._folder, item.segment, tier)
        with room_lock(self._folder):
            if planned is None or (cap is not None and kv_file_bytes(self._folder) + planned > cap):
                return None
            try:
                return self._reencode(item, tier)[0]
            except DiskFull:
                return None

    def drop(self, item: Candidate, tier: Tier) -> tuple[Demotion, SegmentRow]:
        """Give up a segment's dense KV, and unless ``tier`` is tokens those too: its row first, then its files."""
        segment = item.segment
        row = replace(segment, kv_path=None, kv_bytes=0, kv_digest=None, tier=NO_DENSE, codec=NO_DENSE)
        if tier is Tier.NONE:
            row = replace(row, tokens_path=None, tokens_bytes=0, tokens_digest=None)
        elif segment.tokens_path is None:
            raise ValueError(f"segment {segment.segment_id} has kept no tokens")
        else:
            row = replace(row, tier=TOKENS)
        paths = [self._folder / path for path in segment.file_paths if path not in row.file_paths]
        freed = sum(path.stat().st_size for path in paths if path.is_file())
        self._store.replace_segment(row)
        for path in paths:
            self._remove(path)
        return _demotion(item, tier, freed), row

    def _reencode(self, item: Candidate, tier: Tier) -> tuple[Demotion, SegmentRow]:
        segment = item.segment
        row, old = reencode_segment(self._folder, segment, str(tier))
        assert row.kv_path is not None
        stat = old.stat()
        # It is no younger for having been encoded anew: the file's time is what tells how warm it is.
        os.utime(self._folder / row.kv_path, (stat.st_atime, stat.st_mtime))
        self._store.replace_segment(row)
        self._remove(old)
        return _demotion(item, tier, stat.st_size - row.kv_bytes), row

    def _remove(self, path: Path) -> None:
        try:
            path.unlink(missing_ok=True)
        except OSError as exc:
            raise StoreUnavailable(str(path), str(exc)) from exc


def refresh_videos(store: LanceStore) -> None:
    """Bring ``kv_bytes`` of indexed videos up to what their segments take: after demotions, and before other work,
    since a process killed while it demoted left them behind. The caller holds the writer lease."""
    sizes: dict[str, int] = {}
    for segment in store.segments_of():
        sizes[segment.video_id] = sizes.get(segment.video_id, 0) + segment.file_bytes
    rows = [(row, sizes.get(row.video_id, 0)) for row in store.videos(states=[INDEXED])]
    store.upsert_videos([replace(row, kv_bytes=size) for row, size in rows if row.kv_bytes != size])


def encoded_file_bytes(archive: Place, segment: SegmentRow, tier: Tier) -> int | None:
    """At most so many bytes a segment's file would have under a codec; ``None`` where its file cannot be read."""
    if segment.kv_path is None:
        return None
    try:
        with DenseKVReader(segment.kv_path, folder=as_folder(archive)) as file:
            header = replace(file.header, encoding=encoding_of(str(tier)))
            sizes = [aligned(header.chunk_bytes(chunk)) for chunk in range(header.num_chunks)]
            first = min((entry.offset for entry in file.entries), default=0)
    except (CorruptKV, StoreUnavailable):
        return None
    return int(np.sum(sizes, dtype=np.int64)) + first + ALIGNMENT


def bytes_left(folder: Place, segment: SegmentRow, tier: Tier) -> int | None:
    """At most so many bytes a segment's files would have in a lower tier; ``None`` where it cannot get there."""
    if tier is Tier.NONE:
        return 0
    if tier is Tier.TOKENS:
        return None if segment.tokens_path is None else segment.tokens_bytes
    encoded = encoded_file_bytes(folder, segment, tier)
    return None if encoded is None else encoded + segment.tokens_bytes


def _demotion(item: Candidate, after: Tier, freed: int) -> Demotion:
    video = item.video
    return Demotion(
        segment_id=item.segment.segment_id,
        uri="" if video is None else video.uri,
        camera=None if video is None else video.camera,
        before=tier_of(item.segment),
        after=after,
        freed=freed,
    )


def room_wanted(recipe: Recipe, store: LanceStore, cap: int, workers: int, *, tokens: bool = False) -> int:
    """Bytes to keep free: a segment for every worker and one to encode in, at most half the cap, at least a segment.

    Under a cap that no segment's dense KV fits, it is the room of ``tokens`` where they are kept: giving up what there
    is would not make the other.
    """
    largest = largest_segment_bytes(recipe, tokens=tokens)
    if largest is None:
        largest = max((segment.file_bytes for segment in store.segments_of()), default=0)
    elif largest > cap and tokens:
        largest = largest_segment_bytes(recipe, dense=False, tokens=True) or 0
    return min((workers + 1) * largest, max(largest, cap // 2))
