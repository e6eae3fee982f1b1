"""Who owns which documents: natural, grouped and IID owners of a corpus."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from agfl_models.corpora import JSONL_SUFFIX, shakespeare_roles, write_documents
from agfl_models.errors import ConfigError, DataError
from agfl_protocol.randomness import generator
from agfl_protocol.run_config import DataConfig, RunConfig

Owners = Mapping[str, Sequence[str]]


def owner_files(config: RunConfig, folder: Path) -> list[Path]:
    """Return one NAME.jsonl file an owner, sorted by name: those in `data.path`, or newly written ones in `folder`.

    Raises:
        DataError: `data.path` holds no such file.
        ConfigError: the partition does not fit the corpus.
    """
    if config.data.path is not None:
        found = sorted(config.data.path.glob("*" + JSONL_SUFFIX))
        if not found:
            raise DataError(
                f"data.path: {config.data.path}: must hold one NAME{JSONL_SUFFIX} file an owner, found none"
            )
        return found
    owners = partition(config.data, shakespeare_roles(), config.seed)
    paths = {name: folder / (name + JSONL_SUFFIX) for name in sorted(owners)}
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for name, path in paths.items():
            write_documents(path, owners[name])
    except OSError as error:
        raise DataError(f"owners: {folder}: cannot be written: {error.strerror}") from None
    return list(paths.values())


def partition(config: DataConfig, sources: Owners, seed: int) -> Owners:
    """Divide `sources` (natural owner -> documents) as `config.partition` says.

    natural: one owner a source (the first `num_owners` of a shuffle); grouped: several sources to one owner, dealt
    out in turn after a shuffle; iid: all documents shuffled and dealt out in turn.

    Raises:
        ConfigError: `num_owners` exceeds what there is to deal out.
    """
    rng = generator(seed, "simulation", 0, "partition")
    names = sorted(sources)
    if config.partition == "natural":
        count = _checked(config.num_owners or len(names), len(names))
        chosen = sorted(rng.permutation(len(names))[:count].tolist())
        return {names[i]: sources[names[i]] for i in chosen}
    if config.num_owners is None:
        raise ConfigError(f"data.num_owners: required with data.partition {config.partition!r}, got None")
    if config.partition == "grouped":
        items: list[Sequence[str]] = [sources[name] for name in names]
    else:
        items = [[document] for name in names for document in sources[name]]
    count = _checked(config.num_owners, len(items))
    order = rng.permutation(len(items)).tolist()
    width = len(str(count - 1))
    return {f"owner-{i:0{width}d}": [document for j in order[i::count] for document in items[j]] for i in range(count)}


def _checked(num_owners: int, available: int) -> int:
    if num_owners > available:
        raise ConfigError(f"data.num_owners: must be at most {available} for this partition, got {num_owners}")
    return num_owners
