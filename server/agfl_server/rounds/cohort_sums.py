"""One sum over a cohort: what is broadcast, the codec of both sides, and what the sum decodes to."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Protocol

from agfl_models.errors import ImplausibleSum
from agfl_models.model.rings import Rings
from agfl_models.tasks.task import AnyTask
from agfl_protocol.config.run_config import RunConfig
from agfl_protocol.messages import wire
from agfl_protocol.methods.divergence import DIVERGED
from agfl_protocol.methods.method import Method, Round, State, States
from agfl_protocol.methods.registry import broadcast_of
from agfl_protocol.optimizers.server_optimizer import ServerOptimizer
from agfl_protocol.plans.groups import Names
from agfl_protocol.plans.sum_kind import MAX_SAMPLED_EXAMPLES, Kind, kind_of
from agfl_protocol.secagg.lanes import Lanes
from agfl_protocol.transforms.codec import UpdateCodec
from agfl_protocol.transforms.quantization import Levels
from agfl_protocol.update import Layout, Mean, Total, Vector, square_sum
from agfl_server.aggregation.aggregator import CohortSum
from agfl_server.rounds.attempts import Request, RunContext, sum_in_attempts
from agfl_server.rounds.journal import Entry
from agfl_server.rounds.observer import Row
from agfl_server.rounds.state import ServerState, quantizer_of


class DivergedError(ImplausibleSum):
    """The model, or what owners computed with it, is not finite; or so one of them says."""


@dataclass(frozen=True)
class Federation:
    """The fixed parts of a run; what changes from round to round is `ServerState`.

    sum_up: how a round's updates become what the optimizer steps by. after_round: what methods do with the state after
    a round, beside the step. rings: of an elastic model.
    """

    context: RunContext
    task: AnyTask
    layout: Layout
    optimizer: ServerOptimizer
    sum_up: SumUp
    methods: tuple[Method, ...]
    after_round: tuple[AfterRound, ...] = ()
    rings: Rings | None = None


@dataclass(frozen=True)
class RoundSum:
    """What owners said of a model, and what they made of it.

    total: the sum of all, still weighted, for whoever adds it to others; norm: L2 norm of one client's share of it.
    mean: what the optimizer steps by. methods: their states after it; row: what they report. trained, evaluated: losses
    by which `rollback` judges the model that was broadcast; None where nobody measured it.
    """

    cohort: CohortSum
    total: Total
    norm: float
    mean: Mean
    methods: States
    row: Row
    trained: float | None
    evaluated: float | None

    def state_of(self, method: Method) -> State:
        """Return a method's state after the sum."""
        return self.methods.get(method.name, {})


class SumUp(Protocol):
    """Asks a cohort and sums what it answers."""

    def __call__(
        self, federation: Federation, state: ServerState, *, train: bool, evaluate: bool, full: bool = False
    ) -> RoundSum:
        """Return the sum; raises RoundError where too few have one."""


class AfterRound(Protocol):
    """What a method does with the state after a round."""

    def __call__(self, state: ServerState, summed: RoundSum, loss: float | None) -> ServerState:
        """Return the state as it goes on; loss: on validation text, where the round evaluated."""


def sum_of_round(
    federation: Federation, state: ServerState, *, train: bool, evaluate: bool, full: bool = False
) -> RoundSum:
    """Return the sum over the whole cohort.

    Raises:
        RoundError: as `sum_of_cohort`.
    """
    codec, total, cohort = sum_of_cohort(federation, state, train=train, evaluate=evaluate, full=full)
    found = decoded(federation, state, codec, total, cohort, train=train, evaluate=evaluate)
    return replace(found, total=replace(total, delta=total.delta[:0].copy()))  # as large, too


def decoded(
    federation: Federation,
    state: ServerState,
    codec: UpdateCodec,
    total: Total,
    cohort: CohortSum,
    *,
    train: bool,
    evaluate: bool,
) -> RoundSum:
    """Return what a sum says."""
    context, task = federation.context, federation.task
    # All owners are those of the plan, or in a plain run all that ever were connected.
    owners = len(context.plan.members) if context.plan.groups else context.nodes.count
    decoded_mean, methods = codec.decode_mean(total, state.methods)
    mean = replace(decoded_mean, owners=owners)
    row: Row = {name: value for method in codec.methods if train for name, value in method.row(mean).items()}
    trained = task.train_metrics(mean.metrics)["train/loss"] if train else None
    evaluated = task.eval_metrics(mean.metrics).get("eval/loss") if evaluate else None
    norm = square_sum(total.delta) ** 0.5 / total.count
    return RoundSum(cohort, total, norm, mean, methods, row, trained, evaluated)


def codec_of(federation: Federation, state: ServerState, room: int, *, train: bool, evaluate: bool) -> UpdateCodec:
    """Return the codec of the next round, for sums over at most `room` clients."""
    config = federation.context.config
    num_models = _models(federation, state, train).size // federation.layout.size
    return UpdateCodec.for_round(
        Round(config.client_plan, num_models, state.methods, federation.rings, config),
        federation.task,
        federation.layout,
        quantizer_of(config, state, room),
        round_number=state.round + 1,
        train=train,
        evaluate=evaluate,
    )


def kind_of_sum(config: RunConfig, *, train: bool, evaluate: bool, full: bool) -> Kind:
    """Return the kind of a sum as the server takes it; an owner with a lower bound of its own may differ."""
    asked = {"train": train, "evaluate": evaluate, "full": full, "counts": False}
    return kind_of(config.client_plan, **asked, max_sampled_examples=MAX_SAMPLED_EXAMPLES)


def sum_of_cohort(
    federation: Federation,
    state: ServerState,
    *,
    train: bool,
    evaluate: bool,
    full: bool = False,
    group: Names | None = None,
) -> tuple[UpdateCodec, Total, CohortSum]:
    """Sample a cohort, broadcast, sum, decode; go on in the next exchange while fewer than `min_cohort` updates come.

    group: the sum is over its owners only, and is tried once.

    Raises:
        RoundError: after `max_attempts` attempts, with the reasons of the last one.
    """
    context = federation.context
    config, number = context.config, state.round + 1
    models, client_plan = _models(federation, state, train), config.client_plan.to_json()

    def broadcast(entry: Entry, room: int) -> tuple[wire.RoundRequest, UpdateCodec]:
        codec = codec_of(federation, state, room, train=train, evaluate=evaluate)
        request = wire.RoundRequest(
            run_id=state.run_id,
            round=number,
            exchange=entry.exchange,
            plan_hash=context.plan.hash,
            client_plan=client_plan,
            evaluate=evaluate,
            train=train,
            full=full,
            model=models,
            plan=quantizer_of(config, state, room),
            arrays=broadcast_of(federation.methods, state.methods, train=train, is_retry=bool(entry.refused)),
        )
        context.observer.round_started(number, config.num_rounds, len(entry.cohort))
        return request, codec

    kind = kind_of_sum(config, train=train, evaluate=evaluate, full=full)

    def decode(codec: UpdateCodec, lanes: Lanes) -> Callable[[], Total]:
        return partial(checked, federation, codec, codec.read(lanes))

    # Owners send so many vectors a round and no more: where the whole text cannot be had, a draw of it must still be.
    max_attempts = 1 if group or (full and context.plan.groups) else None
    wanted = Request(number, state.exchange, kind, all_owners=full, max_attempts=max_attempts, group=group)
    return sum_in_attempts(context, wanted, broadcast, decode)


def checked(federation: Federation, codec: UpdateCodec, read: Levels) -> Total:
    """Return what a sum that was read decodes to; say how many owners' numbers are not finite, which add nothing to it.

    Raises:
        ImplausibleSum: honest clients have no such sum.
        DivergedError: those of fewer than `min_cohort` are. One owner alone may have said so of all.
    """
    total = codec.check_levels(read)
    diverged, least = round(total.metrics[DIVERGED]), federation.context.min_cohort
    if diverged:
        federation.context.observer.diverged(diverged)
    if total.count - diverged < least:
        raise DivergedError(
            "AGFL-ROUND-020",
            f"updates and losses must be finite for at least min_cohort = {least} owners, "
            f"are not for {diverged} of {total.count} (is training.optimizer.lr too large, or does one of them lie?)",
        )
    return total


def _models(federation: Federation, state: ServerState, train: bool) -> Vector:
    return federation.optimizer.broadcast(state.model, state.optimizer) if train else state.model
