"""The full published key set in shrunken dimensions, sharded as published, through ``from_pretrained``."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from tests.unit.videoxl2.test_config import PUBLISHED
from tests.unit.videoxl2.test_weights import TOWER, published_shapes
from videoxl2.checkpoint import resolve_checkpoint
from videoxl2.config import ModelSpec
from videoxl2.errors import CheckpointMismatch, ModelError
from videoxl2.model import VideoXL2
from videoxl2.weights import video_table

SHRUNKEN = {152064: 90, 18944: 64, 4304: 48, 3584: 56, 3456: 192, 1152: 64, 512: 8, 14: 2}
"""Published sizes and ours: 28 query heads and 4 KV heads of width 2 (128), 26 + 28 layers as published."""
UNUSED = {
    f"{TOWER}.post_layernorm.weight": (64,),
    f"{TOWER}.post_layernorm.bias": (64,),
    "model.text_mlp.0.weight": (56, 56),
    "model.text_mlp.0.bias": (56,),
}
NUM_SHARDS = 4


def shrunken_shapes() -> dict[str, tuple[int, ...]]:
    return {key: tuple(SHRUNKEN.get(size, size) for size in shape) for key, shape in published_shapes().items()}


def write_shards(folder: Path, state: dict[str, Tensor]) -> None:
    """Shards in key order with their index, as ``save_pretrained`` writes them."""
    for old in folder.glob("model-*"):
        old.unlink()
    keys = list(state)
    weight_map: dict[str, str] = {}
    for shard in range(NUM_SHARDS):
        name = f"model-{shard + 1:05}-of-{NUM_SHARDS:05}.safetensors"
        part = keys[shard * len(keys) // NUM_SHARDS : (shard + 1) * len(keys) // NUM_SHARDS]
        save_file({key: state[key] for key in part}, folder / name, metadata={"format": "pt"})
        weight_map.update(dict.fromkeys(part, name))
    size = sum(tensor.nbytes for tensor in state.values())
    index = {"metadata": {"total_size": size}, "weight_map": weight_map}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))


@pytest.fixture(scope="module")
def state() -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(0)
    shapes = {**shrunken_shapes(), **UNUSED}
    return {key: torch.randn(shape, generator=generator).to(torch.bfloat16) for key, shape in shapes.items()}


@pytest.fixture
def folder(tmp_path: Path, state: dict[str, Tensor]) -> Path:
    config = {
        **PUBLISHED,
        "vocab_size": 90,
        "hidden_size": 56,
        "intermediate_size": 64,
        "vision_config": {
            "hidden_size": 64,
            "intermediate_size": 48,
            "num_hidden_layers": 27,
            "num_attention_heads": 16,
            "image_size": 55,
            "patch_size": 2,
        },
    }
    (tmp_path / "config.json").write_text(json.dumps(config))
    shutil.copy(resolve_checkpoint("tiny") / "tokenizer.json", tmp_path)
    write_shards(tmp_path, state)
    return tmp_path


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_every_key_arrives(folder: Path, state: dict[str, Tensor], dtype: torch.dtype) -> None:
    model = VideoXL2.from_pretrained(str(folder), device="cpu", dtype=dtype)
    table = video_table(model.spec)
    found = {table.to_published(name): parameter for name, parameter in model.named_parameters()}
    assert set(found) == set(state) - set(UNUSED)
    for key, parameter in found.items():
        assert parameter.dtype == dtype and torch.equal(parameter, state[key].to(dtype)), key
    assert len(model.vision.layers) == 26 and len(model.language.layers) == 28
    assert len(model.info.weights_digest) == 32 and model.tokenizer.vocab_size > 0


def test_a_model_of_the_full_key_set_runs(folder: Path) -> None:
    model = VideoXL2.from_pretrained(str(folder), device="cpu")
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(0.1)
    pixels = torch.rand(5, 3, 55, 55, generator=torch.Generator().manual_seed(0)) * 2 - 1
    assert model.encode_frames(pixels).shape == (2, 144, 56)


def test_unused_keys_may_be_absent(folder: Path, state: dict[str, Tensor]) -> None:
    write_shards(folder, {key: tensor for key, tensor in state.items() if key not in UNUSED})
    VideoXL2.from_pretrained(str(folder), device="cpu")


def test_everything_that_differs_is_listed(folder: Path, state: dict[str, Tensor]) -> None:
    changed = dict(state)
    del changed["model.layers.27.mlp.up_proj.weight"], changed["model.sae.encoder.4.qkv.bias"]
    changed["model.layers.3.self_attn.k_proj.bias"] = torch.zeros(9)
    changed["model.image_newline"] = torch.zeros(56)
    write_shards(folder, changed)
    with pytest.raises(CheckpointMismatch) as caught:
        VideoXL2.from_pretrained(str(folder), device="cpu")
    assert set(caught.value.missing) == {"model.layers.27.mlp.up_proj.weight", "model.sae.encoder.4.qkv.bias"}
    assert caught.value.surplus == ("model.image_newline",)
    assert caught.value.misshaped == (("model.layers.3.self_attn.k_proj.bias", (8,), (9,)),)
    for named in ("up_proj", "qkv.bias", "image_newline", "k_proj.bias is (9,), expected (8,)"):
        assert named in str(caught.value)


def test_the_published_name_is_read_from_the_local_cache(
    folder: Path, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A folder laid out as the Hub's cache; nothing is downloaded."""
    cache, commit = tmp_path_factory.mktemp("hub"), "0123456789" * 4
    repository = cache / "models--BAAI--Video-XL-2"
    (repository / "refs").mkdir(parents=True)
    (repository / "refs" / "main").write_text(commit)
    shutil.copytree(folder, repository / "snapshots" / commit)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(cache))
    model = VideoXL2.from_pretrained("BAAI/Video-XL-2", device="cpu", dtype=torch.bfloat16)
    assert model.info.folder == repository / "snapshots" / commit
    assert model.dtype == torch.bfloat16 and len(model.language.layers) == 28


def test_an_absent_shard_is_named(folder: Path) -> None:
    (folder / "model-00003-of-00004.safetensors").unlink()
    with pytest.raises(ModelError, match="model-00003-of-00004"):
        VideoXL2.from_pretrained(str(folder), device="cpu")


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="RLIMIT_DATA holds anonymous memory on Linux only")
@pytest.mark.parametrize(("share", "fits"), [(1.3, True), (0.9, False)])
def test_loading_never_holds_a_second_copy(tmp_path: Path, share: float, fits: bool) -> None:
    """In a process that may allocate little more than the loaded weights; with less than them it must fail.

    The limit counts the shard that is mapped as well, a quarter of the half-precision file (0.125). A second copy of
    all weights would need 1.5 even in half precision.
    """
    tiny = resolve_checkpoint("tiny")
    config = json.loads((tiny / "config.json").read_text())
    config |= {"hidden_size": 512, "intermediate_size": 2048, "num_hidden_layers": 10, "head_dim": 32}
    config |= {"num_attention_heads": 16, "num_key_value_heads": 2}
    (tmp_path / "config.json").write_text(json.dumps(config))
    spec = ModelSpec.from_config(config)
    with torch.device("meta"):
        shapes = {name: parameter.shape for name, parameter in VideoXL2(spec).named_parameters()}
    table = video_table(spec)
    write_shards(tmp_path, {table.to_published(name): torch.zeros(s, dtype=torch.half) for name, s in shapes.items()})
    script = """
import resource, sys, torch
from pathlib import Path
from videoxl2.checkpoint import read_config
from videoxl2.config import ModelSpec
from videoxl2.model import VideoXL2
folder, share = sys.argv[1], float(sys.argv[2])
spec = ModelSpec.from_config(read_config(Path(folder)))
with torch.device("meta"):
    model = VideoXL2(spec)
total = sum(parameter.numel() for parameter in model.parameters()) * 4
VideoXL2.from_pretrained("tiny", device="cpu")
held = [int(line.split()[1]) * 1024 for line in open("/proc/self/status") if line.startswith("VmData")][0]
resource.setrlimit(resource.RLIMIT_DATA, (held + int(share * total),) * 2)
try:
    VideoXL2.from_pretrained(folder, device="cpu", dtype=torch.float32)
except (MemoryError, RuntimeError):
    sys.exit(3)
print(total)
"""
    command = [sys.executable, "-c", script, str(tmp_path), str(share)]
    run = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert run.returncode == (0 if fits else 3), run.stderr
    assert not fits or int(run.stdout) > 100_000_000


def test_a_single_file_is_read_like_shards(folder: Path, state: dict[str, Tensor]) -> None:
    expected = VideoXL2.from_pretrained(str(folder), device="cpu").language.norm.weight
    for old in folder.glob("model*"):
        old.unlink()
    save_file(state, folder / "model.safetensors")
    assert torch.equal(VideoXL2.from_pretrained(str(folder), device="cpu").language.norm.weight, expected)
    assert set(load_file(folder / "model.safetensors")) == set(state)


def test_files_that_contradict_each_other_are_refused(folder: Path, state: dict[str, Tensor]) -> None:
    """A key in two shards, a shard that was cut off, an index that is none."""
    second = folder / "model-00002-of-00004.safetensors"
    key, whole = "model.embed_tokens.weight", second.read_bytes()
    assert key in load_file(folder / "model-00001-of-00004.safetensors")
    save_file({**load_file(second), key: state[key] + 1}, second)
    with pytest.raises(CheckpointMismatch) as caught:
        VideoXL2.from_pretrained(str(folder), device="cpu")
    assert caught.value.surplus == (key,) and not caught.value.missing
    second.write_bytes(whole[:-100])
    with pytest.raises(ModelError, match=r"cannot read .*model-00002-of-00004"):
        VideoXL2.from_pretrained(str(folder), device="cpu")
    (folder / "model.safetensors.index.json").write_text('{"weight_map": ')
    with pytest.raises(ModelError, match=r"cannot read .*index\.json"):
        VideoXL2.from_pretrained(str(folder), device="cpu")
