"""The packaged model end to end, and its boundary checks."""

from __future__ import annotations

import pytest
import torch

from videoxl2.config import ModelSpec
from videoxl2.errors import ModelError
from videoxl2.model import VideoXL2, choose_device
from videoxl2.projector import VisualProjector


def test_shape_of_the_packaged_model(tiny_model: VideoXL2) -> None:
    spec = tiny_model.spec
    assert spec.dts.frames_per_group == 4 and spec.tokens_per_group == (spec.dts.grid // spec.pool_stride) ** 2
    assert tiny_model.device.type == "cpu" and tiny_model.dtype == torch.float32
    assert tiny_model.info.folder.name == "tiny"
    assert not any(parameter.requires_grad for parameter in tiny_model.parameters())
    assert tiny_model.tokenizer.vocab_size == spec.language.vocab_size


def test_frames_become_varied_finite_tokens(tiny_model: VideoXL2, tiny_pixels: torch.Tensor) -> None:
    visual = tiny_model.encode_frames(tiny_pixels)
    assert visual.shape == (3, tiny_model.spec.tokens_per_group, tiny_model.spec.language.width)
    assert visual.isfinite().all()
    assert float(visual.std()) > 0.1 and not torch.allclose(visual[0], visual[1], atol=1e-2)


def test_the_last_group_is_filled_with_its_last_frame(tiny_model: VideoXL2, tiny_pixels: torch.Tensor) -> None:
    filled = torch.cat((tiny_pixels, tiny_pixels[-1:], tiny_pixels[-1:]))
    torch.testing.assert_close(
        tiny_model.encode_frames(tiny_pixels), tiny_model.encode_frames(filled), atol=1e-4, rtol=0
    )


@pytest.mark.parametrize("batch_groups", [1, 2, 3])
def test_batching_changes_nothing(tiny_model: VideoXL2, tiny_pixels: torch.Tensor, batch_groups: int) -> None:
    found = tiny_model.encode_frames(tiny_pixels, batch_groups=batch_groups)
    torch.testing.assert_close(found, tiny_model.encode_frames(tiny_pixels), atol=1e-4, rtol=0)


@pytest.mark.parametrize("shape", [(0, 3, 0, 0), (2, 3, 0, -8), (3, 0, 0)])
def test_other_pixels_are_refused(tiny_model: VideoXL2, shape: tuple[int, ...]) -> None:
    """The last two numbers are relative to the model's image side."""
    *rest, height, width = shape
    side = tiny_model.spec.vision.image_size
    shape = (*rest, side + height, side + width)
    with pytest.raises(ValueError, match="pixels are"):
        tiny_model.encode_frames(torch.zeros(shape))


def test_a_built_model_has_no_checkpoint(tiny_model: VideoXL2) -> None:
    with torch.device("meta"):
        built = VideoXL2(tiny_model.spec)
    with pytest.raises(ModelError, match="not loaded"):
        _ = built.info
    with pytest.raises(ModelError, match="not loaded"):
        _ = built.tokenizer


def test_max_pooling_is_read_from_the_configuration(tiny_model: VideoXL2) -> None:
    spec = ModelSpec.from_config({**tiny_model.spec.to_config(), "mm_spatial_pool_mode": "max"})
    projector = VisualProjector(spec)
    projector.load_state_dict(tiny_model.projector.state_dict())
    grid = spec.dts.grid
    features = torch.randn(1, grid**2, spec.dts.channels, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        mlp = projector.mlp(features).view(grid, grid, -1)
        found = projector(features)
    step = spec.pool_stride
    expected = mlp[step : 2 * step, step : 2 * step].amax(dim=(0, 1))
    torch.testing.assert_close(found[0, grid // step + 1], expected)


def test_defaults_of_device_and_dtype(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert choose_device("cpu", None) == (torch.device("cpu"), torch.float32)
    assert choose_device("cuda:1", None) == (torch.device("cuda:1"), torch.bfloat16)
    assert choose_device("cpu", torch.bfloat16)[1] == torch.bfloat16


@pytest.mark.parametrize(("name", "message"), [("gpu", "is no device"), ("cuda:2", "has 2 GPUs")])
def test_devices_that_are_not_there(name: str, message: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    with pytest.raises(ModelError, match=message):
        choose_device(name, None)
