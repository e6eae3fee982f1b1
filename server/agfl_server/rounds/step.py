"""The server's step by the mean of a round: the optimizer's, and then what each method makes of it."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from agfl_protocol.methods.method import State, Step
from agfl_server.rounds.cohort_sums import DivergedError, Federation, RoundSum
from agfl_server.rounds.state import ServerState

_CHUNK = 2**16  # elements


def step(federation: Federation, state: ServerState, summed: RoundSum) -> ServerState:
    """Return the state after the server's step by a round's mean.

    Raises:
        DivergedError: the model is not finite.
    """
    optimizer, observer = federation.optimizer, federation.context.observer
    methods: dict[str, State] = {}
    with np.errstate(over="ignore", invalid="ignore"):
        model, own = optimizer.step(state.model, summed.mean, state.optimizer)
        for one in federation.methods:
            done = Step(state.model, model, summed.mean, summed.cohort.exchange, summed.cohort.survivors)
            model, methods[one.name] = one.stepped(summed.state_of(one), done)
    if not all(np.isfinite(model[start : start + _CHUNK]).all() for start in range(0, model.size, _CHUNK)):
        raise DivergedError(
            "AGFL-ROUND-021", f"round {state.round + 1}: the model must be finite after the server's step; it is not"
        )
    chosen = optimizer.chosen(own)
    if chosen is not None and chosen != optimizer.chosen(state.optimizer):
        observer.optimizer_chosen(chosen)
    for line in filter(None, (one.remark(summed.mean) for one in federation.methods)):
        observer.remarked(line)
    return replace(
        state,
        round=state.round + 1,
        exchange=summed.cohort.exchange,
        model=model,
        optimizer=own,
        methods=methods,
        norm=summed.norm,
    )
