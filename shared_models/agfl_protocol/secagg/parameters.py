"""How many may collude, how few may remain: every number that protects a client, derived on the client.

Legend: n owners in the roster, c of them may collude with the server, t shares rebuild a secret, q signatures agree.
"""

from __future__ import annotations

from dataclasses import dataclass

from agfl_models.errors import ConfigError

MIN_ROSTER = 3
WANTED_HONEST = 3  # by default, where there are as many: two know each other's part of a sum
MIN_HONEST = 2  # a sum over fewer honest clients would be somebody's own vector
MAX_MEMBERS = 1024  # of one exchange; the complete graph is meant for up to about 200


@dataclass(frozen=True)
class Parameters:
    """max_colluders: c of the whole roster, since the server picks the cohort; min_cohort: least |U1|, |U2|, |U3|."""

    max_colluders: int
    min_cohort: int

    @staticmethod
    def of(roster_size: int, max_colluders: int | None = None, min_cohort: int | None = None) -> Parameters:
        """Return the parameters for a roster; defaults are c = max(1, floor(n / 3)) and min_cohort = min(n, c + 3).

        Raises:
            ConfigError: the roster is too small, or a number is out of its range.
        """
        if roster_size < MIN_ROSTER:
            raise ConfigError(
                "AGFL-CONFIG-043", f"roster: must hold at least {MIN_ROSTER} owners for a secure sum, got {roster_size}"
            )
        c = max(1, roster_size // 3) if max_colluders is None else max_colluders
        most = roster_size - MIN_HONEST
        if not 1 <= c <= most:
            raise ConfigError(
                "AGFL-CONFIG-044", f"max_colluders: must be in [1, {most}] with {roster_size} owners, got {c}"
            )
        smallest = min(roster_size, c + WANTED_HONEST) if min_cohort is None else min_cohort
        if not c + MIN_HONEST <= smallest <= roster_size:
            raise ConfigError(
                "AGFL-CONFIG-045",
                f"min_cohort: must be in [max_colluders + {MIN_HONEST}, roster] = "
                f"[{c + MIN_HONEST}, {roster_size}], got {smallest}",
            )
        return Parameters(c, smallest)

    @property
    def threshold(self) -> int:
        """t = c + 1 shares rebuild a secret, so c colluders cannot."""
        return self.max_colluders + 1

    def quorum(self, members: int) -> int:
        """q: two sets of q out of |U1| = `members` share more than c clients, hence an honest one."""
        return (members + self.max_colluders) // 2 + 1

    def least_survivors(self, members: int) -> int:
        """Least |U2| and |U3|. That U2 holds a quorum is a matter of secrecy (SPEC.md, "Two views of U2")."""
        return max(self.min_cohort, self.quorum(members))
