"""pfl-research's simulation, set up as its own benchmarks are; it needs pfl from PyPI."""

from __future__ import annotations

import torch
from meter import Meter
from pfl.aggregate.simulate import SimulatedBackend
from pfl.aggregate.weighting import WeightByDatapoints
from pfl.algorithm.base import NNAlgorithmParams
from pfl.algorithm.federated_averaging import FederatedAveraging
from pfl.callback.base import TrainingProcessCallback
from pfl.data.dataset import AbstractDataset
from pfl.data.federated_dataset import FederatedDataset
from pfl.data.pytorch import PyTorchTensorDataset
from pfl.hyperparam.base import NNEvalHyperParams, NNTrainHyperParams
from pfl.metrics import Metrics
from pfl.model.pytorch import PyTorchModel
from torch import Tensor, nn
from workloads import Users, Workload, flat, loss


class Learner(nn.Module):
    """A module with the two methods that pfl asks for."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module

    def loss(self, inputs: Tensor, labels: Tensor) -> Tensor:
        """Return the mean loss of a batch."""
        return loss(self.module.train(), inputs, labels)

    def metrics(self, inputs: Tensor, labels: Tensor) -> dict[str, float]:
        """Return nothing: nobody is evaluated."""
        return {}


class Clock(TrainingProcessCallback):  # type: ignore[misc]  # pfl may not be installed
    """Notes each round as it ends."""

    def __init__(self, meter: Meter) -> None:
        self._meter = meter

    def after_central_iteration(
        self, metrics: Metrics, model: PyTorchModel, *, central_iteration: int
    ) -> tuple[bool, Metrics]:
        """Note it."""
        self._meter.round_ends(flat(model.pytorch_model))
        return False, Metrics()


def run(work: Workload, users: Users, rounds: int, meter: Meter) -> None:
    """Train."""
    learner = Learner(work.model())
    model = PyTorchModel(
        learner,
        local_optimizer_create=torch.optim.SGD,
        central_optimizer=torch.optim.SGD(learner.parameters(), 1.0),
    )
    asked = iter([(user, number) for number in range(1, rounds + 1) for user in work.cohort_of(number)])

    def dataset(turn: tuple[int, int]) -> AbstractDataset:
        return PyTorchTensorDataset(users.in_order(*turn), user_id=str(turn[0]))

    backend = SimulatedBackend(
        training_data=FederatedDataset(dataset, lambda: next(asked)),
        val_data=None,
        postprocessors=[WeightByDatapoints()],
    )
    FederatedAveraging().run(
        NNAlgorithmParams(
            central_num_iterations=rounds,
            evaluation_frequency=10**6,
            train_cohort_size=work.cohort,
            val_cohort_size=None,
        ),
        backend,
        model,
        NNTrainHyperParams(local_num_epochs=1, local_learning_rate=work.lr, local_batch_size=work.batch),
        NNEvalHyperParams(local_batch_size=None),
        [Clock(meter)],
        send_metrics_to_platform=False,
    )
