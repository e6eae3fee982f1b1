"""An owner's files are read into memory as rows; what cannot fit there is refused before it is taken."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from agfl_models.errors import DataError
from agfl_models.machine import free_memory

ROW = 256  # bytes that a row takes at least, however short it is


@dataclass
class Budget:
    """What a file may still take: half of the memory that was free when its reading began, since training follows."""

    path: Path
    free: int = field(default_factory=lambda: free_memory() // 2)
    taken: int = 0

    def take(self, num_bytes: int) -> None:
        """Count bytes that are about to be taken; raise DataError if there is no room for them."""
        self.need(num_bytes)
        self.taken += num_bytes

    def need(self, num_bytes: int) -> None:
        """Raise DataError if there is no room for so many bytes more."""
        needed = self.taken + num_bytes
        if needed > self.free:
            rule = f"must fit into half of the memory that is free ({self.free / 2**20:,.0f} MiB)"
            raise DataError(
                "AGFL-DATA-047", f"data: {self.path}: {rule}, got at least {needed / 2**20:,.0f} MiB; give a part of it"
            )
