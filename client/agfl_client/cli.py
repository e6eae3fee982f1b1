"""agfl-client: make a data owner's keys, and run the owner's node."""

from __future__ import annotations

import logging
import math
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from agfl_models.console import new_app, run_app

if TYPE_CHECKING:
    from agfl_client.keys import NodeKeys
    from agfl_client.node import Node
    from agfl_client.policy import Policy
    from agfl_client.secure_member import SecureMember

app = new_app("Take part in a federation: train on your own text without handing it over.")
log = logging.getLogger("agfl.client")

Columns = Annotated[str, typer.Option(metavar="NAME=COLUMN,...", help="What your file calls the task's columns.")]
Pretrained = Annotated[
    Path | None, typer.Option(metavar="DIR", help="Your copy of the pretrained model, if the run has one.")
]
Device = Annotated[str, typer.Option(help="auto, cpu, cuda, mps or cuda:N.")]
Threads = Annotated[int, typer.Option(min=1, help="CPU threads for training.")]


@app.command()
def keygen(
    name: Annotated[str, typer.Argument(metavar="NAME", help="Your NAME in the federation.")],
    folder: Annotated[
        Path | None, typer.Option("--keys", metavar="DIR", help="A new folder; keys/NAME if omitted.")
    ] = None,
) -> None:
    """Make your keys; send the public file to the operator, and nobody the rest."""
    from agfl_client import keys

    public_file = keys.generate(name, folder or Path("keys") / name)
    typer.echo(f"made {public_file.parent}; send {public_file} to the operator, and nobody the other files")


@app.command()
def start(
    server: Annotated[str, typer.Option(metavar="HOST:PORT", help="The federation's server.")],
    ca: Annotated[Path, typer.Option(metavar="FILE", help="The federation's ca.pem, from the operator.")],
    folder: Annotated[Path, typer.Option("--keys", metavar="DIR", help="Your keys, from keygen.")],
    data: Annotated[Path, typer.Option(metavar="PATH", help="Your data: a file, or a folder of text.")],
    columns: Columns = "",
    pretrained: Pretrained = None,
    roster: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE", help="Every owner's signing key, got out of band; needed unless your policy allows plain."
        ),
    ] = None,
    policy: Annotated[Path | None, typer.Option(metavar="FILE", help="What you accept, in YAML.")] = None,
    device: Device = "auto",
    threads: Threads = 1,
    once: Annotated[bool, typer.Option("--once", help="Leave after one run.")] = False,
    max_wait: Annotated[
        float, typer.Option(min=0, metavar="SECONDS", help="How long the server may be away at a time.")
    ] = 600.0,
) -> None:
    """Run your node: it calls the server, listens on no port, and runs only the code that you installed."""
    from agfl_client import keys
    from agfl_client.server_trust import TrustedServer
    from agfl_models.examples import parse_columns
    from agfl_protocol.flower_settings import prepare_flower

    _refuse_nan("--max-wait", max_wait)
    prepare_flower()
    named = parse_columns(columns)
    with keys.hold(folder):
        own_keys = keys.load(folder)
        TrustedServer(server, ca).tls()  # says what is wrong before PyTorch is loaded

        rules = _rules(policy)
        member = _member(own_keys, roster, rules, folder)

        from agfl_client.node import Node

        node = Node(
            own_keys.name,
            data,
            device,
            threads,
            columns=named,
            pretrained=pretrained,
            policy=rules,
            member=member,
            folder=folder,
        )
        log.info("%s serves %s with %s; stop with Ctrl-C", node.name, server, data)
        try:
            _serve_run(node, server, ca, own_keys, max_wait)
            while not once:
                node.finished = False
                _serve_run(node, server, ca, own_keys, max_wait)
        except KeyboardInterrupt:
            log.info("stopped by a signal")
            raise


@app.command()
def probe(
    config: Annotated[Path, typer.Option(metavar="FILE", help="The run's configuration, from the operator.")],
    data: Annotated[Path, typer.Option(metavar="PATH", help="Your data, as for start.")],
    columns: Columns = "",
    pretrained: Pretrained = None,
    device: Device = "auto",
    threads: Threads = 1,
    max_seconds: Annotated[
        float, typer.Option(min=0, metavar="SECONDS", help="How long training may take here in a round.")
    ] = 60.0,
) -> None:
    """Measure which width of a run's model this machine can train, and propose one; you decide."""
    from agfl_client.device import choose_device
    from agfl_client.probe import free_memory, measure, proposed
    from agfl_client.probe_table import print_proposal, print_table
    from agfl_models.examples import parse_columns
    from agfl_protocol.run_config import load_run_config

    _refuse_nan("--max-seconds", max_seconds)
    run = load_run_config(config).with_pretrained(pretrained, "--pretrained")
    where = choose_device(device)
    found = measure(run, data, parse_columns(columns), where, threads)
    steps, free = run.training.local_steps, free_memory(where)
    print_table(found, steps, where, free)
    if run.elastic is not None and steps is not None:
        print_proposal(proposed(found, steps, max_seconds, free), found, max_seconds)


def _refuse_nan(option: str, seconds: float) -> None:
    from agfl_models.errors import ConfigError

    if math.isnan(seconds):
        raise ConfigError(f"{option}: must be a number, got {seconds}")


def _rules(policy: Path | None) -> Policy:
    """Return the owner's policy, and say it loudly where that lets the server see an update."""
    from agfl_client.policy import Policy, load_policy

    rules = load_policy(policy) if policy is not None else Policy()
    if rules.allow_plain:
        typer.secho("your policy allows plain: the server may see your update", fg="red", bold=True, err=True)
    return rules


def _member(own_keys: NodeKeys, roster: Path | None, rules: Policy, folder: Path) -> SecureMember | None:
    """Return the node's part in secure sums; none without a roster, if the owner's policy permits that."""
    from agfl_client.secure_member import SecureMember
    from agfl_models.errors import ConfigError
    from agfl_protocol.roster_file import fingerprint, read_roster

    if roster is None:
        if not rules.allow_plain:
            raise ConfigError("--roster: required, since this owner's policy allows no plain aggregation, got none")
        return None
    owners = read_roster(roster)
    log.info("roster of %d owners, fingerprint %s", len(owners), fingerprint(owners))
    return SecureMember(own_keys.name, own_keys.signing, owners, rules, folder)


def _serve_run(node: Node, server: str, ca: Path, own_keys: NodeKeys, max_wait_s: float) -> None:
    import threading

    from agfl_client.app import create_client_app
    from agfl_client.supernode import run_node

    run_node(
        server,
        ca,
        own_keys.transport,
        create_client_app(node),
        stop=threading.Event(),  # never set: run_app turns SIGTERM into KeyboardInterrupt
        finished=lambda: node.finished,
        max_wait_s=max_wait_s,
        allowance=node.announced.most_bytes,
    )
    log.info("the run is finished")


def main() -> None:
    """Entry point of `agfl-client`."""
    run_app(app)
