"""An owner's keys serve one process at a time: the one that came last. Two that live are named, on both sides."""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, field

from starlette.responses import PlainTextResponse
from starlette.types import ASGIApp, Receive, Scope, Send

from agfl_protocol.process_mark import PROCESS_HEADER, PROCESS_MARK_BYTES, SUPERSEDED_STATUS
from agfl_server.transport.gate import KEY_ID

_ACTIVATE, _DEACTIVATE = "/v1/fleet/activate-node", "/v1/fleet/deactivate-node"
_REMEMBERED = 64  # processes of one node that came before: who starts more often than that is refused a little less
log = logging.getLogger("agfl.server")


@dataclass
class _Processes:
    mark: bytes | None = None
    address: str = ""
    superseded: deque[bytes] = field(default_factory=lambda: deque(maxlen=_REMEMBERED))
    named: deque[bytes] = field(default_factory=lambda: deque(maxlen=_REMEMBERED))


class OneProcess:
    """An ASGI layer behind the gate, which has said whose request it is.

    A node that was killed may be back at once, so the process that activates last is the node's. If one that came
    before calls again, it lives: two machines have the owner's keys. It is refused from then on and does not come
    back, so that the two do not take the node from each other for ever.

    names: {key_id: NAME} of the registered nodes.
    """

    def __init__(self, app: ASGIApp, names: Mapping[str, str]) -> None:
        self._app, self._names = app, names
        self._nodes = {key_id: _Processes() for key_id in names}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass on the calls of the node's process; answer all others with 409 and the address of that process."""
        key_id = scope.get(KEY_ID)
        if key_id is None:  # nobody's: /health
            await self._app(scope, receive, send)
            return
        node, path = self._nodes[key_id], scope["path"]
        mark = dict(scope["headers"]).get(PROCESS_HEADER.encode(), b"")[: 2 * PROCESS_MARK_BYTES]
        address = str((scope.get("client") or ("an unknown address",))[0])
        if mark in node.superseded:
            if path != _DEACTIVATE:  # a process that leaves is none that stays
                self._name(self._names[key_id], node, mark, address)
            await PlainTextResponse(node.address, status_code=SUPERSEDED_STATUS)(scope, receive, send)
        else:
            if path == _ACTIVATE and mark != node.mark:
                if node.mark is not None:
                    node.superseded.append(node.mark)
                node.mark, node.address = mark, address
            await self._app(scope, receive, send)

    def _name(self, name: str, node: _Processes, mark: bytes, address: str) -> None:
        if mark in node.named:
            return
        node.named.append(mark)
        log.warning(
            "%s: two machines use one owner's keys; the one at %s came last and stays, the one at %s is refused",
            name,
            node.address,
            address,
        )
