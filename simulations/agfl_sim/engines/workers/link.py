"""The driver's end of what joins it to one worker: the one thing in which the engines with workers differ."""

from __future__ import annotations

from typing import Protocol


class Link(Protocol):
    """To a worker that has been started; what is sent and received are `messages`, in their order.

    Several threads may end it, while one sends and receives.
    """

    def send(self, content: object) -> None:
        """Send it; raises OSError if the worker is known to be gone."""
        ...

    def receive(self) -> object:
        """Return what the worker says next.

        Raises:
            EOFError, OSError: it is gone.
            ConfigError: it cannot work where it is.
        """
        ...

    def end(self) -> str:
        """End the worker in whatever it does, if it has not ended; say how it did, as in "was ended by signal 9"."""
        ...
