"""Marks each request with the process that makes it, so that the server can name two that use one owner's keys."""

from __future__ import annotations

import os
from collections.abc import Callable
from functools import cache
from typing import Any

import httpx

from agfl_protocol.process_mark import PROCESS_HEADER, PROCESS_MARK_BYTES, SUPERSEDED_STATUS


@cache
def _mark_of(process: int) -> str:
    """Return the mark of a process for its whole life; one that is forked from it has its own."""
    return os.urandom(PROCESS_MARK_BYTES).hex()


class ProcessMarker:
    """What Flower calls an interceptor: it sees a request before it leaves."""

    def intercept(self, context: Any, call_next: Callable[[Any], httpx.Response]) -> httpx.Response:
        """Mark and send; `context.request` is the httpx request."""
        context.request.headers[PROCESS_HEADER] = _mark_of(os.getpid())
        return call_next(context)


def superseded_problem(response: httpx.Response) -> str | None:
    """Return the line for an owner whose keys another process uses as well, if that is why the server refused."""
    if response.status_code != SUPERSEDED_STATUS:
        return None
    where = " ".join(response.text.split())[:100] or "an unknown address"
    return f"keys: must serve one node at a time, but another one with the same keys came after this one, from {where}"
