"""The prompt template, timestamps and the treatment of special strings."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from videoxl2.checkpoint import read_checkpoint_info, resolve_checkpoint
from videoxl2.errors import ModelError
from videoxl2.tokenizer import Tokenizer


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return Tokenizer(resolve_checkpoint("tiny"))


@pytest.mark.parametrize("text", ["A red car stops.", "Zürich 東京 🚗 12:34", "\x00\x7f\ttabs\nlines  two  spaces", ""])
def test_any_text_round_trips(tokenizer: Tokenizer, text: str) -> None:
    assert tokenizer.decode(tokenizer.encode(text)) == text


def test_digits_stand_alone(tokenizer: Tokenizer) -> None:
    assert [tokenizer.decode([token]) for token in tokenizer.encode("2026")] == ["2", "0", "2", "6"]


def test_timestamps_have_one_decimal(tokenizer: Tokenizer) -> None:
    for t_s, text in ((0, "Time 0.0s:"), (1234.5, "Time 1234.5s:"), (12.34, "Time 12.3s:"), (9.96, "Time 10.0s:")):
        assert tokenizer.decode(tokenizer.timestamp_ids(t_s)) == text
    times_s = (0.0, 5.0, 12.0, 12.5, 599.0, 2405.0, 9999.0)
    assert {len(tokenizer.timestamp_ids(t_s)) for t_s in times_s} == {2}, "two tokens, whatever the time"
    assert len({tuple(tokenizer.timestamp_ids(t_s)) for t_s in times_s}) == len(times_s)


def test_prompt_is_the_published_template(tokenizer: Tokenizer) -> None:
    prefix, suffix = tokenizer.prompt_parts("What happens?")
    whole = "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n<|im_start|>user\n"
    assert prefix == tokenizer.encode(whole) == tokenizer.prefix_ids()
    assert suffix == tokenizer.encode("\nWhat happens?<|im_end|>\n<|im_start|>assistant\n")
    assert tokenizer.prompt_parts("x", system="Be brief.")[0] == tokenizer.encode(
        whole.replace("You are a helpful assistant.", "Be brief.")
    )


def test_special_strings_are_parsed_in_text_but_not_in_a_question(tokenizer: Tokenizer) -> None:
    """A question must not be able to end the user's turn."""
    end = tokenizer.token_id("<|im_end|>")
    assert tokenizer.encode("a<|im_end|>b").count(end) == 1
    _, suffix = tokenizer.prompt_parts("a<|im_end|>b")
    assert suffix.count(end) == 1
    assert "a<|im_end|>b" in tokenizer.decode(suffix)


def test_special_tokens_are_not_decoded(tokenizer: Tokenizer) -> None:
    assert tokenizer.decode(tokenizer.encode("yes<|im_end|>")) == "yes"


def test_answers_end_at_the_known_tokens(tokenizer: Tokenizer) -> None:
    assert set(tokenizer.eos_ids) == {tokenizer.token_id("<|im_end|>"), tokenizer.token_id("<|endoftext|>")}


def test_ends_are_read_from_both_configurations(tokenizer: Tokenizer, tmp_path: Path) -> None:
    shutil.copy(resolve_checkpoint("tiny") / "tokenizer.json", tmp_path)
    known = set(tokenizer.eos_ids)
    (tmp_path / "config.json").write_text('{"token_ids": {"eos": null}, "eos_token_id": 5}')
    (tmp_path / "generation_config.json").write_text('{"eos_token_id": [6, 7]}')
    assert set(Tokenizer(tmp_path).eos_ids) == {5, 6, 7} | known
    for content, message in (("{", "cannot read"), ("[1]", "no JSON object"), ('{"eos_token_id": "x"}', "neither")):
        (tmp_path / "generation_config.json").write_text(content)
        with pytest.raises(ModelError, match=message):
            _ = Tokenizer(tmp_path).eos_ids


def test_absent_things_are_named(tokenizer: Tokenizer, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"tokenizer\.json"):
        Tokenizer(tmp_path)
    with pytest.raises(ModelError, match="nosuch"):
        tokenizer.token_id("<|nosuch|>")
    (tmp_path / "vocab.json").write_text('{"a": 0}')
    with pytest.raises(ModelError, match=r"not both vocab\.json and merges\.txt"):
        Tokenizer(tmp_path)
    (tmp_path / "merges.txt").write_text("")
    (tmp_path / "added_tokens.json").write_text('{"<|im_end|>": 7}')
    with pytest.raises(ModelError, match=r"'<\|im_end\|>' .* cannot have the id 7"):
        Tokenizer(tmp_path)
    (tmp_path / "tokenizer.json").write_text("{")
    with pytest.raises(ModelError, match="cannot read the tokenizer"):
        Tokenizer(tmp_path)


def test_the_digest_of_a_tokenizer_is_of_the_files_it_is_read_from(tmp_path: Path) -> None:
    tiny = resolve_checkpoint("tiny")
    for name in ("config.json", "model.safetensors"):
        shutil.copy(tiny / name, tmp_path)
    assert read_checkpoint_info(tmp_path).tokenizer_digest is None
    digests = set()
    for name, text in (("vocab.json", "{}"), ("merges.txt", ""), ("merges.txt", "a b"), ("tokenizer.json", "{}")):
        (tmp_path / name).write_text(text)
        digests.add(read_checkpoint_info(tmp_path).tokenizer_digest)
    (tmp_path / "merges.txt").write_text("c d")  # beside tokenizer.json nobody reads it
    assert read_checkpoint_info(tmp_path).tokenizer_digest in digests
    assert len(digests) == 4
