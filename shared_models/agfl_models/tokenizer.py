"""Text to token ids and back: one token for each byte of UTF-8, so no vocabulary can leak private words."""

from __future__ import annotations

import codecs
from collections.abc import Iterable, Iterator


class ByteTokenizer:
    """259 ids: the 256 bytes, then beginning, end and padding."""

    bos_id = 256
    eos_id = 257
    pad_id = 258
    vocab_size = 259

    def encode(self, text: str) -> list[int]:
        """Return the UTF-8 bytes of the text, without special ids; what UTF-8 cannot hold becomes "?"."""
        return list(text.encode("utf-8", errors="replace"))

    def decode(self, ids: Iterable[int]) -> str:
        """Return the text of the ids; special ids are skipped and malformed UTF-8 becomes U+FFFD."""
        return "".join(self.decode_stream(ids))

    def decode_stream(self, ids: Iterable[int]) -> Iterator[str]:
        """Yield the text piece by piece as ids arrive, a character as soon as its last byte is there."""
        decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")
        for token_id in ids:
            assert 0 <= token_id < self.vocab_size, token_id
            if token_id < self.bos_id and (text := decoder.decode(bytes([token_id]))):
                yield text
        if rest := decoder.decode(b"", final=True):
            yield rest
