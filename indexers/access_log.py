"""When a segment's KV was last used: a small file that readers append to, so that no reader writes a table.

``<archive>/access.log`` has one line per use: seconds since 1970, a space, the segment's id. Lines are written with one
append each, so several readers may write at once; one that cannot (a read-only archive, one on S3) goes without.
Nothing but the order in which KV is demoted depends on the file: losing it, or a line of it, costs nothing else.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterable

from indexers.folder import Place, as_folder
from indexers.lease import WriterLease

ACCESS_LOG = "access.log"
LARGEST_BYTES = 4 << 20
"""Readers stop appending here until a writer has shortened the file; a line is about 60 bytes."""


def note_uses(folder: Place, segment_ids: Iterable[str], now: float | None = None) -> bool:
    """Say that these segments were used ``now`` (seconds since 1970); ``False`` where nothing can be written."""
    stamp = time.time() if now is None else now
    lines = "".join(f"{stamp:.0f} {segment_id}\n" for segment_id in segment_ids)
    archive = as_folder(folder)
    try:
        if (archive.size(ACCESS_LOG) or 0) > LARGEST_BYTES:
            return False
    except OSError:
        return False
    return archive.append(ACCESS_LOG, lines.encode()) is not None


def last_uses(folder: Place) -> dict[str, float]:
    """The latest noted use of each segment, in seconds since 1970. Lines that are cut or damaged are skipped."""
    try:
        text = as_folder(folder).read_bytes(ACCESS_LOG).decode("ascii", "replace")
    except OSError:
        return {}
    uses: dict[str, float] = {}
    for line in text.splitlines():
        stamp, _, segment_id = line.partition(" ")
        if stamp.isdigit() and segment_id:
            uses[segment_id] = max(float(stamp), uses.get(segment_id, 0.0))
    return uses


def shorten_access_log(folder: Place, known: Iterable[str], lease: WriterLease) -> None:
    """Keep one line for each known segment. A use that is noted at this very moment may be lost.

    Where nothing can be written the log stays as it is.

    ``ValueError`` unless ``lease`` is held.
    """
    if not lease.is_held:
        raise ValueError("shortening the access log needs the writer lease")
    uses = last_uses(folder)
    if not uses:
        return
    lines = "".join(f"{uses[segment_id]:.0f} {segment_id}\n" for segment_id in sorted(known) if segment_id in uses)
    with contextlib.suppress(OSError), as_folder(folder).create(ACCESS_LOG) as durable:
        durable.file.write(lines.encode())
        durable.commit()
