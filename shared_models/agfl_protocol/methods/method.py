"""The interface of an update transform: both halves of one step, built from one configuration on both sides.

Counterparts: pfl-research `Postprocessor`, TensorFlow Federated aggregation factory.
"""

from __future__ import annotations

from typing import Protocol

from agfl_protocol.update import Total, Update


class UpdateTransform(Protocol):
    """What the client does to its update and what the server undoes on the sum."""

    def encode(self, update: Update) -> Update:
        """Client half."""
        ...

    def decode(self, total: Total) -> Total:
        """Server half, applied to the sum over the cohort."""
        ...
