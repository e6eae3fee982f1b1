"""The part of a run's model that a device holds and trains: all of it, or the first rings of an elastic one."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from torch import nn

from agfl_client.training.nested_widths import NestedWidths
from agfl_models.model.config import ModelConfig
from agfl_models.model.families import build_model
from agfl_models.model.rings import Rings, outline
from agfl_protocol.plans.client_plan import RunBase
from agfl_protocol.update import Layout, Vector


@dataclass(frozen=True)
class Part:
    """A model with its own layout. Legend: d parameters in all, p of them in this part.

    held: which elements of the whole vector these are, bool (d,), None for all; widths: None where there is one alone.
    """

    num_rings: int
    model: nn.Module
    layout: Layout
    held: NDArray[np.bool_] | None = None
    widths: NestedWidths | None = None

    @staticmethod
    def of(config: RunBase, rings: Rings | None, num_rings: int, device: str) -> Part:
        """Build the model of the first `num_rings` rings; its weights are those of `load`."""
        model = build_model(config.narrowed_model(num_rings), seed=0).to(device)
        layout = Layout.of(model)
        if rings is None:
            return Part(num_rings, model, layout)
        held = rings.held(num_rings)
        return Part(num_rings, model, layout, held, NestedWidths(model, layout, rings.ring[held], num_rings))

    def load(self, vector: Vector) -> None:
        """Take the part's weights from the whole model's (d,)."""
        self.layout.load(self.model, vector if self.held is None else vector[self.held])

    def spread(self, delta: Vector) -> Vector:
        """Return the part's delta (p,) as one of the whole model (d,): zero where nothing was trained."""
        if self.held is None:
            return delta
        whole = np.zeros(self.held.size, np.float32)
        whole[self.held] = delta
        return whole


def whole_layout(config: RunBase) -> Layout:
    """Return the layout of an elastic model as a whole, without the memory that its weights would take."""
    assert isinstance(config.model, ModelConfig), "`ClientPlan` has checked it"
    return Layout.of(outline(config.model))
