"""The trained model goes to the owners that want it, whether the last cohorts had them or not."""

from __future__ import annotations

from flwr.app import Message

from agfl_protocol.messages import wire
from agfl_server.rounds.cohort_sums import Federation
from agfl_server.rounds.state import ServerState
from agfl_server.transport.messaging import ask_nodes, error_of

_LEAST_S, _MOST_S, _BYTES_PER_S = 30.0, 900.0, 250_000


def deliver_model(federation: Federation, state: ServerState) -> None:
    """Send the model of `state` to all that want it and are there; who does not take it in time is named."""
    context = federation.context
    keepers = context.nodes.keepers
    if not keepers:
        return
    request = wire.ModelRequest(
        context.journal.run_id, context.plan.hash, state.round, context.config.client_plan.to_json(), state.model
    )
    content = request.to_record()  # one object for all, so that it is stored once
    requests = [Message(content, node, wire.MODEL) for node in keepers.values()]
    names = {node: name for name, node in keepers.items()}
    delivered = []
    patience_s = min(_LEAST_S + 4 * state.model.size * len(keepers) / _BYTES_PER_S, _MOST_S)
    for node, reply in ask_nodes(context.grid, requests, patience_s):
        name = names.pop(node)
        if reply.has_error():
            context.observer.refused(name, f"the model: {error_of(reply)[0]}")
        else:
            delivered.append(name)
    for name in names.values():
        context.observer.refused(name, "the model: no answer in time")
    context.observer.delivered(sorted(delivered))
