"""What either half of the secure sum raises when the other side, or a peer behind it, breaks a rule."""

from __future__ import annotations

import re
from collections.abc import Collection

from agfl_models.errors import AgflError


class ProtocolViolation(AgflError):
    """A check of SPEC.md failed; the line names the field, the rule and the public value, never a secret."""

    area = "SECURE"


class BadShares(ProtocolViolation):
    """What `dealer` sealed for this client is no good. More than c who say so prove it: one of them is honest."""

    def __init__(self, code: str, what: str, dealer: str, rule: str) -> None:
        super().__init__(code, f"{what} of {dealer!r}: {rule}")


_ACCUSATION = re.compile(r"(?:sealed shares|shares|rings) of '([^']+)': ")


def accused(line: str, dealers: Collection[str]) -> str | None:
    """Return which of `dealers` the line of a `BadShares` accuses, None where it is no such line."""
    found = _ACCUSATION.match(line)
    return found[1] if found is not None and found[1] in dealers else None


def require(holds: bool, code: str, line: str) -> None:
    """Raise ProtocolViolation(code, line) unless the check `holds`."""
    if not holds:
        raise ProtocolViolation(code, line)
