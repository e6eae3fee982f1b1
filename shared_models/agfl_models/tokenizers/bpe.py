"""Learning merges: count the pairs of neighbors in words, join the pair seen most often, count again.

`Words` is what the owner of the text keeps, `PairTable` what is kept by whoever learns the counts alone, which may be
sums over owners. Source: Sennrich et al. 2016, arXiv:1508.07909, Algorithm 1. Departures: several pairs may be joined
at a time, and no pair is joined into a token that there is already, or that is longer than a tokenizer accepts.
"""

from __future__ import annotations

import heapq
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from agfl_models.tokenizers.tokenizer import FIRST_MERGE, MAX_TOKEN_BYTES, Pair, bytes_of_tokens, words_of

MIN_COUNT = 2  # a pair that is seen once teaches nothing
_EDGE = -1  # between words


def train_bpe(texts: Iterable[str], vocab_size: int, merges_per_round: int = 1) -> tuple[Pair, ...]:
    """Return the merges for texts that are all at hand, at most as many as `vocab_size` has room for."""
    words, table = Words.of(count_words(texts)), PairTable()
    table.add(words.pairs())
    while chosen := table.choose(min(merges_per_round, vocab_size - FIRST_MERGE - len(table.merges))):
        first = FIRST_MERGE + len(table.merges) - len(chosen)
        words = words.merged(chosen, first)
        table.add(words.pairs(first))
    return tuple(table.merges)


def count_words(texts: Iterable[str]) -> Counter[bytes]:
    """Return how often each word occurs."""
    counts: Counter[bytes] = Counter()
    for text in texts:
        counts.update(words_of(text))
    return counts


@dataclass(frozen=True)
class Words:
    """The distinct words of an owner, cut into tokens.

    tokens: ids (T,), words between edges; counts: how often the word around each token occurs (T,).
    """

    tokens: NDArray[np.int32]
    counts: NDArray[np.int64]

    @staticmethod
    def of(word_counts: Mapping[bytes, int]) -> Words:
        """Return the words, cut into bytes."""
        sizes = np.array([0, *(len(word) + 1 for word in word_counts)])
        data = b"\0" + b"".join(word + b"\0" for word in word_counts)
        tokens = np.frombuffer(data, np.uint8).astype(np.int32)
        tokens[np.cumsum(sizes)] = _EDGE
        counts = np.repeat(np.array([0, *word_counts.values()], np.int64), np.maximum(sizes, 1))
        return Words(tokens, counts)

    def merged(self, pairs: Sequence[Pair], first: int) -> Words:
        """Return the words with each of `pairs` joined in turn, from left to right; their ids count up from `first`."""
        words = self
        for token_id, pair in enumerate(pairs, start=first):
            words = words._merged(pair, token_id)
        return words

    def _merged(self, pair: Pair, token_id: int) -> Words:
        left, right = pair
        places = np.flatnonzero((self.tokens[:-1] == left) & (self.tokens[1:] == right))
        if left == right:  # "aaaa" is two pairs, not three
            starts = np.flatnonzero(np.diff(places, prepend=-2) != 1)
            in_run = np.arange(places.size) - np.repeat(starts, np.diff(starts, append=places.size))
            places = places[in_run % 2 == 0]
        tokens = self.tokens.copy()
        tokens[places] = token_id
        return Words(np.delete(tokens, places + 1), np.delete(self.counts, places + 1))

    def pairs(self, first: int = 0) -> dict[Pair, int]:
        """Return how often each pair of neighbors occurs, of those pairs that hold an id from `first` on."""
        left, right = self.tokens[:-1].astype(np.int64), self.tokens[1:].astype(np.int64)
        wanted = (left != _EDGE) & (right != _EDGE) & ((left >= first) | (right >= first))
        keys, index = np.unique(left[wanted] << 32 | right[wanted], return_inverse=True)
        counts = np.zeros(keys.size, np.int64)
        np.add.at(counts, index, self.counts[:-1][wanted])
        pairs = zip((keys >> 32).tolist(), (keys & 0xFFFFFFFF).tolist(), strict=True)
        return dict(zip(pairs, counts.tolist(), strict=True))


class PairTable:
    """How often every pair of tokens occurs, and the merges chosen by it.

    Each neighborhood in merged words was one before: u v was the last part of u and the first part of v. So what is
    counted of pairs that hold a new token tells what is left of the others, and nothing else need be counted again.
    """

    def __init__(self) -> None:
        self.merges: list[Pair] = []
        self._counts: dict[Pair, int] = {}
        self._queue: list[tuple[int, Pair]] = []  # (-count, pair), where count may be what it once was
        self._tokens = list(bytes_of_tokens(()))
        self._known = set(self._tokens)
        self._new = FIRST_MERGE  # ids from here on have not been counted

    def add(self, counts: Mapping[Pair, int]) -> None:
        """Take in the counts of all pairs that hold a token of the last choice; at first, of all pairs of bytes."""
        for (u, v), count in counts.items():
            before = self._last_part(u), self._first_part(v)
            if before in self._counts:
                self._counts[before] -= count
            self._counts[u, v] = count
            heapq.heappush(self._queue, (-count, (u, v)))
        for pair in self.merges[self._new - FIRST_MERGE :]:
            self._counts.pop(pair, None)
        self._new = len(self._tokens)

    def choose(self, at_most: int) -> list[Pair]:
        """Choose the next merges: the most frequent pair, ties to the smaller ids, and further independent ones.

        Two pairs are independent if joining one leaves the count of the other as it is: neither ends with the token
        that the other begins with. Fewer, or none, are chosen where no pair is left that occurs twice.
        """
        chosen: list[Pair] = []
        later: list[tuple[int, Pair]] = []
        while self._queue and len(chosen) < at_most:
            negative, pair = heapq.heappop(self._queue)
            count = self._counts.get(pair, 0)
            if count < MIN_COUNT or not self._makes_token(pair):
                continue
            if count != -negative:
                heapq.heappush(self._queue, (-count, pair))
            elif all(pair[0] != right and pair[1] != left for left, right in chosen):
                chosen.append(pair)
                self._join(pair)
            else:
                later.append((negative, pair))
        for entry in later:
            heapq.heappush(self._queue, entry)
        return chosen

    def _makes_token(self, pair: Pair) -> bool:
        token = self._tokens[pair[0]] + self._tokens[pair[1]]
        return len(token) <= MAX_TOKEN_BYTES and token not in self._known

    def _join(self, pair: Pair) -> None:
        token = self._tokens[pair[0]] + self._tokens[pair[1]]
        self.merges.append(pair)
        self._tokens.append(token)
        self._known.add(token)

    def _first_part(self, token_id: int) -> int:
        return token_id if token_id < self._new else self.merges[token_id - FIRST_MERGE][0]

    def _last_part(self, token_id: int) -> int:
        return token_id if token_id < self._new else self.merges[token_id - FIRST_MERGE][1]
