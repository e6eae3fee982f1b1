"""Real processes: a server and its clients, over TLS on loopback, with the commands a person would type."""

from __future__ import annotations

import re
import shutil
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import yaml
from tests.commands import Started, run

from agfl_client import keys
from agfl_protocol.identity.roster_file import write_roster
from agfl_server.federation import federation_folder

CONFIG = """
seed: 3
num_rounds: 5
task: {type: language_modeling, sequence_length: 32}
model:
  vocab_size: 259
  dim: 16
  layers:
    - {type: attention, num_heads: 2}
    - {type: ff}
    - {type: rnn, cell: mingru}
training: {batch_size: 4, local_steps: 2}
aggregation: {server_optimizer: {type: auto, every: 2}} # the server carries most from round to round
evaluation: {every: 2, max_examples: 4}
data: {partition: grouped, num_owners: 3}
"""
# Nodes carry some, too.
WITH_STATES = CONFIG.replace("{type: auto, every: 2}", "{type: scaffold}, weighting: uniform").replace("s: 5", "s: 4")
# The real client, but for the moment at which it dies: where it is asked for the trip, the first time or the second.
DIES_IN_TRIP = """
import os, signal, sys
from agfl_client.secure.secure_member import SecureMember

trip, left = sys.argv.pop(1), [int(sys.argv.pop(1))]
genuine = getattr(SecureMember, trip)
def answer(*arguments):
    left[0] -= 1
    return genuine(*arguments) if left[0] else os.kill(os.getpid(), signal.SIGKILL)
setattr(SecureMember, trip, answer)
from agfl_client.cli import main
main()
"""


def run_ok(*arguments: str | Path) -> str:
    """Run one of our commands, which must succeed; return its output."""
    done = run(*arguments)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@dataclass
class Command:
    """A command running in the background, its output in a file."""

    process: Started
    log: Path

    def wait(self, timeout_s: float = 240) -> int:
        """Return the exit code."""
        return self.process.wait(timeout_s)

    def kill(self) -> None:
        """kill -9."""
        self.process.kill()
        self.process.wait()

    def output(self) -> str:
        """What it printed so far."""
        return self.log.read_text()

    def wait_for(self, pattern: str, timeout_s: float = 120) -> re.Match[str]:
        """Wait until a line matches `pattern`."""
        deadline = time.monotonic() + timeout_s
        while time.monotonic() < deadline:
            if match := re.search(pattern, self.output()):
                return match
            if self.process.poll() is not None and not re.search(pattern, self.output()):
                break
            time.sleep(0.02)
        raise AssertionError(f"no {pattern!r} in:\n{self.output()}")


@dataclass
class Site:
    """A folder with a federation of three owners, and the processes started in it."""

    folder: Path
    commands: list[Command] = field(default_factory=list)

    @property
    def federation(self) -> Path:
        return self.folder / "federation"

    @property
    def config(self) -> Path:
        return self.folder / "run.yaml"

    @property
    def owners(self) -> list[Path]:
        return sorted((self.folder / "owners").glob("*.jsonl"))

    def run_ok(self, *arguments: str | Path) -> None:
        """Run one of our commands, which must succeed."""
        run_ok(*arguments)

    def start(self, label: str, *arguments: str | Path) -> Command:
        """Start one of our commands in the background."""
        log = self.folder / f"{label}-{len(self.commands)}.log"
        log.touch()
        self.commands.append(Command(Started(*arguments, log=log), log))
        return self.commands[-1]

    def start_server(self, *options: str, port: int = 0) -> tuple[Command, int]:
        """Start the server; return it and the port it listens on."""
        server = self.start(
            "server", "agfl-server", "start", "--federation", self.federation, "--port", str(port), *options
        )
        return server, int(server.wait_for(r"listening on \S+ port (\d+)").group(1))

    def start_client(
        self,
        owner: Path,
        port: int,
        *options: str | Path,
        keys: Path | None = None,
        ca: Path | None = None,
        roster: bool = True,
    ) -> Command:
        """Start an owner's client; it leaves when the run ends."""
        arguments = self.client_arguments(owner, port, *options, keys=keys, ca=ca, roster=roster)
        return self.start(owner.stem, "agfl-client", *arguments)

    def start_until_killed(self, owner: Path, port: int, trip: str, time: int = 1) -> None:
        """Start an owner's client, and wait until it was killed in that trip of a sum, at this time of its life."""
        script = self.folder / "dying.py"
        script.write_text(DIES_IN_TRIP)
        dying = self.start("dying", script, trip, str(time), *self.client_arguments(owner, port))
        assert dying.wait() == -9, dying.output()

    def client_arguments(
        self,
        owner: Path,
        port: int,
        *options: str | Path,
        keys: Path | None = None,
        ca: Path | None = None,
        roster: bool = True,
    ) -> tuple[str | Path, ...]:
        """Return the arguments with which an owner starts the client."""
        server = ("--server", f"127.0.0.1:{port}", "--ca", ca or self.federation / "ca.pem")
        own = ("--keys", keys or self.folder / "keys" / owner.stem, "--data", owner)
        # Nodes draw what the simulation draws, so that the two can be compared to the last bit.
        draws = ("--test-draws-from", str(yaml.safe_load(self.config.read_text())["seed"]))
        rules = ("--policy", self.policy_file, *(("--roster", self.folder / "roster.yaml") if roster else ()))
        return ("start", *server, *own, *rules, *options, "--once", *draws)

    @property
    def policy_file(self) -> Path:
        """All owners' policy."""
        return self.folder / "policy.yaml"

    def prepare(self, config: str, *overrides: str) -> None:
        """Write the owners' data, make and admit everybody's keys, write the roster, and simulate the same run."""
        self.config.write_text(config)
        self.policy_file.write_text("runs: all")
        run_ok("agfl-simulate", self.config, "--export-owners", self.folder / "owners")
        for path in (self.folder / "owners").iterdir():  # a few rows are as good here, and each process reads them
            path.write_text("".join(path.read_text("utf-8").splitlines(keepends=True)[:200]), "utf-8")
        self.make_federation([owner.stem for owner in self.owners])
        simulated = ("--output", self.folder / "simulated", "--set", f"data.path={self.folder / 'owners'}")
        run_ok("agfl-simulate", self.config, *simulated, *(part for value in overrides for part in ("--set", value)))

    def make_federation(self, names: Iterable[str]) -> None:
        """Make and admit everybody's keys, and the roster; test_four_owners.py does so by the commands."""
        federation_folder.init(self.federation, self.config.read_text(), [])
        for name in names:
            federation_folder.add_node(self.federation, name, keys.generate(name, self.folder / "keys" / name))
        write_roster(self.folder / "roster.yaml", federation_folder.load(self.federation).nodes)

    @property
    def model(self) -> bytes:
        """The weights that the federation ended with."""
        return (self.federation / "run" / "model" / "model.safetensors").read_bytes()

    @property
    def simulated_model(self) -> bytes:
        """The weights that the simulation of the same owners ended with."""
        return (self.folder / "simulated" / "model" / "model.safetensors").read_bytes()


@pytest.fixture(scope="session")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three owners of Shakespeare roles with their keys, a federation that admits them, and its simulation."""
    site = Site(tmp_path_factory.mktemp("prepared"))
    site.prepare(WITH_STATES)
    return site.folder


@pytest.fixture
def site(prepared: Path, tmp_path: Path) -> Iterator[Site]:
    """A copy of the prepared federation; what a test starts in it is ended with the test."""
    site = Site(tmp_path / "site")
    shutil.copytree(prepared, site.folder)
    yield site
    for command in site.commands:
        if command.process.poll() is None:
            command.kill()
