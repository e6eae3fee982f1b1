"""Checkpoints: the whole server state in one safetensors file a round, written atomically."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open

from agfl_models.errors import CheckpointError
from agfl_models.files.durable_files import write_atomically
from agfl_models.files.folder_kinds import folder_hint
from agfl_models.files.tensor_file import mapped, parts_of_file
from agfl_models.version import VERSION, written_by
from agfl_server.rounds.rollback import Confirmed
from agfl_server.rounds.state import ServerState
from agfl_server.run.other_run import refuse_other

# The newest one may be lost with the disk sector it stood on.
_KEPT = 2
# Of what a checkpoint holds and means: one that this version would misread has another number.
_FORMAT = 3
_MODEL, _CONFIRMED, _OPTIMIZER, _METHODS = "model", "confirmed", "optimizer.", "methods."


def save_checkpoint(
    folder: Path, state: ServerState, config_hash: str, defining: Mapping[str, Any] | None = None
) -> Path:
    """Write the checkpoint of `state` and drop older ones than the last two.

    defining: the configuration's `defining` keys, by which another one is told what it changed.

    Raises:
        CheckpointError: the disk is full or not writable; earlier checkpoints are untouched.
    """
    facts = {
        "format": _FORMAT,
        "version": VERSION,
        "config": defining,
        "run_id": state.run_id,
        "round": state.round,
        "row": state.row,
        "norm": state.norm,
        "confirmed": {**asdict(replace(state.confirmed, model=state.model[:0])), "model": None},
        "exchange": state.exchange,
        "config_hash": config_hash,
    }
    tensors: dict[str, NDArray[Any]] = {
        _MODEL: state.model,
        _CONFIRMED: state.confirmed.model,
    }
    tensors |= {_OPTIMIZER + name: np.asarray(value) for name, value in state.optimizer.items()}
    for method, own in state.methods.items():
        tensors |= {f"{_METHODS}{method}.{name}": value for name, value in own.items()}
    path = folder / f"round-{state.round:06d}.safetensors"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        write_atomically(path, parts_of_file(tensors, {"state": json.dumps(facts)}))
        for old in _checkpoints(folder)[:-_KEPT]:
            old.unlink()
    except OSError as error:
        raise CheckpointError(
            "AGFL-CHECKPOINT-021", f"checkpoint: {path}: cannot be written: {error.strerror}; the last good one stays"
        ) from None
    return path


def with_confirmed_on_disk(state: ServerState, path: Path) -> ServerState:
    """Return a state whose checkpoint is at `path`, without the confirmed model in memory: few rounds ask for it."""
    if not state.confirmed.model.size:
        return state
    try:
        return replace(state, confirmed=replace(state.confirmed, model=mapped(path, _CONFIRMED)))
    except OSError:  # a file system that maps no files; the checkpoint itself is good
        return state


def has_checkpoint(folder: Path) -> bool:
    """Return whether the folder holds a checkpoint."""
    return bool(_checkpoints(folder))


def newest_checkpoint(folder: Path) -> Path:
    """Return the file of the last round; raises CheckpointError where there is none."""
    checkpoints = _checkpoints(folder)
    if not checkpoints:
        raise CheckpointError(
            "AGFL-CHECKPOINT-022", f"--resume: {folder}: must hold a checkpoint, found none{folder_hint(folder.parent)}"
        )
    return checkpoints[-1]


def rounds_done(folder: Path, config_hash: str, defining: Mapping[str, Any] | None = None) -> int:
    """Return how many rounds the newest checkpoint has behind it; raises as `load_checkpoint`."""
    with _newest(folder, config_hash, defining) as (_, facts):
        return int(facts["round"])


def last_exchange(folder: Path) -> int:
    """Return the last exchange that the newest checkpoint has behind it, of whatever configuration; 0 without one.

    Raises:
        CheckpointError: it is damaged.
    """
    if not has_checkpoint(folder):
        return 0
    with _newest(folder, None) as (_, facts):
        return int(facts["exchange"])


def load_checkpoint(folder: Path, config_hash: str, defining: Mapping[str, Any] | None = None) -> ServerState:
    """Read the newest checkpoint.

    Raises:
        CheckpointError: there is none, it is damaged, it belongs to a run with another configuration, or another
            version of agfl wrote it in a way that this one does not read.
    """
    with _newest(folder, config_hash, defining) as (file, facts):
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        return ServerState(
            run_id=facts["run_id"],
            round=facts["round"],
            model=tensors[_MODEL],
            optimizer={n.removeprefix(_OPTIMIZER): t for n, t in tensors.items() if n.startswith(_OPTIMIZER)},
            norm=facts["norm"],
            methods=_methods(tensors),
            confirmed=_confirmed(facts["confirmed"], tensors[_CONFIRMED]),
            row=facts["row"],
            exchange=facts["exchange"],
        )


@contextmanager
def _newest(
    folder: Path, config_hash: str | None, defining: Mapping[str, Any] | None = None
) -> Iterator[tuple[Any, dict[str, Any]]]:
    """Open the newest checkpoint; yield the file and its facts."""
    path = newest_checkpoint(folder)
    version: str | None = VERSION
    try:
        with safe_open(path, framework="numpy") as file:
            facts = json.loads(file.metadata()["state"])
            found_hash = str(facts["config_hash"])
            version = facts.get("version")
            if facts.get("format") != _FORMAT:
                rule = f"which reads checkpoints of format {_FORMAT}, got {facts.get('format')}"
                raise CheckpointError("AGFL-CHECKPOINT-023", f"checkpoint: {path}: {written_by(version)}, {rule}")
            if config_hash is not None:
                found = facts.get("config")
                refuse_other(f"checkpoint: {path}", found_hash, config_hash, found, defining, version)
            yield file, facts
    except (OSError, SafetensorError, KeyError, TypeError, ValueError) as error:
        if version != VERSION and isinstance(error, KeyError | TypeError):
            problem = f"{written_by(version)}, which misses something in it: {error}"
            raise CheckpointError("AGFL-CHECKPOINT-024", f"checkpoint: {path}: {problem}") from None
        raise CheckpointError("AGFL-CHECKPOINT-025", f"checkpoint: {path}: is damaged: {error}") from None


def _confirmed(facts: dict[str, Any], model: NDArray[np.float32]) -> Confirmed:
    losses = {key: tuple(facts[key]) for key in ("evaluated", "trained")}
    return Confirmed(**{**facts, **losses, "model": model})


def _methods(tensors: Mapping[str, NDArray[Any]]) -> dict[str, dict[str, NDArray[Any]]]:
    found: dict[str, dict[str, NDArray[Any]]] = {}
    for path, value in tensors.items():
        if path.startswith(_METHODS):
            method, _, name = path.removeprefix(_METHODS).partition(".")
            found.setdefault(method, {})[name] = value
    return found


def _checkpoints(folder: Path) -> list[Path]:
    return sorted(folder.glob("round-*.safetensors"))
