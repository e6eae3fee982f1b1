"""Learning a tokenizer before round 1: summed counts of pairs come in, merges go out, until the vocabulary is full.

With one merge a round this is BPE (Sennrich et al. 2016, arXiv:1508.07909, Algorithm 1) over the training text of all
owners at once, merge for merge. All sums are over the same owners, those of the first: counts are of the same text each
time, so counts over others could be subtracted, and the table would fit neither.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import count

from agfl_models.errors import ConfigError, DataError, RoundError
from agfl_models.examples import TextRow, read_data
from agfl_models.reading.survey import Survey
from agfl_models.tokenizers.bpe import PairTable, train_bpe
from agfl_models.tokenizers.tokenizer import BPETokenizerConfig, Pair
from agfl_protocol.config.run_config import RunConfig
from agfl_protocol.messages.counting import CountCodec, CountRequest
from agfl_protocol.plans.sum_kind import Kind
from agfl_protocol.secagg.lanes import Lanes
from agfl_server.aggregation.aggregator import CohortSum
from agfl_server.rounds.attempts import Request, RunContext, sum_in_attempts
from agfl_server.rounds.journal import Entry
from agfl_server.rounds.observer import Observer, Row
from agfl_server.transport.clock import clock_of


def with_public_tokenizer(config: RunConfig, observer: Observer) -> RunConfig:
    """Return the run with the merges that the operator's own text teaches, if its tokenizer names such a text.

    Raises:
        ConfigError: the text cannot be read.
    """
    tokenizer, found = config.tokenizer, public_rows(config)
    if found is None:
        return config
    rows, survey = found
    for line in (f"tokenizer.text: {survey.line}", *survey.doubts):
        observer.read(line)
    assert isinstance(tokenizer, BPETokenizerConfig), tokenizer.type
    merges = train_bpe((row.text for row in rows), tokenizer.vocab_size, tokenizer.merges_per_round)
    observer.tokenizer_trained(len(merges), tokenizer.max_merges)
    return config.with_merges(merges)


def public_rows(config: RunConfig) -> tuple[Sequence[TextRow], Survey] | None:
    """Return the operator's own text and what it was found in, if the run's tokenizer is still to be learned from it.

    Raises:
        ConfigError: the text cannot be read.
    """
    tokenizer = config.tokenizer
    if not isinstance(tokenizer, BPETokenizerConfig) or tokenizer.text is None or tokenizer.is_trained:
        return None
    try:
        return read_data(tokenizer.text, TextRow)
    except DataError as error:
        raise ConfigError.of(error, f"tokenizer.text: {error.sentence.removeprefix('data: ')}") from None


def train_tokenizer(context: RunContext) -> tuple[RunConfig, Row]:
    """Return the run with the merges that its owners' text teaches, and what that took, for the row of round 0.

    Raises:
        RoundError: a sum failed `aggregation.max_attempts` times.
    """
    config, observer = context.config, context.observer
    tokenizer = config.tokenizer
    assert isinstance(tokenizer, BPETokenizerConfig), tokenizer.type
    started, clients, refused, bytes_up, bytes_down = clock_of(context.grid).now(), 0, 0, 0, 0
    table, num_new, exchange = PairTable(), 0, 0
    for number in count(1):
        counts, cohort_sum = _sum_counts(context, number, exchange, table.merges, num_new)
        exchange = cohort_sum.exchange
        if number == 1:
            context, clients = _held_to(cohort_sum.survivors, context), len(cohort_sum.survivors)
        refused += len(cohort_sum.refused)
        bytes_up += cohort_sum.bytes_up
        bytes_down += cohort_sum.bytes_down
        table.add(counts)
        room = tokenizer.max_merges - len(table.merges)
        num_new = len(table.choose(min(tokenizer.merges_per_round, room)))
        if num_new in (0, room):
            break
    context.journal.close(number)  # no model has it behind it
    observer.tokenizer_trained(len(table.merges), tokenizer.max_merges)
    cost: Row = {
        "clients": clients,
        "refused": refused,
        "bytes_up": bytes_up,
        "bytes_down": bytes_down,
        "seconds": round(clock_of(context.grid).now() - started, 4),
    }
    return config.with_merges(table.merges), cost


def _sum_counts(
    context: RunContext, number: int, after: int, merges: Sequence[Pair], num_new: int
) -> tuple[dict[Pair, int], CohortSum]:
    """Return the summed counts of the pairs that hold one of the `num_new` last merges, and the sum they came in.

    That comes without its lanes, which are large and must not lie beside the next ones.
    """
    config = context.config

    def broadcast(entry: Entry, room: int) -> tuple[CountRequest, CountCodec]:
        request = CountRequest(
            run_id=context.journal.run_id,
            round=number,
            exchange=entry.exchange,
            plan_hash=context.plan.hash,
            client_plan=config.client_plan.to_json(),
            merges=tuple(merges),
            num_new=num_new,
            max_cohort=room,
        )
        context.observer.tokenizer_round(len(merges), config.tokenizer.max_merges, len(entry.cohort))
        return request, CountCodec.of(request)

    try:
        wanted = Request(number, after, Kind.EXACT, all_owners=True)
        _, counts, cohort_sum = sum_in_attempts(context, wanted, broadcast, _decode)
    except RoundError as error:
        raise RoundError.of(error, f"tokenizer: {error.sentence}") from None
    return counts, cohort_sum


def _decode(codec: CountCodec, lanes: Lanes) -> Callable[[], dict[Pair, int]]:
    counts = codec.decode_checked(lanes)
    return lambda: counts


def _held_to(owners: Sequence[str], context: RunContext) -> RunContext:
    """Return the context for sums over exactly `owners`."""
    least = len(owners)
    return replace(context, aggregator=context.aggregator.requiring(least), min_cohort=least, members=frozenset(owners))
