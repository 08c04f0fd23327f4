"""When a segment's KV was last used: a small file that readers append to, so that no reader writes a table.

``<archive>/access.log`` has one line per use: seconds since 1970, a space, the segment's id. Lines are written with one
append each, so several readers may write at once; one that cannot (a read-only archive) goes without. Nothing but the
order in which KV is demoted depends on the file: losing it, or a line of it, costs nothing else.
"""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Iterable
from pathlib import Path

from indexers.container import DurableFile
from indexers.lease import WriterLease

ACCESS_LOG = "access.log"
LARGEST_BYTES = 4 << 20
"""Readers stop appending here until a writer has shortened the file; a line is about 60 bytes."""


def note_uses(folder: str | Path, segment_ids: Iterable[str], now: float | None = None) -> bool:
    """Say that these segments were used ``now`` (seconds since 1970); ``False`` where nothing can be written."""
    stamp = time.time() if now is None else now
    lines = "".join(f"{stamp:.0f} {segment_id}\n" for segment_id in segment_ids)
    path = Path(folder) / ACCESS_LOG
    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o644)
        try:
            if os.fstat(descriptor).st_size > LARGEST_BYTES:
                return False
            os.write(descriptor, lines.encode())
        finally:
            os.close(descriptor)
    except OSError:
        return False
    return True


def last_uses(folder: str | Path) -> dict[str, float]:
    """The latest noted use of each segment, in seconds since 1970. Lines that are cut or damaged are skipped."""
    try:
        text = (Path(folder) / ACCESS_LOG).read_bytes().decode("ascii", "replace")
    except OSError:
        return {}
    uses: dict[str, float] = {}
    for line in text.splitlines():
        stamp, _, segment_id = line.partition(" ")
        if stamp.isdigit() and segment_id:
            uses[segment_id] = max(float(stamp), uses.get(segment_id, 0.0))
    return uses


def shorten_access_log(folder: str | Path, known: Iterable[str], lease: WriterLease) -> None:
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
    with contextlib.suppress(OSError), DurableFile(Path(folder) / ACCESS_LOG) as durable:
        durable.file.write(lines.encode())
        durable.commit()
