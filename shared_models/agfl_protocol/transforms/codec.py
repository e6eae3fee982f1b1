"""The chain clip > weight > what a method adds > quantize, built from the same configuration and plan on both sides."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from agfl_models.errors import ImplausibleSum, WireError
from agfl_models.model.rings import Rings
from agfl_models.tasks.task import AnyTask
from agfl_protocol.config.optimizer_config import FedExPConfig
from agfl_protocol.config.run_config import RunConfig
from agfl_protocol.messages.header import Header
from agfl_protocol.methods import (
    candidates,
    clipping,
    coverage,
    drift,
    fair_weighting,
    normalization,
    ring_losses,
    square_norm,
)
from agfl_protocol.methods.alignment import AlignmentWeighting
from agfl_protocol.methods.clipping import Clipping
from agfl_protocol.methods.coverage import Coverage
from agfl_protocol.methods.divergence import DIVERGED, without_divergence
from agfl_protocol.methods.fair_weighting import FairWeighting
from agfl_protocol.methods.method import UpdateTransform
from agfl_protocol.methods.normalization import NormalizedAveraging
from agfl_protocol.methods.square_norm import SquareNorm
from agfl_protocol.methods.weighting import Weighting
from agfl_protocol.secagg.lanes import Lanes
from agfl_protocol.transforms import bounds, quantization
from agfl_protocol.transforms.basis import Basis
from agfl_protocol.transforms.quantization import Quantization, QuantizationPlan
from agfl_protocol.transforms.rotation import rotation_seed
from agfl_protocol.update import Layout, Total, Update

_NOTHING = Basis(0, b"")  # of a round that only evaluates


@dataclass(frozen=True)
class UpdateCodec:
    """Client half `encode`: update to one integer vector. Server half `decode`: summed vector to the mean update.

    Order is a law: what diverged is taken out first, clipping before weighting bounds what one client can add,
    quantization comes last.
    """

    transforms: tuple[UpdateTransform, ...]
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
        sums = (task.train_sums if train else ()) + (task.eval_sums if evaluate else ())
        sums += ring_losses.names(config.max_rings) if evaluate else ()
        most = bounds.of_metrics(config, task, plan.max_cohort)
        if not train:
            empty = QuantizationPlan(1, plan.max_cohort, 0)
            header = Header((*sums, DIVERGED), plan.max_cohort, most)
            return UpdateCodec((), Quantization(empty, 1.0, _NOTHING, header))
        names = [*sums, *candidates.names(num_models), DIVERGED, clipping.CLIPPED, *clipping.ABOVE]
        clip = Clipping(clipping.bound(config, plan.clip_step))
        transforms: list[UpdateTransform] = [clip]
        if config.aggregation.weighting == "loss":
            transforms, names = [*transforms, FairWeighting.of(config)], [*names, fair_weighting.CURVATURE]
        else:
            weighting = Weighting(config.max_weight, config.aggregation.weighting == "uniform")
            is_aligned = config.aggregation.weighting == "alignment"
            kappa = config.aggregation.alignment_kappa
            transforms.append(AlignmentWeighting(weighting, kappa) if is_aligned else weighting)
        if config.aggregation.averaging == "normalized":
            transforms, names = [*transforms, NormalizedAveraging()], [*names, normalization.STEPS]
        if isinstance(config.aggregation.server_optimizer, FedExPConfig):
            transforms, names = [*transforms, SquareNorm()], [*names, square_norm.SQUARE_NORM]
        if rings is not None:
            assert config.elastic is not None
            transforms.append(Coverage(rings.ring, config.max_rings, config.elastic.shrinkage))
            names += coverage.names(config.max_rings)
        if drift.drift_of(config) is not None:
            names.append(drift.LOST)
        header = Header((*names, *quantization.metric_names()), plan.max_cohort, most)
        basis = Basis(layout.size, rotation_seed(config.seed, round_number), rings.ring if rings is not None else None)
        return UpdateCodec(tuple(transforms), Quantization(plan, clip.clip_l2, basis, header))

    @property
    def num_lanes(self) -> int:
        """Length of the vector that is summed."""
        return self.quantization.num_lanes

    def encode(self, update: Update, rng: np.random.Generator) -> Lanes:
        """Return the lanes (num_lanes,) of one client, whatever its numbers are.

        Raises:
            WireError: the delta has another type or length than the model.
        """
        expected = self.quantization.basis.size
        if update.delta.dtype != np.float32 or update.delta.shape != (expected,):
            got = f"{update.delta.dtype} {update.delta.shape}"
            raise WireError(f"delta: must be float32 of shape ({expected},), got {got}")
        update = without_divergence(update)
        for transform in self.transforms:
            update = transform.encode(update)
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
        votes = [decoded.metrics.get(name, 0.0) for name in (clipping.CLIPPED, *clipping.ABOVE)]
        if not votes == sorted(votes) or votes[-1] > decoded.count:
            raise ImplausibleSum(
                f"clip: lower bounds must be exceeded by more, of {decoded.count} clients, got {votes}"
            )
        bounds.check_sums(decoded.metrics, decoded.count)
        return decoded

    def decode_mean(self, total: Total) -> Total:
        """Undo the transforms on a summed update, in reverse order: its delta becomes the mean."""
        for transform in reversed(self.transforms):
            total = transform.decode(total)
        return total
