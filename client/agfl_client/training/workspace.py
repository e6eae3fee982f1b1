"""What a node keeps warm from message to message: its data as one run's task sees it, and the part of the model."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from agfl_client.training.part import Part, whole_layout
from agfl_models.examples import Row
from agfl_models.model.rings import Rings
from agfl_models.tasks.task import AnyTask, Dataset
from agfl_protocol.plans.client_plan import ClientPlan
from agfl_protocol.update import Layout

Read = Callable[[ClientPlan], Sequence[Row]]


@dataclass(frozen=True)
class Workspace:
    """One run at one owner. tier: how many rings of the model this owner may train; part: those that it trains now."""

    text: str  # the client plan as it came
    plan: ClientPlan
    task: AnyTask
    dataset: Dataset[Any]
    layout: Layout
    rings: Rings | None
    tier: int
    part: Part
    num_rows: int
    device: str

    @staticmethod
    def of(text: str, plan: ClientPlan, tier: int, read: Read, device: str) -> Workspace:
        """Read the data and build the model; the server's weights replace what is trained."""
        task = plan.build_task()
        rows = read(plan)
        dataset = task.prepare(rows)
        rings = plan.build_rings()
        part = Part.of(plan, rings, 1, device)
        layout = part.layout if rings is None else whole_layout(plan)
        return Workspace(text, plan, task, dataset, layout, rings, tier, part, len(rows), device)

    def with_rings(self, num_rings: int) -> Workspace:
        """Return it with the part of so many rings."""
        if num_rings == self.part.num_rings:
            return self
        return replace(self, part=Part.of(self.plan, self.rings, num_rings, self.device))
