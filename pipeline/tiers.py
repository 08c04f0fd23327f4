"""How much dense KV an archive keeps: a byte cap that is never exceeded, and demotion of the coldest segments.

A segment's dense KV is ``exact``, ``int8`` or ``int4``; or only its projected ``tokens`` are left, from which a
question makes it again; or there is ``none`` of it and the segment is answered from its sparse KV. Tokens are written
when a segment is indexed, beside its dense KV (``storage.keep_tokens``), since the video may be gone when it is
demoted. The cap counts the files of dense KV and tokens, whatever they are there for: those of hidden and replaced
videos, unfinished and leftover ones too. Sparse KV, vectors and pictures are not counted; retention removes them.

Room is made before it is needed. The committer demotes after every commit, so that the next segment of every worker
fits; the worker then asks for its room (``indexers.room``) before it writes. What does not fit is stored as sparse KV
only.
"""

from __future__ import annotations

import errno
import logging
import math
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from enum import StrEnum
from typing import TYPE_CHECKING, Any

import numpy as np

from indexers.access_log import age_name, last_uses, note_age, shorten_access_log
from indexers.container import ALIGNMENT, aligned
from indexers.errors import CorruptKV, DiskFull, StoreUnavailable
from indexers.folder import Place, as_folder, reached
from indexers.kv_file import FORMAT_VERSION, ITEM_BYTES, DenseKVReader, file_bytes
from indexers.lease import WriterLease
from indexers.records import INDEXED, SegmentRow, SegmentRows, VideoRow, kv_folder
from indexers.room import ROOM_NAME
from indexers.store import LanceStore
from indexers.sweep import KV_FOLDER
from pipeline.config import StorageSettings
from pipeline.errors import StorageError
from pipeline.kv_encoding import NO_DENSE, TOKENS, encoding_of, reencode_segment
from pipeline.media import normalise_uri

if TYPE_CHECKING:
    from pipeline.recipe import Recipe
    from pipeline.segment import Segment

logger = logging.getLogger(__name__)

CERTIFICATES = "certificates"
_TIMESTAMP_ROOM = 16
"""Tokens of the longest timestamp text, with room to spare."""
_HEADER_BYTES_PER_CHUNK = 512
_HEADER_BYTES_PER_GROUP = 32
_HEADER_BYTES_PER_SECTION = 32


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


def kv_file_bytes(archive: Place) -> int:
    """Bytes of all files of dense KV and tokens, unfinished and leftover ones included."""
    folder, certificates = as_folder(archive), f"{KV_FOLDER}/{CERTIFICATES}/"
    with reached(folder):
        return sum(
            file.num_bytes
            for file in folder.list(KV_FOLDER)
            if file.name != ROOM_NAME and not file.name.startswith(certificates)
        )


@contextmanager
def room_for(archive: Place, owner: str, num_bytes: int, cap: int) -> Iterator[bool]:
    """Whether so many bytes of dense KV and tokens fit under the cap; if so they are the caller's in the block.

    ``owner`` is the segment that they are written for.
    """
    folder = as_folder(archive)
    with ExitStack() as block:
        with reached(folder):
            room = folder.room(ROOM_NAME).reserve(owner, num_bytes, cap, lambda: kv_file_bytes(folder))
            has_room = block.enter_context(room)
        yield has_room


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
        payload = num_groups * (visual + _TIMESTAMP_ROOM) * token_bytes(recipe)
        bound += _file_bound(payload, num_chunks, num_groups, int(spec["language"]["num_layers"]))
    if tokens:
        width = int(spec["language"]["width"])
        bound += _file_bound(num_groups * visual * width * ITEM_BYTES[recipe.dtype], num_chunks, num_groups, 1)
    return bound


def token_bytes(recipe: Recipe) -> int:
    """Bytes of one token's exact dense KV."""
    language = recipe.architecture["language"]
    values = 2 * int(language["num_layers"]) * int(language["num_kv_heads"]) * int(language["head_dim"])
    return values * ITEM_BYTES[recipe.dtype]


def _file_bound(payload: int, num_chunks: int, num_groups: int, num_sections: int) -> int:
    per_chunk = _HEADER_BYTES_PER_CHUNK + num_sections * _HEADER_BYTES_PER_SECTION
    header = ALIGNMENT + num_chunks * per_chunk + num_groups * _HEADER_BYTES_PER_GROUP
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
    for_tokens = _file_bound(segment.visual_GPD.nbytes, *sizes, 1) if tokens else 0
    num_layers = segment.chunks[0].kv_LSKMDh.shape[0]
    needed = _file_bound(sum(chunk.num_bytes for chunk in kept), *sizes, num_layers) + for_tokens
    deadline = time.monotonic() + wait_s
    poll_s = as_folder(archive).room(ROOM_NAME).poll_s
    while True:
        is_last = time.monotonic() >= deadline
        with room_for(archive, segment.segment_id, needed, storage.max_kv_bytes) as has_room:
            if has_room:
                return segment.write_kv(archive, codec, keep, tokens=tokens)
        if is_last:
            break
        time.sleep(poll_s)
    if tokens:
        with room_for(archive, segment.segment_id, for_tokens, storage.max_kv_bytes) as has_room:
            if has_room:
                logger.warning("segment %s keeps tokens only: no room under storage.max_kv_bytes", segment.segment_id)
                return segment.write_kv(archive, codec, keep, dense=False, tokens=True)
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
    """Demotes segments of one archive. Its owner holds the writer lease; all but ``candidates`` write.

    ``lease`` is asked before every change: on S3 it may have been lost.
    """

    def __init__(
        self, archive: Place, store: LanceStore, pins: Collection[str], lease: WriterLease | None = None
    ) -> None:
        self._folder = as_folder(archive)
        self._store = store
        self._pins = pins
        self._lease = lease
        self._uses: dict[str, float] | None = None

    def candidates(self) -> list[Candidate]:
        """Segments with dense KV or tokens that no pin names, the coldest first.

        A segment is as warm as its last use, or, before any, as the writing of its file. Segments of replaced versions,
        which nobody can ask, are colder than all others.
        """
        videos = {video.video_id: video for video in self._store.videos()}
        uses = self._uses = last_uses(self._folder)
        with reached(self._folder):
            files = {file.name: file.modified for file in self._folder.list(KV_FOLDER) if not file.is_unfinished}
        found = []
        for segment in self._store.segments_of():
            video = videos.get(segment.video_id)
            if not segment.file_paths or is_pinned(video, self._pins):
                continue
            if video is not None and video.superseded_by is not None:
                found.append(Candidate(segment, video, 0.0))
                continue
            written = [_written(segment, name, files[name], uses) for name in segment.file_paths if name in files]
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
        if self._lease is not None and not self._folder.can_append:  # what readers left, in many small files
            shorten_access_log(self._folder, (row.segment_id for row in self._store.segments_of()), self._lease)
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
            self._require_lease()
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
            with room_for(self._folder, item.segment.segment_id, planned, cap) as has_room:
                try:
                    step_and_row = self._reencode(item, tier) if has_room else None
                except (CorruptKV, StorageError) as exc:  # damaged, or values that the codec cannot hold
                    logger.warning("segment %s stays as it is for now: %s", item.segment.segment_id, exc)
                    return None
            if step_and_row is not None:
                step, row = step_and_row
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
        if planned is None:
            return None
        with ExitStack() as block:
            if cap is not None and not block.enter_context(
                room_for(self._folder, item.segment.segment_id, planned, cap)
            ):
                return None
            step_and_row = self._reencode(item, tier)
        return None if step_and_row is None else step_and_row[0]

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
        names = [name for name in segment.file_paths if name not in row.file_paths]
        with reached(self._folder):
            freed = sum(self._folder.size(name) or 0 for name in names)
        self._switch(row, names)
        return _demotion(item, tier, freed), row

    def _reencode(self, item: Candidate, tier: Tier) -> tuple[Demotion, SegmentRow] | None:
        """``None`` where the archive's disk has no room to encode in, cap or no cap."""
        segment = item.segment
        assert segment.kv_path is not None
        with reached(self._folder):
            size, written = self._size_and_age(segment, segment.kv_path)
        self._require_lease()
        try:
            row = reencode_segment(self._folder, segment, str(tier))
        except DiskFull:
            if self._folder.free_bytes() is None:  # the temporary folder is full: giving up KV would not empty it
                raise
            return None
        assert row.kv_path is not None
        with reached(self._folder):
            # It is no younger for having been encoded anew: the file's time is what tells how warm it is.
            if not self._folder.set_modified(row.kv_path, written):
                note_age(self._folder, row.segment_id, row.codec, written)
                self._known_uses()[age_name(row.segment_id, row.codec)] = written
        self._switch(row, [segment.kv_path])
        return _demotion(item, tier, size - row.kv_bytes), row

    def _switch(self, row: SegmentRow, old: Sequence[str]) -> None:
        """Let a segment's row say what there is from now on, then remove the files that it no longer names."""
        self._require_lease()
        self._store.replace_segment(row)
        self._require_lease()
        for name in old:
            try:
                self._folder.remove(name)
            except OSError as exc:
                raise StoreUnavailable(self._folder.address(name), str(exc)) from exc

    def _size_and_age(self, segment: SegmentRow, name: str) -> tuple[int, float]:
        """Bytes of a file and when it counts as written; raises ``FileNotFoundError``."""
        for file in self._folder.list(kv_folder(segment.video_id)):
            if file.name == name and not file.is_unfinished:
                return file.num_bytes, _written(segment, name, file.modified, self._known_uses())
        raise FileNotFoundError(errno.ENOENT, "the file is not there", self._folder.address(name))

    def _known_uses(self) -> dict[str, float]:
        if self._uses is None:
            self._uses = last_uses(self._folder)
        return self._uses

    def _require_lease(self) -> None:
        if self._lease is not None:
            self._lease.require()


def _written(segment: SegmentRow, name: str, modified: float, uses: Mapping[str, float]) -> float:
    """When one of a segment's files counts as written."""
    if name != segment.kv_path:
        return modified
    return uses.get(age_name(segment.segment_id, segment.codec), modified)


def refresh_videos(store: LanceStore) -> None:
    """Bring ``kv_bytes`` of indexed videos up to what their segments take: after demotions, and before other work,
    since a process killed while it demoted left them behind. The caller holds the writer lease."""
    sizes: dict[str, int] = {}
    for segment in store.segments_of():
        sizes[segment.video_id] = sizes.get(segment.video_id, 0) + segment.file_bytes
    rows = [(row, sizes.get(row.video_id, 0)) for row in store.videos(states=[INDEXED])]
    store.upsert_videos([replace(row, kv_bytes=size) for row, size in rows if row.kv_bytes != size])


def encoded_file_bytes(archive: Place, segment: SegmentRow, tier: Tier) -> int | None:
    """Bytes that a segment's file would have under a codec; ``None`` where its file cannot be read."""
    if segment.kv_path is None:
        return None
    try:
        with DenseKVReader(segment.kv_path, folder=as_folder(archive)) as file:
            return file_bytes(replace(file.header, encoding=encoding_of(str(tier)), format=FORMAT_VERSION))
    except (CorruptKV, StoreUnavailable):
        return None


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
