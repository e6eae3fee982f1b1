"""All methods, in the order in which they work on an update and in which their sums travel: one line each."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Annotated, TypeAlias

from agfl_models.errors import ConfigError
from agfl_models.plugins import GROUPS
from agfl_models.registry import note_registered
from agfl_protocol.methods.alignment import AlignmentWeighting
from agfl_protocol.methods.candidates import Candidates
from agfl_protocol.methods.clipping import Clipping
from agfl_protocol.methods.divergence import Divergence
from agfl_protocol.methods.elastic import Elastic
from agfl_protocol.methods.fair_weighting import FairWeighting
from agfl_protocol.methods.fedcm import FedCM
from agfl_protocol.methods.method import METHOD_CONFIGS, Method, MethodConfig, Round, Specs, States
from agfl_protocol.methods.normalization import NormalizedAveraging
from agfl_protocol.methods.owner_states.feddyn import FedDyn
from agfl_protocol.methods.owner_states.scaffold import Scaffold
from agfl_protocol.methods.square_norm import SquareNorm
from agfl_protocol.methods.weighting import Weighting

if TYPE_CHECKING:
    from agfl_protocol.plans.client_plan import ClientPlan

METHODS: list[type[Method]] = []
_NUM_SHIPPED = 12  # their order is a law: see below
MethodConfigs: TypeAlias = tuple[Annotated[MethodConfig, METHOD_CONFIGS], ...]


def register(method: type[Method]) -> type[Method]:
    """Add a method after all others, so that a run can name it; return it, so that this decorates it.

    Its configuration is registered with it. The same class once more changes nothing.

    Raises:
        ConfigError: the class is no method that a run can name, or another one, or a configuration, has its name.
    """
    if not issubclass(method, Method):
        raise ConfigError("AGFL-CONFIG-217", f"{method.__name__}: must derive from Method")
    if method in METHODS:
        if method.config is not None:
            METHOD_CONFIGS.register(method.config)
        return method
    if len(METHODS) >= _NUM_SHIPPED and (method.config is None or not method.config.is_chosen):
        rule = "must have a config that is_chosen: what owners have not read in a plan does not run"
        raise ConfigError("AGFL-CONFIG-218", f"method {method.name}: {rule}")
    if method.name in (one.name for one in METHODS):
        line = f"method: must have a new name, got {method.name!r}, which is registered"
        raise ConfigError("AGFL-CONFIG-212", line)
    if method.config is not None:
        METHOD_CONFIGS.register(method.config)
    METHODS.append(method)
    note_registered(method, lambda: METHODS.remove(method))
    METHODS[_NUM_SHIPPED:] = sorted(METHODS[_NUM_SHIPPED:], key=lambda one: one.name)  # whoever registered them first
    return method


# The order is a law: what diverged is taken out first, and clipping before weighting bounds what one client can add.
for _method in (
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
):
    register(_method)
assert len(METHODS) == _NUM_SHIPPED, len(METHODS)
GROUPS["agfl.methods"] = lambda method: (register(method).name,)


def methods_of(round_: Round) -> tuple[Method, ...]:
    """Return the methods that a round has."""
    found = (method.of(round_) for method in known_methods(round_.plan))
    return tuple(method for method in found if method is not None)


def arrays_of(plan: ClientPlan, size: int, *, train: bool) -> dict[str, Specs]:
    """Return what a request has beside the model of `size` parameters, by the methods' names."""
    specs = {method.name: method.arrays(plan, size, train=train) for method in known_methods(plan)}
    return {name: found for name, found in specs.items() if found}


def broadcast_of(methods: Iterable[Method], states: States, *, train: bool, is_retry: bool = False) -> States:
    """Return what methods broadcast of the server's states, no array a copy; raises nothing."""
    sent = {one.name: one.broadcast(states.get(one.name, {}), train=train, is_retry=is_retry) for one in methods}
    return {name: arrays for name, arrays in sent.items() if arrays}


def refuse_misfits(plan: ClientPlan) -> None:
    """Raise ValueError, one line, where the methods that a run names do not go together."""
    for method in known_methods(plan):
        method.refuse_misfit(plan)


def known_methods(plan: ClientPlan) -> Iterable[type[Method]]:
    """Return the methods that may have a part in a run: those shipped, and of others those that it names."""
    named = {type(config) for config in plan.methods}
    return (*METHODS[:_NUM_SHIPPED], *(one for one in METHODS[_NUM_SHIPPED:] if one.config in named))
