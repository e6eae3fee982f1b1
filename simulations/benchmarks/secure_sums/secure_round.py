"""Wall seconds that a secure round costs over a plain one beyond its four extra exchanges: 10 clients, 1M parameters.

Real nodes with a model of about a million parameters, which train one step on a few tokens, answer `SecureSum` and
`PlainSum` in turn over one in-process Grid, where every message passes through its bytes; both must bring the same
lanes. A no-op exchange asks every node for its name. What both rounds do after the sum is left out. Printed are
medians; extra is the median over repetitions of secure - plain - four no-op exchanges. A trip is one request to one
node and its reply.

    python simulations/benchmarks/secure_sums/secure_round.py [--repetitions 15]
"""

from __future__ import annotations

import argparse
import os
import statistics
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from flwr.app import Message

from agfl_client.app import create_client_app
from agfl_client.approval.approvals import Approvals
from agfl_client.node import Node
from agfl_client.policy import Policy
from agfl_client.secure.secure_member import SecureMember
from agfl_models.machine import usable_cpus
from agfl_protocol.config.run_config import RunConfig
from agfl_protocol.flower_settings import prepare_flower
from agfl_protocol.messages import wire
from agfl_protocol.methods.method import Round
from agfl_protocol.methods.registry import broadcast_of
from agfl_protocol.optimizers import build_optimizer
from agfl_protocol.plans.plan import Plan
from agfl_protocol.randomness import OwnerRandomness
from agfl_protocol.secagg.identity import SigningRoster
from agfl_protocol.secagg.lanes import Lanes
from agfl_protocol.secagg.parameters import Parameters
from agfl_protocol.transforms.codec import UpdateCodec
from agfl_protocol.update import square_sum
from agfl_server.aggregation.aggregator import Aggregator
from agfl_server.aggregation.plain_sum import PlainSum
from agfl_server.aggregation.secure_sum import SecureSum
from agfl_server.rounds.observer import Observer
from agfl_server.rounds.state import initial_state, quantizer_of
from agfl_server.transport.messaging import ask_nodes
from agfl_sim.engines.grid import InProcessGrid

NUM_CLIENTS, TRIPS = 10, 5
TARGET_S = 0.5
TIMEOUT_S = 60.0
CONFIG = """
{"num_rounds": 1000,
 "task": {"type": "language_modeling", "sequence_length": 8},
 "model": {"vocab_size": 259, "dim": 128, "layers": [{"repeat": 4, "layers": [{"type": "ff", "hidden_dim": 632}]}]},
 "training": {"batch_size": 1, "local_steps": 1, "optimizer": {"type": "sgd", "lr": 0.5}},
 "aggregation": {"type": "TYPE", "server_optimizer": {"type": "fedavg"}}}
"""


class Side:
    """One way to sum, its own nodes, and a round that can be repeated."""

    def __init__(
        self, config: RunConfig, aggregator: Aggregator, cohort: Mapping[str, int], min_cohort: int, roster: bytes
    ) -> None:
        self._config, self._aggregator, self._cohort = config, aggregator, cohort
        self._task = config.build_task()
        self._layout, state = initial_state(config, build_optimizer(config.aggregation.server_optimizer), "benchmark")
        self._state, self._round = state, 0
        self.plan = Plan.of(config.client_plan, state.run_id, cohort, min_cohort, roster=roster)
        self.fields_per_lane = 0

    @property
    def num_parameters(self) -> int:
        """d."""
        return self._layout.size

    def sum(self, grid: InProcessGrid) -> tuple[float, Lanes]:
        """One round up to the sum, under the next number: return its wall time and the lanes."""
        self._round += 1
        config, plan = self._config, quantizer_of(self._config, self._state, len(self._cohort))
        codec = UpdateCodec.for_round(
            Round(config.client_plan, arrays=self._state.methods),
            self._task,
            self._layout,
            plan,
            round_number=self._round,
            train=True,
            evaluate=False,
        )
        request = wire.RoundRequest(
            run_id=self.plan.run_id,
            round=self._round,
            exchange=self._round,
            plan_hash=self.plan.hash,
            client_plan=config.client_plan.to_json(),
            evaluate=False,
            train=True,
            model=self._state.model,
            plan=plan,
            arrays=broadcast_of(codec.methods, self._state.methods, train=True),
        )
        self.fields_per_lane = plan.fields_per_lane
        began = time.perf_counter()
        result = self._aggregator.sum(grid, self._cohort, request, codec, TIMEOUT_S)
        seconds = time.perf_counter() - began
        if len(result.survivors) != NUM_CLIENTS:
            raise SystemExit(f"lost: {result.refused}")
        total = codec.decode_checked(result.lanes)
        norm, (_, methods) = square_sum(total.delta) ** 0.5 / total.count, codec.decode_mean(total, self._state.methods)
        self._state = replace(self._state, norm=norm, methods=methods)
        return seconds, result.lanes


def propose(grid: InProcessGrid, cohort: Mapping[str, int], plan: Plan) -> None:
    """Have all nodes approve a plan."""
    content = wire.ProposeRequest(plan.to_json()).to_record()
    for _, reply in ask_nodes(grid, [Message(content, node, wire.PROPOSE) for node in cohort.values()], TIMEOUT_S):
        if reply.has_error() or wire.ProposeReply.from_record(reply.content).answer is not wire.Answer.APPROVED:
            raise SystemExit("a node did not approve the plan")


def ask_names(grid: InProcessGrid, cohort: Mapping[str, int]) -> float:
    """Return the wall time of one exchange in which nodes do nothing."""
    content = wire.IdentifyRequest().to_record()
    began = time.perf_counter()
    replies = list(ask_nodes(grid, [Message(content, node, wire.IDENTIFY) for node in cohort.values()], TIMEOUT_S))
    if len(replies) != len(cohort):
        raise SystemExit("a node did not answer")
    return time.perf_counter() - began


@contextmanager
def federation(folder: Path, run: str) -> Iterator[tuple[InProcessGrid, Side, Side, dict[str, int]]]:
    """Yield the grid, the secure and the plain side, and the secure side's nodes; each owner has a node on each."""
    text = folder / "text.txt"
    text.write_text("to be, or not to be\n\nthat is the question\n", encoding="utf-8")
    keys = {f"owner-{i:02}": Ed25519PrivateKey.generate() for i in range(NUM_CLIENTS)}
    roster = SigningRoster({name: key.public_key() for name, key in keys.items()})
    secure, plain = (dict(zip(keys, range(first, first + NUM_CLIENTS), strict=True)) for first in (1000, 2000))
    nodes: dict[int, Node] = {}
    for name, key in keys.items():
        own = folder / name
        own.mkdir()
        policy, drawn = Policy(allow_plain=True, runs="all"), OwnerRandomness.of_seed(0, name)
        member, approvals = SecureMember(name, key, roster, policy, own), Approvals(own, policy, "benchmark")
        nodes[secure[name]] = Node(
            name, text, policy=policy, member=member, folder=own, randomness=drawn, approvals=approvals
        )
        nodes[plain[name]] = Node(name, text, policy=policy, randomness=drawn)
    observer, parameters = Observer(), Parameters.of(NUM_CLIENTS)
    apps = {node_id: create_client_app(node) for node_id, node in nodes.items()}
    configs = [RunConfig.model_validate_json(run.replace("TYPE", name)) for name in ("secure", "plain")]
    with InProcessGrid(apps, num_workers=usable_cpus()) as grid:
        sides = (
            Side(configs[0], SecureSum(observer, roster, parameters), secure, parameters.min_cohort, roster.hash),
            Side(configs[1], PlainSum(observer, parameters.min_cohort), plain, parameters.min_cohort, b""),
        )
        propose(grid, secure, sides[0].plan)
        yield grid, *sides, secure


@dataclass(frozen=True)
class Repetition:
    """Wall seconds of one round of each kind, and of an exchange."""

    secure: float
    plain: float
    exchange: float

    @property
    def extra(self) -> float:
        """What is left when the four exchanges more are taken away."""
        return self.secure - self.plain - (TRIPS - 1) * self.exchange


def measure(folder: Path, repetitions: int, run: str) -> tuple[list[Repetition], str]:
    """Return all repetitions but the first two, in which nodes build their model and the size of updates is learned."""
    results = []
    with federation(folder, run) as (grid, secure, plain, cohort):
        for _ in range(repetitions + 2):
            noop = statistics.mean(ask_names(grid, cohort) for _ in range(TRIPS - 1))
            (secure_s, secure_lanes), (plain_s, plain_lanes) = secure.sum(grid), plain.sum(grid)
            if not np.array_equal(secure_lanes, plain_lanes):
                raise SystemExit("the secure sum is not the plain sum")
            results.append(Repetition(secure_s, plain_s, noop))
        what = f"{secure.num_parameters} parameters, {secure.fields_per_lane} fields a lane, {plain_lanes.size} lanes"
    return results[2:], what


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repetitions", type=int, default=15)
    parser.add_argument("--smoke", action="store_true", help="one repetition of a small model: does it run?")
    arguments = parser.parse_args()
    repetitions, config = arguments.repetitions, CONFIG
    if arguments.smoke:
        repetitions, config = 1, CONFIG.replace("632", "8")
    prepare_flower()
    with tempfile.TemporaryDirectory() as name:
        results, what = measure(Path(name), repetitions, config)
    load = " ".join(f"{value:.1f}" for value in os.getloadavg())
    print(f"{NUM_CLIENTS} clients, {what}, {usable_cpus()} processors, load average {load}, n = {len(results)}")
    columns = {
        "secure round": [r.secure for r in results],
        "plain round": [r.plain for r in results],
        "four no-op exchanges": [(TRIPS - 1) * r.exchange for r in results],
        "extra": [r.extra for r in results],
    }
    medians = {label: statistics.median(values) for label, values in columns.items()}
    for label, values in columns.items():
        print(f"{label:<22} p50 {medians[label]:7.3f} s   min {min(values):7.3f} s   max {max(values):7.3f} s")
    noop, secure = medians["four no-op exchanges"] / (TRIPS - 1), medians["secure round"]
    print(f"trips a second: {NUM_CLIENTS / noop:.0f} in no-op exchanges, {TRIPS * NUM_CLIENTS / secure:.0f} in a round")
    print(f"target: extra <= {TARGET_S} s: {'met' if medians['extra'] <= TARGET_S else 'MISSED'}")


if __name__ == "__main__":
    main()
