"""All methods, in the order in which they work on an update and in which their sums travel: one line each."""

from __future__ import annotations

from collections.abc import Iterable
from functools import reduce
from operator import or_
from typing import TYPE_CHECKING, Annotated, TypeAlias

from pydantic import Field

from agfl_protocol.methods.alignment import AlignmentWeighting
from agfl_protocol.methods.candidates import Candidates
from agfl_protocol.methods.clipping import Clipping
from agfl_protocol.methods.divergence import Divergence
from agfl_protocol.methods.elastic import Elastic
from agfl_protocol.methods.fair_weighting import FairWeighting
from agfl_protocol.methods.fedcm import FedCM
from agfl_protocol.methods.feddyn import FedDyn
from agfl_protocol.methods.method import Method, MethodConfig, Round, Specs, States
from agfl_protocol.methods.normalization import NormalizedAveraging
from agfl_protocol.methods.scaffold import Scaffold
from agfl_protocol.methods.square_norm import SquareNorm
from agfl_protocol.methods.weighting import Weighting

if TYPE_CHECKING:
    from agfl_protocol.plans.client_plan import ClientPlan

# The order is a law: what diverged is taken out first, and clipping before weighting bounds what one client can add.
METHODS: tuple[type[Method], ...] = (
    Candidates,
    Divergence,
    Clipping,
    Weighting,
    AlignmentWeighting,
    FairWeighting,
    NormalizedAveraging,
    SquareNorm,
    Elastic,
    Scaffold,
    FedDyn,
    FedCM,
)

if TYPE_CHECKING:
    MethodConfigs: TypeAlias = tuple[MethodConfig, ...]
else:  # one of them, told apart by `type`
    _CONFIGS = [method.config for method in METHODS if method.config is not None]
    MethodConfigs = tuple[Annotated[reduce(or_, _CONFIGS), Field(discriminator="type")], ...]


def methods_of(round_: Round) -> tuple[Method, ...]:
    """Return the methods that a round has."""
    found = (method.of(round_) for method in METHODS)
    return tuple(method for method in found if method is not None)


def arrays_of(plan: ClientPlan, size: int, *, train: bool) -> dict[str, Specs]:
    """Return what a request has beside the model of `size` parameters, by the methods' names."""
    specs = {method.name: method.arrays(plan, size, train=train) for method in METHODS}
    return {name: found for name, found in specs.items() if found}


def broadcast_of(methods: Iterable[Method], states: States, *, train: bool, is_retry: bool = False) -> States:
    """Return what methods broadcast of the server's states, no array a copy; raises nothing."""
    sent = {one.name: one.broadcast(states.get(one.name, {}), train=train, is_retry=is_retry) for one in methods}
    return {name: arrays for name, arrays in sent.items() if arrays}


def refuse_misfits(plan: ClientPlan) -> None:
    """Raise ValueError, one line, where the methods that a run names do not go together."""
    for method in METHODS:
        method.refuse_misfit(plan)
