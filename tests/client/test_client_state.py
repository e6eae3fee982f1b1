"""An owner's state is the one that follows from what the server counted, whatever was lost, late or killed between."""

from __future__ import annotations

import logging
import resource
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file

from agfl_client.client_state import ClientStates, Recollection
from agfl_models.errors import ConfigError, IdentityError
from agfl_protocol.drift import ControlVariates, DynamicRegularizer
from agfl_protocol.private_files import write_private
from agfl_protocol.search_config import MAX_CANDIDATES
from agfl_protocol.secagg.context import ExchangeId
from agfl_protocol.update import Vector
from agfl_protocol.wire import Counted

SIZE = 3
DRIFT = DynamicRegularizer(0.5)
NOTHING = np.zeros(0, np.float32)


def answer(folder: Path, number: int, exchange: int, last: Counted | None, run_id: str = "run") -> tuple[Vector, bool]:
    """A node that starts anew for every exchange: recall, train, keep; return what it recalled."""
    states = ClientStates(folder)
    own, is_lost = states.recall(run_id, last, SIZE)
    update = np.full(SIZE, 10.0 * number + exchange, np.float32)
    states.keep(ExchangeId(run_id, number, exchange), Recollection(DRIFT, NOTHING, own, last, is_lost), update)
    return own, is_lost


def expect(found: tuple[Vector, bool], value: float, is_lost: bool = False) -> None:
    assert found[0].dtype == np.float32
    assert found[0].tolist() == [value] * SIZE
    assert found[1] == is_lost


def test_a_state_begins_at_zero_and_follows_what_was_counted(tmp_path: Path) -> None:
    expect(answer(tmp_path, 1, 0, None), 0)
    expect(answer(tmp_path, 2, 0, (1, 0)), -10)
    expect(answer(tmp_path, 3, 0, (2, 0)), -30)


def test_what_was_not_counted_leaves_no_trace(tmp_path: Path) -> None:
    """The exchange failed, the reply came too late, or the node was killed after it had written its state."""
    expect(answer(tmp_path, 1, 0, None), 0)
    expect(answer(tmp_path, 1, 1, None), 0)
    expect(answer(tmp_path, 2, 0, (1, 1)), -11)
    for exchange in (1, 2):
        expect(answer(tmp_path, 2, exchange, (1, 1)), -11)
    expect(answer(tmp_path, 7, 0, (1, 1)), -11)


def test_the_same_request_twice_is_the_same_state(tmp_path: Path) -> None:
    for _ in range(3):
        expect(answer(tmp_path, 1, 0, None), 0)
    for _ in range(3):
        expect(answer(tmp_path, 2, 0, (1, 0)), -10)


@pytest.mark.parametrize("last", [(1, 0), (2, 1), (9, 0)])
def test_a_state_that_is_not_here_is_lost_and_said_so(
    tmp_path: Path, last: Counted, caplog: pytest.LogCaptureFixture
) -> None:
    """The server went back past what this node knows to have counted, or this node has an old backup."""
    answer(tmp_path, 1, 0, None)
    answer(tmp_path, 2, 0, (1, 0))
    answer(tmp_path, 3, 0, (2, 0))
    with caplog.at_level(logging.WARNING, "agfl.client"):
        expect(answer(tmp_path, 10, 0, last), 0, is_lost=True)
    (line,) = caplog.messages
    assert line.startswith(
        f"run run: the state after round {last[0]} exchange {last[1]}, which the server counted, is not"
    )
    expect(answer(tmp_path, 10, 1, None), 0)  # all begin anew
    expect(answer(tmp_path, 11, 0, (10, 1)), -101)


@pytest.mark.parametrize("content", [None, b"", b"no safetensors"])
def test_a_damaged_or_missing_file_is_a_lost_state(tmp_path: Path, content: bytes | None) -> None:
    answer(tmp_path, 1, 0, None)
    (path,) = tmp_path.iterdir()
    path.unlink() if content is None else path.write_bytes(content)
    expect(answer(tmp_path, 2, 0, (1, 0)), 0, is_lost=True)


def test_a_state_of_another_size_is_lost(tmp_path: Path) -> None:
    answer(tmp_path, 1, 0, None)
    vector, is_lost = ClientStates(tmp_path).recall("run", (1, 0), SIZE + 1)
    assert is_lost
    assert vector.tolist() == [0.0] * (SIZE + 1)


def test_the_file_is_its_owners_alone_and_holds_two_states(tmp_path: Path) -> None:
    for number in range(1, 5):
        answer(tmp_path, number, 0, (number - 1, 0) if number > 1 else None)
    (path,) = tmp_path.iterdir()
    assert path.stat().st_mode & 0o777 == 0o600
    assert set(load_file(path)) == {"3.0", "4.0"}
    path.chmod(0o640)
    with pytest.raises(IdentityError, match=r"state-run\.safetensors: must be closed to group and others"):
        ClientStates(tmp_path)


def test_runs_have_their_own_states_and_the_last_one_outlives_the_others(tmp_path: Path) -> None:
    for run_id in ("a", "b", ".."):
        answer(tmp_path, 1, 0, None, run_id)
    expect(answer(tmp_path, 2, 0, (1, 0), "b"), -10)
    ClientStates(tmp_path).finish("b")
    assert [path.name for path in tmp_path.iterdir()] == ["state-b.safetensors"]
    expect(answer(tmp_path, 3, 0, (2, 0), "b"), -30)


def test_a_server_that_opens_run_after_run_does_not_fill_the_disk(tmp_path: Path) -> None:
    """What is dropped is lost, so all begin anew; the runs that were asked last go on."""
    for number in range(1, 4 * MAX_CANDIDATES):
        answer(tmp_path, number, 0, (number - 1, 0) if number > 1 else None, "loved")
        answer(tmp_path, 1, 0, None, f"{number:02}")
        assert len(list(tmp_path.iterdir())) <= MAX_CANDIDATES
    kept = {path.name for path in tmp_path.iterdir()}
    last = {f"state-{number:02}.safetensors" for number in range(3 * MAX_CANDIDATES + 1, 4 * MAX_CANDIDATES)}
    assert kept == {"state-loved.safetensors", *last}
    expect(answer(tmp_path, 2, 0, (1, 0), "01"), 0, is_lost=True)
    expect(answer(tmp_path, 2, 0, (1, 0), f"{4 * MAX_CANDIDATES - 1}"), -10)


def test_what_a_kill_left_half_written_goes_with_its_run(tmp_path: Path) -> None:
    write_private(tmp_path / ".writing-state-a.safetensors", b"half")
    answer(tmp_path, 1, 0, None, "b")
    ClientStates(tmp_path).finish("b")
    assert [path.name for path in tmp_path.iterdir()] == ["state-b.safetensors"]


def test_a_state_that_cannot_be_written_stops_the_answer_and_leaves_the_old_one(tmp_path: Path) -> None:
    answer(tmp_path, 1, 0, None)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (10, hard))
    try:
        with pytest.raises(ConfigError, match=r"^state: cannot be written on this node: File too large$"):
            answer(tmp_path, 2, 0, (1, 0))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    expect(answer(tmp_path, 2, 1, (1, 0)), -10)


def test_nothing_of_a_state_is_printed_with_a_recollection() -> None:
    shown = repr(Recollection(ControlVariates(2.0), NOTHING, np.full(SIZE, 0.123, np.float32), (1, 0), False))
    assert "0.123" not in shown
