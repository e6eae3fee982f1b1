"""Owners that keep state: none is lost or counted twice, whoever is late, killed or started anew, and to the bit."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from flwr.app import Context, Error, Message
from flwr.clientapp import ClientApp
from numpy.typing import NDArray
from safetensors.numpy import load_file

from agfl_client.app import create_client_app
from agfl_client.node import Node
from agfl_client.policy import Policy
from agfl_client.training.trainer import BatchTrainer
from agfl_protocol.config.run_config import RunConfig, load_run_config
from agfl_protocol.identity.private_files import write_private
from agfl_protocol.local_trainer import LocalResult
from agfl_protocol.messages import wire
from agfl_protocol.methods.method import State
from agfl_protocol.methods.owner_states.owner_state import Used, used_in
from agfl_protocol.plans.client_plan import model_of
from agfl_protocol.randomness import OwnerRandomness
from agfl_server.app import run_federation
from agfl_server.rounds.checkpoint import load_checkpoint
from agfl_server.rounds.observer import Observer, Row
from agfl_server.rounds.state import ServerState
from agfl_server.search.search import CHOSEN_FILE
from agfl_sim.engines.grid import InProcessGrid
from agfl_sim.engines.inline_engine import InlineEngine

METHODS = {
    "scaffold": ("aggregation.server_optimizer={type: scaffold}", "aggregation.weighting=uniform"),
    "feddyn": ("aggregation.server_optimizer={type: feddyn, alpha: 0.3}", "aggregation.weighting=uniform"),
    "alignment": ("aggregation.weighting=alignment",),
}
with_state = pytest.mark.parametrize("method", ["scaffold", "feddyn"])
MakeConfig = Callable[..., RunConfig]


class PulledPlugError(BaseException):
    """Nothing in the product catches it."""


@dataclass
class Diary(Observer):
    """Notes what went wrong, and pulls the plug when round `ends_at` has its sum but is not saved yet."""

    ends_at: int = 0
    lost: list[int] = field(default_factory=list)
    failed: list[tuple[int, int]] = field(default_factory=list)
    diverged_owners: list[int] = field(default_factory=list)

    def remarked(self, line: str) -> None:
        self.lost.append(int(line.split()[0]))

    def diverged(self, owners: int) -> None:
        self.diverged_owners.append(owners)

    def repeated(self, round_number: int, exchange: int, reason: str) -> None:
        self.failed.append((round_number, exchange))

    def round_finished(self, row: Row) -> None:
        if row["round"] == self.ends_at:
            raise PulledPlugError


class DiesAfterWork(ClientApp):
    """A node that has trained and written its state, and then sends nothing, once at a round."""

    def __init__(self, app: ClientApp, number: int) -> None:
        super().__init__()
        self.app, self.number, self.was_dead = app, number, False

    def __call__(self, message: Message, context: Context) -> Message:
        if message.metadata.message_type != wire.TRAIN:
            return self.app(message, context)
        request = wire.RoundRequest.from_record(message.content)  # which the node empties
        reply = self.app(message, context)
        if request.round != self.number or self.was_dead:
            return reply
        self.was_dead = True
        return Message(Error(100, "killed"), reply_to=message)


def own_of(state: ServerState) -> State:
    """What the server keeps of the method."""
    (own,) = (own for name, own in state.methods.items() if name in METHODS)
    return own


def used_by(state: ServerState) -> tuple[Used, ...]:
    """The exchanges whose sums the model took in."""
    return used_in(own_of(state))


def last_used(state: ServerState) -> dict[str, int]:
    """The last exchange of each owner whose sum the model took in."""
    return {name: exchange for exchange, names in used_by(state) for name in names}


@dataclass
class Federation:
    """Four owners, whose nodes are started anew before each message."""

    root: Path
    owners: Path

    def run(self, name: str, config: RunConfig, diary: Diary | None = None, resume: bool = False) -> ServerState:
        apps = {}
        for i, path in enumerate(sorted(self.owners.iterdir()), start=1000):
            apps[i] = self.app(path, self.root / name / "nodes" / path.stem)
            if i == 1001:
                apps[i] = DiesAfterWork(apps[i], number=3)
        with InProcessGrid(apps, 1) as grid:
            return run_federation(
                grid,
                config,
                self.root / name,
                resume=resume,
                observer=diary or Diary(),
            )

    def app(self, path: Path, folder: Path) -> ClientApp:
        folder.mkdir(parents=True, exist_ok=True)
        policy, drawn = Policy(allow_plain=True, runs="all"), OwnerRandomness.of_seed(7, path.stem)
        return create_client_app(lambda _: Node(path.stem, path, "cpu", policy=policy, folder=folder, randomness=drawn))

    def model(self, name: str) -> bytes:
        return (self.root / name / "model" / "model.safetensors").read_bytes()

    def sum_of_states(self, name: str, state: ServerState, model: str = "") -> NDArray[np.float64]:
        """What all owners hold, by the exchanges that the server says it used; model: of which training, by name."""
        pattern = f"*/state-*{model}.safetensors"
        files = {f.parent.name: load_file(f) for f in (self.root / name / "nodes").glob(pattern)}
        held = [files[owner][str(exchange)] for owner, exchange in last_used(state).items()]
        return np.asarray(np.sum(held, axis=0, dtype=np.float64))


@pytest.fixture
def federation(make_owners: Callable[..., Path], tmp_path: Path) -> Federation:
    return Federation(tmp_path, make_owners(4))


@with_state
@pytest.mark.parametrize("cohort", ["aggregation.cohort_size=null", "aggregation.cohort_size=3"])
def test_the_server_has_the_sum_of_the_states_also_after_an_attempt_that_failed(
    method: str, cohort: str, federation: Federation, run_config: MakeConfig
) -> None:
    config = run_config("num_rounds=6", "aggregation.min_cohort=3", cohort, *METHODS[method])
    diary = Diary()
    state = federation.run("run", config, diary)
    assert not diary.lost
    found = federation.sum_of_states("run", state)
    scale = np.abs(own_of(state)["sum"]).max()
    assert scale > 0
    np.testing.assert_allclose(found, own_of(state)["sum"], atol=1e-5 * scale)
    assert len(last_used(state)) == 4, "each was drawn at some time"


@with_state
def test_the_server_has_the_sum_of_the_states_also_where_an_owner_diverged(
    method: str, federation: Federation, run_config: MakeConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    genuine, calls = BatchTrainer.train, itertools.count()

    def train(*args: Any, **kwargs: Any) -> LocalResult:
        result = genuine(*args, **kwargs)
        return replace(result, delta=result.delta * np.float32(np.nan)) if next(calls) == 5 else result

    monkeypatch.setattr(BatchTrainer, "train", train)
    diary = Diary()
    state = federation.run("run", run_config("num_rounds=4", "aggregation.min_cohort=3", *METHODS[method]), diary)
    assert diary.diverged_owners == [1]
    scale = np.abs(own_of(state)["sum"]).max()
    np.testing.assert_allclose(federation.sum_of_states("run", state), own_of(state)["sum"], atol=1e-5 * scale)


@with_state
def test_an_attempt_that_failed_after_a_state_was_written_changes_no_bit(
    method: str, federation: Federation, run_config: MakeConfig, tmp_path: Path
) -> None:
    config = run_config("num_rounds=5", "aggregation.min_cohort=4", *METHODS[method])
    diary = Diary()
    federation.run("failed", config, diary)
    assert diary.failed == [(3, 3)]
    InlineEngine(config, sorted(federation.owners.iterdir())).run(tmp_path / "whole", resume=False, observer=Observer())
    assert federation.model("failed") == federation.model("whole")


@pytest.mark.parametrize("method", METHODS)
def test_a_run_that_goes_on_ends_with_the_same_bits(
    method: str, federation: Federation, run_config: MakeConfig
) -> None:
    overrides = ("aggregation.min_cohort=3", "aggregation.cohort_size=3", *METHODS[method])
    config = run_config("num_rounds=5", *overrides)
    federation.run("whole", config)
    for number, ends_at in enumerate((2, 3)):
        with pytest.raises(PulledPlugError):
            federation.run("torn", config, Diary(ends_at), resume=number > 0)
    diary = Diary()
    federation.run("torn", config, diary, resume=True)
    assert not diary.lost
    assert federation.model("torn") == federation.model("whole")


@with_state
def test_a_run_that_is_made_longer_loses_no_state(method: str, federation: Federation, run_config: MakeConfig) -> None:
    overrides, diary = ("aggregation.min_cohort=3", "aggregation.cohort_size=3", *METHODS[method]), Diary()
    for number, length in enumerate((1, 3, 6)):
        state = federation.run("parts", run_config(f"num_rounds={length}", *overrides), diary, resume=number > 0)
    assert not diary.lost
    found = federation.sum_of_states("parts", state)
    np.testing.assert_allclose(found, own_of(state)["sum"], atol=1e-5 * np.abs(found).max())


@with_state
def test_an_owner_that_lost_its_state_is_noticed_and_all_begin_anew(
    method: str, federation: Federation, run_config: MakeConfig
) -> None:
    overrides = ("aggregation.min_cohort=4", *METHODS[method])
    diary = Diary()
    federation.run("run", run_config("num_rounds=2", *overrides), diary)
    (lost,) = (federation.root / "run" / "nodes" / "owner-02").iterdir()
    lost.unlink()
    state = federation.run("run", run_config("num_rounds=3", *overrides), diary, resume=True)
    assert diary.lost == [1]
    assert used_by(state) == ()
    assert not own_of(state)["sum"].any()
    state = federation.run("run", run_config("num_rounds=5", *overrides), diary, resume=True)
    assert diary.lost == [1]
    found = federation.sum_of_states("run", state)
    np.testing.assert_allclose(found, own_of(state)["sum"], atol=1e-5 * np.abs(found).max())


def test_secure_owners_keep_the_states_of_plain_ones(
    run_config: MakeConfig, federation: Federation, tmp_path: Path
) -> None:
    held = {}
    for kind in ("plain", "secure"):
        config = run_config("aggregation.min_cohort=3", f"aggregation.type={kind}", *METHODS["scaffold"])
        old = tmp_path / kind / "nodes" / "owner-00" / "state-old.safetensors"
        old.parent.mkdir(parents=True)
        write_private(old, b"what another run has left")
        InlineEngine(config, sorted(federation.owners.iterdir())).run(
            tmp_path / kind, resume=False, observer=Observer()
        )
        assert not old.exists(), "it goes when a run ends"
        files = sorted((tmp_path / kind / "nodes").glob("*/state-*.safetensors"))
        assert all(path.stat().st_mode & 0o777 == 0o600 for path in files)
        held[kind] = [{name: state.tobytes() for name, state in load_file(path).items()} for path in files]
        state = load_checkpoint(tmp_path / kind / "checkpoints", config.hash)
        assert used_by(state) == ((3, tuple(f"owner-{i:02}" for i in range(4))),)
    assert held["plain"] == held["secure"]
    assert len(held["plain"]) == 4


def test_candidates_of_a_search_keep_the_states_of_their_owners_while_others_have_their_turn(
    run_config: MakeConfig, federation: Federation, tmp_path: Path
) -> None:
    owners, diary = sorted(federation.owners.iterdir()), Diary()
    search = ("search={slate: [configured, mingru, gru, ff], rungs: [2, 2]}", "num_rounds=6")
    InlineEngine(run_config(*search, *METHODS["scaffold"]), owners).run(tmp_path / "run", resume=False, observer=diary)
    assert not diary.lost
    chosen = load_run_config(tmp_path / "run" / "search" / CHOSEN_FILE)
    state = load_checkpoint(tmp_path / "run" / "checkpoints", chosen.hash)
    found = federation.sum_of_states("run", state, model_of(chosen))
    np.testing.assert_allclose(found, own_of(state)["sum"], atol=1e-5 * np.abs(found).max())
