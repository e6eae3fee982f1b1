"""What the network may ask of the server: nine calls of Flower's Fleet API, and /health. All else is 403.

Flower's Control and Runtime APIs have no authentication in the open version: whoever reaches them may run
code on the server. The app behind this gate lacks them; the gate keeps it so if an upgrade adds them.
"""

from __future__ import annotations

from starlette.types import ASGIApp, Receive, Scope, Send

# A node is registered by the operator, from its public file, and it runs installed code:
# register-node, unregister-node and get-fab are left out.
FLEET_CALLS = frozenset(
    f"/v1/fleet/{call}"
    for call in (
        "activate-node",
        "deactivate-node",
        "send-node-heartbeat",
        "pull-messages",
        "push-messages",
        "get-run",
        "push-object",
        "pull-object",
        "confirm-message-received",
    )
)

# Flower reads a body before it checks who sent it. Honest requests are smaller: arrays come in 5 MiB chunks.
MAX_REQUEST_BYTES = 64 * 2**20


class Gate:
    """The outermost ASGI layer."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on, or answer it with 403 (closed), 411 (no length) or 413 (too long)."""
        assert scope["type"] == "http"
        refusal = _refusal(scope)
        if refusal is None:
            await self._app(scope, receive, send)
            return
        await send({"type": "http.response.start", "status": refusal, "headers": [(b"connection", b"close")]})
        await send({"type": "http.response.body", "body": b""})


def _refusal(scope: Scope) -> int | None:
    if scope["path"] == "/health" and scope["method"] in ("GET", "HEAD"):
        return None
    if scope["path"] not in FLEET_CALLS or scope["method"] != "POST":
        return 403
    length = dict(scope["headers"]).get(b"content-length", b"")
    if not length.isdigit():
        return 411
    return 413 if int(length) > MAX_REQUEST_BYTES else None
