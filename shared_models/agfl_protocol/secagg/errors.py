"""What either half of the secure sum raises when the other side, or a peer behind it, breaks a rule."""

from __future__ import annotations

from agfl_models.errors import AgflError


class ProtocolViolation(AgflError):
    """A check of SPEC.md failed; the line names the field, the rule and the public value, never a secret."""


def require(holds: bool, line: str) -> None:
    """Raise ProtocolViolation(line) unless the check `holds`."""
    if not holds:
        raise ProtocolViolation(line)
