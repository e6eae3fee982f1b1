"""An operator and four owners, as on a bad day, with what stands on everybody's screen; one of them comes by IPv6.

The fourth owner comes late, and its colleagues hold the older roster; two owners have bad text; the server was started
with --set and is killed; in the end the model is at the owners that wanted it.
"""

from __future__ import annotations

import json
import re
import socket
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.commands import run
from tests.end_to_end.conftest import Command, Site, run_ok

from agfl_models.files.store import load_model

CONFIG = """
seed: 3
num_rounds: 5
task: {type: language_modeling, sequence_length: 32}
model: {vocab_size: 259, dim: 16, layers: [{type: rnn, cell: mingru}, {type: ff}]}
training: {batch_size: 4, local_steps: 2}
evaluation: {every: 2, max_examples: 4}
"""
NAMES = ("alice", "bob", "carol", "dave")


def has_ipv6() -> bool:
    try:
        with socket.socket(socket.AF_INET6) as probe:
            probe.bind(("::1", 0))
    except OSError:
        return False
    return True


HOST, CAROLS_ADDRESS = ("::", "[::1]") if has_ipv6() else ("127.0.0.1", "localhost")  # of the server, to each


class Federation(Site):
    """Four owners with text of their own; three of them are admitted at first."""

    def prepare_owners(self) -> None:
        self.config.write_text(CONFIG)
        self.policy_file.write_text("runs: all\n")
        (self.folder / "texts").mkdir()
        run_ok("agfl-server", "init", self.federation, "--config", self.config)
        for name in NAMES:
            rows = ({"text": f"To be, or not to be, asks {name} for the {i}th time."} for i in range(80))
            self.text(name).write_text("".join(json.dumps(row) + "\n" for row in rows))
            run_ok("agfl-client", "keygen", name, "--keys", self.folder / "keys" / name)
        for name in NAMES[:3]:
            self.admit(name)

    def text(self, name: str) -> Path:
        return self.folder / "texts" / f"{name}.jsonl"

    def admit(self, name: str) -> None:
        public_file = self.folder / "keys" / name / f"{name}.pub"
        run_ok("agfl-server", "add-node", name, public_file, "--federation", self.federation)

    def write_roster(self, name: str) -> None:
        run_ok("agfl-server", "roster", self.folder / name, "--federation", self.federation)

    def owner(self, name: str, port: int, roster: str, *options: str | Path) -> Command:
        arguments = self.client_arguments(self.text(name), port, *options)
        with_roster = [self.folder / roster if part == self.folder / "roster.yaml" else part for part in arguments]
        if name == "carol":
            with_roster[with_roster.index("--server") + 1] = f"{CAROLS_ADDRESS}:{port}"
        return self.start(name, "agfl-client", *with_roster[: with_roster.index("--test-draws-from")])

    def last_rows(self) -> list[dict[str, float]]:
        path = self.federation / "run" / "metrics.jsonl"
        return [json.loads(line) for line in path.read_text().splitlines()]


@pytest.fixture
def federation(tmp_path: Path) -> Iterator[Federation]:
    found = Federation(tmp_path / "my federation")
    found.folder.mkdir()
    found.prepare_owners()
    yield found
    for command in found.commands:
        if command.process.poll() is None:
            command.kill()


def test_a_day_with_four_owners(federation: Federation) -> None:
    federation.write_roster("older.yaml")
    federation.admit("dave")
    federation.write_roster("roster.yaml")
    good = federation.text("bob").read_bytes()
    for name in ("alice", "bob"):
        federation.text(name).write_bytes(good.replace(b'"text"', b'"body"'))  # which the run's task does not have

    # Whose roster is older, or whose text is of no use, is left out by name on both sides, and ends nobody's run.
    server, port = federation.start_server("--host", HOST, "--set", "num_rounds=2")
    wants = ("--save-model", federation.folder / "models")
    kept_log = ("--log-file", federation.folder / "dave.log")
    old = federation.owner("carol", port, "older.yaml")
    owners = {name: federation.owner(name, port, "roster.yaml") for name in ("alice", "bob")}
    owners["dave"] = federation.owner("dave", port, "roster.yaml", "--save-model", wants[1] / "dave", *kept_log)
    held, asked = (rf"one of {number} owners \([a-z ]+ \.\.\.\)" for number in (3, 4))
    reason = rf"plan\.roster: must be this owner's, {held}; got {asked}, dave among them"
    old.wait_for(rf"your node takes no part in the run: {reason}; compare its 24 words with the other owners")
    server.wait_for(rf"carol refused: {reason}")
    for name in ("alice", "bob"):
        owners[name].wait_for(rf"your node takes no part in the run: data: .*{name}\.jsonl: .*text")
        server.wait_for(f"{name} refused: data: this owner's data cannot be used")
    server.wait_for(
        rf"not taking part: alice, bob \(data: this owner's data cannot be used\); carol \({reason} \[AGFL-PLAN-010\]\)"
    )
    assert server.process.poll() is None
    assert str(federation.folder) not in re.sub(r".*(listening|as this run).*", "", server.output())
    nodes = ("agfl-server", "nodes", "--federation", federation.federation, "--json")
    deadline, shown = time.monotonic() + 60, json.loads(run_ok(*nodes))
    while not all(row["software"] and row["last_seen"] for row in shown):  # it is written every few seconds
        assert time.monotonic() < deadline, shown
        shown = json.loads(run_ok(*nodes))
    assert [row["name"] for row in shown] == list(NAMES)

    # Mended text is read without a new start; carol takes the new roster.
    for name in ("alice", "bob"):
        federation.text(name).write_bytes(good)
    old.kill()
    owners["carol"] = federation.owner("carol", port, "roster.yaml", "--save-model", wants[1] / "carol")
    for name in ("alice", "bob"):
        owners[name].wait_for("your node takes part in the run again")
    server.wait_for("round 1 done")
    owners["dave"].wait_for(r"round 1 of \d+: trained on your \d+ rows, loss \d")
    owners["dave"].wait_for(r"your masked part of the sum: \d.* sent")

    # What was set outlives a killed server.
    server.kill()
    again, _ = federation.start_server("--host", HOST, "--resume", port=port)
    again.wait_for(r"as this run was started: --set num_rounds=2")
    assert again.wait() == 0, again.output()
    assert "round 2/2" in again.output()
    assert [row["round"] for row in federation.last_rows()] == [0, 1, 2]

    # The model is where it was wanted, and nowhere else.
    again.wait_for("these owners have the model now: carol, dave")
    assert [owner.wait(60) for owner in owners.values()] == [0, 0, 0, 0]
    for name in ("carol", "dave"):
        kept = wants[1] / name
        assert (kept / "model.safetensors").read_bytes() == federation.model
        load_model(kept)
        owners[name].wait_for(r"the model after round 2 is in .*: agfl-model describe '")
    assert re.search(r"(?m)^20\d\d-\d\d-\d\d .* the model after round 2 is in ", kept_log[1].read_text())
    assert {path.name for path in wants[1].iterdir()} == {"carol", "dave"}
    wrong = run("agfl-model", "describe", federation.federation)
    assert f"its model is in '{federation.federation}/run'" in wrong.stderr
