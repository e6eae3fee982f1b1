"""The body of a request: what of it is read, by whom, and how often."""

from __future__ import annotations

from collections.abc import AsyncIterator

from starlette.types import Message, Receive


class Refused(Exception):
    """A request is not passed on."""

    def __init__(self, status: int, reason: str, *, drain: bool = False) -> None:
        super().__init__(reason)
        self.status, self.drain = status, drain


async def read(receive: Receive, length: int) -> bytes:
    """Return the body, which has `length` bytes."""
    return b"".join([piece async for piece in pieces(receive, length)])


async def pieces(receive: Receive, length: int) -> AsyncIterator[bytes]:
    """Yield the body, which has `length` bytes: the parser holds the sender to that."""
    while True:
        message = await receive()
        if message["type"] != "http.request":
            raise Refused(400, "body: must come whole")
        piece: bytes = message.get("body", b"")
        length -= len(piece)
        is_last = not message.get("more_body", False)
        if length < 0 or (is_last and length):
            raise Refused(400, "body: must have the length of its header")
        yield piece
        if is_last:
            return


async def drain(receive: Receive) -> None:
    """Read a body to its end, and keep nothing."""
    while True:
        message = await receive()
        if message["type"] != "http.request" or not message.get("more_body", False):
            return


def received(body: bytes, receive: Receive) -> Receive:
    """Return what gives the app its body in one piece, once, and then what becomes of the connection."""
    left = [body]  # the app's functions refer to each other, and are freed late

    async def give() -> Message:
        if not left:
            return await receive()
        return {"type": "http.request", "body": left.pop(), "more_body": False}

    return give
