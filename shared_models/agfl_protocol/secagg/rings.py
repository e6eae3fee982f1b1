"""How many rings of an elastic model a client fills: a number that clients tell each other and not the server.

The vector of an elastic model is cut into rings 0 to R - 1; who fills k of them sends zeros in all but rings 0 to
k - 1. What is in the sum of ring k - 1 and not in that of ring k is of those who fill exactly k, so these must be
nobody or a cohort of their own (SPEC.md, section 13).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable

from agfl_protocol.secagg.errors import require

MAX_RINGS = 8
RINGS_BYTES = 1


def check_fillers(rings: Iterable[int], whole: str, min_cohort: int) -> None:
    """Check that each number in `rings`, one a client of `whole`, is that of at least `min_cohort` clients.

    Raises:
        ProtocolViolation: names the smallest number of rings that too few fill, and never a client.
    """
    # Sorted, so that the line is the same whoever checks: it must not begin with the checking client's own number.
    for number, count in sorted(Counter(rings).items()):
        require(
            count >= min_cohort,
            "AGFL-SECURE-010",
            f"rings: exactly {number} must be filled by nobody or at least min_cohort = {min_cohort} of {whole}, "
            f"got {count}",
        )
