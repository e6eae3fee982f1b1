"""Answers of the server are read up to a bound: Flower's client would take whatever comes into memory, unpacked."""

from __future__ import annotations

import ssl
from collections.abc import Iterator
from typing import Any

import httpx

from agfl_models.errors import WireError


def bounded_client(tls: ssl.SSLContext, timeout_s: float, max_bytes: int, proxy: str | None = None) -> httpx.Client:
    """Return a client whose answers have at most `max_bytes` bytes, are not compressed, and lead nowhere else.

    proxy: the URL of the one that leads to the server; the environment is not asked.
    """
    transport = _Bounded(httpx.HTTPTransport(verify=tls, proxy=proxy, trust_env=False), max_bytes)
    return _Client(
        transport=transport,
        timeout=timeout_s,
        follow_redirects=False,
        headers={"accept-encoding": "identity"},
        trust_env=False,
    )


class _Client(httpx.Client):
    """httpx's, whose answers, which refer to themselves, hold what was sent and what came until garbage goes."""

    def send(self, request: httpx.Request, **settings: Any) -> httpx.Response:
        response = super().send(request, **settings)
        if response.is_closed:  # all of it was read
            response.stream = httpx.ByteStream(b"")
        return response


class _Bounded(httpx.BaseTransport):
    def __init__(self, inner: httpx.BaseTransport, max_bytes: int) -> None:
        self._inner, self._max_bytes = inner, max_bytes

    def handle_request(self, request: httpx.Request) -> httpx.Response:
        response = self._inner.handle_request(request)
        assert isinstance(response.stream, httpx.SyncByteStream), "of a client that is not async"
        response.stream = _BoundedStream(response.stream, self._max_bytes)
        if response.headers.get("content-encoding", "identity") != "identity":
            response.close()
            raise WireError("AGFL-WIRE-003", "--server: must answer without compression, since we ask for none")
        return response

    def close(self) -> None:
        self._inner.close()


class _BoundedStream(httpx.SyncByteStream):
    def __init__(self, inner: httpx.SyncByteStream, max_bytes: int) -> None:
        self._inner, self._max_bytes = inner, max_bytes

    def __iter__(self) -> Iterator[bytes]:
        left = self._max_bytes
        for piece in self._inner:
            left -= len(piece)
            if left < 0:
                raise WireError("AGFL-WIRE-004", f"--server: must answer in at most {self._max_bytes} bytes, got more")
            yield piece

    def close(self) -> None:
        self._inner.close()
