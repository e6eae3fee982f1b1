"""The tokenizer of a pretrained model: its own tokenizer.json behind the interface of every other tokenizer."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence

import tokenizers
from tokenizers.decoders import DecodeStream

from agfl_models.errors import PretrainedError
from agfl_models.huggingface.config import Architecture
from agfl_models.huggingface.folder import CONFIG_FILE, TOKENIZER_CONFIG_FILE, TOKENIZER_FILE, PretrainedFolder
from agfl_models.tokenizers.tokenizer import bytes_of_letters

# Which token each is called, in order of preference, in tokenizer_config.json or by number in config.json. BERT calls
# its first token cls and its last one sep; what a seq2seq decoder begins with only config.json says.
_BOS: dict[Architecture, tuple[str, ...]] = {
    "causal": ("bos_token", "eos_token"),
    "seq2seq": ("decoder_start_token", "bos_token"),
    "encoder": ("cls_token", "bos_token"),
}
_EOS: dict[Architecture, tuple[str, ...]] = {
    "causal": ("eos_token",),
    "seq2seq": ("eos_token",),
    "encoder": ("sep_token", "eos_token"),
}
_BYTE = re.compile("<0x([0-9A-F]{2})>")  # how SentencePiece writes a byte that is in no piece


class HuggingFaceTokenizer:
    """What a folder's tokenizer.json says, without the special tokens that it would add and the cuts it would make.

    Raises:
        PretrainedError: the folder's tokenizer cannot be read, or is not the model's.
    """

    def __init__(self, folder: PretrainedFolder, architecture: Architecture) -> None:
        self._library = _library(folder)
        self.token_bytes = _token_bytes(folder, self._library)  # by id; none for special tokens
        self.bos_id = _special_id(folder, self._library, _BOS[architecture])
        self.eos_id = _special_id(folder, self._library, _EOS[architecture])
        self.pad_id = _special_id(folder, self._library, ("pad_token", "eos_token"))
        most = folder.json(CONFIG_FILE).get("vocab_size", self.vocab_size)
        if self.vocab_size > most:
            rule = f"must have at most the model's {most} ids"
            raise PretrainedError(
                "AGFL-PRETRAINED-009", f"pretrained: {folder.path / TOKENIZER_FILE}: {rule}, got {self.vocab_size}"
            )

    @property
    def vocab_size(self) -> int:
        """Number of ids; the model may have room for more."""
        return len(self.token_bytes)

    def encode(self, text: str) -> list[int]:
        """Return the tokens of the text, without special ids; what UTF-8 cannot hold becomes "?"."""
        return self.encode_with_offsets(text)[0]

    def encode_with_offsets(self, text: str) -> tuple[list[int], list[tuple[int, int]]]:
        """Return the tokens and for each the characters (start, end) of `text` that it stands for."""
        encoding = self._library.encode(text.encode(errors="replace").decode(), add_special_tokens=False)
        return encoding.ids, encoding.offsets

    def decode(self, ids: Iterable[int]) -> str:
        """Return the text of the ids; special ids are skipped."""
        text: str = self._library.decode(list(ids), skip_special_tokens=True)
        return text

    def decode_stream(self, ids: Iterable[int]) -> Iterator[str]:
        """Yield the text piece by piece as ids arrive, a character as soon as its last byte is there."""
        stream, read, written = DecodeStream(skip_special_tokens=True), [], 0
        for token_id in ids:
            read.append(token_id)
            if text := stream.step(self._library, token_id):
                written += len(text)
                yield text
        # The library holds back what ends with U+FFFD, which may be a character of its own.
        if rest := self.decode(read)[written:]:
            yield rest


def _library(folder: PretrainedFolder) -> tokenizers.Tokenizer:
    try:
        library = tokenizers.Tokenizer.from_file(str(folder.path / TOKENIZER_FILE))
    except Exception as error:  # the library raises no other
        raise folder.error(error) from None
    library.no_truncation()
    library.no_padding()
    library.encode_special_tokens = True  # "<|im_end|>" in an owner's text is text
    return library


def _token_bytes(folder: PretrainedFolder, library: tokenizers.Tokenizer) -> tuple[bytes, ...]:
    """Return what each id stands for, near enough to count bytes: only byte-level tokenizers say it exactly."""
    is_byte_level = "ByteLevel" in str(folder.json(TOKENIZER_FILE).get("decoder"))
    vocabulary = library.get_vocab()
    tokens = [b""] * (max(vocabulary.values(), default=-1) + 1)
    for token, token_id in vocabulary.items():
        if is_byte_level:
            tokens[token_id] = bytes_of_letters(token)
        elif byte := _BYTE.fullmatch(token):
            tokens[token_id] = bytes.fromhex(byte[1])
        else:
            tokens[token_id] = token.removeprefix("##").replace("\u2581", " ").encode()
    for token_id, added in library.get_added_tokens_decoder().items():
        tokens[token_id] = b"" if added.special else added.content.encode()
    return tuple(tokens)


def _special_id(folder: PretrainedFolder, library: tokenizers.Tokenizer, names: Sequence[str]) -> int:
    written, numbers = folder.json(TOKENIZER_CONFIG_FILE), folder.json(CONFIG_FILE)
    for name in names:
        token = written.get(name)
        token_id = library.token_to_id(token["content"] if isinstance(token, dict) else token) if token else None
        found = numbers.get(name + "_id") if token_id is None else token_id
        if isinstance(found, int):
            return found
    raise PretrainedError(
        "AGFL-PRETRAINED-010", f"pretrained: {folder.path / TOKENIZER_CONFIG_FILE}: must name a {names[0]}, found none"
    )
