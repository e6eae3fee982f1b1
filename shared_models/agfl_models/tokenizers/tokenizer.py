"""Text to token ids and back: UTF-8 bytes, and merges of neighbors that are often seen together (byte-level BPE).

Without merges every byte is a token, so no vocabulary can leak private words. Sources: Sennrich et al. 2016,
arXiv:1508.07909; on bytes Radford et al. 2019 (GPT-2), whose rule of what a word is ends every token.
"""

from __future__ import annotations

import codecs
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Annotated, Literal, Protocol, Self

import numpy as np
import tokenizers
from pydantic import Field, model_validator
from tokenizers import models, pre_tokenizers

from agfl_models.errors import BrokenRule, ConfigError
from agfl_models.validation import Config

Pair = tuple[int, int]

NUM_BYTES, FIRST_MERGE = 256, 259  # ids: the bytes, beginning, end and padding, then merge i as 259 + i
MAX_VOCAB_SIZE = 2**16
MAX_TOKEN_BYTES = 128  # merges can double a token's length, and they come over the wire
MAX_MERGES_PER_ROUND = 64


class TextTokenizer(Protocol):
    """What every tokenizer provides."""

    @property
    def bos_id(self) -> int:
        """The id that begins a text."""

    @property
    def eos_id(self) -> int:
        """The id that ends a text."""

    @property
    def pad_id(self) -> int:
        """The id that fills up a batch."""

    @property
    def vocab_size(self) -> int:
        """Number of ids."""

    @property
    def token_bytes(self) -> tuple[bytes, ...]:
        """The bytes that each id stands for, none for special ids."""

    def encode(self, text: str) -> list[int]:
        """Return the tokens of the text, without special ids."""

    def encode_with_offsets(self, text: str) -> tuple[list[int], list[tuple[int, int]]]:
        """Return the tokens and for each the characters (start, end) of `text` that it stands for."""

    def decode(self, ids: Iterable[int]) -> str:
        """Return the text of the ids; special ids are skipped."""

    def decode_stream(self, ids: Iterable[int]) -> Iterator[str]:
        """Yield the text piece by piece as ids arrive, whole characters only."""


class Tokenizer:
    """Byte-level BPE: merge i joins its two tokens, wherever they stand side by side in a word, into id 259 + i.

    Raises:
        ConfigError: a merge joins what is no token yet, or makes a token that is too long or there already.
    """

    bos_id, eos_id, pad_id = 256, 257, 258

    def __init__(self, merges: Sequence[Pair] = ()) -> None:
        self.merges = tuple((left, right) for left, right in merges)
        self.token_bytes = bytes_of_tokens(self.merges)  # by id; no bytes for beginning, end and padding
        self._library = _library(self.token_bytes, self.merges) if self.merges else None

    @property
    def vocab_size(self) -> int:
        """Number of ids."""
        return len(self.token_bytes)

    def encode(self, text: str) -> list[int]:
        """Return the tokens of the text, without special ids; what UTF-8 cannot hold becomes "?"."""
        data = text.encode("utf-8", errors="replace")
        if self._library is None:
            return list(data)
        ids: list[int] = self._library.encode(data.decode("utf-8"), add_special_tokens=False).ids
        return ids

    def encode_with_offsets(self, text: str) -> tuple[list[int], list[tuple[int, int]]]:
        """Return the tokens and for each the characters (start, end) of `text` that its bytes belong to.

        A character of several bytes may be cut up into several tokens; each of them then has it in its range.
        """
        ids = self.encode(text)
        ends = np.cumsum([len(self.token_bytes[token_id]) for token_id in ids], dtype=np.int64)
        starts = np.concatenate([np.zeros(1, np.int64), ends])[: len(ids)]
        of_byte = _character_of_byte(text)
        return ids, list(zip(of_byte[starts].tolist(), (of_byte[ends - 1] + 1).tolist(), strict=True))

    def decode(self, ids: Iterable[int]) -> str:
        """Return the text of the ids; special ids are skipped and malformed UTF-8 becomes U+FFFD."""
        return "".join(self.decode_stream(ids))

    def decode_stream(self, ids: Iterable[int]) -> Iterator[str]:
        """Yield the text piece by piece as ids arrive, a character as soon as its last byte is there.

        An id past the last merge, of which a model's vocabulary may have some, is no text either.
        """
        decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")
        for token_id in ids:
            assert token_id >= 0, token_id
            if token_id < self.vocab_size and (text := decoder.decode(self.token_bytes[token_id])):
                yield text
        if rest := decoder.decode(b"", final=True):
            yield rest


class _ReadyTokenizerConfig(Config):
    """Base of those that have nothing to learn."""

    @property
    def max_merges(self) -> int:
        """Number of merges for which the vocabulary has room."""
        return 0

    @property
    def is_trained(self) -> bool:
        """Whether text can be encoded."""
        return True


class BytesTokenizerConfig(_ReadyTokenizerConfig):
    """Every byte of UTF-8 is a token."""

    type: Literal["bytes"] = "bytes"

    @property
    def vocab_size(self) -> int:
        """Number of ids that the model must know."""
        return FIRST_MERGE

    def build(self) -> Tokenizer:
        """Return the tokenizer."""
        return Tokenizer()


class BPETokenizerConfig(Config):
    """Byte-level BPE.

    vocab_size: 259 and one for each merge; text may not have that many pairs to merge, then the last ids stay unused.
    merges: null lets the federation learn them before round 1, `merges_per_round` at a time. 1 is BPE as published;
    more are as many rounds fewer, and nearly as good. text: public text of the operator's own (.txt, a folder of them,
    .jsonl or .tsv with `text`), from which the server learns the merges instead; it is not sent.
    """

    type: Literal["bpe"]
    vocab_size: Annotated[int, Field(gt=FIRST_MERGE, le=MAX_VOCAB_SIZE)]
    merges: Annotated[tuple[Pair, ...], Field(fail_fast=True)] | None = None
    text: Path | None = None
    merges_per_round: Annotated[int, Field(ge=1, le=MAX_MERGES_PER_ROUND)] = 16

    @model_validator(mode="after")
    def _refuse_two_sources(self) -> Self:
        if self.merges is not None and self.text is not None:
            raise BrokenRule("AGFL-CONFIG-017", f"text: must not be given where merges are, got {str(self.text)!r}")
        return self

    @model_validator(mode="after")
    def _refuse_bad_merges(self) -> Self:
        if self.merges is not None and len(self.merges) > self.max_merges:
            rule = f"must be at most {self.max_merges}, for which vocab_size {self.vocab_size} has room"
            raise BrokenRule("AGFL-CONFIG-018", f"merges: {rule}, got {len(self.merges)}")
        try:
            bytes_of_tokens(self.merges or ())
        except ConfigError as error:
            raise BrokenRule.of(error) from None  # pydantic adds where in the file it stands
        return self

    @property
    def max_merges(self) -> int:
        """Number of merges for which the vocabulary has room."""
        return self.vocab_size - FIRST_MERGE

    @property
    def is_trained(self) -> bool:
        """Whether text can be encoded."""
        return self.merges is not None

    def build(self) -> Tokenizer:
        """Return the tokenizer; raises ConfigError where its merges are still to be learned."""
        if self.merges is None:
            raise ConfigError(
                "AGFL-CONFIG-019",
                "tokenizer.merges: required to encode text, got none (they are learned before round 1)",
            )
        return Tokenizer(self.merges)


class HuggingFaceTokenizerConfig(_ReadyTokenizerConfig):
    """The tokenizer that belongs to a pretrained model, from the same folder."""

    type: Literal["huggingface"]

    @property
    def vocab_size(self) -> None:
        """What the folder says, as the model's."""
        return None


TokenizerConfig = Annotated[
    BytesTokenizerConfig | BPETokenizerConfig | HuggingFaceTokenizerConfig, Field(discriminator="type")
]


def bytes_of_tokens(merges: Sequence[Pair]) -> tuple[bytes, ...]:
    """Return the bytes of every id, none for beginning, end and padding.

    Raises:
        ConfigError: a merge joins what is no token yet, or makes a token that is too long or there already.
    """
    tokens = [*(bytes([byte]) for byte in range(NUM_BYTES)), *(b"" for _ in range(NUM_BYTES, FIRST_MERGE))]
    known = set(tokens)
    for index, (left, right) in enumerate(merges):
        where = f"merges.{index}"
        for token_id in (left, right):
            if not 0 <= token_id < len(tokens) or not tokens[token_id]:
                raise ConfigError(
                    "AGFL-CONFIG-020", f"{where}: must join two earlier tokens, got {token_id} among {len(tokens)} ids"
                )
        token = tokens[left] + tokens[right]
        if len(token) > MAX_TOKEN_BYTES:
            raise ConfigError(
                "AGFL-CONFIG-021", f"{where}: must make a token of at most {MAX_TOKEN_BYTES} bytes, got {len(token)}"
            )
        if token in known:
            raise ConfigError("AGFL-CONFIG-022", f"{where}: must make a new token, got {token[:40]!r} again")
        known.add(token)
        tokens.append(token)
    return tuple(tokens)


def words_of(text: str) -> Iterator[bytes]:
    """Yield the words of a text, which no token crosses: GPT-2's rule, as the library has it."""
    for word, _ in _words.pre_tokenize_str(text.encode("utf-8", errors="replace").decode("utf-8")):
        yield bytes_of_letters(word)


def bytes_of_letters(word: str) -> bytes:
    """Return the bytes that the library writes as these letters (GPT-2)."""
    return word.translate(_TO_BYTE).encode("latin-1")


def _alphabet() -> list[str]:
    """Return the character that stands for each byte in the library: itself if it can be printed (GPT-2)."""
    printed = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = iter(range(NUM_BYTES, 2 * NUM_BYTES))
    return [chr(byte if byte in printed else next(others)) for byte in range(NUM_BYTES)]


_ALPHABET = _alphabet()
_TO_BYTE = {ord(character): byte for byte, character in enumerate(_ALPHABET)}
_FROM_BYTE = {byte: character for byte, character in enumerate(_ALPHABET)}
_words = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)


def _library(token_bytes: Sequence[bytes], merges: Sequence[Pair]) -> tokenizers.Tokenizer:
    """Return the tokenizer of the library `tokenizers` with our ids."""
    written = [token.decode("latin-1").translate(_FROM_BYTE) for token in token_bytes]
    vocabulary = {token: token_id for token_id, token in enumerate(written) if token}
    library = tokenizers.Tokenizer(models.BPE(vocabulary, [(written[left], written[right]) for left, right in merges]))
    library.pre_tokenizer = _words
    return library


def _character_of_byte(text: str) -> np.ndarray[tuple[int], np.dtype[np.int64]]:
    """Return for each byte of the text's UTF-8 the index of its character."""
    code_points = np.frombuffer(text.encode("utf-32-le", errors="replace"), np.uint32)
    num_bytes = 1 + (code_points >= 0x80) + (code_points >= 0x800) + (code_points >= 0x10000)
    return np.repeat(np.arange(code_points.size, dtype=np.int64), num_bytes)
