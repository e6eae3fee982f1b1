"""Every field of a request: two values of it, asked of everybody, part nobody, or the second is refused."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import fields, replace
from typing import Any

import numpy as np
import pytest
from hostile_server import HostileServer, Refused, by_tier
from numpy.typing import NDArray
from tests.repeats_world import BPE, EXACT, LEAST, counting, model_of, own_errors, refusal

from agfl_client.policy import Policy
from agfl_models.errors import WireError
from agfl_protocol.messages.counting import CountRequest
from agfl_protocol.messages.wire import RoundRequest
from agfl_protocol.methods.elastic import rings_by_tier
from agfl_protocol.transforms.quantization import QuantizationPlan

Serve = Callable[..., HostileServer]


# Two values of each field of a request, over everybody, in sums that are exact.


def with_arrays(method: str, **arrays: NDArray[Any]) -> Callable[[RoundRequest], RoundRequest]:
    """Change what a method broadcasts, or broadcast it although the run is without."""
    return lambda r: replace(r, arrays={**r.arrays, method: {**r.arrays.get(method, {}), **arrays}})


def refused(pattern: str) -> Callable[[str | dict[str, float]], None]:
    def check(outcome: str | dict[str, float]) -> None:
        assert isinstance(outcome, str), outcome
        assert pattern in outcome

    return check


def harmless(outcome: str | dict[str, float]) -> None:
    assert not isinstance(outcome, str), outcome
    assert min(outcome.values()) >= LEAST, outcome


Change = Callable[[RoundRequest], RoundRequest]
ALIGNED = (*EXACT, "aggregation.weighting=alignment")
FEDDYN = (*EXACT, "aggregation.server_optimizer={type: feddyn}", "aggregation.weighting=uniform")
FEDCM = (
    *(one for one in EXACT if not one.startswith("training")),
    "methods=[{type: fedcm}]",
    "training={optimizer: {type: sgd, lr: 0.5}, batch_size: 64, local_steps: 9}",
)
SCHEDULED = (
    "training.local_steps=9",
    "training.batch_size=64",
    "training.schedule={type: cosine, steps: 450, warmup_steps: 18}",
)
AUTO = (*EXACT, "aggregation.server_optimizer={type: auto}")
FIELDS: dict[str, list[tuple[tuple[str, ...], Change, Callable[[str | dict[str, float]], None]]]] = {
    "run_id": [(EXACT, lambda r: replace(r, run_id="other"), refused("plan: this owner must approve run other"))],
    "round": [
        (EXACT, lambda r: replace(r, round=17), harmless),
        (SCHEDULED, lambda r: replace(r, round=17), harmless),  # the same question at another rate
        (EXACT, lambda r: replace(r, round=51), refused("round: must be at most 50 by the plan, got 51")),
    ],
    "exchange": [
        (EXACT, lambda r: replace(r, exchange=99), harmless),
        (EXACT, lambda r: replace(r, exchange=1), refused("exchange: must come after")),
    ],
    "plan_hash": [(EXACT, lambda r: replace(r, plan_hash="0" * 64), refused("plan: must be"))],
    "client_plan": [
        (EXACT, lambda r: replace(r, client_plan=r.client_plan.replace(":4096", ":4095")), refused("size")),
    ],
    "evaluate": [
        (EXACT, lambda r: replace(r, evaluate=True), refused("evaluate: must be every 2 rounds")),
        ((*EXACT, "evaluation.every=1"), lambda r: replace(r, evaluate=True), harmless),
    ],
    "train": [(EXACT, lambda r: replace(r, train=False), refused("evaluate: must be true"))],
    "full": [(EXACT, lambda r: replace(r, full=True), refused("full: must be false in a request that trains"))],
    "model": [
        (EXACT, lambda r: replace(r, model=r.model * np.float32(1.01)), harmless),
        (EXACT, lambda r: replace(r, model=np.nextafter(r.model, np.float32(9))), harmless),
        (EXACT, lambda r: replace(r, model=np.tile(r.model, 2)), refused("model: must have")),
        (AUTO, lambda r: replace(r, model=np.tile(r.model, 2)), refused("model: must have")),
        (AUTO, lambda r: replace(r, model=np.tile(r.model, 4)), harmless),
    ],
    "arrays": [
        (EXACT, with_arrays("scaffold", control=np.zeros(9, np.float32)), refused("must not be there as configured")),
        (ALIGNED, with_arrays("alignment", previous=np.zeros(0, np.float32)), refused("aggregation.weighting: must")),
        (FEDDYN, with_arrays("feddyn", used=np.array([1])), harmless),
        (EXACT, with_arrays("elastic", by_tier=np.ones(2, np.uint8)), refused("elastic/by_tier: must not be there")),
        # Who goes with a direction that the server makes up, of updates that stay the same.
        (FEDCM, lambda r: r, refused("methods: fedcm must not be in an exact sum")),
        # By so low a bound that every update is above it.
        (EXACT, with_arrays("clipping", step=np.array([1])), refused("clipping/step: must not be there")),
    ],
    "fields_per_lane": [(EXACT, lambda r: replace(r, plan=replace(r.plan, fields_per_lane=1)), harmless)],
    "max_cohort": [
        (EXACT, lambda r: replace(r, plan=replace(r.plan, max_cohort=122_052)), refused("max_cohort: must be 5")),
        (EXACT, lambda r: replace(r, plan=replace(r.plan, max_cohort=6)), refused("max_cohort: must be 5")),
    ],
}
ALL_FIELDS = [f.name for c in (RoundRequest, QuantizationPlan) for f in fields(c) if f.name != "plan"]


@pytest.mark.parametrize("name", ALL_FIELDS)
def test_two_values_of_a_field_part_nobody(name: str, serve: Serve) -> None:
    for overrides, change, check in FIELDS[name]:
        server = serve(*overrides)
        model = model_of(server)
        first = server.request(model)
        second = change(server.request(model))
        try:
            one, other = server.train(first), server.train(second)
        except Refused as refusal_:
            check(refusal_.line)
        except WireError as error:  # its own reader already
            check(str(error))
        else:
            check(own_errors(server, first, [one.delta, other.delta]))


COUNT_FIELDS: dict[str, tuple[dict[str, Any], str | None]] = {
    "run_id": ({"run_id": "other"}, "plan: this owner must approve run other"),
    "round": ({"round": 9}, "round: must be at most 4 by the plan"),
    "exchange": ({"exchange": 1}, "exchange: must come after"),
    "plan_hash": ({"plan_hash": "0" * 64}, "plan: must be"),
    "client_plan": ({"client_plan": "{}"}, "required"),
    "merges": ({"merges": ((97, 98),), "num_new": 1}, None),  # another question, over whole groups all the same
    "num_new": ({"num_new": 1}, "num_new"),
    "max_cohort": ({"max_cohort": 122_052}, "max_cohort: must be 5"),
}


@pytest.mark.parametrize("name", [field.name for field in fields(CountRequest)])
def test_two_values_of_a_field_of_counts(name: str, serve: Serve) -> None:
    server = serve(*BPE)
    changed, line = COUNT_FIELDS[name]
    server.sum(counting(server))
    asked = replace(counting(server), **changed)
    if line is not None:
        assert line in refusal(server, asked)
    else:
        assert "must be whole groups" in refusal(server, asked, survivors=server.names[:-1])


def test_tiers_of_an_elastic_model_are_not_parted_in_an_exact_sum(serve: Serve) -> None:
    """Of tiers (3, 1, 3), rings (1, 1, 3) and (1, 2, 2) fill the second ring with three owners and with four."""
    elastic = (*EXACT, "elastic={widths: [0.5, 0.75, 1.0]}", "model.layers.1.hidden_dim=64")
    widths = [0.5] * 3 + [0.75] + [1.0] * 3
    server = serve(*elastic, owners=7, policy=Policy(max_colluders=1, min_cohort=3), widths=widths)
    server.propose(server.plan.model_copy(update={"run_id": "whole", "groups": (server.names,)}))
    asked = [server.request(model_of(server), arrays=by_tier(*rings)) for rings in ((1, 1, 3), (1, 2, 2))]
    for request in asked:
        if rings_by_tier(request.arrays) == (1, 1, 3):
            assert "elastic/by_tier: must be" in refusal(server, request)
        else:
            assert server.sum(request)[0] == 7


def test_huge_held_out_losses_do_not_take_an_owner_out_of_an_exact_sum(serve: Serve) -> None:
    """What a metric has room for would decide who adds an update: with and without evaluation, the model being one."""
    server = serve(*EXACT, "evaluation.every=1", "evaluation.max_examples=512")
    model = model_of(server)
    first, second = server.request(model), server.request(model, evaluate=True)
    assert server.layout.names[-1] == "head.norm.weight"
    gain, size = np.float32(1e6), server.layout.sizes[-1]

    def with_gain(request: RoundRequest, value: np.float32) -> RoundRequest:
        louder = request.model.copy()
        louder[-size:] = value
        return replace(request, model=louder)

    codec, losses = server.codec(second), {}
    for name in server.names:
        lanes = server.in_the_open(name, with_gain(second, gain))
        losses[name] = codec.decode_sum(lanes).metrics["eval/nll"]
    top, next_ = sorted(losses.values(), reverse=True)[:2]
    room = 2.0**43 / 5
    edge = np.float32(gain * room / np.sqrt(top * next_))  # where one owner's loss alone is beyond its room
    first, second = with_gain(first, edge), with_gain(second, edge)
    one, other = server.train(first), server.train(second)
    harmless(own_errors(server, first, [one.delta, other.delta]))


def test_a_request_for_nothing_is_refused(serve: Serve) -> None:
    server = serve()
    line = refusal(server, server.request(model_of(server), train=False, evaluate=False))
    assert line.startswith("evaluate: must be true")


ODD_ARRAYS: dict[str, tuple[dict[str, NDArray[Any]], str]] = {
    "another": ({"x": np.ones(2, np.uint8)}, "elastic/by_tier: required but missing"),
    "none": ({"by_tier": np.zeros(0, np.uint8)}, "elastic/by_tier: must have 2 elements as configured, got 0"),
    "type": ({"by_tier": np.ones(2, np.float32)}, "elastic/by_tier: must be uint8, got float32"),
    "more": ({"by_tier": np.ones(2, np.uint8), "x": np.ones(2, np.uint8)}, "elastic/x: must not be there"),
}


@pytest.mark.parametrize("kind", ODD_ARRAYS)
@pytest.mark.parametrize("is_warm", [True, False])
def test_odd_arrays_are_refused_before_anything_goes_by_them(serve: Serve, kind: str, is_warm: bool) -> None:
    """Also by a node that has this run's workspace at hand."""
    arrays, line = ODD_ARRAYS[kind]
    server = serve("elastic={widths: [0.5, 1.0]}")
    if is_warm:
        assert server.sum(server.request(model_of(server)))[0] == len(server.names)
    request = server.request(model_of(server))
    assert line in refusal(server, replace(request, arrays={**request.arrays, "elastic": arrays}))
