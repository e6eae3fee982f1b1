"""A tokenizer loses nothing, merges as the definition says, and a stream of ids never shows half a character."""

from __future__ import annotations

import gzip
import json
from importlib.resources import files
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agfl_models.errors import ConfigError
from agfl_models.tokenizers.bpe import train_bpe
from agfl_models.tokenizers.tokenizer import (
    BPETokenizerConfig,
    BytesTokenizerConfig,
    Pair,
    Tokenizer,
    TokenizerConfig,
    words_of,
)
from agfl_models.validation import Config, dump_yaml, read_yaml, validate

BYTES = Tokenizer()
_LINES = gzip.decompress(files("agfl_models").joinpath("data/shakespeare_roles.jsonl.gz").read_bytes()).splitlines()
ROLES: dict[str, list[str]] = {line["client"]: line["speeches"] for line in map(json.loads, _LINES)}
SPEECHES = ROLES["hamlet/HAM"]
# Half of a character of two bytes is a token of its own here, and so is the end of one with the next one's beginning.
BPE = Tokenizer(train_bpe([*SPEECHES, "éèê 日本語 日本 😀😀😀 \u00a0\u2003\n\n\t " * 20], 700))
TOKENIZERS = pytest.mark.parametrize("tokenizer", [BYTES, BPE], ids=["bytes", "bpe"])
TEXTS = st.one_of(
    st.text(),
    st.text("the éèê日本語😀 \u00a0\u2003\n'-1²ß\u0301", max_size=60),
    st.lists(st.sampled_from(SPEECHES), max_size=2).map("".join),
)
any_ids = st.lists(st.integers(0, 800))


@TOKENIZERS
@given(text=TEXTS)
def test_decode_inverts_encode(tokenizer: Tokenizer, text: str) -> None:
    ids = tokenizer.encode(text)
    assert tokenizer.decode(ids) == text
    assert b"".join(tokenizer.token_bytes[i] for i in ids) == text.encode()
    assert not {BYTES.bos_id, BYTES.eos_id, BYTES.pad_id} & set(ids)


@given(text=TEXTS)
def test_without_merges_tokens_are_the_bytes(text: str) -> None:
    assert BYTES.encode(text) == list(text.encode())


def merged(ids: list[int], pair: Pair, new_id: int) -> list[int]:
    """Join a pair from left to right."""
    out: list[int] = []
    i = 0
    while i < len(ids):
        is_pair = tuple(ids[i : i + 2]) == pair
        out.append(new_id if is_pair else ids[i])
        i += 2 if is_pair else 1
    return out


@given(text=TEXTS)
def test_tokens_are_those_of_one_merge_after_the_other_in_each_word(text: str) -> None:
    expected = []
    for word in words_of(text):
        ids = list(word)
        for i, pair in enumerate(BPE.merges):
            ids = merged(ids, pair, 259 + i)
        expected += ids
    assert BPE.encode(text) == expected


@given(text=TEXTS)
def test_words_are_the_text_and_no_letter_stands_beside_a_space_but_the_first(text: str) -> None:
    words = list(words_of(text))
    assert b"".join(words) == text.encode()
    for word in words:
        characters = word.decode().removeprefix(" ")
        assert not any(c.isalpha() for c in characters) or not any(c.isspace() for c in characters)


@TOKENIZERS
@given(text=TEXTS)
def test_offsets_are_the_characters_that_hold_a_tokens_bytes(tokenizer: Tokenizer, text: str) -> None:
    ids, offsets = tokenizer.encode_with_offsets(text)
    assert ids == tokenizer.encode(text)
    character_of_byte = [i for i, character in enumerate(text) for _ in character.encode()]
    place = 0
    for token_id, (start, end) in zip(ids, offsets, strict=True):
        size = len(tokenizer.token_bytes[token_id])
        held = character_of_byte[place : place + size]
        assert (start, end) == (held[0], held[-1] + 1)
        place += size


def test_offsets_of_characters_of_several_bytes() -> None:
    tokenizer = Tokenizer([(0xC3, 0xA9), (0xA9, 0x62)])
    assert tokenizer.encode_with_offsets("aéb") == ([0x61, 259, 0x62], [(0, 1), (1, 2), (2, 3)])
    assert BYTES.encode_with_offsets("é\ud800b") == ([0xC3, 0xA9, 0x3F, 0x62], [(0, 1), (0, 1), (1, 2), (2, 3)])
    assert tokenizer.encode_with_offsets("") == ([], [])


@given(data=st.binary())
def test_random_bytes_decode_as_python_does(data: bytes) -> None:
    assert BYTES.decode(data) == data.decode("utf-8", errors="replace")


@given(text=st.text())
def test_each_piece_of_a_stream_is_whole_characters_as_early_as_possible(text: str) -> None:
    assert list(BYTES.decode_stream(BYTES.encode(text))) == list(text)


@given(text=TEXTS)
def test_no_piece_of_a_stream_of_merged_tokens_is_half_a_character(text: str) -> None:
    shown = ""
    ids = BPE.encode(text)
    for piece in BPE.decode_stream(ids):
        shown += piece
        assert text.startswith(shown)
    assert shown == text


@TOKENIZERS
@given(ids=any_ids)
def test_a_stream_of_any_ids_is_the_decoded_text(tokenizer: Tokenizer, ids: list[int]) -> None:
    pieces = list(tokenizer.decode_stream(ids))
    assert all(pieces)
    plain = b"".join(tokenizer.token_bytes[i] for i in ids if i < tokenizer.vocab_size)
    assert "".join(pieces) == tokenizer.decode(ids) == plain.decode("utf-8", errors="replace")


@TOKENIZERS
def test_special_ids_follow_the_bytes_and_are_not_text(tokenizer: Tokenizer) -> None:
    assert (tokenizer.bos_id, tokenizer.eos_id, tokenizer.pad_id) == (256, 257, 258)
    assert tokenizer.vocab_size == 259 + len(tokenizer.merges)
    assert tokenizer.decode([256, 104, 105, 257, 258, 70_000]) == "hi"


@TOKENIZERS
def test_a_lone_surrogate_does_not_stop_encoding(tokenizer: Tokenizer) -> None:
    assert tokenizer.decode(tokenizer.encode("a\ud800b")) == "a?b"


DOUBLING = [(97, 97), *((259 + i, 259 + i) for i in range(40))]  # the last one would be 2^41 bytes long


@pytest.mark.parametrize(
    ("merges", "line"),
    [
        ([(97, 259)], "merges.0: must join two earlier tokens, got 259 among 259 ids"),
        ([(97, 98), (260, 97)], "merges.1: must join two earlier tokens, got 260 among 260 ids"),
        ([(256, 97)], "merges.0: must join two earlier tokens, got 256 among 259 ids"),
        ([(97, 258)], "merges.0: must join two earlier tokens, got 258 among 259 ids"),
        ([(-1, 97)], "merges.0: must join two earlier tokens, got -1 among 259 ids"),
        ([(97, 98), (97, 98)], "merges.1: must make a new token, got b'ab' again"),
        ([(97, 98), (98, 99), (259, 99), (97, 260)], "merges.3: must make a new token, got b'abc' again"),
        (DOUBLING, "merges.7: must make a token of at most 128 bytes, got 256"),
    ],
)
def test_merges_that_make_no_vocabulary_are_refused_by_name(merges: list[Pair], line: str) -> None:
    with pytest.raises(ConfigError) as caught:
        Tokenizer(merges)
    assert caught.value.sentence == line
    with pytest.raises(ConfigError) as caught:
        read({"type": "bpe", "vocab_size": 1000, "merges": merges})
    assert caught.value.sentence == f"run.yaml: tokenizer: {line}"


class Holder(Config):
    """A configuration with a tokenizer in it."""

    tokenizer: TokenizerConfig = BytesTokenizerConfig()


def read(tokenizer: dict[str, Any]) -> TokenizerConfig:
    return validate(Holder, {"tokenizer": tokenizer}, "run.yaml").tokenizer


@pytest.mark.parametrize(
    ("tokenizer", "line"),
    [
        ({"type": "bpe"}, "tokenizer.vocab_size: required but missing"),
        ({"type": "bpe", "vocab_size": 259}, "tokenizer.vocab_size: Input should be greater than 259, got 259"),
        (
            {"type": "bpe", "vocab_size": 2**16 + 1},
            "tokenizer.vocab_size: Input should be less than or equal to 65536, got 65537",
        ),
        (
            {"type": "bpe", "vocab_size": 260, "merges": [[97, 98], [98, 99]]},
            "tokenizer: merges: must be at most 1, for which vocab_size 260 has room, got 2",
        ),
        (
            {"type": "bpe", "vocab_size": 300, "merges_per_round": 65},
            "tokenizer.merges_per_round: Input should be less than or equal to 64, got 65",
        ),
        ({"type": "word"}, "tokenizer: unknown 'type' 'word' (known: bpe, bytes, huggingface)"),
        ({"type": "bytes", "merges": []}, "tokenizer: unknown key 'merges' (known: type)"),
    ],
)
def test_a_bad_configuration_is_one_line(tokenizer: dict[str, Any], line: str) -> None:
    with pytest.raises(ConfigError) as caught:
        read(tokenizer)
    assert caught.value.sentence == f"run.yaml: {line}"


def test_a_configuration_says_whether_it_can_encode() -> None:
    assert BytesTokenizerConfig().build().encode("ab") == [97, 98]
    untrained = BPETokenizerConfig(type="bpe", vocab_size=300)
    assert (untrained.is_trained, untrained.max_merges, untrained.merges_per_round) == (False, 41, 16)
    with pytest.raises(ConfigError, match=r"^tokenizer\.merges: .*AGFL-CONFIG-019"):
        untrained.build()
    trained = untrained.model_copy(update={"merges": ((97, 98),)})
    assert trained.is_trained
    assert trained.build().encode("abc") == [259, 99]


def test_thousands_of_merges_are_few_lines_of_yaml(tmp_path: Path) -> None:
    config = Holder(tokenizer=BPETokenizerConfig(type="bpe", vocab_size=700, merges=BPE.merges))
    text = dump_yaml(config.model_dump(mode="json"))
    assert len(text.splitlines()) < len(BPE.merges) / 5
    (tmp_path / "run.yaml").write_text(text)
    assert validate(Holder, read_yaml(tmp_path / "run.yaml"), "run.yaml") == config
