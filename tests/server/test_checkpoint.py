"""A checkpoint is the whole state, bit for bit, or one clear line; a failed write leaves the last one as it was."""

from __future__ import annotations

import json
import re
import resource
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from safetensors import safe_open
from safetensors.numpy import save_file

from agfl_models.errors import CheckpointError
from agfl_models.files.durable_files import write_atomically
from agfl_models.version import VERSION
from agfl_protocol.methods.owner_states.owner_state import as_arrays
from agfl_server.rounds.checkpoint import load_checkpoint, save_checkpoint, with_confirmed_on_disk
from agfl_server.rounds.state import ServerState

HASH = "a" * 64


def state_of(round_number: int, size: int = 50) -> ServerState:
    rng = np.random.default_rng(round_number)
    model = rng.standard_normal(size).astype(np.float32)
    model[:4] = [1e-45, -0.0, 3.4e38, -1 / 3]  # a denormal number, a negative zero
    return ServerState(
        run_id="0123abcd",
        round=round_number,
        model=model,
        optimizer={"m": rng.standard_normal(size).astype(np.float32), "v": np.full(size, 1e-6, np.float32)},
        norm=0.1 + 0.2 if round_number else None,
        methods={
            "clipping": {"step": np.array([41])},
            "alignment": {"previous": model[::-1].copy()},
            "feddyn": as_arrays([(1, ("alice", "bob")), (3, ()), (2**30, ("alice",))]),
        },
        row={"round": round_number, "train/loss": 2 / 3, "eval/loss": None, "clients": 3, "seconds": 1e-9},
        exchange=2 * round_number,
    )


def arrays_of(state: ServerState) -> dict[str, NDArray[Any]]:
    own = {f"{method}.{name}": value for method, state_ in state.methods.items() for name, value in state_.items()}
    return {"model": state.model, **own, **state.optimizer}


def assert_same(left: ServerState, right: ServerState) -> None:
    assert (left.run_id, left.round, left.norm) == (right.run_id, right.round, right.norm)
    assert json.dumps(left.row) == json.dumps(right.row)
    assert left.exchange == right.exchange
    assert arrays_of(left).keys() == arrays_of(right).keys()
    for name, array in arrays_of(left).items():
        other = arrays_of(right)[name]
        assert (array.dtype, array.shape, array.tobytes()) == (other.dtype, other.shape, other.tobytes()), name


@contextmanager
def largest_file(num_bytes: int) -> Iterator[None]:
    """The kernel lets no file of this process grow past `num_bytes`: a write fails as on a full disk."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (num_bytes, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.mark.parametrize("change", [lambda s: s, lambda s: replace(s, optimizer={}), lambda s: replace(s, row={})])
@pytest.mark.parametrize("round_number", [0, 1, 999_999])
def test_state_comes_back_bit_for_bit(
    tmp_path: Path, round_number: int, change: Callable[[ServerState], ServerState]
) -> None:
    state = change(state_of(round_number))
    save_checkpoint(tmp_path / "new" / "folder", state, HASH)
    assert_same(load_checkpoint(tmp_path / "new" / "folder", HASH), state)


def test_newest_is_loaded_and_two_are_kept(tmp_path: Path) -> None:
    for number in range(12):
        save_checkpoint(tmp_path, state_of(number), HASH)
    assert_same(load_checkpoint(tmp_path, HASH), state_of(11))
    assert [path.name for path in sorted(tmp_path.iterdir())] == [
        "round-000010.safetensors",
        "round-000011.safetensors",
    ]


def test_equal_states_give_equal_bytes(tmp_path: Path) -> None:
    first, second = (save_checkpoint(tmp_path / name, state_of(3), HASH).read_bytes() for name in "ab")
    assert first == second


@pytest.mark.parametrize("room", [0, 1, 100, 5000, 150_000])
def test_failed_write_leaves_the_last_checkpoint(tmp_path: Path, room: int) -> None:
    good = state_of(1, 20_000)
    before = save_checkpoint(tmp_path, good, HASH).read_bytes()
    with largest_file(room), pytest.raises(CheckpointError, match=r"round-000002.*: cannot be written: ") as error:
        save_checkpoint(tmp_path, state_of(2, 20_000), HASH)
    assert "\n" not in str(error.value)
    assert [path.read_bytes() for path in tmp_path.iterdir()] == [before]
    assert_same(load_checkpoint(tmp_path, HASH), good)
    save_checkpoint(tmp_path, state_of(2, 20_000), HASH)
    assert_same(load_checkpoint(tmp_path, HASH), state_of(2, 20_000))


def test_failed_overwrite_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "file"
    write_atomically(path, b"old")
    with largest_file(10), pytest.raises(OSError, match="too large"):
        write_atomically(path, b"new" * 100)
    assert [entry.name for entry in tmp_path.iterdir()] == ["file"]
    assert path.read_bytes() == b"old"


def test_where_files_cannot_be_mapped_the_confirmed_model_stays_in_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def not_here(*_: object) -> None:
        raise OSError(19, "No such device")

    state = state_of(1)
    state = replace(state, confirmed=replace(state.confirmed, model=np.ones(4, np.float32)))
    path = save_checkpoint(tmp_path, state, HASH)
    assert isinstance(with_confirmed_on_disk(state, path).confirmed.model, np.memmap)
    monkeypatch.setattr(np, "memmap", not_here)
    assert with_confirmed_on_disk(state, path) is state


def test_folder_that_cannot_be_made_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(CheckpointError, match=r"^checkpoint: .*/file/x/round-000001\.safetensors: cannot be written"):
        save_checkpoint(tmp_path / "file" / "x", state_of(1), HASH)


@pytest.mark.parametrize("share", [0.0, 0.001, 0.3, 0.999])
def test_truncated_file_is_damaged(tmp_path: Path, share: float) -> None:
    save_checkpoint(tmp_path, state_of(1), HASH)
    path = save_checkpoint(tmp_path, state_of(2), HASH)
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * share)])
    with pytest.raises(CheckpointError, match=rf"^checkpoint: {path}: is damaged: ") as error:
        load_checkpoint(tmp_path, HASH)
    assert "\n" not in str(error.value)
    path.unlink()  # what the line tells a person to do, if anything
    assert_same(load_checkpoint(tmp_path, HASH), state_of(1))


@pytest.mark.parametrize("content", [b"\x00" * 100, b"\xff" * 100, b"{}", b"\x02\x00\x00\x00\x00\x00\x00\x00{}"])
def test_garbage_is_damaged(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "round-000001.safetensors"
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match=rf"^checkpoint: {path}: is damaged: "):
        load_checkpoint(tmp_path, HASH)


FACTS = {
    "format": 3,
    "version": VERSION,
    "run_id": "0",
    "round": 1,
    "exchange": 1,
    "row": {},
    "norm": None,
    "rings": None,
    "config_hash": HASH,
}


@pytest.mark.parametrize(
    ("tensors", "facts"),
    [
        (("model", "previous"), None),
        (("model", "previous"), "not JSON"),
        ((), FACTS),
        (("model",), FACTS),
        (("model", "previous"), {key: value for key, value in FACTS.items() if key != "exchange"}),
        (("model", "confirmed"), FACTS | {"confirmed": {"evaluated": 3}}),
        (("model", "previous"), {}),
        (("model", "previous"), []),
    ],
)
def test_safetensors_file_of_something_else_is_damaged(tmp_path: Path, tensors: tuple[str, ...], facts: object) -> None:
    path = tmp_path / "round-000001.safetensors"
    text = facts if isinstance(facts, str) else json.dumps(facts)
    metadata = None if facts is None else {"state": text}
    save_file({name: np.zeros(3) for name in tensors}, path, metadata)
    with pytest.raises(CheckpointError, match=rf"^checkpoint: {path}: is damaged: "):
        load_checkpoint(tmp_path, HASH)


def test_other_configuration_is_named(tmp_path: Path) -> None:
    path = save_checkpoint(tmp_path, state_of(1), HASH)
    with pytest.raises(
        CheckpointError,
        match=rf"^checkpoint: {path}: belongs to .* hash aaaaaaaaaaaa, .* bbbbbbbbbbbb.*AGFL-CHECKPOINT-015",
    ):
        load_checkpoint(tmp_path, "b" * 64)


def test_missing_checkpoint_is_named(tmp_path: Path) -> None:
    for folder in (tmp_path, tmp_path / "none"):
        with pytest.raises(CheckpointError, match=rf"^--resume: {folder}: .*AGFL-CHECKPOINT-022"):
            load_checkpoint(folder, HASH)


def _rewritten(path: Path, change: Callable[[dict[str, Any]], None]) -> None:
    with safe_open(path, "numpy") as file:
        facts, tensors = json.loads(file.metadata()["state"]), {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    change(facts)
    save_file(tensors, path, {"state": json.dumps(facts)})


def test_a_changed_configuration_is_named_by_its_keys(tmp_path: Path) -> None:
    before = {"seed": 0, "model": {"dim": 16, "layers": [{"type": "ff"}]}, "gone": [1]}
    after = {"seed": 7, "model": {"dim": 16, "layers": [{"type": "rnn"}]}, "come": None}
    save_checkpoint(tmp_path, state_of(1), HASH, before)
    load_checkpoint(tmp_path, HASH, before)
    with pytest.raises(CheckpointError) as error:
        load_checkpoint(tmp_path, "b" * 64, after)
    named = "seed was 0, now 7, model.layers.0.type was 'ff', now 'rnn', gone was [1], now unknown, come was unknown"
    assert f"belongs to a run with another configuration: {named}, now None (what may change" in str(error.value)


def test_many_changed_keys_are_counted(tmp_path: Path) -> None:
    save_checkpoint(tmp_path, state_of(1), HASH, {f"key{i}": 0 for i in range(9)})
    with pytest.raises(CheckpointError, match="AGFL-CHECKPOINT-016"):
        load_checkpoint(tmp_path, "b" * 64, {f"key{i}": 1 for i in range(9)})


@pytest.mark.parametrize("version", ["0.0.7", None])
@pytest.mark.parametrize(
    ("change", "told"),
    [
        (lambda facts: facts.update(config_hash="c" * 64), "for which the same configuration means another run"),
        (lambda facts: facts.pop("norm"), "which misses something in it: 'norm'"),
        (lambda facts: facts.update(format=1), "which reads checkpoints of format 3, got 1"),
        (lambda facts: facts.pop("format"), "which reads checkpoints of format 3, got None"),
    ],
)
def test_a_checkpoint_of_another_version_is_named_as_such(
    tmp_path: Path, version: str | None, change: Callable[[dict[str, Any]], None], told: str
) -> None:
    """What did not change is not accused; what reads as before still does."""
    path = save_checkpoint(tmp_path, state_of(1), HASH, {"seed": 0})

    def older(facts: dict[str, Any]) -> None:
        facts["version"] = version
        if version is None:  # of before they had any of these
            for key in ("version", "config"):
                del facts[key]

    _rewritten(path, older)
    assert_same(load_checkpoint(tmp_path, HASH, {"seed": 0}), state_of(1))
    _rewritten(path, change)
    writer = f"agfl {version}" if version is not None else "a version of agfl that did not yet say which it was"
    by = rf"was written by {re.escape(writer)}, and this is version {re.escape(VERSION)}"
    with pytest.raises(CheckpointError, match=rf"^checkpoint: {path}: {by}, {told}( \[AGFL-CHECKPOINT-\d+\])?$"):
        load_checkpoint(tmp_path, HASH, {"seed": 0})


def test_a_changed_key_of_another_versions_run_is_named_with_the_version(tmp_path: Path) -> None:
    path = save_checkpoint(tmp_path, state_of(1), HASH, {"seed": 0})
    _rewritten(path, lambda facts: facts.update(version="0.0.7"))
    with pytest.raises(
        CheckpointError,
        match=r"seed was 0, now 1 \(.*\); it was written by agfl 0\.0\.7, and this is.*AGFL-CHECKPOINT-016",
    ):
        load_checkpoint(tmp_path, "b" * 64, {"seed": 1})
