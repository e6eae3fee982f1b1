"""What an owner's approved plan says of one request: whether it may be asked at all, and over whom a sum may be."""

from __future__ import annotations

from agfl_client.ledger.ledger_state import Asked
from agfl_client.policy import Policy
from agfl_client.secure.secure_member import SumRules
from agfl_models.tokenizers.tokenizer import BPETokenizerConfig
from agfl_protocol.messages.wire import RoundRequest, SumRequest
from agfl_protocol.methods.elastic import rings_by_tier
from agfl_protocol.methods.registry import known_methods
from agfl_protocol.plans.client_plan import ClientPlan, model_of
from agfl_protocol.plans.plan import Plan, merges_of
from agfl_protocol.plans.plan_fields import PlanViolation
from agfl_protocol.plans.sum_kind import Kind, kind_of, num_examples


def sum_rules(
    plan: Plan | None, config: ClientPlan, request: SumRequest, policy: Policy, merges: str | None
) -> SumRules:
    """Check a request against the plan, before any text is touched; return what its sum goes by.

    What the request says is hashed, a model long, only for the ledger of secure sums.
    merges: of a tokenizer that this run learned, `plan.merges_of` those that it first had.

    Raises:
        PlanViolation: the run has no approved plan or another one, or the plan does not have this request.
    """
    plan = approved_plan(plan, request.run_id, request.plan_hash)
    plan.covers(config, merges)
    train, evaluate, full = _asked(request)
    _check_schedule(plan, config, request, train=train, evaluate=evaluate)
    counts = not isinstance(request, RoundRequest)
    kind = kind_of(
        config,
        train=train,
        evaluate=evaluate,
        full=full,
        counts=counts,
        max_sampled_examples=policy.max_sampled_examples,
    )
    if kind is Kind.EXACT and isinstance(request, RoundRequest) and train:
        for method in known_methods(config):  # nothing beside the model may pick whom exact sums tell of
            method.refuse_exact(config, request.arrays.get(method.name, {}))
    room = plan.room(all_owners=counts or full)
    if plan.groups and request.max_cohort != room:
        raise PlanViolation("AGFL-PLAN-001", f"max_cohort: must be {room} as of the plan, got {request.max_cohort}")
    if counts or (full and not plan.is_by_group):
        drawn = plan.members
    else:
        drawn = plan.draw_groups(request.exchange) if kind is Kind.EXACT else plan.draw(request.exchange)
    asked = Asked(
        kind=kind,
        train=train,
        evaluate=evaluate,
        count=counts,
        cohort=room,
        drawn=None if drawn == plan.members else drawn,
        examples=None if counts or full else num_examples(config, train=train, evaluate=evaluate),
        stage=_stage(config, request, train),
        request=request.broadcast_hash.hex() if config.aggregation.type == "secure" else "",
        merges=merges_of(config),
    )
    max_rings = max(rings_by_tier(request.arrays)) if isinstance(request, RoundRequest) else 1
    return SumRules(asked, frozenset(drawn), plan.groups if kind is Kind.EXACT else (), max_rings)


def approved_plan(plan: Plan | None, run_id: str, plan_hash: str) -> Plan:
    """Return the plan of a run that its owner approved; raises PlanViolation where it has none, or another one."""
    if plan is None:
        raise PlanViolation("AGFL-PLAN-002", f"plan: this owner must approve run {run_id} first; it has not")
    if plan_hash != plan.hash:
        raise PlanViolation(
            "AGFL-PLAN-003", f"plan: must be {plan.hash[:12]} as this owner approved, got {plan_hash[:12]!r}"
        )
    return plan


def _asked(request: SumRequest) -> tuple[bool, bool, bool]:
    """Return whether a request trains, evaluates, and does so on all that is held out."""
    if not isinstance(request, RoundRequest):
        return False, False, False
    return request.train, request.evaluate, request.full


def _check_schedule(plan: Plan, config: ClientPlan, request: SumRequest, *, train: bool, evaluate: bool) -> None:
    """Check that the plan has a sum of this round: how many there are is what its owner approved."""
    if train:
        last = config.num_rounds
        if evaluate and not plan.evaluates_in(request.round):
            every = plan.client_plan.evaluation.every
            raise PlanViolation(
                "AGFL-PLAN-004", f"evaluate: must be every {every} rounds from the first, got round {request.round}"
            )
    elif evaluate:
        last = config.num_rounds + plan.max_evaluations
    elif isinstance(request, RoundRequest):
        raise PlanViolation("AGFL-PLAN-005", "evaluate: must be true in a request that does not train, got false")
    else:
        assert isinstance(config.tokenizer, BPETokenizerConfig), config.tokenizer.type
        last = config.tokenizer.max_merges + 1
    if request.round > last:
        raise PlanViolation("AGFL-PLAN-006", f"round: must be at most {last} by the plan, got {request.round}")


def _stage(config: ClientPlan, request: SumRequest, train: bool) -> str:
    """Return of what `round` is a number: of training one of the plan's models, evaluating it, or counting."""
    what = "train" if train else "evaluate" if isinstance(request, RoundRequest) else "count"
    return f"{what} {model_of(config)}"
