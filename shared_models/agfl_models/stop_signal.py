"""Ctrl-C and SIGTERM that no library can lose.

A signal raises KeyboardInterrupt wherever the main thread is, also in a call of somebody else's that takes every
exception for its own: one SIGTERM in fifty was lost that way. So it is noted, too, and long work asks now and then.
"""

from __future__ import annotations

import signal
import threading
from types import FrameType

_noted = threading.Event()


def listen() -> None:
    """Let both signals raise KeyboardInterrupt in the main thread; one that is ignored stays so."""
    _noted.clear()
    for number in (signal.SIGTERM, signal.SIGINT):
        if number == signal.SIGTERM or signal.getsignal(number) is signal.default_int_handler:
            signal.signal(number, _raise)


def check() -> None:
    """Raise KeyboardInterrupt if a signal came, in the main thread alone, which is where one raises it."""
    if _noted.is_set() and threading.current_thread() is threading.main_thread():
        raise KeyboardInterrupt


def _raise(signum: int, frame: FrameType | None) -> None:
    _noted.set()
    raise KeyboardInterrupt
