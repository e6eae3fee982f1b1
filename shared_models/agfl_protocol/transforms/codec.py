"""What becomes of an update on its way into the sum, and of the sum on its way back: every method in turn, then levels.

Both sides build it from the same configuration and plan.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from agfl_models.errors import WireError
from agfl_models.tasks import distribution
from agfl_models.tasks.task import AnyTask
from agfl_protocol.messages.header import Header
from agfl_protocol.methods import clipping
from agfl_protocol.methods.divergence import Divergence
from agfl_protocol.methods.method import NO_STATES, Method, Round, States
from agfl_protocol.methods.registry import methods_of
from agfl_protocol.plans.client_plan import ClientPlan
from agfl_protocol.secagg.lanes import Lanes
from agfl_protocol.transforms import quantization
from agfl_protocol.transforms.basis import Basis
from agfl_protocol.transforms.quantization import Levels, Quantization, QuantizationPlan, Rotated
from agfl_protocol.transforms.rotation import rotation_seed
from agfl_protocol.update import Layout, Mean, Total, Update

_NOTHING = Basis(0, b"")  # of a round that only evaluates


@dataclass(frozen=True)
class UpdateCodec:
    """Client half `encode`: update to one integer vector. Server half `decode`: summed vector to the mean update."""

    methods: tuple[Method, ...]
    quantization: Quantization

    @staticmethod
    def for_round(
        round_: Round,
        task: AnyTask,
        layout: Layout,
        quantizer: QuantizationPlan,
        *,
        round_number: int,
        train: bool,
        evaluate: bool,
    ) -> UpdateCodec:
        """Return the codec of a round; without `train` the sum is the header alone."""
        plan, rings, methods = round_.plan, round_.rings, methods_of(round_)
        sums = (task.train_sums if train else ()) + (task.eval_sums if evaluate else ())
        sums += tuple(name for method in methods for name in method.eval_sums if evaluate)
        bounds = task_bounds(plan, task) | {name: value for method in methods for name, value in method.bounds.items()}
        if not train:
            methods, quantizer = (Divergence(),), QuantizationPlan(1, quantizer.max_cohort)
        sums += tuple(name for method in methods for name in method.sums)
        if not train:
            return UpdateCodec(
                methods, Quantization(quantizer, 1.0, _NOTHING, Header(sums, quantizer.max_cohort, bounds))
            )
        bounds |= quantization.most_of_metrics(quantizer.max_cohort)
        header = Header((*sums, *quantization.metric_names()), quantizer.max_cohort, bounds)
        basis = Basis(layout.size, rotation_seed(plan.seed, round_number), rings.ring if rings is not None else None)
        clip_l2 = clipping.bound(plan, clipping.step_of(round_.arrays))
        return UpdateCodec(methods, Quantization(quantizer, clip_l2, basis, header))

    @property
    def num_lanes(self) -> int:
        """Length of the vector that is summed."""
        return self.quantization.num_lanes

    def encode(self, update: Update, rng: np.random.Generator, states: States = NO_STATES) -> Lanes:
        """Return the lanes (num_lanes,) of one client; raises as `rotate`."""
        return self.write(self.rotate(update, rng, states), rng)

    def write(self, update: Rotated, rng: np.random.Generator) -> Lanes:
        """Return the lanes (num_lanes,) of an update that `rotate` made, with the same `rng`."""
        return self.quantization.write(update, rng)

    def rotate(self, update: Update, rng: np.random.Generator, states: States = NO_STATES) -> Rotated:
        """Return what every method makes of an update, whatever its numbers are; its delta is then not needed any more.

        states: of the methods, by name.

        Raises:
            WireError: the delta has another type or length than the model.
        """
        expected = self.quantization.basis.size
        if update.delta.dtype != np.float32 or update.delta.shape != (expected,):
            got = f"{update.delta.dtype} {update.delta.shape}"
            raise WireError("AGFL-WIRE-048", f"delta: must be float32 of shape ({expected},), got {got}")
        for method in self.methods:
            update = method.encode(update, states.get(method.name, {}), rng)
        return self.quantization.rotate(update)

    def check(self, lanes: Lanes) -> None:
        """Check the lanes (num_lanes,) that one client sent in the open; raises WireError."""
        self.quantization.check(lanes)

    def decode_sum(self, total: Lanes) -> Total:
        """Return the summed update, still weighted; raises ImplausibleSum where its fields are out of range."""
        return self.quantization.decode(total)

    def decode_checked(self, total: Lanes) -> Total:
        """As `decode_sum`, of the sum over a cohort; raises ImplausibleSum where honest clients have no such sum."""
        return self.check_levels(self.read(total))

    def read(self, total: Lanes) -> Levels:
        """Return what the fields of a sum say, without its lanes; raises ImplausibleSum as `decode_sum`."""
        return self.quantization.read(total)

    def check_levels(self, read: Levels) -> Total:
        """Return what `decode_checked` does of the sum that was read; its levels are overwritten."""
        decoded = self.quantization.decode_levels(read)
        self.quantization.check_sum(decoded)
        for method in self.methods:
            method.check(decoded)
        return decoded

    def decode_mean(self, total: Total, states: States = NO_STATES) -> tuple[Mean, States]:
        """Undo the methods on a summed update, in reverse order; return the mean that is left, and new states.

        states: the server's, by method; those of methods that this round is without stay.
        """
        after = dict(states)
        for method in reversed(self.methods):
            total, after[method.name] = method.decode(total, states.get(method.name, {}))
        return Mean(total.delta, total.count, total.metrics), after


def task_bounds(plan: ClientPlan, task: AnyTask) -> dict[str, float]:
    """Return what one honest client's sums of the task are at most; of others, such as a loss, nothing is known."""
    bounds = dict.fromkeys(distribution.BINS, 1.0)
    training = plan.training
    if training.local_steps is not None:
        bounds[task.train_sums[1]] = float(training.local_steps * training.batch_size * plan.task.max_predictions)
    return bounds
