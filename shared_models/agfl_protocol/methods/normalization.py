"""Normalized averaging: who takes more local steps does not pull the mean toward its own optimum."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from agfl_models.errors import BrokenRule
from agfl_protocol.config.training_config import SGDConfig
from agfl_protocol.methods.method import Method, Round, State
from agfl_protocol.update import Total, Update

if TYPE_CHECKING:
    from agfl_protocol.plans.client_plan import ClientPlan

STEPS = "normalization/steps"


@dataclass(frozen=True)
class NormalizedAveraging(Method):
    """Average what each client moves in a step; go as many steps as they took in the mean.

    With p_i = w_i / sum(w): mean = tau_eff * sum(p_i * delta_i / tau_i), tau_eff = sum(p_i * tau_i), where tau_i is
    `Update.steps`. Comes after weighting. Source: FedNova, Wang et al. 2020, arXiv:2007.07481, equations 6 and 7.
    """

    name = "normalization"

    @classmethod
    def of(cls, round_: Round) -> NormalizedAveraging | None:
        """Where `aggregation.averaging` says so."""
        return NormalizedAveraging() if round_.plan.aggregation.averaging == "normalized" else None

    @staticmethod
    def refuse_misfit(plan: ClientPlan) -> None:
        """Refuse local steps that the pull toward the global model turns back.

        Then an owner's may count zero or less.
        """
        if plan.aggregation.averaging != "normalized":
            return
        optimizer, mu = plan.training.optimizer, plan.training.proximal_mu
        if not isinstance(optimizer, SGDConfig) or mu == 0:
            return
        bound = 2 * (1 - optimizer.momentum)
        if optimizer.lr * mu >= bound:
            rule = f"must be below 2 (1 - training.optimizer.momentum) = {bound:g}"
            rule += " with aggregation.averaging normalized"
            raise BrokenRule(
                "AGFL-CONFIG-174", f"training.optimizer.lr * training.proximal_mu {rule}, got {optimizer.lr * mu:g}"
            )

    @property
    def sums(self) -> tuple[str, ...]:
        """Weighted steps."""
        return (STEPS,)

    def encode(self, update: Update, state: State, rng: np.random.Generator) -> Update:
        """Lower the gain; add the metric `normalization/steps`, which is w_i * tau_i."""
        metrics = {**update.metrics, STEPS: update.weight * update.steps}
        return replace(update, gain=update.gain / update.steps, metrics=metrics)

    def decode(self, total: Total, state: State) -> tuple[Total, State]:
        """Scale the sum by tau_eff."""
        steps = total.metrics[STEPS] / total.weight
        return replace(total, delta=total.delta * total.delta.dtype.type(steps)), state
