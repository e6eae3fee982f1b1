"""The part of a run's model that a device holds and trains: all of it, or the first rings of an elastic one."""

from __future__ import annotations

from contextlib import suppress
from copy import deepcopy
from dataclasses import dataclass, replace
from threading import Lock

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from agfl_client.training.nested_widths import NestedWidths
from agfl_models.model.base_config import ModelConfigBase, OwnModelConfig
from agfl_models.model.config import ModelConfig
from agfl_models.model.families import build_model
from agfl_models.model.rings import Rings, outline
from agfl_models.model.sequence_model import trained_parameters
from agfl_protocol.plans.client_plan import RunBase
from agfl_protocol.update import Layout, Vector


@dataclass(frozen=True)
class Part:
    """A model with its own layout. Legend: d parameters in all, p of them in this part.

    device: where it is. held: which elements of the whole vector these are, bool (d,), None for all; widths: None where
    there is one alone.
    """

    num_rings: int
    model: nn.Module
    layout: Layout
    device: str
    held: NDArray[np.bool_] | None = None
    widths: NestedWidths | None = None

    @staticmethod
    def of(config: RunBase, rings: Rings | None, num_rings: int, device: str) -> Part:
        """Build the model of the first `num_rings` rings; its weights are those of `load`."""
        model = build_model(config.narrowed_model(num_rings), seed=0).to(device)
        layout = Layout.of(model)
        if rings is None:
            return Part(num_rings, model, layout, device)
        held = rings.held(num_rings)
        return Part(num_rings, model, layout, device, held, NestedWidths(model, layout, rings.ring[held], num_rings))

    @property
    def holds_all_bits(self) -> bool:
        """Whether, after `load`, the weights are the whole model's as they came."""
        return self.held is None and all(p.dtype == torch.float32 for p in trained_parameters(self.model).values())

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


class SpareParts:
    """Parts of one run that no owner trains now. The nodes of a process take turns with them: a model a thread is all.

    Only models of our own layers are taken, trained by our own loop: these hold nothing but their weights, which each
    round begins by loading. A user's module may hold anything, so each owner has one of its own; from the second owner
    on it is a copy of one that nobody trains, which is faster than to build it.
    """

    def __init__(self) -> None:
        self._of: tuple[str, ModelConfigBase] | None = None
        self._parts: list[Part] = []
        self._pattern: Part | None = None
        self._is_first = True
        self._lock = Lock()

    def take(self, text: str, config: RunBase, rings: Rings | None, num_rings: int, device: str) -> Part:
        """Return the part of so many rings; text: the client plan, which says what else parts have in common."""
        with self._lock:
            if (text, config.model) != self._of:  # a notebook may define a layer anew that has the same text
                self._forget()
                self._of = text, config.model
            for i, part in enumerate(self._parts):
                if (part.num_rings, part.device) == (num_rings, device):
                    return self._parts.pop(i)
            is_first, self._is_first = self._is_first, False
            if isinstance(config.model, OwnModelConfig) and not is_first:
                self._pattern = self._pattern or Part.of(config, rings, num_rings, "cpu")
                with suppress(RuntimeError, TypeError):  # not every module can be copied
                    return replace(self._pattern, model=deepcopy(self._pattern.model).to(device), device=device)
        return Part.of(config, rings, num_rings, device)

    def put(self, text: str, config: RunBase, part: Part) -> bool:
        """Keep a part for whoever comes next; return whether it is kept."""
        is_ours = isinstance(config.model, ModelConfig) and config.training.trainer is None
        if not is_ours or next(part.model.buffers(), None) is not None:
            return False
        part.model.zero_grad(set_to_none=True)
        with self._lock:
            if (text, config.model) == self._of:
                self._parts.append(part)
        return True

    def clear(self) -> None:
        """Let go of all."""
        with self._lock:
            self._forget()

    def _forget(self) -> None:
        self._of, self._parts, self._pattern, self._is_first = None, [], None, True


SPARE_PARTS = SpareParts()


def whole_layout(config: RunBase) -> Layout:
    """Return the layout of an elastic model as a whole, without the memory that its weights would take."""
    assert isinstance(config.model, ModelConfig), "`ClientPlan` has checked it"
    return Layout.of(outline(config.model))
