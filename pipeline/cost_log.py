"""What it cost on this machine to get KV, ask by ask: a small file beside the archive's tables, bounded in size.

``<archive>/costs.jsonl`` has one JSON object per line, a ``Cost``: where it was measured, which way was taken, the
work, both predictions of the planner and the truth. Readers append to it; one that cannot (S3) goes without. Only the
planner's choice between two ways to the same KV depends on it, so the file may be removed at any time.
"""

from __future__ import annotations

import json
import platform
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from typing import Any, Literal, get_args

from indexers.folder import Folder, Place, as_folder

COST_LOG = "costs.jsonl"
LARGEST_BYTES = 256 << 10
_KEPT_LINES = 256

CostPath = Literal["reload", "tokens", "recompute", "ingest", "prefill"]
"""How KV was come by: read, made from stored tokens, made from the video; and what ingestion took, in all and for the
pass of the language model in it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Cost:
    """One measurement. ``bytes`` is what a reload reads, ``frames`` and ``segments`` what a recomputation prefills,
    ``tokens`` what the language model is given of stored tokens and the texts between them.

    ``is_first``: it was its process's first ask, which opens and imports on the way.
    """

    host: str
    device: str
    path: CostPath
    bytes: int
    frames: int
    segments: int
    actual_s: float
    tokens: int = 0
    is_first: bool = False
    predicted_reload_s: float | None = None
    predicted_tokens_s: float | None = None
    predicted_recompute_s: float | None = None

    @property
    def predicted_s(self) -> float | None:
        """What was predicted for the way that was taken."""
        predicted = {"reload": self.predicted_reload_s, "tokens": self.predicted_tokens_s}
        return predicted.get(self.path, self.predicted_recompute_s)

    @property
    def error(self) -> float | None:
        """By what factor the prediction was wrong, at least 1; ``None`` where there was none."""
        if self.predicted_s is None or self.actual_s <= 0 or self.predicted_s <= 0:
            return None
        return max(self.predicted_s / self.actual_s, self.actual_s / self.predicted_s)


def host_name() -> str:
    """The machine that measures; its rates say nothing about another's."""
    return platform.node() or "unknown"


def append_cost(place: Place, cost: Cost) -> bool:
    """Note a measurement and keep the file small; ``False`` where nothing can be written."""
    folder = as_folder(place)
    num_bytes = folder.append(COST_LOG, (json.dumps(asdict(cost)) + "\n").encode())
    if num_bytes is None:
        return False
    try:
        if num_bytes > LARGEST_BYTES:
            _shorten(folder)
    except OSError:
        return False
    return True


def read_costs(folder: Place) -> list[Cost]:
    """Everything noted, oldest first. Lines that are cut, damaged or of another version are skipped."""
    try:
        text = as_folder(folder).read_bytes(COST_LOG).decode("utf-8", "replace")
    except OSError:
        return []
    return list(_parsed(text.splitlines()))


def _parsed(lines: Iterable[str]) -> Iterable[Cost]:
    for line in lines:
        try:
            fields: Any = json.loads(line)
            cost = Cost(**fields)
            if (
                cost.actual_s > 0
                and cost.bytes >= 0
                and cost.frames >= 0
                and cost.tokens >= 0
                and cost.path in get_args(CostPath)
            ):
                yield cost
        except (ValueError, TypeError):
            continue


def _shorten(folder: Folder) -> None:
    lines = folder.read_bytes(COST_LOG).splitlines(keepends=True)[-_KEPT_LINES:]
    with folder.create(COST_LOG) as shorter:
        shorter.file.write(b"".join(lines))
        shorter.commit()
