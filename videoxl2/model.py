"""Video-XL-2 put together: tower, DTS, projector, decoder, tokenizer. Composition only.

Shapes: F frames, S image side, G frame groups, P visual tokens per group, D text width.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Generator, Iterator, Sequence

import torch
from torch import Tensor, nn

from videoxl2.attention import choose_backend
from videoxl2.chat import ChatMode, Frames, Selection, VideoFrames, chat, index_frames
from videoxl2.checkpoint import CheckpointInfo, read_checkpoint_info, resolve_checkpoint
from videoxl2.config import GenerationSettings, LevelSettings, ModelSpec, PrefillSettings
from videoxl2.decode import Assembly, Piece, assemble_cache
from videoxl2.decode_step import choose_stepping
from videoxl2.dts import DynamicTokenSynthesis, reinterpret_groups
from videoxl2.errors import ModelError
from videoxl2.kv import KVCache
from videoxl2.language import QwenDecoder
from videoxl2.option_orders import SaidFirst, settled_letter
from videoxl2.prefill import ArrivingPrefill, PrefillResult, prefill, prefill_batch
from videoxl2.projector import VisualProjector
from videoxl2.questions import generate_batch
from videoxl2.token_choice import TokenChoice
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
        decoding: str = "eager",
    ) -> VideoXL2:
        """Load a packaged checkpoint, a folder or a model of the local Hub cache.

        ``device`` None takes the GPU where there is one; ``dtype`` None takes float32 on a CPU and bfloat16 on a GPU;
        ``attention`` is ``auto`` or one of ``AttentionBackend``, ``decoding`` one of ``Stepping``. Raises
        ``ModelError`` (absent, unsupported configuration) or ``CheckpointMismatch``.
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
        model.language.stepping = choose_stepping(decoding, device)
        return model.eval()

    @property
    def info(self) -> CheckpointInfo:
        """The checkpoint that was loaded; ``ModelError`` for a model that was not loaded."""
        if self._info is None:
            raise ModelError("this model was not loaded from a checkpoint")
        return self._info

    @property
    def is_loaded(self) -> bool:
        """Whether the weights came from a checkpoint, which has a tokenizer."""
        return self._info is not None

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

    @property
    def batch_groups(self) -> int:
        """Frame groups that are encoded at once unless a caller says otherwise."""
        return _GPU_BATCH_GROUPS if self.device.type == "cuda" else _CPU_BATCH_GROUPS

    @torch.no_grad()
    def encode_frames(
        self,
        pixels_F3SS: Tensor,
        *,
        batch_groups: int | None = None,
        on_features: Callable[[Tensor], None] | None = None,
    ) -> Tensor:
        """Pixels [F, 3, S, S] in [-1, 1] (``preprocess.frames_to_pixels``) to visual tokens [G, P, D], G = ceil(F / 4).

        A last group that is not full is filled with copies of the last frame. ``batch_groups`` bounds the activations
        and changes no result. Pixels may lie on the CPU; batches are moved to the model's device. ``on_features`` is
        given the tower's features [f, P, C] of each batch of frames, in order.
        """
        expected = (self.spec.vision.num_channels, self.spec.vision.image_size, self.spec.vision.image_size)
        if pixels_F3SS.ndim != 4 or tuple(pixels_F3SS.shape[1:]) != expected or not len(pixels_F3SS):
            raise ValueError(f"pixels are [F >= 1, {', '.join(map(str, expected))}], got {list(pixels_F3SS.shape)}")
        per_group, G = self.spec.frames_per_group, -(-len(pixels_F3SS) // self.spec.frames_per_group)
        visual_GPD = self.empty_tokens(G)
        size = batch_groups or self.batch_groups
        for first in range(0, G, size):
            batch = pixels_F3SS[first * per_group : (first + size) * per_group]
            features_FPC = self.vision(batch.to(device=self.device, dtype=self.dtype))
            if on_features is not None:
                on_features(features_FPC)
            visual_GPD[first : first + size] = self.merge_maps(resize_grid(features_FPC, self.spec.dts.grid))
        return visual_GPD

    def prefill(
        self,
        visual_GPD: Tensor,
        group_times_s: Sequence[float],
        settings: PrefillSettings | None = None,
        chunk_groups: int = 6,
    ) -> PrefillResult:
        """KV of a video's visual tokens; see ``prefill.prefill``."""
        return prefill(self, visual_GPD, group_times_s, settings, chunk_groups)

    def begin_prefill(
        self, settings: PrefillSettings | None = None, chunk_groups: int = 6, *, expected_groups: int = 0
    ) -> ArrivingPrefill:
        """The same for visual tokens that arrive part by part; see ``prefill.ArrivingPrefill``."""
        return ArrivingPrefill(self, settings, chunk_groups, expected_groups=expected_groups)

    def assemble(self, pieces: Sequence[Piece], *, max_tokens: int | None = None) -> KVCache:
        """One cache of stored or arriving chunks and text headers; see ``decode.assemble_cache``."""
        return assemble_cache(self, pieces, max_tokens=max_tokens)

    def begin_assembly(self, pieces: Sequence[Piece], *, max_tokens: int | None = None, room: int = 512) -> Assembly:
        """The same on its way, for a question that goes through the first layers while later ones arrive."""
        return Assembly(self, pieces, max_tokens=max_tokens, room=room)

    def prefill_batch(
        self,
        segments: Sequence[tuple[Tensor, Sequence[float]]],
        settings: PrefillSettings | None = None,
        chunk_groups: int = 6,
    ) -> list[PrefillResult]:
        """KV of several segments at once, each as alone; see ``prefill.prefill_batch``."""
        return prefill_batch(self, segments, settings, chunk_groups)

    def index(
        self,
        frames_FHW3: Frames,
        times_s: Sequence[float],
        settings: PrefillSettings | None = None,
        chunk_groups: int = 6,
    ) -> PrefillResult:
        """KV of a video from its sampled frames (uint8 RGB) and their times; see ``chat.index_frames``.

        ``frames_FHW3`` is an array, a tensor, or what decodes frames when a slice of it is taken.
        """
        return index_frames(self, VideoFrames(frames_FHW3, times_s), settings, chunk_groups)

    def chat(
        self,
        video: VideoFrames | PrefillResult,
        question: str,
        mode: ChatMode = "chunked",
        *,
        selection: Selection | None = None,
        levels: LevelSettings | None = None,
        settings: PrefillSettings | None = None,
        generation: GenerationSettings | None = None,
    ) -> str:
        """One answer about one video in a mode of the paper; see ``chat.chat``."""
        return chat(
            self,
            video,
            question,
            mode,
            selection=selection,
            levels=levels,
            settings=settings,
            generation=generation,
        )

    def stream_text(self, cache: KVCache, question: str, settings: GenerationSettings | None = None) -> Iterator[str]:
        """The answer in pieces as it is generated. Afterwards the cache is as before and takes another question."""
        with contextlib.closing(self.stream_texts(cache, [question], settings)) as pieces:
            for _, piece in pieces:
                yield piece

    def generate_text(self, cache: KVCache, question: str, settings: GenerationSettings | None = None) -> str:
        """The whole answer; see ``stream_text``."""
        return "".join(self.stream_text(cache, question, settings))

    def stream_texts(
        self, cache: KVCache, questions: Sequence[str], settings: GenerationSettings | None = None
    ) -> Generator[tuple[int, str], None, None]:
        """Answers to several questions about one cache, as (question, piece of its answer) while they are generated.

        The questions run as a batch and do not see each other: each answer is the one that it would get alone, with
        the same seed. Afterwards, or when the caller stops early, the cache is as before. With
        ``settings.option_orders`` questions with options are asked in every order of these first (``option_orders``).
        """
        settings = settings or GenerationSettings()
        suffixes = [self.tokenizer.prompt_parts(question)[1] for question in questions]
        ids: list[list[int]] = [[] for _ in questions]
        shown = [0] * len(questions)
        choices: list[Callable[[Tensor], int]] = [self._choice(cache, question, settings) for question in questions]
        steps = generate_batch(self, cache, suffixes, settings.max_new_tokens, self.tokenizer.eos_ids, choices=choices)
        with contextlib.closing(steps):
            for question, step in steps:
                ids[question].append(step.token_id)
                text = self.tokenizer.decode(ids[question])
                if not text.endswith("\ufffd") and len(text) > shown[question]:
                    yield question, text[shown[question] :]
                    shown[question] = len(text)
        for question, answer in enumerate(ids):
            if len(text := self.tokenizer.decode(answer)) > shown[question]:
                yield question, text[shown[question] :]

    def _choice(self, cache: KVCache, question: str, settings: GenerationSettings) -> TokenChoice | SaidFirst:
        """What chooses the tokens of a question's answer."""
        choice = TokenChoice(settings)
        if not (settings.option_orders and choice.is_greedy):
            return choice
        letter = settled_letter(self, cache, question)
        return choice if letter is None else SaidFirst(letter)

    def generate_texts(
        self, cache: KVCache, questions: Sequence[str], settings: GenerationSettings | None = None
    ) -> list[str]:
        """The whole answers; see ``stream_texts``."""
        answers = [""] * len(questions)
        for question, piece in self.stream_texts(cache, questions, settings):
            answers[question] += piece
        return answers

    def empty_tokens(self, num_groups: int) -> Tensor:
        """Room for the visual tokens [G, P, D] of so many groups, not filled."""
        shape = (num_groups, self.spec.tokens_per_group, self.spec.language.width)
        return torch.empty(shape, device=self.device, dtype=self.dtype)

    def frame_maps(self, pixels_F3SS: Tensor) -> Tensor:
        """Pixels to the tower's features on the DTS grid [F, C, Y, X]."""
        return resize_grid(self.vision(pixels_F3SS), self.spec.dts.grid)

    def merge_maps(self, maps_FCYX: Tensor) -> Tensor:
        """Features of consecutive frames to visual tokens [G, P, D]; the last frame fills a group that is not full."""
        per_group = self.spec.frames_per_group
        if missing := -len(maps_FCYX) % per_group:
            maps_FCYX = torch.cat((maps_FCYX, maps_FCYX[-1:].expand(missing, -1, -1, -1)))
        return self.projector(self.dts(reinterpret_groups(maps_FCYX, per_group)))


def choose_device(device: str | torch.device | None, dtype: torch.dtype | None) -> tuple[torch.device, torch.dtype]:
    """The device (None: a GPU where there is one) and the dtype (None: float32 on a CPU, bfloat16 on a GPU)."""
    if device is None:
        device = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        chosen = torch.device(device)
    except RuntimeError as exc:
        raise ModelError(f"{device!r} is no device: use cpu, cuda or cuda:N") from exc
    if chosen.type == "cuda" and (chosen.index or 0) >= torch.cuda.device_count():
        raise ModelError(f"device {str(chosen)!r} was asked for; this machine has {torch.cuda.device_count()} GPUs")
    return chosen, dtype or (torch.float32 if chosen.type == "cpu" else torch.bfloat16)
