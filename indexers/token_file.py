"""Projected visual tokens of one segment in one file: what the language model was given of its pictures.

They are the least from which dense KV can be made again without the video: one pass of the language model over them is
what ingestion did. A chunk is ``[group][token][width]``, whole and contiguous, with a checksum of its own. All chunks
of a segment are there, those too that keep sparse KV only, since later chunks have seen them. The file is made, checked
and read by the code of ``kv_file``; docs/storage.md has every byte.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from indexers.container import HeaderError
from indexers.folder import HERE, Folder, Name
from indexers.kv_file import ITEM_BYTES, ChunkReader, WrittenKV, require_known, write_dense_kv

if TYPE_CHECKING:
    from typing_extensions import Buffer

MAGIC = b"VXLTOK\r\n"
FORMAT_VERSION = 1
LAYOUT = "[chunk][group][token][width]"


@dataclass(frozen=True, slots=True, kw_only=True)
class TokensHeader:
    """What a file of tokens says about itself before any payload.

    ``chunk_times_s`` gives for each chunk the media time in seconds of each of its frame groups, as it was prefilled
    with; ``width`` is the number of values of a token. ``ValueError`` for an unknown ``dtype`` and for sizes below 1.
    """

    video_id: str
    segment_index: int
    fingerprint: str
    dtype: str
    tokens_per_group: int
    width: int
    chunk_times_s: tuple[tuple[float, ...], ...]

    def __post_init__(self) -> None:
        if self.dtype not in ITEM_BYTES:
            raise ValueError(f"unknown dtype of tokens {self.dtype!r}; known: {', '.join(ITEM_BYTES)}")
        if self.tokens_per_group < 1 or self.width < 1:
            raise ValueError(f"a group has {self.tokens_per_group} tokens of {self.width} values; both are at least 1")

    @property
    def magic(self) -> bytes:
        """The first bytes of the file."""
        return MAGIC

    @property
    def num_chunks(self) -> int:
        return len(self.chunk_times_s)

    @property
    def num_sections(self) -> int:
        """A chunk has one checksum."""
        return 1

    @property
    def group_times_s(self) -> tuple[float, ...]:
        """Media time in seconds of every frame group of the segment."""
        return tuple(time_s for times_s in self.chunk_times_s for time_s in times_s)

    def chunk_shape(self, chunk: int) -> tuple[int, int, int]:
        """``[groups, tokens of a group, width]``."""
        return (len(self.chunk_times_s[chunk]), self.tokens_per_group, self.width)

    def chunk_bytes(self, chunk: int) -> int:
        """Length of a chunk in the file."""
        groups, tokens, width = self.chunk_shape(chunk)
        return groups * tokens * width * ITEM_BYTES[self.dtype]

    def to_fields(self) -> dict[str, Any]:
        """Members of the header besides ``chunks`` and ``file_bytes``."""
        return {
            "format": FORMAT_VERSION,
            "layout": LAYOUT,
            "dtype": self.dtype,
            "fingerprint": self.fingerprint,
            "video_id": self.video_id,
            "segment_index": self.segment_index,
            "tokens_per_group": self.tokens_per_group,
            "width": self.width,
        }

    def chunk_fields(self, chunk: int) -> dict[str, Any]:
        """What ``chunks`` says of one chunk besides its place and digest."""
        return {"times_s": self.chunk_times_s[chunk]}

    @classmethod
    def from_fields(cls, fields: dict[str, Any]) -> TokensHeader:
        """The header that a file has. Raises ``HeaderError`` for one that this reader does not know."""
        require_known(fields, {"format": (FORMAT_VERSION,), "layout": (LAYOUT,), "dtype": tuple(ITEM_BYTES)})
        try:
            return cls(
                video_id=fields["video_id"],
                segment_index=fields["segment_index"],
                fingerprint=fields["fingerprint"],
                dtype=fields["dtype"],
                tokens_per_group=fields["tokens_per_group"],
                width=fields["width"],
                chunk_times_s=tuple(tuple(map(float, chunk["times_s"])) for chunk in fields["chunks"]),
            )
        except (KeyError, TypeError, ValueError) as exc:
            raise HeaderError(f"its members do not make sense: {exc}") from exc


def write_tokens(path: Name, header: TokensHeader, chunks: Iterable[Buffer], folder: Folder = HERE) -> WrittenKV:
    """Write one segment's tokens durably: either whole or not there. Takes and raises what ``write_dense_kv`` does."""
    return write_dense_kv(path, header, chunks, folder)


class TokensReader(ChunkReader[TokensHeader]):
    """Reads chunks of a file of tokens, each checked on every read; see ``kv_file.ChunkReader``."""

    magic = MAGIC
    header_type = TokensHeader
