"""Video-XL-2 put together: tower, DTS, projector, decoder, tokenizer. Composition only.

Shapes: F frames, S image side, G frame groups, P visual tokens per group, D text width.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor, nn

from videoxl2.attention import choose_backend
from videoxl2.checkpoint import CheckpointInfo, read_checkpoint_info, resolve_checkpoint
from videoxl2.config import GenerationSettings, ModelSpec, PrefillSettings
from videoxl2.decode import HeaderIds, assemble_cache, generate
from videoxl2.dts import DynamicTokenSynthesis, reinterpret_groups
from videoxl2.errors import ModelError
from videoxl2.kv import ChunkKV, KVCache
from videoxl2.language import QwenDecoder
from videoxl2.prefill import PrefillResult, prefill
from videoxl2.projector import VisualProjector
from videoxl2.tokenizer import Tokenizer
from videoxl2.vision import SiglipEncoder, resize_grid
from videoxl2.weights import load_weights, video_table

_CPU_BATCH_GROUPS = 4
_GPU_BATCH_GROUPS = 16


class VideoXL2(nn.Module):
    """The model. ``VideoXL2(spec)`` has uninitialised weights; ``from_pretrained`` loads a checkpoint."""

    def __init__(self, spec: ModelSpec) -> None:
        super().__init__()
        self.spec = spec
        self.vision = SiglipEncoder(spec.vision)
        self.dts = DynamicTokenSynthesis(spec.dts)
        self.projector = VisualProjector(spec)
        self.language = QwenDecoder(spec.language)
        self._info: CheckpointInfo | None = None

    @classmethod
    def from_pretrained(
        cls,
        name_or_folder: str,
        device: str | torch.device | None = None,
        dtype: torch.dtype | None = None,
        attention: str = "auto",
    ) -> VideoXL2:
        """Load a packaged checkpoint, a folder or a model of the local Hub cache.

        ``device`` None takes the GPU where there is one; ``dtype`` None takes float32 on a CPU and bfloat16 on a GPU;
        ``attention`` is ``auto``, ``sdpa`` or ``flash``. Raises ``ModelError`` (absent, unsupported configuration) or
        ``CheckpointMismatch``.
        """
        info = read_checkpoint_info(resolve_checkpoint(name_or_folder))
        device, dtype = choose_device(device, dtype)
        with torch.device("meta"):
            model = cls(info.spec)
        load_weights(model, info.folder, video_table(info.spec), device=device, dtype=dtype)
        model.language.tie_head()
        model._info = info
        backend = choose_backend(attention, device, dtype)
        model.vision.use_backend(backend)
        model.language.backend = backend
        return model.eval()

    @property
    def info(self) -> CheckpointInfo:
        """The checkpoint that was loaded; ``ModelError`` for a model that was not loaded."""
        if self._info is None:
            raise ModelError("this model was not loaded from a checkpoint")
        return self._info

    @functools.cached_property
    def tokenizer(self) -> Tokenizer:
        """The checkpoint's tokenizer, read when it is first needed."""
        return Tokenizer(self.info.folder)

    @property
    def device(self) -> torch.device:
        return self.language.device

    @property
    def dtype(self) -> torch.dtype:
        return self.language.dtype

    @torch.no_grad()
    def encode_frames(self, pixels_F3SS: Tensor, *, batch_groups: int | None = None) -> Tensor:
        """Pixels [F, 3, S, S] in [-1, 1] (``preprocess.frames_to_pixels``) to visual tokens [G, P, D], G = ceil(F / 4).

        A last group that is not full is filled with copies of the last frame. ``batch_groups`` bounds the activations
        and changes no result. Pixels may lie on the CPU; batches are moved to the model's device.
        """
        expected = (self.spec.vision.num_channels, self.spec.vision.image_size, self.spec.vision.image_size)
        if pixels_F3SS.ndim != 4 or tuple(pixels_F3SS.shape[1:]) != expected or not len(pixels_F3SS):
            raise ValueError(f"pixels are [F >= 1, {', '.join(map(str, expected))}], got {list(pixels_F3SS.shape)}")
        groups = batch_groups or (_GPU_BATCH_GROUPS if self.device.type == "cuda" else _CPU_BATCH_GROUPS)
        batches = pixels_F3SS.split(groups * self.spec.frames_per_group)
        return torch.cat([self._encode_batch(batch.to(device=self.device, dtype=self.dtype)) for batch in batches])

    def prefill(
        self,
        visual_GPD: Tensor,
        group_times_s: Sequence[float],
        settings: PrefillSettings | None = None,
        chunk_groups: int = 6,
    ) -> PrefillResult:
        """KV of a video's visual tokens; see ``prefill.prefill``."""
        return prefill(self, visual_GPD, group_times_s, settings, chunk_groups)

    def assemble(self, pieces: Sequence[ChunkKV | HeaderIds], *, max_tokens: int | None = None) -> KVCache:
        """One cache of stored chunks and text headers; see ``decode.assemble_cache``."""
        return assemble_cache(self, pieces, max_tokens=max_tokens)

    def stream_text(self, cache: KVCache, question: str, settings: GenerationSettings | None = None) -> Iterator[str]:
        """The answer in pieces as it is generated. Afterwards the cache is as before and takes another question."""
        settings = settings or GenerationSettings()
        _, suffix_ids = self.tokenizer.prompt_parts(question)
        before, ids, shown = cache.length, list[int](), 0
        try:
            for step in generate(self, cache, suffix_ids, settings.max_new_tokens, self.tokenizer.eos_ids):
                ids.append(step.token_id)
                text = self.tokenizer.decode(ids)
                if not text.endswith("\ufffd") and len(text) > shown:
                    yield text[shown:]
                    shown = len(text)
            if len(text := self.tokenizer.decode(ids)) > shown:
                yield text[shown:]
        finally:
            cache.length = before

    def generate_text(self, cache: KVCache, question: str, settings: GenerationSettings | None = None) -> str:
        """The whole answer; see ``stream_text``."""
        return "".join(self.stream_text(cache, question, settings))

    def _encode_batch(self, pixels_F3SS: Tensor) -> Tensor:
        per_group = self.spec.frames_per_group
        maps_FCYX = resize_grid(self.vision(pixels_F3SS), self.spec.dts.grid)
        if missing := -len(maps_FCYX) % per_group:
            maps_FCYX = torch.cat((maps_FCYX, maps_FCYX[-1:].expand(missing, -1, -1, -1)))
        return self.projector(self.dts(reinterpret_groups(maps_FCYX, per_group)))


def choose_device(device: str | torch.device | None, dtype: torch.dtype | None) -> tuple[torch.device, torch.dtype]:
    """The device (None: a GPU where there is one) and the dtype (None: float32 on a CPU, bfloat16 on a GPU)."""
    if device is None:
        device = "cuda" if torch.cuda.is_available() else "cpu"
    chosen = torch.device(device)
    return chosen, dtype or (torch.float32 if chosen.type == "cpu" else torch.bfloat16)
