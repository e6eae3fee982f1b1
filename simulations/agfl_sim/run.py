"""A whole federation on one machine: the server's and the clients' own code, joined by a Grid of the chosen engine."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from itertools import takewhile
from pathlib import Path
from typing import Protocol

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from agfl_client.app import create_client_app
from agfl_client.approval.approvals import Approvals
from agfl_client.ledger.ledger_file import LEDGER_FILE
from agfl_client.node import Node
from agfl_client.policy import Policy
from agfl_client.secure.secure_member import SecureMember
from agfl_client.training.device import AUTO, choose_device
from agfl_models.errors import ConfigError
from agfl_models.files.durable_files import write_atomically
from agfl_models.machine import usable_cpus
from agfl_models.validation import nearest
from agfl_protocol.config.run_config import RunConfig
from agfl_protocol.flower_settings import prepare_flower
from agfl_protocol.randomness import OwnerRandomness
from agfl_protocol.secagg.identity import SigningRoster
from agfl_server.app import refuse_run, run_federation
from agfl_server.rounds.checkpoint import last_exchange
from agfl_server.rounds.journal import Journal
from agfl_server.rounds.observer import Observer
from agfl_server.run.run_folder import RunFolder
from agfl_server.run.settings import write_settings
from agfl_server.run.sittings import SittingLog
from agfl_sim.engines.grid import InProcessGrid
from agfl_sim.engines.ray_engine import RayEngine
from agfl_sim.partition import Owners, device_widths, owners_of

OWNERS_FOLDER, NODES_FOLDER = "owners", "nodes"
_NO_LIMIT_S = 1e9  # of a round: the researcher has asked for it
_NO_LIMIT = 10**15


class Engine(Protocol):
    """Where the clients of one run work. It is made before the owners' files are, and refuses what it cannot run."""

    @property
    def roster(self) -> SigningRoster | None:
        """The owners' signing keys, where nodes keep any."""
        ...

    def run(self, folder: Path, *, resume: bool, observer: Observer, sitting: SittingLog | None = None) -> None:
        """Run the federation to its last round."""
        ...


class InlineEngine:
    """This process: one node an owner, as many at a time as there are processors."""

    def __init__(self, config: RunConfig, owners: Sequence[Path], device: str = AUTO) -> None:
        """Say early what no node would take part in, since the run would wait for it.

        Raises:
            ConfigError: the device is not there, or `data.max_widths` does not name one an owner.
            AgflError: the model is more than a node holds, or the pretrained one is not there.
        """
        self._config, self._owners, self._device = config, owners, choose_device(device)
        self._widths = device_widths(config, len(owners))
        known = config.with_pretrained(config.pretrained, "model.folder").client_plan
        for width in set(self._widths):
            self._policy(width).tier(known)
        self._keys = {path.stem: Ed25519PrivateKey.generate() for path in owners}
        self.roster = SigningRoster({name: key.public_key() for name, key in self._keys.items()})

    def run(self, folder: Path, *, resume: bool, observer: Observer, sitting: SittingLog | None = None) -> None:
        """Run the federation to its last round; raises as `run_federation`."""
        if resume:
            self._forget_exchange(folder)  # before the nodes read their ledgers
        nodes = {
            i: create_client_app(self._node(path, width, folder / NODES_FOLDER / path.stem))
            for i, (path, width) in enumerate(zip(self._owners, self._widths, strict=True), start=1000)
        }
        with InProcessGrid(nodes, num_workers=usable_cpus(), waits_for_all=True) as grid:
            run_federation(
                grid,
                self._config,
                folder,
                resume=resume,
                observer=observer,
                roster=self.roster,
                sitting=sitting,
            )

    def _forget_exchange(self, folder: Path) -> None:
        """Take back the exchange that ended with the process: its clients did too, and nothing left either."""
        journal, learned = Journal(folder), RunFolder(folder)
        if not journal.is_begun:
            return
        if self._config.search is not None:
            learned = RunFolder(learned.search)
        if not learned.has_tokenizer(self._config):
            journal.begin(journal.run_id)
        trained = (RunFolder(folder).checkpoints, *sorted(RunFolder(folder).search.glob("*/checkpoints")))
        last = journal.take_back(max(map(last_exchange, trained)))
        for path in self._owners:
            ledger = folder / NODES_FOLDER / path.stem / LEDGER_FILE
            if ledger.exists():
                write_atomically(ledger, _lines_up_to(ledger.read_bytes(), last), mode=0o600)

    def _policy(self, max_width: float) -> Policy:
        """Return an owner's policy. The researcher owns all text, so a plain run is permitted if that is chosen."""
        aggregation = self._config.aggregation
        is_secure = aggregation.type == "secure"
        return Policy(
            min_cohort=aggregation.min_cohort if is_secure else None,
            max_colluders=aggregation.max_colluders if is_secure else None,
            allow_plain=not is_secure,
            runs="all",
            max_parameters=_NO_LIMIT,
            max_width=max_width,
            max_seconds_per_round=_NO_LIMIT_S,
            plugins=tuple(plugin.name for plugin in self._config.plugins),
        )

    def _node(self, path: Path, max_width: float, folder: Path) -> Node:
        """Return an owner's node."""
        name, policy = path.stem, self._policy(max_width)
        folder.mkdir(parents=True, exist_ok=True)
        is_secure = self._config.aggregation.type == "secure"
        member = SecureMember(name, self._keys[name], self.roster, policy, folder) if is_secure else None
        return Node(
            name,
            path,
            self._device,
            pretrained=self._config.pretrained,
            policy=policy,
            member=member,
            folder=folder,
            randomness=OwnerRandomness.of_seed(self._config.seed, name),
            approvals=Approvals(folder, policy, "simulation"),
        )


def _lines_up_to(ledger: bytes, last: int) -> bytes:
    """Return a ledger's lines before the first one of a later exchange than `last`."""
    kept = takewhile(lambda line: json.loads(line).get("exchange", 0) <= last, ledger.splitlines(keepends=True))
    return b"".join(kept)


ENGINES: dict[str, Callable[[RunConfig, Sequence[Path], str], Engine]] = {"inline": InlineEngine, "ray": RayEngine}


def check_engine(engine: str, field: str) -> None:
    """Raise ConfigError unless there is such an engine; field: what a person calls it."""
    if engine not in ENGINES:
        raise ConfigError("AGFL-CONFIG-083", f"{field}: unknown engine {engine!r}{nearest(engine, list(ENGINES))}")


def simulate(
    config: RunConfig,
    folder: Path,
    engine: str,
    resume: bool,
    observer: Observer,
    device: str = AUTO,
    tell: Callable[[str], None] = lambda line: None,
    settings: Sequence[str] = (),
    sitting: SittingLog | None = None,
    owners: Owners | None = None,
) -> list[Path]:
    """Divide the data into owners and run the federation to its last round, leaving everything in `folder`.

    Return the owners' files. device: where they train, "auto" or a PyTorch device. `tell` takes lines on what was read
    of a person's own; settings: what `--set` changed, for a run that goes on; sitting: of the command, begun once
    nothing refuses the run. owners: where somebody has divided the data already.

    Raises:
        AgflError: one line for a person.
    """
    prepare_flower()
    owners = owners or owners_of(config, folder / OWNERS_FOLDER)
    chosen = ENGINES[engine](config, owners.files, device)
    refuse_run(config, folder, resume=resume, roster=chosen.roster, num_owners=len(owners.files))
    owners.write(is_new=not resume)
    for line in owners.notes:
        tell(line)
    write_settings(folder, settings)
    chosen.run(folder, resume=resume, observer=observer, sitting=sitting)
    return owners.files
