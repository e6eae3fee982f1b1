"""A node's devices: what trains a run on them, and what stays warm on them from round to round."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from agfl_client.parallel.choice import Parallel
from agfl_client.training.deadline import Deadline
from agfl_client.training.trainer import BatchTrainer
from agfl_client.training.workspace import Workspace
from agfl_models.tasks.batch_rows import MicroBatch
from agfl_protocol.local_trainer import LocalTrainer
from agfl_protocol.plans.client_plan import ClientPlan

if TYPE_CHECKING:
    from agfl_client.parallel.trainer import SharedTraining


class Devices:
    """What the owner chose; processes start with the first round that needs them, and end with the node.

    num_threads: PyTorch's, of each process; plugins: that may run; pretrained: the owner's copy of such a model.
    """

    def __init__(
        self, parallel: Parallel, num_threads: int = 1, plugins: tuple[str, ...] = (), pretrained: Path | None = None
    ) -> None:
        self._parallel, self._num_threads = parallel, num_threads
        self._plugins, self._pretrained = plugins, pretrained
        self._shared: SharedTraining | None = None
        self._micro_batch: tuple[tuple[str, int], MicroBatch] | None = (
            None  # of one device, and a run's part of a model
        )

    @property
    def own(self) -> str:
        """The node's own device, where it evaluates."""
        return self._parallel.devices[0]

    def check(self, plan: ClientPlan, num_rings: int) -> None:
        """Check that the owner's choice can train a run; raises ConfigError."""
        self._parallel.sharing(plan, num_rings)

    def trainer(self, space: Workspace, deadline: Deadline) -> LocalTrainer:
        """Return what trains the part of the round under way, in batches that the last round found small enough."""
        sharing = self._parallel.sharing(space.plan, space.part.num_rings)
        if sharing == "single":
            what = space.text, space.part.num_rings
            if self._micro_batch is None or self._micro_batch[0] != what:
                self._micro_batch = what, MicroBatch()
            return BatchTrainer(micro_batch=self._micro_batch[1])
        from agfl_client.parallel.link import Recipe  # late: PyTorch's distributed part takes a while
        from agfl_client.parallel.ranks import Ranks
        from agfl_client.parallel.trainer import ParallelTrainer, SharedTraining

        if self._shared is None:
            at = self._parallel
            ranks = Ranks(at.devices, self._num_threads, self._plugins, self._pretrained, at.others, at.door)
            self._shared = SharedTraining(ranks)
        recipe = Recipe(sharing, space.text, space.part.num_rings)
        return ParallelTrainer(self._shared, recipe, space.plan, space.part, deadline)

    def forget(self) -> None:
        """Let go of models."""
        if self._shared is not None:
            self._shared.forget()

    def close(self) -> None:
        """End the other processes."""
        if self._shared is not None:
            self._shared.end()
