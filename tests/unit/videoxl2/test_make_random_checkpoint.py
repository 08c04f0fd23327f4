"""The packaged checkpoint is what its script writes."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import tokenizers

from videoxl2.checkpoint import read_checkpoint_info, resolve_checkpoint
from videoxl2.training import make_random_checkpoint
from videoxl2.training.make_random_checkpoint import SPECIAL_TOKENS, TIME_TOKENS, build_tokenizer, main


@pytest.fixture(scope="module")
def trained() -> tokenizers.Tokenizer:
    """The script's tokenizer, which no seed enters: training it is most of the script's work."""
    return build_tokenizer()


def test_the_script_gives_the_same_bytes_for_the_same_seed(
    tmp_path: Path, trained: tokenizers.Tokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(make_random_checkpoint, "build_tokenizer", lambda: trained)
    for name, seed in (("a", "3"), ("b", "3"), ("c", "4")):
        main([str(tmp_path / name), "--seed", seed])
    first, second, other = (read_checkpoint_info(tmp_path / name) for name in "abc")
    assert first.weights_digest == second.weights_digest != other.weights_digest
    assert first.encoder_digest == second.encoder_digest != other.encoder_digest
    assert first.card == {"name": "tiny", "weights": "random", "seed": 3} and not first.is_trained


def test_the_packaged_tokenizer_is_the_scripts(trained: tokenizers.Tokenizer) -> None:
    folder = resolve_checkpoint("tiny")
    packaged = json.loads((folder / "tokenizer.json").read_text())
    assert json.loads(trained.to_str()) == packaged
    assert {added["content"] for added in packaged["added_tokens"]} == {*SPECIAL_TOKENS, *TIME_TOKENS}
