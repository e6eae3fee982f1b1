"""What a node keeps warm from message to message: its data as one run's task sees it, and the part of the model."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from agfl_client.training.part import SPARE_PARTS, Part, whole_layout
from agfl_models.examples import Row
from agfl_models.model.rings import Rings
from agfl_models.tasks.task import AnyTask, Dataset
from agfl_protocol.plans.client_plan import ClientPlan
from agfl_protocol.update import Layout

Read = Callable[[ClientPlan], Sequence[Row]]


@dataclass(frozen=True)
class Workspace:
    """One run at one owner. tier: how many rings of the model this owner may train.

    kept_part: what it trains in the round under way; between rounds None where other nodes may have it.
    """

    text: str  # the client plan as it came
    plan: ClientPlan
    task: AnyTask
    dataset: Dataset[Any]
    layout: Layout
    rings: Rings | None
    tier: int
    kept_part: Part | None
    num_rows: int
    device: str

    @staticmethod
    def of(text: str, plan: ClientPlan, tier: int, read: Read, device: str) -> Workspace:
        """Read the data and build the model, for a round to begin; the server's weights replace what is trained."""
        task = plan.build_task()
        rows = read(plan)
        dataset = task.prepare(rows)
        rings = plan.build_rings()
        part = SPARE_PARTS.take(text, plan, rings, 1, device)
        layout = part.layout if rings is None else whole_layout(plan)
        return Workspace(text, plan, task, dataset, layout, rings, tier, part, len(rows), device).end()

    @property
    def part(self) -> Part:
        """What it trains in the round under way."""
        assert self.kept_part is not None, "no round is under way"
        return self.kept_part

    def begin(self, num_rings: int) -> Workspace:
        """Return it with the part of so many rings."""
        if self.kept_part is not None and num_rings == self.kept_part.num_rings:
            return self
        return replace(self, kept_part=SPARE_PARTS.take(self.text, self.plan, self.rings, num_rings, self.device))

    def end(self) -> Workspace:
        """Return it for the time until the next round, without the part if another node may have that."""
        return replace(self, kept_part=None) if SPARE_PARTS.put(self.text, self.plan, self.part) else self
