"""One owner lies in every round, in 32 ways: the run ends with a good model, or stops and keeps the last good one.

No honest owner is ever named as the liar: what cannot be proven is told of a whole group at most. One of five owners,
who are one group, and one of twelve, in three groups. The rounds before the lie are run once for all lies.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from safetensors.numpy import load_file
from tests.attacks.lies import LIES, Liar, other_rings

from agfl_client.app import create_client_app
from agfl_client.training.evaluation import evaluate
from agfl_models.errors import RoundError
from agfl_models.examples import TextRow, read_rows
from agfl_models.model.families import build_model
from agfl_models.tasks.evaluation import HeldOut
from agfl_protocol.config.run_config import RunConfig
from agfl_protocol.update import Layout
from agfl_server import app
from agfl_server.app import run_federation
from agfl_server.rounds.observer import Observer, Row
from agfl_server.transport import connected_nodes, messaging
from agfl_sim.engines.grid import InProcessGrid
from agfl_sim.engines.inline_engine import InlineEngine

LIAR, ROUNDS, SINCE = "owner-01", 5, 4
SECURE = (
    "aggregation={type: secure, max_colluders: 1, server_optimizer: {type: fedavg}}",
    "training.local_steps=6",
    f"num_rounds={ROUNDS}",
    "evaluation.every=3",
)


@dataclass
class Told(Observer):
    """What the operator is told."""

    refusals: list[tuple[str, str]] = field(default_factory=list)
    groups: list[tuple[str, ...]] = field(default_factory=list)
    lost: int = 0
    silences: list[str] = field(default_factory=list)
    kept_round: int | None = None
    lines: list[str] = field(default_factory=list)

    def refused(self, name: str, reason: str) -> None:
        self.refusals.append((name, reason))

    def suspected(self, names: Sequence[str]) -> None:
        self.groups.append(tuple(names))

    def repeated(self, round_number: int, exchange: int, reason: str) -> None:
        self.lost += 1
        self.lines.append(reason)

    def silent(self, names: Sequence[str]) -> None:
        self.silences += names

    def kept(self, round_number: int, folder: str) -> None:
        self.kept_round = round_number

    @property
    def named(self) -> set[str]:
        """Who was refused for what it sent: not for what another one sealed for it, nor for others of its group."""
        other = ("says that it cannot use what ", "group: must be there whole", "rings: exactly ")
        return {name for name, reason in self.refusals if not reason.startswith(other)}


@dataclass
class Copying(Told):
    """Keeps what an honest run has on the disk just before a liar would begin, as a kill would leave it."""

    folder: Path = field(kw_only=True)

    def round_finished(self, row: Row) -> None:
        if row["round"] == SINCE - 1:
            shutil.copytree(self.folder, before_the_lie(self.folder))


def before_the_lie(folder: Path) -> Path:
    """Return where the beginning of the honest run in `folder` is."""
    return folder.with_name(f"{folder.name}-begun")


@dataclass(frozen=True)
class Outcome:
    """How a run ended: `loss` of the model that it left, on the text of all owners, and with which line, if early."""

    loss: float
    told: Told
    line: str


class Lying(InlineEngine):
    """Real nodes in this process, one of which lies."""

    def lead(self, folder: Path, liar: Liar | None, observer: Observer, *, resume: bool) -> None:
        apps = {}
        for number, node in self._nodes(folder).items():
            app = create_client_app(node)
            apps[number] = liar.wrap(app) if liar is not None and node.name == LIAR else app
        with InProcessGrid(apps, num_workers=16) as grid:
            try:
                run, roster = folder / "run", self.roster
                run_federation(grid, self._config, run, resume=resume, observer=observer, roster=roster)
            finally:
                if liar is not None:
                    liar.over.set()


def loss_of(config: RunConfig, folder: Path, owners: Sequence[Path]) -> float:
    """Return the mean loss of the model in `folder` on the held-out text of the owners."""
    model, task = build_model(config.model, 0), config.build_task()
    Layout.of(model).load(model, Layout.of(model).flatten(model))
    weights = load_file(folder / "run" / "model" / "model.safetensors")
    layout = Layout.of(model)
    vector = layout.flatten(model)
    for name, place in zip(layout.names, layout.slices, strict=True):
        vector[place] = weights[name].ravel()
    layout.load(model, vector)
    sums = [evaluate(model, HeldOut(task, task.prepare(read_rows(path, TextRow)), 4, 64)) for path in owners]
    return sum(one["eval/nll"] for one in sums) / sum(one["eval/tokens"] for one in sums)


def run(
    config: RunConfig,
    owners: Sequence[Path],
    folder: Path,
    lie: Callable[[Liar], None] | None,
    patch: pytest.MonkeyPatch,
    honest: Path | None = None,
) -> Outcome:
    """Run a federation with one liar, or none: the whole, or what is after the beginning of the `honest` run."""
    if honest is not None:
        shutil.copytree(before_the_lie(honest), folder)
    patch.setattr(messaging, "_STRAGGLER_S", 0.5)
    patch.setattr(connected_nodes, "_WAKE_TIMEOUT_S", 0.2)
    patch.setattr(app, "_FINISH_TIMEOUT_S", 0.5)
    liar = None if lie is None else Liar(patch, len(owners), SINCE)
    if liar is not None and lie is not None:
        lie(liar)
    told, line = Told() if lie is not None else Copying(folder=folder), ""
    try:
        Lying(config, owners).lead(folder, liar, told, resume=honest is not None)
    except RoundError as error:
        line = str(error)
    return Outcome(loss_of(config, folder, owners), told, line)


@pytest.fixture(scope="module")
def honest() -> dict[int, tuple[float, Path]]:
    """The loss and the folder of an honest run, by the number of owners, once there is one."""
    return {}


@pytest.fixture
def tell(
    run_config: Callable[..., RunConfig],
    make_owners: Callable[[int], Path],
    tmp_path: Path,
    tmp_path_factory: pytest.TempPathFactory,
    monkeypatch: pytest.MonkeyPatch,
    honest: dict[int, tuple[float, Path]],
) -> Callable[[str, int], tuple[Outcome, float]]:
    """Run with one liar among so many owners; return how it ended, and the loss of the run without it."""

    def run_with(lie: str, count: int) -> tuple[Outcome, float]:
        config, owners = run_config(*SECURE), sorted(make_owners(count).glob("*.jsonl"))
        if count not in honest:
            folder = tmp_path_factory.mktemp("honest") / str(count)
            honest[count] = run(config, owners, folder, None, monkeypatch).loss, folder
        loss, folder = honest[count]
        return run(config, owners, tmp_path / "lying", LIES[lie], monkeypatch, folder), loss

    return run_with


def check(outcome: Outcome, loss: float) -> None:
    """What holds whatever the lie is."""
    told = outcome.told
    assert told.lost or told.named, "it was told"
    assert told.named <= {LIAR}
    assert all(LIAR in group and len(group) >= 4 for group in told.groups)
    if outcome.line:
        assert told.kept_round == SINCE - 2  # no good sum has said yet whether the next one is good
        assert outcome.loss < 3.0  # the first model has 5.7
    else:
        assert outcome.loss < loss + 0.2


OF_FIVE = [
    "canary",
    "diverged, all",
    "full fields",
    "matrix",
    "bad hashes",
    "rings",
    "strict",
    "garbage",
    "silent later",
]
OF_TWELVE = ["canary", "metrics", "wrong mask", "inconsistent", "random fields", "diverged, 2^20", "silent at first"]
STOPS = {"canary", "diverged, all", "full fields"}


@pytest.mark.parametrize("lie", OF_FIVE)
def test_attack_one_of_five_lies(lie: str, tell: Callable[[str, int], tuple[Outcome, float]]) -> None:
    """Five are one group, so nobody can be left out who is not proven: then the run stops with its last good model."""
    outcome, loss = tell(lie, 5)
    check(outcome, loss)
    assert bool(outcome.line) == (lie in STOPS)
    if lie == "canary":
        assert outcome.line.endswith("one of owner-00, owner-01, owner-02, owner-03, owner-04 [AGFL-ROUND-014]")


@pytest.mark.parametrize("lie", OF_TWELVE)
def test_attack_one_of_twelve_lies(lie: str, tell: Callable[[str, int], tuple[Outcome, float]]) -> None:
    """Twelve are three groups: the liar's is found, and the run ends as if it had not been there."""
    outcome, loss = tell(lie, 12)
    check(outcome, loss)
    assert not outcome.line
    assert outcome.told.lost <= 4


def test_attack_one_of_five_tells_others_a_false_number_of_rings(
    run_config: Callable[..., RunConfig],
    make_owners: Callable[[int], Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The next exchange trains one ring alone, of which all know who fills it: whoever says otherwise is proven."""
    config = run_config(*SECURE, "elastic={widths: [0.5, 1.0]}")
    outcome = run(config, sorted(make_owners(5).glob("*.jsonl")), tmp_path / "lying", other_rings, monkeypatch)
    assert not outcome.line
    assert outcome.told.named == {LIAR}
    assert outcome.told.lost == 2
