"""The byte tokenizer loses nothing, and a stream of ids never shows half a character."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from agfl_models.tokenizer import ByteTokenizer

TOKENIZER = ByteTokenizer()
any_ids = st.lists(st.integers(0, TOKENIZER.vocab_size - 1))


@given(text=st.text())
def test_decode_inverts_encode(text: str) -> None:
    ids = TOKENIZER.encode(text)
    assert ids == list(text.encode())
    assert TOKENIZER.decode(ids) == text


@given(data=st.binary())
def test_random_bytes_decode_as_python_does(data: bytes) -> None:
    assert TOKENIZER.decode(data) == data.decode("utf-8", errors="replace")


@given(text=st.text())
def test_each_piece_of_a_stream_is_whole_characters_as_early_as_possible(text: str) -> None:
    assert list(TOKENIZER.decode_stream(TOKENIZER.encode(text))) == list(text)


@given(ids=any_ids)
def test_a_stream_of_any_ids_is_the_decoded_text(ids: list[int]) -> None:
    pieces = list(TOKENIZER.decode_stream(ids))
    assert all(pieces)
    plain = bytes(token_id for token_id in ids if token_id < 256)
    assert "".join(pieces) == TOKENIZER.decode(ids) == plain.decode("utf-8", errors="replace")


def test_special_ids_follow_the_bytes_and_are_not_text() -> None:
    assert (TOKENIZER.bos_id, TOKENIZER.eos_id, TOKENIZER.pad_id, TOKENIZER.vocab_size) == (256, 257, 258, 259)
    assert TOKENIZER.decode([256, 104, 105, 257, 258]) == "hi"


def test_a_lone_surrogate_does_not_stop_encoding() -> None:
    assert TOKENIZER.encode("a\ud800b") == list(b"a?b")
