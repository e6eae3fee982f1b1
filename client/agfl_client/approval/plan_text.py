"""A plan, and what a run gives away, in words for the owner who is to approve it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from agfl_client.approval.sums_text import sums_lines
from agfl_client.policy import Policy
from agfl_client.training.own_error import MIN_SIGMA, own_error
from agfl_models.tokenizers.tokenizer import BPETokenizerConfig
from agfl_models.validation import validate
from agfl_protocol.identity.fingerprint import to_words
from agfl_protocol.plans.client_plan import ClientPlan
from agfl_protocol.plans.plan import Plan, differences
from agfl_protocol.plans.sum_kind import Kind, kind_of, num_examples
from agfl_protocol.secagg.parameters import MIN_ROSTER, Parameters

PAIRS = (1, 16, 64, 200)


def describe(
    plan: Plan, earlier: Plan | None, sigma: float | None, *, operator: str = "", policy: Policy | None = None
) -> str:
    """Return what a person should know before approving a plan.

    earlier: the run on the same text that was approved last; operator: SHA-256 of its CA certificate.
    """
    return "\n".join(_lines(plan, earlier, sigma, operator, policy or Policy()))


def honest_others(plan: Plan, policy: Policy) -> int:
    """Return how many others in a sampled sum are honest, if all who may conspire are in it; at least one."""
    aggregation = plan.client_plan.aggregation
    size = min(aggregation.cohort_size or len(plan.members), len(plan.members))
    if plan.is_by_group:
        size = _min_cohort(plan, policy)
    return max(size - _colluders(plan, policy) - 1, 1)


def _min_cohort(plan: Plan, policy: Policy) -> int:
    return Parameters.of(max(len(plan.members), MIN_ROSTER), policy.max_colluders, policy.min_cohort).min_cohort


def _colluders(plan: Plan, policy: Policy) -> int:
    return Parameters.of(max(len(plan.members), MIN_ROSTER), policy.max_colluders).max_colluders


def _lines(plan: Plan, earlier: Plan | None, sigma: float | None, operator: str, policy: Policy) -> Iterator[str]:
    config = plan.client_plan
    models = [validate(ClientPlan, plan.config | {"model": model}, "plan").model for model in plan.candidates]
    sizes = sorted({model.num_parameters() for model in models or [config.model]})
    yield f"run {plan.run_id}, plan {plan.hash}"
    if operator:
        yield f"operator: CA certificate {operator}"
    yield f"task: {config.task.type}"
    yield f"rounds: {config.num_rounds}, each asked for at most {config.aggregation.max_attempts} times"
    yield f"model: {' or '.join(f'{size:,}' for size in sizes)} parameters" + _candidates(plan)
    if config.plugins:
        yield f"plug-ins: {', '.join(map(str, config.plugins))}"
    if config.training.trainer is not None:
        yield f"trainer: {config.training.trainer.type}, in place of the shipped one; its code decides what it looks at"
    yield f"members: {len(plan.members)}: {', '.join(plan.members)}"
    if plan.roster:
        yield f"roster: that of yours, in words: {to_words(bytes.fromhex(plan.roster))}"
    if config.aggregation.type == "plain":
        yield "sums: PLAIN: the server sees your update itself"
    else:
        for number, group in enumerate(plan.groups, start=1):
            yield f"group {number}: {len(group)}: {', '.join(group)}"
        yield from _sums(plan, config, sigma, policy)
        yield "what you add to these sums beside your update:"
        yield from sums_lines(config)
    yield from _earlier(plan, earlier)


def _candidates(plan: Plan) -> str:
    return f", {len(plan.candidates)} candidates of a search" if plan.candidates else ""


def _sums(plan: Plan, config: ClientPlan, sigma: float | None, policy: Policy) -> Iterator[str]:
    colluders = _colluders(plan, policy)
    most = policy.max_sampled_examples
    kind = kind_of(config, train=True, evaluate=True, full=False, counts=False, max_sampled_examples=most)
    group = min(map(len, plan.groups))
    exact = f"over whole groups, each of {group} owners or more, of whom {colluders} may conspire with the server"
    if isinstance(config.tokenizer, BPETokenizerConfig) and not config.tokenizer.is_trained:
        yield f"counts for the tokenizer: exact, {exact}"
    if kind is Kind.EXACT:
        yield f"training: exact sums {exact}"
        yield "no sum subtracts from another but by whole groups; a group's sum itself tells of a few owners what it is"
        return
    draws = num_examples(config, train=True, evaluate=False)
    over = f"{_min_cohort(plan, policy)} or more of your group" if plan.is_by_group else "whoever is there"
    yield f"training: sampled sums, {draws} examples drawn afresh each time, over {over}"
    yield f"full evaluations: exact sums {exact}"
    yield from _pairs(sigma, honest_others(plan, policy))


def _pairs(sigma: float | None, honest_others: int) -> Iterator[str]:
    yield "what pairs of sums with and without you leave hidden of your update (1: all, 0: nothing), as an estimate:"
    if sigma is None:
        yield "  not known before your node has measured how much your updates vary by what it draws"
        return
    errors: Sequence[float] = [own_error(pairs, sigma, honest_others) for pairs in PAIRS]
    yield "  pairs      " + "".join(f"{pairs:>7}" for pairs in PAIRS)
    yield "  own error  " + "".join(f"{error:>7.2f}" for error in errors)
    yield f"  with {honest_others} honest others in each sum, and updates that vary by {sigma:.2f} of their norm"
    if sigma < MIN_SIGMA:
        yield (
            f"WARNING: they vary by less than {MIN_SIGMA}: what is drawn hardly differs, so two sums can give away "
            "your update; more text, or a shorter task.sequence_length, would help"
        )


def _earlier(plan: Plan, earlier: Plan | None) -> Iterator[str]:
    if earlier is None:
        yield "no run was approved on this text before"
        return
    what = "an earlier plan of this run" if earlier.run_id == plan.run_id else f"run {earlier.run_id}"
    yield f"you approved {what} on this text; sums of both together tell more than each alone. It differs in:"
    lines = differences(earlier, plan)
    yield from (f"  {line}" for line in lines or ["nothing"])
