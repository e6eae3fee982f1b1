"""An owner's part in learning a tokenizer: its training text as words, cut up by the merges there are, and counted."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from agfl_models.errors import WireError
from agfl_models.examples import Row
from agfl_models.tokenizers.bpe import Words, count_words
from agfl_models.tokenizers.tokenizer import FIRST_MERGE, BPETokenizerConfig, Pair, bytes_of_tokens
from agfl_protocol.messages.counting import CountRequest
from agfl_protocol.plans.client_plan import ClientPlan, client_plan_from_json


@dataclass(frozen=True)
class CutWords:
    """What is kept warm from one request to the next. Held-out text is not in it."""

    client_plan: str
    merges: tuple[Pair, ...]
    words: Words


def check_request(request: CountRequest) -> ClientPlan:
    """Return the client plan of a request that fits it, before any text is touched.

    Raises:
        ConfigError: the configuration or a merge breaks a rule.
        WireError: there is nothing to learn, or more is asked for than the configuration says.
    """
    plan = client_plan_from_json(request.client_plan)
    tokenizer = plan.tokenizer
    if not isinstance(tokenizer, BPETokenizerConfig) or tokenizer.is_trained:
        raise WireError(
            "AGFL-WIRE-051", f"tokenizer: must have merges to learn for pairs to be counted, got type {tokenizer.type}"
        )
    if request.num_new > tokenizer.merges_per_round:
        most = tokenizer.merges_per_round
        raise WireError(
            "AGFL-WIRE-052", f"num_new: must be at most tokenizer.merges_per_round = {most}, got {request.num_new}"
        )
    if len(request.merges) >= tokenizer.max_merges:
        raise WireError(
            "AGFL-WIRE-053",
            f"merges: must be fewer than the {tokenizer.max_merges} to learn, got {len(request.merges)}",
        )
    bytes_of_tokens(request.merges)
    return plan


def cut(warm: CutWords | None, request: CountRequest, plan: ClientPlan, read: Callable[[], Sequence[Row]]) -> CutWords:
    """Return the words cut up by the merges of the request: on from what is warm, else from the rows that are read."""
    merges = request.merges
    if warm is None or warm.client_plan != request.client_plan or warm.merges != merges[: len(warm.merges)]:
        words = Words.of(count_words(plan.task.training_texts(read())))
        warm = CutWords(request.client_plan, (), words)
    done = len(warm.merges)
    return CutWords(request.client_plan, merges, warm.words.merged(merges[done:], FIRST_MERGE + done))
