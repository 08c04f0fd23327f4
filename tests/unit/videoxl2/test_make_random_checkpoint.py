"""Checkpoints of random weights, and the vocabulary that the packaged one was given."""

from __future__ import annotations

import json
from pathlib import Path

import tokenizers

from videoxl2.checkpoint import read_checkpoint_info, resolve_checkpoint
from videoxl2.training.make_random_checkpoint import SPECIAL_TOKENS, TIME_TOKENS, build_tokenizer, main
from videoxl2.training.vocabulary import training_sentences


def test_the_script_gives_the_same_bytes_for_the_same_seed(tmp_path: Path) -> None:
    for name, seed in (("a", "3"), ("b", "3"), ("c", "4")):
        main([str(tmp_path / name), "--seed", seed])
    first, second, other = (read_checkpoint_info(tmp_path / name) for name in "abc")
    assert first.weights_digest == second.weights_digest != other.weights_digest
    assert first.encoder_digest == second.encoder_digest != other.encoder_digest
    assert first.card == {"name": "tiny", "weights": "random", "seed": 3} and not first.is_trained
    packaged = (resolve_checkpoint("tiny") / "tokenizer.json").read_text()
    assert json.loads((tmp_path / "a" / "tokenizer.json").read_text()) == json.loads(packaged)


def test_the_packaged_vocabulary_is_as_good_as_one_learned_from_what_is_said_today() -> None:
    """Weights keep their tokenizer while scenes change; it must not fall behind."""
    packaged = tokenizers.Tokenizer.from_file(str(resolve_checkpoint("tiny") / "tokenizer.json"))
    new = build_tokenizer()
    assert packaged.get_vocab_size() == new.get_vocab_size()
    added = {token.content for token in packaged.get_added_tokens_decoder().values()}
    assert added == {*SPECIAL_TOKENS, *TIME_TOKENS}
    sentences = training_sentences(9, 2000, "test")

    def num_tokens(tokenizer: tokenizers.Tokenizer) -> int:
        return sum(len(encoding.ids) for encoding in tokenizer.encode_batch(sentences))

    assert num_tokens(packaged) <= 1.01 * num_tokens(new)
