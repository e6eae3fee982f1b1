"""Models that a hostile server broadcasts in place of the honest one, and what their updates say of the honest one."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from agfl_models.model.families import build_model
from agfl_protocol.config.run_config import RunConfig
from agfl_protocol.update import Layout, Vector


@dataclass(frozen=True)
class Disguise:
    """A model (d,) that is shown; place: where each element of an update (d,) belongs in one of the honest model."""

    model: Vector
    place: NDArray[np.int64] | None = field(default=None, repr=False)

    def undo(self, update: Vector) -> Vector:
        """Return the update as if it were one of the model without disguise."""
        if self.place is None:
            return update
        undone = np.empty_like(update)
        undone[self.place] = update
        return undone


Shown = Callable[[int], Disguise]


def _frozen(config: RunConfig, model: Vector) -> Shown:
    return lambda i: Disguise(model)


def _ulp(config: RunConfig, model: Vector) -> Shown:
    """Each time one element is the next number."""

    def shown(i: int) -> Disguise:
        nudged = model.copy()
        nudged[i % model.size] = np.nextafter(nudged[i % model.size], np.float32(np.inf))
        return Disguise(nudged)

    return shown


def _permuted(config: RunConfig, model: Vector) -> Shown:
    """The hidden units of every feed-forward layer in another order each time: the same function, far away."""
    layout = Layout.of(build_model(config.model, config.seed))
    shapes, slices = dict(zip(layout.names, layout.shapes, strict=True)), layout.slices
    places = dict(zip(layout.names, slices, strict=True))

    def shown(i: int) -> Disguise:
        place, rng = np.arange(layout.size), np.random.default_rng(i)
        for name in layout.names:
            if not name.endswith(".expand.weight"):
                continue
            order = rng.permutation(shapes[name][0])
            for part, axis in (("expand", 0), ("value", 0), ("output", 1)):
                key = name.replace("expand", part)
                index = np.arange(places[key].start, places[key].stop).reshape(shapes[key])
                place[places[key]] = np.take(index, order, axis=axis).ravel()
        return Disguise(model[place], place)

    return shown


def _untrained(config: RunConfig, model: Vector) -> Shown:
    untrained = build_model(config.model, config.seed)
    vector = Layout.of(untrained).flatten(untrained)
    return lambda i: Disguise(vector)


def _counting(config: RunConfig, model: Vector) -> Shown:
    """No layer adds anything, and all tokens look alike: the gradient is how often each token is a target."""
    layout = Layout.of(build_model(config.model, config.seed))
    vector = _untrained(config, model)(0).model.copy()
    for name, shape, place in zip(layout.names, layout.shapes, layout.slices, strict=True):
        if name.endswith(".output.weight"):
            vector[place] = 0.0
        elif name == "embedding.weight":
            vector[place] = np.broadcast_to(vector[place].reshape(shape)[0], shape).ravel()
    return lambda i: Disguise(vector)


MODELS: Mapping[str, Callable[[RunConfig, Vector], Shown]] = {
    "frozen": _frozen,
    "ulp": _ulp,
    "permuted": _permuted,
    "untrained": _untrained,
    "counting": _counting,
}
