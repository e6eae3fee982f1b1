"""Merges learned fast are those of the definition, of the reference library, and of counting everything anew."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Mapping
from itertools import pairwise

import pytest
import tokenizers
from hypothesis import given
from hypothesis import strategies as st
from tests.models.test_tokenizer import ROLES, merged
from tokenizers import models, pre_tokenizers, trainers

from agfl_models.tokenizers.bpe import PairTable, Words, count_words, train_bpe
from agfl_models.tokenizers.tokenizer import FIRST_MERGE, MAX_TOKEN_BYTES, Pair, Tokenizer, bytes_of_tokens

SPEECHES = list(ROLES.values())
FEW_LETTERS = st.lists(st.text("ab -é", max_size=30), max_size=8)


def straight(texts: list[str], num_merges: int) -> list[Pair]:
    """The definition, every pair of every word counted anew for each merge."""
    words = {word: list(word) for word in count_words(texts)}
    counts = count_words(texts)
    merges: list[Pair] = []
    while len(merges) < num_merges:
        tokens = bytes_of_tokens(merges)
        pairs: Counter[Pair] = Counter()
        for word, ids in words.items():
            for left, right in pairwise(ids):
                joined = tokens[left] + tokens[right]
                if len(joined) <= MAX_TOKEN_BYTES and joined not in tokens:
                    pairs[left, right] += counts[word]
        if not pairs or max(pairs.values()) < 2:
            break
        best = min(pairs, key=lambda pair: (-pairs[pair], pair))
        words = {word: merged(ids, best, 259 + len(merges)) for word, ids in words.items()}
        merges.append(best)
    return merges


@given(FEW_LETTERS, st.integers(0, 40))
def test_merges_are_those_of_the_definition(texts: list[str], num_merges: int) -> None:
    assert list(train_bpe(texts, FIRST_MERGE + num_merges)) == straight(texts, num_merges)


def library_merges(counts: Mapping[bytes, int], num_merges: int) -> list[Pair]:
    """What `tokenizers` learns. Its ids, by which it breaks ties, follow the order of its characters.

    So each byte is written as a character of its own, in the order of the bytes, and words stand between spaces.
    """
    base = 0x4E00
    library = tokenizers.Tokenizer(models.BPE())
    library.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    trainer = trainers.BpeTrainer(
        vocab_size=256 + num_merges,
        min_frequency=2,
        show_progress=False,
        initial_alphabet=[chr(base + byte) for byte in range(256)],
        max_token_length=MAX_TOKEN_BYTES,
    )

    def lines() -> Iterator[str]:
        for word, count in counts.items():
            yield " ".join(["".join(chr(base + byte) for byte in word)] * count)

    library.train_from_iterator(lines(), trainer)
    ids = {bytes([byte]): byte for byte in range(256)}
    merges = []
    for pair in json.loads(library.to_str())["model"]["merges"]:
        left, right = (bytes(ord(character) - base for character in part) for part in pair)
        merges.append((ids[left], ids[right]))
        ids.setdefault(left + right, FIRST_MERGE + len(ids) - 256)
    return merges


@pytest.mark.parametrize("first_role", range(0, 600, 100))
def test_merges_are_those_of_the_reference_library(first_role: int) -> None:
    texts = [speech for role in SPEECHES[first_role : first_role + 20] for speech in role]
    merges = train_bpe(texts, FIRST_MERGE + 700)
    assert len(merges) == 700
    assert list(merges) == library_merges(count_words(texts), 700)


@given(FEW_LETTERS)
def test_merges_of_runs_and_ties_are_those_of_the_reference_library(texts: list[str]) -> None:
    """One difference: the library may merge two ways into one token; here every merge makes a token of its own."""
    theirs = library_merges(count_words(texts), 40)
    ours = list(train_bpe(texts, FIRST_MERGE + 40))
    made = []
    for number, (left, right) in enumerate(theirs):
        tokens = bytes_of_tokens(theirs[:number])
        made.append(tokens[left] + tokens[right])
        if made[-1] in made[:-1]:
            assert ours[:number] == theirs[:number]
            return
    assert ours == theirs


def test_a_tokenizer_that_the_library_learned_encodes_the_same_with_our_ids() -> None:
    texts = [speech for role in SPEECHES[:40] for speech in role] + ["naïve é日本 😀 \u2003 \n\n1990's"]
    library = tokenizers.Tokenizer(models.BPE())
    library.pre_tokenizer = by_words = pre_tokenizers.ByteLevel(add_prefix_space=False)
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    library.train_from_iterator(
        texts, trainers.BpeTrainer(vocab_size=600, show_progress=False, initial_alphabet=alphabet)
    )
    spelled = {
        character: byte
        for text in texts
        for character, byte in zip("".join(w for w, _ in by_words.pre_tokenize_str(text)), text.encode(), strict=True)
    }
    ids = {bytes([byte]): byte for byte in range(256)}
    merges = []
    for left, right in json.loads(library.to_str())["model"]["merges"]:
        parts = tuple(bytes(spelled[character] for character in part) for part in (left, right))
        merges.append((ids[parts[0]], ids[parts[1]]))
        ids[parts[0] + parts[1]] = 258 + len(merges)
    ours = Tokenizer(merges)
    for text in texts:
        theirs = [bytes(spelled[character] for character in token) for token in library.encode(text).tokens]
        assert [ours.token_bytes[token_id] for token_id in ours.encode(text)] == theirs


@given(FEW_LETTERS, st.integers(1, 6))
def test_the_table_knows_every_count_from_those_of_new_tokens_alone(texts: list[str], per_round: int) -> None:
    words, table = Words.of(count_words(texts)), PairTable()
    table.add(words.pairs())
    for _ in range(6):
        chosen = table.choose(per_round)
        first = FIRST_MERGE + len(table.merges) - len(chosen)
        words = words.merged(chosen, first)
        table.add(words.pairs(first))
        assert {pair: count for pair, count in table._counts.items() if count} == words.pairs()


@given(FEW_LETTERS, st.integers(2, 6))
def test_pairs_that_are_chosen_together_leave_each_others_counts_as_they_are(texts: list[str], per_round: int) -> None:
    words, table = Words.of(count_words(texts)), PairTable()
    table.add(words.pairs())
    for _ in range(6):
        chosen = table.choose(per_round)
        first = FIRST_MERGE + len(table.merges) - len(chosen)
        before = words.pairs()
        for pair in chosen:
            for token_id, other in enumerate(chosen, start=first):
                if other != pair:
                    assert words._merged(other, token_id).pairs()[pair] == before[pair]
        words = words.merged(chosen, first)
        table.add(words.pairs(first))


def test_several_merges_at_a_time_are_nearly_as_good() -> None:
    texts = [speech for role in SPEECHES[:60] for speech in role]
    size = sum(map(len, texts))

    def characters_a_token(merges_per_round: int) -> float:
        tokenizer = Tokenizer(train_bpe(texts, 1259, merges_per_round))
        assert len(tokenizer.merges) == 1000
        return size / sum(len(tokenizer.encode(text)) for text in texts)

    exact = characters_a_token(1)
    measured = {8: 1.0, 16: 0.99994, 64: 0.9952}
    for merges_per_round, ratio in measured.items():
        assert characters_a_token(merges_per_round) / exact == pytest.approx(ratio, abs=2e-3)


def test_words_are_counted_by_how_often_they_occur() -> None:
    assert count_words(["the sea the", " sea"]) == {b"the": 1, b" sea": 2, b" the": 1}
    assert Words.of(count_words(["aaa aaa"])).pairs() == {(97, 97): 4, (32, 97): 1}
    assert Words.of({}).pairs() == {}


@pytest.mark.parametrize("texts", [[], [""], ["a b c"], ["\x00\x01\x02"]])
def test_text_without_a_pair_that_occurs_twice_teaches_nothing(texts: list[str]) -> None:
    assert train_bpe(texts, 2000) == ()
