"""How long a round may keep this machine busy, whatever the server asks for."""

from __future__ import annotations

import math
import time
from dataclasses import dataclass

from agfl_client.policy import PolicyViolation


class OutOfTime(PolicyViolation):
    """The owner's time for a round is over; nothing else raises it."""


@dataclass(frozen=True)
class Deadline:
    """Checked between batches, so that a round stops within one of them; the memory bound limits how large one is.

    at: of the monotonic clock, in seconds.
    """

    at: float = math.inf

    @staticmethod
    def after(seconds: float) -> Deadline:
        """Return the deadline that is `seconds` from now."""
        return Deadline(time.monotonic() + seconds)

    def within(self, seconds: float) -> Deadline:
        """Return the earlier one of this deadline and that in `seconds`."""
        return Deadline(min(self.at, time.monotonic() + seconds))

    def left(self) -> float:
        """Return the seconds that are left, 0 where none are."""
        return max(0.0, self.at - time.monotonic())

    def check(self) -> None:
        """Check that there is time left.

        Raises:
            OutOfTime: the round is out of time. The server gets the line, so it does not say what the owner
                permits; that there was too much to do here, it learns from the silence of a slow machine too.
        """
        if time.monotonic() >= self.at:
            raise OutOfTime("AGFL-POLICY-012", "max_seconds_per_round: out of time")


NO_DEADLINE = Deadline()
