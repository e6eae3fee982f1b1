"""An owner's state is the one that follows from what the server used, whatever was lost, late or killed between."""

from __future__ import annotations

import logging
import resource
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file

from agfl_client.training.client_state import ClientStates, Memory, StateKey
from agfl_models.errors import ConfigError, IdentityError
from agfl_protocol.config.search_config import MAX_CANDIDATES
from agfl_protocol.identity.private_files import write_private
from agfl_protocol.methods.owner_states.feddyn import FedDyn
from agfl_protocol.update import Vector

SIZE = 3
METHOD = FedDyn(is_secure=False, alpha=0.5)
Recalled = tuple[Vector, bool]


MODEL = "c" * 16


def answer(folder: Path, exchange: int, last: int | None, run_id: str = "run", model: str = MODEL) -> Recalled:
    """A node that starts anew for every exchange: recall, train, keep; return what it recalled."""
    states, key = ClientStates(folder), StateKey(run_id, model)
    own, is_lost = states.recall(key, last, SIZE)
    update = np.full(SIZE, exchange, np.float32)
    states.keep(key, exchange, Memory(METHOD, {}, own, last, is_lost), update)
    return own, is_lost


def expect(found: Recalled, value: float, is_lost: bool = False) -> None:
    assert found[0].dtype == np.float32
    assert found[0].tolist() == [value] * SIZE
    assert found[1] == is_lost


def test_a_state_begins_at_zero_and_follows_what_was_used(tmp_path: Path) -> None:
    expect(answer(tmp_path, 10, None), 0)
    expect(answer(tmp_path, 20, 10), -10)
    expect(answer(tmp_path, 30, 20), -30)


def test_what_was_not_used_leaves_no_trace(tmp_path: Path) -> None:
    """The exchange was spent, the reply came too late, or the node was killed after it had written its state."""
    expect(answer(tmp_path, 10, None), 0)
    expect(answer(tmp_path, 11, None), 0)
    expect(answer(tmp_path, 20, 11), -11)
    for exchange in (21, 22):
        expect(answer(tmp_path, exchange, 11), -11)
    expect(answer(tmp_path, 70, 11), -11)


def test_the_exchange_0_is_one_like_any_other(tmp_path: Path) -> None:
    states, key = ClientStates(tmp_path), StateKey("run", MODEL)
    zero = np.zeros(SIZE, np.float32)
    states.keep(key, 0, Memory(METHOD, {}, zero, None, False), np.full(SIZE, 5, np.float32))
    expect(states.recall(key, 0, SIZE), -5)
    expect(answer(tmp_path, 1, 0), -5)
    expect(answer(tmp_path, 2, 0), -5)


def test_the_same_request_twice_is_the_same_state(tmp_path: Path) -> None:
    for _ in range(3):
        expect(answer(tmp_path, 10, None), 0)
    for _ in range(3):
        expect(answer(tmp_path, 20, 10), -10)


@pytest.mark.parametrize("last", [10, 21, 90])
def test_a_state_that_is_not_here_is_lost_and_said_so(
    tmp_path: Path, last: int, caplog: pytest.LogCaptureFixture
) -> None:
    """The server went back past what this node knows to have been used, or this node has an old backup."""
    answer(tmp_path, 10, None)
    answer(tmp_path, 20, 10)
    answer(tmp_path, 30, 20)
    with caplog.at_level(logging.WARNING, "agfl.client"):
        expect(answer(tmp_path, 100, last), 0, is_lost=True)
    (line,) = caplog.messages
    assert line.startswith(f"run run: the state after exchange {last}, which was used, is not here")
    expect(answer(tmp_path, 101, None), 0)  # all begin anew
    expect(answer(tmp_path, 110, 101), -101)


def test_a_state_of_which_nobody_knows_whether_it_was_used_is_lost(tmp_path: Path) -> None:
    """A vector that left of which this owner never signed the sum: the node asks for the exchange -1."""
    answer(tmp_path, 10, None)
    expect(ClientStates(tmp_path).recall(StateKey("run", MODEL), -1, SIZE), 0, is_lost=True)


@pytest.mark.parametrize("content", [None, b"", b"no safetensors"])
def test_a_damaged_or_missing_file_is_a_lost_state(tmp_path: Path, content: bytes | None) -> None:
    answer(tmp_path, 10, None)
    (path,) = tmp_path.iterdir()
    path.unlink() if content is None else path.write_bytes(content)
    expect(answer(tmp_path, 20, 10), 0, is_lost=True)


def test_a_state_of_another_size_is_lost(tmp_path: Path) -> None:
    answer(tmp_path, 10, None)
    vector, is_lost = ClientStates(tmp_path).recall(StateKey("run", MODEL), 10, SIZE + 1)
    assert is_lost
    assert vector.tolist() == [0.0] * (SIZE + 1)


def test_the_file_is_its_owners_alone_and_holds_two_states(tmp_path: Path) -> None:
    for exchange in range(1, 5):
        answer(tmp_path, exchange, exchange - 1 if exchange > 1 else None)
    (path,) = tmp_path.iterdir()
    assert path.stat().st_mode & 0o777 == 0o600
    assert set(load_file(path)) == {"3", "4"}
    path.chmod(0o640)
    with pytest.raises(IdentityError, match=r"state-run-c{16}\.safetensors: .*AGFL-IDENTITY-018"):
        ClientStates(tmp_path)


def test_each_training_of_a_run_has_a_state_of_its_own(tmp_path: Path) -> None:
    """A search trains candidates in turn, in one run and under one counter."""
    expect(answer(tmp_path, 1, None, model="a" * 16), 0)
    expect(answer(tmp_path, 2, None, model="b" * 16), 0)
    expect(answer(tmp_path, 3, 1, model="a" * 16), -1)
    expect(answer(tmp_path, 4, 2, model="b" * 16), -2)
    expect(answer(tmp_path, 5, 3, model="a" * 16), -4)


def test_runs_have_their_own_states_and_the_last_one_outlives_the_others(tmp_path: Path) -> None:
    for run_id in ("a", "b", ".."):
        answer(tmp_path, 10, None, run_id)
    expect(answer(tmp_path, 20, 10, "b"), -10)
    ClientStates(tmp_path).finish("b")
    assert [path.name for path in tmp_path.iterdir()] == [f"state-b-{MODEL}.safetensors"]
    expect(answer(tmp_path, 30, 20, "b"), -30)


def test_a_server_that_opens_run_after_run_does_not_fill_the_disk(tmp_path: Path) -> None:
    """What is dropped is lost, so all begin anew; the runs that were asked last go on."""
    for number in range(1, 4 * MAX_CANDIDATES):
        answer(tmp_path, number, number - 1 if number > 1 else None, "loved")
        answer(tmp_path, 10, None, f"{number:02}")
        assert len(list(tmp_path.iterdir())) <= MAX_CANDIDATES
    kept = {path.name for path in tmp_path.iterdir()}
    last = (f"{number:02}" for number in range(3 * MAX_CANDIDATES + 1, 4 * MAX_CANDIDATES))
    assert kept == {f"state-{run_id}-{MODEL}.safetensors" for run_id in ("loved", *last)}
    expect(answer(tmp_path, 20, 10, "01"), 0, is_lost=True)
    expect(answer(tmp_path, 20, 10, f"{4 * MAX_CANDIDATES - 1}"), -10)


def test_what_a_kill_left_half_written_goes_with_its_run(tmp_path: Path) -> None:
    write_private(tmp_path / ".writing-state-a.safetensors", b"half")
    answer(tmp_path, 10, None, "b")
    ClientStates(tmp_path).finish("b")
    assert [path.name for path in tmp_path.iterdir()] == [f"state-b-{MODEL}.safetensors"]


def test_a_state_that_cannot_be_written_stops_the_answer_and_leaves_the_old_one(tmp_path: Path) -> None:
    answer(tmp_path, 10, None)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (10, hard))
    try:
        with pytest.raises(ConfigError, match=r"^state: .*AGFL-CONFIG-185"):
            answer(tmp_path, 20, 10)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    expect(answer(tmp_path, 21, 10), -10)


def test_nothing_of_a_state_is_printed_with_a_memory() -> None:
    shown = repr(Memory(METHOD, {"control": np.full(SIZE, 0.123)}, np.full(SIZE, 0.123, np.float32), 1, False))
    assert "0.123" not in shown
