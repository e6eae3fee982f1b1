"""A whole federation on one machine: the server's and the clients' own code, joined by a Grid of the chosen engine."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from agfl_client.app import OWNERS_VARIABLE, PRETRAINED_VARIABLE, create_client_app
from agfl_client.node import Node
from agfl_client.policy import Policy
from agfl_client.secure_member import SecureMember
from agfl_models.errors import AgflError, ConfigError
from agfl_protocol.drift import drift_of
from agfl_protocol.flower_settings import prepare_flower
from agfl_protocol.run_config import RunConfig
from agfl_protocol.secagg.identity import SigningRoster
from agfl_server.app import refuse_run, run_federation
from agfl_server.observer import Observer
from agfl_sim.grid import InProcessGrid
from agfl_sim.partition import device_widths, owners_of

Engine = Callable[[RunConfig, Sequence[Path], Path, bool, Observer], None]
OWNERS_FOLDER, NODES_FOLDER = "owners", "nodes"


def run_inline(config: RunConfig, owners: Sequence[Path], folder: Path, resume: bool, observer: Observer) -> None:
    """Run in this process: one node an owner, as many at a time as there are processors."""
    keys = _new_keys(owners)
    roster = _roster_of(keys)
    widths = device_widths(config, len(owners))
    nodes = {
        i: create_client_app(_node(path, config, width, keys[path.stem], roster, folder / NODES_FOLDER))
        for i, (path, width) in enumerate(zip(owners, widths, strict=True), start=1000)
    }
    with InProcessGrid(nodes, num_workers=os.cpu_count() or 1) as grid:
        run_federation(grid, config, folder, resume=resume, observer=observer, roster=roster)


def _new_keys(owners: Sequence[Path]) -> dict[str, Ed25519PrivateKey]:
    return {path.stem: Ed25519PrivateKey.generate() for path in owners}


def _roster_of(keys: Mapping[str, Ed25519PrivateKey]) -> SigningRoster:
    return SigningRoster({name: key.public_key() for name, key in keys.items()})


def _node(
    path: Path, config: RunConfig, max_width: float, key: Ed25519PrivateKey, roster: SigningRoster, folder: Path
) -> Node:
    """Return an owner's node. The researcher owns all of the text, so a plain run is permitted if that is chosen."""
    name, aggregation, own_folder = path.stem, config.aggregation, folder / path.stem
    own_folder.mkdir(parents=True, exist_ok=True)
    if aggregation.type == "plain":
        policy = Policy(allow_plain=True, max_width=max_width)
        return Node(name, path, pretrained=config.pretrained, policy=policy, folder=own_folder)
    policy = Policy(min_cohort=aggregation.min_cohort, max_colluders=aggregation.max_colluders, max_width=max_width)
    member = SecureMember(name, key, roster, policy, own_folder)
    return Node(name, path, pretrained=config.pretrained, policy=policy, member=member, folder=own_folder)


def run_ray(config: RunConfig, owners: Sequence[Path], folder: Path, resume: bool, observer: Observer) -> None:
    """Run the same apps on Flower's Ray runtime, the way past one machine; raises as `refuse_for_ray`."""
    refuse_for_ray(config)
    from flwr.app import ConfigRecordValues, Context
    from flwr.serverapp import Grid, ServerApp
    from flwr.simulation import run_simulation

    from agfl_client.app import app as client_app

    failure: list[BaseException] = []
    server_app = ServerApp()

    @server_app.main()
    def main(grid: Grid, context: Context) -> None:
        while len(list(grid.get_node_ids())) < len(owners):
            time.sleep(0.1)  # Ray's nodes appear one by one; the first cohort is to be that of the other engine
        try:
            run_federation(grid, config, folder, resume=resume, observer=observer)
        except AgflError as error:
            failure.append(error)

    os.environ[OWNERS_VARIABLE] = str(owners[0].parent.resolve())
    if config.pretrained is not None:
        os.environ[PRETRAINED_VARIABLE] = str(config.pretrained.resolve())
    backend: dict[str, dict[str, ConfigRecordValues]] = {
        "init_args": {"num_cpus": os.cpu_count() or 1},
        "client_resources": {"num_cpus": 1},
    }
    run_simulation(server_app, client_app, len(owners), backend_config=backend)
    if failure:
        raise failure[0]


def refuse_for_ray(config: RunConfig) -> None:
    """Say early what the engine cannot run.

    Raises:
        ConfigError: the run is secure or has owners keep state, or the extra `ray` is not installed.
    """
    if config.aggregation.type == "secure":
        raise ConfigError(
            "--engine ray: runs aggregation.type plain only, since Ray keeps no node's keys between messages, "
            "got secure; add --set aggregation.type=plain"
        )
    if config.data.max_widths is not None:
        raise ConfigError("--engine ray: every node there holds the whole model, got data.max_widths")
    if drift_of(config) is not None:
        raise ConfigError(
            "--engine ray: runs no aggregation.server_optimizer for which owners keep state, since Ray keeps none "
            f"between messages, got {config.aggregation.server_optimizer.type}"
        )
    try:
        import ray  # noqa: F401
    except ImportError:
        raise ConfigError("--engine ray: needs the extra `ray` (pip install 'agfl[ray]'), which is missing") from None


ENGINES: dict[str, Engine] = {"inline": run_inline, "ray": run_ray}


def simulate(config: RunConfig, folder: Path, engine: str, resume: bool, observer: Observer) -> list[Path]:
    """Divide the data into owners and run the federation to its last round, leaving everything in `folder`.

    Return the owners' files.

    Raises:
        AgflError: one line for a person.
    """
    prepare_flower()
    owners = owners_of(config, folder / OWNERS_FOLDER)
    if engine == "ray":
        refuse_for_ray(config)
        roster = None
    else:
        device_widths(config, len(owners.files))
        roster = _roster_of(_new_keys(owners.files))
    refuse_run(config, folder, resume=resume, roster=roster)
    files = owners.write(is_new=not resume)
    ENGINES[engine](config, files, folder, resume, observer)
    return files
