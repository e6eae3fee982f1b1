"""A population that a function makes, an owner at a time."""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, SupportsIndex

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
        self._made, self._row = made, config.task.row
        self._names = population.Numbered(_checked(made.count))

    @property
    def names(self) -> Sequence[str]:
        """As of the base."""
        return self._names

    @property
    def identity(self) -> str:
        """As of the base. Whether `rows` is still the same function, only the rows of those who were asked can say."""
        return f"{self.count} owners made by a function"

    def content(self, number: int) -> bytes:
        """As of the base."""
        name = self._names[number]
        try:
            rows = self._made.rows(number)
            rows = rows if isinstance(rows, str) else list(rows)  # it may be a generator, which raises here
        except Exception as error:  # whatever somebody's function raises
            what = f"{type(error).__name__}: {error}"
            raise ConfigError("AGFL-CONFIG-247", f"owners: {name}: rows must not raise, raised {what}") from error
        return format_rows(checked_rows(self._row, name, rows)).encode()


def _checked(count: SupportsIndex) -> int:
    """Return a count of owners; raises ConfigError."""
    with suppress(TypeError):
        if (number := operator.index(count)) >= 1:  # NumPy's integers are no `int`
            return number
    raise ConfigError("AGFL-CONFIG-246", f"owners: count: must be a number from 1, got {count!r}")
