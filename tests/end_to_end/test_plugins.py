"""A user's own model and task as a plug-in, over three real clients; who has not enabled it, or another, learns why."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from tests.commands import run
from tests.end_to_end.conftest import Command, Site, run_ok
from tests.plugin_files import EXAMPLES, install_digits

CONFIG = """
seed: 3
plugins: [agfl-digits]
num_rounds: 4
task: {type: digits}
model: {family: mlp}
training: {local_steps: 60}
evaluation: {every: 4}
"""
POLICY = "runs: all\n"
NAMES = ("alice", "bob", "carol")


class Federation(Site):
    """Three owners of handwritten digits, and the policies with and without the plug-in."""

    def prepare_owners(self) -> None:
        self.config.write_text(CONFIG)
        self.policy_file.write_text(f"{POLICY}plugins: [agfl-digits]\ntasks: [digits]\n")
        self.disabled.write_text(POLICY)
        (self.folder / "data").mkdir()
        table = np.loadtxt(EXAMPLES / "digits.csv.gz", delimiter=",")
        for i, name in enumerate(NAMES):
            rows = ({"pixels": line[:-1].tolist(), "digit": int(line[-1])} for line in table[i::3])
            self.data(name).write_text("".join(json.dumps(row) + "\n" for row in rows))
        self.make_federation(NAMES)

    @property
    def disabled(self) -> Path:
        return self.folder / "disabled.yaml"

    def data(self, name: str) -> Path:
        return self.folder / "data" / f"{name}.jsonl"


@pytest.fixture
def federation(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Federation]:
    monkeypatch.setenv("PYTHONPATH", str(install_digits(tmp_path / "site")))
    federation = Federation(tmp_path)
    federation.prepare_owners()
    yield federation
    for command in federation.commands:
        if command.process.poll() is None:
            command.kill()


def test_an_own_model_learns_over_three_clients_once_all_have_enabled_the_same_plugin(
    federation: Federation, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    server, port = federation.start_server()
    clients = [federation.start_client(federation.data(name), port) for name in NAMES[:2]]

    # Carol has it installed, but has not enabled it.
    carol = federation.start_client(federation.data("carol"), port, "--policy", federation.disabled)
    refused(
        server,
        carol,
        r"agfl-digits 0\.1\.0 \(files \w{12}\) must be enabled by the policy here, got it disabled",
        "221",
    )
    carol.kill()

    # Now she has, but of another version, with other files.
    with monkeypatch.context() as context:
        context.setenv("PYTHONPATH", str(install_digits(tmp_path / "other", version="0.2.0", more="\n# newer\n")))
        carol = federation.start_client(federation.data("carol"), port)
    refused(server, carol, r"must be agfl-digits 0\.1\.0 \(files \w{12}\) here, too, got 0\.2\.0 \(\w{12}\)", "222")
    carol.kill()

    clients.append(federation.start_client(federation.data("carol"), port))
    assert [server.wait(), *(client.wait() for client in clients)] == [0] * 4, server.output()
    last = json.loads((federation.federation / "run" / "metrics.jsonl").read_text().splitlines()[-1])
    assert (last["clients"], last["round"]) == (3, 4)
    assert last["eval/accuracy"] >= 0.95

    model = federation.federation / "run"
    without = run("agfl-model", "describe", model)
    assert (without.returncode, without.stdout) == (2, "")
    assert without.stderr.endswith("got it disabled [AGFL-CONFIG-219]\n")
    assert "4,810" in run_ok("agfl-model", "--plugin", "agfl-digits", "describe", model)


def refused(server: Command, client: Command, reason: str, code: str) -> None:
    """Check that both sides say why, in one line each; the owner's own screen says what to do, too."""
    told = client.wait_for(rf"your node takes no part in the run: .*{reason}.*\[AGFL-CONFIG-{code}\]").group()
    assert "agfl-client policy" in told
    line = server.wait_for(rf"carol refused: .*{reason}.*\[AGFL-CONFIG-{code}\]").group()
    assert not re.search("own_model_on_digits|/", line)  # a path, or what the code is called


def test_an_owner_sees_what_is_installed_and_what_a_run_sums_up_before_it_is_enabled(federation: Federation) -> None:
    shown = run_ok("agfl-client", "policy")
    assert re.search(
        r"  agfl-digits 0\.1\.0 \(files \w{12}\): agfl.models mlp, agfl.tasks digits: not enabled\n", shown
    )
    asked = ("agfl-client", "policy", "--run", federation.config)
    assert "AGFL-CONFIG-270" in run(*asked).stderr
    permitted = ("--policy", federation.policy_file)
    assert "digits: enabled\n" in run_ok("agfl-client", "policy", *permitted)
    shown = run_ok(*asked, *permitted)
    assert "  task: train/loss_sum, train/examples (at most 960), eval/loss_sum, eval/examples, eval/right, " in shown
    assert "  clipping: clip/clipped (at most 1), clip/above_1 to clip/above_2 (at most 1)\n" in shown
