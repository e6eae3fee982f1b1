"""What becomes of an update on its way into the sum, and of the sum on its way back: every method in turn, then levels.

Both sides build it from the same configuration and plan.
"""

from __future__ import annotations

from dataclasses import dataclass
from types import MappingProxyType

import numpy as np

from agfl_models.errors import WireError
from agfl_models.model.rings import Rings
from agfl_models.tasks import distribution
from agfl_models.tasks.task import AnyTask
from agfl_protocol.config.run_config import RunConfig
from agfl_protocol.messages.header import Header
from agfl_protocol.methods import clipping
from agfl_protocol.methods.divergence import Divergence
from agfl_protocol.methods.method import Method, Round, States
from agfl_protocol.methods.registry import methods_of
from agfl_protocol.secagg.lanes import Lanes
from agfl_protocol.transforms import quantization
from agfl_protocol.transforms.basis import Basis
from agfl_protocol.transforms.quantization import Quantization, QuantizationPlan
from agfl_protocol.transforms.rotation import rotation_seed
from agfl_protocol.update import Layout, Total, Update

NO_STATES: States = MappingProxyType({})
_NOTHING = Basis(0, b"")  # of a round that only evaluates


@dataclass(frozen=True)
class UpdateCodec:
    """Client half `encode`: update to one integer vector. Server half `decode`: summed vector to the mean update."""

    methods: tuple[Method, ...]
    quantization: Quantization

    @staticmethod
    def for_round(
        config: RunConfig,
        task: AnyTask,
        layout: Layout,
        plan: QuantizationPlan,
        *,
        round_number: int,
        train: bool,
        evaluate: bool,
        num_models: int = 1,
        rings: Rings | None = None,
    ) -> UpdateCodec:
        """Return the codec of a round that broadcasts `num_models` models; rings: of an elastic model.

        Without `train` the sum is the header alone.
        """
        methods = methods_of(Round(config, num_models, plan.clip_step, rings))
        sums = (task.train_sums if train else ()) + (task.eval_sums if evaluate else ())
        sums += tuple(name for method in methods for name in method.eval_sums if evaluate)
        bounds = _task_bounds(config, task) | {
            name: value for method in methods for name, value in method.bounds.items()
        }
        if not train:
            methods, plan = (Divergence(),), QuantizationPlan(1, plan.max_cohort, 0)
        sums += tuple(name for method in methods for name in method.sums)
        if not train:
            return UpdateCodec(methods, Quantization(plan, 1.0, _NOTHING, Header(sums, plan.max_cohort, bounds)))
        bounds |= quantization.most_of_metrics(plan.max_cohort)
        header = Header((*sums, *quantization.metric_names()), plan.max_cohort, bounds)
        basis = Basis(layout.size, rotation_seed(config.seed, round_number), rings.ring if rings is not None else None)
        return UpdateCodec(methods, Quantization(plan, clipping.bound(config, plan.clip_step), basis, header))

    @property
    def num_lanes(self) -> int:
        """Length of the vector that is summed."""
        return self.quantization.num_lanes

    def encode(self, update: Update, rng: np.random.Generator, states: States = NO_STATES) -> Lanes:
        """Return the lanes (num_lanes,) of one client, whatever its numbers are; states: of its methods, by name.

        Raises:
            WireError: the delta has another type or length than the model.
        """
        expected = self.quantization.basis.size
        if update.delta.dtype != np.float32 or update.delta.shape != (expected,):
            got = f"{update.delta.dtype} {update.delta.shape}"
            raise WireError(f"delta: must be float32 of shape ({expected},), got {got}")
        for method in self.methods:
            update = method.encode(update, states.get(method.name, {}), rng)
        return self.quantization.encode(update, rng)

    def check(self, lanes: Lanes) -> None:
        """Check the lanes (num_lanes,) that one client sent in the open; raises WireError."""
        self.quantization.check(lanes)

    def decode_sum(self, total: Lanes) -> Total:
        """Return the summed update, still weighted; raises ImplausibleSum where its fields are out of range."""
        return self.quantization.decode(total)

    def decode_checked(self, total: Lanes) -> Total:
        """As `decode_sum`, of the sum over a cohort; raises ImplausibleSum where honest clients have no such sum."""
        decoded = self.decode_sum(total)
        self.quantization.check_sum(decoded)
        for method in self.methods:
            method.check(decoded)
        return decoded

    def decode_mean(self, total: Total, states: States = NO_STATES) -> tuple[Total, States]:
        """Undo the methods on a summed update, in reverse order; return it with the mean as its delta, and new states.

        states: the server's, by method; those of methods that this round is without stay.
        """
        after = dict(states)
        for method in reversed(self.methods):
            total, after[method.name] = method.decode(total, states.get(method.name, {}))
        return total, after


def _task_bounds(config: RunConfig, task: AnyTask) -> dict[str, float]:
    """Return what one honest client's sums of the task are at most; of others, such as a loss, nothing is known."""
    bounds = dict.fromkeys(distribution.BINS, 1.0)
    training = config.training
    if training.local_steps is not None:
        bounds[task.train_sums[1]] = float(training.local_steps * training.batch_size * config.task.max_predictions)
    return bounds
