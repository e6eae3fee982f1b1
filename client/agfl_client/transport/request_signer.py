"""Signs each request of this node to the server, in the place of Flower's interceptor, which signs only the time."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from email.utils import parsedate_to_datetime
from typing import Any

import httpx
from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePrivateKey

from agfl_protocol.identity.request_signature import (
    MAX_CLOCK_DIFFERENCE_S,
    NAME_HEADER,
    NONCE_BYTES,
    SIGNATURE_HEADER,
    sign_request,
)


class RequestSigner:
    """What Flower calls an interceptor: it sees a request before it leaves. A repeated call is signed anew."""

    def __init__(self, key: EllipticCurvePrivateKey, name: str = "") -> None:
        self._key, self._name = key, name

    def intercept(self, context: Any, call_next: Callable[[Any], httpx.Response]) -> httpx.Response:
        """Sign and send; `context.request` is the httpx request."""
        request: httpx.Request = context.request
        nonce = os.urandom(NONCE_BYTES)
        signature = sign_request(self._key, request.method, request.url.path, request.content, time.time_ns(), nonce)
        request.headers[SIGNATURE_HEADER] = signature
        if self._name and request.url.path.endswith("/activate-node"):
            request.headers[NAME_HEADER] = self._name
        return call_next(context)


def clock_problem(response: httpx.Response) -> str | None:
    """Return how far this machine's clock is from the server's, by the answer's date, if that is why it refused."""
    try:
        server_s = parsedate_to_datetime(response.headers["date"]).timestamp()
    except (KeyError, ValueError):
        return None
    ahead_s = round(time.time() - server_s)
    if abs(ahead_s) < MAX_CLOCK_DIFFERENCE_S:
        return None
    direction = "ahead of" if ahead_s > 0 else "behind"
    return f"clock: must be within {MAX_CLOCK_DIFFERENCE_S} s of the server's, but is {abs(ahead_s)} s {direction} it"
