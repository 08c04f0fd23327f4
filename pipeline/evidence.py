"""How a result reaches its pictures: the stored thumbnail, and a clip or frames cut from the source on demand."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from pipeline.errors import ArchiveError, EvidenceUnavailable
from pipeline.results import Evidence

if TYPE_CHECKING:
    import numpy as np

    from indexers.records import VideoRow
    from pipeline.reader import ArchiveReader


def evidence_for(reader: ArchiveReader, video: VideoRow, group_id: str, start_s: float, end_s: float) -> Evidence:
    """Evidence of ``[start_s, end_s)`` of ``video``; the thumbnail is that of the frame group ``group_id``."""

    def thumbnail() -> bytes | None:
        return reader.store.thumbnail(group_id)

    def clip(path: Path, pad_s: float) -> Path:
        from pipeline.clips import cut_clip

        with _source(reader, video) as media:
            return cut_clip(media, path, max(0.0, start_s - pad_s), end_s + pad_s)

    def frames(fps: float) -> list[np.ndarray]:
        from pipeline.clips import read_frames

        with _source(reader, video) as media:
            return read_frames(media, start_s, end_s, fps)

    return Evidence(thumbnail=thumbnail, clip=clip, frames=frames)


@contextmanager
def _source(reader: ArchiveReader, video: VideoRow) -> Iterator[Path]:
    """The source video as a local file, for as long as the block runs."""
    from pipeline.media import fetch_uri, scratch_folder

    with ExitStack() as stack:
        try:
            scratch = stack.enter_context(scratch_folder(video.uri, "vxl-evidence-"))
            media = stack.enter_context(fetch_uri(video.uri, video.etag, reader.settings.s3, scratch))
        except ArchiveError as exc:
            raise EvidenceUnavailable(f"the source of this result cannot be read any more: {exc}") from exc
        yield Path(media.path)
