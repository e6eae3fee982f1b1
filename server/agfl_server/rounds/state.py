"""What the server carries from round to round, all of it: the state that a checkpoint holds."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

import numpy as np

from agfl_models.model.families import build_model
from agfl_models.tasks.task import AnyTask
from agfl_protocol.config.run_config import RunConfig
from agfl_protocol.methods import clipping
from agfl_protocol.methods.clipping import MAX_STEP, START
from agfl_protocol.methods.divergence import DIVERGED
from agfl_protocol.randomness import first_model_seed
from agfl_protocol.transforms import quantization
from agfl_protocol.transforms.quantization import QuantizationPlan, plan_round
from agfl_protocol.update import Layout, Total, Vector, square_sum
from agfl_server.methods.ring_plan import RingState
from agfl_server.methods.server_optimizer import OptimizerState, ServerOptimizer
from agfl_server.rounds.observer import Row
from agfl_server.rounds.rollback import Confirmed


@dataclass(frozen=True)
class Bounds:
    """What past sums say of the size of updates, from which the next round is planned.

    clip_step: of the grid of `clipping`; max_step: the highest it may reach; norm: L2 norm of a client's share of the
    last sum, None before the first.
    """

    clip_step: int = START
    max_step: int = MAX_STEP
    norm: float | None = None

    def plan(self, config: RunConfig, cohort: int) -> QuantizationPlan:
        """Return the quantizer of the next round, for a cohort of so many."""
        step = self.clip_step if clipping.varies(config) else 0
        return plan_round(step, clipping.bound(config, step), self.norm, config.max_rings, cohort)

    def after(self, total: Total) -> Bounds:
        """Return what is known after a round of training, whose sum was `total` before its weighting was undone."""
        num_honest = total.count - round(total.metrics[DIVERGED])
        step = min(clipping.next_step(self.clip_step, total, num_honest), self.max_step)
        return replace(self, clip_step=step, norm=square_sum(total.delta) ** 0.5 / total.count)


@dataclass(frozen=True)
class ServerState:
    """After `round` rounds of the run `run_id`.

    exchange: the last that this state has behind it. model: float32 (d,); row: the metrics of this round, to which its
    evaluation is still to come. used: where owners keep state, the last exchange of each whose sum the model took in,
    with all who were in it; previous: the model before this one, where it is broadcast, else empty. rings: of an
    elastic model; confirmed: the model to which `rollback` goes back.
    """

    run_id: str
    round: int
    model: Vector
    optimizer: OptimizerState
    bounds: Bounds
    row: Row
    exchange: int = 0
    used: Mapping[int, tuple[str, ...]] = field(default_factory=dict)
    previous: Vector = field(default_factory=lambda: np.zeros(0, np.float32))
    rings: RingState | None = None
    confirmed: Confirmed = field(default_factory=Confirmed)


def initial_state(config: RunConfig, optimizer: ServerOptimizer, run_id: str) -> tuple[Layout, ServerState]:
    """Return the layout of the model and the state before round 1; the model's weights follow from `config.seed`."""
    seed = first_model_seed(config.seed)
    model = build_model(config.model, seed)
    layout = Layout.of(model)
    vector = layout.flatten(model)
    rings = config.build_rings()
    if rings is not None:
        # Every width computes what the narrowest does, until its ring is trained; and that one begins as if alone.
        vector[rings.reads] = 0.0
        narrowest = build_model(config.narrowed_model(1), seed)
        vector[rings.held(1)] = Layout.of(narrowest).flatten(narrowest)
    return layout, ServerState(
        run_id=run_id,
        round=0,
        model=vector,
        optimizer=optimizer.initial_state(vector),
        bounds=Bounds(),
        row=empty_row(config.build_task(), config.max_rings),
        rings=RingState.of(config.elastic) if config.elastic is not None else None,
    )


def empty_row(task: AnyTask, num_rings: int = 1) -> Row:
    """Return the row of a round of which nothing is known: every row of metrics.jsonl has these keys."""
    traffic = {"clients": 0, "refused": 0, "bytes_up": 0, "bytes_down": 0, "seconds": 0.0}
    update = dict.fromkeys(("update/l2", clipping.L2, clipping.FRACTION, quantization.RELATIVE_ERROR))
    return {"round": 0, **dict.fromkeys(task.metrics), **traffic, **update, **dict.fromkeys(ring_metrics(num_rings))}


def ring_metrics(num_rings: int) -> tuple[str, ...]:
    """Return the names of the metrics of a model's rings from the second on: owners that trained it, and its gain."""
    return tuple(f"rings/{what}_{k}" for k in range(2, num_rings + 1) for what in ("owners", "gain"))
