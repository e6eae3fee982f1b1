"""What the server carries from round to round, all of it: the state that a checkpoint holds."""

from __future__ import annotations

import secrets
from dataclasses import dataclass

from agfl_models.model import AutoGenModel
from agfl_protocol.randomness import SERVER, derive_seed
from agfl_protocol.run_config import RunConfig
from agfl_protocol.transforms.quantization import Scales, initial_scales
from agfl_protocol.update import Layout, Vector
from agfl_server.observer import Row
from agfl_server.optimizers import OptimizerState, ServerOptimizer

# Every row of metrics.jsonl has these keys; what a round does not know is null.
NO_METRICS: Row = {
    "round": 0,
    "train/loss": None,
    "eval/loss": None,
    "eval/bits_per_byte": None,
    "clients": 0,
    "refused": 0,
    "bytes_up": 0,
    "bytes_down": 0,
    "seconds": 0.0,
}


@dataclass(frozen=True)
class ServerState:
    """After `round` rounds of the run `run_id`.

    model: float32 (d,); row: the metrics of this round, to which its evaluation is still to come.
    """

    run_id: str
    round: int
    model: Vector
    optimizer: OptimizerState
    scales: Scales
    row: Row


def initial_state(config: RunConfig, optimizer: ServerOptimizer) -> tuple[Layout, ServerState]:
    """Return the layout of the model and the state before round 1; the model's weights follow from `config.seed`."""
    model = AutoGenModel(config.model, seed=derive_seed(config.seed, SERVER, 0, "model"))
    layout = Layout.of(model)
    vector = layout.flatten(model)
    return layout, ServerState(
        run_id=secrets.token_hex(8),
        round=0,
        model=vector,
        optimizer=optimizer.initial_state(vector),
        scales=initial_scales(layout, config.aggregation.clip_l2),
        row=NO_METRICS,
    )
