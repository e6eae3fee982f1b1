"""What the server carries from round to round, all of it: the state that a checkpoint holds."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from agfl_models.model.families import build_model
from agfl_models.tasks.task import AnyTask
from agfl_protocol.config.run_config import RunConfig
from agfl_protocol.methods import clipping
from agfl_protocol.methods.method import Method, Round, State, States
from agfl_protocol.methods.registry import methods_of
from agfl_protocol.optimizers.server_optimizer import OptimizerState, ServerOptimizer
from agfl_protocol.randomness import first_model_seed
from agfl_protocol.transforms import quantization
from agfl_protocol.transforms.quantization import QuantizationPlan, plan_round
from agfl_protocol.update import Layout, Vector
from agfl_server.rounds.observer import Row
from agfl_server.rounds.rollback import Confirmed


@dataclass(frozen=True)
class ServerState:
    """After `round` rounds of the run `run_id`.

    exchange: the last that this state has behind it. model: float32 (d,); row: the metrics of this round, to which its
    evaluation is still to come. methods: the state of each, by its name; norm: L2 norm of a client's share of the last
    sum, None before the first. confirmed: the model to which `rollback` goes back.
    """

    run_id: str
    round: int
    model: Vector
    optimizer: OptimizerState
    row: Row
    methods: States = field(default_factory=dict)
    norm: float | None = None
    exchange: int = 0
    confirmed: Confirmed = field(default_factory=Confirmed)

    def of(self, method: Method) -> State:
        """Return the state of one method; empty where it keeps none."""
        return self.methods.get(method.name, {})


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
    methods = methods_of(Round(config.client_plan, rings=rings, config=config))
    return layout, ServerState(
        run_id=run_id,
        round=0,
        model=vector,
        optimizer=optimizer.initial_state(vector),
        row=empty_row(config.build_task(), methods),
        methods={method.name: method.initial_state(vector) for method in methods},
    )


def quantizer_of(config: RunConfig, state: ServerState, cohort: int) -> QuantizationPlan:
    """Return the quantizer of the next round, for a cohort of so many."""
    clip_l2 = clipping.bound(config.client_plan, clipping.step_of(state.methods))
    return plan_round(clip_l2, state.norm, config.max_rings, cohort)


def empty_row(task: AnyTask, methods: Sequence[Method] = ()) -> Row:
    """Return the row of a round of which nothing is known: every row of metrics.jsonl has these keys."""
    traffic = {"clients": 0, "refused": 0, "bytes_up": 0, "bytes_down": 0, "seconds": 0.0}
    names = ("update/l2", quantization.RELATIVE_ERROR, *(name for method in methods for name in method.metrics))
    return {"round": 0, **dict.fromkeys(task.metrics), **traffic, **dict.fromkeys(names)}
