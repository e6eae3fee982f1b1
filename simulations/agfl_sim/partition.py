"""Who owns which rows: a corpus divided among owners, or a folder of owners' files."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from agfl_models.errors import ConfigError, DataError, NoRows
from agfl_models.examples import JSONL_SUFFIX, Row, format_rows
from agfl_models.files.durable_files import write_atomically
from agfl_models.reading.corpora import corpus_of
from agfl_models.reading.files import list_owners
from agfl_models.reading.survey import FEW_ROWS, TOO_FEW, Survey, counted, shorten
from agfl_models.tasks.dataset import split_rows
from agfl_protocol.config.run_config import DataConfig, RunConfig
from agfl_protocol.identity.identity import NAME_RULE, name_hint
from agfl_protocol.randomness import generator
from agfl_sim import skewed

RowT = TypeVar("RowT")


@dataclass(frozen=True)
class Owners:
    """One NAME.jsonl file an owner, sorted by name; content: of those in `folder`, which are still to be written.

    notes: lines on what was read.
    """

    files: list[Path]
    folder: Path
    content: Mapping[Path, bytes]
    notes: tuple[str, ...] = ()

    @property
    def count(self) -> int:
        """How many there are."""
        return len(self.files)

    def write(self, *, is_new: bool = True) -> list[Path]:
        """Write the files that are not there, and return all.

        is_new: the folder may hold nothing else, or a later run on it would have more owners.

        Raises:
            DataError: the folder holds what would be lost or mixed up with them, or cannot be written; none is written.
        """
        try:
            for path, content in self.content.items():
                if path.exists() and path.read_bytes() != content:
                    rule = "must be as the run's seed and data settings make it, or not there"
                    raise DataError("AGFL-DATA-081", f"owners: {path}: {rule}, got other content")
            if self.content and is_new and self.folder.exists():
                other = next((path for path in sorted(self.folder.glob("[!.]*")) if path not in self.content), None)
                if other is not None:
                    raise DataError(
                        "AGFL-DATA-082",
                        f"owners: {self.folder}: must be a new or empty folder, got one with {other.name}",
                    )
            for path, content in self.content.items():
                if not path.exists():
                    path.parent.mkdir(parents=True, exist_ok=True)
                    write_atomically(path, content, mode=0o600)
        except OSError as error:
            raise DataError("AGFL-DATA-083", f"owners: {self.folder}: cannot be written: {error.strerror}") from None
        return self.files


def owner_files(config: RunConfig, folder: Path) -> list[Path]:
    """Return the owners' files, written to a new `folder` where they must be; raises as `owners_of` and `write`."""
    return owners_of(config, folder).write()


def owners_of(config: RunConfig, folder: Path) -> Owners:
    """Return the owners' files, whose rows have the task's columns; nothing is written yet.

    They are those in `data.path` if it holds such files, and else to be written to `folder`.

    Raises:
        DataError: `data.path` holds no file of an owner, or one that cannot be used: the line that its node would say
            on a machine of its own.
        ConfigError: the partition does not fit the corpus.
    """
    if config.data.path is None:
        corpus = corpus_of(config.task.type, config.data.corpus)
        return to_write(partition(config.data, corpus.load(), config.seed), folder)
    found, left_out = _own_files(config.data.path)
    own = _read_own(config, found)
    notes = tuple(_notes(config, config.data.path, own, [name for name in found if name not in own], left_out))
    is_ready = all(path.suffix == JSONL_SUFFIX and path.is_file() for path in found.values())
    if is_ready and own.keys() == found.keys() and not config.data.columns:
        return Owners(list(found.values()), folder, {}, notes)
    owners = {name: rows for name, (rows, _) in own.items()}
    return replace(to_write(owners, folder), notes=notes)


_SKEWED: dict[str, Callable[[DataConfig, Sequence[Sequence[Any]], int, np.random.Generator], list[list[Any]]]] = {
    "dirichlet": lambda config, rows, count, rng: skewed.dirichlet(rows, count, config.dirichlet_alpha, rng),
    "shards": lambda config, rows, count, rng: skewed.shards(rows, count, config.shards_per_owner, rng),
    "lognormal": lambda config, rows, count, rng: skewed.lognormal(rows, count, config.size_sigma, rng),
}


def partition(config: DataConfig, sources: Mapping[str, Sequence[RowT]], seed: int) -> dict[str, list[RowT]]:
    """Divide `sources` (natural owner -> rows) as `config.partition` says.

    natural: one owner a source (the first `num_owners` of a shuffle); grouped: several sources to one owner, dealt
    out in turn after a shuffle; iid: all rows shuffled and dealt out in turn; the others as in `skewed`, where a row's
    label is its source.

    Raises:
        ConfigError: `num_owners` exceeds what there is to deal out.
    """
    rng = generator(seed, "simulation", 0, "partition")
    names = sorted(sources)
    if config.partition == "natural":
        count = _checked(config.num_owners or len(names), len(names))
        chosen = sorted(rng.permutation(len(names))[:count].tolist())
        return {names[i]: list(sources[names[i]]) for i in chosen}
    if config.num_owners is None:
        raise ConfigError(
            "AGFL-CONFIG-209", f"data.num_owners: required with data.partition {config.partition!r}, got None"
        )
    width = len(str(config.num_owners - 1))
    labeled = [sources[name] for name in names]
    if config.partition in _SKEWED:
        needed = config.shards_per_owner if config.partition == "shards" else 1
        count = _checked(config.num_owners, sum(map(len, labeled)) // needed)
        dealt = _SKEWED[config.partition](config, labeled, count, rng)
        return {f"owner-{i:0{width}d}": rows for i, rows in enumerate(dealt)}
    items = labeled if config.partition == "grouped" else [[row] for name in names for row in sources[name]]
    count = _checked(config.num_owners, len(items))
    order = rng.permutation(len(items)).tolist()
    return {f"owner-{i:0{width}d}": [row for j in order[i::count] for row in items[j]] for i in range(count)}


def device_widths(config: RunConfig, num_owners: int) -> list[float]:
    """Return the widest model that each owner's device holds, dealt out as `data.max_widths` says.

    Raises:
        ConfigError: it names more or fewer devices than there are owners.
    """
    counts = config.data.max_widths
    if counts is None:
        return [1.0] * num_owners
    devices = [width for width in sorted(counts) for _ in range(counts[width])]
    if len(devices) != num_owners:
        raise ConfigError(
            "AGFL-CONFIG-210",
            f"data.max_widths: must name one device an owner, {num_owners} in all, got {len(devices)}",
        )
    order = generator(config.seed, "simulation", 0, "devices").permutation(num_owners).tolist()
    return [devices[i] for i in order]


def _checked(num_owners: int, available: int) -> int:
    if num_owners > available:
        raise ConfigError(
            "AGFL-CONFIG-211", f"data.num_owners: must be at most {available} for this partition, got {num_owners}"
        )
    return num_owners


def _own_files(folder: Path) -> tuple[dict[str, Path], tuple[Path, ...]]:
    """Return what each owner has by NAME, sorted, and what lies beside it and is not read."""
    if not folder.is_dir():
        raise DataError(
            "AGFL-DATA-084",
            f"data.path: {folder}: {'must be a folder, got a file' if folder.exists() else 'no such folder'}",
        )
    found, left_out = list_owners(folder)
    if not found:
        raise DataError(
            "AGFL-DATA-085", f"data.path: {folder}: must hold one NAME{JSONL_SUFFIX} file an owner, found none"
        )
    for name, path in found.items():
        if re.fullmatch(NAME_RULE, name) is None:
            rule = f"must be called after its owner, whose name matches {NAME_RULE}"
            raise DataError("AGFL-DATA-086", f"data.path: {path}: {rule}, got {name!r}{name_hint(name)}")
    return found, left_out


def _read_own(config: RunConfig, found: Mapping[str, Path]) -> dict[str, tuple[list[Row], Survey]]:
    """Return what was read of each owner who has any text."""
    own: dict[str, tuple[list[Row], Survey]] = {}
    empty: list[NoRows] = []
    for name, path in found.items():
        try:
            rows, survey = config.task.read(path, config.data.columns)
        except NoRows as error:
            empty.append(error)
            continue
        if not all(row.is_blank for row in rows):
            own[name] = rows, survey
        else:
            empty.append(
                NoRows("AGFL-DATA-087", f"data: {path}: must hold at least one row with text, got {len(rows)} without")
            )
    if not own:
        raise empty[0]
    return own


def _notes(
    config: RunConfig,
    folder: Path,
    own: Mapping[str, tuple[list[Row], Survey]],
    empty: Sequence[str],
    left_out: tuple[Path, ...],
) -> Iterator[str]:
    """Yield what was read of all owners in one line, and one for each thing that may not have been meant."""
    total, train = Survey(folder, left_out), 0
    for rows, survey in own.values():
        total.add_all(survey)
        train += len(split_rows(rows, config.task.validation_fraction)[0])
    split = f"{train:,} train, {total.rows - train:,} held out"
    yield f"data     {counted(len(own), 'owner')} in {folder}: {total.line}; {split}"
    if empty:
        yield f"left out, since they hold no text: {shorten(empty)}"
    few = [f"{name} ({survey.rows})" for name, (_, survey) in own.items() if survey.rows <= FEW_ROWS]
    if few:
        yield f"owners with at most {FEW_ROWS} rows: {shorten(few)}: {TOO_FEW}"
    yield from total.doubts


def to_write(owners: Mapping[str, Sequence[Row]], folder: Path) -> Owners:
    """Return owners' rows as files that are still to be written."""
    content = {folder / (name + JSONL_SUFFIX): format_rows(owners[name]).encode() for name in sorted(owners)}
    return Owners(list(content), folder, content)
