"""Repeats: whatever a server asks twice, its sums do not part one owner from the others (repeated sums subtract)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
from hostile_server import HostileServer, Refused
from tests.repeats_world import BPE, EXACT, LEAST, counting, model_of, own_errors, refusal

from agfl_client.approval import approvals
from agfl_client.policy import Policy
from agfl_protocol.messages.counting import CountRequest
from agfl_protocol.messages.wire import RoundRequest
from agfl_protocol.plans.plan import Plan

Serve = Callable[..., HostileServer]


# One run.


def test_another_run_needs_an_approval_of_its_own(serve: Serve) -> None:
    server = serve()
    server.sum(server.request(model_of(server)))
    for i in range(8):
        line = refusal(server, replace(server.request(model_of(server)), run_id=f"other-{i}"))
        assert line == f"plan: this owner must approve run other-{i} first; it has not [AGFL-PLAN-002]"


def test_a_plan_that_was_not_approved_is_not_served(serve: Serve) -> None:
    server = serve()
    longer = Plan.of(
        server.config.model_copy(update={"num_rounds": 51}).client_plan,
        "run",
        server.names,
        server.parameters.min_cohort,
    )
    line = refusal(server, replace(server.request(model_of(server)), plan_hash=longer.hash))
    assert line.startswith("plan: must be ")


def test_an_exchange_in_which_a_vector_left_is_never_answered_again(serve: Serve) -> None:
    server = serve()
    first = server.request(model_of(server))
    server.sum(first, survivors=server.names[1:])
    for again in (first, replace(first, model=-first.model), replace(first, round=2)):
        assert refusal(server, again).startswith("exchange: must come after ")


@pytest.mark.skipif(not hasattr(approvals, "fix_split"), reason="approvals are still to come")
def test_no_later_plan_holds_out_another_share(serve: Serve) -> None:
    server = serve()
    task = server.config.task.model_copy(update={"validation_fraction": 0.11})
    other = server.config.model_copy(update={"task": task})
    with pytest.raises(Refused, match="validation_fraction: must be that of this owner's earlier runs"):
        server.propose(
            Plan.of(other.client_plan, "second", server.names, server.parameters.min_cohort, roster=server.roster.hash)
        )


# Sampled sums.


def test_a_pair_of_fresh_draws_tells_hardly_more_than_one_sum(serve: Serve) -> None:
    server = serve("training.local_steps=1", "training.batch_size=2")
    victim, first, second = server.names[-1], *(server.request(model_of(server)) for _ in range(2))
    with_it, without = server.train(first), server.train(second, survivors=server.names[:-1])
    assert own_errors(server, first, [with_it.delta, without.delta])[victim] > LEAST


def test_no_sum_is_over_fewer_than_an_owner_wants(serve: Serve) -> None:
    server = serve()
    assert server.parameters.min_cohort == 4
    line = refusal(server, server.request(model_of(server)), survivors=server.names[:3])
    assert line == "survivors: must be at least 4 of 5 members, got 3 [AGFL-SECURE-029]"


def test_only_whom_the_plan_draws_is_asked(serve: Serve) -> None:
    server = serve("aggregation.cohort_size=5", owners=7)
    request = server.request(model_of(server))
    drawn = server.plan.draw(request.exchange)
    others = sorted({*drawn[1:], next(name for name in server.names if name not in drawn)})
    assert "must be among the plan's draw" in refusal(server, request, members=others)


def test_sampled_evaluations_say_no_size_and_no_loss_of_an_owner(serve: Serve) -> None:
    """With it less without it: as many windows as the plan says, whatever it holds out, and another loss each time."""
    server = serve("evaluation.max_examples=8")
    most, differences = 8 * server.config.task.max_predictions, []
    for _ in range(3):
        asked = {"train": False, "evaluate": True}
        with_it = server.train(server.request(model_of(server, 1.0), **asked))
        without = server.train(server.request(model_of(server, 1.0), **asked), survivors=server.names[:-1])
        assert 0.8 * most <= with_it.metrics["eval/tokens"] - without.metrics["eval/tokens"] <= 1.2 * most
        differences.append(with_it.metrics["eval/nll"] - without.metrics["eval/nll"])
    full = server.request(model_of(server), train=False, evaluate=True, full=True)
    assert "must be whole groups" in refusal(server, full, survivors=server.names[:-1])
    assert np.ptp(differences) > 1e-3 * np.mean(differences)


# Exact sums: only whole groups.


def training(server: HostileServer) -> RoundRequest:
    return server.request(model_of(server))


def evaluation(server: HostileServer) -> RoundRequest:
    return server.request(model_of(server), train=False, evaluate=True)


def full_evaluation(server: HostileServer) -> RoundRequest:
    return server.request(model_of(server), train=False, evaluate=True, full=True)


Asked = Callable[[HostileServer], RoundRequest | CountRequest]
EXACT_SUMS: dict[str, tuple[tuple[str, ...], Asked]] = {
    "one batch of all text": (EXACT, training),
    "epochs": ((*EXACT, "training.batch_size=16"), training),
    "more examples than may be sampled": (("training.local_steps=3", "aggregation.clip_l2=100"), training),
    "more held-out examples than may be sampled": (("evaluation.max_examples=9",), evaluation),
    "full evaluation": ((), full_evaluation),
    "counts of pairs": (BPE, counting),
}


@pytest.mark.parametrize("name", EXACT_SUMS)
def test_an_exact_sum_is_never_without_one_owner(name: str, serve: Serve) -> None:
    """All but one, then all: neither the first, nor the second after it, parts that one."""
    overrides, ask = EXACT_SUMS[name]
    server = serve(*overrides, policy=Policy(max_sampled_examples=8))
    for left in (server.names[0], server.names[-1]):
        rest = [one for one in server.names if one != left]
        assert "survivors: must be whole groups" in refusal(server, ask(server), survivors=rest)
        assert "dealers: must be whole groups" in refusal(server, ask(server), dealers=rest)
        assert "dealers: must be whole groups" in refusal(server, ask(server), members=rest)
    assert server.sum(ask(server))[0] == 5


def test_eleven_sets_of_five_are_refused(serve: Serve) -> None:
    """The squares modulo 11, moved on: their sums would give all eleven owners."""
    server = serve(*BPE, owners=11, policy=Policy(max_colluders=3, min_cohort=5))
    names = server.names
    assert sorted(map(len, server.plan.groups)) == [5, 6]
    for i in range(11):
        chosen = sorted(names[(i + square) % 11] for square in (1, 3, 4, 5, 9))
        if tuple(chosen) not in server.plan.groups:
            assert "dealers: must be whole groups" in refusal(server, counting(server), members=chosen)


def test_an_owner_that_was_not_there_before_still_holds_to_whole_groups(serve: Serve) -> None:
    """It needs no memory: the first sum is refused like any other, with U2 whole and U3 not."""
    server = serve(*EXACT, owners=8, policy=Policy(max_colluders=1, min_cohort=4))
    one, other = server.plan.groups
    line = refusal(server, server.request(model_of(server)), survivors=sorted((*one, *other[1:])))
    assert line.startswith("survivors: must be whole groups")
    assert server.sum(server.request(model_of(server)), members=one)[0] == len(one)


def test_a_bound_that_moves_is_refused_where_an_owner_takes_the_sum_for_exact(serve: Serve) -> None:
    """Twenty sums over everybody that differed in the bound alone gave away every update."""
    server = serve("training.local_steps=3", policy=Policy(max_sampled_examples=8))
    assert "aggregation.clip_l2: must be a number in an exact sum" in refusal(server, training(server))
