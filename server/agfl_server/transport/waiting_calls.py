"""A node's call for its next message waits until there is one, so that nobody comes back for it twice a second."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from contextlib import suppress

from starlette.responses import PlainTextResponse
from starlette.types import ASGIApp, Receive, Scope, Send

from agfl_server.transport.bodies import received
from agfl_server.transport.gate import KEY_ID

PULL = "/v1/fleet/pull-messages"
HOLD_S = 1.0  # a node that is told to stop looks up as often


class Arrivals:
    """Which calls wait for a message to which node. Any thread may say that there is one.

    is_there: whether a message to a node waits for it.
    """

    def __init__(self, is_there: Callable[[int], bool]) -> None:
        self._is_there = is_there
        self._waiting: dict[int, set[asyncio.Future[bool]]] = {}
        self._lock = threading.Lock()
        self._is_over = False

    def announce(self, node_id: int) -> None:
        """Let the calls of a node go on: it has a message."""
        self._settle(node_id, True)

    def drop(self, node_id: int) -> None:
        """Let none of a node's calls that wait now have its next message: the process that made them may be dead."""
        self._settle(node_id, False)

    def close(self) -> None:
        """Let all calls go on, and none wait from now on."""
        with self._lock:
            self._is_over = True
            node_ids = list(self._waiting)
        for node_id in node_ids:
            self._settle(node_id, True)

    async def wait(self, node_id: int) -> bool:
        """Wait for a message to a node, at most `HOLD_S`; return whether the call may ask for it."""
        future: asyncio.Future[bool] = asyncio.get_running_loop().create_future()
        with self._lock:
            if self._is_over:
                return True
            self._waiting.setdefault(node_id, set()).add(future)
        try:
            # Only now, so that none comes between. In a thread: whoever holds the state's lock may be slow.
            if await asyncio.to_thread(self._is_there, node_id) and not future.done():
                return True
            return await asyncio.wait_for(future, HOLD_S)
        except TimeoutError:
            return True
        finally:
            with self._lock:
                waiting = self._waiting.get(node_id, set())
                waiting.discard(future)
                if not waiting:
                    self._waiting.pop(node_id, None)

    def _settle(self, node_id: int, may_ask: bool) -> None:
        with self._lock:
            waiting = self._waiting.pop(node_id, set())
        for future in waiting:
            with suppress(RuntimeError):  # the server has ended meanwhile, and its loop with it
                future.get_loop().call_soon_threadsafe(_set, future, may_ask)


class WaitingCalls:
    """ASGI layer before Flower's; node_of: the node that a key stands for."""

    def __init__(self, app: ASGIApp, arrivals: Arrivals, node_of: Callable[[str], int]) -> None:
        self._app, self._arrivals, self._node_of = app, arrivals, node_of

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a call on, one for messages once there is one; or not at all, where its node has left or come anew.

        Flower holds a message for delivered once it answers, so a call whose process is dead must not get it.
        """
        if scope["path"] != PULL:
            await self._app(scope, receive, send)
            return
        body = (await receive()).get("body", b"")  # all of it: the gate has read it
        left = asyncio.ensure_future(_disconnect(receive))
        waits = asyncio.ensure_future(self._arrivals.wait(self._node_of(scope[KEY_ID])))
        try:
            await asyncio.wait((left, waits), return_when=asyncio.FIRST_COMPLETED)
            has_left, may_ask = left.done(), waits.done() and waits.result()
        finally:
            left.cancel()
            waits.cancel()
        if has_left:
            return
        if may_ask:
            await self._app(scope, received(body, receive), send)
        else:
            await PlainTextResponse("the node has come anew", status_code=503)(scope, receive, send)


async def _disconnect(receive: Receive) -> None:
    """Return once the node has closed the connection."""
    while (await receive())["type"] != "http.disconnect":
        pass


def _set(future: asyncio.Future[bool], may_ask: bool) -> None:
    if not future.done():
        future.set_result(may_ask)
