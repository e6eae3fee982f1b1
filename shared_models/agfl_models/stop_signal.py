"""Ctrl-C and SIGTERM that no library can lose.

A signal raises KeyboardInterrupt wherever the main thread is, also in a call of somebody else's that takes every
exception for its own: one SIGTERM in fifty was lost that way. So it is noted, too, and long work asks now and then.
More signals within seconds of the first are ignored: they would interrupt the cleanup.
"""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from agfl_models.errors import AgflError

_AGAIN_S = 3.0  # a later signal is meant: the cleanup takes too long
_noted = threading.Event()
_last: float | None = None


def listen() -> None:
    """Let both signals raise KeyboardInterrupt in the main thread; one that is ignored stays so."""
    global _last
    _noted.clear()
    _last = None
    for number in (signal.SIGTERM, signal.SIGINT):
        if number == signal.SIGTERM or signal.getsignal(number) is signal.default_int_handler:
            signal.signal(number, _raise)


def check() -> None:
    """Raise KeyboardInterrupt if a signal came, in the main thread alone, which is where one raises it."""
    if _noted.is_set() and threading.current_thread() is threading.main_thread():
        raise KeyboardInterrupt


@contextmanager
def unwrapped() -> Iterator[None]:
    """Raise KeyboardInterrupt for what a library made of it: pydantic makes an error of its own of any exception."""
    try:
        yield
    except (AgflError, OSError):
        raise
    except Exception:
        check()
        raise


def close() -> None:
    """Ignore both signals from now on: the process ends by itself."""
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, signal.SIG_IGN)


def _raise(signum: int, frame: FrameType | None) -> None:
    global _last
    _noted.set()
    now = time.monotonic()
    if _last is None or now - _last > _AGAIN_S:
        _last = now
        raise KeyboardInterrupt
