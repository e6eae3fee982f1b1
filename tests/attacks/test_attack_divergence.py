"""A server makes up the model under which an owner trains. Whatever its numbers become, the owner's answer is the same.

A refusal would be in clear, of one owner alone, and would count for no exchange: asked whether "Zanzibar" occurs in the
text, an owner would say so by refusing.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hostile_server import codec_of
from tests.client.test_node import UNASKED, request_of, with_previous

from agfl_client.node import Node
from agfl_protocol.config.run_config import RunConfig
from agfl_protocol.messages.wire import RoundRequest, read_vector
from agfl_protocol.methods.divergence import DIVERGED
from agfl_protocol.optimizers import build_optimizer
from agfl_protocol.update import Total, Vector
from agfl_server.rounds.state import initial_state

Config = Callable[..., RunConfig]
MODELS: dict[str, Callable[[Vector], Vector]] = {
    "NaN": lambda model: model * np.float32(np.nan),
    "one infinity": lambda model: np.where(np.arange(model.size) == 7, np.float32(np.inf), model),
    "overflow": lambda model: model * np.float32(1e37),
    "large losses": lambda model: model * np.float32(1e7),
}
METHODS = {
    "mean": (),
    "q-ffl": ("aggregation.weighting=loss", "aggregation.fairness_q=5"),
    "fednova": ("aggregation.averaging=normalized",),
    "fedexp": ("aggregation.server_optimizer={type: fedexp}",),
    "aligned": ("aggregation.weighting=alignment",),
    "delta-sgd": ("training.optimizer={type: delta_sgd}",),
    "nearly no q": ("aggregation.weighting=loss", "aggregation.fairness_q=0.001"),
    "elastic": ("elastic={widths: [0.5, 1.0]}",),
    "fedcm": ("methods=[{type: fedcm}]",),
}


@pytest.fixture
def node(make_owners: Callable[..., Path]) -> Node:
    return Node("alice", make_owners(1) / "owner-00.jsonl", device="cpu", policy=UNASKED)


def answer(node: Node, config: RunConfig, request: RoundRequest) -> Total:
    """What the answer adds to a sum, which the server sees here because nothing masks it."""
    layout, _ = initial_state(config, build_optimizer(config.aggregation.server_optimizer), "r")
    codec = codec_of(request, layout)
    return codec.decode_sum(read_vector(node.handle_round(request), "lanes", np.uint64))


@pytest.mark.parametrize("size", [3e38, -3e38, 1e19])
def test_attack_no_momentum_makes_an_owner_refuse(run_config: Config, node: Node, size: float) -> None:
    """The server makes it up; whoever runs away from it says so in the sum, as of a model."""
    config = run_config(*METHODS["fedcm"])
    request = request_of(config)
    way = {"fedcm": {"momentum": np.full(request.model.size, size, np.float32)}}
    total = answer(node, config, replace(request, arrays={**request.arrays, **way}))
    assert total.count == 1
    assert total.metrics[DIVERGED] in (0, 1)
    assert total.metrics["fedcm/with"] <= 1


@pytest.mark.parametrize("kappa", [0.0, 1.0])
@pytest.mark.parametrize("size", [3e38, -3e38])
def test_attack_no_way_of_the_model_makes_an_owner_refuse(
    run_config: Config, node: Node, size: float, kappa: float
) -> None:
    """The server makes up the model before, too: the product of an update with a way so long is infinite."""
    kind = ("aggregation.weighting=alignment", f"aggregation.alignment_kappa={kappa}")
    config = run_config(*kind, "training.optimizer.lr=30", "training.max_grad_norm=null")
    request = request_of(config)
    total = answer(
        node, config, replace(request, arrays=with_previous(request, np.full(request.model.size, size, np.float32)))
    )
    assert (total.count, total.metrics[DIVERGED]) == (1, 0)
    assert 0 < total.weight <= 1


@pytest.mark.parametrize("max_cohort", [3, 2**20])
@pytest.mark.parametrize("kind", MODELS)
@pytest.mark.parametrize("method", METHODS)
def test_attack_no_model_makes_an_owner_refuse(
    run_config: Config, node: Node, method: str, kind: str, max_cohort: int
) -> None:
    config = run_config(*METHODS[method])
    request = request_of(config)
    plan = replace(request.plan, max_cohort=max_cohort, fields_per_lane=1)
    total = answer(node, config, replace(request, model=MODELS[kind](request.model), plan=plan))
    assert total.count == 1
    if total.metrics[DIVERGED] or kind != "large losses":
        assert total.metrics[DIVERGED] == 1
        assert not total.delta.any()
        assert total.metrics.get("rings/holders_2", 0) == 0
        assert total.metrics["train/nll"] == total.metrics["train/tokens"] == total.metrics["eval/nll"] == 0


@pytest.mark.parametrize("kind", MODELS)
def test_attack_no_model_makes_an_owner_refuse_to_evaluate(run_config: Config, node: Node, kind: str) -> None:
    config = run_config()
    request = request_of(config, train=False)
    total = answer(node, config, replace(request, model=MODELS[kind](request.model)))
    assert total.count == 1
    assert total.metrics[DIVERGED] == 1 or total.metrics["eval/nll"] > 0


def test_attack_room_for_losses_decides_of_nobody_whether_its_update_counts(run_config: Config, node: Node) -> None:
    """In a cohort of 2^20 a metric has room for 2^23 only; beyond it an owner "diverged", and added nothing.

    A server chose the room so that all but one owner were past it, and the sum was that owner's update.
    """
    config = run_config()
    loud = request_of(config)
    layout, _ = initial_state(config, build_optimizer(config.aggregation.server_optimizer), "r")
    loud.model[layout.slices[layout.names.index("head.norm.weight")]] = 1e9  # so are the losses
    wide, narrow = (replace(loud.plan, max_cohort=size, fields_per_lane=1) for size in (3, 2**20))
    first, second = (answer(node, config, replace(loud, plan=plan)) for plan in (wide, narrow))
    assert first.metrics["eval/nll"] > second.metrics["eval/nll"] > 2**22  # the most that there is room for
    assert first.metrics[DIVERGED] == second.metrics[DIVERGED] == 0
    assert first.weight == second.weight
    np.testing.assert_allclose(second.delta, first.delta, atol=1e-3 * float(np.abs(first.delta).max()))
