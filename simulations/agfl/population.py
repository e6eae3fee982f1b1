"""A population that a function makes, an owner at a time."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from agfl.owners import checked_rows
from agfl_models.errors import ConfigError
from agfl_models.examples import format_rows
from agfl_protocol.config.run_config import RunConfig
from agfl_sim import population


@dataclass(frozen=True)
class Population:
    """Owners 0 to count - 1, whose rows `rows` makes when one is asked: texts, or mappings with the task's columns.

    The same number must have the same rows whenever it is called: an owner that is asked again is opened again.
    """

    count: int
    rows: Callable[[int], Sequence[str | Mapping[str, Any]]]


class MadePopulation(population.Population):
    """The owners of a `Population` in one run; raises ConfigError where there are none."""

    def __init__(self, config: RunConfig, made: Population, folder: Path) -> None:
        super().__init__(folder)
        if not isinstance(made.count, int) or made.count < 1:
            raise ConfigError("AGFL-CONFIG-246", f"owners: count: must be a number from 1, got {made.count!r}")
        self._made, self._row = made, config.task.row
        self._names = population.Numbered(made.count)

    @property
    def names(self) -> Sequence[str]:
        """As of the base."""
        return self._names

    def content(self, number: int) -> bytes:
        """As of the base."""
        name = self._names[number]
        try:
            rows = self._made.rows(number)
        except Exception as error:  # whatever somebody's function raises
            what = f"{type(error).__name__}: {error}"
            raise ConfigError("AGFL-CONFIG-247", f"owners: {name}: rows must not raise, raised {what}") from error
        return format_rows(checked_rows(self._row, name, rows)).encode()
