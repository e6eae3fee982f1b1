"""More owners than have a file, a key or a node each: whoever is asked gets them then."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from agfl_models.errors import ConfigError
from agfl_models.examples import JSONL_SUFFIX
from agfl_models.files.durable_files import write_atomically
from agfl_protocol.config.run_config import RunConfig
from agfl_protocol.secagg.parameters import MAX_MEMBERS

_IDENTITY = ".population"


class Population(ABC):
    """Owners by number, from 0; `folder` gets the file NAME.jsonl of each that is asked.

    notes: lines on what was read.
    """

    notes: tuple[str, ...] = ()

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    @property
    @abstractmethod
    def names(self) -> Sequence[str]:
        """Every owner's NAME, sorted; made when it is looked at."""

    @property
    def count(self) -> int:
        """How many there are."""
        return len(self.names)

    @property
    @abstractmethod
    def identity(self) -> str:
        """What tells it from others: a run goes on with the population with which it began; raises ConfigError."""

    @abstractmethod
    def content(self, number: int) -> bytes:
        """Return an owner's rows as JSON lines with the task's columns; raises ConfigError or DataError."""

    def write(self, *, is_new: bool = True) -> None:
        """Make what `content` needs, and keep which population it is.

        Raises:
            ConfigError: the folder is no new one though `is_new`, or that of another population; or it cannot be
                written.
        """
        if is_new and self.folder.exists() and any(self.folder.glob("[!.]*")):
            raise ConfigError("AGFL-CONFIG-240", f"owners: {self.folder}: must be a new or empty folder, got another")
        kept, identity = self.folder / _IDENTITY, self.identity
        with self.writing(kept):
            if is_new:
                self.folder.mkdir(parents=True, exist_ok=True)
                write_atomically(kept, identity.encode(), mode=0o600)
            elif not kept.exists() or kept.read_bytes() != identity.encode():
                rule = "must be of the population with which the run began"
                raise ConfigError("AGFL-CONFIG-284", f"owners: {self.folder}: {rule}, got {identity}")

    def file_of(self, number: int) -> Path:
        """Return an owner's file, written if it is not there.

        Raises:
            ConfigError: it is there, with other rows; or as `content`.
        """
        path, content = self.folder / (self.names[number] + JSONL_SUFFIX), self.content(number)
        with self.writing(path):
            if not path.exists():
                self.folder.mkdir(parents=True, exist_ok=True)
                write_atomically(path, content, mode=0o600)
            elif path.read_bytes() != content:
                raise ConfigError(
                    "AGFL-CONFIG-248", f"owners: {path}: must be the rows that this owner had before, got others"
                )
        return path

    @contextmanager
    def writing(self, path: Path) -> Iterator[None]:
        """Say in one line that the system does not take, or give, a file of the folder; raises ConfigError."""
        try:
            yield
        except OSError as error:
            reason = error.strerror or error
            raise ConfigError("AGFL-CONFIG-241", f"owners: {path}: cannot be written: {reason}") from None

    @property
    def files(self) -> list[Path]:
        """The files of those who were asked so far, sorted."""
        return sorted(self.folder.glob(f"*{JSONL_SUFFIX}"))

    def check(self, config: RunConfig) -> None:
        """Say early what a run over a population cannot have, since it would need all owners.

        Raises:
            ConfigError: names the field, the rule and the value.
        """
        count, aggregation = self.count, config.aggregation
        if aggregation.type == "secure" and count > MAX_MEMBERS:
            raise ConfigError(
                "AGFL-CONFIG-242",
                f"aggregation.type: must be plain with more than {MAX_MEMBERS} owners, since a plan of secure sums "
                f"names all of them, got secure with {count:,} owners",
            )
        if aggregation.cohort_size is None and count > MAX_MEMBERS:
            rule = f"must say how many of {count:,} owners a round asks"
            raise ConfigError("AGFL-CONFIG-243", f"aggregation.cohort_size: {rule}, got None")
        unfit = {
            "baselines": config.baselines,
            "data.max_widths": config.data.max_widths is not None,
            "data.devices": config.data.devices is not None,
        }
        for field in (field for field, is_there in unfit.items() if is_there):
            raise ConfigError(
                "AGFL-CONFIG-244", f"{field}: must be left out with a population, of which few owners are ever opened"
            )


class Numbered(Sequence[str]):
    """The names owner-0 to owner-(count - 1), with as many digits each as the last one has."""

    def __init__(self, count: int) -> None:
        self._count, self._width = count, len(str(count - 1))

    def __len__(self) -> int:
        return self._count

    def __getitem__(self, number: int) -> str:  # type: ignore[override]  # nobody takes slices
        if not 0 <= number < self._count:
            raise IndexError(number)
        return f"owner-{number:0{self._width}d}"
