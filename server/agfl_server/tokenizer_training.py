"""Learning a tokenizer before round 1: summed counts of pairs come in, merges go out, until the vocabulary is full.

With one merge a round this is BPE (Sennrich et al. 2016, arXiv:1508.07909, Algorithm 1) over the training text of all
owners at once, merge for merge. All sums are over the same owners, those of the first: counts are of the same text each
time, so counts over others could be subtracted, and the table would fit neither.
"""

from __future__ import annotations

import secrets
from collections.abc import Sequence
from dataclasses import replace
from itertools import count

from agfl_models.bpe import PairTable
from agfl_models.errors import RoundError
from agfl_models.tokenizer import BPETokenizerConfig, Pair
from agfl_protocol.counting import CountCodec, CountRequest
from agfl_protocol.run_config import RunConfig
from agfl_server.attempts import Parties, sum_in_attempts


def train_tokenizer(parties: Parties) -> RunConfig:
    """Return the run with the merges that its owners' text teaches.

    Raises:
        RoundError: a sum failed `aggregation.max_attempts` times.
    """
    config, observer = parties.config, parties.observer
    tokenizer = config.tokenizer
    assert isinstance(tokenizer, BPETokenizerConfig), tokenizer.type
    table, num_new, run_id = PairTable(), 0, secrets.token_hex(8)
    for number in count(1):
        counts, owners = _sum_counts(parties, run_id, number, table.merges, num_new)
        if number == 1:
            parties = _held_to(owners, parties)
        table.add(counts)
        room = tokenizer.max_merges - len(table.merges)
        num_new = len(table.choose(min(tokenizer.merges_per_round, room)))
        if num_new in (0, room):
            break
    observer.tokenizer_trained(len(table.merges), tokenizer.max_merges)
    return config.with_merges(table.merges)


def _sum_counts(
    parties: Parties, run_id: str, number: int, merges: Sequence[Pair], num_new: int
) -> tuple[dict[Pair, int], tuple[str, ...]]:
    """Return the summed counts of the pairs that hold one of the `num_new` last merges, and over whom."""
    config = parties.config

    def broadcast(cohort_size: int, attempt: int) -> tuple[CountRequest, CountCodec]:
        request = CountRequest(
            run_id, number, attempt, config.to_json(), config.hash, tuple(merges), num_new, cohort_size
        )
        parties.observer.tokenizer_round(len(merges), config.tokenizer.max_merges, cohort_size)
        return request, CountCodec.of(request)

    try:
        codec, cohort_sum = sum_in_attempts(parties, run_id, number, broadcast)
    except RoundError as error:
        raise RoundError(f"tokenizer: {error}") from None
    return codec.decode(cohort_sum.lanes), cohort_sum.survivors


def _held_to(owners: Sequence[str], parties: Parties) -> Parties:
    """Return the parties of sums over exactly `owners`."""
    least = len(owners)
    return replace(parties, aggregator=parties.aggregator.requiring(least), min_cohort=least, members=frozenset(owners))
