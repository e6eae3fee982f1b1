"""The owners of a simulation as plain data, which any process can make their nodes of."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import takewhile
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from agfl_client.approval.approvals import Approvals
from agfl_client.ledger.ledger_file import LEDGER_FILE
from agfl_client.node import Node
from agfl_client.policy import Policy
from agfl_client.secure.secure_member import SecureMember
from agfl_client.training.device import choose_device
from agfl_models.files.durable_files import write_atomically
from agfl_protocol.config.run_config import RunConfig
from agfl_protocol.local_trainer import LocalTrainer
from agfl_protocol.randomness import OwnerRandomness
from agfl_protocol.secagg.draws import OS_DRAWS, Draws
from agfl_protocol.secagg.identity import SigningRoster
from agfl_server.aggregation.secure_sum import SecureSum
from agfl_server.app import SecureSumOf
from agfl_server.rounds.checkpoint import last_exchange
from agfl_server.rounds.journal import Journal
from agfl_server.run.run_folder import RunFolder
from agfl_sim.engines.unmasked import UnmaskedMember, UnmaskedSum
from agfl_sim.partition import device_widths
from agfl_sim.population import Population
from agfl_sim.virtual_time.devices import Device, devices_of

NODES_FOLDER = "nodes"
_FIRST_ID = 1000
_NO_LIMIT_S = 1e9  # of a round: the researcher has asked for it
_NO_LIMIT = 10**15


@dataclass(frozen=True)
class SimulatedOwner:
    """One owner. max_width: of the widest model that its device holds; key: its private signing key, 32 bytes."""

    path: Path
    max_width: float
    key: bytes = field(repr=False)

    @property
    def name(self) -> str:
        """The owner's NAME."""
        return self.path.stem


@dataclass(frozen=True)
class OwnersOfPopulation(Mapping[int, SimulatedOwner]):
    """A population's owners by node id, each made when it is looked at; secrets: keys by number, or none."""

    population: Population
    secrets: tuple[bytes, ...] = field(repr=False)

    def __getitem__(self, number: int) -> SimulatedOwner:
        place = number - _FIRST_ID
        return SimulatedOwner(self.population.file_of(place), 1.0, self.secrets[place] if self.secrets else b"")

    def __iter__(self) -> Iterator[int]:
        return iter(self.ids)

    def __len__(self) -> int:
        return len(self.population.names)

    @property
    def ids(self) -> range:
        """Every node's, in the order of the names."""
        return range(_FIRST_ID, _FIRST_ID + len(self))


@dataclass(frozen=True)
class SimulatedOwners:
    """Owners by node id, and what they have in common.

    roster: the public signing keys of all owners of the run, also of those that are not here. min_cohort,
    max_colluders: of every owner's policy where sums are secure. simulate_masks: whether sums that are secure have the
    masks that they would have in a deployment.
    """

    owners: Mapping[int, SimulatedOwner]
    roster: Mapping[str, bytes]
    device: str
    seed: int
    pretrained: Path | None
    is_secure: bool
    min_cohort: int | None
    max_colluders: int | None
    plugins: tuple[str, ...]
    simulate_masks: bool = True
    _policies: dict[float, Policy] = field(default_factory=dict, init=False, repr=False, compare=False)  # by width

    @staticmethod
    def of(
        config: RunConfig, files: Sequence[Path] | Population, device: str, *, simulate_masks: bool = True
    ) -> SimulatedOwners:
        """Say early what no node would take part in, since the run would wait for it.

        Owners of a population have keys only where sums are secure, and files once they are looked at.

        Raises:
            ConfigError: the device is not there, or `data.max_widths` does not name one an owner.
            AgflError: the model is more than a node holds, or the pretrained one is not there.
        """
        device, widths, is_secure = choose_device(device), [1.0], config.aggregation.type == "secure"
        owners: Mapping[int, SimulatedOwner]
        if isinstance(files, Population):
            names = files.names if is_secure else ()
            keys = [Ed25519PrivateKey.generate() for _ in names]
            owners = OwnersOfPopulation(files, tuple(key.private_bytes_raw() for key in keys))
        else:
            names, widths = [path.stem for path in files], device_widths(config, len(files))
            keys = [Ed25519PrivateKey.generate() for _ in names]
            owners = {
                number: SimulatedOwner(path, width, key.private_bytes_raw())
                for number, (path, width, key) in enumerate(zip(files, widths, keys, strict=True), start=_FIRST_ID)
            }
        made = SimulatedOwners(
            owners=owners,
            roster={name: key.public_key().public_bytes_raw() for name, key in zip(names, keys, strict=True)},
            device=device,
            seed=config.seed,
            pretrained=config.pretrained,
            is_secure=is_secure,
            min_cohort=config.aggregation.min_cohort,
            max_colluders=config.aggregation.max_colluders,
            plugins=tuple(plugin.name for plugin in config.plugins),
            simulate_masks=simulate_masks,
        )
        known = config.with_pretrained(config.pretrained, "model.folder").client_plan
        for width in set(widths):
            made.policy(width).tier(known)
        return made

    def only(self, ids: Iterable[int]) -> SimulatedOwners:
        """Return the same with some of the owners."""
        return replace(self, owners={number: self.owners[number] for number in ids})

    @property
    def secure_sum(self) -> SecureSumOf:
        """What adds up the vectors of these owners where sums are secure."""
        return SecureSum if self.simulate_masks else UnmaskedSum

    @property
    def signing_roster(self) -> SigningRoster:
        """The signing keys of all owners of the run."""
        return SigningRoster({name: Ed25519PublicKey.from_public_bytes(key) for name, key in self.roster.items()})

    def policy(self, max_width: float) -> Policy:
        """Return an owner's policy. The researcher owns all text, so a plain run is permitted if that is chosen."""
        if max_width not in self._policies:  # the machine is asked for its memory
            self._policies[max_width] = Policy(
                min_cohort=self.min_cohort if self.is_secure else None,
                max_colluders=self.max_colluders if self.is_secure else None,
                allow_plain=not self.is_secure,
                runs="all",
                max_parameters=_NO_LIMIT,
                max_width=max_width,
                max_seconds_per_round=_NO_LIMIT_S,
                plugins=self.plugins,
            )
        return self._policies[max_width]

    def devices(self, config: RunConfig) -> dict[int, Device]:
        """Return the owners' devices, in virtual time; none where the run names none. Raises as `devices_of`."""
        if config.data.devices is None:
            return {}
        found = devices_of(config.data.devices, self.seed, [owner.name for owner in self.owners.values()])
        return {number: found[owner.name] for number, owner in self.owners.items()}

    def node(
        self,
        number: int,
        roster: SigningRoster,
        run: Path,
        draws: Draws = OS_DRAWS,
        trainer: LocalTrainer | None = None,
    ) -> Node:
        """Return the node of one owner; roster: `signing_roster`, which takes time to make. Raises as `Node`."""
        owner = self.owners[number]
        name, policy, folder = owner.name, self.policy(owner.max_width), run / NODES_FOLDER / owner.name
        folder.mkdir(parents=True, exist_ok=True)
        member = None
        if self.is_secure:
            key, kind = Ed25519PrivateKey.from_private_bytes(owner.key), SecureMember
            if not self.simulate_masks:
                kind = UnmaskedMember
            member = kind(name, key, roster, policy, folder, draws)
        return Node(
            name,
            owner.path,
            self.device,
            pretrained=self.pretrained,
            policy=policy,
            member=member,
            folder=folder,
            randomness=OwnerRandomness.of_seed(self.seed, name),
            approvals=Approvals(folder, policy, "simulation"),
            trainer=trainer,
        )


def forget_exchange(config: RunConfig, names: Iterable[str], folder: Path) -> None:
    """Take back the exchange that ended with the process: its clients did too, and nothing left either."""
    journal, learned = Journal(folder), RunFolder(folder)
    if not journal.is_begun:
        return
    if config.search is not None:
        learned = RunFolder(learned.search)
    if not learned.has_tokenizer(config):
        journal.begin(journal.run_id)
    trained = (RunFolder(folder).checkpoints, *sorted(RunFolder(folder).search.glob("*/checkpoints")))
    last = journal.take_back(max(map(last_exchange, trained)))
    for name in names:
        ledger = folder / NODES_FOLDER / name / LEDGER_FILE
        if ledger.exists():
            write_atomically(ledger, _lines_up_to(ledger.read_bytes(), last), mode=0o600)


def _lines_up_to(ledger: bytes, last: int) -> bytes:
    """Return a ledger's lines before the first one of a later exchange than `last`."""
    kept = takewhile(lambda line: json.loads(line).get("exchange", 0) <= last, ledger.splitlines(keepends=True))
    return b"".join(kept)


def size_of(path: Path) -> int:
    """Return the bytes of an owner's file or folder."""
    files = [path] if path.is_file() else path.rglob("*")
    return sum(file.stat().st_size for file in files if file.is_file())
