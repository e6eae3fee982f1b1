"""A server optimizer that no client has heard of: its settings do not travel, and clients of any version take part."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import pytest

from agfl_models.errors import ConfigError
from agfl_protocol.config.run_config import RunConfig
from agfl_protocol.optimizers.server_optimizer import Array, OptimizerConfig, OptimizerState, ServerOptimizer, Wrap
from agfl_protocol.plans.client_plan import client_plan_from_json
from agfl_protocol.update import Mean
from agfl_server.rounds.checkpoint import load_checkpoint
from agfl_server.rounds.observer import Observer
from agfl_sim.engines.inline_engine import InlineEngine


class SignConfig(OptimizerConfig):
    """x += lr sign(Delta)."""

    type: Literal["sign"]
    lr: float

    def build(self, wrap: Wrap) -> ServerOptimizer:
        """Its step."""
        return wrap(Sign(self))


@dataclass(frozen=True)
class Sign(ServerOptimizer):
    """Keeps the first model, to show that state goes into checkpoints."""

    config: SignConfig

    def initial_state(self, model: Array) -> OptimizerState:
        """The first model."""
        return {"first": model}

    def step(self, model: Array, mean: Mean, state: OptimizerState) -> tuple[Array, OptimizerState]:
        """One step."""
        return model + np.float32(self.config.lr) * np.sign(mean.delta), state


@pytest.mark.parametrize("kind", ["plain", "secure"])
def test_clients_take_part_in_a_run_whose_server_steps_in_a_new_way(
    run_config: Callable[..., RunConfig], make_owners: Callable[..., Path], tmp_path: Path, kind: str
) -> None:
    config = run_config("num_rounds=2", f"aggregation.type={kind}", "aggregation.min_cohort=3")
    steps = config.aggregation.model_copy(update={"server_optimizer": SignConfig(type="sign", lr=0.0625)})
    new = config.model_copy(update={"aggregation": steps})
    assert "sign" not in new.client_plan.to_json()
    assert client_plan_from_json(new.client_plan.to_json()) == config.client_plan
    owners = sorted(make_owners(4).iterdir())
    InlineEngine(new, owners).run(tmp_path / "run", resume=False, observer=Observer())
    state = load_checkpoint(tmp_path / "run" / "checkpoints", new.hash)
    assert state.round == 2
    moved = (state.model - state.optimizer["first"]) / np.float32(0.0625)
    assert set(np.unique(np.round(moved, 3)).tolist()) <= {-2.0, -1.0, 0.0, 1.0, 2.0}
    assert round(float(np.abs(moved).max()), 3) == 2


def test_a_name_that_this_version_does_not_know_is_refused_by_the_server_alone(
    run_config: Callable[..., RunConfig], tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match="unknown 'type' 'sign'"):
        run_config("aggregation.server_optimizer={type: sign}")
