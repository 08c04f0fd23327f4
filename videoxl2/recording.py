"""A folder of recorded tensors: what the published code computed, with the weights and settings it ran with.

Owns the folder's format (``videoxl2-golden-v1``, see ``docs/model.md``) and nothing of the comparison, which is
``parity``'s. Everything comes from ``config.json``; no size, name or setting of a particular recording is known here.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from videoxl2.config import ModelSpec, PrefillSettings
from videoxl2.errors import ModelError
from videoxl2.layout import TokenLayout
from videoxl2.model import VideoXL2
from videoxl2.weights import load_weights, video_table

FORMAT = "videoxl2-golden-v1"
_ARCHITECTURE = ("vision_config", "dts_config", "token_ids")


class RecordingError(ModelError):
    """A folder that is not a recording, or a recording whose configuration lacks something."""


@dataclass(frozen=True, slots=True)
class Tolerances:
    """The largest absolute difference that counts as equal, by kind of tensor. Integers must always be equal."""

    vision: float
    logits: float
    kv: float
    preprocess: float = 1e-6
    """The resize is exact to the level of uint8; what is left is the rounding of (x/255 - 0.5) / 0.5."""


@dataclass(frozen=True, slots=True)
class Selection:
    """One bi-level run: ``units`` None means that the whole feature was off (plain full attention)."""

    name: str
    chunk_groups: int
    compression: int
    units: tuple[int, ...] | None
    expected: dict[str, Any]


@dataclass(frozen=True)
class Recording:
    """A recording that has been read. ``used`` collects the names that were asked for."""

    folder: Path
    config: dict[str, Any]
    tensors: dict[str, Tensor]
    model: VideoXL2
    used: set[str] = field(default_factory=set)

    @classmethod
    def load(cls, folder: Path | str) -> Recording:
        """Read a folder. Raises ``RecordingError`` where it is none, ``CheckpointMismatch`` for other weights."""
        folder = Path(folder)
        config = _read_json(folder / "config.json")
        if config.get("format") != FORMAT:
            raise RecordingError(f"{folder}/config.json has format {config.get('format')!r}, not {FORMAT!r}")
        if absent := [name for name in ("weights", "tensors") if not (folder / f"{name}.safetensors").is_file()]:
            raise RecordingError(f"{folder} has no {absent[0]}.safetensors")
        try:
            tensors = load_file(folder / "tensors.safetensors")
        except SafetensorError as problem:
            raise RecordingError(f"cannot read {folder}/tensors.safetensors: {problem}") from problem
        try:
            spec = ModelSpec.from_config(checkpoint_config(config))
        except (TypeError, ValueError) as problem:
            raise RecordingError(f"{folder}/config.json describes no model: {problem}") from problem
        dtype = getattr(torch, str(config.get("dtype", "float32")), None)
        if not isinstance(dtype, torch.dtype):
            raise RecordingError(f"{folder}/config.json has dtype {config['dtype']!r}, which torch does not know")
        with torch.device("meta"):
            model = VideoXL2(spec)
        load_weights(model, folder / "weights.safetensors", video_table(spec), device="cpu", dtype=dtype)
        model.language.tie_head()
        return cls(folder, config, tensors, model.eval())

    def field(self, *path: str) -> Any:
        """A field of ``config.json``; ``RecordingError`` naming it where it is absent."""
        value: Any = self.config
        for name in path:
            if not isinstance(value, dict) or name not in value:
                raise RecordingError(f"{self.folder}/config.json has no {'.'.join(path)!r}")
            value = value[name]
        return value

    def get(self, name: str) -> Tensor | None:
        """A recorded tensor, or None where the recording does not hold it."""
        self.used.add(name)
        return self.tensors.get(name)

    def need(self, name: str) -> Tensor:
        """A recorded tensor that a stage cannot do without."""
        found = self.get(name)
        if found is None:
            raise RecordingError(f"{self.folder}/tensors.safetensors has no {name!r}")
        return found

    def holds(self, prefix: str) -> bool:
        """Whether any tensor's name starts so."""
        return any(name.startswith(prefix) for name in self.tensors)

    @property
    def tolerances(self) -> Tolerances:
        """Those that the recording suggests."""
        return Tolerances(*(float(self.field("tolerance", f"{kind}_abs")) for kind in ("vision", "logits", "kv")))

    @property
    def prefix_ids(self) -> list[int]:
        return list(self.field("inputs", "prefix_ids"))

    @property
    def suffix_ids(self) -> list[int]:
        return list(self.field("inputs", "suffix_ids"))

    @property
    def group_times_s(self) -> list[float]:
        """The time of each group's first frame, taken from those of all frames where it is not recorded by itself."""
        described = self.field("inputs")
        if "group_timestamps_s" not in described and "timestamps_s" in described:
            return [float(t_s) for t_s in described["timestamps_s"][:: self.model.spec.frames_per_group]]
        return [float(t_s) for t_s in self.field("inputs", "group_timestamps_s")]

    @property
    def layout(self) -> TokenLayout:
        """The prompt's layout, from the recorded run of timestamps and placeholders; without one, from the times."""
        placeholder = int(self.field("token_ids", "visual_placeholder"))
        recorded = self.get("time_embedding_ids")
        ids = self.layout_ids(self.group_times_s) if recorded is None else recorded.tolist()
        time_ids = group_time_ids(ids, placeholder)
        return TokenLayout.build(self.prefix_ids, time_ids, self.model.spec.tokens_per_group)

    def settings(self, mode: str) -> PrefillSettings:
        """Settings of a recorded mode: ``full`` or ``chunk``."""
        if mode == "full":
            return PrefillSettings(mode="plain")
        return PrefillSettings(
            block_groups=self.field("prefill", "block_size_chosed"),
            previous_blocks=self.field("prefill", "prev_blocks_num"),
        )

    @property
    def selections(self) -> list[Selection]:
        """The bi-level runs that the configuration names."""
        found: list[Selection] = []
        for entry in self.config.get("bilevel_selections", []):
            try:
                units = entry["selected_unit_indices"]
                found.append(
                    Selection(
                        name=str(entry["name"]),
                        chunk_groups=int(entry["selected_chunk_size"]),
                        compression=int(entry["compression"]),
                        units=None if units is None else tuple(units),
                        expected=entry,
                    )
                )
            except KeyError as missing:
                raise RecordingError(
                    f"a selection of {self.folder}/config.json has no {missing.args[0]!r}"
                ) from missing
            except (TypeError, ValueError) as unfit:
                raise RecordingError(f"a selection of {self.folder}/config.json has another form: {unfit}") from unfit
        return found

    def timestamp_ids(self, t_s: float) -> list[int]:
        """Ids of ``Time 12.3s:`` by the recording's table of characters (there is no tokenizer)."""
        ids = self.field("token_ids")
        characters = {".": ids["dot"], "s": ids["letter_s"], ":": ids["time_end"]}
        text = f"{round(float(t_s), 1):.1f}s:"
        digits = [characters[c] if c in characters else ids["digit_zero"] + int(c) for c in text]
        return [ids["time_start"], ids["space"], *digits]

    def layout_ids(self, times_s: Sequence[float]) -> list[int]:
        """Timestamps and placeholders of groups at ``times_s``."""
        placeholder = int(self.field("token_ids", "visual_placeholder"))
        run = [placeholder] * self.model.spec.tokens_per_group
        return [token for t_s in times_s for token in (*self.timestamp_ids(t_s), *run)]


def checkpoint_config(recorded_config: dict[str, Any]) -> dict[str, Any]:
    """The recorded architecture in the form of a checkpoint's ``config.json``."""
    if absent := [part for part in ("model_config", *_ARCHITECTURE) if part not in recorded_config]:
        raise RecordingError(f"the recorded configuration has no {absent[0]!r}")
    return {**recorded_config["model_config"], **{part: recorded_config[part] for part in _ARCHITECTURE}}


def group_time_ids(ids: Sequence[int], placeholder: int) -> list[list[int]]:
    """The timestamp ids of each group from a run of timestamps and placeholders."""
    groups: list[list[int]] = []
    previous = placeholder
    for token in ids:
        if token != placeholder:
            if previous == placeholder:
                groups.append([])
            groups[-1].append(token)
        previous = token
    return groups


def _read_json(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as problem:
        raise RecordingError(f"cannot read {path}: {problem}") from problem
    if not isinstance(found, dict):
        raise RecordingError(f"{path} holds no object")
    return found
