"""What others make Flower and Python's loop write into the log: short lines, and not many of them."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable

_MAX_LINE = 300
_AT_ONCE, _PER_S = 20, 0.2
_LOGGERS = ("flwr", "asyncio", "uvicorn.error")


class LineLimit(logging.Filter):
    """Cuts lines, makes them one, and lets through a few at once and then one every few seconds."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        super().__init__()
        self._clock = clock
        self._left, self._at, self._left_out = float(_AT_ONCE), clock(), 0

    def filter(self, record: logging.LogRecord) -> bool:
        now = self._clock()
        self._left = min(_AT_ONCE, self._left + (now - self._at) * _PER_S)
        self._at = now
        if self._left < 1:
            self._left_out += 1
            return False
        self._left -= 1
        more = f" ({self._left_out} lines before this one were left out)" if self._left_out else ""
        record.msg, record.args, self._left_out = f"{one_line(record.getMessage())}{more}", (), 0
        record.exc_info = record.exc_text = record.stack_info = None
        return True


def one_line(text: str, max_length: int = _MAX_LINE) -> str:
    """Return what may stand in a log of a text that others wrote: no line ends, nothing that moves the cursor."""
    shown = "".join(char if char.isprintable() else "?" for char in text[: max_length + 1])
    return shown if len(text) <= max_length else f"{shown[:max_length]}..."


def limit_logs() -> None:
    """Put the limit on the loggers that write what strangers send."""
    for name in _LOGGERS:
        logger = logging.getLogger(name)
        if not any(isinstance(found, LineLimit) for found in logger.filters):
            logger.addFilter(LineLimit())
