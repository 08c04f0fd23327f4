"""When a segment's KV was last used: a small file that readers append to, so that no reader writes a table.

``<archive>/access.log`` has one line per use: seconds since 1970, a space, the segment's id. Lines are written with one
append each, so several readers may write at once; one that cannot (a read-only archive) goes without. Where nothing
can be appended to, on S3, a reader leaves its lines as a note of its own below ``<archive>/uses/``; the writer folds
notes into the log. Nothing but the order in which KV is demoted depends on either: losing a line costs nothing else.

A name with a codec behind the id (``age_name``) is about the file that a segment was encoded anew into: it counts as
old as what it was made of, where files cannot be given another's time.
"""

from __future__ import annotations

import contextlib
import secrets
import time
from collections.abc import Iterable, Mapping

from indexers.folder import Folder, FoundFile, Place, as_folder
from indexers.lease import WriterLease

ACCESS_LOG = "access.log"
LARGEST_BYTES = 4 << 20
"""Readers stop appending here until a writer has shortened the file; a line is about 60 bytes."""
NOTES_FOLDER = "uses"
MOST_NOTES = 1000
"""Readers leave no more notes here until a writer has folded them."""
_NOTE_SUFFIX = ".log"
_LARGEST_NOTE = 1 << 20


def age_name(segment_id: str, codec: str) -> str:
    """Whose age a line tells: that of the segment's file under a codec."""
    return f"{segment_id}.{codec}"


def note_uses(folder: Place, segment_ids: Iterable[str], now: float | None = None) -> bool:
    """Say that these segments were used ``now`` (seconds since 1970); ``False`` where nothing can be written."""
    stamp = time.time() if now is None else now
    lines = _lines(dict.fromkeys(segment_ids, stamp))
    archive = as_folder(folder)
    try:
        if not archive.can_append:
            return len(archive.entries(NOTES_FOLDER)) < MOST_NOTES and _leave_note(archive, stamp, lines)
        if (archive.size(ACCESS_LOG) or 0) > LARGEST_BYTES:
            return False
    except OSError:
        return False
    return archive.append(ACCESS_LOG, lines) is not None


def note_age(folder: Folder, segment_id: str, codec: str, written: float) -> bool:
    """Say since when a segment's file under a codec counts as written; ``False`` where nothing can be written."""
    with contextlib.suppress(OSError):
        return _leave_note(folder, time.time(), _lines({age_name(segment_id, codec): written}))
    return False


def last_uses(folder: Place) -> dict[str, float]:
    """The latest noted use of each segment, and the ages noted, in seconds since 1970.

    Lines that are cut or damaged are skipped.
    """
    archive = as_folder(folder)
    try:
        return _read(archive, _notes(archive))
    except OSError:
        return {}


def shorten_access_log(folder: Place, known: Iterable[str], lease: WriterLease) -> None:
    """Keep one line for each known segment, in the log alone. A use that is noted at this very moment may be lost.

    Where nothing can be written the log stays as it is.

    ``ValueError`` unless ``lease`` is held.
    """
    if not lease.is_held:
        raise ValueError("shortening the access log needs the writer lease")
    archive, wanted = as_folder(folder), set(known)
    with contextlib.suppress(OSError):
        notes = _notes(archive)
        uses = _read(archive, notes)
        if not uses and not notes:
            return
        kept = {name: uses[name] for name in sorted(uses) if name.partition(".")[0] in wanted}
        with archive.create(ACCESS_LOG) as durable:
            durable.file.write(_lines(kept))
            durable.commit()
        for note in notes:
            archive.remove(note)


def _notes(archive: Folder) -> list[FoundFile]:
    return [found for found in archive.list(NOTES_FOLDER) if found.name.endswith(_NOTE_SUFFIX)]


def _leave_note(archive: Folder, stamp: float, lines: bytes) -> bool:
    with archive.create(f"{NOTES_FOLDER}/{stamp:.0f}-{secrets.token_hex(8)}{_NOTE_SUFFIX}") as note:
        note.file.write(lines)
        note.commit()
    return True


def _read(archive: Folder, notes: Iterable[FoundFile]) -> dict[str, float]:
    uses: dict[str, float] = {}
    for name in (ACCESS_LOG, *(note.name for note in notes if note.num_bytes <= _LARGEST_NOTE)):
        try:
            text = archive.read_bytes(name).decode("ascii", "replace")
        except FileNotFoundError:  # none yet, or folded meanwhile
            continue
        for line in text.splitlines():
            stamp, _, segment_id = line.partition(" ")
            if stamp.isdigit() and segment_id:
                uses[segment_id] = max(float(stamp), uses.get(segment_id, 0.0))
    return uses


def _lines(stamps: Mapping[str, float]) -> bytes:
    return "".join(f"{stamp:.0f} {segment_id}\n" for segment_id, stamp in stamps.items()).encode()
