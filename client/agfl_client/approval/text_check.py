"""Whether an owner's text is of use to a run, found out while nobody waits for it, and how much its updates vary."""

from __future__ import annotations

import time
from collections.abc import Callable

import numpy as np

from agfl_client.training.deadline import NO_DEADLINE, Deadline
from agfl_client.training.own_error import measure_sigma
from agfl_client.training.trainer import train
from agfl_client.training.workspace import Read, Workspace
from agfl_models.errors import DataError
from agfl_models.model.families import build_model
from agfl_protocol.local_trainer import LocalWork
from agfl_protocol.plans.client_plan import ClientPlan
from agfl_protocol.randomness import first_model_seed

_READ_AGAIN_S = 5.0  # the server asks more often whether a text that was of no use has been mended


class TextCheck:
    """Remembers for which plan the text was found good, or why it is of no use."""

    def __init__(self) -> None:
        self._good = ""  # the hash of a plan
        self._useless: tuple[float, DataError] | None = None  # when it was read last, and why it is of no use

    def run(self, plan_hash: str, read: Callable[[], object]) -> Workspace | None:
        """Read the text, once for a plan; return what is to stay warm of it.

        Raises:
            DataError: this owner's text is of no use to the run.
        """
        if self._good == plan_hash:
            return None
        if self._useless is not None and time.monotonic() - self._useless[0] < _READ_AGAIN_S:
            raise self._useless[1]
        try:
            found = read()
        except DataError as error:
            self._useless = time.monotonic(), error
            raise
        self._good, self._useless = plan_hash, None
        return found if isinstance(found, Workspace) else None


def sigma_of(plan: ClientPlan, read: Read, device: str, deadline: Deadline = NO_DEADLINE) -> float | None:
    """Return how much of an update of the first model is the noise of its batches; None where that is not drawn.

    Raises:
        PolicyViolation: `deadline` passes.
    """
    if plan.training.local_steps is None or not plan.tokenizer.is_trained:
        return None
    space = Workspace.of("", plan, 1, read, device).begin(1)
    part = space.part
    first = part.layout.flatten(build_model(plan.narrowed_model(1), first_model_seed(plan.seed)))
    updates = []
    for _ in range(2):
        part.layout.load(part.model, first)
        rng = np.random.default_rng()
        data, limit = (space.task, space.dataset), deadline.check
        work = LocalWork(
            part.model, part.layout, *data, rng, plan.training, device, widths=part.widths, check_deadline=limit
        )
        updates.append(train(work))
    return measure_sigma(*(update.delta for update in updates))
