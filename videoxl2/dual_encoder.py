"""SigLIP dual encoder in torch: images and text into one embedding space, for search.

``ImageEncoder`` is what ingestion uses. ``DualEncoder`` is both towers with trainable weights, for training and parity;
searching uses the numpy text tower in ``text_tower``, which imports no torch.

The search vector of a frame group is the mean of its frames' vectors, or, where the dual encoder has a ``GroupHead``
(ours, beside SigLIP's parts), what that reads off the group's visual tokens. A mean of frames does not know what moves.

Shapes: F frames, S image side, P patches (or visual tokens of a group), D width, E embedding width, B texts, T text
positions, G frame groups.
"""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional

from videoxl2.attention import attend
from videoxl2.checkpoint import read_config, resolve_checkpoint
from videoxl2.config import GroupSpec, VisionSpec, dual_encoder_vision
from videoxl2.errors import ModelError
from videoxl2.model import choose_device
from videoxl2.text_tower import TextSpec, dual_encoder_folder
from videoxl2.vision import SiglipEncoder, SiglipLayer, SiglipMLP
from videoxl2.weights import GROUP_HEAD_TABLE, IMAGE_TOWER_TABLE, load_weights

_CPU_BATCH = 16
_GPU_BATCH = 128


class PoolingAttention(nn.Module):
    """Attention from one learned query, with torch's packed projection weights."""

    def __init__(self, width: int, num_heads: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.in_proj_weight = nn.Parameter(torch.empty(3 * width, width))
        self.in_proj_bias = nn.Parameter(torch.empty(3 * width))
        self.out_proj = nn.Linear(width, width)

    def forward(self, query_F1D: Tensor, tokens_FPD: Tensor) -> Tensor:
        weights, biases = self.in_proj_weight.chunk(3), self.in_proj_bias.chunk(3)
        sources = (query_F1D, tokens_FPD, tokens_FPD)
        q, k, v = (
            functional.linear(x, weight, bias).unflatten(2, (self.num_heads, -1)).transpose(1, 2)
            for x, weight, bias in zip(sources, weights, biases, strict=True)
        )
        return self.out_proj(attend(q, k, v).transpose(1, 2).flatten(2))


class PoolingHead(nn.Module):
    """The tower's attention-pool head."""

    def __init__(self, spec: VisionSpec) -> None:
        super().__init__()
        self.probe = nn.Parameter(torch.empty(1, 1, spec.width))
        self.attention = PoolingAttention(spec.width, spec.num_heads)
        self.layernorm = nn.LayerNorm(spec.width, spec.layer_norm_eps)
        self.mlp = SiglipMLP(spec.width, spec.mlp_width)

    def forward(self, tokens_FPD: Tensor) -> Tensor:
        pooled = self.attention(self.probe.expand(len(tokens_FPD), -1, -1), tokens_FPD)
        return (pooled + self.mlp(self.layernorm(pooled)))[:, 0]


class ImageTower(nn.Module):
    """All layers of the tower, final norm and head: one vector [E] per frame, E = D, not normalised."""

    def __init__(self, spec: VisionSpec) -> None:
        super().__init__()
        self.spec = spec
        self.encoder = SiglipEncoder(spec)
        self.post_layernorm = nn.LayerNorm(spec.width, spec.layer_norm_eps)
        self.head = PoolingHead(spec)

    def forward(self, pixels_F3SS: Tensor) -> Tensor:
        return self.pool(self.encoder(pixels_F3SS))

    def pool(self, features_FPD: Tensor) -> Tensor:
        """Final norm and head over the features of all layers."""
        return self.head(self.post_layernorm(features_FPD))


class TextTower(nn.Module):
    """Bidirectional text tower: one vector [E] per text of exactly T ids, from the last position, not normalised."""

    def __init__(self, spec: TextSpec) -> None:
        super().__init__()
        self.spec = spec
        self.token_embedding = nn.Embedding(spec.vocab_size, spec.width)
        self.position_embedding = nn.Embedding(spec.num_positions, spec.width)
        self.layers = nn.ModuleList(
            SiglipLayer(spec.width, spec.mlp_width, spec.num_heads, spec.layer_norm_eps) for _ in range(spec.num_layers)
        )
        self.final_layer_norm = nn.LayerNorm(spec.width, spec.layer_norm_eps)
        self.head = nn.Linear(spec.width, spec.embedding_width)

    def forward(self, ids_BT: Tensor) -> Tensor:
        hidden_BTD = self.token_embedding(ids_BT) + self.position_embedding.weight[: ids_BT.shape[1]]
        for layer in self.layers:
            hidden_BTD = layer(hidden_BTD)
        return self.head(self.final_layer_norm(hidden_BTD[:, -1]))


class GroupHead(nn.Module):
    """The search vector of a frame group out of its visual tokens, which DTS has made of all its frames together.

    Tokens look at each other, then what is there on average and what is there at all (mean and maximum over tokens)
    becomes one vector: a group shows several things, and each must leave its mark.
    """

    def __init__(self, spec: GroupSpec) -> None:
        super().__init__()
        self.spec = spec
        self.token_norm = nn.LayerNorm(spec.token_width, spec.layer_norm_eps)
        self.token_projection = nn.Linear(spec.token_width, spec.width)
        self.layers = nn.ModuleList(
            SiglipLayer(spec.width, spec.mlp_width, spec.num_heads, spec.layer_norm_eps) for _ in range(spec.num_layers)
        )
        self.final_layer_norm = nn.LayerNorm(spec.width, spec.layer_norm_eps)
        self.fc1 = nn.Linear(2 * spec.width, spec.mlp_width)
        self.head = nn.Linear(spec.mlp_width, spec.embedding_width)

    def forward(self, tokens_GPD: Tensor) -> Tensor:
        """Vectors [G, E], not normalised."""
        hidden_GPD = self.token_projection(self.token_norm(tokens_GPD))
        for layer in self.layers:
            hidden_GPD = layer(hidden_GPD)
        hidden_GPD = self.final_layer_norm(hidden_GPD)
        seen = torch.cat((hidden_GPD.mean(dim=1), hidden_GPD.amax(dim=1)), dim=-1)
        return self.head(functional.gelu(self.fc1(seen)))


class DualEncoder(nn.Module):
    """Both towers, the head that reads visual tokens where there is one, and scale and bias of the sigmoid loss."""

    def __init__(self, vision: VisionSpec, text: TextSpec, group: GroupSpec | None = None) -> None:
        super().__init__()
        self.image = ImageTower(vision)
        self.text = TextTower(text)
        self.group = None if group is None else GroupHead(group)
        self.logit_scale = nn.Parameter(torch.empty(1))
        self.logit_bias = nn.Parameter(torch.empty(1))

    def forward(self, pixels_F3SS: Tensor, ids_BT: Tensor) -> Tensor:
        """Logits [B, F] of each text against each frame."""
        images_FE = functional.normalize(self.image(pixels_F3SS), dim=-1)
        texts_BE = functional.normalize(self.text(ids_BT), dim=-1)
        return texts_BE @ images_FE.T * self.logit_scale.exp() + self.logit_bias


def image_spec(folder: Path) -> VisionSpec:
    """The image tower of a dual-encoder folder, with all its layers."""
    return dual_encoder_vision(read_config(folder))


class ImageEncoder:
    """Frames, or visual tokens where it has a head for them, to search vectors."""

    def __init__(self, tower: ImageTower, group: GroupHead | None = None) -> None:
        self._tower = tower.eval()
        self._group = None if group is None else group.eval()

    @classmethod
    def from_pretrained(
        cls, name_or_folder: str, device: str | torch.device | None = None, dtype: torch.dtype | None = None
    ) -> ImageEncoder:
        """Load the image tower of a checkpoint's ``dual_encoder`` folder, or of a SigLIP checkpoint itself."""
        folder = dual_encoder_folder(resolve_checkpoint(name_or_folder))
        device, dtype = choose_device(device, dtype)
        with torch.device("meta"):
            tower = ImageTower(image_spec(folder))
        load_weights(tower, folder, IMAGE_TOWER_TABLE, device=device, dtype=dtype)
        spec = GroupSpec.from_config(read_config(folder))
        if spec is None:
            return cls(tower)
        with torch.device("meta"):
            group = GroupHead(spec)
        load_weights(group, folder, GROUP_HEAD_TABLE, device=device, dtype=dtype)
        return cls(tower, group)

    @property
    def token_width(self) -> int | None:
        """Width of the visual tokens that it makes a group's vector of; None: that is the mean of its frames'."""
        return None if self._group is None else self._group.spec.token_width

    @property
    def image_size(self) -> int:
        """Side of the square images it takes, in pixels."""
        return self._tower.spec.image_size

    @property
    def embedding_width(self) -> int:
        """Numbers in one vector."""
        return self._tower.spec.width

    @torch.no_grad()
    def embed(self, pixels_F3SS: Tensor) -> Tensor:
        """Pixels [F, 3, S, S] in [-1, 1] to vectors [F, E], float32 and of unit length, on the tower's device."""
        size = self.image_size
        if pixels_F3SS.ndim != 4 or tuple(pixels_F3SS.shape[1:]) != (3, size, size):
            raise ValueError(f"pixels are [F, 3, {size}, {size}], got {list(pixels_F3SS.shape)}")
        weight = self._tower.head.probe
        batches = pixels_F3SS.split(_GPU_BATCH if weight.is_cuda else _CPU_BATCH)
        vectors = [self._tower(batch.to(device=weight.device, dtype=weight.dtype)) for batch in batches]
        return functional.normalize(torch.cat(vectors).to(torch.float32), dim=-1)

    @torch.no_grad()
    def embed_features(self, features_FPD: Tensor) -> Tensor:
        """``embed`` of frames from the features of a tower with the same weights (``has_tower``)."""
        return functional.normalize(self._tower.pool(features_FPD).to(torch.float32), dim=-1)

    @torch.no_grad()
    def embed_groups(self, tokens_GPD: Tensor) -> Tensor:
        """Visual tokens [G, P, D] to the vectors [G, E] of their groups, float32 and of unit length.

        Raises ``ModelError`` where this encoder has no head for them, or one for tokens of another width.
        """
        if self._group is None or tokens_GPD.shape[-1] != self.token_width:
            raise ModelError(f"this dual encoder reads tokens of width {self.token_width}, not {tokens_GPD.shape[-1]}")
        weight = self._group.head.weight
        batches = tokens_GPD.split(_GPU_BATCH if weight.is_cuda else _CPU_BATCH)
        vectors = [self._group(batch.to(device=weight.device, dtype=weight.dtype)) for batch in batches]
        return functional.normalize(torch.cat(vectors).to(torch.float32), dim=-1)

    def has_tower(self, tower: SiglipEncoder) -> bool:
        """Whether a tower is this encoder's own: same shape, dtype and weights. Its features need no second pass."""
        mine = self._tower.encoder
        if tower.spec != mine.spec:
            return False
        theirs = dict(tower.named_parameters())
        return all(
            theirs[name].dtype == weight.dtype and theirs[name].device == weight.device and theirs[name].equal(weight)
            for name, weight in mine.named_parameters()
        )
