"""Without masks a simulation has the bits of the secure run, and its owners check what they would check in that."""

from __future__ import annotations

import html
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from flwr.app import ConfigRecord
from rich.console import Console
from tests.forked_workers import ForkedWorker
from tests.secagg_world import Half, exchange_id, round_request
from tests.simulations.killing import kill_in
from tests.simulations.run_result import result

from agfl_client.policy import Policy
from agfl_models.errors import ConfigError
from agfl_protocol.config.run_config import RunConfig, load_run_config
from agfl_protocol.messages import secure_wire
from agfl_protocol.secagg.errors import ProtocolViolation
from agfl_protocol.secagg.identity import SigningRoster
from agfl_protocol.secagg.messages import AgreeRequest
from agfl_server.rounds.observer import Observer
from agfl_sim.engines.inline_engine import InlineEngine
from agfl_sim.engines.processes_engine import ProcessesEngine
from agfl_sim.engines.unmasked import UnmaskedMember
from agfl_sim.engines.workers.exchange_log import ExchangeLog
from agfl_sim.engines.workers.messages import Request
from agfl_sim.run import check_masks, has_masks
from agfl_sim.whole_run import UNMASKED, run_all

SECURE = ("aggregation={type: secure, server_optimizer: {type: nesterov}, max_colluders: 1, min_cohort: 3}",)
NAMES = [f"owner-{i}" for i in range(6)]


def ledger(run: Path, name: str) -> list[dict[str, object]]:
    """What an owner's ledger says, without what is drawn anew for each run."""
    lines = [json.loads(line) for line in (run / "nodes" / name / "ledger.jsonl").read_text().splitlines()]
    drawn = ("run", "plan", "request", "hash", "time")
    return [{key: value for key, value in line.items() if key not in drawn} for line in lines]


def test_model_metrics_and_ledgers_are_those_of_the_secure_run(
    run_config: Callable[..., RunConfig], make_owners: Callable[..., Path], tmp_path: Path
) -> None:
    owners = sorted(make_owners(7).iterdir())  # two groups: the last evaluation is an exact sum
    for name, masks in (("masked", True), ("bare", False)):
        engine = InlineEngine(run_config("num_rounds=2", *SECURE), owners, simulate_masks=masks)
        engine.run(tmp_path / name, resume=False, observer=Observer())
    found = []
    for run in (tmp_path / "masked", tmp_path / "bare"):
        rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
        kept = [{key: row[key] for key in row if not key.startswith("bytes") and key != "seconds"} for row in rows]
        weights = (run / "model" / "model.safetensors").read_bytes()
        found.append((weights, kept, [ledger(run, path.stem) for path in owners]))
    assert found[0] == found[1]


def test_workers_add_up_the_same_though_one_is_killed_and_keep_nothing_of_an_exchange_that_is_over(
    run_config: Callable[..., RunConfig],
    make_owners: Callable[..., Path],
    tmp_path: Path,
    workers: list[ForkedWorker],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    config, owners = run_config("num_rounds=2", "training.local_steps=1", *SECURE), sorted(make_owners(4).iterdir())
    InlineEngine(config, owners, "cpu", simulate_masks=False).run(
        tmp_path / "inline", resume=False, observer=Observer()
    )
    genuine, under_way = ExchangeLog.answered, list[int]()

    def answered(self: ExchangeLog, kind: str, request: Request) -> None:
        genuine(self, kind, request)
        if kind == secure_wire.AGREE:
            under_way.append(request.node in self._nodes)

    monkeypatch.setattr(ExchangeLog, "answered", answered)
    killed = kill_in(monkeypatch, secure_wire.AGREE, lambda: workers[-1].kill())
    engine = ProcessesEngine(config, owners, "cpu", 2, simulate_masks=False)
    engine.run(tmp_path / "workers", resume=False, observer=Observer())
    assert len(killed) == 1
    assert set(under_way) == {False}
    assert result(tmp_path / "workers") == result(tmp_path / "inline")


def test_a_run_that_began_without_masks_goes_on_so_and_always_says_it(
    config_file: Path, make_owners: Callable[..., Path], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    console, owners, out = Console(quiet=True), make_owners(3), tmp_path / "run"
    for number, wanted in ((1, False), (2, None)):
        caplog.clear()
        settings = (*SECURE, f"num_rounds={number}", f"data.path={owners}")
        config = load_run_config(config_file, settings)
        run_all(config, out, console, engine="inline", resume=number == 2, simulate_masks=wanted)
        assert UNMASKED in caplog.messages
        assert UNMASKED in html.unescape((out / "report.html").read_text())


@pytest.fixture
def half(tmp_path: Path) -> Half:
    """A simulated owner, owner-1 of six, which has sent its vector."""
    keys = {name: Ed25519PrivateKey.generate() for name in NAMES}
    roster = SigningRoster({name: key.public_key() for name, key in keys.items()})
    member = UnmaskedMember("owner-1", keys["owner-1"], roster, Policy(max_colluders=1, min_cohort=3), tmp_path)
    half = Half(member, NAMES[:5])
    half.announce(round_request(max_cohort=4), np.ones(7, np.uint64))
    return half


@pytest.mark.parametrize(
    ("survivors", "rings", "line"),
    [
        (NAMES[:2], (1, 1), "must be at least 3"),
        (NAMES[2:5], (1, 1, 1), "must hold this client"),
        ([*NAMES[:3], NAMES[5]], (1, 1, 1, 1), "must be among the plan's draw"),
        ([NAMES[1], NAMES[0], NAMES[2]], (1, 1, 1), "must be sorted"),
        (NAMES[:5], (1,) * 5, "must be at most max_cohort = 4"),
        (NAMES[:4], (1, 1, 1, 2), "rings: exactly 2"),
    ],
)
def test_an_owner_refuses_a_sum_that_it_would_not_open(
    half: Half, survivors: list[str], rings: tuple[int, ...], line: str
) -> None:
    record = secure_wire.write_agree_request(AgreeRequest(exchange_id(), tuple(survivors)))
    record["rings"] = ConfigRecord({"rings": list(rings)})
    with pytest.raises(ProtocolViolation, match=line):
        half.member.agree(record)
    assert not half.member.ledger.has_left("run", 0)


def test_more_than_200_owners_have_no_masks_unless_somebody_wants_them(run_config: Callable[..., RunConfig]) -> None:
    secure = run_config(*SECURE)
    assert [has_masks(secure, count, None) for count in (200, 201)] == [True, False]
    assert [has_masks(secure, count, wanted) for count, wanted in ((1000, True), (3, False))] == [True, False]
    with pytest.raises(
        ConfigError, match=r"--no-simulate-masks: must be left out with aggregation.type plain, got False"
    ):
        check_masks(run_config(), False, "--no-simulate-masks")
