"""Text to token ids and back, and the ids of the prompt. Uses the ``tokenizers`` library only.

What the prompt says is in ``wording``. Knows nothing about positions or visual tokens.
"""

from __future__ import annotations

import functools
import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import tokenizers
from tokenizers import decoders, models, normalizers, pre_tokenizers

from videoxl2.checkpoint import read_object
from videoxl2.config import end_tokens
from videoxl2.errors import ModelError
from videoxl2.wording import DEFAULT_SYSTEM, END, prefix_text, timestamp_text

_ENDS = (END, "<|endoftext|>")
_WORDS = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
"""Where Qwen2's tokenizer cuts text before it merges bytes; every digit stands alone. A ``tokenizer.json`` has it."""


class Tokenizer:
    """The tokenizer of a checkpoint folder: its ``tokenizer.json``, or ``vocab.json`` and ``merges.txt``.

    ``encode`` never adds special tokens; special strings that are written in the text become their ids. A question in
    ``prompt_parts`` is the user's text: special strings in it stay plain text.
    """

    def __init__(self, folder: Path | str) -> None:
        self._folder = Path(folder)
        self._tokenizer = _read_tokenizer(self._folder)
        self._tokenizer.no_padding()
        self._tokenizer.no_truncation()
        self._tokenizer.encode_special_tokens = True
        self._special_ids: dict[str, int] = {
            added.content: token for token, added in self._tokenizer.get_added_tokens_decoder().items() if added.special
        }
        names = sorted(self._special_ids, key=len, reverse=True)
        self._special_pattern = re.compile("(" + "|".join(map(re.escape, names)) + ")") if names else None

    @property
    def vocab_size(self) -> int:
        return int(self._tokenizer.get_vocab_size(with_added_tokens=True))

    @functools.cached_property
    def eos_ids(self) -> tuple[int, ...]:
        """Ids that end an answer: those the checkpoint names, and ``<|im_end|>`` and ``<|endoftext|>``."""
        found = {self._special_ids[name] for name in _ENDS if name in self._special_ids}
        for file_name in ("generation_config.json", "config.json"):
            path = self._folder / file_name
            if path.is_file():
                found.update(end_tokens(read_object(path)))
        return tuple(sorted(found))

    def token_id(self, token: str) -> int:
        """The id of one token given as its text; ``ModelError`` where the vocabulary has none."""
        found = self._tokenizer.token_to_id(token)
        if found is None:
            raise ModelError(f"the vocabulary has no token {token!r}")
        return int(found)

    def encode(self, text: str) -> list[int]:
        """Ids of ``text``; special strings in it become their ids, nothing is added."""
        if self._special_pattern is None:
            return self._encode_plain(text)
        ids: list[int] = []
        for piece in self._special_pattern.split(text):
            if piece in self._special_ids:
                ids.append(self._special_ids[piece])
            elif piece:
                ids.extend(self._encode_plain(piece))
        return ids

    def decode(self, ids: Sequence[int]) -> str:
        """Text of ``ids`` without special tokens; bytes that are not UTF-8 become U+FFFD."""
        return str(self._tokenizer.decode(list(ids), skip_special_tokens=True))

    def prompt_parts(self, question: str, system: str = DEFAULT_SYSTEM) -> tuple[list[int], list[int]]:
        """Ids before and after the video: the system prompt, and the question with the start of the answer."""
        suffix = [*self._encode_plain(f"\n{question}"), *self.encode(f"{END}\n<|im_start|>assistant\n")]
        return self.prefix_ids(system), suffix

    def prefix_ids(self, system: str = DEFAULT_SYSTEM) -> list[int]:
        """Ids before the video; they do not depend on the question."""
        return self.encode(prefix_text(system))

    def timestamp_ids(self, t_s: float) -> list[int]:
        """Ids of a frame group's timestamp; the time is in seconds."""
        return self._encode_plain(timestamp_text(t_s))

    def _encode_plain(self, text: str) -> list[int]:
        return list(self._tokenizer.encode(text, add_special_tokens=False).ids)


def _read_tokenizer(folder: Path) -> tokenizers.Tokenizer:
    """``tokenizer.json``, or where a checkpoint was saved without it the byte-level BPE of the older files."""
    whole, vocab, merges = (folder / name for name in ("tokenizer.json", "vocab.json", "merges.txt"))
    try:
        if whole.is_file():
            return tokenizers.Tokenizer.from_file(str(whole))
        if not (vocab.is_file() and merges.is_file()):
            raise ModelError(f"{folder} holds no tokenizer.json, and not both vocab.json and merges.txt")
        tokenizer = tokenizers.Tokenizer(models.BPE.from_file(str(vocab), str(merges)))
        tokenizer.normalizer = normalizers.NFC()
        tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
            [
                pre_tokenizers.Split(tokenizers.Regex(_WORDS), "isolated"),
                pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
            ]
        )
        tokenizer.decoder = decoders.ByteLevel()
        added = _added_tokens(folder)
    except ModelError:
        raise
    except Exception as problem:  # the library raises nothing more exact
        raise ModelError(f"cannot read the tokenizer of {folder}: {problem}") from problem
    for token, description in sorted(added.items()):
        tokenizer.add_tokens([description])
        if tokenizer.token_to_id(description.content) != token:
            raise ModelError(f"added token {description.content!r} of {folder} cannot have the id {token}")
    return tokenizer


def _added_tokens(folder: Path) -> dict[int, tokenizers.AddedToken]:
    """Tokens beside the vocabulary by id: of ``tokenizer_config.json``, else of ``added_tokens.json``."""
    settings, older = folder / "tokenizer_config.json", folder / "added_tokens.json"
    described: dict[str, Any] = {}
    if settings.is_file():
        described = json.loads(settings.read_text(encoding="utf-8")).get("added_tokens_decoder") or {}
    if not described and older.is_file():
        named: dict[str, int] = json.loads(older.read_text(encoding="utf-8"))
        described = {str(token): {"content": text, "special": text.startswith("<|")} for text, token in named.items()}
    fields = ("single_word", "lstrip", "rstrip", "special")
    return {
        int(token): tokenizers.AddedToken(
            entry["content"], normalized=entry.get("normalized", False), **{f: bool(entry.get(f)) for f in fields}
        )
        for token, entry in described.items()
    }
